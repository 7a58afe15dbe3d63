//! One transfer to a client (RFC 1350, 2347, 2348, 2349, 7440), without
//! socket, clock or file.
//!
//! The server drives it: [`Transfer::receive`] what arrives,
//! [`Transfer::wake`] at [`Transfer::deadline`], and after each of them send
//! what [`Transfer::next_send`] hands out, until there is an
//! [`Transfer::outcome`].
//!
//! Invariants: nothing but one OACK or one block is in flight before the
//! client has answered, so a forged request is no amplifier. Never more than
//! a window is in flight. A repeated ACK never makes two resends in a row
//! (Sorcerer's Apprentice, RFC 1123 section 4.2.3.1).
//!
//! Blocks are counted in 64 bits here; on the wire the number wraps from
//! 65535 to 0, as iPXE, EDK2 and everybody else expects.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::wire::{Packet, TransferOption, readable};

/// Bytes of a block when nothing was negotiated (RFC 1350).
pub const DEFAULT_BLOCK_BYTES: u16 = 512;

/// What stands before a block in its frame: 20 bytes of IP, 8 of UDP, 4 of
/// TFTP.
pub const HEADERS_BYTES: u16 = 32;

/// Blocks that fit an Ethernet frame unfragmented. Many ROMs cannot put
/// fragments together.
pub const ETHERNET_BLOCK_BYTES: u16 = 1500 - HEADERS_BYTES;

/// Smallest and largest block size of RFC 2348.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 8..=65464;

/// Largest window granted. EDK2 asks for 4; more than this overruns the
/// receive buffers of small clients.
pub const MAX_WINDOW_BLOCKS: u16 = 64;

/// Longest retransmission time a client may ask for, in seconds; a longer one
/// is left out of the OACK, so that a silent client cannot hold its place for
/// half an hour.
const MAX_TIMEOUT_SECONDS: u64 = 30;

/// First retransmission time, before anything was measured.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// Shortest retransmission time. Firmware polls its card, and draws a progress
/// bar between two ACKs.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// Where doubling ends.
const MOST_PATIENCE: Duration = Duration::from_secs(8);

/// Resends without progress after which a client is given up that has not
/// answered yet, or that has been sent everything.
const MAX_RESENDS: u32 = 5;

/// Silence after which a client in the middle of a transfer is given up.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// A request repeated from the same port is the network's copy when the
/// client was heard within this time, and a restarted client otherwise.
const COPY_TIME: Duration = Duration::from_secs(1);

/// What we grant at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Largest block, in bytes.
    pub block_bytes: u16,
    /// Largest window, in blocks; never more than [`MAX_WINDOW_BLOCKS`].
    pub window_blocks: u16,
}

/// What client and server agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of every block but the last.
    pub block_bytes: u16,
    /// Blocks sent before an ACK is waited for.
    pub window_blocks: u16,
    /// Retransmission time the client wished.
    pub timeout: Option<Duration>,
    /// The client asked for the size.
    pub size_asked: bool,
    /// The OACK to send first; `None` when no option was accepted.
    pub option_ack: Option<Vec<u8>>,
}

