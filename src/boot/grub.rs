//! The configuration that a signed GRUB fetches: the machine's own kernel, or
//! a sentence on its screen.
//!
//! `grub.cfg` is a loop that reads a second file, [`boot`] or [`waiting`], which
//! is made anew each time: read within the loop, not chained to, so that a
//! machine may wait for days. By HTTP where this GRUB has it, else by TFTP
//! (Debian 12's 2.06 has none).
//!
//! Single quotes take every character as it is. Whatever came from a packet, a
//! person or a disk stands between them.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use dhcp::Mac;

use super::script::Waiting;

/// The directory of what is made for whoever asks.
pub(crate) const OWN: &str = "own";
/// How every file that is read in the loop begins.
const TOLD: &str = "set told=1\n";
/// The longest command line a kernel for x86 reads (`COMMAND_LINE_SIZE`, its
/// end counted).
const COMMAND_LINE_BYTES: usize = 2048;

/// How GRUB reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// `(http,ADDRESS)`; port 80 only.
    Http,
    /// `(tftp,ADDRESS)`.
    Tftp,
}

impl Door {
    /// Both, better first.
    pub(crate) const ALL: [Door; 2] = [Door::Http, Door::Tftp];

    /// Its name in GRUB's device, and of the file that uses it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Door::Http => "http",
            Door::Tftp => "tftp",
        }
    }
}

/// What a machine needs to boot its own kernel.
#[derive(Clone)]
pub(crate) struct LinuxBoot<'a> {
    /// Machine, for the screen.
    pub(crate) machine: &'a str,
    /// What it boots, for the screen: `debian@3, keep: Debian GNU/Linux 12`.
    pub(crate) disk: &'a str,
    /// Path of the kernel inside the disk.
    pub(crate) kernel: &'a str,
    /// Paths of its initrds there.
    pub(crate) initrds: &'a [String],
    /// The entry's own command line.
    pub(crate) arguments: &'a str,
    /// The network card it booted from.
    pub(crate) mac: Mac,
    /// Our portal.
    pub(crate) portal: (Ipv4Addr, u16),
    /// Target IQN; the disk is its LUN 0.
    pub(crate) target: &'a str,
    /// Initiator IQN.
    pub(crate) initiator: &'a str,
    /// CHAP name of this boot generation.
    pub(crate) chap_name: &'a str,
    /// CHAP secret of this boot generation.
    pub(crate) secret: &'a str,
}

/// `grub.cfg`: asks what to do until something boots. `doors` are the ways to
/// `server`, better first.
pub(crate) fn configuration(server: Ipv4Addr, doors: &[Door], pause: Duration) -> String {
    let seconds = pause.as_secs().max(1);
    let mut text = String::from("while true; do\n  set told=\n");
    for door in doors {
        let word = door.word();
        // `source` says nothing of a file that is not there: the file itself does.
        let _ = writeln!(
            text,
            "  if [ -z \"$told\" ]; then source ({word},{server})/{OWN}/{word}.cfg; fi"
        );
    }
    let _ = write!(text, "  sleep {seconds}\ndone\n");
    text
}

/// What tells a machine that nobody knows whose address it has.
pub(crate) fn stranger(address: IpAddr) -> String {
    format!(
        "{TOLD}echo 'diskless: no DHCP packet has shown whose address {address} is.'\n\
         echo 'Switch this PC off and on again.'\n"
    )
}

/// What boots a machine's own kernel; an error is a sentence for its screen.
pub(crate) fn boot(door: Door, server: Ipv4Addr, boot: &LinuxBoot<'_>) -> Result<String, String> {
    let arguments = arguments(boot);
    let length: usize = arguments.iter().map(|argument| argument.len() + 3).sum();
    if length >= COMMAND_LINE_BYTES {
        return Err(format!(
            "the command line of the kernel in its disk is too long: with what is added it has \
             {length} characters, a kernel reads {COMMAND_LINE_BYTES}"
        ));
    }
    let base = format!("({},{server})/{OWN}", door.word());
    let mut linux = format!("linux {base}/kernel/{}", served(boot.kernel));
    for argument in &arguments {
        let _ = write!(linux, " {}", quoted(argument));
    }
    let mut initrd = String::new();
    for (number, path) in boot.initrds.iter().enumerate() {
        let _ = write!(initrd, " {base}/initrd{number}/{}", served(path));
    }
    let load = match initrd.as_str() {
        "" => "boot".to_owned(),
        files => format!("if initrd{files}; then boot; fi"),
    };
    Ok(format!(
        "{TOLD}echo {}\nif {linux}; then {load}; fi\necho {}\n",
        quoted(&format!("diskless: {} boots {}", boot.machine, boot.disk)),
        quoted(&format!(
            "diskless: the kernel did not start. On the server: diskless machine timeline {}",
            boot.machine
        )),
    ))
}

