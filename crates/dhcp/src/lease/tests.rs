//! Claims about leases.
