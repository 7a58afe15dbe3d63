//! iSCSI names (RFC 7143 section 4.2.7, RFC 3722).

use std::fmt;

/// Longest iSCSI name in bytes (RFC 7143 section 4.2.7.2).
const MAX_NAME_BYTES: usize = 223;

/// An iSCSI name, lower-cased and checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Iqn(String);

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or longer than 223 bytes.
    #[error("an iSCSI name has 1 to 223 bytes")]
    Length,
    /// Neither `iqn.`, `eui.` nor `naa.`.
    #[error("an iSCSI name starts with iqn., eui. or naa.")]
    Type,
    /// A character that RFC 3722 forbids.
    #[error("an iSCSI name has only letters, digits, '-', '_', '.' and ':'")]
    Character,
}

impl Iqn {
    /// Checks a name and lower-cases it (the ASCII part of RFC 3722's
    /// stringprep). Letters outside ASCII pass as they are, and so does the
    /// underscore, which the RFC forbids and people use.
    pub fn parse(name: &str) -> Result<Iqn, NameError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(NameError::Length);
        }
        let name = name.to_ascii_lowercase();
        let fits = |c: char| {
            c.is_ascii_lowercase()
                || c.is_ascii_digit()
                || matches!(c, '-' | '.' | ':' | '_')
                || (!c.is_ascii() && c.is_alphanumeric())
        };
        if !name.chars().all(fits) {
            return Err(NameError::Character);
        }
        let digits = |rest: &str, lengths: &[usize]| {
            lengths.contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let known = match name.split_once('.') {
            Some(("iqn", rest)) => !rest.is_empty(),
            Some(("eui", rest)) => digits(rest, &[16]),
            Some(("naa", rest)) => digits(rest, &[16, 32]),
            _ => false,
        };
        if known {
            Ok(Iqn(name))
        } else {
            Err(NameError::Type)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_cased() {
        let name = Iqn::parse("IQN.2026-01.Test.Lab:D1").unwrap();
        assert_eq!(name.as_str(), "iqn.2026-01.test.lab:d1");
    }

    #[test]
    fn the_three_types_of_names_are_known_and_no_other() {
        assert!(Iqn::parse("eui.02004567A425678D").is_ok());
        assert!(Iqn::parse("naa.52004567BA64678D").is_ok());
        assert_eq!(Iqn::parse("eui.02"), Err(NameError::Type));
        assert_eq!(Iqn::parse("disk1"), Err(NameError::Type));
        assert_eq!(Iqn::parse("iqn."), Err(NameError::Type));
    }

    #[test]
    fn a_name_of_223_bytes_is_the_longest() {
        let name = |bytes: usize| format!("iqn.{}", "a".repeat(bytes - 4));
        assert!(Iqn::parse(&name(223)).is_ok());
        assert_eq!(Iqn::parse(&name(224)), Err(NameError::Length));
        assert_eq!(Iqn::parse(""), Err(NameError::Length));
    }

    #[test]
    fn blanks_slashes_and_control_characters_are_refused() {
        for name in ["iqn.a b", "iqn.a/b", "iqn.a\nb"] {
            assert_eq!(Iqn::parse(name), Err(NameError::Character), "{name:?}");
        }
    }
}
