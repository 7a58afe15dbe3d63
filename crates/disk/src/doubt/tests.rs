//! Notes of failed syncs. What they are good for is judged by a real kernel
//! (`tests/judges.rs`) and under the recorder.

use super::*;

const BOOT: BootId = [7; 16];

#[test]
fn a_note_reads_back_as_written_and_counts_in_one_boot() {
    let doubt = Doubt::default().more().more();
    assert_eq!(Doubt::parse(&doubt.emit(BOOT), BOOT), doubt);
    assert_eq!(Doubt::parse(&doubt.emit(BOOT), [8; 16]), Doubt::default());
    assert_eq!(
        Doubt::parse(&doubt.emit(BOOT)[..20], BOOT),
        Doubt::default()
    );
    assert_eq!(Doubt::default().boot_of(BOOT), BOOT);
    assert_ne!(doubt.boot_of(BOOT), BOOT);
    assert_ne!(doubt.boot_of(BOOT), doubt.more().boot_of(BOOT));
}
