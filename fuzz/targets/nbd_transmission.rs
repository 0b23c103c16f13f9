//! An NBD client that has its export, in each of the three styles.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, requests)) = bytes.split_first() else {
        return;
    };
    fuzz::serve(&[&fuzz::greeting(*kind), requests].concat());
});
