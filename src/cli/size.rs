//! Sizes as people write them.

/// A size as people write it: `20G` is 20 GiB.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write it as in 20G, 1.5T or 21474836480");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let bytes = number(whole)?.checked_mul(1 << shift).ok_or_else(wrong)?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    // A part of a unit, to nine digits.
    if fraction.len() > 9 || shift == 0 {
        return Err(wrong());
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
    let part = (u128::from(number(fraction)?) << shift) / scale;
    // Whole blocks of whatever size.
    let part = u64::try_from(part).map_err(|_| wrong())? & !4095;
    bytes.checked_add(part).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_with_binary_units() {
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("1.5T"), Ok(3 << 39));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "G", "20X", "-1G", "1.5", "1.5.5G", "99999999P", "20 G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
