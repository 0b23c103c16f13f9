//! A client that outlives its server: nothing is lost, nothing is answered twice, and what cannot be had is said in time.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Fixture, Memory, SIZE, ok, pattern};
use nbd::{ExportInfo, Limits, Relay, RelayError, RelayEvent, Relayed};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Longer than any test takes.
const EVER: Duration = Duration::from_secs(3600);
const EIO: u32 = 5;

/// A server that does not wait for what is not answered: it stops as if it were killed.
fn hasty() -> Limits {
    Limits {
        drain_timeout: Duration::ZERO,
        ..Limits::default()
    }
}

/// A relay with one client.
struct Client {
    socket: UnixStream,
    events: Arc<Mutex<Vec<RelayEvent>>>,
    serving: Option<JoinHandle<std::io::Result<()>>>,
}

impl Client {
    fn new(f: &Fixture, patience: Duration) -> Self {
        Self::to(f.socket(), patience)
    }

    fn to(socket: PathBuf, patience: Duration) -> Self {
        let events: Arc<Mutex<Vec<RelayEvent>>> = Arc::default();
        let told = Arc::clone(&events);
        let relayed = Relayed {
            socket,
            export: "vol".into(),
            patience,
            server: None,
        };
        let relay = Relay::open(relayed, move |event| told.lock().unwrap().push(event)).unwrap();
        let (mut socket, other) = UnixStream::pair().unwrap();
        let serving = Some(thread::spawn(move || relay.serve(other)));
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.read_exact(&mut [0; 18]).unwrap();
        socket.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        let mut told = [0; 10];
        socket.read_exact(&mut told).unwrap();
        assert_eq!(told[..8], SIZE.to_be_bytes());
        Self {
            socket,
            events,
            serving,
        }
    }

    fn request(&mut self, command: u8, cookie: u64, offset: u64, len: u32, payload: &[u8]) {
        let mut p = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, command];
        p.extend(cookie.to_be_bytes());
        p.extend(offset.to_be_bytes());
        p.extend(len.to_be_bytes());
        p.extend(payload);
        self.socket.write_all(&p).unwrap();
    }

    fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        self.request(1, cookie, offset, u32::try_from(data.len()).unwrap(), data);
    }

    fn flush(&mut self, cookie: u64) {
        self.request(3, cookie, 0, 0, &[]);
    }

    /// The next answer: its cookie and error.
    fn hear(&mut self) -> (u64, u32) {
        let mut reply = [0; 16];
        self.socket.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        (
            u64::from_be_bytes(reply[8..].try_into().unwrap()),
            u32::from_be_bytes(reply[4..8].try_into().unwrap()),
        )
    }

    fn read(&mut self, cookie: u64, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.request(0, cookie, offset, len, &[]);
        let (answered, error) = self.hear();
        assert_eq!(answered, cookie);
        if error != 0 {
            return Err(error);
        }
        let mut data = vec![0; len as usize];
        self.socket.read_exact(&mut data).unwrap();
        Ok(data)
    }

    fn has_seen(&self, what: impl Fn(&RelayEvent) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(what)
    }

    fn wait_for(&self, what: impl Fn(&RelayEvent) -> bool) {
        while !self.has_seen(&what) {
            thread::yield_now();
        }
    }

    /// Leaves; the relay lets go of everything.
    fn leave(mut self) {
        self.request(2, 0, 0, 0, &[]);
        self.serving.take().unwrap().join().unwrap().unwrap();
    }
}

#[test]
fn real_clients_work_through_a_relay() {
    let f = Fixture::new();
    let relayed = Relayed {
        socket: f.socket(),
        export: "vol".into(),
        patience: EVER,
        server: None,
    };
    let relay = Arc::new(Relay::open(relayed, |_| {}).unwrap());
    let path = f.path("relay");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let relay = Arc::clone(&relay);
            thread::spawn(move || relay.serve(stream));
        }
    });
    let uri = format!("nbd+unix:///whatever?socket={path}");
    let info = ok("nbdinfo", &[&uri]);
    for words in [
        "export-size: 67108864",
        "can_multi_conn: true",
        "can_flush: true",
        "is_read_only: false",
    ] {
        assert!(info.contains(words), "'{words}' is not in {info}");
    }
    let (source, back) = (f.path("source"), f.path("back"));
    fs::write(&source, pattern(usize::try_from(SIZE).unwrap())).unwrap();
    ok("nbdcopy", &["--connections=4", "--flush", &source, &uri]);
    assert!(f.vol.bytes() == fs::read(&source).unwrap());
    ok("nbdcopy", &["--connections=4", &uri, &back]);
    assert!(fs::read(&back).unwrap() == fs::read(&source).unwrap());
    ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 7 -f 4k 64k",
            "-c",
            "write -z 1M 64k",
            "-c",
            "read -P 7 4k 64k",
            "-c",
            "read -P 0 1M 64k",
            &uri,
        ],
    );
    assert!(f.vol.saw_fua() && f.vol.saw("zero 1048576+65536 true"));
}

