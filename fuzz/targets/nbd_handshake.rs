//! An NBD client from its first byte on.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::serve(bytes));
