//! `[dhcp.options]`, `[[dhcp.subnet]]` and `[[dhcp.machine]]`: lists in the
//! file, which no variable and no flag can set.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcp::option::{self, Setting};
use toml::de::{DeTable, DeValue};

use super::keys::{Key, MACHINE_KEYS, SUBNET_KEYS};
use super::value::Given;
use super::{Dhcp, File, Reader, line_of};

/// The lists, by name.
pub(super) const LISTS: [&str; 3] = ["dhcp.options", "dhcp.subnet", "dhcp.machine"];

/// One network; what it leaves out is as in `[dhcp]`, but for pool and router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SubnetConfig {
    /// Address and mask; always there once it is read.
    pub(crate) network: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Whether relays bring its requests; else an interface of ours is there.
    pub(crate) relayed: bool,
    /// Addresses to lend.
    pub(crate) pool: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Option 51.
    pub(crate) lease: Option<Duration>,
    /// Option 3.
    pub(crate) router: Option<Ipv4Addr>,
    /// Option 6.
    pub(crate) dns: Option<Vec<Ipv4Addr>>,
    /// Option 15.
    pub(crate) domain: Option<String>,
    /// Option 42.
    pub(crate) ntp: Option<Vec<Ipv4Addr>>,
    /// Option 26.
    pub(crate) mtu: Option<u16>,
    /// Further options, above those of `[dhcp.options]`.
    pub(crate) options: Vec<Setting>,
}

/// Options of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MachineOptions {
    /// Its name, or its MAC address as [`dhcp::Mac`] shows it.
    pub(crate) machine: String,
    /// Its options, above those of its network.
    pub(crate) options: Vec<Setting>,
}

impl Dhcp {
    /// The networks to serve, of the interfaces' addresses with their masks,
    /// and behind relays.
    pub(crate) fn networks(&self, interfaces: &[(Ipv4Addr, Ipv4Addr)]) -> Vec<dhcp::Subnet> {
        let own = interfaces.iter().map(|&(address, mask)| {
            let is_meant = |subnet: &&SubnetConfig| subnet.network == Some((address & mask, mask));
            match self.subnets.iter().find(is_meant) {
                Some(subnet) => self.network(subnet),
                None => self.flat(address, mask, interfaces.len() == 1),
            }
        });
        let relayed = self.subnets.iter().filter(|subnet| subnet.relayed);
        own.chain(relayed.map(|subnet| self.network(subnet)))
            .collect()
    }

    /// The same settings, with pool and router of one interface's network only.
    pub(crate) fn of_network(&self, address: Ipv4Addr, mask: Ipv4Addr, is_only: bool) -> Dhcp {
        let is_meant = |subnet: &&SubnetConfig| subnet.network == Some((address & mask, mask));
        let network = match self.subnets.iter().find(is_meant) {
            Some(subnet) => self.network(subnet),
            None => self.flat(address, mask, is_only),
        };
        Dhcp {
            pool: network.ranges,
            router: network.routers.first().copied(),
            ..self.clone()
        }
    }

    /// A network without a table of its own: of `[dhcp]` it has the ranges and
    /// the router that lie inside it. The only network has them all.
    fn flat(&self, address: Ipv4Addr, mask: Ipv4Addr, is_only: bool) -> dhcp::Subnet {
        let is_inside = |other: Ipv4Addr| is_only || other & mask == address & mask;
        self.network(&SubnetConfig {
            network: Some((address & mask, mask)),
            pool: self
                .pool
                .iter()
                .copied()
                .filter(|(first, _)| is_inside(*first))
                .collect(),
            router: self.router.filter(|router| is_inside(*router)),
            ..SubnetConfig::default()
        })
    }

    fn network(&self, given: &SubnetConfig) -> dhcp::Subnet {
        let (network, netmask) = given
            .network
            .unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
        dhcp::Subnet {
            network,
            netmask,
            ranges: given.pool.clone(),
            routers: given.router.into_iter().collect(),
            dns: given.dns.clone().unwrap_or_else(|| self.dns.clone()),
            domain: given.domain.clone().or_else(|| self.domain.clone()),
            ntp: given.ntp.clone().unwrap_or_else(|| self.ntp.clone()),
            mtu: given.mtu.or(self.mtu),
            lease_time: given.lease,
            options: option::overlay(&self.options, &given.options),
        }
    }
}