#[test]
fn what_was_not_answered_is_sent_again() {
    let mut f = Fixture::with(hasty(), SIZE);
    f.vol.shut_gate();
    let mut c = Client::new(&f, EVER);
    c.write(1, 0, b"one");
    c.write(2, 4096, b"two");
    c.flush(3);
    f.vol.wait_held(3);
    f.server.stop();
    c.wait_for(|e| *e == RelayEvent::Lost);
    // Asked while nobody is there.
    c.write(4, 8192, b"four");
    // These answers belong to a connection that is gone.
    f.vol.open_gate();
    f.start_again(Limits::default());
    let mut heard: Vec<(u64, u32)> = (0..4).map(|_| c.hear()).collect();
    heard.sort_unstable();
    assert_eq!(heard, [(1, 0), (2, 0), (3, 0), (4, 0)]);
    assert_eq!(c.read(5, 4096, 3).unwrap(), b"two");
    assert!(c.has_seen(|e| matches!(e, RelayEvent::Back(_))));
    let log = f.vol.log.lock().unwrap().clone();
    let count = |what: &str| log.iter().filter(|(w, _)| w == what).count();
    assert_eq!(
        (count("write 0+3"), count("flush"), count("write 8192+4")),
        (2, 2, 1)
    );
    c.leave();
}

