//! Boot information beside another server's addresses (PXE 2.1 section 2.2):
//! the ProxyDHCP on port 67 and the boot server on port 4011.
//!
//! Silent about addresses, and silent to everything that does not boot from
//! the network: what it learns of addresses, it learns from the clients' own
//! requests.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::answer::{Arrival, CLIENT_PORT, Destination, Port, Reply, boot_for, destination, watch};
use crate::client::boot_item;
use crate::reply::{self, Role};
use crate::wire::{BROADCAST_FLAG, MessageType, code};
use crate::{Client, Observation, Policy};

/// Answers a request to port 67 in proxy mode.
///
/// In the [`Style`](crate::Style) the site chose for it; HTTP Boot takes the
/// URL, and iPXE file and siaddr of an OFFER whose option 43 says so.
pub(crate) fn answer(arrival: &Arrival, client: &Client, policy: &dyn Policy) -> Option<Reply> {
    let request = arrival.message;
    watch(request, arrival.server, arrival.netmask, policy);
    if request.message_type() != Some(MessageType::Discover) {
        return None;
    }
    let boot = boot_for(client, arrival.server, policy)?;
    let mut message = reply::begin(request, Some(MessageType::Offer), arrival.server);
    let promise = policy.promise(client.mac);
    let form = (Role::Proxy, policy.style(client, arrival.server));
    if !reply::boot::add(&mut message, client, &boot, &promise, arrival.server, form) {
        return None;
    }
    reply::finish(&mut message, request);
    // No address of its own to send it to.
    message.flags |= BROADCAST_FLAG;
    policy.observe(&Observation::Offered {
        client: client.clone(),
        address: None,
        boot: Some(boot),
    });
    let to = destination(request, &message);
    Some(Reply {
        message,
        from: Port::Dhcp,
        to,
        limit_bytes: reply::limit_bytes(request),
    })
}

/// Answers a boot server request: a REQUEST to port 4011, or one with a boot
/// item wherever it arrives. In `full` mode too: some ROMs come whatever the
/// OFFER said.
///
/// xid and option 54 mean nothing here (PXE ROMs send xid 0, EDK2 no option
/// 54), but a request that names another server is not ours.
pub(crate) fn boot_server(
    arrival: &Arrival,
    client: &Client,
    policy: &dyn Policy,
) -> Option<Reply> {
    let request = arrival.message;
    if request
        .options
        .address(code::SERVER_ID)
        .is_some_and(|id| id != arrival.server)
    {
        return None;
    }
    if !client.firmware.is_network_boot() {
        return None;
    }
    policy.observe(&Observation::BootServerAsked(client.clone()));
    let address = client_address(arrival);
    if let Some(address) = address.filter(|&address| arrival.is_on_link(address)) {
        policy.observe(&Observation::Bound {
            client: client.clone(),
            address,
        });
    }

    let boot = boot_for(client, arrival.server, policy)?;
    let mut message = reply::begin(request, Some(MessageType::Ack), arrival.server);
    let promise = policy.promise(client.mac);
    let form = (Role::BootServer, policy.style(client, arrival.server));
    if !reply::boot::add(&mut message, client, &boot, &promise, arrival.server, form) {
        return None;
    }
    message.ciaddr = request.ciaddr;
    // Only an answer with the same item is taken.
    if let Some([a, b, c, d]) = boot_item(request) {
        message.yiaddr = request.ciaddr;
        message.options.set(code::VENDOR, [71, 4, a, b, c, d, 255]);
    }
    reply::finish(&mut message, request);
    policy.observe(&Observation::Offered {
        client: client.clone(),
        address: None,
        boot: Some(boot),
    });
    // To the port it came from: EDK2 listens on 4011, ROMs on 68.
    let to = match address {
        Some(address) => {
            let port = Some(arrival.source.port())
                .filter(|&port| port != 0)
                .unwrap_or(CLIENT_PORT);
            Destination::Address(SocketAddrV4::new(address, port))
        }
        None => Destination::Broadcast,
    };
    Some(Reply {
        message,
        from: Port::BootServer,
        to,
        limit_bytes: reply::limit_bytes(request),
    })
}

/// The address the client has: what it says, or where its packet came from.
fn client_address(arrival: &Arrival) -> Option<Ipv4Addr> {
    [arrival.message.ciaddr, *arrival.source.ip()]
        .into_iter()
        .find(|address| {
            !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast()
        })
}
