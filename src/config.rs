//! `diskless.toml` to [`Config`].
//!
//! Every default is stated once, in `impl Default for Config`; every key once,
//! in `KEYS`, with the field it sets and what is allowed there. A later source
//! goes before an earlier one: defaults, file, environment
//! (`DISKLESS_DHCP_MODE` is `dhcp.mode`), flags.
//!
//! All that is wrong is told at once, each with its place: a line of the file,
//! a variable, a flag. What needs a look at the machine (interfaces, ports) is
//! `check`'s.

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the DHCP server does.
pub(crate) use dhcp::Mode as DhcpMode;

mod files;
mod keys;
mod networks;
mod value;

pub(crate) use files::{Chap, DEFAULT_PORTAL, DEFAULT_TARGET, ServedFiles, UnitFormat};
pub(crate) use networks::{MachineOptions, SubnetConfig};

use keys::{KEYS, Key};
use value::Given;

/// Where the file is looked for when nobody names one.
pub(crate) const DEFAULT_FILE: &str = "/etc/diskless/diskless.toml";

/// What variables of the environment that are settings begin with.
pub(crate) const ENVIRONMENT_PREFIX: &str = "DISKLESS_";

/// Everything a site can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The one directory that everything is kept in.
    pub(crate) data: PathBuf,
    /// `[network]`
    pub(crate) network: Network,
    /// `[dhcp]`
    pub(crate) dhcp: Dhcp,
    /// `[tftp]`
    pub(crate) tftp: Tftp,
    /// `[http]`
    pub(crate) http: Http,
    /// `[iscsi]`
    pub(crate) iscsi: Iscsi,
    /// `[loaders]`
    pub(crate) loaders: LoaderFiles,
    /// `[boot]`
    pub(crate) boot: Boot,
    /// `[images]`
    pub(crate) images: Images,
    /// `[overlays]`
    pub(crate) overlays: Overlays,
    /// `[machines]`
    pub(crate) machines: Machines,
    /// `[api]`
    pub(crate) api: Api,
    /// `[log]`
    pub(crate) log: Log,
}

/// Where the machines are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    /// The interface their LAN is at; `None`: the only one that can be meant.
    pub(crate) interface: Option<String>,
    /// Several of them, by name or by an address they have.
    pub(crate) interfaces: Vec<String>,
    /// Which of the interface's addresses is served; `None`: its only one.
    pub(crate) address: Option<Ipv4Addr>,
}

/// Addresses, and what machines are told of their network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dhcp {
    /// Listen only, answer beside another server, or be the server.
    pub(crate) mode: DhcpMode,
    /// Addresses to lend in `full` mode: first and last of each range.
    pub(crate) pool: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// How long an address is lent.
    pub(crate) lease: Duration,
    /// Option 3, the way out of the LAN.
    pub(crate) router: Option<Ipv4Addr>,
    /// Option 6.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub(crate) domain: Option<String>,
    /// Option 42.
    pub(crate) ntp: Vec<Ipv4Addr>,
    /// Option 26.
    pub(crate) mtu: Option<u16>,
    /// Further options.
    pub(crate) options: Vec<dhcp::option::Setting>,
    /// What differs in one network, and networks behind relays.
    pub(crate) subnets: Vec<SubnetConfig>,
    /// Further options of one machine.
    pub(crate) machines: Vec<MachineOptions>,
    /// Start in `full` mode although another DHCP server answers on the LAN.
    pub(crate) allow_other_servers: bool,
}

/// Loaders over TFTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tftp {
    /// Whether there is a TFTP server at all.
    pub(crate) enabled: bool,
    /// Firmware knows no port but 69.
    pub(crate) port: u16,
    /// Largest block granted, in bytes.
    pub(crate) block_bytes: u16,
}

