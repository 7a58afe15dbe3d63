//! What an initiator sends.

use super::{Bhs, PduError, lun_at, u16_at, u32_at};

/// A request PDU; the data segment stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    NopOut(NopOut),
    ScsiCommand(ScsiCommand),
    TaskManagement(TaskManagement),
    Login(LoginRequest),
    Text(TextRequest),
    DataOut(DataOut),
    Logout(LogoutRequest),
    Snack { itt: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NopOut {
    pub(crate) immediate: bool,
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScsiCommand {
    pub(crate) immediate: bool,
    /// F: no unsolicited Data-Out follows.
    pub(crate) is_final: bool,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    pub(crate) attribute: u8,
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    /// Expected Data Transfer Length.
    pub(crate) expected_bytes: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) cdb: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskManagement {
    pub(crate) immediate: bool,
    pub(crate) function: u8,
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) referenced_tag: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) ref_cmd_sn: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginRequest {
    /// T: ready to leave the stage.
    pub(crate) transit: bool,
    /// C: the text goes on in the next PDU.
    pub(crate) continues: bool,
    pub(crate) current_stage: u8,
    pub(crate) next_stage: u8,
    pub(crate) version_min: u8,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    pub(crate) itt: u32,
    pub(crate) cid: u16,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextRequest {
    pub(crate) immediate: bool,
    pub(crate) is_final: bool,
    pub(crate) continues: bool,
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataOut {
    pub(crate) is_final: bool,
    pub(crate) lun: [u8; 8],
    pub(crate) itt: u32,
    pub(crate) ttt: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) data_sn: u32,
    pub(crate) buffer_offset: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogoutRequest {
    pub(crate) immediate: bool,
    pub(crate) reason: u8,
    pub(crate) itt: u32,
    pub(crate) cid: u16,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
}

/// I: immediate delivery, in byte 0.
const IMMEDIATE: u8 = 0x40;
/// F or T, in byte 1.
const FINAL: u8 = 0x80;
/// C, in byte 1.
const CONTINUE: u8 = 0x40;

impl Request {
    /// Reads a header. What follows it is not looked at.
    pub(crate) fn parse(bhs: &Bhs) -> Result<Request, PduError> {
        let immediate = bhs[0] & IMMEDIATE != 0;
        let flags = bhs[1];
        let is_final = flags & FINAL != 0;
        let continues = flags & CONTINUE != 0;
        let itt = u32_at(bhs, 16);
        let ttt = u32_at(bhs, 20);
        let cmd_sn = u32_at(bhs, 24);
        let exp_stat_sn = u32_at(bhs, 28);
        Ok(match bhs[0] & 0x3f {
            0x00 => Request::NopOut(NopOut {
                immediate,
                lun: lun_at(bhs),
                itt,
                ttt,
                cmd_sn,
                exp_stat_sn,
            }),
            0x01 => {
                let mut cdb = [0; 16];
                cdb.copy_from_slice(&bhs[32..48]);
                Request::ScsiCommand(ScsiCommand {
                    immediate,
                    is_final,
                    reads: flags & 0x40 != 0,
                    writes: flags & 0x20 != 0,
                    attribute: flags & 0x07,
                    lun: lun_at(bhs),
                    itt,
                    expected_bytes: u32_at(bhs, 20),
                    cmd_sn,
                    exp_stat_sn,
                    cdb,
                })
            }
            0x02 => Request::TaskManagement(TaskManagement {
                immediate,
                function: flags & 0x7f,
                lun: lun_at(bhs),
                itt,
                referenced_tag: u32_at(bhs, 20),
                cmd_sn,
                exp_stat_sn,
                ref_cmd_sn: u32_at(bhs, 32),
            }),
            0x03 => {
                let mut isid = [0; 6];
                isid.copy_from_slice(&bhs[8..14]);
                if is_final && continues {
                    return Err(PduError::Field);
                }
                Request::Login(LoginRequest {
                    transit: is_final,
                    continues,
                    current_stage: (flags >> 2) & 3,
                    next_stage: flags & 3,
                    version_min: bhs[3],
                    isid,
                    tsih: u16_at(bhs, 14),
                    itt,
                    cid: u16_at(bhs, 20),
                    cmd_sn,
                    exp_stat_sn,
                })
            }
            0x04 => {
                if is_final && continues {
                    return Err(PduError::Field);
                }
                Request::Text(TextRequest {
                    immediate,
                    is_final,
                    continues,
                    lun: lun_at(bhs),
                    itt,
                    ttt,
                    cmd_sn,
                    exp_stat_sn,
                })
            }
            0x05 => Request::DataOut(DataOut {
                is_final,
                lun: lun_at(bhs),
                itt,
                ttt,
                exp_stat_sn,
                data_sn: u32_at(bhs, 36),
                buffer_offset: u32_at(bhs, 40),
            }),
            0x06 => Request::Logout(LogoutRequest {
                immediate,
                reason: flags & 0x7f,
                itt,
                cid: u16_at(bhs, 20),
                cmd_sn,
                exp_stat_sn,
            }),
            0x10 => Request::Snack { itt },
            _ => return Err(PduError::Opcode),
        })
    }
}

#[cfg(test)]
mod emit {
    //! The initiator's side, for tests.

    use super::super::{BHS_BYTES, put, put_data_length, put_u32};
    use super::*;

    impl Request {
        /// Writes the header of this request with `data_bytes` of data.
        pub(crate) fn emit(&self, data_bytes: usize) -> Bhs {
            let mut bhs = [0u8; BHS_BYTES];
            put_data_length(&mut bhs, data_bytes);
            let bit = |on: bool, mask: u8| if on { mask } else { 0 };
            match self {
                Request::NopOut(pdu) => {
                    bhs[0] = bit(pdu.immediate, IMMEDIATE);
                    bhs[1] = FINAL;
                    put(&mut bhs, 8, &pdu.lun);
                    put_u32(&mut bhs, 16, pdu.itt);
                    put_u32(&mut bhs, 20, pdu.ttt);
                    put_u32(&mut bhs, 24, pdu.cmd_sn);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                }
                Request::ScsiCommand(pdu) => {
                    bhs[0] = 0x01 | bit(pdu.immediate, IMMEDIATE);
                    bhs[1] = bit(pdu.is_final, FINAL)
                        | bit(pdu.reads, 0x40)
                        | bit(pdu.writes, 0x20)
                        | pdu.attribute;
                    put(&mut bhs, 8, &pdu.lun);
                    put_u32(&mut bhs, 16, pdu.itt);
                    put_u32(&mut bhs, 20, pdu.expected_bytes);
                    put_u32(&mut bhs, 24, pdu.cmd_sn);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                    put(&mut bhs, 32, &pdu.cdb);
                }
                Request::TaskManagement(pdu) => {
                    bhs[0] = 0x02 | bit(pdu.immediate, IMMEDIATE);
                    bhs[1] = FINAL | pdu.function;
                    put(&mut bhs, 8, &pdu.lun);
                    put_u32(&mut bhs, 16, pdu.itt);
                    put_u32(&mut bhs, 20, pdu.referenced_tag);
                    put_u32(&mut bhs, 24, pdu.cmd_sn);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                    put_u32(&mut bhs, 32, pdu.ref_cmd_sn);
                }
                Request::Login(pdu) => {
                    bhs[0] = 0x03 | IMMEDIATE;
                    bhs[1] = bit(pdu.transit, FINAL)
                        | bit(pdu.continues, CONTINUE)
                        | (pdu.current_stage << 2)
                        | pdu.next_stage;
                    bhs[3] = pdu.version_min;
                    put(&mut bhs, 8, &pdu.isid);
                    put(&mut bhs, 14, &pdu.tsih.to_be_bytes());
                    put_u32(&mut bhs, 16, pdu.itt);
                    put(&mut bhs, 20, &pdu.cid.to_be_bytes());
                    put_u32(&mut bhs, 24, pdu.cmd_sn);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                }
                Request::Text(pdu) => {
                    bhs[0] = 0x04 | bit(pdu.immediate, IMMEDIATE);
                    bhs[1] = bit(pdu.is_final, FINAL) | bit(pdu.continues, CONTINUE);
                    put(&mut bhs, 8, &pdu.lun);
                    put_u32(&mut bhs, 16, pdu.itt);
                    put_u32(&mut bhs, 20, pdu.ttt);
                    put_u32(&mut bhs, 24, pdu.cmd_sn);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                }
                Request::DataOut(pdu) => {
                    bhs[0] = 0x05;
                    bhs[1] = bit(pdu.is_final, FINAL);
                    put(&mut bhs, 8, &pdu.lun);
                    put_u32(&mut bhs, 16, pdu.itt);
                    put_u32(&mut bhs, 20, pdu.ttt);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                    put_u32(&mut bhs, 36, pdu.data_sn);
                    put_u32(&mut bhs, 40, pdu.buffer_offset);
                }
                Request::Logout(pdu) => {
                    bhs[0] = 0x06 | bit(pdu.immediate, IMMEDIATE);
                    bhs[1] = FINAL | pdu.reason;
                    put_u32(&mut bhs, 16, pdu.itt);
                    put(&mut bhs, 20, &pdu.cid.to_be_bytes());
                    put_u32(&mut bhs, 24, pdu.cmd_sn);
                    put_u32(&mut bhs, 28, pdu.exp_stat_sn);
                }
                Request::Snack { itt } => {
                    bhs[0] = 0x10;
                    bhs[1] = FINAL;
                    put_u32(&mut bhs, 16, *itt);
                }
            }
            bhs
        }
    }
}
