//! Sense: why a logical unit refused (SPC-4 section 4.5).

use disk::DiskError;

/// A SCSI refusal: sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key, 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// Byte of the CDB that was wrong, and the highest wrong bit in it.
    pub field: Option<(u8, u8)>,
    /// The INFORMATION field: what it means depends on the refusal.
    pub information: Option<u64>,
    /// How far the operation is that the unit is not ready for, in parts of
    /// 65536.
    pub progress: Option<u16>,
}

/// Which layout of sense data the initiator asked for (D_SENSE, DESC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenseFormat {
    /// Response code 70h, 18 bytes.
    Fixed,
    /// Response code 72h, with descriptors.
    Descriptor,
}

impl Sense {
    /// 0/00/00: nothing to report.
    pub const NONE: Sense = Sense::new(0x0, 0x00, 0x00);
    /// 2/04/1B: the unit is being sanitized.
    pub const SANITIZE_IN_PROGRESS: Sense = Sense::new(0x2, 0x04, 0x1b);
    /// 2/3A/00.
    pub const MEDIUM_NOT_PRESENT: Sense = Sense::new(0x2, 0x3a, 0x00);
    /// 2/3A/01: no medium, and the tray is closed.
    pub const MEDIUM_NOT_PRESENT_TRAY_CLOSED: Sense = Sense::new(0x2, 0x3a, 0x01);
    /// 2/3A/02: no medium, and the tray is open.
    pub const MEDIUM_NOT_PRESENT_TRAY_OPEN: Sense = Sense::new(0x2, 0x3a, 0x02);
    /// 3/0C/00.
    pub const WRITE_ERROR: Sense = Sense::new(0x3, 0x0c, 0x00);
    /// 3/11/00.
    pub const UNRECOVERED_READ_ERROR: Sense = Sense::new(0x3, 0x11, 0x00);
    /// 3/31/03: the unit could not be sanitized.
    pub const SANITIZE_FAILED: Sense = Sense::new(0x3, 0x31, 0x03);
    /// 4/44/00.
    pub const INTERNAL_TARGET_FAILURE: Sense = Sense::new(0x4, 0x44, 0x00);
    /// 5/00/16: a copy of this name is running.
    pub const OPERATION_IN_PROGRESS: Sense = Sense::new(0x5, 0x00, 0x16);
    /// 5/0E/03: the transport's expected length does not fit the command.
    pub const INVALID_FIELD_IN_COMMAND_IU: Sense = Sense::new(0x5, 0x0e, 0x03);
    /// 5/1A/00.
    pub const PARAMETER_LIST_LENGTH_ERROR: Sense = Sense::new(0x5, 0x1a, 0x00);
    /// 5/20/00.
    pub const INVALID_OPCODE: Sense = Sense::new(0x5, 0x20, 0x00);
    /// 5/21/00.
    pub const LBA_OUT_OF_RANGE: Sense = Sense::new(0x5, 0x21, 0x00);
    /// 5/24/00.
    pub const INVALID_FIELD_IN_CDB: Sense = Sense::new(0x5, 0x24, 0x00);
    /// 5/25/00.
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Sense = Sense::new(0x5, 0x25, 0x00);
    /// 5/26/00.
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Sense = Sense::new(0x5, 0x26, 0x00);
    /// 5/30/02: cannot read medium, incompatible format.
    pub const INCOMPATIBLE_FORMAT: Sense = Sense::new(0x5, 0x30, 0x02);
    /// 5/26/06.
    pub const TOO_MANY_TARGET_DESCRIPTORS: Sense = Sense::new(0x5, 0x26, 0x06);
    /// 5/26/07.
    pub const UNSUPPORTED_TARGET_DESCRIPTOR: Sense = Sense::new(0x5, 0x26, 0x07);
    /// 5/26/08.
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: Sense = Sense::new(0x5, 0x26, 0x08);
    /// 5/26/09.
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: Sense = Sense::new(0x5, 0x26, 0x09);
    /// 5/26/0B.
    pub const INLINE_DATA_LENGTH_EXCEEDED: Sense = Sense::new(0x5, 0x26, 0x0b);
    /// 5/26/04: not the scope and type that is held.
    pub const INVALID_RELEASE_OF_PERSISTENT_RESERVATION: Sense = Sense::new(0x5, 0x26, 0x04);
    /// 5/39/00.
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Sense = Sense::new(0x5, 0x39, 0x00);
    /// 5/53/02.
    pub const MEDIUM_REMOVAL_PREVENTED: Sense = Sense::new(0x5, 0x53, 0x02);
    /// 5/64/00.
    pub const ILLEGAL_MODE_FOR_THIS_TRACK: Sense = Sense::new(0x5, 0x64, 0x00);
    /// 5/6F/01: copy protection key exchange failure, key not present.
    pub const KEY_NOT_PRESENT: Sense = Sense::new(0x5, 0x6f, 0x01);
    /// 6/28/00: not ready to ready, the medium may have changed.
    pub const MEDIUM_MAY_HAVE_CHANGED: Sense = Sense::new(0x6, 0x28, 0x00);
    /// 5/55/03.
    pub const INSUFFICIENT_RESOURCES: Sense = Sense::new(0x5, 0x55, 0x03);
    /// 5/55/04: too many registered nexuses.
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Sense = Sense::new(0x5, 0x55, 0x04);
    /// 6/29/00: power on, reset, or a new session.
    pub const RESET_OCCURRED: Sense = Sense::new(0x6, 0x29, 0x00);
    /// 6/29/03: logical unit reset.
    pub const DEVICE_RESET_OCCURRED: Sense = Sense::new(0x6, 0x29, 0x03);
    /// 6/2A/01.
    pub const MODE_PARAMETERS_CHANGED: Sense = Sense::new(0x6, 0x2a, 0x01);
    /// 6/2A/03.
    pub const RESERVATIONS_PREEMPTED: Sense = Sense::new(0x6, 0x2a, 0x03);
    /// 6/2A/04.
    pub const RESERVATIONS_RELEASED: Sense = Sense::new(0x6, 0x2a, 0x04);
    /// 6/2A/05.
    pub const REGISTRATIONS_PREEMPTED: Sense = Sense::new(0x6, 0x2a, 0x05);
    /// 6/29/07.
    pub const I_T_NEXUS_LOSS_OCCURRED: Sense = Sense::new(0x6, 0x29, 0x07);
    /// 6/2A/09.
    pub const CAPACITY_DATA_HAS_CHANGED: Sense = Sense::new(0x6, 0x2a, 0x09);
    /// 6/2F/00.
    pub const COMMANDS_CLEARED_BY_ANOTHER_INITIATOR: Sense = Sense::new(0x6, 0x2f, 0x00);
    /// 6/38/07: less space is left than the threshold.
    pub const THIN_PROVISIONING_SOFT_THRESHOLD_REACHED: Sense = Sense::new(0x6, 0x38, 0x07);
    /// 6/3F/0E.
    pub const REPORTED_LUNS_DATA_HAS_CHANGED: Sense = Sense::new(0x6, 0x3f, 0x0e);
    /// 7/27/00.
    pub const WRITE_PROTECTED: Sense = Sense::new(0x7, 0x27, 0x00);
    /// 7/27/02: an initiator has asked for it.
    pub const SOFTWARE_WRITE_PROTECTED: Sense = Sense::new(0x7, 0x27, 0x02);
    /// 7/27/07: thin provisioning found no space.
    pub const SPACE_ALLOCATION_FAILED: Sense = Sense::new(0x7, 0x27, 0x07);
    /// A/00/00.
    pub const COPY_ABORTED: Sense = Sense::new(0xa, 0x00, 0x00);
    /// A/0D/01: one end of a copy refused.
    pub const THIRD_PARTY_DEVICE_FAILURE: Sense = Sense::new(0xa, 0x0d, 0x01);
    /// A/0D/02.
    pub const COPY_TARGET_NOT_REACHABLE: Sense = Sense::new(0xa, 0x0d, 0x02);
    /// A/0D/03: not the device type or block length that was said.
    pub const INCORRECT_COPY_TARGET: Sense = Sense::new(0xa, 0x0d, 0x03);
    /// A/26/0A: not a whole number of blocks, or more than one segment takes.
    pub const UNEXPECTED_INEXACT_SEGMENT: Sense = Sense::new(0xa, 0x26, 0x0a);
    /// B/0C/0C: data came that nobody asked for.
    pub const UNEXPECTED_UNSOLICITED_DATA: Sense = Sense::new(0xb, 0x0c, 0x0c);
    /// B/0C/0D: not as much data came as was announced.
    pub const INCORRECT_AMOUNT_OF_DATA: Sense = Sense::new(0xb, 0x0c, 0x0d);
    /// B/49/00.
    pub const INVALID_MESSAGE_ERROR: Sense = Sense::new(0xb, 0x49, 0x00);
    /// B/47/05: data was damaged on its way.
    pub const PROTOCOL_SERVICE_CRC_ERROR: Sense = Sense::new(0xb, 0x47, 0x05);
    /// E/1D/00.
    pub const MISCOMPARE: Sense = Sense::new(0xe, 0x1d, 0x00);

