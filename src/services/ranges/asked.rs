//! The `Range` header (RFC 9110 section 14).

use axum::http::HeaderValue;

/// Ranges of one request that are answered one by one; who asks for more gets
/// everything.
const RANGES_MAX: usize = 16;

/// What a `Range` header asks of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Whole,
    /// Of each the first byte, and one past the last. There is at least one,
    /// and none is empty.
    Parts(Vec<(u64, u64)>),
    Unsatisfiable,
}

/// Reads the header. What makes no sense is ignored, as the RFC has it; some
/// builds of iPXE say `bytes=u-u`. So is what would be sent more than once.
pub(super) fn parse(range: &HeaderValue, size: u64) -> Asked {
    let Some(list) = range.to_str().ok().and_then(of_bytes) else {
        return Asked::Whole;
    };
    let mut parts = Vec::new();
    let mut asked_bytes = 0_u64;
    for (index, asked) in list.split(',').enumerate() {
        if index >= RANGES_MAX {
            return Asked::Whole;
        }
        match part(asked, size) {
            None => return Asked::Whole,
            Some(None) => {}
            Some(Some((start, end))) => {
                asked_bytes = asked_bytes.saturating_add(end - start);
                parts.push((start, end));
            }
        }
    }
    match parts.as_slice() {
        [] => Asked::Unsatisfiable,
        [_] => Asked::Parts(parts),
        _ if asked_bytes > size => Asked::Whole,
        _ => Asked::Parts(parts),
    }
}

/// Units are compared without case (section 14.1).
fn of_bytes(header: &str) -> Option<&str> {
    let (unit, list) = header.trim().split_once('=')?;
    unit.trim_end()
        .eq_ignore_ascii_case("bytes")
        .then_some(list)
}

/// One range: `None` makes no sense, `Some(None)` lies outside.
fn part(asked: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = asked.trim().split_once('-')?;
    let part = match (first, last) {
        // The last n bytes.
        ("", last) => {
            let count = number(last)?.min(size);
            (size - count, size)
        }
        (first, "") => (number(first)?, size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    Some((part.0 < part.1).then_some(part))
}

/// Digits and nothing else (`parse` alone takes a sign). More than 64 bits
/// hold is past every end.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_ten(range: &str) -> Asked {
        parse(&range.parse().unwrap(), 10)
    }

    fn parts(parts: &[(u64, u64)]) -> Asked {
        Asked::Parts(parts.to_vec())
    }

    #[test]
    fn a_range_is_inclusive_at_both_ends() {
        assert_eq!(of_ten("bytes=2-4"), parts(&[(2, 5)]));
        assert_eq!(
            of_ten("Bytes = 0-0".replace(" ", "").as_str()),
            parts(&[(0, 1)])
        );
    }

    #[test]
    fn open_and_suffix_ranges_reach_to_the_end() {
        assert_eq!(of_ten("bytes=8-"), parts(&[(8, 10)]));
        assert_eq!(of_ten("bytes=-3"), parts(&[(7, 10)]));
        assert_eq!(of_ten("bytes=-30"), parts(&[(0, 10)]));
        assert_eq!(of_ten("bytes=8-99"), parts(&[(8, 10)]));
        assert_eq!(of_ten("bytes=8-99999999999999999999"), parts(&[(8, 10)]));
    }

    #[test]
    fn several_ranges_are_several_parts_without_those_outside() {
        let asked = parts(&[(0, 1), (4, 6), (9, 10)]);
        assert_eq!(of_ten("bytes=0-0, 4-5,20-30,-1"), asked);
        assert_eq!(of_ten("bytes=4-5,20-"), parts(&[(4, 6)]));
    }

    #[test]
    fn a_range_past_the_end_cannot_be_satisfied() {
        for range in [
            "bytes=10-12",
            "bytes=-0",
            "bytes=10-,11-",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(of_ten(range), Asked::Unsatisfiable, "{range}");
        }
        let of_nothing = |range: &str| parse(&range.parse().unwrap(), 0);
        assert_eq!(of_nothing("bytes=0-"), Asked::Unsatisfiable);
        assert_eq!(of_nothing("bytes=-1"), Asked::Unsatisfiable);
    }

    #[test]
    fn a_range_that_makes_no_sense_is_ignored() {
        for range in [
            "bytes=u-u",
            "bytes=4-2",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=-+2",
            "bytes=",
            "bytes=-",
            "bytes=1-2,",
            "bytes=1-2,x",
            "bytes 1-2",
            "bytes=1--2",
        ] {
            assert_eq!(of_ten(range), Asked::Whole, "{range}");
        }
        assert_eq!(
            parse(&HeaderValue::from_bytes(b"bytes=\xff-").unwrap(), 10),
            Asked::Whole
        );
    }

    #[test]
    fn nobody_is_sent_a_byte_more_often_than_once() {
        assert_eq!(of_ten("bytes=0-,0-"), Asked::Whole);
        assert_eq!(of_ten("bytes=0-4,5-9"), parts(&[(0, 5), (5, 10)]));
        let many = |count| format!("bytes={}", vec!["1-1"; count].join(","));
        let asked = |count| parse(&many(count).parse().unwrap(), 100);
        assert_eq!(asked(RANGES_MAX), Asked::Parts(vec![(1, 2); RANGES_MAX]));
        assert_eq!(asked(RANGES_MAX + 1), Asked::Whole);
    }
}
