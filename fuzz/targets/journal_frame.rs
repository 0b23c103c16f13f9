//! A frame, as a peer sends it.
#![no_main]

use bytes::Bytes;
use journal::Frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::parse(Bytes::copy_from_slice(bytes)) {
        assert_eq!(
            frame.records().len(),
            usize::try_from(frame.header().records).expect("bounded")
        );
        assert_eq!(frame.records().last().map(|r| r.seq), Some(frame.last_seq()));
    }
});
