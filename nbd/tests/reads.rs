//! Many reads of one client at a time: run in one call, shared with other threads where they take long.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{
    Fixture, Memory,
    raw::{DATA, READ, Raw, Said, Style},
};
use nbd::{Errno, Export, ExportEntry, ExportInfo, Exports, Extent, Limits, Mutation, OpenError, Server};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

const SIZE: u64 = 1 << 30;
const BLOCK: u64 = 4096;

/// Each block holds its number, over and over.
#[derive(Default)]
struct Numbers {
    /// What a read takes.
    takes: Duration,
    /// Reads of this block fail,
    bad: Option<u64>,
    /// and of this one panic.
    panics: Option<u64>,
    /// Who read.
    threads: Mutex<BTreeSet<String>>,
    /// The most reads of one call.
    longest: Mutex<usize>,
    /// Mutations that were carried out.
    changes: AtomicUsize,
}

impl Export for Numbers {
    fn info(&self) -> ExportInfo {
        ExportInfo::writable(SIZE)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.threads
            .lock()
            .unwrap()
            .insert(thread::current().name().unwrap().to_owned());
        thread::sleep(self.takes);
        let block = offset / BLOCK;
        assert_ne!(Some(block), self.panics, "a bug of the export");
        if Some(block) == self.bad {
            return Err(Errno::Io);
        }
        buf.copy_from_slice(&bytes(offset, buf.len()));
        Ok(())
    }

    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> Result<(), Errno> {
        let mut longest = self.longest.lock().unwrap();
        *longest = reads.len().max(*longest);
        drop(longest);
        reads.iter_mut().try_for_each(|(at, buf)| self.read(*at, buf))
    }

    fn submit(&self, batch: Vec<Mutation>) {
        for m in batch {
            thread::sleep(self.takes);
            self.changes.fetch_add(1, Ordering::SeqCst);
            m.reply.done(Ok(()));
        }
    }

    fn extents(&self, range: Range<u64>, _: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent {
            len: range.end - range.start,
            hole: false,
            zero: false,
        }])
    }
}

fn bytes(offset: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| (at / BLOCK).to_le_bytes()[usize::try_from(at % 8).unwrap()];
    (offset..offset + len as u64).map(byte).collect()
}

struct Names(Arc<Numbers>);

impl Exports for Names {
    fn list(&self) -> Vec<ExportEntry> {
        Vec::new()
    }

    fn open(&self, _: &str) -> Result<Arc<dyn Export>, OpenError> {
        Ok(self.0.clone())
    }
}

fn serving(numbers: Numbers) -> (Fixture, Arc<Numbers>) {
    let numbers = Arc::new(numbers);
    let mut f = Fixture::new();
    f.server = Server::new(Arc::new(Names(numbers.clone())), Limits::default());
    f.server.listen_unix(&f.socket(), 0o600).unwrap();
    (f, numbers)
}

/// Sends reads of all lengths and places at once.
fn ask(client: &mut Raw, reads: u64) -> BTreeMap<u64, (u64, u64)> {
    let all: BTreeMap<_, _> = (0..reads)
        .map(|n| (n, (n * 77_777 * 8 % (SIZE >> 1), 1 + n * 1234 % 20_000)))
        .collect();
    let mut sent = Vec::new();
    for (cookie, (offset, len)) in &all {
        sent.extend(client.header(READ, 0, *cookie, *offset, *len));
    }
    client.stream.write_all(&sent).unwrap();
    all
}

/// Hears every reply once; answers the cookies of those that failed.
fn hear(client: &mut Raw, mut asked: BTreeMap<u64, (u64, u64)>) -> Vec<u64> {
    let mut failed = Vec::new();
    while !asked.is_empty() {
        let (cookie, said) = client.hear(false, None);
        let (offset, len) = asked.remove(&cookie).unwrap();
        match said {
            Said::Chunks(chunks) if chunks.len() == 1 && chunks[0].0 == DATA => {
                let data = &chunks[0].1;
                assert_eq!(data[..8], offset.to_be_bytes());
                assert!(
                    data[8..] == bytes(offset, usize::try_from(len).unwrap()),
                    "{offset}+{len}"
                );
            }
            said => {
                assert_eq!(said.errno(), 5, "{said:?}");
                failed.push(cookie);
            }
        }
    }
    failed
}

#[test]
fn reads_that_come_together_are_run_in_few_calls() {
    let (f, numbers) = serving(Numbers::default());
    for style in [Style::Structured, Style::Extended] {
        let mut client = Raw::open(&f, "x", style);
        for _ in 0..5 {
            let asked = ask(&mut client, 200);
            assert_eq!(hear(&mut client, asked), [0; 0]);
        }
    }
    assert!(*numbers.longest.lock().unwrap() > 5);
}

