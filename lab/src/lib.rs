//! Diskless PCs in network namespaces, for the demo and the tests.
//!
//! A [`Lab`] owns everything one run makes on this machine: namespaces,
//! processes, a directory. In it a [`Lan`] joins [`Host`]s (where a [`Server`]
//! or somebody else's [`Neighbour`] runs) and [`Pc`]s, which are QEMU machines
//! with one network card and no disk. Nothing of it reaches a real network.
//!
//! All of it ends with its owner: by `Drop`, by a signal (every wait asks
//! [`interrupted`]), by the kernel (`PR_SET_PDEATHSIG`) when the owner is
//! killed, and what then remains is swept by the next run or `make clean-demo`.
//!
//! Linux, root, and the packages of `lab/setup.sh`.

mod console;
mod deadline;
mod files;
mod guest;
mod host;
mod image;
mod inside;
mod neighbour;
mod pc;
mod server;
mod signal;
mod state;

pub use console::{Console, plain};
pub use deadline::Deadline;
pub use files::FileServer;
pub use guest::Guest;
pub use host::{Host, Lan};
pub use image::{chain, debian, initiator, missing, repository, sha256, tiny};
pub use neighbour::Neighbour;
pub use pc::{Firmware, Kernel, Nic, Pc, Power};
pub use server::{Dhcp, Server, Settings};
pub use signal::{catch_signals, interrupted};
pub use state::{Ends, Lab, Process, clean};
