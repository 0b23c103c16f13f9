//! Backstay testkit.
