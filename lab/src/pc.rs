//! A PC: QEMU with one network card and no disk, not even an empty one.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::state::Process;
use crate::{Console, Deadline, Lan};

/// UEFI's code and its empty variable store (package `ovmf`).
const OVMF: (&str, &str) = (
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.fd",
);
/// The same with Microsoft's keys enrolled and Secure Boot switched on.
const OVMF_SECURE: (&str, &str) = (
    "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
);

/// As the tiny guest's GRUB has them.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0,115200 quiet loglevel=1 mitigations=off nokaslr audit=0 panic=10";

/// Between two keys typed to iPXE.
const KEY_PAUSE: Duration = Duration::from_millis(100);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// What runs when the power button is pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, and the network card's boot ROM, which in QEMU is an iPXE.
    Bios,
    /// OVMF with its own (EDK2) PXE: the card's ROM is taken out.
    Uefi,
    /// OVMF told to leave PXE out, so that UEFI HTTP Boot is what it tries.
    UefiHttp,
    /// OVMF's PXE with Microsoft's keys, enforcing.
    SecureBoot,
    /// The same by UEFI HTTP Boot.
    SecureBootHttp,
}

impl Firmware {
    /// Files of its code and its variables; none of a BIOS.
    fn ovmf(self) -> Option<(&'static str, &'static str)> {
        match self {
            Firmware::Bios => None,
            Firmware::Uefi | Firmware::UefiHttp => Some(OVMF),
            Firmware::SecureBoot | Firmware::SecureBootHttp => Some(OVMF_SECURE),
        }
    }

    fn is_secure(self) -> bool {
        matches!(self, Firmware::SecureBoot | Firmware::SecureBootHttp)
    }

    fn is_http(self) -> bool {
        matches!(self, Firmware::UefiHttp | Firmware::SecureBootHttp)
    }
}

/// The network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// The one the guests have a driver for.
    Virtio,
    /// For firmware only: the cloud kernel does not know it.
    E1000,
}

/// A PC without any disk. Describes one; [`Pc::power_on`] runs it.
#[derive(Clone, Debug)]
pub struct Pc {
    /// Firmware.
    pub firmware: Firmware,
    /// Network card.
    pub nic: Nic,
    /// Address of the network card.
    pub mac: String,
    /// System UUID, which firmware sends as DHCP option 97.
    pub uuid: String,
    /// Memory.
    pub memory_mebibytes: u32,
    /// A kernel that QEMU loads itself, before any network card is asked.
    pub kernel: Option<Kernel>,
}

/// A kernel and its initramfs.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Directory with `vmlinuz` and `initrd`.
    pub directory: PathBuf,
    /// The end of its command line.
    pub arguments: String,
}

