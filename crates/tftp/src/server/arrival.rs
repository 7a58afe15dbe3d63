//! Receiving a datagram together with the address it was sent to
//! (`IP_PKTINFO`, ip(7)).
//!
//! Unsafe because neither the standard library, rustix nor socket2 reads this
//! control message, and without it a server on 0.0.0.0 would answer from an
//! address the client never asked.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// One datagram's envelope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Bytes in the buffer.
    pub(super) length_bytes: usize,
    /// Who sent it.
    pub(super) client: SocketAddrV4,
    /// Where it was sent: ours, or a broadcast or multicast address.
    pub(super) sent_to: Ipv4Addr,
    /// Our address on that interface; the same as `sent_to` for a datagram
    /// that was meant for us alone.
    pub(super) local: Ipv4Addr,
}

/// Room for the control message, aligned as `cmsghdr` wants it.
#[repr(align(8))]
struct Control([u8; 128]);

/// Asks the kernel to tell the address with every datagram.
pub(super) fn enable(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: `on` lives through the call and `length` is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Receives one datagram without waiting; what does not fit is cut off.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
    // SAFETY: all three are plain C structures for which zero bytes are valid.
    let (mut name, mut message, mut info): (libc::sockaddr_in, libc::msghdr, libc::in_pktinfo) =
        unsafe { zeroed() };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).map_err(io::Error::other)?;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `message` is to a local that outlives the
    // call, with the length beside it.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length_bytes = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    if i32::from(name.sin_family) != libc::AF_INET {
        return Err(io::Error::other("a datagram of another family"));
    }
    let mut found = false;
    // SAFETY: the kernel has filled `control` and `msg_controllen`; the CMSG
    // macros stay inside them, and the payload is copied without assuming its
    // alignment.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::IPPROTO_IP && (*header).cmsg_type == libc::IP_PKTINFO {
                info = libc::CMSG_DATA(header)
                    .cast::<libc::in_pktinfo>()
                    .read_unaligned();
                found = true;
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if !found {
        return Err(io::Error::other(
            "the kernel did not tell the address a datagram was sent to",
        ));
    }
    let address = |raw: u32| Ipv4Addr::from(u32::from_be(raw));
    Ok(Arrival {
        length_bytes,
        client: SocketAddrV4::new(address(name.sin_addr.s_addr), u16::from_be(name.sin_port)),
        sent_to: address(info.ipi_addr.s_addr),
        local: address(info.ipi_spec_dst.s_addr),
    })
}
