//! Bytes of a peer, and of a node that is not known yet.
#![no_main]

use bytes::{BufMut, BytesMut};
use wire::{Decoder, codec};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for decoder in [Decoder::peer(), Decoder::pairing()] {
        let mut buf = BytesMut::from(bytes);
        while let Ok(Some(message)) = decoder.decode(&mut buf) {
            let (head, payload) = codec::encode(&message)
                .expect("what was read can be written")
                .into_parts();
            let mut again = BytesMut::new();
            again.put(head);
            again.put(payload);
            assert_eq!(decoder.decode(&mut again).expect("and read again"), Some(message));
            assert!(again.is_empty());
        }
    }
});
