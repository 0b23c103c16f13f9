//! Backstay wire.
