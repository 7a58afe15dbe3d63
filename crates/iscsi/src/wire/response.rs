//! What a target sends.

use super::{BHS_BYTES, Bhs, NO_TAG, put, put_data_length, put_u32};

/// StatSN, ExpCmdSN and MaxCmdSN, as every response carries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) max_cmd_sn: u32,
}

/// The difference between what was expected and what there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residual {
    None,
    /// O: so many bytes did not fit.
    Overflow(u32),
    /// U: so many bytes less.
    Underflow(u32),
}

impl Residual {
    fn flags(self) -> u8 {
        match self {
            Residual::None => 0,
            Residual::Overflow(_) => 0x04,
            Residual::Underflow(_) => 0x02,
        }
    }

    fn count(self) -> u32 {
        match self {
            Residual::None => 0,
            Residual::Overflow(bytes) | Residual::Underflow(bytes) => bytes,
        }
    }
}

pub(crate) struct NopIn {
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    pub(crate) numbers: Numbers,
}

pub(crate) struct ScsiResponse {
    pub(crate) status: u8,
    pub(crate) itt: u32,
    pub(crate) numbers: Numbers,
    /// Data-In and R2T PDUs sent for this command.
    pub(crate) exp_data_sn: u32,
    pub(crate) residual: Residual,
}

pub(crate) struct TaskManagementResponse {
    pub(crate) response: u8,
    /// Additional response information (RFC 7144).
    pub(crate) additional: [u8; 3],
    pub(crate) itt: u32,
    pub(crate) numbers: Numbers,
}

pub(crate) struct LoginResponse {
    pub(crate) transit: bool,
    pub(crate) continues: bool,
    pub(crate) current_stage: u8,
    pub(crate) next_stage: u8,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    pub(crate) itt: u32,
    pub(crate) numbers: Numbers,
    /// Status class and detail.
    pub(crate) status: [u8; 2],
}

pub(crate) struct TextResponse {
    pub(crate) is_final: bool,
    pub(crate) continues: bool,
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    pub(crate) numbers: Numbers,
}

pub(crate) struct DataIn {
    /// F: the last of its sequence.
    pub(crate) is_final: bool,
    /// S: the status GOOD travels along.
    pub(crate) status: Option<Residual>,
    pub(crate) itt: u32,
    pub(crate) numbers: Numbers,
    pub(crate) data_sn: u32,
    pub(crate) buffer_offset: u32,
}

pub(crate) struct LogoutResponse {
    pub(crate) response: u8,
    pub(crate) itt: u32,
    pub(crate) numbers: Numbers,
}

pub(crate) struct R2t {
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    pub(crate) numbers: Numbers,
    pub(crate) r2t_sn: u32,
    pub(crate) buffer_offset: u32,
    pub(crate) desired_bytes: u32,
}

/// An Asynchronous Message without data.
pub(crate) struct AsyncMessage {
    pub(crate) event: u8,
    /// Parameter1 to Parameter3.
    pub(crate) parameters: [u16; 3],
    pub(crate) numbers: Numbers,
}

pub(crate) struct Reject {
    pub(crate) reason: u8,
    pub(crate) numbers: Numbers,
}

const FINAL: u8 = 0x80;
const CONTINUE: u8 = 0x40;

/// A header that every response starts from.
fn head(opcode: u8, flags: u8, itt: u32, numbers: Numbers, data_bytes: usize) -> Bhs {
    let mut bhs = [0u8; BHS_BYTES];
    bhs[0] = opcode;
    bhs[1] = flags;
    put_data_length(&mut bhs, data_bytes);
    put_u32(&mut bhs, 16, itt);
    put_u32(&mut bhs, 24, numbers.stat_sn);
    put_u32(&mut bhs, 28, numbers.exp_cmd_sn);
    put_u32(&mut bhs, 32, numbers.max_cmd_sn);
    bhs
}

fn text_flags(is_final: bool, continues: bool) -> u8 {
    let mut flags = 0;
    if is_final {
        flags |= FINAL;
    }
    if continues {
        flags |= CONTINUE;
    }
    flags
}

impl NopIn {
    pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
        let mut bhs = head(0x20, FINAL, self.itt, self.numbers, data_bytes);
        put(&mut bhs, 8, &self.lun);
        put_u32(&mut bhs, 20, self.ttt);
        bhs
    }
}

impl ScsiResponse {
    pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
        let flags = FINAL | self.residual.flags();
        let mut bhs = head(0x21, flags, self.itt, self.numbers, data_bytes);
        bhs[3] = self.status;
        put_u32(&mut bhs, 36, self.exp_data_sn);
        put_u32(&mut bhs, 44, self.residual.count());
        bhs
    }
}

impl TaskManagementResponse {
    pub(crate) fn emit(&self) -> Bhs {
        let mut bhs = head(0x22, FINAL, self.itt, self.numbers, 0);
        bhs[2] = self.response;
        put(&mut bhs, 8, &self.additional);
        bhs
    }
}

impl LoginResponse {
    pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
        let mut flags = text_flags(self.transit, self.continues) | (self.current_stage << 2);
        if self.transit {
            flags |= self.next_stage;
        }
        let mut bhs = head(0x23, flags, self.itt, self.numbers, data_bytes);
        put(&mut bhs, 8, &self.isid);
        put(&mut bhs, 14, &self.tsih.to_be_bytes());
        put(&mut bhs, 36, &self.status);
        bhs
    }
}

impl TextResponse {
    pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
        let flags = text_flags(self.is_final, self.continues);
        let mut bhs = head(0x24, flags, self.itt, self.numbers, data_bytes);
        put(&mut bhs, 8, &self.lun);
        put_u32(&mut bhs, 20, self.ttt);
        bhs
    }
}

impl DataIn {
    pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
        let mut flags = text_flags(self.is_final, false);
        if let Some(residual) = self.status {
            flags |= 0x01 | residual.flags(); // S
        }
        let mut bhs = head(0x25, flags, self.itt, self.numbers, data_bytes);
        put_u32(&mut bhs, 20, NO_TAG);
        put_u32(&mut bhs, 36, self.data_sn);
        put_u32(&mut bhs, 40, self.buffer_offset);
        if let Some(residual) = self.status {
            put_u32(&mut bhs, 44, residual.count());
        }
        bhs
    }
}

impl LogoutResponse {
    pub(crate) fn emit(&self) -> Bhs {
        let mut bhs = head(0x26, FINAL, self.itt, self.numbers, 0);
        bhs[2] = self.response;
        bhs
    }
}

impl R2t {
    pub(crate) fn emit(&self) -> Bhs {
        let mut bhs = head(0x31, FINAL, self.itt, self.numbers, 0);
        put(&mut bhs, 8, &self.lun);
        put_u32(&mut bhs, 20, self.ttt);
        put_u32(&mut bhs, 36, self.r2t_sn);
        put_u32(&mut bhs, 40, self.buffer_offset);
        put_u32(&mut bhs, 44, self.desired_bytes);
        bhs
    }
}

impl AsyncMessage {
    pub(crate) fn emit(&self) -> Bhs {
        let mut bhs = head(0x32, FINAL, NO_TAG, self.numbers, 0);
        bhs[36] = self.event;
        for (at, parameter) in (38..).step_by(2).zip(self.parameters) {
            put(&mut bhs, at, &parameter.to_be_bytes());
        }
        bhs
    }
}

impl Reject {
    pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
        let mut bhs = head(0x3f, FINAL, NO_TAG, self.numbers, data_bytes);
        bhs[2] = self.reason;
        bhs
    }
}
