//! The decision: request + leases + policy + now -> reply and where it goes
//! (RFC 2131 section 4.3, RFC 951 for BOOTP).
//!
//! No socket, no clock. What happened is told to [`Policy::observe`] on the
//! way; what must survive is in the [`LeaseStore`](crate::LeaseStore) before
//! the reply is returned, or, in a batch, when [`Leases::commit`] is: no reply
//! is sent before.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, SystemTime};

use crate::client::boot_item;
use crate::lease::{Leases, Lent, Place, RelayPort};
use crate::reply::{self, Role};
use crate::wire::{BROADCAST_FLAG, Message, MessageType, Op, code, inner_options};
use crate::{Boot, Client, Mac, Mode, Observation, Policy, Settings, Subnet, proxy};

/// Where servers listen.
pub const SERVER_PORT: u16 = 67;

/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;

/// Where PXE boot servers listen (PXE 2.1 section 2.2.3).
pub const BOOT_SERVER_PORT: u16 = 4011;

/// What BOOTP clients are lent an address for: they never renew.
const BOOTP_LEASE_TIME: Duration = Duration::from_secs(24 * 3600);

/// Sub-option of 82: the port of the relay (RFC 3046 section 3.1).
const CIRCUIT_IDENTIFIER: u8 = 1;

/// Sub-option of 82: the network the client is in (RFC 3527).
const LINK_SELECTION: u8 = 5;

/// Sub-option of 82: what the client is to know us by (RFC 5107).
const SERVER_IDENTIFIER_OVERRIDE: u8 = 11;

/// More relays than any packet passes (RFC 1542 section 4.1.1).
const MAX_HOPS: u8 = 16;

/// One of our ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// [`SERVER_PORT`].
    Dhcp,
    /// [`BOOT_SERVER_PORT`].
    BootServer,
}

impl Port {
    /// The UDP port.
    pub fn number(self) -> u16 {
        match self {
            Port::Dhcp => SERVER_PORT,
            Port::BootServer => BOOT_SERVER_PORT,
        }
    }
}

/// A request, and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// What it says.
    pub message: &'a Message,
    /// The port it came to.
    pub port: Port,
    /// Whether it was sent to our address and not broadcast.
    pub is_unicast: bool,
    /// Where it came from.
    pub source: SocketAddrV4,
    /// Our address on the interface it came in by: the server identifier.
    pub server: Ipv4Addr,
    /// The mask of that interface.
    pub netmask: Ipv4Addr,
    /// Our addresses on all interfaces: no other server's.
    pub own: &'a [Ipv4Addr],
}

impl Arrival<'_> {
    /// An address in the relay's words: link selection (RFC 3527), server
    /// identifier override (RFC 5107).
    fn relays_word(&self, sub_option: u8) -> Option<Ipv4Addr> {
        let data = self.relays_bytes(sub_option)?;
        let address = Ipv4Addr::from(*data.first_chunk::<4>()?);
        (data.len() == 4 && !address.is_unspecified()).then_some(address)
    }

    fn relays_bytes(&self, sub_option: u8) -> Option<&[u8]> {
        if self.message.giaddr.is_unspecified() {
            return None;
        }
        let words = self.message.options.get(code::RELAY)?;
        let (_, data) = inner_options(words).find(|(code, _)| *code == sub_option)?;
        Some(data)
    }

    /// The port of its relay the client is at.
    fn relay_port(&self) -> Option<RelayPort> {
        Some(RelayPort {
            relay: self.message.giaddr,
            circuit: self.relays_bytes(CIRCUIT_IDENTIFIER)?.to_vec(),
        })
    }

    /// What we are called in option 54: our address, or the one the relay
    /// wants its clients to renew by.
    pub(crate) fn identifier(&self) -> Ipv4Addr {
        self.relays_word(SERVER_IDENTIFIER_OVERRIDE)
            .unwrap_or(self.server)
    }

    /// Whether a client that names this server means us.
    fn is_us(&self, server: Ipv4Addr) -> bool {
        server == self.server || server == self.identifier()
    }

    /// Whether an address is of the network the request came in by.
    pub(crate) fn is_on_link(&self, address: Ipv4Addr) -> bool {
        let mask = self.netmask.to_bits();
        address.to_bits() & mask == self.server.to_bits() & mask
    }
}

/// A reply, and how it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What it says.
    pub message: Message,
    /// The port it comes from: clients drop what comes from another.
    pub from: Port,
    /// Where it goes.
    pub to: Destination,
    /// The longest UDP payload the client takes, in bytes.
    pub limit_bytes: usize,
}

