//! Versions of images, from the command line.

use std::os::unix::fs::{FileExt, PermissionsExt};

use super::*;

/// A running API with as many versions of `debian`, of 2 MiB each.
async fn with_versions(count: u8) -> Running {
    let running = Running::start().await;
    let source = running.directory.path().join("a.raw");
    for version in 1..=count {
        fs::write(&source, vec![version; 2 << 20]).unwrap();
        let line = format!("image import debian {}", source.display());
        running.answer(&line).await.unwrap();
    }
    running
}

#[tokio::test]
async fn an_operator_goes_back_to_an_earlier_version_and_forth() {
    let running = with_versions(3).await;
    running
        .answer("machine add pc07 --mac 52:54:00:00:00:07 --image debian")
        .await
        .unwrap();
    let said = running.answer("image rollback debian").await.unwrap();
    assert!(
        said.starts_with("debian@2 is current, in place of @3"),
        "{said}"
    );
    let said = running.answer("image versions debian").await.unwrap();
    let line = |version: &str| said.lines().find(|line| line.contains(version)).unwrap();
    assert!(line("debian@2").contains("current"), "{said}");
    assert!(line("debian@2").contains("1 to boot"), "{said}");
    assert!(line("debian@3").contains("nobody"), "{said}");
    let said = running.answer("image rollback debian 3").await.unwrap();
    assert!(said.starts_with("debian@3 is current"), "{said}");
    let said = running.answer("image rollback debian@1").await.unwrap();
    assert!(said.starts_with("debian@1 is current"), "{said}");
    for (line, words) in [
        ("image rollback debian@1 2", "leave the other out"),
        ("image rollback debian@x", "they count from 1"),
        ("image rollback debian@0", "they count from 1"),
    ] {
        let refusal = running.answer(line).await.unwrap_err();
        assert!(refusal.contains(words), "{line}: {refusal}");
    }
    let refusal = running.answer("image rollback debian 9").await.unwrap_err();
    assert!(refusal.contains("has version 1, 2, 3"), "{refusal}");
    let refusal = running.answer("image versions debina").await.unwrap_err();
    assert!(refusal.contains("did you mean debian?"), "{refusal}");
}

#[tokio::test]
async fn a_verification_names_the_damaged_mib_and_takes_it_back() {
    let running = with_versions(1).await;
    let said = running.answer("image verify debian").await.unwrap();
    assert_eq!(said, "debian@1 is what was published");
    let disk = running
        .directory
        .path()
        .join("data/images/debian/v001/disk.raw");
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0], (1 << 20) + 5).unwrap();
    let refusal = running.answer("image verify debian@1").await.unwrap_err();
    assert!(refusal.contains("damaged in MiB 1:"), "{refusal}");
    let said = running.answer("image list").await.unwrap();
    assert!(said.contains("current, DAMAGED"), "{said}");
    file.write_all_at(&[1], (1 << 20) + 5).unwrap();
    running.answer("image verify debian").await.unwrap();
    let said = running.answer("image list").await.unwrap();
    assert!(!said.contains("DAMAGED"), "{said}");
}
