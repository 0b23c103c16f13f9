//! Backstay journal.
