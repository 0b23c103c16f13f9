//! Processes, sockets, mounts and folders of end-to-end tests: whatever a test starts is gone when it ends, passed or not.
//!
//! Everything here panics with the words that a person needs (the command, the deadline, the last lines of the log), as a
//! test would have to do with an error anyway. Nothing is ever killed by name, only by the id it was started with.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};

/// How often things are looked at while waiting.
const POLL: Duration = Duration::from_millis(5);

/// The folder of the workspace.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate lies in the workspace")
}

/// Where a tool is.
///
/// # Panics
/// When it is not in `PATH`, with the name of the Debian package that has it.
#[must_use]
pub fn need_tool(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&folders)
        .chain(system)
        .map(|f| f.join(name))
        .find(|f| f.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: apt-get install {}", package_of(name)))
}

fn package_of(tool: &str) -> &str {
    match tool {
        "nbdcopy" | "nbdinfo" | "nbddump" | "nbdfuse" => "libnbd-bin",
        "nbdsh" => "python3-libnbd",
        "qemu-nbd" | "qemu-img" | "qemu-io" => "qemu-utils",
        "mkfs.ext4" | "e2fsck" | "debugfs" | "tune2fs" | "resize2fs" => "e2fsprogs",
        "mkfs.xfs" | "xfs_io" | "xfs_repair" => "xfsprogs",
        "mkfs.btrfs" | "btrfs" => "btrfs-progs",
        "mount" | "umount" | "losetup" => "mount",
        "blkdiscard" | "unshare" | "nsenter" => "util-linux",
        "ip" | "ss" => "iproute2",
        "psql" | "initdb" | "pg_ctl" | "postgres" => "postgresql",
        "fusermount3" => "fuse3",
        other => other,
    }
}

/// A TCP port of the loopback that was free a moment ago.
///
/// # Panics
/// When the loopback cannot be bound.
#[must_use]
pub fn free_port() -> u16 {
    let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
    bound.expect("the loopback can be bound").port()
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within `limit`.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        thread::sleep(POLL);
    }
}

/// What a command that ran to its end left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; 128 + the signal's number when a signal ended it, as in a shell.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Finished {
    /// Its output.
    ///
    /// # Panics
    /// When its code is not 0, with all that it wrote.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.code == 0,
            "{} answered {}\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(-1)
}

/// Runs a command to its end, without input.
///
/// # Panics
/// When it cannot be started, or has not ended within `limit`: then it and what it started is killed.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    try_run(command, limit).unwrap_or_else(|why| panic!("{why}"))
}

fn try_run(command: &mut Command, limit: Duration) -> Result<Finished, String> {
    let shown = format!("{command:?}");
    // Files and not pipes: what the command leaves behind may hold them open for long.
    let temporary = || tempfile::tempfile().map_err(|e| format!("temporary file: {e}"));
    let mut files = [temporary()?, temporary()?];
    let copy = |f: &File| {
        f.try_clone()
            .map(Stdio::from)
            .map_err(|e| format!("temporary file: {e}"))
    };
    command
        .stdin(Stdio::null())
        .stdout(copy(&files[0])?)
        .stderr(copy(&files[1])?)
        .process_group(0);
    let mut child = command.spawn().map_err(|e| format!("{shown}: {e}"))?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if start.elapsed() < limit => thread::sleep(POLL),
            Ok(None) => break None,
            Err(e) => return Err(format!("{shown}: {e}")),
        }
    };
    let [stdout, stderr] = files.each_mut().map(|file| {
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut bytes));
        read.map_or_else(
            |e| e.to_string(),
            |_| String::from_utf8_lossy(&bytes).into_owned(),
        )
    });
    match status {
        Some(status) => Ok(Finished {
            command: shown,
            code: code_of(status),
            stdout,
            stderr,
        }),
        None => {
            signal_group(child.id(), Signal::KILL);
            // Not waited for: a process stuck in the kernel would hang the test as well.
            let _ = child.try_wait();
            Err(format!(
                "{shown} has not ended within {limit:?}\n{stdout}{stderr}"
            ))
        }
    }
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

fn signal_group(id: u32, signal: Signal) {
    if let Some(pid) = pid(id) {
        // It may be gone already.
        let _ = kill_process_group(pid, signal);
    }
}

/// A child process whose output goes to a file. Clones are the same process; the last one dropped kills it and what it
/// started (its process group).
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    log: PathBuf,
    /// Where its own lines begin: the log may hold those of an earlier process.
    log_at: u64,
    id: u32,
    child: Mutex<(Child, Option<ExitStatus>)>,
}