/// Where a reply goes (RFC 2131 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// An address that answers ARP.
    Address(SocketAddrV4),
    /// A client that does not have its address yet: in a frame to its MAC.
    Client {
        /// Its hardware address.
        mac: Mac,
        /// The address it is told, port 68.
        address: Ipv4Addr,
    },
    /// Everybody on the interface the request came in by, port 68.
    Broadcast,
}

/// Decides what a request is answered; `None` is silence.
///
/// In observe mode nothing is ever answered.
pub fn answer(
    arrival: &Arrival,
    settings: &Settings,
    leases: &mut Leases,
    policy: &dyn Policy,
    now: SystemTime,
) -> Option<Reply> {
    if arrival.message.hops > MAX_HOPS {
        return None;
    }
    let client = Client::describe(arrival.message)?;
    if settings.mode == Mode::Observe {
        watch(arrival.message, arrival.server, arrival.netmask, policy);
        return None;
    }
    // Other vendors' option 43 may hold a 71 of its own.
    let has_boot_item =
        || client.firmware.is_network_boot() && boot_item(arrival.message).is_some();
    if arrival.message.message_type() == Some(MessageType::Request)
        && (arrival.port == Port::BootServer || has_boot_item())
    {
        return proxy::boot_server(arrival, &client, policy);
    }
    if arrival.port == Port::BootServer {
        return None;
    }
    match settings.mode {
        Mode::Observe => None,
        Mode::Proxy => proxy::answer(arrival, &client, policy),
        Mode::Full => {
            let Some(subnet) = subnet_of(arrival, settings) else {
                tracing::debug!(mac = %client.mac, giaddr = %arrival.message.giaddr, "no subnet for this request");
                return None;
            };
            let promise = policy.promise(client.mac);
            let place = Place {
                subnet,
                server: arrival.server,
                policy,
                promise: &promise,
                now,
            };
            Exchange {
                arrival,
                client,
                settings,
                place,
                leases,
            }
            .answer()
        }
    }
}

/// Reads what passes by without ever answering: who asks, what they take,
/// and who else answers.
pub fn watch(message: &Message, server: Ipv4Addr, netmask: Ipv4Addr, policy: &dyn Policy) {
    let is_on_link = |address: Ipv4Addr| {
        (address.to_bits() ^ server.to_bits()) & netmask.to_bits() == 0 && !address.is_unspecified()
    };
    let server_id = message.options.address(code::SERVER_ID);
    if message.op == Op::Reply {
        // An OFFER without an address is a ProxyDHCP's, and harms nobody.
        let is_servers = matches!(
            message.message_type(),
            Some(MessageType::Offer | MessageType::Ack | MessageType::Nak)
        ) && (!message.yiaddr.is_unspecified()
            || message.message_type() == Some(MessageType::Nak));
        if let Some(other) = server_id.filter(|&other| is_servers && other != server) {
            policy.observe(&Observation::ForeignServer { server: other });
        }
        return;
    }
    let Some(client) = Client::describe(message) else {
        return;
    };
    match message.message_type() {
        Some(MessageType::Discover) => policy.observe(&Observation::Asked(client)),
        Some(MessageType::Request) => {
            if let Some(other) = server_id.filter(|&other| other != server) {
                policy.observe(&Observation::ForeignServer { server: other });
            }
            let taken = message
                .options
                .address(code::REQUESTED_ADDRESS)
                .unwrap_or(message.ciaddr);
            if is_on_link(taken) {
                policy.observe(&Observation::Bound {
                    client,
                    address: taken,
                });
            }
        }
        _ => {}
    }
}

/// The network a client is in: the one its relay says, the one it chooses
/// itself (RFC 3011), its relay's own; that of the address it renews by
/// unicast, which may come through a router; or the interface's own. Where one
/// network lies in another, the smaller one.
fn subnet_of<'a>(arrival: &Arrival, settings: &'a Settings) -> Option<&'a Subnet> {
    let find = |address| {
        let all = settings.subnets.iter().rev();
        all.filter(|subnet| subnet.contains(address))
            .max_by_key(|subnet| subnet.netmask)
    };
    let message = arrival.message;
    let selected = arrival
        .relays_word(LINK_SELECTION)
        .or_else(|| message.options.address(code::SUBNET_SELECTION));
    if let Some(network) = selected {
        return find(network);
    }
    if !message.giaddr.is_unspecified() {
        return find(message.giaddr);
    }
    let renewed =
        (arrival.is_unicast && !message.ciaddr.is_unspecified()).then_some(message.ciaddr);
    renewed.and_then(find).or_else(|| find(arrival.server))
}

