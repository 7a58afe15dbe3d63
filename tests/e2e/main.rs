//! Machines that really boot.
