//! Rows of the store, each kind from the same bytes.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| journal::fuzzing::rows(bytes));
#[cfg(not(fuzzing))]
libfuzzer_sys::fuzz_target!(|_bytes: &[u8]| {});
