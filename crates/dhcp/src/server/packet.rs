//! A packet socket (packet(7)). One for IPv4 sends to clients that have no
//! address yet, and hears what was sent to others' ports, beside any program
//! that holds them. One for IPv6 hears and answers router discovery,
//! one for ARP asks whose an address is.
//!
//! `unsafe` stands here because no safe interface has `sockaddr_ll`, and
//! because tokio takes foreign descriptors on our word only.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use rustix::net::netdevice::name_to_index;
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Mac, frame};

/// IPv4 over Ethernet.
const ETHERTYPE_IP: u16 = 0x0800;

const ETHERTYPE_ARP: u16 = 0x0806;

const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A group address of Ethernet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Multicast(pub(super) [u8; 6]);

/// Size of `sockaddr_ll`.
#[allow(clippy::cast_possible_truncation)] // 20
const LINK_ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

/// Lets through IPv4/UDP to ports 67, 68 and 4011. Offsets count from the IP
/// header: the socket is of the kind that keeps the Ethernet header to itself.
fn dhcp_only() -> [SockFilter; 11] {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
    const HEADER_LENGTH: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH
    const LOAD_HALF_BEYOND: u16 = 0x48; // BPF_LD | BPF_H | BPF_IND
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 9), // protocol
        SockFilter::new(IF_EQUAL, 0, 7, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 6), // fragment offset
        SockFilter::new(IF_SET, 5, 0, 0x1fff),
        SockFilter::new(HEADER_LENGTH, 0, 0, 0),
        SockFilter::new(LOAD_HALF_BEYOND, 0, 0, 2), // destination port
        SockFilter::new(IF_EQUAL, 3, 0, 67),
        SockFilter::new(IF_EQUAL, 2, 0, 68),
        SockFilter::new(IF_EQUAL, 1, 0, 4011),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX), // the whole packet
    ]
}

/// Lets through solicitations and advertisements of routers: ICMPv6 right
/// behind the IPv6 header, as they are always sent.
fn router_discovery_only() -> [SockFilter; 7] {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 6), // next header
        SockFilter::new(IF_EQUAL, 0, 3, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 40), // type
        SockFilter::new(IF_EQUAL, 2, 0, 133),
        SockFilter::new(IF_EQUAL, 1, 0, 134),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX), // the whole packet
    ]
}

/// The index of an interface.
pub(super) fn interface_index(name: &str) -> io::Result<u32> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    name_to_index(&socket, name).map_err(|_| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no network interface is called {name:?}"),
        )
    })
}

/// A packet socket on one interface, not yet in a tokio runtime.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: Socket,
    interface: u32,
    ethertype: u16,
}

impl PacketSocket {
    /// Opens one for DHCP; needs `CAP_NET_RAW`.
    pub(super) fn open(interface: &str) -> io::Result<PacketSocket> {
        PacketSocket::filtered(interface, ETHERTYPE_IP, &dhcp_only())
    }

    /// Opens one for ARP; needs `CAP_NET_RAW`.
    pub(super) fn open_arp(interface: &str) -> io::Result<PacketSocket> {
        const RETURN: u16 = 0x06; // BPF_RET | BPF_K
        let all = [SockFilter::new(RETURN, 0, 0, u32::MAX)];
        PacketSocket::filtered(interface, ETHERTYPE_ARP, &all)
    }

    /// Opens one for router discovery that hears these groups; needs
    /// `CAP_NET_RAW`.
    pub(super) fn open_router_discovery(
        interface: &str,
        groups: &[Multicast],
    ) -> io::Result<PacketSocket> {
        let opened = PacketSocket::filtered(interface, ETHERTYPE_IPV6, &router_discovery_only())?;
        for group in groups {
            opened.join(*group)?;
        }
        Ok(opened)
    }

