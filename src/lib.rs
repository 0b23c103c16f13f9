//! Backstay daemon.