impl Terms {
    /// Answers a request's options for a file of `size_bytes`.
    ///
    /// An option that is unknown, out of range or given twice is left out of
    /// the OACK, never an error; none is there that was not asked for (EDK2
    /// drops such an OACK).
    pub fn negotiate(options: &[TransferOption<'_>], size_bytes: u64, caps: Caps) -> Terms {
        let mut terms = Terms {
            block_bytes: DEFAULT_BLOCK_BYTES,
            window_blocks: 1,
            timeout: None,
            size_asked: false,
            option_ack: None,
        };
        let mut accepted: Vec<(&[u8], String)> = Vec::new();
        for option in options {
            let Some(wish) = option.number() else {
                continue;
            };
            if accepted
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case(option.name))
            {
                continue;
            }
            let value = if option.name.eq_ignore_ascii_case(b"blksize") {
                if !BLOCK_BYTES.contains(&wish) {
                    continue;
                }
                terms.block_bytes = u16::try_from(wish)
                    .unwrap_or(u16::MAX)
                    .min(caps.block_bytes.max(8));
                u64::from(terms.block_bytes)
            } else if option.name.eq_ignore_ascii_case(b"windowsize") {
                if !(1..=u64::from(u16::MAX)).contains(&wish) {
                    continue;
                }
                let most = caps.window_blocks.clamp(1, MAX_WINDOW_BLOCKS);
                terms.window_blocks = u16::try_from(wish).unwrap_or(u16::MAX).min(most);
                u64::from(terms.window_blocks)
            } else if option.name.eq_ignore_ascii_case(b"timeout") {
                if !(1..=MAX_TIMEOUT_SECONDS).contains(&wish) {
                    continue;
                }
                terms.timeout = Some(Duration::from_secs(wish));
                wish // must be echoed unchanged
            } else if option.name.eq_ignore_ascii_case(b"tsize") {
                terms.size_asked = true;
                size_bytes
            } else {
                continue;
            };
            accepted.push((option.name, value.to_string()));
        }
        if !accepted.is_empty() {
            let option = |(name, value): &'_ (&[u8], String)| -> (Vec<u8>, Vec<u8>) {
                (name.to_vec(), value.as_bytes().to_vec())
            };
            let owned: Vec<(Vec<u8>, Vec<u8>)> = accepted.iter().map(option).collect();
            let options = owned
                .iter()
                .map(|(name, value)| TransferOption { name, value })
                .collect();
            let mut datagram = Vec::new();
            Packet::OptionAck(options).emit(&mut datagram);
            terms.option_ack = Some(datagram);
        }
        terms
    }
}

/// What the server is to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// The OACK of [`Terms::option_ack`].
    OptionAck,
    /// One block.
    Data {
        /// Its number on the wire.
        block: u16,
        /// Where its bytes begin in the file.
        offset_bytes: u64,
        /// How many they are; 0 in the last block of a file that is a
        /// multiple of the block size.
        length_bytes: usize,
    },
}

/// What a repeated request means (RFC 1350 section 4: a transfer is known by
/// its two ports).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Our first answer was lost; it goes out again.
    Resent,
    /// The network's copy of the request; nothing to do.
    Copy,
    /// The client starts anew from the same port.
    Restart,
}

/// One transfer.
#[derive(Debug)]
pub struct Transfer {
    terms: Terms,
    size_bytes: u64,
    /// Number of the last block, counted from 1.
    last: u64,
    /// The OACK was answered, or there is none.
    agreed: bool,
    /// Any answer at all came from the client.
    heard: bool,
    /// The OACK is to be sent.
    option_ack_due: bool,
    /// Blocks acknowledged, from 1 on; 0 for none.
    acked: u64,
    /// Next block to send.
    next: u64,
    /// Highest block ever sent.
    sent: u64,
    /// A repeated ACK has made us resend this window, and the one before it.
    resent_here: bool,
    resent_before: bool,
    /// Resends by the clock since the last progress.
    resends: u32,
    /// Retransmission time now, and its value before back-off.
    patience: Duration,
    patience_base: Duration,
    /// When the window in flight began; for measuring.
    window_sent: Option<Instant>,
    /// Time from a window to its ACK, smoothed, and how much it varies.
    round_trip: Option<(Duration, Duration)>,
    last_heard: Instant,
    last_progress: Instant,
    deadline: Instant,
    resent_blocks: u64,
    outcome: Option<Outcome>,
}

