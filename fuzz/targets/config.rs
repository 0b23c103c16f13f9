//! The files of a node and of a context: any text is a configuration or an error that names it.
#![no_main]

use backstay::config::{ContextConfig, NodeConfig};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let origin = Path::new("fuzzed.toml");
    if let Err(e) = NodeConfig::from_text(origin, text) {
        assert!(e.to_string().contains("fuzzed.toml"), "{e}");
    }
    match ContextConfig::from_text(origin, text) {
        Ok(config) => {
            let again =
                ContextConfig::from_text(origin, &config.to_text()).expect("what is written can be read");
            assert_eq!(again, config);
        }
        Err(e) => assert!(e.to_string().contains("fuzzed.toml"), "{e}"),
    }
});