#[test]
fn one_that_fails_among_many_fails_alone() {
    let bad = 77_777 * 8 * 13 / BLOCK;
    let (f, _) = serving(Numbers {
        bad: Some(bad),
        ..Numbers::default()
    });
    for style in [Style::Structured, Style::Extended] {
        let mut client = Raw::open(&f, "x", style);
        let asked = ask(&mut client, 100);
        let expected: Vec<_> = asked.iter().filter(|(_, (at, _))| at / BLOCK == bad).collect();
        let expected: Vec<_> = expected.into_iter().map(|(cookie, _)| *cookie).collect();
        assert_eq!(expected, [13]);
        assert_eq!(hear(&mut client, asked), expected);
        assert!(client.is_alive());
    }
}

#[test]
fn slow_reads_are_shared_and_their_readers_leave_with_the_client() {
    let (f, numbers) = serving(Numbers {
        takes: Duration::from_millis(1),
        ..Numbers::default()
    });
    let mut client = Raw::structured(&f, "x");
    for _ in 0..4 {
        let asked = ask(&mut client, 64);
        assert_eq!(hear(&mut client, asked), [0; 0]);
    }
    let threads = numbers.threads.lock().unwrap().clone();
    let helpers = threads.iter().filter(|name| name.contains("-r")).count();
    assert!((1..=3).contains(&helpers), "{threads:?}");
    assert_eq!(threads.len(), helpers + 1, "{threads:?}");
    // A client that leaves in the middle.
    ask(&mut client, 64);
    drop(client);
    while !f.server.open_connections().is_empty() {
        thread::yield_now();
    }
    // Nobody but the server and this test knows it.
    assert_eq!(f.server.stop(), 0);
    drop(f);
    assert_eq!(Arc::strong_count(&numbers), 1);
}

/// A relay asks again elsewhere what was not answered: nothing that was received before may be carried out after the socket is left.
#[test]
fn a_panic_among_shared_reads_costs_their_connection_and_only_behind_its_writes() {
    let (f, numbers) = serving(Numbers {
        takes: Duration::from_millis(1),
        panics: Some(SIZE / BLOCK - 1),
        ..Numbers::default()
    });
    let mut client = Raw::structured(&f, "x");
    // Who reads last of a round is a reader.
    while numbers.threads.lock().unwrap().len() < 2 {
        let asked = ask(&mut client, 64);
        hear(&mut client, asked);
    }
    let mut sent = Vec::new();
    for cookie in 0..32 {
        sent.extend(client.header(READ, 0, cookie, 0, 512));
    }
    for cookie in 32..64 {
        sent.extend(client.header(READ, 0, cookie, SIZE - 512, 512));
    }
    client.stream.write_all(&sent).unwrap();
    thread::sleep(Duration::from_millis(1));
    let mut sent = Vec::new();
    for cookie in 100..300 {
        sent.extend(client.header(common::raw::TRIM, 0, cookie, 0, 512));
    }
    let sent = client.stream.write_all(&sent);
    while !client.is_cut() {}
    let changes = numbers.changes.load(Ordering::SeqCst);
    assert!(sent.is_err() || changes == 200, "{changes}");
    thread::sleep(Duration::from_millis(50));
    assert_eq!(
        numbers.changes.load(Ordering::SeqCst),
        changes,
        "carried out behind the end"
    );
    while !f.server.open_connections().is_empty() {
        thread::yield_now();
    }
    assert!(Raw::structured(&f, "x").is_alive());
}

#[test]
fn reads_behind_writes_see_them() {
    let f = Fixture::new();
    let vol: &Memory = &f.vol;
    vol.fill(0..1 << 20, 3);
    let mut client = Raw::structured(&f, "vol");
    let mut sent = Vec::new();
    for n in 0..64_u64 {
        sent.extend(client.header(common::raw::WRITE, 0, n, n * 512, 512));
        sent.extend(vec![9; 512]);
        sent.extend(client.header(READ, 0, 1000 + n, n * 512, 512));
    }
    client.stream.write_all(&sent).unwrap();
    for _ in 0..128 {
        let (cookie, said) = client.hear(false, None);
        if cookie >= 1000 {
            let chunks = said.chunks();
            let all = chunks.iter().flat_map(|(_, data)| &data[8..]);
            assert!(all.copied().all(|b| b == 9), "{cookie}");
        }
    }
}
