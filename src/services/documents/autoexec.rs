//! `autoexec.ipxe`: what iPXE for UEFI asks for beside its own binary before
//! it does anything else (iPXE 2.0, `interface/efi/efi_autoexec.c`).
//!
//! It comes by the door the binary came by, through an interface that is
//! closed again before the script runs, and without any word of who asks. So
//! it opens an interface and sends iPXE to its boot script; the secret of the
//! next boot generation is in that one only.

use super::{Asker, Document, Site, last_part};
use crate::boot::script;

/// The name, in whichever directory the binary lies.
const NAME: &str = "autoexec.ipxe";

pub(super) fn is_one(name: &str) -> bool {
    last_part(name) == Some(NAME)
}

pub(super) fn find(site: &Site, asker: &Asker, name: &str) -> Option<Document> {
    is_one(name).then(|| {
        let doors = site.doors(asker.server);
        let script = match asker.mac {
            Some(mac) => doors.script_url(mac),
            None => script::asking_url(&doors),
        };
        script::autoexec(&script).into()
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::sync::Arc;

    use ::dhcp::Mac;
    use tftp::{Content, Files, Outcome};

    use super::*;
    use crate::services::tests::{Lab, PC_ADDRESS as PC, SERVER};
    use crate::services::tftp::LoaderFiles;
    use crate::timeline::Stage;

    fn made(lab: &Lab, name: &str) -> Option<String> {
        let asker = Asker::at(lab.site(), PC.into(), SERVER);
        let Document::Bytes(bytes) = super::super::find(lab.site(), &asker, name)? else {
            panic!("{name} is no text");
        };
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn a_machine_whose_address_is_known_is_sent_to_its_own_script() {
        let lab = Lab::new();
        lab.site()
            .addresses
            .learn(PC, Mac([0x52, 0x54, 0, 0, 0, 1]));
        let text = made(&lab, "autoexec.ipxe").unwrap();
        assert!(text.starts_with("#!ipxe\nifconf "), "{text}");
        assert!(
            text.contains("chain --replace http://10.0.0.1/boot.ipxe?mac=52-54-00-00-00-01 "),
            "{text}"
        );
    }

    #[test]
    fn a_stranger_is_sent_to_say_who_it_is() {
        let text = made(&Lab::new(), "//x86_64-efi/autoexec.ipxe").unwrap();
        assert!(
            text.contains("/boot.ipxe?mac=${netX/mac:hexhyp}&"),
            "{text}"
        );
    }

    #[test]
    fn the_users_own_goes_before_ours() {
        let lab = Lab::new();
        std::fs::write(lab.files().join("autoexec.ipxe"), "#!ipxe\n").unwrap();
        assert_eq!(made(&lab, "autoexec.ipxe"), None);
    }

    #[test]
    fn both_doors_send_the_same_and_the_timeline_knows_it_for_a_script() {
        let lab = Lab::new();
        let pc = Mac([0x52, 0x54, 0, 0, 0, 1]);
        lab.site().addresses.learn(PC, pc);
        let script = made(&lab, "autoexec.ipxe").unwrap();
        for path in ["/loader/autoexec.ipxe", "//autoexec.ipxe"] {
            assert_eq!(lab.get(path).text, script, "{path}");
        }
        let request = tftp::Request {
            name: "autoexec.ipxe".into(),
            client: SocketAddrV4::new(PC, 1024),
            local: SocketAddrV4::new([10, 0, 0, 1].into(), 69),
        };
        let files = LoaderFiles(Arc::clone(lab.site()));
        let Ok(Content::Bytes(bytes)) = files.open(&request) else {
            panic!("not sent over TFTP");
        };
        assert_eq!(bytes, script);
        files.ended(&request, &Outcome::Complete { bytes: 9 });
        let events = lab.site().timeline.events(pc);
        let told: Vec<_> = events.iter().map(|e| (e.stage, e.count)).collect();
        assert_eq!(told, [(Stage::ScriptSent, 2), (Stage::ScriptSent, 1)]);
    }
}