impl Reader {
    /// Reads one of [`LISTS`].
    pub(super) fn read_networks(
        &mut self,
        file: &File<'_>,
        name: &str,
        value: &DeValue<'_>,
        place: &str,
    ) {
        if name == "dhcp.options" {
            match value {
                DeValue::Table(table) => {
                    self.config.dhcp.options = self.read_options(file, table);
                }
                _ => self.problems.push(format!(
                    "{place}: `{name}` is a section; write [{name}] and the options below it"
                )),
            }
            return;
        }
        let DeValue::Array(items) = value else {
            self.problems.push(format!(
                "{place}: `{name}` is a list; write [[{name}]], once for each"
            ));
            return;
        };
        for item in items.iter() {
            let place = file.place(item.span().start);
            let DeValue::Table(table) = item.get_ref() else {
                self.problems
                    .push(format!("{place}: write [[{name}]], once for each"));
                continue;
            };
            if name == "dhcp.subnet" {
                let mut subnet = SubnetConfig::default();
                subnet.options = self.read_item(file, name, table, &mut subnet, SUBNET_KEYS);
                let twin = |other: &SubnetConfig| other.network == subnet.network;
                if subnet.network.is_none() {
                    self.problems
                        .push(format!("{place}: a [[{name}]] needs its `network`"));
                } else if self.config.dhcp.subnets.iter().any(twin) {
                    self.problems
                        .push(format!("{place}: this network has a [[{name}]] already"));
                }
                self.config.dhcp.subnets.push(subnet);
            } else {
                let mut machine = MachineOptions::default();
                machine.options = self.read_item(file, name, table, &mut machine, MACHINE_KEYS);
                if machine.machine.is_empty() {
                    self.problems.push(format!(
                        "{place}: a [[{name}]] needs its `machine`, a name or a MAC address"
                    ));
                }
                self.config.dhcp.machines.push(machine);
            }
        }
    }

    /// Puts the keys of one item in their fields; its options are returned.
    fn read_item<T>(
        &mut self,
        file: &File<'_>,
        list: &str,
        table: &DeTable<'_>,
        item: &mut T,
        keys: &[Key<T>],
    ) -> Vec<Setting> {
        let mut options = Vec::new();
        for (name, value) in table.iter() {
            let place = file.place(name.span().start);
            let name = name.get_ref().as_ref();
            match (keys.iter().find(|key| key.name == name), value.get_ref()) {
                (None, DeValue::Table(table)) if name == "options" => {
                    options = self.read_options(file, table);
                }
                (None, _) => {
                    let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
                    self.problems.push(format!(
                        "{place}: unknown key `{name}` of [[{list}]]; there are {} and options",
                        known.join(", ")
                    ));
                }
                (Some(key), value) => {
                    let given = Given::of_toml(value);
                    if let Err(why) = (key.set)(item, &given) {
                        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                        self.problems.push(format!(
                            "{place}: `{name}` cannot be {given}{why}; allowed is {}",
                            key.allowed
                        ));
                    }
                }
            }
        }
        options
    }

    fn read_options(&mut self, file: &File<'_>, table: &DeTable<'_>) -> Vec<Setting> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut given = Vec::new();
        let mut places = Vec::new();
        for (name, value) in entries {
            let place = file.place(name.span().start);
            match Given::of_toml(value.get_ref()).option_value() {
                Some(value) => {
                    given.push((name.get_ref().to_string(), value));
                    places.push(place);
                }
                None => self.problems.push(format!(
                    "{place}: no option takes such a value; allowed is a text, a number, true or false, or a list"
                )),
            }
        }
        option::read(&given).unwrap_or_else(|wrong| {
            for (at, why) in wrong {
                let place = places.get(at).map_or("", String::as_str);
                self.problems.push(format!("{place}: {why}"));
            }
            Vec::new()
        })
    }
}

impl File<'_> {
    /// The line of an offset, for people.
    fn place(&self, offset: usize) -> String {
        format!("{} line {}", self.name, line_of(self.text, offset))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Overrides};
    use super::*;

    fn read(text: &str) -> Result<Dhcp, Vec<String>> {
        let path = Path::new("diskless.toml");
        Config::from_sources(Some((path, text)), [], &Overrides::default())
            .map(|loaded| loaded.config.dhcp)
            .map_err(|error| error.problems().to_vec())
    }

    const SITE: &str = r#"
[dhcp]
pool = ["10.0.0.100-10.0.0.200", "10.1.0.100-10.1.0.200"]
router = "10.0.0.254"
dns = ["10.0.0.53"]
mtu = 1500

