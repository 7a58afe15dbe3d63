//! Decisions: what does this machine boot?
//!
//! One question for the whole program. DHCP, TFTP, HTTP and the iSCSI login
//! all ask it here, so they can never disagree. Pure: facts in, decision out;
//! no socket, no clock, no store.

pub(crate) mod firmware;
pub(crate) mod grub;
pub(crate) mod ladder;
pub(crate) mod plan;
pub(crate) mod script;

pub(crate) use plan::{BootPlan, plan};
