//! A superblock, read as at a start.
#![no_main]

// Two slots as in `testdata/journal/superblock.bin`: their padding is left out.
#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut both = Vec::new();
    for (n, slot) in bytes.chunks(68).take(2).enumerate() {
        both.extend(slot);
        both.resize(4096 * (n + 1), 0);
    }
    let len = usize::try_from(journal::SUPERBLOCK_BYTES).expect("small");
    journal::fuzzing::superblock(std::sync::Arc::new(fuzz::InMemory::new(&both, len)));
});
#[cfg(not(fuzzing))]
libfuzzer_sys::fuzz_target!(|_bytes: &[u8]| {});
