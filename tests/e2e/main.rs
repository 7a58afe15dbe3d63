//! Machines that really boot: QEMU PCs without any disk, served by `diskless`
//! alone inside network namespaces.
//!
//! `DISKLESS_E2E` says how much: `short` (what `make test` asks for: the tests
//! that are always run, and of each pair the one this commit's turn falls on),
//! `all`, or nothing: then these tests skip themselves, but for CI. They need
//! root and the packages of `lab/setup.sh`.

mod clients;
mod disks;
mod full;
mod initiator;
mod proxy;
mod secure;
mod stage;
