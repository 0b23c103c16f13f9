//! What the tests serve, and how they run the clients of others.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod pki;
pub mod raw;

use nbd::{
    Errno, Export, ExportEntry, ExportInfo, Exports, Extent, Limits, MetaContext, Mutation, Op, OpenError,
    Reply, Security, Server, Status,
};
use std::{
    ops::Range,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};
use tempfile::TempDir;

/// Granularity of the holes of [`Memory`].
const BLOCK: u64 = 4096;

/// An export in memory. Writes are answered at once, flushes and FUA writes by a thread that plays the sync thread.
///
/// Its context `x-test:data` has status 1 where there are data, and `x-test:wide` a status of 64 bits everywhere.
pub struct Memory {
    info: ExportInfo,
    bytes: Arc<Mutex<Vec<u8>>>,
    syncer: Mutex<mpsc::Sender<Reply>>,
    /// What was submitted, in order; of a write, its place and length.
    pub log: Mutex<Vec<(String, bool)>>,
    /// Lengths of the batches.
    pub batches: Mutex<Vec<usize>>,
    gate: Gate,
    /// Reads at or past this offset fail.
    pub bad_from: Mutex<u64>,
    pub submitted_bytes: AtomicUsize,
    pub read_bytes: AtomicUsize,
}

/// Holds answers back while it is shut.
#[derive(Default)]
struct Gate {
    /// While it is shut; under one lock, so that nothing is held back after the gate was opened.
    held: Mutex<Option<Vec<Reply>>>,
    changed: Condvar,
}