[dhcp.options]
domain-search = ["lab.example.org"]
210 = "pxe/"

[[dhcp.subnet]]
network = "10.20.0.0/24"
relayed = true
pool = ["10.20.0.10-10.20.0.250"]
router = "10.20.0.1"
lease = "1h"
options = { 210 = "upstairs/" }

[[dhcp.machine]]
machine = "52-54-00-12-34-56"
options.root-path = "nfs:10.0.0.9:/export"
"#;

    #[test]
    fn each_network_gets_its_own_and_inherits_the_rest() {
        let (mask, host) = (Ipv4Addr::new(255, 255, 255, 0), |second, last| {
            Ipv4Addr::new(10, second, 0, last)
        });
        let dhcp = read(SITE).unwrap();
        let networks = dhcp.networks(&[(host(0, 1), mask), (host(1, 1), mask)]);
        let ranges: Vec<_> = networks
            .iter()
            .map(|network| network.ranges.clone())
            .collect();
        assert_eq!(
            ranges,
            [
                vec![(host(0, 100), host(0, 200))],
                vec![(host(1, 100), host(1, 200))],
                vec![(host(20, 10), host(20, 250))],
            ]
        );
        let routers: Vec<_> = networks
            .iter()
            .map(|network| network.routers.clone())
            .collect();
        assert_eq!(routers, [vec![host(0, 254)], vec![], vec![host(20, 1)]]);
        assert!(networks.iter().all(|network| network.dns == [host(0, 53)]));
        assert!(networks.iter().all(|network| network.mtu == Some(1500)));
        assert_eq!(networks[2].lease_time, Some(Duration::from_secs(3600)));
        let prefix = |network: &dhcp::Subnet| {
            let found = network.options.iter().find(|option| option.code == 210);
            found.map(|option| option.data.clone())
        };
        assert_eq!(prefix(&networks[0]).as_deref(), Some(&b"pxe/"[..]));
        assert_eq!(prefix(&networks[2]).as_deref(), Some(&b"upstairs/"[..]));
        assert_eq!(networks[2].options.len(), 2, "the search list too");
        assert_eq!(dhcp.machines[0].machine, "52:54:00:12:34:56");
        assert_eq!(dhcp.machines[0].options[0].code, 17);
    }

    #[test]
    fn the_only_network_has_all_that_is_flat() {
        let dhcp = read("[dhcp]\npool = [\"10.9.0.1-10.9.0.2\"]\n").unwrap();
        let address = Ipv4Addr::new(10, 0, 0, 1);
        let networks = dhcp.networks(&[(address, Ipv4Addr::new(255, 255, 255, 0))]);
        assert_eq!(networks[0].ranges.len(), 1, "so that the check sees it");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, problem) in [
            (
                "[dhcp.options]\n3 = [\"10.0.0.1\"]",
                "diskless.toml line 2: option 3 (routers) cannot be set: it has a key of its own: router",
            ),
            (
                "[[dhcp.subnet]]\nrelayed = true",
                ": a [[dhcp.subnet]] needs its `network`",
            ),
            (
                "[[dhcp.subnet]]\nnetwork = \"10.0.0.1/24\"",
                "diskless.toml line 2: `network` cannot be \"10.0.0.1/24\" (the network is 10.0.0.0/24); allowed is a network, as in \"10.20.0.0/24\"",
            ),
            (
                "[dhcp.subnet]\nnetwork = \"10.0.0.0/24\"",
                "diskless.toml line 1: `dhcp.subnet` is a list; write [[dhcp.subnet]], once for each",
            ),
            (
                "[[dhcp.machine]]\nmachine = \"pc1\"\nname = 1",
                "diskless.toml line 3: unknown key `name` of [[dhcp.machine]]; there are machine and options",
            ),
        ] {
            let problems = read(text).unwrap_err();
            let is_told = problems.iter().any(|told| told.ends_with(problem));
            assert!(is_told, "{problems:?}");
        }
    }

    #[test]
    fn a_list_of_interfaces_stands_alone_and_that_is_said() {
        let both = "[network]\ninterface = \"eth1\"\ninterfaces = [\"eth1.20\"]";
        let path = Path::new("diskless.toml");
        let loaded = Config::from_sources(Some((path, both)), [], &Overrides::default()).unwrap();
        assert!(loaded.notes[0].contains("`network.interfaces` says it all"));
    }
}
