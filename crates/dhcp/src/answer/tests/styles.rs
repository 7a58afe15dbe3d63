//! Claims about the forms in which a PXE firmware is told what it boots.

use super::*;
use crate::Style;

const STYLES: [Style; 5] = [
    Style::Direct,
    Style::Plain,
    Style::Binl,
    Style::ClassOnly,
    Style::Menu,
];

fn offered(mode: Mode, style: Style) -> Message {
    let mut lab = Lab::new(mode);
    *lab.site.style.lock().unwrap() = style;
    let offer = lab.broadcast(&recorded("ovmf-pxe-discover")).unwrap();
    offer.message
}

/// The parts that make the difference: class, option 43, file.
fn form(message: &Message) -> (Option<String>, Option<Vec<u8>>, &str) {
    let vendor = message.options.get(code::VENDOR).map(<[u8]>::to_vec);
    assert_eq!(
        message.options.get(code::BOOT_FILE).is_some(),
        !message.file.is_empty()
    );
    (class(message), vendor, file(message))
}

#[test]
fn each_style_has_the_class_option_43_and_file_it_is_named_for() {
    let class = || Some("PXEClient".to_owned());
    for mode in [Mode::Full, Mode::Proxy] {
        let direct = (class(), Some(vec![6, 1, 8, 255]), "snponly.efi");
        assert_eq!(form(&offered(mode, Style::Direct)), direct);
        let binl = (class(), None, "snponly.efi");
        assert_eq!(form(&offered(mode, Style::Binl)), binl);
        let class_only = (class(), None, "");
        assert_eq!(form(&offered(mode, Style::ClassOnly)), class_only);
        let menu = offered(mode, Style::Menu);
        assert_eq!((form(&menu).0, form(&menu).2), (class(), ""));
        let boot_server = [&[8, 7, 0x80, 0, 1][..], &SERVER.octets()].concat();
        let vendor = form(&menu).1.unwrap();
        assert!(vendor.windows(9).any(|subs| subs == boot_server));
    }
    let plain = offered(Mode::Full, Style::Plain);
    assert_eq!(form(&plain), (None, None, "snponly.efi"));
    let needs_class = offered(Mode::Proxy, Style::Plain);
    assert_eq!(form(&needs_class).0, class());
}

#[test]
fn siaddr_is_there_in_every_style() {
    for mode in [Mode::Full, Mode::Proxy] {
        for style in STYLES {
            assert_eq!(offered(mode, style).siaddr, SERVER, "{mode:?} {style:?}");
        }
    }
}

#[test]
fn port_4011_tells_the_file_whatever_was_put_off() {
    for style in STYLES {
        for mode in [Mode::Full, Mode::Proxy] {
            let mut lab = Lab::new(mode);
            *lab.site.style.lock().unwrap() = style;
            let edk2 = lab
                .boot_server(&edk2_boot_server_request(host(77)), 4011)
                .unwrap()
                .message;
            assert_eq!(file(&edk2), "snponly.efi");
            assert_eq!(edk2.options.get(code::VENDOR), None);
            let rom = lab
                .boot_server(&rom_boot_item_request(host(78)), 68)
                .unwrap()
                .message;
            assert_eq!(file(&rom), "undionly.kpxe");
            let item = Some(&b"\x47\x04\x80\x00\x00\x00\xff"[..]);
            assert_eq!(rom.options.get(code::VENDOR), item);
        }
    }
}

#[test]
fn a_client_that_came_to_port_4011_is_told_from_one_that_asks_anew() {
    let mut lab = Lab::new(Mode::Proxy);
    lab.boot_server(&edk2_boot_server_request(host(77)), 4011);
    let observed = lab.site.observations();
    assert!(matches!(&observed[0], Observation::BootServerAsked(_)));
    assert!(!observed.iter().any(|o| matches!(o, Observation::Asked(_))));
}

#[test]
fn http_boot_and_ipxe_know_one_form_only() {
    for style in STYLES {
        let mut lab = Lab::new(Mode::Proxy);
        *lab.site.style.lock().unwrap() = style;
        let http = lab.broadcast(&recorded("ovmf-http-discover")).unwrap();
        assert_eq!(class(&http.message).as_deref(), Some("HTTPClient"));
        assert_eq!(http.message.options.get(code::VENDOR), None);
        let ipxe = lab.broadcast(&recorded("ipxe2019-bios-discover")).unwrap();
        assert_eq!(file(&ipxe.message), SCRIPT);
    }
}

#[test]
fn a_raspberry_pi_is_told_its_name_and_where_tftp_is_and_no_file() {
    for mode in [Mode::Full, Mode::Proxy] {
        let mut lab = Lab::new(mode);
        lab.site.boots.lock().unwrap().push((
            Firmware::RaspberryPi,
            Boot::Tftp {
                server: SERVER,
                file: "bootcode.bin".into(),
            },
        ));
        let mut pi = discover(7);
        pi.chaddr[..3].copy_from_slice(&[0xb8, 0x27, 0xeb]);
        pi.options
            .set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001");
        pi.options.set(code::ARCHITECTURE, [0, 0]);
        let offer = lab.broadcast(&pi).unwrap().message;
        let vendor = offer.options.get(code::VENDOR).unwrap();
        let name = b"Raspberry Pi Boot   ";
        assert!(vendor.windows(name.len()).any(|part| part == name));
        assert_eq!(class(&offer).as_deref(), Some("PXEClient"));
        assert_eq!(offer.siaddr, SERVER);
        let tftp = offer.options.text(code::TFTP_SERVER);
        assert_eq!(tftp.as_deref(), Some("10.0.0.1"));
        assert_eq!(
            (file(&offer), offer.options.get(code::BOOT_FILE)),
            ("", None)
        );
    }
}
