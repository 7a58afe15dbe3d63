//! SANITIZE: what is asked for, and how far it has come (SBC-3 sections 4.11
//! and 5.22).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Sense;

/// Bytes before the pattern in the parameter list of OVERWRITE.
pub(crate) const HEADER_BYTES: u16 = 4;

/// SANITIZE's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sanitize {
    /// Service action.
    pub action: SanitizeAction,
    /// IMMED: answered when it has begun.
    pub immediate: bool,
    /// AUSE: EXIT FAILURE MODE may end a failed one.
    pub unrestricted_exit: bool,
    /// Parameter list length.
    pub list_bytes: u16,
}

/// SANITIZE's service actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanitizeAction {
    /// OVERWRITE.
    Overwrite,
    /// BLOCK ERASE.
    BlockErase,
    /// EXIT FAILURE MODE.
    ExitFailureMode,
}

/// What OVERWRITE writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overwrite {
    /// Repeated from the start of every block.
    pub(crate) pattern: Vec<u8>,
    /// How often, 1 to 31.
    pub(crate) passes: u8,
    /// Every other pass writes the contrary.
    pub(crate) invert: bool,
}

impl Overwrite {
    /// Parses the parameter list.
    pub(crate) fn parse(list: &[u8]) -> Result<Overwrite, Sense> {
        let wrong = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
        let [flags, 0, high, low, pattern @ ..] = list else {
            return Err(wrong);
        };
        let overwrite = Overwrite {
            pattern: pattern.to_vec(),
            passes: flags & 0x1f,
            invert: flags & 0x80 != 0,
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // TEST asks for what only a manufacturer knows.
        if flags & 0x60 != 0
            || overwrite.passes == 0
            || length == 0
            || length != overwrite.pattern.len()
        {
            return Err(wrong);
        }
        Ok(overwrite)
    }

    /// A block as pass `pass` (from 0) writes it. The last pass writes the
    /// pattern itself.
    pub(crate) fn block(&self, pass: u8, block_bytes: usize) -> Vec<u8> {
        let contrary = match self.invert && (self.passes - 1 - pass) % 2 == 1 {
            true => 0xff,
            false => 0,
        };
        let bytes = self.pattern.iter().map(|byte| byte ^ contrary);
        bytes.cycle().take(block_bytes).collect()
    }
}

/// How far a sanitize operation has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    pub(crate) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// In parts of 65536.
    pub(crate) fn now(&self) -> u16 {
        let done = u128::from(self.done.load(Ordering::Relaxed));
        let total = u128::from(self.total.load(Ordering::Relaxed).max(1));
        u16::try_from(done * 65_536 / total).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_starts_anew_with_every_block() {
        let overwrite = Overwrite::parse(&[1, 0, 0, 3, 1, 2, 3]).unwrap();
        assert_eq!(overwrite.block(0, 8), [1, 2, 3, 1, 2, 3, 1, 2]);
    }

    #[test]
    fn inverted_passes_end_with_the_pattern_itself() {
        let overwrite = Overwrite::parse(&[0x83, 0, 0, 1, 0x0f]).unwrap();
        let blocks = [0, 1, 2].map(|pass| overwrite.block(pass, 1)[0]);
        assert_eq!(blocks, [0x0f, 0xf0, 0x0f]);
    }

    #[test]
    fn a_list_that_says_nothing_to_write_is_refused() {
        for list in [
            &[0, 0, 0, 1, 9][..], // no pass
            &[1, 0, 0, 0, 9],     // no pattern
            &[1, 0, 0, 2, 9],     // half of it
            &[1, 1, 0, 1, 9],     // reserved
            &[0x21, 0, 0, 1, 9],  // TEST
            &[1, 0, 0],
        ] {
            assert!(Overwrite::parse(list).is_err(), "{list:?}");
        }
    }

    #[test]
    fn progress_is_told_in_parts_of_65536() {
        let progress = Progress::default();
        progress.begin(1 << 40);
        progress.advance(1 << 39);
        assert_eq!(progress.now(), 32_768);
        progress.advance(1 << 39);
        assert_eq!(progress.now(), u16::MAX);
    }
}
