//! Our nodes: the real program, with its defaults, on volumes that were written before.

use crate::{
    bench::write_noise,
    common::{PROD, Pair, REC, Setup, other},
    processors,
};
use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use testkit::{nbd::Client, proc::Scratch};

/// The volume.
pub const DATA: &str = "c1/data";

/// Limits of what a run may leave behind, so that it does not fill the disk of who runs it. What they bound is the past, not the
/// work.
const KEEP: &str = "rollback_window = \"24h\"\njournal_limit = \"6G\"\n";

/// How long anything may take to come to rest.
const REST: Duration = Duration::from_secs(900);

/// One production with or without its recovery node.
pub struct Nodes {
    pub pair: Pair,
    both: bool,
    /// The node that is production now.
    pub acting: &'static str,
}

/// What is set up.
pub struct Plan<'a> {
    pub name: &'a str,
    /// Bytes of the volume; `image` has them, or a new one is filled.
    pub len: u64,
    /// The file of production's volume.
    pub image: Option<&'a Path>,
    /// Keys of the context beside the defaults.
    pub keys: &'a str,
}

impl<'a> Plan<'a> {
    pub fn new(name: &'a str, len: u64) -> Self {
        Self {
            name,
            len,
            image: None,
            keys: KEEP,
        }
    }

    /// The nodes, configured and not started.
    pub fn stopped(&self) -> Nodes {
        self.stopped_in(Scratch::new(&format!("bench-{}", self.name)))
    }

    /// As [`Plan::stopped`], in a folder that is there already.
    pub fn stopped_in(&self, scratch: Scratch) -> Nodes {
        let setup = Setup {
            context: Box::leak(self.keys.to_owned().into_boxed_str()),
            volumes: vec![("data", self.len)],
            ..Setup::default()
        };
        let pair = Pair::stopped_in(scratch, &setup);
        let image: PathBuf = self.image.map_or_else(
            || {
                let path = pair.scratch.join("volume");
                write_noise(&path, self.len, 7);
                path
            },
            Path::to_owned,
        );
        for node in [PROD, REC] {
            let path = pair.scratch.join(format!("state/{node}/contexts/1.toml"));
            let mut file = OpenOptions::new().append(true).open(path).expect("it was made");
            let backing = format!("[volume.backing]\n{PROD} = \"{}\"\n", image.display());
            file.write_all(backing.as_bytes()).expect("it can be written");
        }
        Nodes {
            pair,
            both: false,
            acting: PROD,
        }
    }

    /// Journaling with the peer away: production alone.
    pub fn capture(&self) -> Nodes {
        let nodes = self.stopped();
        nodes.pair.start(PROD);
        nodes.rest();
        nodes
    }

    /// The full path: journaling, TLS to a live recovery node on this machine, apply with undo. The first sync is over.
    pub fn full(&self) -> Nodes {
        let mut nodes = self.stopped();
        nodes.pair.start(PROD);
        nodes.pair.start(REC);
        nodes.both = true;
        nodes.wait_consistent();
        nodes.rest();
        nodes
    }
}

impl Plan<'_> {
    /// As [`Plan::full`], for a volume that is one hole: so is its replica, and nothing needs to be copied.
    pub fn full_of_nothing(&self) -> Nodes {
        let mut nodes = self.stopped();
        nodes.pair.start(PROD);
        nodes.pair.cli(PROD, &["map", "clean", "-qC", "1"]).ok();
        nodes.start_recovery();
        nodes.wait_consistent();
        nodes.rest();
        nodes
    }
}

impl Nodes {
    /// Starts the recovery node of a production that was alone.
    pub fn start_recovery(&mut self) {
        self.pair.start(REC);
        self.both = true;
    }

    /// Waits until the replica is consistent, however long the first sync takes.
    pub fn wait_consistent(&self) {
        let seconds = REST.as_secs().to_string();
        let wait = ["wait", "-C", "1", "--until", "consistent", "--timeout", &seconds];
        done(&mut self.pair.command(self.acting, &wait));
    }

    /// What clients of the protected volume take.
    pub fn uri(&self) -> String {
        self.pair.uri(self.acting, DATA)
    }

    pub fn client(&self) -> Client {
        self.pair.open(self.acting, DATA)
    }

    /// Waits until nothing is left to do: all is on the volumes and synced, and with a peer received and applied there.
    ///
    /// # Panics
    /// When a context is not at rest in fifteen minutes.
    pub fn rest(&self) {
        if self.both {
            // A mark seals the open container, so that the peer can apply it.
            let name = format!("rest{}", unique());
            let mark = ["rtmark", "-C", "1", "--name", &name];
            self.pair.cli(self.acting, &mark).ok();
        }
        let began = Instant::now();
        loop {
            let here = self.pair.status(self.acting);
            let cursor = |name: &str| here["cursors"][name].as_u64().expect("a cursor");
            let head = cursor("appended");
            let there = !self.both || self.pair.cursor(other(self.acting), "applied").0 >= head;
            // A verify that waits for something does nothing either.
            let verifies = here["verifying"].is_object() && here["verifying"]["waits"].is_null();
            if cursor("checkpointed") >= head && there && !verifies {
                return;
            }
            assert!(began.elapsed() < REST, "not at rest: {here}");
            sleep(Duration::from_millis(100));
        }
    }

    /// What both daemons have in memory, in bytes.
    pub fn memory(&self) -> [u64; 2] {
        [PROD, REC].map(|node| resident(self.pair.id(node)))
    }

    /// Seconds of processors that a daemon has taken; none where there is none.
    pub fn processor(&self, node: &str) -> f64 {
        if node == REC && !self.both {
            return 0.0;
        }
        processors::of_process(self.pair.id(node))
    }

    /// A command on the recovery node, as [`done`].
    pub fn on_recovery(&self, args: &[&str]) -> String {
        done(&mut self.pair.command(REC, args))
    }

    /// Releases all snapshots.
    pub fn release_all(&self) {
        self.pair.cli(REC, &["scrt_ra", "-C", "1", "-W", "--all"]).ok();
    }

    /// Position of the newest record.
    pub fn head(&self) -> u64 {
        self.pair.cursor(self.acting, "appended").0
    }
}

/// Bytes that a process has in memory.
pub fn resident(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .unwrap_or_else(|| panic!("{path}: {text}"));
    kib << 10
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs a command to its end, without looking at it now and then: for commands whose time is measured. Answers its output.
///
/// # Panics
/// When it fails.
pub fn done(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    said(&output.stdout)
}
