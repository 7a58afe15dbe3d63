//! Proofs that every disk owes that writes files of its own.

pub(crate) mod crash;
pub(crate) mod qemu;
