//! CHAP, one-way and mutual (RFC 7143 sections 9.2.1 and 12.1.3, RFC 1994).
//!
//! Owns no login: [`login`](crate::login) says when a challenge is issued and
//! what came back.
//!
//! Invariant: no challenge of ours is ever answered by ourselves. A peer that
//! sends one back, over whichever connection, is refused.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

use crate::{ChapAlgorithm, ChapSecrets, Secret, keys};

/// Length of our challenges.
pub(crate) const CHALLENGE_BYTES: usize = 16;
/// Longest binary value a peer may send (RFC 7143 section 12.1.3).
const MAX_BINARY_BYTES: usize = 1024;

impl ChapAlgorithm {
    /// The number that names it in CHAP_A.
    pub(crate) fn number(self) -> &'static str {
        match self {
            ChapAlgorithm::Md5 => "5",
            ChapAlgorithm::Sha1 => "6",
            ChapAlgorithm::Sha256 => "7",
            ChapAlgorithm::Sha3_256 => "8",
        }
    }

    /// The first of an initiator's list (CHAP_A) that is `allowed`.
    pub(crate) fn pick(list: &str, allowed: &[ChapAlgorithm]) -> Option<ChapAlgorithm> {
        list.split(',').find_map(|number| {
            let is_it = |algorithm: &&ChapAlgorithm| algorithm.number() == number;
            allowed.iter().find(is_it).copied()
        })
    }

    /// The response to a challenge (RFC 1994 section 4.1).
    fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        fn digest<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let start = D::new();
            let all = parts
                .iter()
                .fold(start, |hash, part| hash.chain_update(part));
            all.finalize().to_vec()
        }
        let parts = [&[identifier], secret.as_bytes(), challenge];
        match self {
            ChapAlgorithm::Md5 => digest::<Md5>(parts),
            ChapAlgorithm::Sha1 => digest::<Sha1>(parts),
            ChapAlgorithm::Sha256 => digest::<Sha256>(parts),
            ChapAlgorithm::Sha3_256 => digest::<Sha3_256>(parts),
        }
    }
}

/// The challenges of all logins that are under way.
#[derive(Clone, Default)]
pub(crate) struct Challenges(Arc<Mutex<HashSet<Vec<u8>>>>);

impl Challenges {
    /// Issues a challenge of fresh random bytes; `None` when they are not.
    pub(crate) fn issue(
        &self,
        algorithm: ChapAlgorithm,
        random: [u8; CHALLENGE_BYTES + 1],
    ) -> Option<Challenge> {
        let [identifier, bytes @ ..] = random;
        self.issue_these(algorithm, identifier, bytes.to_vec())
    }

    fn issue_these(
        &self,
        algorithm: ChapAlgorithm,
        identifier: u8,
        bytes: Vec<u8>,
    ) -> Option<Challenge> {
        self.lock().insert(bytes.clone()).then(|| Challenge {
            algorithm,
            identifier,
            bytes,
            issued: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A challenge that was sent. Answered once: whoever fails needs a new login,
/// and gets a new challenge. Kept until that login is over.
pub(crate) struct Challenge {
    algorithm: ChapAlgorithm,
    identifier: u8,
    bytes: Vec<u8>,
    issued: Challenges,
}

impl Drop for Challenge {
    fn drop(&mut self) {
        self.issued.lock().remove(&self.bytes);
    }
}

/// What the initiator sent in answer to a challenge: texts as they came.
pub(crate) struct Proof<'a> {
    /// CHAP_R.
    pub(crate) response: &'a str,
    /// CHAP_I and CHAP_C, of an initiator that wants our proof.
    pub(crate) identifier: Option<&'a str>,
    pub(crate) challenge: Option<&'a str>,
}

/// Why a proof is none.
pub(crate) type Flaw = &'static str;

impl Challenge {
    /// CHAP_I.
    pub(crate) fn identifier(&self) -> String {
        self.identifier.to_string()
    }

    /// CHAP_C.
    pub(crate) fn text(&self) -> String {
        hexadecimal_text(&self.bytes)
    }

    /// Checks the initiator's proof; our name and response (CHAP_N, CHAP_R)
    /// where it wants ours.
    pub(crate) fn check(
        &self,
        proof: &Proof<'_>,
        secrets: &ChapSecrets,
    ) -> Result<Option<(String, String)>, Flaw> {
        let response = |secret| {
            self.algorithm
                .response(self.identifier, secret, &self.bytes)
        };
        let given = binary(proof.response).ok_or("the CHAP response is no binary value")?;
        // A length is no secret; the bytes are compared in constant time.
        if !bool::from(given.ct_eq(&response(&secrets.initiator))) {
            return Err("wrong CHAP secret");
        }
        if let Some((_, ours)) = &secrets.target
            && bool::from(given.ct_eq(&response(ours)))
        {
            return Err("the CHAP secrets of initiator and target must differ");
        }
        let (identifier, challenge) = match (proof.identifier, proof.challenge) {
            (None, None) => return Ok(None),
            (Some(identifier), Some(challenge)) => (identifier, challenge),
            _ => return Err("half a CHAP challenge"),
        };
        let identifier = keys::number(identifier).and_then(|number| u8::try_from(number).ok());
        let identifier = identifier.ok_or("the CHAP identifier is no byte")?;
        let challenge = binary(challenge).ok_or("the CHAP challenge is no binary value")?;
        if self.issued.lock().contains(&challenge) {
            return Err("a CHAP challenge of our own was sent back");
        }
        let (name, secret) = secrets.target.as_ref().ok_or("no secret for mutual CHAP")?;
        let response = self.algorithm.response(identifier, secret, &challenge);
        Ok(Some((name.clone(), hexadecimal_text(&response))))
    }
}

fn hexadecimal_text(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads a binary value: 0x and hexadecimal, or 0b and base64 (RFC 7143
/// section 6.1).
pub(crate) fn binary(text: &str) -> Option<Vec<u8>> {
    let (base, digits) = text.split_at_checked(2)?;
    if digits.is_empty() || digits.len() > 2 * MAX_BINARY_BYTES {
        return None;
    }
    let bytes = match base {
        "0x" | "0X" => hexadecimal(digits)?,
        "0b" | "0B" => base64(digits)?,
        _ => return None,
    };
    (bytes.len() <= MAX_BINARY_BYTES).then_some(bytes)
}

/// Hexadecimal digits; an odd number of them starts with half a byte.
fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let mut nibbles = Vec::with_capacity(digits.len() + 1);
    if digits.len() % 2 == 1 {
        nibbles.push(0);
    }
    for digit in digits.chars() {
        nibbles.push(u8::try_from(digit.to_digit(16)?).ok()?);
    }
    Some(
        nibbles
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// Base64 (RFC 4648 section 4), padded.
fn base64(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let body = digits.trim_end_matches('=');
    if digits.len() - body.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(body.len());
    let (mut bits, mut held) = (0u32, 0u32);
    for digit in body.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(((bits >> held) & 0xff).to_be_bytes()[3]);
        }
    }
    // What is left over of the last digit says nothing, and so must be zero.
    let rest = bits & ((1 << held) - 1);
    (rest == 0 && held < 6).then_some(bytes)
}

#[cfg(test)]
mod tests;
