//! Backstay nbd.
