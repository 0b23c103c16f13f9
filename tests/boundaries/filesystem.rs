//! Kinds of file systems, and a stand on which what a crash left of one is recovered and checked.

use crate::{common::LONG, loader::Promise};
use std::{
    fmt,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};
use testkit::proc::{Scratch, need_tool, run, until};

/// A kind of file system, on a volume of the same name.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Bytes of its volume. Small: logs go round and blocks are used again and again.
    pub size: u64,
    /// Of a hundred flush points so many are its own: what they cost differs.
    pub share: usize,
    /// On so many stands its states are looked at. One for btrfs: older kernels mount the id of one only once.
    pub stands: usize,
    make: &'static [&'static str],
    /// Options of a mount under load.
    live: &'static str,
    /// Options of the mount that recovers. The kernel mounts the id of an xfs once.
    recover: &'static str,
    /// The checker, which mends nothing.
    check: &'static [&'static str],
}

/// All kinds.
pub const KINDS: [Kind; 3] = [
    Kind {
        name: "ext4",
        size: 64 << 20,
        share: 52,
        stands: 2,
        make: &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        live: "discard",
        recover: "rw",
        check: &["e2fsck", "-fn"],
    },
    Kind {
        name: "xfs",
        size: 64 << 20,
        share: 26,
        stands: 2,
        make: &["-q", "-f", "--unsupported", "-d", "agcount=2", "-l", "size=1400b"],
        live: "discard",
        recover: "rw,nouuid",
        check: &["xfs_repair", "-n", "-P"],
    },
    Kind {
        name: "btrfs",
        size: 128 << 20,
        share: 22,
        stands: 1,
        make: &["-q", "-f"],
        live: "discard=async",
        recover: "rw",
        check: &["btrfs", "check", "--readonly", "--check-data-csum"],
    },
];

impl Kind {
    /// Makes a file system.
    pub fn make(&self, device: &Path) {
        let mut mkfs = Command::new(need_tool(&format!("mkfs.{}", self.name)));
        run(mkfs.args(self.make).arg(device), LONG).ok();
    }

    /// Mounts it for a load.
    pub fn mount(&self, device: &Path, at: &Path) {
        let mut mount = Command::new("mount");
        mount.args(["-t", self.name, "-o", self.live]).arg(device).arg(at);
        run(&mut mount, LONG).ok();
    }

    /// Nobody has this device any more: the kernel remembers the newest state of a btrfs that it saw, and would take no older one.
    pub fn forget(&self, device: &Path) {
        if self.name == "btrfs" {
            let mut forget = Command::new(need_tool("btrfs"));
            run(forget.args(["device", "scan", "--forget"]).arg(device), LONG).ok();
        }
    }
}

/// A loop device on a file.
pub fn attach(file: &Path) -> PathBuf {
    let said = run(Command::new("losetup").args(["--find", "--show"]).arg(file), LONG).ok();
    said.trim().into()
}

/// What is wrong with a state.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// It cannot be mounted: the log cannot be recovered.
    Mount(String),
    /// Something that was synced is not there.
    Promise(String),
    /// The checker found something.
    Check(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(why) => write!(f, "it does not recover: {why}"),
            Self::Promise(why) => write!(f, "what was synced is not there: {why}"),
            Self::Check(why) => write!(f, "the checker finds: {why}"),
        }
    }
}

/// Where states are recovered and checked, one after the other: a file in memory with a loop device.
pub struct Stand {
    kind: Kind,
    memory: PathBuf,
    at: PathBuf,
    number: usize,
    /// How often it was made anew.
    made: usize,
    file: File,
    device: PathBuf,
}

/// Runs a command to its end; what it said when it failed.
fn tool(command: &mut Command) -> Result<(), String> {
    // Thousands of them: waited for by the kernel, and not by looking every few milliseconds.
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    if done.status.success() {
        return Ok(());
    }
    let said = [done.stdout, done.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    Err(format!("{command:?}: {}\n{}", done.status, said.concat()))
}

impl Stand {
    /// One in a folder that is in memory, told from others of its kind by a number.
    pub fn new(scratch: &Scratch, memory: &Path, kind: Kind, number: usize) -> Self {
        let at = scratch.folder(&format!("stand/{}-{number}", kind.name));
        let (file, device) = file_and_device(&memory.join(format!("{}-{number}.0", kind.name)), kind.size);
        Self {
            kind,
            memory: memory.to_owned(),
            at,
            number,
            made: 0,
            file,
            device,
        }
    }

    /// Recovers the state that `write` puts into the file by mounting it, looks for what was promised, and lets the checker read all
    /// of it. Answers how many promises were kept.
    pub fn check<'a>(
        &mut self,
        write: impl Fn(&File),
        promises: impl Iterator<Item = &'a Promise> + Clone,
    ) -> Result<usize, Wrong> {
        loop {
            write(&self.file);
            self.forget_read();
            let mut mount = Command::new("mount");
            mount.args(["-t", self.kind.name, "-o", self.kind.recover]);
            tool(mount.arg(&self.device).arg(&self.at)).map_err(Wrong::Mount)?;
            let kept = promises
                .clone()
                .try_fold(0, |n, p| p.check(&self.at).map(|()| n + 1));
            // A program that another thread has just begun to start holds our open files for a moment.
            until("the state to be unmounted", LONG, || {
                tool(Command::new("umount").arg(&self.at)).ok()
            });
            if self.is_let_go() {
                let (checker, words) = self.kind.check.split_first().expect("a checker has a name");
                let mut check = Command::new(need_tool(checker));
                tool(check.args(words).arg(&self.device)).map_err(Wrong::Check)?;
                return kept.map_err(Wrong::Promise);
            }
            println!(
                "{}: mounted in somebody's namespace, looked at again elsewhere",
                self.device.display()
            );
            self.made += 1;
            let name = format!("{}-{}.{}", self.kind.name, self.number, self.made);
            (self.file, self.device) = file_and_device(&self.memory.join(name), self.kind.size);
        }
    }

    /// Lets the kernel forget what was read of the device: it does so by itself when nobody has the device open any more, but a
    /// program that another thread has just begun to start may have it, and what is mounted next would be of two states.
    fn forget_read(&self) {
        tool(Command::new("blockdev").arg("--flushbufs").arg(&self.device)).unwrap();
    }

    /// Whether the file system is gone, and not only its mount here: who makes a mount namespace at this moment has a mount of his own,
    /// and what is in the file is then neither all that was written nor ours to change.
    fn is_let_go(&self) -> bool {
        const O_EXCL: i32 = 0o200;
        (0..100).any(|n| {
            thread::sleep(Duration::from_millis(n));
            OpenOptions::new()
                .read(true)
                .custom_flags(O_EXCL)
                .open(&self.device)
                .is_ok()
        })
    }
}

fn file_and_device(path: &Path, size: u64) -> (File, PathBuf) {
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    file.set_len(size).unwrap();
    (file, attach(path))
}
