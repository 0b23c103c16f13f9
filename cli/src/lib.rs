//! Backstay cli.
