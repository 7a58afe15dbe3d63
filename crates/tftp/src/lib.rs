//! TFTP server: RFC 1350 with options (RFC 2347, 2348, 2349) and windows
//! (RFC 7440), read requests only.
//!
//! [`wire`] turns bytes into packets, [`transfer`] is one transfer without
//! socket or clock, [`server`] owns the sockets. What a name means is asked
//! through [`Files`].
//!
//! Not here: write requests (refused with error 2), `mail` mode, multicast
//! (RFC 2090), Microsoft's variable window.

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod server;
pub mod transfer;
pub mod wire;

pub use server::{Counters, Limits, Server};

use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;

use bytes::Bytes;

/// What the server asks its site. Both calls are made on a thread where
/// blocking is allowed.
pub trait Files: Send + Sync + 'static {
    /// The content behind a name, asked once per read request. `name` has
    /// been normalised (see `wire`): forward slashes, no leading slash, no
    /// `..`, no NUL, no trailing junk.
    fn open(&self, request: &Request) -> Result<Content, ErrorCode>;

    /// A transfer ended; for the timeline. A size probe (ERROR right after
    /// OACK) is reported as such and is no fault.
    fn ended(&self, request: &Request, outcome: &Outcome);
}

/// A read request, as the site sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Normalised name.
    pub name: String,
    /// Who asks.
    pub client: SocketAddrV4,
    /// The address the request was sent to.
    pub local: SocketAddrV4,
}

/// What is sent.
#[derive(Clone)]
pub enum Content {
    /// Bytes made for this request.
    Bytes(Bytes),
    /// A regular file, opened once; the size is what it was at opening.
    File {
        /// The open file; read with positioned reads.
        file: Arc<std::fs::File>,
        /// Size at opening, in bytes.
        size_bytes: u64,
    },
    /// Anything else that can be read from an offset, for instance a file
    /// inside a disk image.
    Readable(Arc<dyn Readable>),
}

/// Bytes that lie still while they are sent. Both calls are made on a thread
/// where blocking is allowed.
pub trait Readable: Send + Sync + 'static {
    /// How many they are; the same at every call. The client is told this
    /// size.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset_bytes` on. What is asked
    /// for lies below [`Readable::size_bytes`]. An error ends the transfer.
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Content {
    /// How many bytes a client in mode `octet` gets.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { size_bytes, .. } => *size_bytes,
            Content::Readable(readable) => readable.size_bytes(),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Content::Bytes(_) => "Bytes",
            Content::File { .. } => "File",
            Content::Readable(_) => "Readable",
        };
        write!(f, "{kind} of {} bytes", self.size_bytes())
    }
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte was acknowledged (or the last ACK alone is missing).
    Complete {
        /// Bytes of the file.
        bytes: u64,
    },
    /// The client asked for the size and left (normal for PXE ROMs and EDK2).
    Probed,
    /// The site refused.
    Refused(ErrorCode),
    /// The client sent an ERROR in the middle.
    Aborted {
        /// The client's error code.
        code: u16,
        /// The client's words.
        message: String,
        /// Bytes acknowledged until then.
        bytes: u64,
    },
    /// The client fell silent.
    TimedOut {
        /// Bytes acknowledged until then.
        bytes: u64,
    },
    /// We could not go on: the file could not be read or shrank, or the
    /// server was stopped.
    Failed {
        /// Why, for people to read.
        reason: String,
        /// Bytes acknowledged until then.
        bytes: u64,
    },
}

/// TFTP error codes (RFC 1350 section 5, RFC 2347).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// 1: file not found; also for what the client may not know of.
    NotFound,
    /// 2: access violation.
    AccessViolation,
    /// 4: illegal operation.
    IllegalOperation,
    /// 0: not defined, for instance out of transfers.
    Busy,
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            ErrorCode::Busy => 0,
            ErrorCode::NotFound => 1,
            ErrorCode::AccessViolation => 2,
            ErrorCode::IllegalOperation => 4,
        }
    }

    /// The words sent with it.
    pub fn message(self) -> &'static str {
        match self {
            ErrorCode::Busy => "Server busy",
            ErrorCode::NotFound => "File not found",
            ErrorCode::AccessViolation => "Access violation",
            ErrorCode::IllegalOperation => "Illegal operation",
        }
    }
}
