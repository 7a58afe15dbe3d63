//! Units that come and go under sessions with a real socket.

use super::*;

fn unit() -> Arc<LogicalUnit> {
    let disk = Arc::new(Ram::new(1 << 20));
    Arc::new(LogicalUnit::new(disk, Identity::new([6; 16], "JUDGED")))
}

#[test]
fn sessions_busy_and_idle_let_go_of_a_detached_unit() {
    let lab = Lab::new();
    let target = &lab.site.target;
    target.attach(300, unit()).unwrap();
    let mut busy = lab.initiator(1);
    let _idle = lab.initiator(2);
    let unit = target.detach(300).unwrap();
    // The next command finds the units of now, and is told so once.
    let told = busy.command(&[0; 6], &[], 0);
    assert_eq!(
        (told.status, told.data[2 + 12..][..2].to_vec()),
        (2, vec![0x3f, 0x0e])
    );
    assert_eq!(busy.command(&[0; 6], &[], 0).status, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while Arc::strong_count(&unit) > 1 {
        assert!(Instant::now() < deadline, "somebody still holds it");
        std::thread::sleep(Duration::from_millis(20));
    }
}
