//! What is wrong before anything is started.
//!
//! Every check is a plain function of what was read (the text of files in
//! `/proc`, the output of a command, a list of interfaces); [`run`] reads it.
//! Nothing is changed, but for a file in the data directory that is written
//! and removed again.
//!
//! `diskless check` shows all findings; `diskless serve` does not start with
//! one that is an error.

use std::fmt;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use crate::config::{Config, DhcpMode};
use crate::services::chains::Chain;

mod data;
mod descriptors;
mod firewall;
mod loaders;
mod network;
mod pool;
mod ports;
mod privileges;
mod secure;

/// How long another program may take to answer a question.
const COMMAND_TIME: Duration = Duration::from_secs(5);

/// Most that is read of its answer, in bytes: a ruleset of a container host.
const COMMAND_BYTES: u64 = 4 * 1024 * 1024;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// `serve` would fail, or do harm.
    Error,
    /// Machines are likely not to boot.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// What is wrong, with names and numbers.
    pub(crate) what: String,
    /// What to do about it; empty when there is nothing to do.
    pub(crate) what_to_do: String,
}

impl Finding {
    fn error(what: impl Into<String>, what_to_do: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Error,
            what: what.into(),
            what_to_do: what_to_do.into(),
        }
    }

    fn warning(what: impl Into<String>, what_to_do: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Warning,
            what: what.into(),
            what_to_do: what_to_do.into(),
        }
    }

    fn note(what: impl Into<String>, what_to_do: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Note,
            what: what.into(),
            what_to_do: what_to_do.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{word}: {}", self.what)?;
        if !self.what_to_do.is_empty() {
            write!(
                f,
                "\n  to do: {}",
                self.what_to_do.replace('\n', "\n         ")
            )?;
        }
        Ok(())
    }
}

/// All that was found, the worst first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    /// The findings, the worst first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }

    /// Whether `serve` must not start.
    pub(crate) fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// Whether all is well.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(mut findings: Vec<Finding>) -> Findings {
        findings.sort_by_key(|finding| finding.severity);
        Findings(findings)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Finding::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Looks at this machine. `needed_loaders` are names of loader files, of which
/// `is_installed` says whether they are there; `chains` the signed chains, with
/// a sentence for one that is not whole.
pub(crate) fn run(
    config: &Config,
    needed_loaders: &[&str],
    is_installed: impl Fn(&str) -> bool,
    chains: &[Result<Chain, String>],
) -> Findings {
    let mut findings = Vec::new();
    match dhcp::interfaces() {
        Err(error) => findings.push(Finding::error(
            format!("the network interfaces cannot be listed: {error}"),
            "",
        )),
        Ok(interfaces) => match network::choose_all(&config.network, &interfaces) {
            Err(finding) => findings.push(finding),
            Ok(chosen) => {
                let mut all = Vec::new();
                for one in &chosen {
                    findings.extend(network::judge(one, &interfaces));
                    let addresses =
                        output("ip", &["-4", "-o", "addr", "show", "dev", &one.interface]);
                    let dhcp = config
                        .dhcp
                        .of_network(one.address, one.netmask, chosen.len() == 1);
                    findings.extend(pool::judge(&dhcp, one, &addresses.unwrap_or_default()));
                    let doors = doors(config, one.address);
                    findings.extend(firewall::look(&doors, &one.interface));
                    all.extend(doors);
                }
                findings.extend(pool::strays(&config.dhcp, &chosen));
                findings.extend(privileges::look(&all));
                findings.extend(descriptors::look());
                findings.extend(ports::look(&all));
            }
        },
    }
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    findings.extend(loaders::judge(needed_loaders, is_installed, &os_release));
    findings.extend(secure::judge(chains, config.dhcp.mode, &os_release));
    findings.extend(data::look(&config.data));
    if config.dhcp.mode == DhcpMode::Observe {
        findings.push(Finding::note(
            "dhcp.mode is \"observe\": diskless listens and reports, and boots no machine by itself",
            "set dhcp.mode = \"proxy\" beside another DHCP server, or \"full\" where there is none",
        ));
    }
    Findings::from(findings)
}

/// The interfaces and addresses that `config` means on this machine.
pub(crate) fn interfaces(config: &Config) -> anyhow::Result<Vec<Served>> {
    let interfaces = dhcp::interfaces()?;
    network::choose_all(&config.network, &interfaces)
        .map_err(|finding| anyhow::anyhow!("{}; {}", finding.what, finding.what_to_do))
}

/// Where machines are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// The interface of their LAN.
    pub(crate) interface: String,
    /// Our address there.
    pub(crate) address: Ipv4Addr,
    /// The mask of its network.
    pub(crate) netmask: Ipv4Addr,
}

