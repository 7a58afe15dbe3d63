//! What a firmware boots, in the form it understands (RFC 4578, PXE 2.1
//! section 2.2).
//!
//! What each firmware does with each [`Style`] was seen on the wire of EDK2
//! 2022.11 and of iPXE 2019 and 2026; what a Raspberry Pi takes was recorded
//! by its maker.

use std::net::Ipv4Addr;

use crate::client::{HTTP_CLASS, PXE_CLASS};
use crate::wire::{FILE_BYTES, Message, code};
use crate::{Boot, Client, Firmware, Promise, Style};

/// Option 43 with discovery control (6) bit 3: take the boot file of this
/// very packet; no menu, no discovery, no request to port 4011. BIOS ROMs,
/// EDK2 and iPXE all go straight to TFTP on it.
const BOOT_FROM_HERE: [u8; 4] = [6, 1, 8, 255];

/// Option 175 with no-pxedhcp (176): iPXE does not wait 2 s for a ProxyDHCP.
const NO_PROXY: [u8; 3] = [176, 1, 1];

/// Option 43 by which a Raspberry Pi knows that it is meant: no discovery by
/// broadcast or multicast (6), a prompt that waits for nobody (10), and its
/// name as the one entry of a menu (9, type 0). The three blanks are for the
/// ROM of the Pi 3, which finds the name only with them.
const RASPBERRY_PI: &[u8] =
    b"\x06\x01\x03\x0a\x04\x00PXE\x09\x17\x00\x00\x14Raspberry Pi Boot   \xff";

/// Boot server type of our menu's one entry, the first that is free for
/// vendors (PXE 2.1 table 2-1).
const MENU_TYPE: [u8; 2] = [0x80, 0x00];

/// What the one entry of our menu is called.
const MENU_ENTRY: &[u8] = b"diskless";

/// Whose answer the boot information goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one that also lends the address.
    Server,
    /// One beside it, to a DISCOVER.
    Proxy,
    /// One to a boot server request: what was put off is due.
    BootServer,
}

/// Adds what the client boots, and returns whether its firmware could make
/// something of it.
pub(crate) fn add(
    reply: &mut Message,
    client: &Client,
    boot: &Boot,
    promise: &Promise,
    server: Ipv4Addr,
    (role, style): (Role, Style),
) -> bool {
    let style = match (client.firmware, boot) {
        (Firmware::System, _)
        | (Firmware::UefiHttp(_), Boot::Tftp { .. })
        | (
            Firmware::BiosPxe | Firmware::UefiPxe(_) | Firmware::RaspberryPi | Firmware::Other(_),
            Boot::Url(_),
        ) => return false,
        (Firmware::RaspberryPi, Boot::Tftp { server, .. }) => {
            add_raspberry_pi(reply, *server);
            return true;
        }
        // Nothing of PXE: HTTP Boot knows one form.
        (Firmware::UefiHttp(_), Boot::Url(_)) => {
            reply.options.set(code::VENDOR_CLASS, HTTP_CLASS);
            Style::Plain
        }
        (Firmware::Ipxe(_), _) if role == Role::Server => {
            reply.options.set(code::IPXE, NO_PROXY);
            Style::Plain
        }
        (Firmware::Ipxe(_), _) => Style::Direct,
        (Firmware::BiosPxe | Firmware::UefiPxe(_) | Firmware::Other(_), Boot::Tftp { .. }) => {
            match role {
                Role::Server => style,
                // Without option 60 nobody takes it for a proxy's.
                Role::Proxy if style == Style::Plain => Style::Direct,
                Role::Proxy => style,
                // EDK2 asked because it saw no option 43; it takes the file
                // as it is. ROMs are told once more to ask nothing.
                Role::BootServer if matches!(client.firmware, Firmware::UefiPxe(_)) => Style::Binl,
                Role::BootServer => Style::Direct,
            }
        }
    };
    match style {
        Style::Plain => {}
        Style::Direct => {
            reply.options.set(code::VENDOR_CLASS, PXE_CLASS);
            reply.options.set(code::VENDOR, BOOT_FROM_HERE);
        }
        Style::Binl | Style::ClassOnly => reply.options.set(code::VENDOR_CLASS, PXE_CLASS),
        Style::Menu => {
            reply.options.set(code::VENDOR_CLASS, PXE_CLASS);
            reply.options.set(code::VENDOR, menu(server));
        }
    }
    if matches!(style, Style::ClassOnly | Style::Menu) {
        // Where port 4011 is asked.
        reply.siaddr = server;
    } else {
        add_file(reply, client, boot, server);
    }
    if matches!(client.firmware, Firmware::Ipxe(_)) {
        if let Some(path) = &promise.root_path {
            reply.options.set(code::ROOT_PATH, path.as_str());
        }
        if let Some(name) = &promise.initiator_name {
            reply.options.set(code::INITIATOR_NAME, name.as_str());
        }
    }
    true
}

