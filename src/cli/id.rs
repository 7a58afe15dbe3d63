//! Ids on the command line, with words for who has another one at hand.

use uuid::Uuid;

/// The id of a job.
pub(super) fn job(text: &str) -> Result<Uuid, String> {
    let refused = "not the id of a job: `diskless job list` shows them";
    Uuid::parse_str(text).map_err(|_| refused.to_owned())
}

/// A PC's own UUID.
pub(super) fn smbios(text: &str) -> Result<Uuid, String> {
    let refused = "not a UUID: 32 hexadecimal digits, as the PC's firmware or \
                   `dmidecode -s system-uuid` shows it";
    Uuid::parse_str(text).map_err(|_| refused.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_with_and_without_dashes_in_either_case() {
        let id = Uuid::from_u128(0x4c4c_4544_0035_4a10_8051_b7c0_4f4e_3732);
        for text in [
            "4c4c4544-0035-4a10-8051-b7c04f4e3732",
            "4C4C4544-0035-4A10-8051-B7C04F4E3732",
            "4c4c454400354a108051b7c04f4e3732",
        ] {
            assert_eq!((job(text), smbios(text)), (Ok(id), Ok(id)), "{text}");
        }
    }
}
