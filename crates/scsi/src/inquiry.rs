//! Who a logical unit says it is (SPC-4 section 6.6 and 7.8).

/// Vendor of every unit, 8 characters.
pub(crate) const VENDOR: &[u8; 8] = b"DISKLESS";

/// What makes a logical unit recognisable; equal on every path to it and in
/// every session, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unit serial number (VPD page 80h), printable ASCII.
    pub serial: String,
    /// The source of its NAA designator (VPD page 83h).
    pub uuid: [u8; 16],
    /// Product, at most 16 printable ASCII characters.
    pub product: String,
}

impl Identity {
    /// The identity that follows from a UUID: its serial is the UUID in hex.
    pub fn new(uuid: [u8; 16], product: &str) -> Identity {
        let serial = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        Identity {
            serial,
            uuid,
            product: product.to_owned(),
        }
    }

    /// NAA 3h, locally assigned: 60 bits of the UUID. Those of its end, for
    /// a time-ordered UUID differs there.
    pub(crate) fn naa(&self) -> [u8; 8] {
        let mut naa = [0u8; 8];
        naa.copy_from_slice(&self.uuid[8..]);
        naa[0] = 0x30 | (self.uuid[8] & 0x0f);
        naa
    }
}