impl Pc {
    /// The PC number `number` (below 256), its MAC and UUID made from it.
    pub fn new(number: u8, firmware: Firmware) -> Pc {
        Pc {
            firmware,
            nic: Nic::Virtio,
            mac: format!("52:54:00:d1:5c:{number:02x}"),
            uuid: format!("d15c0000-0000-4000-8000-0000000000{number:02x}"),
            memory_mebibytes: 512,
            kernel: None,
        }
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When QEMU does not start; with its last words.
    pub fn power_on<'a>(&self, lan: &'a Lan<'a>) -> Result<Power<'a>> {
        let name = format!("pc{}", COUNT.fetch_add(1, Ordering::Relaxed));
        lan.add_tap(&name)?;
        let variables = lan.lab().work().join(format!("{name}.variables"));
        if let Some((_, empty)) = self.firmware.ovmf() {
            fs::copy(empty, &variables)
                .with_context(|| format!("copying {empty} (package ovmf)"))?;
        }
        let socket = lan.lab().sockets().join(format!("{name}.console"));
        let mut arguments: Vec<String> = [
            "qemu-system-x86_64 -nodefaults -no-user-config -machine q35,graphics=off -display none",
            // KVM, where it exists in a virtual machine, may not run firmware.
            "-accel tcg,thread=multi -cpu Nehalem",
            "-device virtio-rng-pci -boot n",
        ]
        .join(" ")
        .split(' ')
        .map(str::to_owned)
        .collect();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-name", name.clone());
        add("-m", self.memory_mebibytes.to_string());
        add("-uuid", self.uuid.clone());
        let logfile = lan.lab().work().join(format!("{name}.console.log"));
        add(
            "-chardev",
            format!(
                "socket,id=console,path={},server=on,wait=off,logfile={}",
                socket.display(),
                logfile.display()
            ),
        );
        add("-serial", "chardev:console".to_owned());
        add(
            "-netdev",
            format!("tap,id=lan,ifname={name},script=no,downscript=no"),
        );
        let model = match self.nic {
            Nic::Virtio => "virtio-net-pci",
            Nic::E1000 => "e1000",
        };
        let rom = match (self.firmware, &self.kernel) {
            (Firmware::Bios, None) => "",
            _ => ",romfile=",
        };
        add(
            "-device",
            format!("{model},netdev=lan,mac={}{rom}", self.mac),
        );
        if let Some(Kernel {
            directory,
            arguments,
        }) = &self.kernel
        {
            let file = |name: &str| directory.join(name).to_string_lossy().into_owned();
            add("-kernel", file("vmlinuz"));
            add("-initrd", file("initrd"));
            add("-append", format!("{KERNEL_ARGUMENTS} {arguments}"));
        }
        if self.firmware.is_http() {
            for support in ["IPv4PXESupport", "IPv6PXESupport"] {
                add(
                    "-fw_cfg",
                    format!("name=opt/org.tianocore/{support},string=no"),
                );
            }
        }
        if self.firmware.is_secure() {
            // Variables that only the firmware itself may write, in its own mode.
            add("-machine", "smm=on".to_owned());
            for property in [
                "driver=cfi.pflash01,property=secure,value=on",
                "ICH9-LPC.disable_s3=1",
            ] {
                add("-global", property.to_owned());
            }
        }
        if let Some((code, _)) = self.firmware.ovmf() {
            add(
                "-drive",
                format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"),
            );
            add(
                "-drive",
                format!("if=pflash,format=raw,unit=1,file={}", variables.display()),
            );
        }
        let mut power = Power {
            lan,
            name,
            arguments,
            socket,
            process: None,
            console: None,
        };
        power.start()?;
        Ok(power)
    }
}

/// A PC that is switched on; dropped, it is switched off.
#[derive(Debug)]
pub struct Power<'a> {
    lan: &'a Lan<'a>,
    name: String,
    arguments: Vec<String>,
    socket: PathBuf,
    process: Option<Process>,
    console: Option<Console>,
}

impl Power<'_> {
    fn start(&mut self) -> Result<()> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut process = self
            .lan
            .lab()
            .spawn(self.lan.namespace(), &self.name, &arguments)?;
        let console = Console::open(&self.socket, Deadline::seconds(20));
        let ended = process.ended()?;
        if ended.is_some() || console.is_err() {
            anyhow::bail!("QEMU did not start:\n{}", process.last_words());
        }
        self.console = Some(console?);
        self.process = Some(process);
        Ok(())
    }

    /// Its serial console.
    ///
    /// # Panics
    /// Never while it is on, which it is from [`Pc::power_on`] to its drop.
    pub fn console(&mut self) -> &mut Console {
        self.console
            .as_mut()
            .expect("a PC that is on has a console")
    }

    /// The socket of its serial console, for another program once this one has ended.
    pub fn console_socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Pulls the plug and presses the power button: nothing is saved or said.
    ///
    /// # Errors
    /// When QEMU does not start again.
    pub fn power_cycle(&mut self) -> Result<()> {
        self.console = None;
        self.process = None;
        let _ = fs::remove_file(&self.socket);
        self.start()
    }

    /// Stops iPXE at its prompt (BIOS: the card's ROM) with Ctrl-B, and types there.
    ///
    /// # Errors
    /// When iPXE does not come up within the deadline.
    pub fn type_to_ipxe(&mut self, commands: &[&str], deadline: Deadline) -> Result<()> {
        self.console()
            .wait_for("Press Ctrl-B for the iPXE command line", deadline)?;
        self.console().send("\u{2}")?;
        for command in commands {
            self.console().wait_for("iPXE>", deadline)?;
            // iPXE polls an unbuffered UART: keys that come faster are lost.
            for key in command.chars().chain(['\r']) {
                self.console().send(key.encode_utf8(&mut [0; 4]))?;
                std::thread::sleep(KEY_PAUSE);
            }
        }
        Ok(())
    }

    /// Leaves it running when this is dropped.
    pub fn release(mut self) {
        if let Some(process) = self.process.take() {
            process.release();
        }
        // The cable stays as well.
        self.console = None;
        self.name.clear();
    }
}

impl Drop for Power<'_> {
    fn drop(&mut self) {
        self.console = None;
        self.process = None;
        if !self.name.is_empty() {
            self.lan.remove_tap(&self.name);
        }
    }
}
