//! A line of the control socket, in either direction.
#![no_main]

use control::{Event, Outcome, codec};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = codec::decode_request(bytes) {
        let line = codec::encode(&request).expect("what was read can be written");
        assert_eq!(
            codec::decode_request(line.trim_ascii_end()).expect("and read again"),
            request
        );
    }
    drop(codec::decode::<Event>(bytes));
    drop(codec::decode::<Outcome>(bytes));
    drop(codec::read_line(&mut &*bytes));
});
