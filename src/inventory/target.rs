//! Plain targets: files and drives served to whoever may open them, apart from
//! any machine.

use std::fmt;

use super::{Error, Result};

/// Shortest CHAP secret (RFC 7143 section 9.2.1: 96 bits where nothing else
/// protects the wire).
const SECRET_MIN_BYTES: usize = 12;
/// Longest CHAP name and secret: a text value of the login phase.
const CHAP_MAX_BYTES: usize = 255;

/// What a file is shown as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UnitKind {
    /// A fixed disk, fully provisioned.
    #[default]
    Disk,
    /// A fixed disk whose initiators give space back.
    Thin,
    /// A fixed disk that nobody writes.
    ReadOnly,
    /// A disk whose medium can be ejected.
    Removable,
    /// A CD or DVD drive with the file as its disc.
    Optical,
}

impl UnitKind {
    /// Whether initiators may write it.
    pub(crate) fn is_writable(self) -> bool {
        match self {
            UnitKind::Disk | UnitKind::Thin | UnitKind::Removable => true,
            UnitKind::ReadOnly | UnitKind::Optical => false,
        }
    }
}

/// What an initiator proves with CHAP, one way.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Chap {
    /// CHAP_N.
    pub(crate) name: String,
    /// Known to both ends.
    pub(crate) secret: String,
}

impl Chap {
    /// Checks a name and a secret.
    pub(crate) fn new(name: &str, secret: &str) -> Result<Chap> {
        let fits =
            |text: &str| !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        if !fits(name) || name.len() > CHAP_MAX_BYTES || name.contains(':') {
            return Err(Error::Invalid(format!(
                "{name:?} is not a CHAP name: use 1 to {CHAP_MAX_BYTES} letters, digits and signs, \
                 without \":\""
            )));
        }
        if !fits(secret) || !(SECRET_MIN_BYTES..=CHAP_MAX_BYTES).contains(&secret.len()) {
            return Err(Error::Invalid(format!(
                "the CHAP secret of {name:?} must have {SECRET_MIN_BYTES} to {CHAP_MAX_BYTES} \
                 letters, digits and signs (Windows takes 12 to 16)"
            )));
        }
        Ok(Chap {
            name: name.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// Reads `NAME:SECRET`.
    pub(crate) fn parse(text: &str) -> Result<Chap> {
        let (name, secret) = text
            .split_once(':')
            .ok_or_else(|| Error::Invalid("write CHAP as NAME:SECRET".to_owned()))?;
        Chap::new(name, secret)
    }
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chap({:?}, ..)", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chap_secret_has_12_bytes_at_least_and_is_not_shown() {
        let chap = Chap::parse("pc:twelve bytes:").unwrap();
        assert_eq!((&*chap.name, &*chap.secret), ("pc", "twelve bytes:"));
        assert!(!format!("{chap:?}").contains("twelve"));
        for wrong in [
            "pc",
            "pc:",
            ":twelve bytes",
            "pc:eleven byte",
            "p\nc:twelve bytes",
        ] {
            let refusal = Chap::parse(wrong).unwrap_err().to_string();
            assert!(!refusal.contains("eleven"), "{refusal}");
        }
    }
}
