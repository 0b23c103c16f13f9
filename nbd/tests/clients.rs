//! The clients of others against this server: what they see and what of it they use. That no byte is lost, on any way in, is
//! in `matrix.rs`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Fixture, SIZE, ok, run};

#[test]
fn nbdinfo_sees_what_is_advertised() {
    let f = Fixture::new();
    let json = ok("nbdinfo", &["--json", &f.uri("vol")]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-name\": \"vol\"",
        "\"description\": \"a volume, live\"",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_cache\": true",
        "\"can_df\": true",
        "\"can_fast_zero\": true",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
        &format!("\"export-size\": {SIZE}"),
    ] {
        assert!(json.contains(expected), "{expected} is not in\n{json}");
    }
    assert_eq!(
        ok("nbdinfo", &["--size", &f.tcp_uri("vol")]).trim(),
        SIZE.to_string()
    );
}

#[test]
fn nbdinfo_lists_all_exports() {
    let f = Fixture::new();
    let json = ok("nbdinfo", &["--list", "--json", &f.uri("")]);
    for expected in [
        "\"export-name\": \"vol\"",
        "\"export-name\": \"ro\"",
        "a volume, as it was",
    ] {
        assert!(json.contains(expected), "{expected} is not in\n{json}");
    }
}

#[test]
fn nbdinfo_asks_one_feature_at_a_time() {
    let f = Fixture::new();
    for feature in [
        "connect",
        "cache",
        "df",
        "fast-zero",
        "flush",
        "fua",
        "multi-conn",
        "trim",
        "write",
        "zero",
    ] {
        ok("nbdinfo", &["--can", feature, &f.uri("vol")]);
    }
    for feature in ["trim", "write", "zero", "fast-zero"] {
        let refused = run("nbdinfo", &["--can", feature, &f.uri("ro")]);
        assert_eq!(refused.status.code(), Some(2), "{feature}");
    }
    ok("nbdinfo", &["--is", "read-only", &f.uri("ro")]);
    ok("nbdinfo", &["--can", "multi-conn", &f.uri("ro")]);
}

#[test]
fn errors_of_opening_carry_their_text() {
    let f = Fixture::new();
    for (name, text) in [
        ("held", "held is not for you today"),
        ("gone", "no export \"gone\""),
    ] {
        let refused = run("qemu-img", &["info", "-f", "raw", &f.uri(name)]);
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(text), "{text} is not in {said}");
    }
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    let f = Fixture::new();
    f.vol.fill(4096..12288, 1);
    f.vol.fill(1 << 20..(1 << 20) + 1, 1);
    let map = ok("nbdinfo", &["--map", &f.uri("vol")]);
    let lines: Vec<Vec<&str>> = map.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "4096", "3", "hole,zero"]);
    assert_eq!(lines[1], ["4096", "8192", "0", "data"]);
    assert_eq!(lines[2], ["12288", "1036288", "3", "hole,zero"]);
    assert_eq!(lines[3], ["1048576", "4096", "0", "data"]);
    assert_eq!(lines.len(), 5);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let f = Fixture::new();
    f.vol.fill(0..SIZE as usize, 0x11);
    let said = ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-d",
            "unmap",
            "-c",
            "write -P 0xaa -f 0 64k",
            "-c",
            "write -P 0xbb 65537 1001",
            "-c",
            "write -z 256k 64k",
            "-c",
            "write -z -u 1M 1M",
            "-c",
            "discard 2M 1M",
            "-c",
            "flush",
            "-c",
            "read -P 0xaa 0 64k",
            "-c",
            "read -P 0xbb 65537 1001",
            "-c",
            "read -P 0x11 65536 1",
            "-c",
            "read -P 0 256k 64k",
            "-c",
            "read -P 0 1M 2M",
            "-c",
            "read -P 0x11 3M 1M",
            &f.uri("vol"),
        ],
    );
    assert!(!said.contains("failed"), "{said}");
    assert!(
        f.vol.saw("zero 262144+65536 false"),
        "{:?}",
        f.vol.log.lock().unwrap()
    );
    assert!(f.vol.saw("zero 1048576+1048576 true"));
    assert!(f.vol.saw("trim 2097152+1048576"));
    assert!(f.vol.saw("flush") && f.vol.saw_fua());
}

/// Only extended headers have room for these lengths.
#[test]
fn qemu_io_sends_lengths_of_64_bits() {
    // qemu has them since 8.2; Debian 12's own is 7.2.
    let version = ok("qemu-img", &["--version"]);
    let version = version.trim_start_matches("qemu-img version ");
    let number = |n: usize| {
        version
            .split('.')
            .nth(n)
            .and_then(|v| v.parse().ok())
            .unwrap_or(0)
    };
    if (number(0), number(1)) < (8, 2) {
        eprintln!(
            "\n*** SKIPPED, needs qemu 8.2 with extended headers: qemu_io_sends_lengths_of_64_bits; this is {version} ***\n"
        );
        return;
    }
    let f = Fixture::new();
    let map = ok("qemu-img", &["map", "-f", "raw", "--output=json", &f.uri("huge")]);
    assert!(map.contains("\"length\": 3298534883328"), "{map}");
    ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-d",
            "unmap",
            "-c",
            "write -z -n -u 4k 1T",
            &f.uri("huge"),
        ],
    );
    let log = f.huge.log.lock().unwrap();
    let zero = "Zero { offset: 4096, len: 1099511627776, may_trim: true }";
    assert!(log.iter().any(|l| l == zero), "{log:?}");
}

#[test]
fn qemu_io_cannot_write_to_a_read_only_export() {
    let f = Fixture::new();
    let refused = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &f.uri("ro")]);
    assert!(!refused.status.success());
    ok(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0 0 4k", &f.uri("ro")],
    );
}
