//! State maps as text.
#![no_main]

use journal::map_text;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(e) = map_text::parse(text) {
        assert!(e.to_string().contains("line"), "{e}");
    }
});