impl Memory {
    pub fn new(info: ExportInfo) -> Arc<Self> {
        let (syncer, work) = mpsc::channel::<Reply>();
        thread::spawn(move || {
            while let Ok(first) = work.recv() {
                Reply::finish_all([first].into_iter().chain(work.try_iter()).map(|r| (r, Ok(()))));
            }
        });
        Arc::new(Self {
            bytes: Arc::new(Mutex::new(vec![0; usize::try_from(info.size).unwrap()])),
            info,
            syncer: Mutex::new(syncer),
            log: Mutex::default(),
            batches: Mutex::default(),
            gate: Gate::default(),
            bad_from: Mutex::new(u64::MAX),
            submitted_bytes: AtomicUsize::new(0),
            read_bytes: AtomicUsize::new(0),
        })
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    pub fn fill(&self, range: Range<usize>, byte: u8) {
        self.bytes.lock().unwrap()[range].fill(byte);
    }

    /// From now on no mutation is answered.
    pub fn shut_gate(&self) {
        self.gate.held.lock().unwrap().get_or_insert_default();
    }

    /// Answers all that was held back, and from now on everything.
    pub fn open_gate(&self) {
        let held = self.gate.held.lock().unwrap().take();
        Reply::finish_all(held.into_iter().flatten().map(|r| (r, Ok(()))));
    }

    /// Waits until so many mutations are held back.
    pub fn wait_held(&self, n: usize) {
        let mut held = self.gate.held.lock().unwrap();
        while held.as_ref().is_none_or(|held| held.len() < n) {
            held = self.gate.changed.wait(held).unwrap();
        }
    }

    pub fn held(&self) -> usize {
        self.gate.held.lock().unwrap().as_ref().map_or(0, Vec::len)
    }

    /// Whether this was submitted, with FUA or without.
    pub fn saw(&self, what: &str) -> bool {
        self.log.lock().unwrap().iter().any(|(w, _)| w == what)
    }

    pub fn saw_fua(&self) -> bool {
        self.log.lock().unwrap().iter().any(|(_, fua)| *fua)
    }
}

impl Export for Memory {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        if offset + buf.len() as u64 > *self.bad_from.lock().unwrap() {
            return Err(Errno::Io);
        }
        self.read_bytes.fetch_add(buf.len(), Ordering::SeqCst);
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn submit(&self, batch: Vec<Mutation>) {
        self.batches.lock().unwrap().push(batch.len());
        for m in batch {
            let range = |offset: u64, len: u64| {
                usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()
            };
            let what = match &m.op {
                Op::Write { offset, data } => {
                    self.submitted_bytes.fetch_add(data.len(), Ordering::SeqCst);
                    self.bytes.lock().unwrap()[range(*offset, data.len() as u64)].copy_from_slice(data);
                    format!("write {offset}+{}", data.len())
                }
                Op::Zero {
                    offset,
                    len,
                    may_trim,
                } => {
                    self.bytes.lock().unwrap()[range(*offset, *len)].fill(0);
                    format!("zero {offset}+{len} {may_trim}")
                }
                Op::Trim { offset, len } => {
                    self.bytes.lock().unwrap()[range(*offset, *len)].fill(0);
                    format!("trim {offset}+{len}")
                }
                Op::Flush => "flush".to_owned(),
            };
            let durable = m.fua || m.op == Op::Flush;
            self.log.lock().unwrap().push((what, m.fua));
            let mut held = self.gate.held.lock().unwrap();
            if let Some(held) = &mut *held {
                held.push(m.reply);
                self.gate.changed.notify_all();
                continue;
            }
            drop(held);
            if durable {
                self.syncer.lock().unwrap().send(m.reply).unwrap();
            } else {
                m.reply.done(Ok(()));
            }
        }
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, Errno> {
        Ok(extents(&self.bytes.lock().unwrap(), range, max))
    }

    fn contexts(&self) -> Vec<String> {
        vec!["x-test:data".into(), "x-test:wide".into()]
    }

    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        let bytes = self.bytes.clone();
        match name {
            "x-test:data" => Ok(Some(Arc::new(Written(bytes)))),
            "x-test:wide" => Ok(Some(Arc::new(Wide))),
            "x-test:bad" => Err("x-test:bad is bad".into()),
            _ => Ok(None),
        }
    }
}

fn extents(bytes: &[u8], range: Range<u64>, max: usize) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = ((at / BLOCK + 1) * BLOCK).min(bytes.len() as u64);
        let zero = bytes[usize::try_from(at).unwrap()..usize::try_from(end).unwrap()]
            .iter()
            .all(|b| *b == 0);
        let full = out.len() == max;
        match out.last_mut() {
            Some(last) if last.zero == zero => last.len += end - at,
            _ if full => break,
            _ => out.push(Extent {
                len: end - at,
                hole: zero,
                zero,
            }),
        }
        at = end;
    }
    out
}

struct Written(Arc<Mutex<Vec<u8>>>);

impl MetaContext for Written {
    fn status(&self, range: Range<u64>, max: usize) -> Result<Vec<Status>, Errno> {
        let found = extents(&self.0.lock().unwrap(), range, max);
        Ok(found
            .into_iter()
            .map(|e| Status {
                len: e.len,
                bits: u64::from(!e.zero),
            })
            .collect())
    }
}

struct Wide;

impl MetaContext for Wide {
    fn status(&self, range: Range<u64>, _: usize) -> Result<Vec<Status>, Errno> {
        Ok(vec![Status {
            len: range.end - range.start,
            bits: 0x1234_5678_9abc_def0,
        }])
    }

    fn is_wide(&self) -> bool {
        true
    }
}

/// An export of any size that holds nothing and remembers what it was told.
pub struct Void {
    pub size: u64,
    pub log: Mutex<Vec<String>>,
}

impl Export for Void {
    fn info(&self) -> ExportInfo {
        ExportInfo::writable(self.size)
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.fill(0);
        Ok(())
    }

    fn submit(&self, batch: Vec<Mutation>) {
        for m in batch {
            self.log.lock().unwrap().push(format!("{:?}", m.op));
            m.reply.done(Ok(()));
        }
    }

    fn extents(&self, range: Range<u64>, _: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent {
            len: self.size - range.start,
            hole: true,
            zero: true,
        }])
    }
}