impl Transfer {
    /// A transfer of a file of `size_bytes` that begins `now`.
    pub fn new(terms: Terms, size_bytes: u64, now: Instant) -> Transfer {
        let patience = terms.timeout.unwrap_or(FIRST_PATIENCE);
        let last = size_bytes / u64::from(terms.block_bytes) + 1;
        let has_option_ack = terms.option_ack.is_some();
        Transfer {
            terms,
            size_bytes,
            last,
            agreed: !has_option_ack,
            heard: false,
            option_ack_due: has_option_ack,
            acked: 0,
            next: 1,
            sent: 0,
            resent_here: false,
            resent_before: false,
            resends: 0,
            patience,
            patience_base: patience,
            window_sent: None,
            round_trip: None,
            last_heard: now,
            last_progress: now,
            deadline: now + patience,
            resent_blocks: 0,
            outcome: None,
        }
    }

    /// What was agreed on.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The next datagram to send at once; `None`: wait until the deadline.
    pub fn next_send(&mut self, now: Instant) -> Option<Send> {
        if self.outcome.is_some() {
            return None;
        }
        if !self.agreed {
            if !self.option_ack_due {
                return None;
            }
            self.option_ack_due = false;
            self.sending(now);
            return Some(Send::OptionAck);
        }
        let window_end = (self.acked + u64::from(self.terms.window_blocks)).min(self.last);
        if self.next > window_end {
            return None;
        }
        let number = self.next;
        self.next += 1;
        if number > self.sent {
            self.sent = number;
        } else {
            self.resent_blocks += 1;
        }
        self.sending(now);
        let block_bytes = u64::from(self.terms.block_bytes);
        let offset_bytes = (number - 1) * block_bytes;
        let length = block_bytes.min(self.size_bytes - offset_bytes);
        Some(Send::Data {
            block: on_the_wire(number),
            offset_bytes,
            length_bytes: usize::try_from(length).unwrap_or(0), // at most 65464
        })
    }

    /// Takes in a packet that came from the client's address and port.
    pub fn receive(&mut self, packet: &Packet<'_>, now: Instant) {
        if self.outcome.is_some() {
            return;
        }
        match packet {
            Packet::Ack { block } => {
                self.heard = true;
                self.last_heard = now;
                self.acknowledge(*block, now);
            }
            Packet::Error { code, message } => {
                let probed = !self.agreed && self.terms.size_asked && matches!(code, 0 | 8);
                self.outcome = Some(if probed {
                    Outcome::Probed
                } else {
                    let message = readable(message);
                    Outcome::Aborted {
                        code: *code,
                        message,
                        bytes: self.acked_bytes(),
                    }
                });
            }
            // A client that only reads has nothing else to say.
            Packet::Read(_) | Packet::Write(_) | Packet::Data { .. } | Packet::OptionAck(_) => {}
        }
    }

    /// When to call [`Transfer::wake`].
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The deadline has come: resends with more patience, or gives up.
    pub fn wake(&mut self, now: Instant) {
        if self.outcome.is_some() || now < self.deadline {
            return;
        }
        let tried = self.resends >= MAX_RESENDS;
        let silent = now.duration_since(self.last_progress) >= MAX_SILENCE;
        if tried && (silent || !self.heard || self.sent == self.last) {
            self.abandon();
            return;
        }
        self.resends += 1;
        self.patience = (self.patience * 2).min(MOST_PATIENCE.max(self.patience_base));
        self.deadline = now + self.patience;
        self.window_sent = None; // an ACK could now be for either copy (Karn)
        self.send_again();
    }

    /// The same request came again from the same port.
    pub fn repeat(&mut self, now: Instant) -> Repeat {
        if self.outcome.is_some() {
            Repeat::Restart
        } else if !self.heard {
            self.window_sent = None;
            self.send_again();
            Repeat::Resent
        } else if now.duration_since(self.last_heard) < COPY_TIME {
            Repeat::Copy
        } else {
            Repeat::Restart
        }
    }

    /// Ends the transfer because the client is gone. When all that is missing
    /// is the ACK of what was sent last, the file has arrived as far as
    /// anybody can know: firmware starts a loader without a last ACK.
    pub fn abandon(&mut self) {
        if self.outcome.is_none() {
            self.outcome = Some(if self.heard && self.agreed && self.sent == self.last {
                Outcome::Complete {
                    bytes: self.size_bytes,
                }
            } else {
                Outcome::TimedOut {
                    bytes: self.acked_bytes(),
                }
            });
        }
    }

