//! Diskless PCs in network namespaces, for the demo and the tests.