    const fn new(key: u8, asc: u8, ascq: u8) -> Sense {
        Sense {
            key,
            asc,
            ascq,
            field: None,
            information: None,
            progress: None,
        }
    }

    /// 5/24/00 that points at the wrong bit of the CDB.
    pub const fn invalid_cdb_field(byte: u8, bit: u8) -> Sense {
        Sense {
            field: Some((byte, bit)),
            ..Sense::INVALID_FIELD_IN_CDB
        }
    }

    /// E/1D/00 with the offset of the first byte that differs.
    pub const fn miscompare_at(offset: u64) -> Sense {
        Sense {
            information: Some(offset),
            ..Sense::MISCOMPARE
        }
    }

    /// Writes the sense data in the wanted layout.
    pub fn emit(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.emit_fixed(),
            SenseFormat::Descriptor => self.emit_descriptor(),
        }
    }

    fn emit_fixed(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; 18];
        bytes[0] = 0x70; // current error, fixed format
        if let Some(information) = self.information.and_then(|i| u32::try_from(i).ok()) {
            bytes[0] |= 0x80; // VALID
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[2] = self.key;
        bytes[7] = 10; // additional sense length
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(pointer) = self.key_specific() {
            bytes[15..18].copy_from_slice(&pointer);
        }
        bytes
    }

    fn emit_descriptor(&self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend_from_slice(&[0x00, 0x0a, 0x80, 0x00]); // information, VALID
            bytes.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(pointer) = self.key_specific() {
            bytes.extend_from_slice(&[0x02, 0x06, 0x00, 0x00]); // sense key specific
            bytes.extend_from_slice(&pointer);
            bytes.push(0);
        }
        bytes[7] = (bytes.len() - 8).try_into().unwrap_or(0); // additional sense length
        bytes
    }

    /// SKSV, and either C/D = CDB, BPV, bit pointer and byte pointer, or the
    /// progress indication.
    fn key_specific(&self) -> Option<[u8; 3]> {
        if let Some((byte, bit)) = self.field {
            return Some([0xc8 | (bit & 7), 0, byte]);
        }
        let [high, low] = self.progress?.to_be_bytes();
        Some([0x80, high, low])
    }
}

