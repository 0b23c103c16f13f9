//! The life of a server: sockets, limits, counts, stop.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Fixture, Memory, ok, raw::Raw};
use nbd::{ExportInfo, Limits, ListenError, Security};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    sync::Arc,
    thread,
    time::Duration,
};

/// A connection that has chosen `vol`.
fn connect(f: &Fixture) -> UnixStream {
    let mut s = UnixStream::connect(f.socket()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    s.read_exact(&mut [0; 18]).unwrap();
    s.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vol").unwrap();
    s.read_exact(&mut [0; 10]).unwrap();
    s
}

/// A connection that has said nothing yet.
fn greeted(f: &Fixture) -> UnixStream {
    let mut s = UnixStream::connect(f.socket()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    s.read_exact(&mut [0; 18]).unwrap();
    s
}

fn flush(s: &mut UnixStream, cookie: u64) {
    let mut p = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3];
    p.extend(cookie.to_be_bytes());
    p.extend([0; 12]);
    s.write_all(&p).unwrap();
}

/// The error of the next simple reply.
fn hear(s: &mut UnixStream) -> u32 {
    let mut reply = [0; 16];
    s.read_exact(&mut reply).unwrap();
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

fn is_cut(s: &mut UnixStream) -> bool {
    matches!(s.read(&mut [0; 1]), Ok(0) | Err(_))
}

/// Waits for something that another thread does.
fn until(what: impl Fn() -> bool) {
    while !what() {
        thread::yield_now();
    }
}

#[test]
fn the_socket_is_private_replaced_when_stale_and_removed_at_stop() {
    let f = Fixture::new();
    assert_eq!(
        fs::metadata(f.socket()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let taken = f.server.listen_unix(&f.socket(), 0o600);
    assert!(matches!(taken, Err(ListenError::Taken { .. })), "{taken:?}");
    let file = f.folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(matches!(
        f.server.listen_unix(&file, 0o600),
        Err(ListenError::Taken { .. })
    ));
    let stale = f.folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    f.server.listen_unix(&stale, 0o660).unwrap();
    assert_eq!(fs::metadata(&stale).unwrap().permissions().mode() & 0o777, 0o660);
    ok(
        "nbdinfo",
        &["--size", &format!("nbd+unix:///vol?socket={}", stale.display())],
    );
    assert_eq!(f.server.stop(), 0);
    assert!(!f.socket().exists() && !stale.exists() && file.exists());
    assert!(matches!(
        f.server.listen_unix(&f.socket(), 0o600),
        Err(ListenError::Stopped)
    ));
}

#[test]
fn a_socket_that_was_handed_over_outlives_the_server() {
    let f = Fixture::new();
    let path = f.folder.path().join("theirs");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let uris = [
        format!("nbd+unix:///vol?socket={}", path.display()),
        format!("nbd://127.0.0.1:{port}/vol"),
    ];
    f.server.adopt_unix(unix.try_clone().unwrap()).unwrap();
    f.server
        .adopt_tcp(tcp.try_clone().unwrap(), Security::Plain)
        .unwrap();
    for uri in &uris {
        ok("nbdinfo", &["--size", uri]);
    }
    assert_eq!(f.server.stop(), 0);
    // Who connects now waits for the next server, and no connection is refused.
    let early = UnixStream::connect(&path).unwrap();
    let next = Fixture::new();
    next.server.adopt_unix(unix).unwrap();
    next.server.adopt_tcp(tcp, Security::Plain).unwrap();
    Raw::greet(early).go("vol");
    for uri in &uris {
        ok("nbdinfo", &["--size", uri]);
    }
    next.server.stop();
    assert!(path.exists());
}

#[test]
fn a_client_that_is_connected_already_has_a_default_export_of_its_own() {
    let f = Fixture::new();
    let held = Arc::strong_count(&f.ro);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let default = nbd::DefaultExport {
        name: "the past".into(),
        export: f.ro.clone(),
    };
    f.server.serve(ours, default);
    let mut raw = Raw::greet(theirs);
    let flags = raw.go("");
    assert_eq!(flags & 2, 2, "it is read-only");
    // It has a name of its own, by which it is counted.
    until(|| f.server.open_connections().get("ro") == Some(&1));
    drop(raw);
    until(|| Arc::strong_count(&f.ro) == held);
}

#[test]
fn open_connections_are_counted_and_their_exports_let_go() {
    let f = Fixture::new();
    let held = Arc::strong_count(&f.vol);
    let (one, two) = (connect(&f), connect(&f));
    until(|| f.server.open_connections().get("vol") == Some(&2));
    drop(one);
    until(|| f.server.open_connections().get("vol") == Some(&1));
    drop(two);
    until(|| f.server.open_connections().is_empty());
    assert_eq!(Arc::strong_count(&f.vol), held);
}

#[test]
fn an_export_can_be_disconnected_alone() {
    let f = Fixture::new();
    let mut s = connect(&f);
    until(|| f.server.open_connections().contains_key("vol"));
    assert_eq!(f.server.disconnect("ro"), 0);
    flush(&mut s, 1);
    assert_eq!(hear(&mut s), 0);
    assert_eq!(f.server.disconnect("vol"), 1);
    assert!(is_cut(&mut s));
    flush(&mut connect(&f), 1);
}

#[test]
fn connections_past_the_limit_are_turned_away() {
    let f = Fixture::with(
        Limits {
            connections_max: 2,
            ..Limits::default()
        },
        1 << 20,
    );
    let (one, _two) = (connect(&f), connect(&f));
    let mut third = UnixStream::connect(f.socket()).unwrap();
    assert!(is_cut(&mut third));
    drop(one);
    until(|| {
        let mut s = UnixStream::connect(f.socket()).unwrap();
        s.read_exact(&mut [0; 18]).is_ok()
    });
}

/// Who has an export keeps it; who only negotiates makes room, the longest first.
#[test]
fn a_newcomer_takes_the_place_of_who_negotiates_longest() {
    let limits = Limits {
        connections_max: 3,
        negotiation_timeout: Duration::from_secs(3600),
        ..Limits::default()
    };
    let f = Fixture::with(limits, 1 << 20);
    let mut served = connect(&f);
    let mut idle: Vec<UnixStream> = (0..2).map(|_| greeted(&f)).collect();
    let mut newcomer = connect(&f);
    assert!(is_cut(&mut idle[0]));
    let mut last = greeted(&f);
    assert!(is_cut(&mut idle[1]));
    for s in [&mut served, &mut newcomer] {
        flush(s, 1);
        assert_eq!(hear(s), 0);
    }
    last.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vol")
        .unwrap();
    last.read_exact(&mut [0; 10]).unwrap();
    // Now all have an export.
    assert!(is_cut(&mut UnixStream::connect(f.socket()).unwrap()));
}

#[test]
fn who_never_finishes_negotiating_is_cut() {
    let limits = Limits {
        negotiation_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let f = Fixture::with(limits, 1 << 20);
    let mut idle = UnixStream::connect(f.socket()).unwrap();
    idle.read_exact(&mut [0; 18]).unwrap();
    // Activity does not extend it.
    let mut busy = UnixStream::connect(f.socket()).unwrap();
    busy.write_all(&[0, 0, 0, 3]).unwrap();
    while busy.write_all(b"IHAVEOPT\0\0\0\x63\0\0\0\0").is_ok() {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(is_cut(&mut idle));
}

#[test]
fn a_session_outlives_the_time_to_negotiate() {
    let limits = Limits {
        negotiation_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let f = Fixture::with(limits, 1 << 20);
    let mut s = connect(&f);
    thread::sleep(Duration::from_millis(300));
    flush(&mut s, 1);
    assert_eq!(hear(&mut s), 0);
}

#[test]
fn a_stop_answers_what_is_under_way() {
    let f = Fixture::new();
    f.vol.shut_gate();
    let mut s = connect(&f);
    flush(&mut s, 1);
    f.vol.wait_held(1);
    thread::scope(|scope| {
        let stopping = scope.spawn(|| f.server.stop());
        until(|| UnixStream::connect(f.socket()).is_err());
        f.vol.open_gate();
        assert_eq!(hear(&mut s), 0);
        assert!(is_cut(&mut s));
        assert_eq!(stopping.join().unwrap(), 0);
    });
    assert_eq!(f.server.stop(), 0);
}

/// A client that connects again takes an error for final: qemu's hands it to the guest.
#[test]
fn a_stop_answers_no_request_with_an_error() {
    // One mutation at a time: while the first is held, the third is not even looked at.
    let limits = Limits {
        in_flight_bytes_max: 1,
        ..Limits::default()
    };
    let f = Fixture::with(limits, 1 << 20);
    f.vol.shut_gate();
    let mut s = connect(&f);
    (1..=3).for_each(|cookie| flush(&mut s, cookie));
    f.vol.wait_held(1);
    thread::scope(|scope| {
        let stopping = scope.spawn(|| f.server.stop());
        until(|| UnixStream::connect(f.socket()).is_err());
        f.vol.open_gate();
        let mut answers = 0;
        let mut reply = [0; 16];
        while s.read_exact(&mut reply).is_ok() {
            assert_eq!(reply[4..8], [0; 4], "an error for request {answers}");
            answers += 1;
        }
        assert_eq!(answers, 3);
        assert_eq!(stopping.join().unwrap(), 0);
    });
}

#[test]
fn a_stop_does_not_wait_for_ever_for_an_export_that_never_answers() {
    let f = Fixture::with(
        Limits {
            drain_timeout: Duration::from_millis(50),
            ..Limits::default()
        },
        1 << 20,
    );
    f.vol.shut_gate();
    let mut s = connect(&f);
    flush(&mut s, 1);
    f.vol.wait_held(1);
    assert_eq!(f.server.stop(), 0);
    assert!(is_cut(&mut s));
    // The answer that comes too late goes nowhere.
    f.vol.open_gate();
}

#[test]
fn an_export_that_panics_costs_its_connection_only() {
    struct Panics;
    impl nbd::Export for Panics {
        fn info(&self) -> ExportInfo {
            ExportInfo::writable(1 << 20)
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), nbd::Errno> {
            Ok(())
        }
        fn submit(&self, _: Vec<nbd::Mutation>) {
            panic!("a bug of the export");
        }
        fn extents(&self, _: std::ops::Range<u64>, _: usize) -> Result<Vec<nbd::Extent>, nbd::Errno> {
            Ok(Vec::new())
        }
    }
    struct Names(Arc<Memory>);
    impl nbd::Exports for Names {
        fn list(&self) -> Vec<nbd::ExportEntry> {
            Vec::new()
        }
        fn open(&self, name: &str) -> Result<Arc<dyn nbd::Export>, nbd::OpenError> {
            if name == "vol" {
                Ok(Arc::new(Panics))
            } else {
                Ok(self.0.clone())
            }
        }
    }
    let mut f = Fixture::new();
    f.server = nbd::Server::new(Arc::new(Names(f.vol.clone())), Limits::default());
    f.server.listen_unix(&f.socket(), 0o600).unwrap();
    let mut s = connect(&f);
    flush(&mut s, 1);
    assert!(is_cut(&mut s));
    until(|| f.server.open_connections().is_empty());
    ok("nbdinfo", &["--size", &f.uri("fine")]);
}