    fn filtered(
        interface: &str,
        ethertype: u16,
        filter: &[SockFilter],
    ) -> io::Result<PacketSocket> {
        let interface = interface_index(interface)?;
        // Deaf (protocol 0) until the filter stands and the interface is set.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.attach_filter(filter)?;
        socket.bind(&link_address(interface, ethertype, None)?)?;
        socket.set_nonblocking(true)?;
        Ok(PacketSocket {
            socket,
            interface,
            ethertype,
        })
    }

    /// Lets the interface take in what is sent to a group.
    fn join(&self, Multicast(group): Multicast) -> io::Result<()> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut address = [0; 8];
        address[..6].copy_from_slice(&group);
        let request = libc::packet_mreq {
            mr_ifindex: i32::try_from(self.interface).map_err(invalid)?,
            mr_type: u16::try_from(libc::PACKET_MR_MULTICAST).map_err(invalid)?,
            mr_alen: 6,
            mr_address: address,
        };
        let bytes = libc::socklen_t::try_from(size_of_val(&request)).map_err(invalid)?;
        // SAFETY: the option takes a `packet_mreq`, which lives until the call
        // returns, and its size.
        let joined = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const request).cast(),
                bytes,
            )
        };
        if joined == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Enters the runtime.
    pub(super) fn register(self) -> io::Result<AsyncPacketSocket> {
        let PacketSocket {
            socket,
            interface,
            ethertype,
        } = self;
        // SAFETY: the socket owns its descriptor, never changes it, and is
        // owned by the `AsyncFd` until both are closed together.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(AsyncPacketSocket {
            socket,
            interface,
            ethertype,
        })
    }
}

/// A packet socket in a tokio runtime.
#[derive(Debug)]
pub(super) struct AsyncPacketSocket {
    socket: AsyncFd<Socket>,
    interface: u32,
    ethertype: u16,
}

impl AsyncPacketSocket {
    /// Waits for a packet; the bytes begin at the IP header.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket
            .async_io(Interest::READABLE, |mut socket| socket.read(buffer))
            .await
    }

    /// Sends a datagram in one frame to `mac`; does not wait.
    pub(super) fn send(
        &self,
        mac: Mac,
        source: SocketAddrV4,
        destination: SocketAddrV4,
        payload: &[u8],
    ) -> io::Result<()> {
        let packet =
            frame::emit(source, destination, payload).ok_or(io::ErrorKind::InvalidInput)?;
        self.send_packet(mac, &packet)
    }

    /// Sends what begins at the IP header in one frame to `mac`; does not
    /// wait.
    pub(super) fn send_packet(&self, mac: Mac, packet: &[u8]) -> io::Result<()> {
        let to = link_address(self.interface, self.ethertype, Some(mac))?;
        self.socket.get_ref().send_to(packet, &to)?;
        Ok(())
    }
}

/// `sockaddr_ll`: an interface, a protocol, and an Ethernet address on it.
fn link_address(interface: u32, ethertype: u16, mac: Option<Mac>) -> io::Result<SockAddr> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let index = i32::try_from(interface).map_err(invalid)?;
    let family = u16::try_from(libc::AF_PACKET).map_err(invalid)?;
    let init = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: `try_init` hands over zeroed storage large and aligned
        // enough for every kind of socket address, `sockaddr_ll` among them,
        // for which all zeros are valid.
        let address = unsafe { &mut *storage.cast::<libc::sockaddr_ll>() };
        address.sll_family = family;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = index;
        if let Some(Mac(bytes)) = mac {
            address.sll_halen = 6;
            address.sll_addr[..6].copy_from_slice(&bytes);
        }
        // SAFETY: `try_init` hands over a valid pointer to the length; the
        // value is the size of what was written above.
        unsafe { *length = LINK_ADDRESS_BYTES };
        Ok(())
    };
    // SAFETY: `init` writes a whole `sockaddr_ll` of family AF_PACKET and its
    // length.
    let ((), address) = unsafe { SockAddr::try_init(init) }?;
    Ok(address)
}
