//! Virtual files: made for the one who asks, the same by TFTP and by HTTP.
//!
//! Both doors ask [`find`] before they look for a loader file. A file of that
//! name in the user's own loader directory goes before what is made here, so
//! nobody is kept from writing his own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use ::dhcp::Mac;
use bytes::Bytes;

use super::Site;
use super::loaders::raspberry;
use crate::timeline::Stage;

mod autoexec;
mod configs;
mod grub;

/// Longest name of a document; the file systems' own limit for one part.
const NAME_BYTES_MAX: usize = 255;

/// Who asks, as far as a door can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Where the request came from.
    pub(crate) address: IpAddr,
    /// Whose that address is, where a DHCP packet has shown it. Whoever takes
    /// another's address is taken for that one: what is made for a machine by
    /// its address holds no more than its script tells anybody.
    pub(crate) mac: Option<Mac>,
    /// The address of ours that was asked.
    pub(crate) server: Ipv4Addr,
}

impl Asker {
    /// Who has this address and asks `server`, an address of ours.
    pub(crate) fn at(site: &Site, address: IpAddr, server: Ipv4Addr) -> Asker {
        Asker {
            address,
            mac: site.addresses.mac_of(address),
            server,
        }
    }
}

/// What is sent.
#[derive(Clone)]
pub(crate) enum Document {
    /// Bytes made for this request.
    Bytes(Bytes),
    /// A file inside the disk of the machine that asks.
    Readable(Arc<dyn tftp::Readable>),
}

impl From<String> for Document {
    fn from(text: String) -> Document {
        Document::Bytes(Bytes::from(text))
    }
}

/// The document behind a name, if it is one. May wait for the store; asked on
/// threads that may wait.
pub(crate) fn find(site: &Site, asker: &Asker, name: &str) -> Option<Document> {
    let name = plain(name)?;
    if site.loaders.has_own(&name) {
        return None;
    }
    autoexec::find(site, asker, &name)
        .or_else(|| configs::find(site, asker, &name))
        .or_else(|| grub::find(site, asker, &name))
}

/// What a sent document means for its machine's boot; `None` where the name is
/// not a document's.
pub(crate) fn stage_of(name: &str) -> Option<Stage> {
    let name = plain(name)?;
    match autoexec::is_one(&name) {
        true => Some(Stage::ScriptSent),
        false => grub::stage_of(&name),
    }
}

/// Whether a file of this name is only tried for: loaders go on without it, and
/// nobody misses it.
pub(crate) fn is_tried_only(name: &str) -> bool {
    let last = last_part(name).unwrap_or_default();
    let has = |start: &str, end: &str| last.starts_with(start) && last.ends_with(end);
    // A shim's further certificates and revocations; a GRUB's lists of modules
    // and, where it has none for HTTP, that module.
    raspberry::is_tried_only(name)
        || configs::is_tried_only(name)
        || has("revocations", ".efi")
        || has("shim_certificate", ".efi")
        || has("", ".lst")
        || has("", ".mod")
}

/// A name as documents have it: no slash in front, none twice. Firmware and
/// loaders put a path together from two, and ask for `//name`.
pub(crate) fn plain(name: &str) -> Option<String> {
    if name.len() > NAME_BYTES_MAX || name.contains(['\0', '\\']) {
        return None;
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
    let is_inside = !parts.is_empty() && !parts.contains(&".") && !parts.contains(&"..");
    is_inside.then(|| parts.join("/"))
}

/// The last part of a name.
fn last_part(name: &str) -> Option<&str> {
    Path::new(name).file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use tftp::{Content, ErrorCode, Files, Outcome};

    use super::*;
    use crate::services::tests::{Lab, PC_ADDRESS, SERVER};
    use crate::services::tftp::LoaderFiles;

    #[test]
    fn a_name_is_the_same_with_slashes_in_front_or_twice() {
        assert_eq!(plain("//autoexec.ipxe").as_deref(), Some("autoexec.ipxe"));
        assert_eq!(plain("/a//b").as_deref(), Some("a/b"));
    }

    #[test]
    fn what_a_loader_only_tries_for_is_told_from_what_it_needs() {
        for name in [
            "secure/debian/revocations_sku.efi",
            "secure/debian/shim_certificate_0.efi",
            "grub/x86_64-efi/command.lst",
            "grub/x86_64-efi/http.mod",
        ] {
            assert!(is_tried_only(name), "{name}");
        }
        for name in [
            "secure/debian/grubx64.efi",
            "snponly.efi",
            "grub/grub.cfg",
            "",
        ] {
            assert!(!is_tried_only(name), "{name}");
        }
    }

    #[test]
    fn a_raspberry_pis_probes_are_refused_at_once_and_no_news() {
        let lab = Lab::new();
        let pi = Mac([0xdc, 0xa6, 0x32, 1, 2, 3]);
        lab.site().addresses.learn(PC_ADDRESS, pi);
        let door = LoaderFiles(Arc::clone(lab.site()));
        let told_of = |name: &str| {
            let request = tftp::Request {
                name: name.into(),
                client: SocketAddrV4::new(PC_ADDRESS, 1024),
                local: SocketAddrV4::new(SERVER, 69),
            };
            let code = door.open(&request).map(drop).unwrap_err();
            assert_eq!(code, ErrorCode::NotFound, "{name}");
            door.ended(&request, &Outcome::Refused(code));
            lab.site().timeline.events(pi).len()
        };
        for name in [
            "bootsig.bin",
            "8a5b1c2d/dt-blob.bin",
            "dc-a6-32-01-02-03/recovery.elf",
            "pxelinux.cfg/01-dc-a6-32-01-02-03x",
        ] {
            assert_eq!(told_of(name), 0, "{name}");
        }
        assert_eq!(told_of("8a5b1c2d/start4.elf"), 1);
        std::fs::write(lab.files().join("start4.elf"), "x").unwrap();
        let request = tftp::Request {
            name: "8a5b1c2d/start4.elf".into(),
            client: SocketAddrV4::new(PC_ADDRESS, 1024),
            local: SocketAddrV4::new(SERVER, 69),
        };
        assert!(matches!(
            door.open(&request),
            Ok(Content::File { size_bytes: 1, .. })
        ));
    }

    #[test]
    fn a_name_that_leaves_its_tree_is_no_documents() {
        for name in ["", "/", "a/../autoexec.ipxe", "./x", "a\\b", "x\0"] {
            assert_eq!(plain(name), None, "{name:?}");
        }
        assert_eq!(plain(&"a".repeat(NAME_BYTES_MAX + 1)), None);
    }
}