impl Inner {
    fn child(&self) -> MutexGuard<'_, (Child, Option<ExitStatus>)> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the process and what it started. What is stuck in the kernel is left behind.
    fn end(&self) {
        signal_group(self.id, Signal::KILL);
        let mut child = self.child();
        let start = Instant::now();
        while child.1.is_none() && start.elapsed() < Duration::from_secs(5) {
            child.1 = child.0.try_wait().unwrap_or(None);
            if child.1.is_none() {
                thread::sleep(POLL);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Process {
    /// Starts a command with its output added to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = OpenOptions::new().create(true).append(true).open(log);
        let file = open.unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let log_at = file.metadata().map_or(0, |m| m.len());
        let copy = file.try_clone().expect("a file handle can be copied");
        command
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(file)
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {command:?}: {e}"));
        let (name, log, id) = (name.to_owned(), log.to_owned(), child.id());
        Self {
            inner: Arc::new(Inner {
                name,
                log,
                log_at,
                id,
                child: Mutex::new((child, None)),
            }),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.inner.id
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.inner.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.inner.log_at))?;
            file.read_to_end(&mut bytes)
        });
        read.map_or_else(
            |e| e.to_string(),
            |_| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    fn told(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(40)..];
        format!(
            "{} (process {}) wrote last:\n{}",
            self.inner.name,
            self.inner.id,
            last.join("\n")
        )
    }

    /// Its exit code if it has ended (128 + signal, as in a shell).
    #[must_use]
    pub fn ended(&self) -> Option<i32> {
        let mut child = self.inner.child();
        if child.1.is_none() {
            child.1 = child.0.try_wait().unwrap_or(None);
        }
        child.1.map(code_of)
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            // Asked before the look at the answer: the last words of a process that has ended count.
            let ended = self.ended();
            if let Some(answer) = ask() {
                return answer;
            }
            if let Some(code) = ended {
                panic!("ended with {code} before {what}; {}", self.told());
            }
            assert!(
                start.elapsed() < limit,
                "waited {limit:?} in vain for {what}; {}",
                self.told()
            );
            thread::sleep(POLL);
        }
    }

    /// Waits for a line that holds `text`, and answers that line.
    ///
    /// # Panics
    /// When the process ends without, or `limit` passes.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> String {
        self.wait_for(&format!("a line with '{text}'"), limit, || {
            let log = self.log();
            // Only whole lines: the rest may still be on its way.
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            whole.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// Waits until a unix socket takes connections. The probe is a connection of its own, dropped at once.
    ///
    /// # Panics
    /// When the process ends before, or `limit` passes.
    #[track_caller]
    pub fn wait_for_socket(&self, socket: &Path, limit: Duration) {
        let what = format!("socket {}", socket.display());
        self.wait_for(&what, limit, || UnixStream::connect(socket).ok().map(drop));
    }

    /// Waits until it has ended by itself; its exit code.
    ///
    /// # Panics
    /// When `limit` passes.
    #[track_caller]
    pub fn wait(&self, limit: Duration) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(code) = self.ended() {
                return code;
            }
            assert!(
                start.elapsed() < limit,
                "has not ended within {limit:?}; {}",
                self.told()
            );
            thread::sleep(POLL);
        }
    }

    /// Sends a signal to it alone; nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        // Under the lock and only before it is waited for: its id cannot have gone to another process.
        let child = self.inner.child();
        if child.1.is_none()
            && let Some(pid) = pid(self.inner.id)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// `kill -9` of it alone (not of what it started), and waits until it is gone.
    ///
    /// # Panics
    /// When it is not gone in ten seconds.
    #[track_caller]
    pub fn kill9(&self) {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10));
    }

    /// Asks it to end (SIGTERM) and waits; its exit code.
    ///
    /// # Panics
    /// When `limit` passes.
    #[track_caller]
    pub fn stop(&self, limit: Duration) -> i32 {
        self.signal(Signal::TERM);
        self.wait(limit)
    }
}

/// A temporary folder that owns what a test starts and mounts.
///
/// When it is dropped, what is mounted below it is unmounted, what was started through it is killed by its id, and the
/// folder goes, unless something is still mounted there. `BACKSTAY_KEEP=1` keeps the folder of a test that failed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    started: Mutex<Vec<Process>>,
}

impl Scratch {
    /// A new folder `backstay-NAME-XXXXXX` in the system's temporary folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let made = tempfile::Builder::new()
            .prefix(&format!("backstay-{name}-"))
            .tempdir();
        let path = made.expect("a temporary folder can be made").keep();
        let path = path.canonicalize().unwrap_or(path);
        Self {
            path,
            started: Mutex::default(),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A new folder in the folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// A new file of `len` zero bytes, sparse.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn image(&self, name: &str, len: u64) -> PathBuf {
        let path = self.join(name);
        let made = File::create(&path).and_then(|file| file.set_len(len));
        made.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// Starts a command with its output added to `NAME.log` in the folder.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(&self, name: &str, command: &mut Command) -> Process {
        let process = Process::start(name, command, &self.join(format!("{name}.log")));
        self.started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(process.clone());
        process
    }

