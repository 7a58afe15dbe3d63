//! Being there and going: pings both ways, and logout (RFC 7143 sections 11.9,
//! 11.14, 11.15, 11.18 and 11.19).

use std::sync::atomic::Ordering;

use super::numbering::{HOLE, Order};
use super::{Next, Session, async_event, reason};
use crate::outbox::Outbox;
use crate::wire::{AsyncMessage, Bhs, LogoutRequest, LogoutResponse, NO_TAG, NopIn, NopOut};

impl Session<'_> {
    pub(super) fn nop_out(&mut self, pdu: &NopOut, data: &[u8], out: &mut Outbox<'_>) -> Next {
        self.stats.answers_pings.store(true, Ordering::Relaxed);
        self.has_answered_ping |= pdu.ttt != NO_TAG;
        match self.number(pdu.immediate, pdu.cmd_sn) {
            Order::Now => {}
            Order::Ignore => return Next::Continue,
            Order::Hole => return HOLE,
        }
        if pdu.itt == NO_TAG {
            return Next::Continue; // wants no answer
        }
        let longest = usize::try_from(self.parameters.max_send_data_segment_length);
        let data = &data[..data.len().min(longest.unwrap_or(usize::MAX))];
        let nop_in = NopIn {
            lun: [0; 8],
            itt: pdu.itt,
            ttt: NO_TAG,
            numbers: self.status_numbers(),
        };
        out.pdu(&nop_in.emit(data.len()), data);
        Next::Continue
    }

    /// Asks an initiator that says nothing whether it is there.
    pub(crate) fn ping(&mut self, out: &mut Outbox<'_>) {
        let nop_in = NopIn {
            lun: [0; 8],
            itt: NO_TAG,
            ttt: self.next_ttt(),
            numbers: self.numbers(),
        };
        out.header(&nop_in.emit(0));
    }

    /// Whether it has ever answered that.
    pub(crate) fn has_answered_ping(&self) -> bool {
        self.has_answered_ping
    }

    /// Asks the initiator, once, to log out within so many seconds (RFC 7143
    /// section 11.9.1); but not one that knows no pings, as iPXE.
    pub(crate) fn request_logout(&mut self, seconds: u16, out: &mut Outbox<'_>) {
        if self.is_asked_to_leave || !self.stats.answers_pings.load(Ordering::Relaxed) {
            return;
        }
        self.is_asked_to_leave = true;
        let message = AsyncMessage {
            event: async_event::REQUEST_LOGOUT,
            parameters: [0, 0, seconds],
            numbers: self.status_numbers(),
        };
        out.header(&message.emit());
    }

    pub(super) fn logout(&mut self, pdu: &LogoutRequest, bhs: &Bhs, out: &mut Outbox<'_>) -> Next {
        let response = match pdu.reason {
            0 => 0,
            1 if pdu.cid == self.cid => 0, // the one connection is the session
            1 => 1,                        // there is no such connection
            2 => 2,                        // recovery is not supported
            _ => {
                self.reject(reason::INVALID_FIELD, bhs, out);
                return Next::Continue;
            }
        };
        let closes = response == 0;
        if closes {
            self.end_tasks(|_, _| true);
            // Who hears the response may count on it: no reservation is left.
            self.leave();
        }
        let response = LogoutResponse {
            response,
            itt: pdu.itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
        if closes { Next::Close } else { Next::Continue }
    }
}
