//! Targets and dates as operators type them.
#![no_main]

use cli::{date, zone::Zone};
use control::Moment;
use model::Target;

libfuzzer_sys::fuzz_target!(|input: (u8, &str)| {
    let (which, text) = input;
    if let Ok(target) = text.parse::<Target>() {
        let said = target.to_string();
        assert_eq!(said.parse::<Target>().as_ref(), Ok(&target), "{said}");
    }
    let zones = [
        "UTC",
        "Europe/Berlin",
        "America/St_Johns",
        "Australia/Lord_Howe",
        "Pacific/Apia",
    ];
    let zone = Zone::named(zones[usize::from(which) % zones.len()]).expect("a zone that is known");
    // 2026-11-01.
    let now = Moment(1_793_491_200_000_000_000);
    if let Ok(at) = date::parse(text, zone, now) {
        assert!(at.0 <= now.0, "{text}: in the future");
    }
});