/// A port that machines come in through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Door {
    /// What for.
    name: &'static str,
    transport: Transport,
    address: Ipv4Addr,
    port: u16,
    /// The key that moves it; empty where firmware leaves no choice.
    key: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    fn word(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "port {}/{} ({})",
            self.port,
            self.transport.word(),
            self.name
        )
    }
}

/// The ports `serve` opens. Observing opens none for DHCP.
fn doors(config: &Config, address: Ipv4Addr) -> Vec<Door> {
    let door = |name, transport, port, key| Door {
        name,
        transport,
        address,
        port,
        key,
    };
    let mut doors = Vec::new();
    if config.dhcp.mode != DhcpMode::Observe {
        doors.push(door("DHCP", Transport::Udp, 67, ""));
        doors.push(door("PXE", Transport::Udp, 4011, ""));
    }
    if config.tftp.enabled {
        doors.push(door("TFTP", Transport::Udp, config.tftp.port, "tftp.port"));
    }
    doors.push(door("HTTP", Transport::Tcp, config.http.port, "http.port"));
    if let Some(port) = config.http.tls_port {
        doors.push(door("HTTPS", Transport::Tcp, port, "http.tls_port"));
    }
    doors.push(door(
        "iSCSI",
        Transport::Tcp,
        config.iscsi.port,
        "iscsi.port",
    ));
    doors
}

/// What another program says; `None` when it is not there, fails or takes too
/// long.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let pipe = child.stdout.take()?;
    let (sender, receiver) = std::sync::mpsc::channel();
    // Reads until the pipe ends, which it does when the child is killed.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let result = pipe.take(COMMAND_BYTES).read_to_end(&mut text);
        let _ = sender.send(result.map(|_| text));
    });
    let text = receiver.recv_timeout(COMMAND_TIME);
    if text.is_err() {
        let _ = child.kill();
    }
    let _ = reader.join();
    let status = child.wait().ok()?;
    let text = text.ok()?.ok()?;
    status
        .success()
        .then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The families of distributions whose packages we know by name.
const FAMILIES: [&str; 9] = [
    "debian", "ubuntu", "fedora", "rhel", "centos", "suse", "opensuse", "sles", "arch",
];

/// The family of this system, by `ID` and then `ID_LIKE` of the text of
/// `/etc/os-release` (os-release(5)).
fn family(os_release: &str) -> Option<&'static str> {
    let value = |key: &str| {
        let line = os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\''])
    };
    std::iter::once(value("ID"))
        .chain(value("ID_LIKE").split_whitespace())
        .find_map(|name| FAMILIES.into_iter().find(|family| *family == name))
}

/// The part of `path` that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|part| part.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observing_opens_no_port_for_dhcp() {
        let config = Config::default();
        let ports: Vec<u16> = doors(&config, Ipv4Addr::LOCALHOST)
            .iter()
            .map(|door| door.port)
            .collect();
        assert_eq!(ports, [69, 80, 3260]);
    }

    #[test]
    fn the_doors_of_a_proxy_are_all_there() {
        let mut config = Config::default();
        config.dhcp.mode = DhcpMode::Proxy;
        let doors = doors(&config, Ipv4Addr::LOCALHOST);
        let names: Vec<String> = doors.iter().map(Door::to_string).collect();
        assert_eq!(
            names,
            [
                "port 67/udp (DHCP)",
                "port 4011/udp (PXE)",
                "port 69/udp (TFTP)",
                "port 80/tcp (HTTP)",
                "port 3260/tcp (iSCSI)",
            ]
        );
    }

    #[test]
    fn the_worst_finding_comes_first() {
        let findings = Findings::from(vec![
            Finding::note("c", ""),
            Finding::warning("b", "x"),
            Finding::error("a", "do this\nor that"),
        ]);
        assert!(findings.has_errors());
        let text = "error: a\n  to do: do this\n         or that\nwarning: b\n  to do: x\nnote: c";
        assert_eq!(findings.to_string(), text);
    }

    #[test]
    fn another_programs_words_are_read_and_a_missing_one_is_none() {
        assert_eq!(output("echo", &["yes"]).as_deref(), Some("yes\n"));
        assert_eq!(output("false", &[]), None);
        assert_eq!(output("no-such-program-anywhere", &[]), None);
    }

    /// Root or not, with or without a LAN: it must come to an end and speak
    /// of this machine.
    #[test]
    fn a_check_of_this_machine_comes_to_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            data: directory.path().to_owned(),
            ..Config::default()
        };
        let findings = run(&config, &["undionly.kpxe"], |_| false, &[]);
        assert!(
            findings
                .iter()
                .any(|finding| finding.what.contains("undionly.kpxe")),
            "{findings}"
        );
        assert!(
            findings
                .iter()
                .any(|finding| finding.what.contains("observe")),
            "{findings}"
        );
    }
}