/// Loaders, scripts and files over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Http {
    /// TCP port.
    pub(crate) port: u16,
    /// Whether golden images are served.
    pub(crate) images: bool,
    /// TCP port of HTTPS; `None`: there is none.
    pub(crate) tls_port: Option<u16>,
    /// A certificate, PEM; `None`: one of our own authority.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub(crate) tls_key: Option<PathBuf>,
    /// Who is sent to HTTPS.
    pub(crate) tls_for: Vec<TlsFor>,
}

/// Who can be sent to HTTPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsFor {
    /// UEFI HTTP Boot.
    Firmware,
    /// iPXE.
    Ipxe,
}

/// Disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Iscsi {
    /// TCP port.
    pub(crate) port: u16,
    /// What target names begin with; an IQN without a `:` at its end.
    pub(crate) target_prefix: String,
}

/// Loader files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoaderFiles {
    /// The user's own, searched before the distribution's.
    pub(crate) directory: Option<PathBuf>,
}

/// The boot script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// How long a machine waits before it tries again.
    pub(crate) retry: Duration,
}

/// Golden images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Images {
    /// How often each version is held against its CRCs; `None`: never.
    pub(crate) scrub_interval: Option<Duration>,
    /// How much of it is read in a second, at most.
    pub(crate) scrub_rate: u64,
}

/// Machines' private writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlays {
    /// Restore points by the calendar, of kept overlays whose machines run.
    pub(crate) points: bool,
    /// What each overlay made from now on may hold; `None`: what there is.
    pub(crate) quota: Option<u64>,
    /// What stays free of the file system with the data.
    pub(crate) reserve: u64,
}

/// Machines nobody has named yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machines {
    /// How many of them are enrolled at most.
    pub(crate) pending_limit: usize,
}

/// Where the command line and other programs reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Api {
    /// A Unix socket; `None`: none.
    pub(crate) socket: Option<PathBuf>,
    /// A loopback address with port; `None`: none.
    pub(crate) listen: Option<SocketAddr>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// A level, or levels by target as in `info,tftp=debug`.
    pub(crate) level: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data: PathBuf::from("/var/lib/diskless"),
            network: Network {
                interface: None,
                interfaces: Vec::new(),
                address: None,
            },
            dhcp: Dhcp {
                mode: DhcpMode::Observe,
                pool: Vec::new(),
                lease: Duration::from_secs(12 * 60 * 60),
                router: None,
                dns: Vec::new(),
                domain: None,
                ntp: Vec::new(),
                mtu: None,
                options: Vec::new(),
                subnets: Vec::new(),
                machines: Vec::new(),
                allow_other_servers: false,
            },
            tftp: Tftp {
                enabled: true,
                port: 69,
                block_bytes: 1468,
            },
            http: Http {
                port: 80,
                images: false,
                tls_port: None,
                tls_certificate: None,
                tls_key: None,
                tls_for: Vec::new(),
            },
            iscsi: Iscsi {
                port: 3260,
                target_prefix: "iqn.2026-11.net.diskless".to_owned(),
            },
            loaders: LoaderFiles { directory: None },
            boot: Boot {
                retry: Duration::from_secs(10),
            },
            images: Images {
                scrub_interval: Some(Duration::from_secs(30 * 24 * 60 * 60)),
                scrub_rate: 20 * 1024 * 1024,
            },
            overlays: Overlays {
                points: true,
                quota: None,
                reserve: 1024 * 1024 * 1024,
            },
            machines: Machines { pending_limit: 64 },
            api: Api {
                socket: Some(PathBuf::from("/run/diskless/api.sock")),
                listen: None,
            },
            log: Log {
                level: "info".to_owned(),
            },
        }
    }
}

