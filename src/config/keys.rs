//! Every key of `diskless.toml`: its name, the field it sets, what is allowed.

use super::value::{self, Given, Refusal};
use super::{Config, ENVIRONMENT_PREFIX, MachineOptions, SubnetConfig};

/// One key of `T`.
pub(super) struct Key<T = Config> {
    /// With its section, as in `dhcp.mode`.
    pub(super) name: &'static str,
    /// What a value may be, for people.
    pub(super) allowed: &'static str,
    /// Puts a value in its field.
    pub(super) set: fn(&mut T, &Given<'_>) -> Result<(), Refusal>,
}

impl Key {
    /// The variable of the environment that sets it.
    pub(super) fn variable(&self) -> String {
        ENVIRONMENT_PREFIX.to_owned() + &self.name.to_ascii_uppercase().replace('.', "_")
    }
}

macro_rules! keys {
    ($(#[$about:meta])* $list:ident of $kept:ty: $($name:literal => $($field:ident).+ = $read:path, $allowed:literal;)*) => {
        $(#[$about])*
        pub(super) const $list: &[Key<$kept>] = &[$(Key {
            name: $name,
            allowed: $allowed,
            set: |config, given| {
                config.$($field).+ = $read(given)?;
                Ok(())
            },
        }),*];
    };
}

keys! {
    /// All keys but those of lists, in the order the example explains them.
    KEYS of Config:
    "data" => data = value::path, "the path of a directory";
    "network.interface" => network.interface = value::interface, "the name of a network interface, as in \"eth1\"";
    "network.interfaces" => network.interfaces = value::interfaces, "a list of interfaces or of their addresses, as in [\"eth1\", \"eth1.20\"]";
    "network.address" => network.address = value::address_or_none, "an IPv4 address of the interface, as in \"192.168.1.10\"";
    "dhcp.mode" => dhcp.mode = value::mode, "\"observe\", \"proxy\" or \"full\"";
    "dhcp.pool" => dhcp.pool = value::ranges, "a list of ranges, as in [\"192.168.1.100-192.168.1.200\"]";
    "dhcp.lease" => dhcp.lease = value::lease, "a time from \"2m\" to \"365d\", as in \"90m\" or \"12h\"";
    "dhcp.router" => dhcp.router = value::address_or_none, "an IPv4 address, as in \"192.168.1.1\"";
    "dhcp.dns" => dhcp.dns = value::addresses, "a list of IPv4 addresses, as in [\"192.168.1.1\", \"9.9.9.9\"]";
    "dhcp.domain" => dhcp.domain = value::domain, "a domain name, as in \"lab.example.org\"";
    "dhcp.ntp" => dhcp.ntp = value::addresses, "a list of IPv4 addresses, as in [\"192.168.1.1\"]";
    "dhcp.mtu" => dhcp.mtu = value::mtu, "a number from 576 to 9000";
    "dhcp.allow_other_servers" => dhcp.allow_other_servers = value::boolean, "true or false";
    "tftp.enabled" => tftp.enabled = value::boolean, "true or false";
    "tftp.port" => tftp.port = value::port, "a port from 1 to 65535";
    "tftp.block_bytes" => tftp.block_bytes = value::block_bytes, "a number from 512 to 65464; more than 1468 needs jumbo frames";
    "http.port" => http.port = value::port, "a port from 1 to 65535";
    "http.images" => http.images = value::boolean, "true or false";
    "http.tls_port" => http.tls_port = value::port_or_none, "a port from 1 to 65535, as in 443, or \"\" for none";
    "http.tls_certificate" => http.tls_certificate = value::path_or_none, "the path of a PEM file, or \"\" for one of diskless's own authority";
    "http.tls_key" => http.tls_key = value::path_or_none, "the path of a PEM file, or \"\" for none";
    "http.tls_for" => http.tls_for = value::tls_for, "a list of \"firmware\" and \"ipxe\"";
    "iscsi.port" => iscsi.port = value::port, "a port from 1 to 65535";
    "iscsi.target_prefix" => iscsi.target_prefix = value::iqn, "an iSCSI name: iqn., year-month, a domain you own backwards, as in \"iqn.2026-11.org.example\"";
    "loaders.directory" => loaders.directory = value::path_or_none, "the path of a directory, or \"\" for none";
    "boot.retry" => boot.retry = value::retry, "a time from \"1s\" to \"10m\"";
    "images.scrub_interval" => images.scrub_interval = value::scrub_interval, "a time from \"1h\" to \"365d\", or \"off\"";
    "images.scrub_rate" => images.scrub_rate = value::scrub_rate, "a number of bytes a second from \"64K\", as in \"20M\"";
    "overlays.points" => overlays.points = value::calendar, "\"calendar\" or \"off\"";
    "overlays.quota" => overlays.quota = value::quota, "a number of bytes from \"1M\", as in \"20G\", or \"none\"";
    "overlays.reserve" => overlays.reserve = value::reserve, "a number of bytes, as in \"10G\", or 0";
    "machines.pending_limit" => machines.pending_limit = value::pending_limit, "a number from 0 to 10000";
    "api.socket" => api.socket = value::socket, "the path of a Unix socket of at most 107 bytes, or \"\" for none";
    "api.listen" => api.listen = value::loopback, "a loopback address with a port, as in \"127.0.0.1:8067\", or \"\" for none";
    "log.level" => log.level = value::level, "\"error\", \"warn\", \"info\", \"debug\" or \"trace\", also by part as in \"info,tftp=debug\"";
}

keys! {
    /// The keys of each `[[dhcp.subnet]]`.
    SUBNET_KEYS of SubnetConfig:
    "network" => network = value::network, "a network, as in \"10.20.0.0/24\"";
    "relayed" => relayed = value::boolean, "true or false";
    "pool" => pool = value::ranges, "a list of ranges, as in [\"10.20.0.100-10.20.0.200\"]";
    "lease" => lease = value::some_lease, "a time from \"2m\" to \"365d\", as in \"90m\" or \"12h\"";
    "router" => router = value::address_or_none, "an IPv4 address, as in \"10.20.0.1\"";
    "dns" => dns = value::some_addresses, "a list of IPv4 addresses, as in [\"10.20.0.1\", \"9.9.9.9\"]";
    "domain" => domain = value::domain, "a domain name, as in \"lab.example.org\"";
    "ntp" => ntp = value::some_addresses, "a list of IPv4 addresses, as in [\"10.20.0.1\"]";
    "mtu" => mtu = value::mtu, "a number from 576 to 9000";
}

keys! {
    /// The keys of each `[[dhcp.machine]]`.
    MACHINE_KEYS of MachineOptions:
    "machine" => machine = value::machine, "a machine's name or its MAC address, as in \"pc07\" or \"52:54:00:12:34:56\"";
}