/// Copies bytes one way until `left` are copied or the stream ends; the other side sees its end then.
fn copy(mut from: &UnixStream, mut to: &UnixStream, mut left: usize) {
    let mut buf = vec![0; 4096];
    while left > 0 {
        let most = left.min(buf.len());
        match from.read(&mut buf[..most]) {
            Ok(n @ 1..) if to.write_all(&buf[..n]).is_ok() => left -= n,
            _ => break,
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// A line between a client and a server that holds for so many bytes each way. What the server had received it carries out
/// before the client sees the end, as when it closes its own end.
fn line(client: &UnixStream, server: &UnixStream, forward: usize, back: usize) {
    thread::scope(|scope| {
        scope.spawn(|| copy(client, server, forward));
        copy(server, client, back);
        let _ = server.shutdown(std::net::Shutdown::Write);
        // The rest of the answers is lost.
        let mut server = server;
        let _ = std::io::copy(&mut server, &mut std::io::sink());
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
}

/// A connection that breaks after any byte, in either direction: each request is answered once, rightly, and all is there.
#[test]
fn a_line_that_breaks_anywhere_costs_nothing() {
    let f = Fixture::new();
    let (path, server) = (f.path("line"), f.socket());
    let listener = UnixListener::bind(&path).unwrap();
    let (calm, cuts) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(0)));
    let (is_calm, cut) = (Arc::clone(&calm), Arc::clone(&cuts));
    thread::spawn(move || {
        let mut state = 12345_u32;
        for client in listener.incoming().flatten() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let most = match is_calm.load(Ordering::SeqCst) {
                true => usize::MAX,
                // Some within the negotiation, some within the first answer, some after many.
                false => (state >> 8) as usize % [200, 5_000, 100_000][(state >> 4) as usize % 3],
            };
            *cut.lock().unwrap() += 1;
            let real = UnixStream::connect(&server).unwrap();
            let (forward, back) = match state & 1 {
                0 => (most, usize::MAX),
                _ => (usize::MAX, most),
            };
            thread::spawn(move || line(&client, &real, forward, back));
        }
    });
    let mut c = Client::to(path.into(), EVER);
    // The connection that is up is a calm one.
    c.flush(0);
    assert_eq!(c.hear(), (0, 0));
    calm.store(false, Ordering::SeqCst);
    assert!(f.server.disconnect("vol") > 0);
    let mut expected: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut cookie = 0;
    for round in 0..100_u64 {
        let mut asked = Vec::new();
        for n in 0..8 {
            cookie += 1;
            let slot = (round * 5 + n) % 64;
            let data = pattern(1 + usize::try_from(cookie * 37 % 9000).unwrap())
                .iter()
                .map(|b| b.wrapping_add(u8::try_from(cookie % 251).unwrap()))
                .collect::<Vec<_>>();
            c.write(cookie, slot * 16384, &data);
            let kept = expected.entry(slot).or_insert_with(|| vec![0; 16384]);
            kept[..data.len()].copy_from_slice(&data);
            asked.push(cookie);
        }
        let mut heard: Vec<u64> = asked
            .iter()
            .map(|_| {
                let (cookie, error) = c.hear();
                assert_eq!(error, 0, "request {cookie}");
                cookie
            })
            .collect();
        heard.sort_unstable();
        assert_eq!(heard, asked);
        cookie += 1;
        let slot = round * 7 % 64;
        let now = c.read(cookie, slot * 16384, 16384).unwrap();
        let zeroes = vec![0; 16384];
        assert!(
            now == *expected.get(&slot).unwrap_or(&zeroes),
            "slot {slot} in round {round}"
        );
    }
    c.flush(0);
    assert_eq!(c.hear(), (0, 0));
    let cuts = *cuts.lock().unwrap();
    assert!(cuts > 20, "only {cuts} connections");
    println!("{cuts} connections");
    let bytes = f.vol.bytes();
    for (slot, kept) in expected {
        let at = usize::try_from(slot * 16384).unwrap();
        assert!(bytes[at..at + 16384] == kept, "slot {slot}");
    }
    c.leave();
}

#[test]
fn an_error_is_handed_on_and_nothing_is_tried_again() {
    let f = Fixture::new();
    *f.vol.bad_from.lock().unwrap() = 4096;
    let mut c = Client::new(&f, EVER);
    assert_eq!(c.read(1, 4096, 512), Err(EIO));
    assert_eq!(c.read(2, 0, 512), Ok(vec![0; 512]));
    // Past the end: refused by the server.
    c.write(3, SIZE, b"x");
    assert_eq!(c.hear(), (3, 28));
    assert!(c.events.lock().unwrap().is_empty());
    c.leave();
}

#[test]
fn who_has_waited_long_enough_gets_an_error_and_is_served_again_later() {
    let mut f = Fixture::with(hasty(), SIZE);
    let mut c = Client::new(&f, Duration::from_millis(100));
    c.flush(1);
    assert_eq!(c.hear(), (1, 0));
    f.server.stop();
    c.flush(2);
    assert_eq!(c.hear(), (2, EIO));
    assert!(c.has_seen(|e| matches!(e, RelayEvent::Failing(_))));
    // From now on at once.
    assert_eq!(c.read(3, 0, 512), Err(EIO));
    f.start_again(Limits::default());
    c.wait_for(|e| matches!(e, RelayEvent::Back(_)));
    assert_eq!(c.read(4, 0, 512), Ok(vec![0; 512]));
    c.leave();
}

#[test]
fn another_export_under_the_same_name_is_refused_at_once() {
    let mut f = Fixture::with(hasty(), SIZE);
    let mut c = Client::new(&f, EVER);
    c.flush(1);
    assert_eq!(c.hear(), (1, 0));
    f.vol = Memory::new(ExportInfo::writable(SIZE / 2));
    f.start_again(Limits::default());
    c.flush(2);
    assert_eq!(c.hear(), (2, EIO));
    assert!(
        c.has_seen(|e| *e == RelayEvent::Failing("vol is another export than before".into())),
        "{:?}",
        c.events
    );
    assert!(!f.vol.saw("flush"));
    c.leave();
}

#[test]
fn without_patience_the_first_break_is_the_end() {
    let mut f = Fixture::with(hasty(), SIZE);
    f.vol.shut_gate();
    let mut c = Client::new(&f, Duration::ZERO);
    c.flush(1);
    f.vol.wait_held(1);
    f.start_again(Limits::default());
    f.vol.open_gate();
    assert_eq!(c.hear(), (1, EIO));
    c.wait_for(|e| matches!(e, RelayEvent::Failing(_)));
    let flushes = f.vol.log.lock().unwrap().len();
    c.flush(2);
    assert_eq!(c.hear(), (2, EIO));
    assert_eq!(f.vol.log.lock().unwrap().len(), flushes);
    c.leave();
}

#[test]
fn what_is_not_served_is_not_relayed() {
    let f = Fixture::new();
    let open = |export: &str, socket: PathBuf| {
        let relayed = Relayed {
            socket,
            export: export.into(),
            patience: EVER,
            server: None,
        };
        Relay::open(relayed, |_| {}).map(drop)
    };
    let refused = open("held", f.socket()).unwrap_err();
    assert_eq!(refused.to_string(), "held is not for you today");
    let away = open("vol", f.folder.path().join("nothing")).unwrap_err();
    assert!(matches!(away, RelayError::Away { .. }), "{away}");
}

#[test]
fn a_client_may_leave_while_the_server_is_away() {
    let f = Fixture::with(hasty(), SIZE);
    f.vol.shut_gate();
    let mut c = Client::new(&f, EVER);
    c.flush(1);
    f.vol.wait_held(1);
    f.server.stop();
    c.wait_for(|e| *e == RelayEvent::Lost);
    c.leave();
}

#[test]
fn a_client_that_breaks_the_protocol_is_cut() {
    let f = Fixture::new();
    for bad in [
        [b"NOT A REQUEST".as_slice(), &[0; 15]].concat(),
        // A write of 3 GiB.
        [
            &[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1],
            [0; 16].as_slice(),
            &[0xc0, 0, 0, 0],
        ]
        .concat(),
    ] {
        let mut c = Client::new(&f, EVER);
        c.socket.write_all(&bad).unwrap();
        assert_eq!(c.socket.read(&mut [0; 1]).unwrap(), 0);
        let ended = c.serving.take().unwrap().join().unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }
    // Far too long a read is refused, and nothing is allocated for it.
    let mut c = Client::new(&f, EVER);
    assert_eq!(c.read(1, 0, 3 << 30), Err(22));
    c.leave();
}
