//! Boots PCs that have no disk.
fn main() {}
