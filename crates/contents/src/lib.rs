//! What lies inside a disk, read from outside: its partitions, the file systems
//! in them, and the Linux that boots from it.
//!
//! Nothing here writes, mounts, or takes what it reads for true: a disk is
//! whatever its machine made of it. A number from it is checked before it is
//! used as a length or a place, whatever repeats is bounded by a named limit, and
//! links never lead out of their file system.

mod bytes;
mod error;
mod ext4;
mod fat;
mod file;
mod file_system;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod linux;
mod magic;
mod partitions;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

pub use error::Error;
pub use file::ReadableFile;
pub use file_system::{Entry, NodeKind};
pub use linux::{Distribution, EspLoaders, Family, LinuxBoot, Source, linux_boot};
pub use magic::{Content, Format, identify};
pub use partitions::{Partition, PartitionType, Partitions, TableKind};
pub use tree::Tree;
pub use volume::Volume;