/// The file and where it is.
fn add_file(reply: &mut Message, client: &Client, boot: &Boot, server: Ipv4Addr) {
    // siaddr always: without it EDK2 asks the server identifier, and iPXE
    // drops a proxy's answer even where the file is a URL.
    let name = match boot {
        Boot::Tftp { server, file } => {
            reply.siaddr = *server;
            reply.options.set(code::TFTP_SERVER, server.to_string());
            file
        }
        Boot::Url(url) => {
            reply.siaddr = server;
            url
        }
    };
    // The header for those that look only there, with room for a NUL. HTTP
    // Boot looks at the option first and no further.
    if name.len() < FILE_BYTES && !matches!(client.firmware, Firmware::UefiHttp(_)) {
        reply.file = name.as_bytes().to_vec();
    }
    // With a NUL: ROMs need one, and EDK2 would write its own over the code
    // of the next option.
    reply
        .options
        .set(code::BOOT_FILE, [name.as_bytes(), &[0]].concat());
}

/// A Raspberry Pi asks for the files it knows, wherever TFTP is: the Pi 4 and
/// 5 look at option 66 first.
fn add_raspberry_pi(reply: &mut Message, tftp: Ipv4Addr) {
    reply.siaddr = tftp;
    reply.options.set(code::TFTP_SERVER, tftp.to_string());
    reply.options.set(code::VENDOR_CLASS, PXE_CLASS);
    reply.options.set(code::VENDOR, RASPBERRY_PI);
}

/// Option 43 with a menu of one entry that is taken at once: no discovery by
/// broadcast or multicast (6), ourselves as its one boot server (8), its name
/// (9), and a prompt that waits for nobody (10).
fn menu(server: Ipv4Addr) -> Vec<u8> {
    let sub = |code: u8, data: Vec<u8>| {
        let length = u8::try_from(data.len()).unwrap_or(u8::MAX);
        [vec![code, length], data].concat()
    };
    let entry_bytes = u8::try_from(MENU_ENTRY.len()).unwrap_or(u8::MAX);
    [
        sub(6, vec![3]),
        sub(8, [&MENU_TYPE[..], &[1], &server.octets()].concat()),
        sub(9, [&MENU_TYPE[..], &[entry_bytes], MENU_ENTRY].concat()),
        sub(10, [&[0][..], b"PXE"].concat()),
        vec![255],
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_menu_is_laid_out_as_pxe_2_1_says() {
        let mut expected = vec![6, 1, 3, 8, 7, 0x80, 0, 1, 10, 0, 0, 1, 9, 11, 0x80, 0, 8];
        expected.extend_from_slice(b"diskless\x0a\x04\x00PXE\xff");
        assert_eq!(menu(Ipv4Addr::new(10, 0, 0, 1)), expected);
    }

    #[test]
    fn a_raspberry_pis_option_43_has_lengths_that_fit() {
        let subs: Vec<(u8, &[u8])> = crate::wire::inner_options(RASPBERRY_PI).collect();
        assert_eq!(
            subs,
            [
                (6, &[3][..]),
                (10, b"\x00PXE"),
                (9, b"\x00\x00\x14Raspberry Pi Boot   "),
            ]
        );
        assert_eq!(usize::from(subs[2].1[2]), subs[2].1.len() - 3);
    }
}