/// What tells a machine why it must wait.
pub(crate) fn waiting(reason: Waiting, machine: &str, mac: &str, words: &str) -> String {
    let lines = match reason {
        Waiting::Unknown => [
            format!("diskless: this PC is not known here yet. MAC address {mac}"),
            format!(
                "On the server: diskless machine set {machine} --name NAME --image IMAGE --mode reset"
            ),
        ],
        Waiting::Unassigned => [
            format!("diskless: nothing is assigned to {machine}. MAC address {mac}"),
            format!("On the server: diskless machine set {machine} --image IMAGE --mode reset"),
        ],
        Waiting::Trouble => [
            format!("diskless: {machine} cannot boot now. MAC address {mac}"),
            words.to_owned(),
        ],
    };
    let [first, second] = lines.map(|line| quoted(&line));
    format!("{TOLD}echo {first}\necho {second}\necho 'Trying again.'\n")
}

/// The command line: the entry's own, without what speaks of a boot that is
/// not this one, and what leads to the disk in the words of Debian's open-iscsi
/// for initramfs-tools.
fn arguments(boot: &LinuxBoot<'_>) -> Vec<String> {
    let (address, port) = boot.portal;
    let LinuxBoot {
        target,
        initiator,
        chap_name,
        secret,
        ..
    } = boot;
    let mut all: Vec<String> = words(boot.arguments)
        .into_iter()
        .filter(|word| !is_of_another_boot(word))
        .collect();
    if !all.iter().any(|word| word.starts_with("ip=")) {
        all.push("ip=dhcp".to_owned());
    }
    if !all.iter().any(|word| word.starts_with("BOOTIF=")) {
        let [a, b, c, d, e, f] = boot.mac.0;
        all.push(format!(
            "BOOTIF=01-{a:02x}-{b:02x}-{c:02x}-{d:02x}-{e:02x}-{f:02x}"
        ));
    }
    all.extend([
        // Never left out: `iscsistart -i` would be given nothing.
        format!("iscsi_initiator={initiator}"),
        format!("iscsi_target_name={target}"),
        format!("iscsi_target_ip={address}"),
        format!("iscsi_target_port={port}"),
        format!("iscsi_username={chap_name}"),
        format!("iscsi_password={secret}"),
    ]);
    all
}

/// Whether an argument names another way to a disk: the iBFT, of which there is
/// none here, or a target that was written down.
fn is_of_another_boot(word: &str) -> bool {
    let key = word.split('=').next().unwrap_or(word);
    matches!(
        key,
        "BOOT_IMAGE" | "initrd" | "netroot" | "rd.neednet" | "iscsi_auto"
    ) || key.starts_with("iscsi_")
        || key.starts_with("rd.iscsi.")
        || key == "ip" && word.ends_with("ibft")
}

/// A command line's arguments as the kernel divides it: at white space that no
/// double quotes enclose. The quotes are left out, GRUB sets its own.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            c if c.is_whitespace() && !is_quoted => words.push(String::new()),
            c if c.is_control() => {}
            c => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The last part of a path as a name that needs no quotes. It is for people to
/// read: what is served is found by the part before it.
fn served(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    last.chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+') => c,
            _ => '_',
        })
        .collect()
}