impl Config {
    /// Reads the file (`None`: the default one, which may be missing) and
    /// lays this process's environment and the flags above it.
    pub(crate) fn load(file: Option<&Path>, flags: &Overrides) -> Result<Loaded, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ConfigError {
                    problems: vec![format!("reading {}: {error}", path.display())],
                });
            }
        };
        let source = text.as_deref().map(|text| (path, text));
        Config::from_sources(source, std::env::vars_os(), flags)
    }

    /// The same from what is given: the file's path and text, the
    /// environment, the flags.
    pub(crate) fn from_sources(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &Overrides,
    ) -> Result<Loaded, ConfigError> {
        let mut reader = Reader::default();
        if let Some((path, text)) = file {
            reader.read_file(path, text);
        }
        for (name, value) in environment {
            reader.read_variable(&name, &value);
        }
        for (flag, key, value) in &flags.settings {
            reader.set_by_name(key, &Given::Text(value), flag);
        }
        reader.check_together();
        if reader.problems.is_empty() {
            let file = file.map(|(path, _)| path.to_owned());
            Ok(Loaded {
                config: reader.config,
                file,
                notes: reader.notes,
            })
        } else {
            Err(ConfigError {
                problems: reader.problems,
            })
        }
    }
}

/// A configuration and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// What counts.
    pub(crate) config: Config,
    /// The file read; `None`: there is none, and defaults count.
    pub(crate) file: Option<PathBuf>,
    /// What is no error and may still be a mistake.
    pub(crate) notes: Vec<String>,
}

/// Settings from the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// Flag as typed, key, value.
    settings: Vec<(String, String, String)>,
}

impl Overrides {
    /// Sets `key` (as in `dhcp.mode`) because of `flag` (as in `--dhcp-mode`,
    /// named in errors). Lists are separated by commas.
    pub(crate) fn set(&mut self, flag: &str, key: &str, value: impl Into<String>) {
        self.settings
            .push((flag.to_owned(), key.to_owned(), value.into()));
    }
}

/// All that is wrong with the configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// Each problem: its place, what is wrong, what is allowed.
    #[cfg(test)]
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// A configuration in the making.
#[derive(Default)]
struct Reader {
    config: Config,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Reader {
    fn read_file(&mut self, path: &Path, text: &str) {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        match toml::de::DeTable::parse(text) {
            Ok(table) => self.read_table(&File { name: &name, text }, "", table.get_ref()),
            Err(error) => {
                let place = match error.span() {
                    Some(span) => format!("{name} line {}", line_of(text, span.start)),
                    None => name,
                };
                self.problems.push(format!("{place}: {}", error.message()));
            }
        }
    }

    fn read_table(&mut self, file: &File<'_>, section: &str, table: &toml::de::DeTable<'_>) {
        // In the order of the file, not of the alphabet.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let leaf = key.get_ref().as_ref();
            let name = if section.is_empty() {
                leaf.to_owned()
            } else {
                format!("{section}.{leaf}")
            };
            let place = format!(
                "{} line {}",
                file.name,
                line_of(file.text, key.span().start)
            );
            if networks::LISTS.contains(&name.as_str()) {
                self.read_networks(file, &name, value.get_ref(), &place);
                continue;
            }
            match value.get_ref() {
                toml::de::DeValue::Table(inner) if is_section(&name) => {
                    self.read_table(file, &name, inner)
                }
                _ if is_section(&name) => {
                    self.problems.push(format!(
                        "{place}: `{name}` is a section; write [{name}] and its keys below it"
                    ));
                }
                toml::de::DeValue::Table(_) if key_named(&name).is_none() => {
                    let hint = did_you_mean(nearest_section(&name).map(|near| format!("[{near}]")));
                    self.problems
                        .push(format!("{place}: unknown section [{name}]{hint}"));
                }
                given => self.set_by_name(&name, &Given::of_toml(given), &place),
            }
        }
    }

