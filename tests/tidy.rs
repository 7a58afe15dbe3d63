//! The walls of the house, held by a test.
