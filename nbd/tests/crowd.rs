//! Ten thousand clients that connect and say nothing. Alone in its process, for it takes all descriptors.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Fixture, ok};
use nbd::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io::Write,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    time::Duration,
};

/// Nobody is cut because of the time.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

fn descriptors(soft: u64) {
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(hard.map_or(soft, |hard| hard.min(soft))),
        maximum: hard,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn who_says_nothing_locks_nobody_out() {
    ten_thousand();
    no_descriptor_left();
}

fn ten_thousand() {
    descriptors(12_000);
    let limits = Limits {
        connections_max: 64,
        negotiation_timeout: FOR_EVER,
        ..Limits::default()
    };
    let f = Fixture::with(limits, 1 << 20);
    let mut idle = Vec::new();
    for n in 1..=10_000 {
        idle.push(UnixStream::connect(f.socket()).unwrap_or_else(|e| panic!("client {n}: {e}")));
        if n % 2000 == 0 {
            ok("nbdinfo", &["--size", &f.uri("vol")]);
            ok("nbdinfo", &["--size", &f.tcp_uri("vol")]);
        }
    }
}

fn no_descriptor_left() {
    descriptors(256);
    let limits = Limits {
        negotiation_timeout: FOR_EVER,
        ..Limits::default()
    };
    let f = Fixture::with(limits, 1 << 20);
    // Made now, for later there is no descriptor to make it with.
    let mut client = Command::new("sh")
        .args([
            "-c",
            "read go; exec timeout 60 nbdinfo --size \"$0\"",
            &f.uri("vol"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut idle = Vec::new();
    while let Ok(s) = UnixStream::connect(f.socket()) {
        idle.push(s);
    }
    assert!(idle.len() > 100);
    client.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said = client.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(said.stdout, b"1048576\n");
}
