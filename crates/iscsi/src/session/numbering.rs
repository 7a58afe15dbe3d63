//! Command numbering (RFC 7143 section 4.2.2): which request comes when, and
//! the numbers of every answer.

use super::{Next, Session};
use crate::wire::{Numbers, is_before};

/// A hole in the command numbers: on one connection without recovery nothing
/// can fill it.
pub(super) const HOLE: Next = Next::Broken("a command number was left out");

/// Where a request stands in the order of commands.
pub(super) enum Order {
    Now,
    Ignore,
    Hole,
}

impl Session<'_> {
    /// Places a request in the order of commands.
    pub(super) fn number(&mut self, immediate: bool, cmd_sn: u32) -> Order {
        if immediate {
            return Order::Now;
        }
        if is_before(self.max_cmd_sn, cmd_sn) || is_before(cmd_sn, self.exp_cmd_sn) {
            return Order::Ignore;
        }
        if cmd_sn != self.exp_cmd_sn {
            return Order::Hole;
        }
        self.exp_cmd_sn = cmd_sn.wrapping_add(1);
        if !self.given_up.is_empty() {
            self.skip_given_up();
        }
        Order::Now
    }

    /// Counts commands that will not come as come.
    pub(super) fn skip_given_up(&mut self) {
        let given_up = &mut self.given_up;
        while let Some(place) = given_up.iter().position(|sn| *sn == self.exp_cmd_sn) {
            given_up.swap_remove(place);
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        }
        given_up.retain(|sn| !is_before(*sn, self.exp_cmd_sn));
    }

    /// Commands that have come and not ended.
    pub(super) fn busy(&self) -> usize {
        self.tasks.len() + self.running.len() + self.sequence.len()
    }

    /// The numbers of a PDU that does not consume a StatSN.
    pub(super) fn numbers(&mut self) -> Numbers {
        let busy = u32::try_from(self.busy()).unwrap_or(u32::MAX);
        let free = self.window.saturating_sub(busy);
        let max_cmd_sn = self.exp_cmd_sn.wrapping_add(free).wrapping_sub(1);
        if is_before(self.max_cmd_sn, max_cmd_sn) {
            self.max_cmd_sn = max_cmd_sn; // it never shrinks
        }
        Numbers {
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        }
    }

    /// The numbers of a PDU that carries status.
    pub(super) fn status_numbers(&mut self) -> Numbers {
        let numbers = self.numbers();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }
}
