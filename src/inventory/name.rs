//! Names of machines and images: lower-case DNS labels (RFC 1123 section 2.1).
//!
//! One rule for both, because either ends up in a path, an IQN, a CHAP name and
//! a host name.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use super::{Error, Result};

/// Longest name: a DNS label.
const NAME_MAX_BYTES: usize = 63;

/// A machine's or an image's name: a to z, 0 to 9 and `-` (not at the ends).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    /// Reads a name; refuses with a sentence that says what a name is.
    pub(crate) fn parse(text: &str) -> Result<Name> {
        let ok = !text.is_empty()
            && text.len() <= NAME_MAX_BYTES
            && !text.starts_with('-')
            && !text.ends_with('-')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if ok {
            return Ok(Name(text.to_owned()));
        }
        let shown: String = text.chars().take(NAME_MAX_BYTES + 1).collect();
        Err(Error::Invalid(format!(
            "{shown:?} is not a name: use 1 to {NAME_MAX_BYTES} of a-z, 0-9 and \"-\", \
             with a letter or digit at both ends (as in \"pc07\")"
        )))
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_lower_case_dns_label() {
        for good in [
            "pc07",
            "win11",
            "a",
            "7",
            "new-525400123456",
            &"x".repeat(63),
        ] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "PC07",
            "-a",
            "a-",
            "a.b",
            "a/b",
            "..",
            "ä",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
