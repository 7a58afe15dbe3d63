//! Claims about the settings the server starts with.