/// A server of exports, on a unix socket and on TCP: `vol` (also the default), `ro`, and in no list `huge`, of 3 TiB.
pub struct Fixture {
    pub vol: Arc<Memory>,
    pub ro: Arc<Memory>,
    pub huge: Arc<Void>,
    /// How often an export was opened.
    pub opened: Arc<AtomicUsize>,
    pub server: Server,
    pub folder: TempDir,
    pub port: u16,
}

struct Names {
    vol: Arc<Memory>,
    ro: Arc<Memory>,
    huge: Arc<Void>,
    opened: Arc<AtomicUsize>,
}

impl Exports for Names {
    fn list(&self) -> Vec<ExportEntry> {
        let entry = |name: &str, m: &Memory| ExportEntry {
            name: name.into(),
            description: m.info.description.clone(),
        };
        vec![entry("vol", &self.vol), entry("ro", &self.ro)]
    }

    fn may_be_plain(&self, name: &str) -> bool {
        name == "ro"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        match name {
            "" | "vol" => Ok(self.vol.clone()),
            "ro" => Ok(self.ro.clone()),
            "huge" => Ok(self.huge.clone()),
            "held" => Err(OpenError::Refused("held is not for you today".into())),
            _ => Err(OpenError::Unknown(format!("no export {name:?}"))),
        }
    }
}

pub const SIZE: u64 = 64 << 20;

impl Fixture {
    pub fn new() -> Self {
        Self::with(Limits::default(), SIZE)
    }

    pub fn with(limits: Limits, size: u64) -> Self {
        let named = |info: ExportInfo, name: &str, text: &str| ExportInfo {
            name: Some(name.into()),
            description: text.into(),
            ..info
        };
        let vol = Memory::new(named(ExportInfo::writable(size), "vol", "a volume, live"));
        let ro = Memory::new(named(ExportInfo::read_only(size), "ro", "a volume, as it was"));
        let huge = Arc::new(Void {
            size: 3 << 40,
            log: Mutex::default(),
        });
        let names = Names {
            vol: vol.clone(),
            ro: ro.clone(),
            huge: huge.clone(),
            opened: Arc::default(),
        };
        let opened = names.opened.clone();
        let server = Server::new(Arc::new(names), limits);
        let folder = tempfile::tempdir().unwrap();
        server.listen_unix(&folder.path().join("s"), 0o600).unwrap();
        let port = server
            .listen_tcp("127.0.0.1:0".parse().unwrap(), Security::Plain)
            .unwrap()
            .port();
        Self {
            vol,
            ro,
            huge,
            opened,
            server,
            folder,
            port,
        }
    }

    /// Stops the server, if that was not done, and starts another in its place.
    pub fn start_again(&mut self, limits: Limits) {
        self.server.stop();
        let exports = Names {
            vol: self.vol.clone(),
            ro: self.ro.clone(),
            huge: self.huge.clone(),
            opened: self.opened.clone(),
        };
        self.server = Server::new(Arc::new(exports), limits);
        self.server.listen_unix(&self.socket(), 0o600).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port)
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// Runs a client, which must be installed. It is stopped after two minutes.
pub fn run(tool: &str, args: &[&str]) -> Output {
    let output = Command::new("timeout")
        .arg("120")
        .arg(tool)
        .args(args)
        .output()
        .expect("coreutils are installed");
    match output.status.code() {
        Some(127) => panic!("{tool} is not installed: these tests need it"),
        Some(124) => panic!("{tool} {args:?} did not end in two minutes"),
        _ => output,
    }
}

/// Runs a client that must succeed, and returns what it printed.
pub fn ok(tool: &str, args: &[&str]) -> String {
    let output = run(tool, args);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}

/// Bytes that are data here and zeroes there.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut out = vec![0; len];
    for (i, chunk) in out.chunks_mut(64 << 10).enumerate() {
        if i % 3 != 1 {
            for b in chunk {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *b = (state >> 24) as u8;
            }
        }
    }
    out
}
