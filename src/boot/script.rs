//! The iPXE text a machine fetches.
//!
//! iPXE has no quoting: arguments are split at white space before `${...}` is
//! expanded. Whatever came from a packet or a person goes through [`shown`]
//! first. Everything here works with iPXE of 2019 (Debian 12) as well as 2.0:
//! only `set`, `echo`, `sanboot`, `sleep`, `chain`, `goto` and `isset`.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcp::Mac;

/// The ports of our doors, the same on every address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Scripts, loaders, files.
    pub(crate) http: u16,
    /// Disks.
    pub(crate) iscsi: u16,
    /// Who is sent to an encrypted door.
    pub(crate) https: Https,
}

/// The ports of encrypted doors, for those that are sent there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Https {
    /// UEFI HTTP Boot, for its loader.
    pub(crate) firmware: Option<u16>,
    /// iPXE, for its script and what the script names.
    pub(crate) ipxe: Option<u16>,
}

/// Where a booting machine reaches us: by the one of our addresses that it
/// came by, for from its network the others may not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doors {
    /// Our address, of TFTP too.
    pub(crate) address: Ipv4Addr,
    /// Base of our URLs, without a slash at the end.
    pub(crate) http: String,
    /// The same for UEFI HTTP Boot.
    pub(crate) firmware: String,
    /// iSCSI portal port.
    pub(crate) iscsi_port: u16,
}

impl Doors {
    /// The doors behind one of our addresses.
    pub(crate) fn new(address: Ipv4Addr, ports: Ports) -> Doors {
        let base = |https: Option<u16>| match (https, ports.http) {
            (Some(443), _) => format!("https://{address}"),
            (Some(port), _) => format!("https://{address}:{port}"),
            (None, 80) => format!("http://{address}"),
            (None, port) => format!("http://{address}:{port}"),
        };
        Doors {
            address,
            http: base(ports.https.ipxe),
            firmware: base(ports.https.firmware),
            iscsi_port: ports.iscsi,
        }
    }

    /// Where the machine with this MAC fetches its boot script.
    pub(crate) fn script_url(&self, mac: Mac) -> String {
        let [a, b, c, d, e, f] = mac.0;
        format!(
            "{}/boot.ipxe?mac={a:02x}-{b:02x}-{c:02x}-{d:02x}-{e:02x}-{f:02x}",
            self.http
        )
    }
}

/// What a machine needs to log in to its disk.
#[derive(Clone)]
pub(crate) struct SanBoot<'a> {
    /// Machine, for the screen.
    pub(crate) machine: &'a str,
    /// What it boots, for the screen: `debian@3, keep`.
    pub(crate) disk: &'a str,
    /// Target IQN; the disk is its LUN 0.
    pub(crate) target: &'a str,
    /// Initiator IQN; the operating system finds it in the iBFT.
    pub(crate) initiator: &'a str,
    /// CHAP name of this boot generation.
    pub(crate) chap_name: &'a str,
    /// CHAP secret of this boot generation.
    pub(crate) secret: &'a str,
}

/// Why a machine cannot boot yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Nobody has said what this machine is.
    Unknown,
    /// It is known; nothing is assigned to it.
    Unassigned,
    /// There is something wrong on the server; the words are for its screen.
    Trouble,
}

/// The script of a machine that boots its disk. When that fails it says so,
/// waits `pause` (the caller adds jitter, so that a room of PCs does not ask
/// in one voice) and fetches its script again.
pub(crate) fn san_boot(doors: &Doors, boot: &SanBoot<'_>, again: &str, pause: Duration) -> String {
    let mut text = String::from("#!ipxe\n");
    let SanBoot {
        machine,
        disk,
        target,
        initiator,
        chap_name,
        secret,
    } = boot;
    let (address, port) = (doors.address, doors.iscsi_port);
    let _ = write!(
        text,
        "echo diskless: {} boots {}\n\
         set initiator-iqn {initiator}\n\
         set username {chap_name}\n\
         set password {secret}\n\
         sanboot iscsi:{address}::{port}:0:{target} || goto failed\n\
         :failed\n\
         echo diskless: the disk did not boot. \
         On the server: diskless machine timeline {}\n",
        shown(machine),
        shown(disk),
        shown(machine),
    );
    retry(&mut text, again, pause);
    text
}

