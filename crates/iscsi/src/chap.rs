//! CHAP with MD5, one-way (RFC 7143 section 12.1.3, RFC 1994).

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use crate::Secret;

/// CHAP_A of MD5.
pub(crate) const MD5: &str = "5";
/// Length of our challenges.
pub(crate) const CHALLENGE_BYTES: usize = 16;
/// Longest binary value a peer may send (RFC 7143 section 12.1.3).
const MAX_BINARY_BYTES: usize = 1024;

/// A challenge that was sent and not answered yet. Answered once: whoever
/// fails needs a new login, and gets a new challenge.
pub(crate) struct Challenge {
    identifier: u8,
    bytes: [u8; CHALLENGE_BYTES],
}

impl Challenge {
    /// A challenge of fresh random bytes.
    pub(crate) fn new(random: [u8; CHALLENGE_BYTES + 1]) -> Challenge {
        let [identifier, bytes @ ..] = random;
        Challenge { identifier, bytes }
    }

    /// CHAP_I.
    pub(crate) fn identifier(&self) -> String {
        self.identifier.to_string()
    }

    /// CHAP_C.
    pub(crate) fn text(&self) -> String {
        self.bytes
            .iter()
            .fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// Whether `response` (CHAP_R) shows the secret.
    pub(crate) fn is_answered(&self, secret: &Secret, response: &str) -> bool {
        let expected = Md5::new()
            .chain_update([self.identifier])
            .chain_update(secret.as_bytes())
            .chain_update(self.bytes)
            .finalize();
        match binary(response) {
            // A length is no secret; the bytes are compared in constant time.
            Some(given) => bool::from(given.ct_eq(expected.as_slice())),
            None => false,
        }
    }
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
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fact sheet's vector: id 0x17, challenge 00..0F.
    fn challenge() -> Challenge {
        Challenge {
            identifier: 0x17,
            bytes: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        }
    }

    #[test]
    fn the_right_response_passes_in_hex_of_any_case_and_in_base64() {
        let secret = Secret::new("secretsecret1");
        let challenge = challenge();
        assert_eq!(challenge.text(), "0x000102030405060708090a0b0c0d0e0f");
        for response in [
            "0x340b0fd5bfcb7192f50ef966404d6f16",
            "0x340B0FD5BFCB7192F50EF966404D6F16",
            "0bNAsP1b/LcZL1DvlmQE1vFg==",
        ] {
            assert!(challenge.is_answered(&secret, response), "{response}");
        }
    }

    #[test]
    fn a_wrong_short_or_overlong_response_fails() {
        let secret = Secret::new("secretsecret1");
        for response in [
            "0x340b0fd5bfcb7192f50ef966404d6f17",
            "0x340b0fd5bfcb7192f50ef966404d6f",
            "0x340b0fd5bfcb7192f50ef966404d6f1600",
            "0bNAsP1b/LcZL1DvlmQE1vFgAA",
            "340b0fd5bfcb7192f50ef966404d6f16",
            "0x",
            "",
        ] {
            assert!(!challenge().is_answered(&secret, response), "{response}");
        }
    }

    #[test]
    fn an_odd_number_of_digits_starts_with_half_a_byte() {
        assert_eq!(binary("0x123"), Some(vec![0x01, 0x23]));
    }

    #[test]
    fn a_binary_value_has_1024_bytes_at_most() {
        assert!(binary(&format!("0x{}", "00".repeat(1024))).is_some());
        assert!(binary(&format!("0x{}", "00".repeat(1025))).is_none());
    }
}