/// What the disk said, in words an initiator knows. Reads and writes differ
/// where a cause has two names; `From` speaks of reads.
impl From<DiskError> for Sense {
    fn from(error: DiskError) -> Sense {
        let sense = match &error {
            DiskError::OutOfRange { .. } => Sense::LBA_OUT_OF_RANGE,
            DiskError::ReadOnly => Sense::WRITE_PROTECTED,
            DiskError::NoSpace(_) => Sense::SPACE_ALLOCATION_FAILED,
            DiskError::Corrupt(_) | DiskError::Io { .. } => Sense::UNRECOVERED_READ_ERROR,
            DiskError::Failed(_) => Sense::INTERNAL_TARGET_FAILURE,
        };
        let words = (sense.key, sense.asc, sense.ascq);
        match &error {
            // The disk said so when it happened; now every write hears it.
            DiskError::Failed(_) => tracing::debug!(%error, sense = ?words, "the disk refused"),
            _ => tracing::warn!(%error, sense = ?words, "the disk refused"),
        }
        sense
    }
}

impl Sense {
    /// The same refusal when it was a write or a flush that failed.
    pub(crate) fn while_writing(error: DiskError) -> Sense {
        match Sense::from(error) {
            Sense::UNRECOVERED_READ_ERROR => Sense::WRITE_ERROR,
            sense => sense,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_attention_is_written_as_tgt_wrote_it() {
        // Captured from tgt 1.0.85.
        let expected = [
            0x70, 0, 6, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0,
        ];
        assert_eq!(Sense::RESET_OCCURRED.emit(SenseFormat::Fixed), expected);
    }

    #[test]
    fn a_wrong_field_is_pointed_at() {
        let expected = [
            0x70, 0, 5, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0x24, 0, 0, 0xcd, 0, 2,
        ];
        assert_eq!(
            Sense::invalid_cdb_field(2, 5).emit(SenseFormat::Fixed),
            expected
        );
    }

    #[test]
    fn progress_stands_in_the_key_specific_bytes_of_both_layouts() {
        let sense = Sense {
            progress: Some(0x8001),
            ..Sense::SANITIZE_IN_PROGRESS
        };
        let fixed = sense.emit(SenseFormat::Fixed);
        assert_eq!(fixed[15..18], [0x80, 0x80, 0x01]);
        let descriptor = sense.emit(SenseFormat::Descriptor);
        assert_eq!(descriptor[8..], [2, 6, 0, 0, 0x80, 0x80, 0x01, 0]);
    }

    #[test]
    fn descriptor_sense_says_its_own_length() {
        let bytes = Sense::miscompare_at(7).emit(SenseFormat::Descriptor);
        assert_eq!(bytes[0], 0x72);
        assert_eq!(usize::from(bytes[7]), bytes.len() - 8);
        assert_eq!(bytes[12..20], 7u64.to_be_bytes());
    }

    #[test]
    fn an_information_field_too_big_for_fixed_sense_is_not_valid() {
        let bytes = Sense::miscompare_at(1 << 40).emit(SenseFormat::Fixed);
        assert_eq!(bytes[0], 0x70);
        assert_eq!(bytes[3..7], [0; 4]);
    }

    #[test]
    fn no_space_and_a_failed_write_have_their_own_names() {
        let full = DiskError::NoSpace("full".into());
        assert_eq!(Sense::from(full), Sense::SPACE_ALLOCATION_FAILED);
        let io = DiskError::Io {
            context: "write".into(),
            source: std::io::Error::other("bad"),
        };
        assert_eq!(Sense::while_writing(io), Sense::WRITE_ERROR);
    }
}