/// Where a reply goes (RFC 2131 section 4.1), for requests to port 67.
pub fn destination(request: &Message, reply: &Message) -> Destination {
    let is_nak = reply.message_type() == Some(MessageType::Nak);
    if !request.giaddr.is_unspecified() {
        Destination::Address(SocketAddrV4::new(request.giaddr, SERVER_PORT))
    } else if !request.ciaddr.is_unspecified() && !is_nak {
        Destination::Address(SocketAddrV4::new(request.ciaddr, CLIENT_PORT))
    } else if let Some(mac) = request.chaddr.first_chunk().filter(|_| {
        let is_ethernet = request.htype == 1 && request.hlen == 6;
        is_ethernet
            && !is_nak
            && request.flags & BROADCAST_FLAG == 0
            && !reply.yiaddr.is_unspecified()
    }) {
        Destination::Client {
            mac: Mac(*mac),
            address: reply.yiaddr,
        }
    } else {
        Destination::Broadcast
    }
}

/// One request to the LAN's DHCP server.
struct Exchange<'a> {
    arrival: &'a Arrival<'a>,
    client: Client,
    settings: &'a Settings,
    place: Place<'a>,
    leases: &'a mut Leases,
}

/// The four meanings of a REQUEST (RFC 2131 section 4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Takes our offer.
    Selecting(Ipv4Addr),
    /// Takes another server's.
    Elsewhere(Ipv4Addr),
    /// Starts with an address it remembers.
    InitReboot(Ipv4Addr),
    /// Asks us to prolong.
    Renew(Ipv4Addr),
    /// Asks anybody to prolong.
    Rebind(Ipv4Addr),
    /// Asks for nothing.
    Nothing,
}

impl Claim {
    fn read(arrival: &Arrival) -> Claim {
        let message = arrival.message;
        let requested = message.options.address(code::REQUESTED_ADDRESS);
        let current = Some(message.ciaddr).filter(|address| !address.is_unspecified());
        match (message.options.address(code::SERVER_ID), requested, current) {
            (Some(server), _, _) if !arrival.is_us(server) => Claim::Elsewhere(server),
            (Some(_), Some(address), _) | (Some(_), None, Some(address)) => {
                Claim::Selecting(address)
            }
            (None, _, Some(address)) if arrival.is_unicast => Claim::Renew(address),
            (None, _, Some(address)) => Claim::Rebind(address),
            (None, Some(address), None) => Claim::InitReboot(address),
            (_, None, None) => Claim::Nothing,
        }
    }
}

