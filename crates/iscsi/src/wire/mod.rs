//! PDUs: bytes to types and back (RFC 7143 section 11). Big-endian.
//!
//! Headers only are copied; data stays where it was received.

mod request;
mod response;

pub(crate) use request::{
    DataOut, LoginRequest, LogoutRequest, NopOut, Request, ScsiCommand, TaskManagement, TextRequest,
};
pub(crate) use response::{
    AsyncMessage, DataIn, LoginResponse, LogoutResponse, NopIn, Numbers, R2t, Reject, Residual,
    ScsiResponse, TaskManagementResponse, TextResponse,
};

/// Length of the basic header segment.
pub(crate) const BHS_BYTES: usize = 48;
/// A tag that names nothing.
pub(crate) const NO_TAG: u32 = 0xffff_ffff;

/// A basic header segment.
pub(crate) type Bhs = [u8; BHS_BYTES];

/// How much follows a basic header segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Additional header segments.
    pub(crate) ahs_bytes: usize,
    /// Data segment without its padding.
    pub(crate) data_bytes: usize,
}

impl Lengths {
    /// Reads TotalAHSLength and DataSegmentLength.
    pub(crate) fn parse(bhs: &Bhs) -> Lengths {
        let data = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]);
        Lengths {
            ahs_bytes: usize::from(bhs[4]) * 4,
            data_bytes: usize::try_from(data).unwrap_or(usize::MAX),
        }
    }

    /// The whole PDU, padding included.
    pub(crate) fn pdu_bytes(&self) -> usize {
        BHS_BYTES + self.ahs_bytes + self.data_bytes + padding(self.data_bytes)
    }
}

/// Zeros after a data segment of `data_bytes`, to a multiple of 4.
pub(crate) fn padding(data_bytes: usize) -> usize {
    data_bytes.wrapping_neg() & 3
}

/// Why bytes are no PDU for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PduError {
    /// No such opcode, or one that only targets send.
    Opcode,
    /// A field that cannot be.
    Field,
}

/// Serial number arithmetic (RFC 1982): whether `a` comes before `b`.
pub(crate) fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 0x8000_0000
}

fn u16_at(bhs: &Bhs, at: usize) -> u16 {
    u16::from_be_bytes([bhs[at], bhs[at + 1]])
}

fn u32_at(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

fn lun_at(bhs: &Bhs) -> [u8; 8] {
    let mut lun = [0; 8];
    lun.copy_from_slice(&bhs[8..16]);
    lun
}

fn put(bhs: &mut Bhs, at: usize, bytes: &[u8]) {
    bhs[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_u32(bhs: &mut Bhs, at: usize, value: u32) {
    put(bhs, at, &value.to_be_bytes());
}

/// Writes DataSegmentLength; lengths are 24 bits by every limit we have.
fn put_data_length(bhs: &mut Bhs, data_bytes: usize) {
    let [_, high, middle, low] = u32::try_from(data_bytes).unwrap_or(0).to_be_bytes();
    put(bhs, 5, &[high, middle, low]);
}

#[cfg(test)]
mod tests;
