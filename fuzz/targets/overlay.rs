//! The index log of a vdev's overlay.
#![no_main]

use fuzz::InMemory;
use snapshot::Overlay;
use std::sync::Arc;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let data = Arc::new(InMemory::new(&[], 16 * 4096));
    let log = Arc::new(InMemory::new(bytes, 64 << 10));
    drop(Overlay::open(data, log, 0x0102_0304_0506_0708));
});