/// The script of a machine that must wait for somebody.
pub(crate) fn waiting(
    reason: Waiting,
    machine: &str,
    mac: &str,
    words: &str,
    again: &str,
    pause: Duration,
) -> String {
    let mut text = String::from("#!ipxe\necho\n");
    let _ = match reason {
        Waiting::Unknown => write!(
            text,
            "echo diskless: this PC is not known here yet. MAC address {mac}\n\
             echo On the server: diskless machine set {} --name NAME --image IMAGE --mode reset\n",
            shown(machine),
        ),
        Waiting::Unassigned => write!(
            text,
            "echo diskless: nothing is assigned to {}. MAC address {mac}\n\
             echo On the server: diskless machine set {} --image IMAGE --mode reset\n",
            shown(machine),
            shown(machine),
        ),
        Waiting::Trouble => write!(
            text,
            "echo diskless: {} cannot boot now. MAC address {mac}\necho {}\n",
            shown(machine),
            shown(words),
        ),
    };
    retry(&mut text, again, pause);
    text
}

/// The script of a machine whose request did not say who it is: it comes back
/// with its MAC, UUID and serial number.
pub(crate) fn who_are_you(doors: &Doors) -> String {
    format!("#!ipxe\nchain --replace {}\n", asking_url(doors))
}

/// Where an iPXE fetches its script when we cannot tell which machine it is:
/// it fills in all it knows of itself.
pub(crate) fn asking_url(doors: &Doors) -> String {
    format!(
        "{}/boot.ipxe?mac=${{netX/mac:hexhyp}}&uuid=${{uuid}}&serial=${{serial:uristring}}",
        doors.http
    )
}

/// How often `autoexec.ipxe` asks for an address, 10 to 15 s each time, before
/// it gives the machine back to its firmware. A switch that lets nothing
/// through for 30 s after a link comes up is waited for.
const AUTOEXEC_TRIES: usize = 6;

/// The script an iPXE runs first, which has no interface open yet: gets an
/// address and goes on to `script`. Only DHCP is waited for: without a router
/// advertisement on the LAN, IPv6 would take 14 s more.
pub(crate) fn autoexec(script: &str) -> String {
    let tries = ["ifconf --configurator dhcp"; AUTOEXEC_TRIES].join(" || ");
    format!(
        "#!ipxe\n\
         {tries} || exit 1\n\
         goto fetch\n\
         :again\n\
         sleep 5\n\
         :fetch\n\
         chain --replace {script} || goto again\n"
    )
}

fn retry(text: &mut String, again: &str, pause: Duration) {
    let seconds = pause.as_secs().max(1);
    // `chain` fails while the server is away: the loop then goes on here.
    let _ = write!(
        text,
        "echo Trying again in {seconds} s\n\
         :again\n\
         sleep {seconds}\n\
         chain --replace {again} || goto again\n"
    );
}

