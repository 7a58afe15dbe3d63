//! The task behind one client port: from a read request to its outcome.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::{debug, trace};

use super::counts::add;
use super::source::Source;
use super::{Incoming, Key, Shared, lock, path};
use crate::transfer::{Caps, Repeat, Send, Terms, Transfer};
use crate::wire::{DATA_HEADER_BYTES, Mode, Packet};
use crate::{ErrorCode, Outcome, Request};

/// Packets from strangers that a transfer answers with error 5.
const MAX_STRANGERS_ANSWERED: u32 = 8;

/// RFC 1350: unknown transfer ID.
const UNKNOWN_TRANSFER: u16 = 5;

/// The task behind one client port.
pub(super) struct Errand {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    /// Requests that came again from that port.
    pub(super) inbox: mpsc::Receiver<Incoming>,
    pub(super) _place: OwnedSemaphorePermit,
}

impl Drop for Errand {
    fn drop(&mut self) {
        lock(&self.shared.running).remove(&self.key);
    }
}

impl Errand {
    /// Serves the request, and those the client restarts with from the same
    /// port.
    pub(super) async fn run(mut self, first: Incoming) {
        let mut next = Some(first);
        while let Some(incoming) = next.take() {
            add(&self.shared.counts.requests, 1);
            let outcome;
            (outcome, next) = self.serve(&incoming).await;
            self.report(incoming.request, outcome).await;
        }
    }

    /// One request from opening to outcome; the request to go on with when
    /// the client has started anew.
    async fn serve(&mut self, incoming: &Incoming) -> (Outcome, Option<Incoming>) {
        let Request { client, local, .. } = incoming.request;
        let Ok(Packet::Read(ask)) = Packet::parse(&incoming.datagram) else {
            return (Outcome::Refused(ErrorCode::IllegalOperation), None); // it was parsed before
        };
        let mut source = match self.open(&incoming.request, ask.mode).await {
            Ok(source) => source,
            Err(code) => {
                refuse(local, client, code);
                return (Outcome::Refused(code), None);
            }
        };
        let socket = match UdpSocket::bind((*local.ip(), 0)).await {
            Ok(socket) => socket,
            Err(error) => {
                let reason = format!("no port for the transfer: {error}");
                return (Outcome::Failed { reason, bytes: 0 }, None);
            }
        };
        let caps = Caps {
            block_bytes: path::block_bytes(local, client, self.shared.limits.max_block_bytes),
            window_blocks: self.shared.limits.max_window_blocks,
        };
        let terms = Terms::negotiate(&ask.options, source.size_bytes(), caps);
        let mut transfer = Transfer::new(terms, source.size_bytes(), Instant::now());
        let next = self
            .transfer(incoming, &socket, &mut source, &mut transfer)
            .await;
        add(&self.shared.counts.resent_blocks, transfer.resent_blocks());
        let outcome = transfer.outcome().cloned();
        let unfinished = Outcome::Failed {
            reason: "the transfer was dropped".to_owned(),
            bytes: 0,
        };
        (outcome.unwrap_or(unfinished), next)
    }

