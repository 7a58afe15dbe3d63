//! Versions of kernels in the order of their age (as rpm and GRUB compare).

use std::cmp::Ordering;

/// Which of two names with versions in them is the older one.
///
/// Runs of digits count as numbers, runs of letters as letters, and a number
/// is newer than letters; `~` is before everything, even the end.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let is_rest = |byte: &u8| !byte.is_ascii_alphanumeric() && *byte != b'~';
        a = &a[a.iter().take_while(|byte| is_rest(byte)).count()..];
        b = &b[b.iter().take_while(|byte| is_rest(byte)).count()..];
        match (a.first(), b.first()) {
            (Some(b'~'), Some(b'~')) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (Some(b'~'), _) => return Ordering::Less,
            (_, Some(b'~')) => return Ordering::Greater,
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            _ => {}
        }
        let (first_a, rest_a) = run(a);
        let (first_b, rest_b) = run(b);
        let is_number = |run: &[u8]| run.first().is_some_and(u8::is_ascii_digit);
        let order = match (is_number(first_a), is_number(first_b)) {
            (true, true) => {
                let (a, b) = (significant(first_a), significant(first_b));
                a.len().cmp(&b.len()).then_with(|| a.cmp(b))
            }
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => first_a.cmp(first_b),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The digits, or the letters, that something begins with, and the rest.
fn run(bytes: &[u8]) -> (&[u8], &[u8]) {
    let is_digits = bytes.first().is_some_and(u8::is_ascii_digit);
    let is_same = |byte: &&u8| match is_digits {
        true => byte.is_ascii_digit(),
        false => byte.is_ascii_alphabetic(),
    };
    bytes.split_at(bytes.iter().take_while(is_same).count())
}

fn significant(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_ordered_by_age() {
        let ages = [
            "vmlinuz-4.9.0-19-amd64",
            "vmlinuz-5.10.0-9-amd64",
            "vmlinuz-5.10.0-28-amd64",
            "vmlinuz-6.1.0~rc3-amd64",
            "vmlinuz-6.1.0-amd64",
            "vmlinuz-6.1.0-18-amd64",
            "vmlinuz-6.10.0-1-amd64",
        ];
        for (older, newer) in ages.iter().zip(&ages[1..]) {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater);
        }
        assert_eq!(compare("a-007", "a_7"), Ordering::Equal);
    }
}