/// Text that iPXE shows as it is: printable ASCII, no `$` (expansion), no
/// token that iPXE reads as a separator or a comment, no option at its
/// beginning (`echo` takes them there only).
fn shown(text: &str) -> String {
    text.split_whitespace()
        .map(|token| {
            let token: String = token
                .chars()
                .filter(|c| c.is_ascii_graphic() && *c != '$')
                .collect();
            match token.as_str() {
                "&&" | "||" | ";" => String::new(),
                _ => token.trim_start_matches('#').to_owned(),
            }
        })
        .filter(|token| !token.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .trim_start_matches(['-', ' '])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors() -> Doors {
        let ports = Ports {
            http: 80,
            iscsi: 3260,
            https: Https::default(),
        };
        Doors::new(Ipv4Addr::new(10, 0, 0, 1), ports)
    }

    #[test]
    fn the_script_of_a_machine_names_its_disk_and_its_secret() {
        let boot = SanBoot {
            machine: "pc1",
            disk: "debian@3, keep",
            target: "iqn.2026-11.net.diskless:pc1",
            initiator: "iqn.2026-11.net.diskless:pc1.initiator",
            chap_name: "pc1.7",
            secret: "00112233445566778899aabbccddeeff",
        };
        let again = "http://10.0.0.1/boot.ipxe?mac=52-54-00-12-34-56";
        assert_eq!(
            san_boot(&doors(), &boot, again, Duration::from_secs(7)),
            "#!ipxe\n\
             echo diskless: pc1 boots debian@3, keep\n\
             set initiator-iqn iqn.2026-11.net.diskless:pc1.initiator\n\
             set username pc1.7\n\
             set password 00112233445566778899aabbccddeeff\n\
             sanboot iscsi:10.0.0.1::3260:0:iqn.2026-11.net.diskless:pc1 || goto failed\n\
             :failed\n\
             echo diskless: the disk did not boot. On the server: diskless machine timeline pc1\n\
             echo Trying again in 7 s\n\
             :again\n\
             sleep 7\n\
             chain --replace http://10.0.0.1/boot.ipxe?mac=52-54-00-12-34-56 || goto again\n"
        );
    }

    #[test]
    fn a_url_names_the_port_where_it_is_not_80() {
        let ports = Ports {
            http: 8080,
            iscsi: 3260,
            https: Https::default(),
        };
        let doors = Doors::new(Ipv4Addr::new(10, 0, 1, 1), ports);
        assert_eq!(
            doors.script_url(Mac([0x52, 0x54, 0, 0, 0, 0x0a])),
            "http://10.0.1.1:8080/boot.ipxe?mac=52-54-00-00-00-0a"
        );
    }

    #[test]
    fn a_pending_machine_is_told_its_mac_and_the_command() {
        let text = waiting(
            Waiting::Unknown,
            "new-525400123456",
            "52:54:00:12:34:56",
            "",
            "http://10.0.0.1/boot.ipxe",
            Duration::from_secs(10),
        );
        assert!(text.contains("not known here yet. MAC address 52:54:00:12:34:56"));
        assert!(text.contains("diskless machine set new-525400123456 "));
        assert!(text.contains("chain --replace http://10.0.0.1/boot.ipxe || goto again"));
    }

    fn told(reason: Waiting, machine: &str, words: &str) -> String {
        let (mac, again) = ("52:54:00:12:34:56", "http://10.0.0.1/boot.ipxe");
        waiting(
            reason,
            machine,
            mac,
            words,
            again,
            Duration::from_millis(10),
        )
    }

    #[test]
    fn a_machine_without_an_image_is_told_the_command_that_gives_it_one() {
        let text = told(Waiting::Unassigned, "pc1", "");
        assert!(text.contains("nothing is assigned to pc1. MAC address 52:54:00:12:34:56"));
        assert!(text.contains("diskless machine set pc1 --image IMAGE"));
    }

    #[test]
    fn trouble_is_told_in_a_line_of_its_own_and_tried_again() {
        let text = told(
            Waiting::Trouble,
            "pc1",
            "there is no image \"debian\"\nreboot",
        );
        assert!(text.contains("\necho there is no image \"debian\" reboot\n"));
        assert!(text.ends_with("chain --replace http://10.0.0.1/boot.ipxe || goto again\n"));
    }

    #[test]
    fn no_pause_is_shorter_than_a_second() {
        assert!(told(Waiting::Unknown, "pc1", "").contains("\nsleep 1\n"));
    }

    #[test]
    fn every_script_begins_as_ipxe_wants_it() {
        let mut scripts = vec![who_are_you(&doors()), autoexec(&asking_url(&doors()))];
        for reason in [Waiting::Unknown, Waiting::Unassigned, Waiting::Trouble] {
            scripts.push(told(reason, "pc1", "words"));
        }
        for script in scripts {
            assert!(
                script.starts_with("#!ipxe\n") && script.is_ascii(),
                "{script}"
            );
        }
    }

    #[test]
    fn who_does_not_say_who_it_is_comes_back_with_all_it_knows() {
        let text = who_are_you(&doors());
        assert!(text.contains(
            "http://10.0.0.1/boot.ipxe?mac=${netX/mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}"
        ));
    }

    #[test]
    fn words_cannot_become_commands() {
        assert_eq!(shown("a && reboot"), "a reboot");
        assert_eq!(shown("x\nchain http://evil"), "x chain http://evil");
        assert_eq!(shown("${password} #c ; \u{1b}[2J"), "{password} c [2J");
        assert_eq!(shown("-- -n x --image y"), "n x --image y");
        assert_eq!(shown("Zoë's ## disk\t\0"), "Zo's disk");
    }

    #[test]
    fn who_is_sent_to_an_encrypted_door_is_sent_there_and_nobody_else() {
        let ports = Ports {
            http: 80,
            iscsi: 3260,
            https: Https {
                firmware: Some(443),
                ipxe: None,
            },
        };
        let address = Ipv4Addr::new(10, 0, 0, 1);
        let doors = Doors::new(address, ports);
        assert_eq!(doors.firmware, "https://10.0.0.1");
        assert_eq!(doors.http, "http://10.0.0.1");
        let https = Https {
            firmware: None,
            ipxe: Some(8443),
        };
        let doors = Doors::new(address, Ports { https, ..ports });
        assert_eq!(doors.firmware, "http://10.0.0.1");
        assert_eq!(doors.http, "https://10.0.0.1:8443");
    }
}