    async fn transfer(
        &mut self,
        incoming: &Incoming,
        socket: &UdpSocket,
        source: &mut Source,
        transfer: &mut Transfer,
    ) -> Option<Incoming> {
        let client = incoming.request.client;
        let mut cut = self.shared.cut.subscribe();
        let mut buffer = [0; 1024];
        let mut datagram = Vec::new();
        let mut strangers = 0;
        loop {
            while let Some(send) = transfer.next_send(Instant::now()) {
                datagram.clear();
                match send {
                    Send::OptionAck => {
                        datagram.extend_from_slice(
                            transfer.terms().option_ack.as_deref().unwrap_or_default(),
                        );
                    }
                    Send::Data {
                        block,
                        offset_bytes,
                        length_bytes,
                    } => {
                        Packet::Data {
                            block,
                            payload: &[],
                        }
                        .emit(&mut datagram);
                        if let Err(error) =
                            source.read(offset_bytes, length_bytes, &mut datagram).await
                        {
                            tell(socket, client, &error_packet(0, "Read error")).await;
                            transfer.fail(format!("reading at byte {offset_bytes}: {error}"));
                            break;
                        }
                        let payload = datagram.len().saturating_sub(DATA_HEADER_BYTES);
                        add(&self.shared.counts.sent_bytes, payload as u64);
                    }
                }
                tell(socket, client, &datagram).await;
            }
            if transfer.outcome().is_some() {
                return None;
            }
            let deadline = tokio::time::Instant::from_std(transfer.deadline());
            tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) if from == SocketAddr::V4(client) => {
                        match Packet::parse(&buffer[..length]) {
                            Ok(packet) => transfer.receive(&packet, Instant::now()),
                            Err(error) => {
                                add(&self.shared.counts.malformed, 1);
                                debug!(%client, %error, "malformed packet dropped");
                            }
                        }
                    }
                    Ok((length, SocketAddr::V4(stranger))) => {
                        let is_error = matches!(Packet::parse(&buffer[..length]), Ok(Packet::Error { .. }));
                        if !is_error && strangers < MAX_STRANGERS_ANSWERED {
                            strangers += 1;
                            tell(socket, stranger, &error_packet(UNKNOWN_TRANSFER, "Unknown transfer ID")).await;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => {
                        trace!(%client, %error, "receiving");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                },
                () = tokio::time::sleep_until(deadline) => transfer.wake(Instant::now()),
                Some(again) = self.inbox.recv() => {
                    let same = again.request.name == incoming.request.name;
                    if !same || transfer.repeat(Instant::now()) == Repeat::Restart {
                        transfer.abandon();
                        return Some(again);
                    }
                }
                () = async { drop(cut.wait_for(|&cut| cut).await) } => {
                    tell(socket, client, &error_packet(0, "Server is stopping")).await;
                    transfer.fail("the server was stopped");
                    return None;
                }
            }
        }
    }

    /// Asks the site, where it may block.
    async fn open(&self, request: &Request, mode: Mode) -> Result<Source, ErrorCode> {
        let (shared, request) = (Arc::clone(&self.shared), request.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let content = shared.files.open(&request)?;
            match mode {
                Mode::Octet => Ok(Source::of(content)),
                Mode::Netascii => Source::in_netascii(content).map_err(|error| {
                    debug!(name = %request.name, client = %request.client, %error, "refused in netascii");
                    ErrorCode::IllegalOperation
                }),
            }
        });
        // A panic in there is the site's fault and must not look like a
        // missing file.
        opened.await.unwrap_or(Err(ErrorCode::Busy))
    }

    async fn report(&self, request: Request, outcome: Outcome) {
        let counts = &self.shared.counts;
        add(
            match &outcome {
                Outcome::Complete { .. } => &counts.complete,
                Outcome::Probed => &counts.probed,
                Outcome::Refused(_) => &counts.refused,
                Outcome::Aborted { .. } => &counts.aborted,
                Outcome::TimedOut { .. } => &counts.timed_out,
                Outcome::Failed { .. } => &counts.failed,
            },
            1,
        );
        debug!(client = %request.client, name = %request.name, ?outcome, "TFTP transfer ended");
        let shared = Arc::clone(&self.shared);
        let _ = tokio::task::spawn_blocking(move || shared.files.ended(&request, &outcome)).await;
    }
}

/// Sends an ERROR from a fresh port and forgets about it (RFC 1350 section 7).
pub(super) fn refuse(local: SocketAddrV4, client: SocketAddrV4, code: ErrorCode) {
    let send = || -> io::Result<()> {
        let socket = std::net::UdpSocket::bind((*local.ip(), 0))?;
        socket.set_nonblocking(true)?;
        socket.send_to(&error_packet(code.number(), code.message()), client)?;
        Ok(())
    };
    if let Err(error) = send() {
        debug!(%client, %error, "sending an ERROR");
    }
}

fn error_packet(code: u16, message: &str) -> Vec<u8> {
    let mut datagram = Vec::new();
    Packet::Error {
        code,
        message: message.as_bytes(),
    }
    .emit(&mut datagram);
    datagram
}

/// Sends a datagram; one that cannot be sent is one that was lost, and comes
/// again by the clock.
async fn tell(socket: &UdpSocket, client: SocketAddrV4, datagram: &[u8]) {
    if let Err(error) = socket.send_to(datagram, SocketAddr::V4(client)).await {
        debug!(%client, %error, "sending");
    }
}
