//! A tail, read as at a start.
#![no_main]

// As in `testdata/journal/tail.bin`: the padding of the header's block is left out.
#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (header, entries) = bytes.split_at(bytes.len().min(132));
    let mut tail = header[..header.len().min(128)].to_vec();
    tail.resize(4096, 0);
    tail.extend(entries);
    let len = tail.len() + 512;
    journal::fuzzing::tail(&fuzz::InMemory::new(&tail, len));
});
#[cfg(not(fuzzing))]
libfuzzer_sys::fuzz_target!(|_bytes: &[u8]| {});