    fn read_variable(&mut self, name: &OsString, value: &OsString) {
        let Some(name) = name
            .to_str()
            .filter(|name| name.starts_with(ENVIRONMENT_PREFIX))
        else {
            return;
        };
        match KEYS.iter().find(|key| key.variable() == name) {
            Some(key) => match value.to_str() {
                Some(text) => self.set(key, &Given::Text(text), name),
                None => self.problems.push(format!("{name}: is not UTF-8")),
            },
            // Other programs of ours have variables too (the lab, the command
            // line): only what looks like a slip is worth a word.
            None => {
                let near = KEYS
                    .iter()
                    .map(Key::variable)
                    .find(|known| strsim::levenshtein(known, name) <= 2);
                if let Some(near) = near {
                    self.notes.push(format!(
                        "{name} is no setting and does nothing; did you mean {near}?"
                    ));
                }
            }
        }
    }

    fn set_by_name(&mut self, name: &str, given: &Given<'_>, place: &str) {
        match key_named(name) {
            Some(key) => self.set(key, given, place),
            None => {
                let hint = did_you_mean(nearest_key(name).map(|near| format!("`{near}`")));
                self.problems
                    .push(format!("{place}: unknown key `{name}`{hint}"));
            }
        }
    }

    fn set(&mut self, key: &Key, given: &Given<'_>, place: &str) {
        if let Err(why) = (key.set)(&mut self.config, given) {
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            let name = key.name;
            self.problems.push(format!(
                "{place}: `{name}` cannot be {given}{why}; allowed is {}",
                key.allowed
            ));
        }
    }

    /// What no key can say alone.
    fn check_together(&mut self) {
        let network = &self.config.network;
        if !network.interfaces.is_empty()
            && (network.interface.is_some() || network.address.is_some())
        {
            self.notes.push(
                "`network.interfaces` says it all: `network.interface` and `network.address` do nothing".to_owned(),
            );
        }
        let Config {
            http, iscsi, api, ..
        } = &self.config;
        if http.port == iscsi.port {
            let port = http.port;
            self.problems.push(format!(
                "`http.port` and `iscsi.port` are both {port}; choose another for one of them"
            ));
        }
        if http
            .tls_port
            .is_some_and(|port| port == http.port || port == iscsi.port)
        {
            self.problems.push(
                "`http.tls_port` is another door's port already; choose another for it".to_owned(),
            );
        }
        if http.tls_certificate.is_some() != http.tls_key.is_some() {
            self.problems.push(
                "`http.tls_certificate` and `http.tls_key` belong together; set both, or neither for a certificate of diskless's own authority"
                    .to_owned(),
            );
        }
        if http.tls_port.is_none() && !http.tls_for.is_empty() {
            self.problems.push(
                "`http.tls_for` sends machines to HTTPS, which is off; set `http.tls_port` too"
                    .to_owned(),
            );
        }
        if api.socket.is_none() && api.listen.is_none() {
            self.problems.push(
                "`api.socket` and `api.listen` are both off, so that no command could reach the server; set one of them"
                    .to_owned(),
            );
        }
    }
}

/// The file being read, for places.
struct File<'a> {
    name: &'a str,
    text: &'a str,
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
        + 1
}

fn key_named(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter()
        .filter_map(|key| key.name.split_once('.'))
        .map(|(section, _)| section)
}

fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

fn nearest_section(name: &str) -> Option<&'static str> {
    let distance = |section: &str| strsim::damerau_levenshtein(section, name);
    sections()
        .min_by_key(|section| distance(section))
        .filter(|section| distance(section) <= 2)
}

/// The key that may be meant: one letter or two off, or right but in the
/// wrong section.
fn nearest_key(name: &str) -> Option<&'static str> {
    let leaf = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |key: &str| {
        let elsewhere = strsim::damerau_levenshtein(&leaf(key), &leaf(name)) + 1;
        strsim::damerau_levenshtein(key, name).min(elsewhere)
    };
    let near = KEYS
        .iter()
        .map(|key| key.name)
        .min_by_key(|key| distance(key))?;
    (distance(near) <= 2.max(leaf(name).len() / 3)).then_some(near)
}

fn did_you_mean(near: Option<String>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean {near}?"))
}

#[cfg(test)]
mod tests;