    /// Ends the transfer because we cannot go on.
    pub fn fail(&mut self, reason: impl Into<String>) {
        if self.outcome.is_none() {
            self.outcome = Some(Outcome::Failed {
                reason: reason.into(),
                bytes: self.acked_bytes(),
            });
        }
    }

    /// How it ended; `None` while it runs.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Blocks handed out more than once.
    pub fn resent_blocks(&self) -> u64 {
        self.resent_blocks
    }

    fn acknowledge(&mut self, block: u16, now: Instant) {
        if !self.agreed {
            if block == 0 {
                self.agreed = true;
                self.measure(now);
                self.progress(now);
            }
            return;
        }
        let ahead = u64::from(block.wrapping_sub(on_the_wire(self.acked)));
        if ahead > self.sent - self.acked {
            return; // of an earlier window, or of a block never sent
        }
        if ahead == 0 {
            self.acknowledged_again();
            return;
        }
        if self.acked + ahead == self.next - 1 {
            self.measure(now);
        }
        self.acked += ahead;
        // An ACK inside the window says: the next one is missing (RFC 7440
        // section 4). At its end both are the same.
        self.next = self.acked + 1;
        self.resent_before = self.resent_here;
        self.resent_here = false;
        self.progress(now);
        if self.acked == self.last {
            self.outcome = Some(Outcome::Complete {
                bytes: self.size_bytes,
            });
        }
    }

    /// The ACK that opened this window came again. In lock-step that says
    /// nothing (RFC 1123 section 4.2.3.1). With windows it is how a client
    /// tells that the first block is missing, so the window goes out again;
    /// but not for two windows in a row, or one ACK doubled by the network
    /// would double every window to the end of the file.
    fn acknowledged_again(&mut self) {
        let in_flight = self.next > self.acked + 1;
        if self.terms.window_blocks > 1 && in_flight && !self.resent_here && !self.resent_before {
            self.resent_here = true;
            self.window_sent = None;
            self.send_again();
        }
    }

    fn send_again(&mut self) {
        if self.agreed {
            self.next = self.acked + 1;
        } else {
            self.option_ack_due = true;
        }
    }

    fn sending(&mut self, now: Instant) {
        self.deadline = now + self.patience;
        let first_of_window = !self.agreed || self.next == self.acked + 2;
        if first_of_window && self.resends == 0 && !self.resent_here {
            self.window_sent = Some(now);
        }
    }

    /// The retransmission time follows the client's, as TCP's does (RFC 6298
    /// section 2).
    fn measure(&mut self, now: Instant) {
        let Some(begun) = self.window_sent.take() else {
            return;
        };
        let sample = now.duration_since(begun);
        let (smooth, variation) = match self.round_trip {
            None => (sample, sample / 2),
            Some((smooth, variation)) => (
                (smooth * 7 + sample) / 8,
                (variation * 3 + smooth.abs_diff(sample)) / 4,
            ),
        };
        self.round_trip = Some((smooth, variation));
        if self.terms.timeout.is_none() {
            let room = (variation * 4).max(smooth);
            self.patience_base = (smooth + room).clamp(LEAST_PATIENCE, FIRST_PATIENCE);
        }
    }

    fn progress(&mut self, now: Instant) {
        self.last_progress = now;
        self.resends = 0;
        self.patience = self.patience_base;
        self.deadline = now + self.patience;
    }

    fn acked_bytes(&self) -> u64 {
        (self.acked * u64::from(self.terms.block_bytes)).min(self.size_bytes)
    }
}

/// A block's number in the 16 bits of the packet: 65535 is followed by 0.
fn on_the_wire(block: u64) -> u16 {
    let [.., high, low] = block.to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests;
