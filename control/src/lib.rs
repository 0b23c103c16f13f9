//! Backstay control.
