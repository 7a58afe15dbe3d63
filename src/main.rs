//! Boots PCs that have no disk.

mod boot;
mod config;
mod inventory;
mod services;
mod timeline;

fn main() {}