/// Text between single quotes, in which GRUB takes every character as it is.
fn quoted(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|c| match c {
            c if c.is_ascii_graphic() => c,
            _ => ' ',
        })
        .collect();
    format!("'{}'", shown.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn debian<'a>(arguments: &'a str, initrds: &'a [String]) -> LinuxBoot<'a> {
        LinuxBoot {
            machine: "pc1",
            disk: "debian@3, keep: Debian GNU/Linux 12",
            kernel: "/boot/vmlinuz-6.1.0-18-amd64",
            initrds,
            arguments,
            mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
            portal: (SERVER, 3260),
            target: "iqn.2026-11.net.diskless:pc1",
            initiator: "iqn.2026-11.net.diskless:pc1.initiator",
            chap_name: "pc1.7",
            secret: "00112233445566778899aabbccddeeff",
        }
    }

    fn line_of(arguments: &str) -> String {
        let text = boot(Door::Tftp, SERVER, &debian(arguments, &[])).unwrap();
        text.lines().nth(2).unwrap().to_owned()
    }

    #[test]
    fn debians_initramfs_is_told_of_its_disk() {
        let initrds = ["/boot/initrd.img-6.1.0-18-amd64".to_owned()];
        let text = boot(
            Door::Http,
            SERVER,
            &debian("root=UUID=1-2 ro quiet", &initrds),
        )
        .unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "echo 'diskless: pc1 boots debian@3, keep: Debian GNU/Linux 12'"
        );
        for part in [
            "if linux (http,10.0.0.1)/own/kernel/vmlinuz-6.1.0-18-amd64 'root=UUID=1-2' 'ro' 'quiet' 'ip=dhcp'",
            " 'BOOTIF=01-52-54-00-00-00-01'",
            " 'iscsi_initiator=iqn.2026-11.net.diskless:pc1.initiator'",
            " 'iscsi_target_name=iqn.2026-11.net.diskless:pc1'",
            " 'iscsi_target_ip=10.0.0.1' 'iscsi_target_port=3260'",
            " 'iscsi_username=pc1.7' 'iscsi_password=00112233445566778899aabbccddeeff'",
            "; then if initrd (http,10.0.0.1)/own/initrd0/initrd.img-6.1.0-18-amd64; then boot; fi; fi",
        ] {
            assert!(lines[2].contains(part), "{part} is not in {}", lines[2]);
        }
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn what_speaks_of_another_boot_is_left_out_and_the_rest_stays() {
        let line = line_of(
            "BOOT_IMAGE=/vmlinuz root=/dev/mapper/a ip=:::::eth0:dhcp iscsi_auto iscsi_target_ip=1.2.3.4 rd.iscsi.firmware=1 splash",
        );
        assert!(
            line.contains("'root=/dev/mapper/a' 'ip=:::::eth0:dhcp' 'splash'"),
            "{line}"
        );
        for gone in ["BOOT_IMAGE", "iscsi_auto", "1.2.3.4", "rd.iscsi", "ip=dhcp"] {
            assert!(!line.contains(gone), "{gone} is in {line}");
        }
        let line = line_of("ro ip=ibft");
        assert!(line.contains("'ro' 'ip=dhcp'"), "{line}");
    }

    #[test]
    fn an_argument_with_blanks_stays_one() {
        let line = line_of("root=/dev/sda1 dyndbg=\"file a.c +p\" x");
        assert!(line.contains(" 'dyndbg=file a.c +p' 'x'"), "{line}");
    }

    #[test]
    fn what_a_disk_says_cannot_become_a_command() {
        let line = line_of("a'; reboot; echo 'b $x");
        assert!(
            line.contains(r" 'a'\'';' 'reboot;' 'echo' ''\''b' '$x' "),
            "{line}"
        );
        let mut boot_of = debian("ro", &[]);
        boot_of.kernel = "/boot/vm linuz;reboot";
        boot_of.disk = "x'\nreboot\n";
        let text = boot(Door::Tftp, SERVER, &boot_of).unwrap();
        assert!(text.contains("/own/kernel/vm_linuz_reboot "), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    #[test]
    fn a_command_line_no_kernel_reads_whole_is_refused() {
        let long = "a".repeat(COMMAND_LINE_BYTES);
        let words = boot(Door::Tftp, SERVER, &debian(&long, &[])).unwrap_err();
        assert!(words.contains("too long"), "{words}");
    }

    #[test]
    fn grub_asks_by_http_and_where_it_has_none_by_tftp_until_something_boots() {
        assert_eq!(
            configuration(SERVER, &Door::ALL, Duration::from_secs(7)),
            "while true; do\n  set told=\n  \
             if [ -z \"$told\" ]; then source (http,10.0.0.1)/own/http.cfg; fi\n  \
             if [ -z \"$told\" ]; then source (tftp,10.0.0.1)/own/tftp.cfg; fi\n  \
             sleep 7\ndone\n"
        );
    }

    #[test]
    fn a_machine_that_waits_is_told_why_on_its_screen() {
        let mac = "52:54:00:00:00:01";
        let text = waiting(Waiting::Trouble, "pc1", mac, "partition 2 holds XFS");
        assert!(text.contains("\necho 'partition 2 holds XFS'\n"), "{text}");
        let text = waiting(Waiting::Unknown, "new-1", mac, "");
        assert!(
            text.contains("diskless machine set new-1 --name NAME"),
            "{text}"
        );
        let text = waiting(Waiting::Unassigned, "pc1", mac, "");
        assert!(text.contains("nothing is assigned to pc1"), "{text}");
    }
}
