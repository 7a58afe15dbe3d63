//! Tests of `diskless model`.

use dhcp::Style;

use super::*;
use crate::inventory::{Finding, ModelKey, ServerRole};

#[tokio::test]
async fn models_are_listed_with_what_works_and_forgotten_by_number() {
    let running = Running::start().await;
    let none = running.answer("model list").await.unwrap();
    assert_eq!(none, "no firmware has fetched its loader here yet");
    for maker in [1, 2] {
        let class = "PXEClient:Arch:00007:UNDI:003000";
        let key = ModelKey::new("UEFI PXE (x64)".into(), class, [0x54, 0xbf, maker]);
        for finding in [
            Finding::Style(Style::Binl),
            Finding::Loader("ipxe.efi".into()),
        ] {
            (running.inventory.learn(&key, ServerRole::Proxy, finding)).unwrap();
        }
    }
    let list = running.answer("model list").await.unwrap();
    let words = ["UEFI PXE (x64)", "54:bf:01", "proxy", "binl", "ipxe.efi"];
    assert!(words.iter().all(|word| list.contains(word)), "{list}");
    let forgot = running.answer("model reset 1").await.unwrap();
    assert_eq!(forgot, "forgot what works with UEFI PXE (x64) of 54:bf:01");
    let why = running.answer("model reset 1").await.unwrap_err();
    assert!(why.contains("`diskless model list` shows them"), "{why}");
    running.answer("model reset --all").await.unwrap();
    assert_eq!(running.inventory.models(), []);
    assert!(parsed("model reset").is_err());
}
