//! Whether a quiet initiator is still there (RFC 7143 section 11.19): when to
//! ping it, and what its silence means.
//!
//! One that has answered a ping before and does not now is gone. One that has
//! never answered any (iPXE) is left in peace after a few.

use std::time::{Duration, Instant};

/// Pings an initiator that answers none gets.
const MAX_UNANSWERED: u32 = 3;

/// What is known of a connection's life.
pub(super) struct Pulse {
    /// How long it may be quiet before it is pinged.
    interval: Duration,
    /// How long an answer may take.
    timeout: Duration,
    quiet_since: Option<Instant>,
    pinged_at: Option<Instant>,
    unanswered: u32,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Wait, for so long at most.
    Wait(Option<Duration>),
    /// Ping.
    Ping,
    /// Give it up.
    Dead,
}

impl Pulse {
    pub(super) fn new(interval: Duration, timeout: Duration) -> Pulse {
        Pulse {
            interval,
            timeout,
            quiet_since: None,
            pinged_at: None,
            unanswered: 0,
        }
    }

    /// Whether nothing has come for a while.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet_since.is_some()
    }

    /// Something has come.
    pub(super) fn heard(&mut self) {
        self.quiet_since = None;
        self.pinged_at = None;
    }

    /// Nothing has come since then.
    pub(super) fn is_quiet_since(&mut self, since: Instant) {
        self.quiet_since.get_or_insert(since);
    }

    /// What to do now; `answers` tells whether it has ever answered a ping.
    pub(super) fn beat(&mut self, now: Instant, answers: bool) -> Beat {
        let Some(since) = self.quiet_since else {
            return Beat::Wait(None);
        };
        let due = match self.pinged_at {
            Some(pinged_at) => pinged_at + self.timeout,
            None if !answers && self.unanswered >= MAX_UNANSWERED => return Beat::Wait(None),
            None => since + self.interval,
        };
        if now < due {
            return Beat::Wait(Some(due - now));
        }
        match self.pinged_at {
            None => {
                self.pinged_at = Some(now);
                Beat::Ping
            }
            Some(_) if answers => Beat::Dead,
            Some(_) => {
                self.unanswered += 1;
                self.pinged_at = None;
                self.quiet_since = Some(now);
                Beat::Wait(Some(self.interval))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pulse() -> (Pulse, Instant) {
        let start = Instant::now();
        let mut pulse = Pulse::new(15 * SECOND, 30 * SECOND);
        assert_eq!(pulse.beat(start, true), Beat::Wait(None));
        pulse.is_quiet_since(start);
        (pulse, start)
    }

    #[test]
    fn who_answered_before_and_does_not_now_is_given_up() {
        let (mut pulse, start) = pulse();
        let left = Beat::Wait(Some(14 * SECOND));
        assert_eq!(pulse.beat(start + SECOND, true), left);
        assert_eq!(pulse.beat(start + 15 * SECOND, true), Beat::Ping);
        let left = Beat::Wait(Some(SECOND));
        assert_eq!(pulse.beat(start + 44 * SECOND, true), left);
        assert_eq!(pulse.beat(start + 45 * SECOND, true), Beat::Dead);
    }

    #[test]
    fn whatever_comes_is_a_sign_of_life() {
        let (mut pulse, start) = pulse();
        assert_eq!(pulse.beat(start + 15 * SECOND, true), Beat::Ping);
        pulse.heard();
        assert_eq!(pulse.beat(start + 99 * SECOND, true), Beat::Wait(None));
    }

    #[test]
    fn who_never_answers_is_asked_a_few_times_and_never_given_up() {
        let (mut pulse, start) = pulse();
        let mut pings = 0;
        for second in 0..1000 {
            match pulse.beat(start + second * SECOND, false) {
                Beat::Ping => pings += 1,
                Beat::Wait(_) => {}
                Beat::Dead => panic!("it has never promised to answer"),
            }
        }
        assert_eq!(pings, MAX_UNANSWERED);
        let at_last = pulse.beat(start + 1000 * SECOND, false);
        assert_eq!(
            at_last,
            Beat::Wait(None),
            "nothing wakes the thread any more"
        );
    }
}