impl Exchange<'_> {
    fn answer(mut self) -> Option<Reply> {
        match self.arrival.message.message_type() {
            Some(MessageType::Discover) => self.discover(),
            Some(MessageType::Request) => self.request(),
            Some(MessageType::Decline) => self.decline(),
            Some(MessageType::Release) => self.release(),
            Some(MessageType::Inform) => self.inform(),
            None => self.bootp(),
            Some(MessageType::Offer | MessageType::Ack | MessageType::Nak) => None,
        }
    }

    fn discover(&mut self) -> Option<Reply> {
        self.observe(Observation::Asked(self.client.clone()));
        let requested = self
            .arrival
            .message
            .options
            .address(code::REQUESTED_ADDRESS);
        if !self.has_room() {
            return None;
        }
        let Some(address) = self.leases.offer(self.client.mac, requested, self.place) else {
            self.observe(Observation::PoolExhausted {
                mac: self.client.mac,
            });
            return None;
        };
        if let Some(promised) = self.place.promise.address.filter(|other| *other != address) {
            tracing::debug!(mac = %self.client.mac, %promised, %address, "the fixed address is not free");
        }
        let (reply, boot) = self.lending(MessageType::Offer, address);
        self.observe(Observation::Offered {
            client: self.client.clone(),
            address: Some(address),
            boot,
        });
        Some(self.sent(reply))
    }

    fn request(&mut self) -> Option<Reply> {
        let (mac, place) = (self.client.mac, self.place);
        let is_here = |address| place.subnet.contains(address);
        match Claim::read(self.arrival) {
            // It came by several of our interfaces, through its relay or a
            // bridge, and answers another of our offers.
            Claim::Elsewhere(server) if self.arrival.own.contains(&server) => None,
            Claim::Elsewhere(server) => {
                self.leases.withdraw(mac);
                self.observe(Observation::ForeignServer { server });
                None
            }
            Claim::Selecting(address) => {
                if self.leases.may_have(mac, address, place) {
                    self.bind(address)
                } else {
                    self.refuse(address)
                }
            }
            Claim::InitReboot(address) => {
                let had = self.leases.of(mac).map(|lease| lease.address);
                let promised = place.promise.address;
                if !is_here(address) {
                    self.refuse(address)
                } else if self.leases.may_have(mac, address, place)
                    && (had == Some(address) || promised == Some(address))
                {
                    self.bind(address)
                } else if had.is_some() || promised.is_some() {
                    self.refuse(address)
                } else {
                    // Perhaps another server knows this client.
                    None
                }
            }
            Claim::Renew(address) => {
                if self.leases.may_keep(mac, address, place) {
                    self.bind(address)
                } else {
                    self.refuse(address)
                }
            }
            Claim::Rebind(address) => {
                if !is_here(address) {
                    self.refuse(address)
                } else if self.leases.of(mac).is_none() && place.promise.address.is_none() {
                    None
                } else if self.leases.may_keep(mac, address, place) {
                    self.bind(address)
                } else {
                    self.refuse(address)
                }
            }
            Claim::Nothing => None,
        }
    }

    /// Whether the limits of strangers let this client have an address.
    fn has_room(&mut self) -> bool {
        let (mac, port) = (self.client.mac, self.arrival.relay_port());
        let has_room = self.leases.has_room_for(mac, port.as_ref(), self.place);
        if !has_room {
            let giaddr = self.arrival.message.giaddr;
            let relay = Some(giaddr).filter(|relay| !relay.is_unspecified());
            let relay = relay.unwrap_or(self.arrival.server);
            self.observe(Observation::PortLimit { mac, relay });
        }
        has_room
    }

    fn bind(&mut self, address: Ipv4Addr) -> Option<Reply> {
        if !self.has_room() {
            return self.refuse(address);
        }
        self.lend(address, self.lease_time())?;
        let (mut reply, _) = self.lending(MessageType::Ack, address);
        reply.ciaddr = self.arrival.message.ciaddr;
        self.observe(Observation::Bound {
            client: self.client.clone(),
            address,
        });
        Some(self.sent(reply))
    }

    fn lease_time(&self) -> Duration {
        let of_subnet = self.place.subnet.lease_time;
        of_subnet.unwrap_or(self.settings.lease_time)
    }

    /// Lends for good; silence where that cannot be written down.
    fn lend(&mut self, address: Ipv4Addr, lease_time: Duration) -> Option<()> {
        let (mac, port) = (self.client.mac, self.arrival.relay_port());
        let is_new = !self.leases.holds(mac, self.place.now);
        let lent = self
            .leases
            .lend(&self.client, address, lease_time, self.place.now);
        if lent.is_ok() {
            self.leases.count(mac, is_new, port.as_ref(), self.place);
        }
        match lent {
            Ok(Lent::Plainly) => Some(()),
            Ok(Lent::UuidChanged) => {
                self.observe(Observation::UuidChanged {
                    mac: self.client.mac,
                });
                Some(())
            }
            Err(error) => {
                tracing::error!(mac = %self.client.mac, %address, error, "lease not kept, so not lent");
                None
            }
        }
    }

    fn refuse(&mut self, address: Ipv4Addr) -> Option<Reply> {
        tracing::debug!(mac = %self.client.mac, %address, "not this client's address");
        self.leases.withdraw(self.client.mac);
        let request = self.arrival.message;
        let mut reply = reply::begin(request, Some(MessageType::Nak), self.arrival.identifier());
        reply
            .options
            .set(code::TEXT, format!("{address} is not yours here"));
        if !request.giaddr.is_unspecified() {
            // The relay is to broadcast it (RFC 2131 section 4.3.2).
            reply.flags |= BROADCAST_FLAG;
        }
        reply::finish(&mut reply, request);
        Some(self.sent(reply))
    }

    fn decline(&mut self) -> Option<Reply> {
        let message = self.arrival.message;
        let address = message.options.address(code::REQUESTED_ADDRESS)?;
        if !self
            .arrival
            .is_us(message.options.address(code::SERVER_ID)?)
        {
            return None;
        }
        let mac = self.client.mac;
        match self
            .leases
            .decline(mac, address, self.place.policy, self.place.now)
        {
            Ok(true) => self.observe(Observation::Declined { mac, address }),
            Ok(false) => {}
            Err(error) => tracing::error!(%mac, %address, error, "declined lease not forgotten"),
        }
        None
    }

    fn release(&mut self) -> Option<Reply> {
        let message = self.arrival.message;
        let is_ours = message
            .options
            .address(code::SERVER_ID)
            .is_none_or(|id| self.arrival.is_us(id));
        if is_ours {
            let (mac, address) = (self.client.mac, message.ciaddr);
            match self
                .leases
                .release(mac, address, self.place.policy, self.place.now)
            {
                Ok(ended) => tracing::debug!(%mac, %address, ended, "release"),
                Err(error) => tracing::error!(%mac, %address, error, "release not kept"),
            }
        }
        None
    }

    /// The client has an address from elsewhere and wants to know the rest.
    fn inform(&mut self) -> Option<Reply> {
        let request = self.arrival.message;
        let address = if request.ciaddr.is_unspecified() {
            *self.arrival.source.ip()
        } else {
            request.ciaddr
        };
        if !self.place.subnet.contains(address) {
            return None;
        }
        let mut reply = reply::begin(request, Some(MessageType::Ack), self.arrival.identifier());
        reply.ciaddr = request.ciaddr;
        self.tell(&mut reply);
        let to = match destination(request, &reply) {
            Destination::Address(to) => Destination::Address(to),
            _ => Destination::Address(SocketAddrV4::new(address, CLIENT_PORT)),
        };
        Some(Reply {
            message: reply,
            from: Port::Dhcp,
            to,
            limit_bytes: reply::limit_bytes(request),
        })
    }

    /// BOOTP clients get what is promised to them and nothing of the pool:
    /// they never say goodbye.
    fn bootp(&mut self) -> Option<Reply> {
        let (request, mac) = (self.arrival.message, self.client.mac);
        self.observe(Observation::Asked(self.client.clone()));
        let address = self.place.promise.address?;
        if !self.leases.may_have(mac, address, self.place) {
            return None;
        }
        self.lend(address, BOOTP_LEASE_TIME.max(self.lease_time()))?;
        let mut reply = reply::begin(request, None, self.arrival.server);
        reply.yiaddr = address;
        self.tell(&mut reply);
        if let Some(Boot::Tftp { server, file }) =
            self.place.policy.boot(&self.client, self.arrival.server)
        {
            reply.siaddr = server;
            reply.file = file.into_bytes();
        }
        reply::strip_for_bootp(&mut reply);
        self.observe(Observation::Bound {
            client: self.client.clone(),
            address,
        });
        Some(self.sent(reply))
    }

    /// An OFFER or ACK of an address, and what it told the client to boot.
    fn lending(&self, kind: MessageType, address: Ipv4Addr) -> (Message, Option<Boot>) {
        let mut reply = reply::begin(self.arrival.message, Some(kind), self.arrival.identifier());
        reply.yiaddr = address;
        reply::add_times(&mut reply, self.lease_time());
        let boot = self.tell(&mut reply);
        (reply, boot)
    }

    /// Adds all that does not lend: the network, and what to boot.
    fn tell(&self, reply: &mut Message) -> Option<Boot> {
        let (client, server, policy) = (&self.client, self.arrival.server, self.place.policy);
        let promise = self.place.promise;
        reply::add_network(reply, self.arrival.message, self.place.subnet, promise);
        let boot = boot_for(client, server, policy).filter(|boot| {
            let form = (Role::Server, policy.style(client, server));
            reply::boot::add(reply, client, boot, promise, server, form)
        });
        reply::add_options(reply, self.place.subnet, promise, boot.is_some());
        reply::finish(reply, self.arrival.message);
        boot
    }

    fn sent(&self, message: Message) -> Reply {
        let to = destination(self.arrival.message, &message);
        Reply {
            message,
            from: Port::Dhcp,
            to,
            limit_bytes: reply::limit_bytes(self.arrival.message),
        }
    }

    fn observe(&self, observation: Observation) {
        self.place.policy.observe(&observation);
    }
}

/// What a client boots; operating systems are not even asked for.
pub(crate) fn boot_for(client: &Client, server: Ipv4Addr, policy: &dyn Policy) -> Option<Boot> {
    if client.firmware.is_network_boot() {
        policy.boot(client, server)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
