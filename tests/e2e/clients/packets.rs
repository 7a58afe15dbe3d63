//! The first packet of each client, as it was recorded or as its source code
//! makes it.

use anyhow::{Context as _, Result};
use dhcp::wire::{BROADCAST_FLAG, Message, MessageType, Op, code};

/// DISCOVERs from captures, as the tests of the `dhcp` room have them.
const OVMF_PXE: &str = include_str!("../../../crates/dhcp/src/vectors/ovmf-pxe-discover.hex");
const OVMF_HTTP: &str = include_str!("../../../crates/dhcp/src/vectors/ovmf-http-discover.hex");
const IPXE_2019: &str = include_str!("../../../crates/dhcp/src/vectors/ipxe2019-bios-discover.hex");

/// Option 94, "Client Network Interface Identifier" (RFC 4578 section 2.2).
const NETWORK_INTERFACE: u8 = 94;

/// EDK2's PXE client; `architecture` 7, or 9 as some firmware says.
pub(crate) fn edk2_pxe(architecture: u16) -> Result<Message> {
    let mut discover = recorded(OVMF_PXE)?;
    discover
        .options
        .set(code::ARCHITECTURE, architecture.to_be_bytes());
    let class = format!("PXEClient:Arch:{architecture:05}:UNDI:003000");
    discover.options.set(code::VENDOR_CLASS, class);
    Ok(discover)
}

/// EDK2's HTTP Boot.
pub(crate) fn edk2_http() -> Result<Message> {
    recorded(OVMF_HTTP)
}

/// iPXE 2019 on BIOS.
pub(crate) fn ipxe_bios() -> Result<Message> {
    recorded(IPXE_2019)
}

/// iPXE on UEFI: options as recorded of 2026's `snponly.efi`.
pub(crate) fn ipxe_efi() -> Result<Message> {
    let mut discover = recorded(IPXE_2019)?;
    let options = &mut discover.options;
    options.set(code::ARCHITECTURE, 7_u16.to_be_bytes());
    options.set(NETWORK_INTERFACE, [1, 3, 10]);
    options.set(code::VENDOR_CLASS, "PXEClient:Arch:00007:UNDI:003010");
    options.set(
        code::PARAMETERS,
        [
            1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134,
            135, 175, 203,
        ],
    );
    options.set(
        code::IPXE,
        hex("b105011af41000eb03010000170101240101130101110101270101290101150101120101"),
    );
    Ok(discover)
}

/// gPXE 1.0: user class "gPXE", the features of its time.
pub(crate) fn gpxe() -> Result<Message> {
    let mut discover = recorded(IPXE_2019)?;
    let options = &mut discover.options;
    options.set(code::USER_CLASS, "gPXE");
    options.set(
        code::PARAMETERS,
        [
            1, 3, 6, 7, 12, 15, 17, 43, 60, 66, 67, 128, 129, 130, 131, 132, 133, 134, 135, 175,
            203,
        ],
    );
    options.set(
        code::IPXE,
        hex("b105018086100eeb0301000017010113010111010112010119010110010221010115010118010 1"),
    );
    Ok(discover)
}

/// Intel's boot agent: the options of PXE 2.1 table 2-1, in its order.
pub(crate) fn intel_rom() -> Message {
    let list: Vec<u8> = [
        1, 2, 3, 4, 5, 6, 11, 12, 13, 15, 16, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58,
        59, 60, 66, 67,
    ]
    .into_iter()
    .chain(128..=135)
    .collect();
    let mut discover = plain(4, BROADCAST_FLAG);
    let options = &mut discover.options;
    options.set(code::PARAMETERS, list);
    options.set(code::MAX_SIZE, 1260_u16.to_be_bytes());
    options.set(code::UUID, [&[0][..], &[0x4c; 16]].concat());
    options.set(code::ARCHITECTURE, [0, 0]);
    options.set(NETWORK_INTERFACE, [1, 2, 1]);
    options.set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001");
    discover
}

/// The boot ROM of a Raspberry Pi 3: no broadcast flag, a type of UUID of
/// its own, one of Raspberry Pi's OUIs.
pub(crate) fn raspberry_pi() -> Message {
    let mut discover = plain(0, 0);
    let options = &mut discover.options;
    options.set(
        code::PARAMETERS,
        [1, 3, 43, 60, 66, 67, 128, 129, 130, 131, 132, 133, 134, 135],
    );
    options.set(code::ARCHITECTURE, [0, 0]);
    options.set(NETWORK_INTERFACE, [1, 2, 1]);
    options.set(code::UUID, [&[0][..], &[0x44; 16]].concat());
    options.set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001");
    discover
}

/// klibc's ipconfig, which asks for an initramfs.
pub(crate) fn ipconfig() -> Message {
    let mut discover = plain(0, 0);
    let options = &mut discover.options;
    options.set(code::MAX_SIZE, 1500_u16.to_be_bytes());
    options.set(code::VENDOR_CLASS, "Linux ipconfig");
    options.set(code::PARAMETERS, [1, 3, 6, 12, 15, 17, 26, 28, 40, 42]);
    discover
}

/// busybox's udhcpc.
pub(crate) fn udhcpc() -> Message {
    let mut discover = plain(0, 0);
    let options = &mut discover.options;
    options.set(code::MAX_SIZE, 576_u16.to_be_bytes());
    options.set(code::PARAMETERS, [1, 3, 6, 12, 15, 28, 42, 121]);
    options.set(code::VENDOR_CLASS, "udhcp 1.35.0");
    discover
}

/// U-Boot with `CONFIG_BOOTP_PXE`, ARM64 (IANA: 22).
pub(crate) fn u_boot() -> Message {
    let mut discover = plain(0, 0);
    let options = &mut discover.options;
    options.set(code::MAX_SIZE, 576_u16.to_be_bytes());
    options.set(code::ARCHITECTURE, [0, 22]);
    options.set(NETWORK_INTERFACE, [1, 0, 0]);
    options.set(code::VENDOR_CLASS, "U-Boot.armv8");
    options.set(code::PARAMETERS, [1, 3, 6, 12, 17, 66, 67]);
    discover
}

fn plain(secs: u16, flags: u16) -> Message {
    let mut discover = Message::new(Op::Request);
    (discover.htype, discover.hlen) = (1, 6);
    (discover.secs, discover.flags) = (secs, flags);
    let kind = MessageType::Discover.number();
    discover.options.set(code::MESSAGE_TYPE, [kind]);
    discover
}

fn recorded(text: &str) -> Result<Message> {
    Message::parse(&hex(text)).context("a recorded packet")
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|c| u8::try_from(c.to_digit(16)?).ok())
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