    /// Unmounts everything mounted below the folder.
    ///
    /// # Panics
    /// When something stays mounted.
    #[track_caller]
    pub fn unmount(&self) {
        let left = unmount_below(&self.path, false);
        assert!(left.is_empty(), "still mounted: {left:?}");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // In order first, while the servers below the mounts still answer; then by force.
        unmount_below(&self.path, false);
        let started = self.started.get_mut().unwrap_or_else(PoisonError::into_inner);
        for process in started.drain(..).rev() {
            process.inner.end();
        }
        let left = unmount_below(&self.path, true);
        let keep = thread::panicking() && std::env::var("BACKSTAY_KEEP").is_ok_and(|v| v == "1");
        if keep || !left.is_empty() {
            eprintln!("kept: {} {left:?}", self.path.display());
        } else if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("{}: {e}", self.path.display());
        }
    }
}

/// Mount points below a folder, in the order in which they were mounted.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    points.filter(|point| point.starts_with(folder)).collect()
}

/// Takes the octal escapes out of a path of `/proc/self/mountinfo`.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let number = octal
            .and_then(|o| std::str::from_utf8(o).ok())
            .and_then(|o| u8::from_str_radix(o, 8).ok());
        out.push(number.unwrap_or(byte));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Unmounts what is mounted below a folder, the newest first; what stays.
fn unmount_below(folder: &Path, lazily: bool) -> Vec<PathBuf> {
    for point in mounts_below(folder).iter().rev() {
        let mut command = Command::new("umount");
        if lazily {
            command.arg("-l");
        }
        if let Err(why) = try_run(command.arg(point), Duration::from_secs(10)) {
            eprintln!("{why}");
        }
    }
    mounts_below(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn runs_to_the_end() {
        let done = run(&mut sh("echo out; echo err >&2; exit 3"), SOON);
        assert_eq!(
            (done.code, done.stdout.as_str(), done.stderr.as_str()),
            (3, "out\n", "err\n")
        );
        assert_eq!(run(&mut sh("kill -9 $$"), SOON).code, 137);
        assert_eq!(run(&mut sh("echo x"), SOON).ok(), "x\n");
        // What goes on in the background does not hold the answer up.
        let start = Instant::now();
        let left = run(&mut sh("sleep 60 & echo $!"), SOON).ok();
        assert!(start.elapsed() < SOON);
        kill_process(Pid::from_raw(left.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_deadline_kills() {
        let why = try_run(&mut sh("echo begun; sleep 60"), Duration::from_millis(200)).unwrap_err();
        assert!(why.contains("begun") && why.contains("has not ended"), "{why}");
    }

    #[test]
    fn processes_are_waited_for_and_killed() {
        let scratch = Scratch::new("proc");
        let (path, process) = (
            scratch.path().to_owned(),
            scratch.start("p", &mut sh("echo one; sleep 60")),
        );
        assert_eq!(process.wait_for_line("on", SOON), "one");
        assert_eq!(process.ended(), None);
        process.kill9();
        assert_eq!(process.ended(), Some(137));
        let again = scratch.start(
            "p",
            &mut sh("trap 'echo bye; exit 4' TERM; echo two; while :; do sleep 0.01; done"),
        );
        again.wait_for_line("two", SOON);
        assert!(
            !again.log().contains("one"),
            "the log of the process before is not its own"
        );
        assert_eq!(again.stop(SOON), 4);
        let ended = scratch.start("q", &mut sh("echo last words; exit 5"));
        assert_eq!(ended.wait_for_line("words", SOON), "last words");
        let message = std::panic::catch_unwind(|| ended.wait_for_line("never", SOON)).unwrap_err();
        assert!(message.downcast_ref::<String>().unwrap().contains("ended with 5"));
        // What a killed process started goes with the folder.
        let parent = scratch.start("r", &mut sh("sleep 60 & echo $! ; wait"));
        let child: i32 = parent.wait_for_line("", SOON).parse().unwrap();
        parent.kill9();
        drop((process, again, ended, parent, scratch));
        assert!(!path.exists());
        until("the end of the grandchild", SOON, || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        });
    }

    #[test]
    fn mounts_go_with_the_folder() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let scratch = Scratch::new("with space");
        let (outer, path) = (scratch.folder("a b"), scratch.path().to_owned());
        let mount = |on: &Path| run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(on), SOON);
        if mount(&outer).code != 0 {
            return; // not allowed here
        }
        let inner = scratch.folder("a b/inner");
        mount(&inner).ok();
        assert_eq!(mounts_below(&path), [outer.clone(), inner.clone()]);
        // Busy: only the lazy way works.
        let busy = scratch.start("busy", sh("echo in; sleep 60").current_dir(&inner));
        busy.wait_for_line("in", SOON);
        drop(scratch);
        assert!(mounts_below(&path).is_empty() && !path.exists());
    }

    #[test]
    fn tools_are_found_or_named() {
        assert!(need_tool("sh").is_file() && root().join("Cargo.toml").is_file());
        assert_eq!(package_of("nbdcopy"), "libnbd-bin");
        assert!(std::panic::catch_unwind(|| need_tool("no-such-tool")).is_err());
    }
}
