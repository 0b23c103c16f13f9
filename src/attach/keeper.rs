//! The process that keeps a device alive while the daemon is away.
//!
//! # Overview
//!
//! Every device has a *keeper*: this very program, started by the daemon as `keep-device`. It holds the device's connection to
//! the daemon through an [`nbd::Relay`], serves it on a socket of its own, and runs the program that makes the device of that
//! socket. It ends with that program and the last connection, so a device that is undone leaves no process.
//!
//! It is not a child that the daemon must look after: it has a process group of its own and goes on when the daemon is stopped,
//! killed or replaced. The next daemon finds it by its lock.
//!
//! # Invariants
//!
//! * A keeper holds a lock on `STEM.lock` for all its life, and the kernel names the holder: a process id that was written down,
//!   and that may be somebody else's by now, is never killed.
//! * The file of the lock is made before the keeper is started and removed by whoever cleans up: a keeper that comes too late
//!   finds none, and ends.

use super::{AttachError, CommandError, Place};
use nbd::{Relay, RelayEvent, Relayed};
use rustix::{
    fs::FlockOperation,
    process::{Flock, FlockType, Pid, Signal, fcntl_getlk, kill_process_group},
};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    mem,
    os::unix::{fs::MetadataExt, net::UnixListener, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// The word that makes a keeper of this program. No operator types it.
const WORD: &str = "keep-device";
/// The word for a daemon of whatever user.
const ANYBODY: &str = "-";
/// How many complaints about one device are passed on.
const TOLD_MAX: usize = 8;
/// How long a device may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a keeper may take to end when its device has gone. In another mount namespace something of it may live on.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// How long the last words of a program that ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);

/// Starts keepers.
#[derive(Clone, Debug)]
pub struct Keepers {
    /// The program that they are.
    pub program: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The user that the daemon must be, where that is not this process's own.
    pub server: Option<u32>,
}

/// What a keeper connects to.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Who starts it.
    pub keepers: &'a Keepers,
    /// The export, by the name that it is opened by.
    pub export: String,
    /// How long requests wait for a daemon that is away.
    pub patience: Duration,
    /// Whether the device is read-only.
    pub read_only: bool,
}

impl Keepers {
    /// Keepers of this program for the daemon behind `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        // This way it is the same program also when its file was replaced meanwhile.
        let program = format!("/proc/{}/exe", std::process::id()).into();
        Self {
            program,
            socket,
            server: None,
        }
    }
}

impl Line<'_> {
    /// Starts a keeper that runs `device`, which connects to [`socket`] in its working directory, and waits until `is_up`.
    ///
    /// # Errors
    /// When it ends, or is not up in time; then it is gone.
    pub(super) fn start(
        &self,
        place: &Place,
        device: &[OsString],
        is_up: impl Fn() -> bool,
    ) -> Result<(), AttachError> {
        let program = "keeper".to_owned();
        let lock = place.file("lock");
        File::create(&lock).map_err(AttachError::io(lock.display()))?;
        let folder = lock.parent().unwrap_or(Path::new("/"));
        let mut child = Command::new(&self.keepers.program)
            .arg(WORD)
            .arg(place.stem())
            .arg(&self.keepers.socket)
            .arg(&self.export)
            .arg(self.patience.as_millis().to_string())
            .arg(
                self.keepers
                    .server
                    .map_or_else(|| ANYBODY.to_owned(), |user| user.to_string()),
            )
            .args(device)
            .current_dir(folder)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| CommandError::Start { program, source })?;
        let deadline = Instant::now() + PATIENCE;
        while !is_up() {
            let over = Instant::now() > deadline;
            let ended = child.try_wait().ok().flatten();
            if over || ended.is_some() {
                // Not yet waited for: its id is still its own.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                return Err(failed(&mut child, device, ended, over));
            }
            thread::sleep(POLL);
        }
        let name = place.stem().display().to_string();
        thread::spawn(move || attend(child, &name));
        Ok(())
    }
}

/// What a keeper says in the end is about the program that it runs.
fn failed(child: &mut Child, device: &[OsString], ended: Option<ExitStatus>, over: bool) -> AttachError {
    let mut output = String::new();
    if over {
        output = format!("no device after {} s", PATIENCE.as_secs());
    } else if let Some(err) = &mut child.stderr {
        let _ = err.read_to_string(&mut output);
    }
    let line: Vec<_> = device.iter().map(|a| a.to_string_lossy()).collect();
    let error = CommandError::Failed {
        line: line.join(" "),
        code: ended.and_then(|e| e.code()).unwrap_or(-1),
        output: output.trim().to_owned(),
    };
    error.into()
}

/// Logs what a keeper says, and waits for its end: unwaited for, it would stay a zombie.
fn attend(mut child: Child, device: &str) {
    let lines = child.stderr.take().map(|err| BufReader::new(err).split(b'\n'));
    for line in lines.into_iter().flatten().map_while(Result::ok) {
        tracing::warn!(device, "{}", String::from_utf8_lossy(&line).trim());
    }
    let _ = child.wait();
}

/// The keeper of a place, if one lives.
pub(super) fn of(place: &Place) -> Option<Pid> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(place.file("lock"))
        .ok()?;
    let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??;
    holder.pid
}

/// Waits until a place has no keeper; one that stays is killed.
pub(super) fn wait_gone(place: &Place) {
    let deadline = Instant::now() + LAST_BREATH;
    while of(place).is_some() {
        if Instant::now() > deadline {
            return kill(place);
        }
        thread::sleep(POLL);
    }
}

/// Ends a place's keeper at once, and what it runs: what stands on its device gets errors from now on, and waits for nothing.
pub(super) fn kill(place: &Place) {
    // The signal goes to whom the kernel has just named as the holder; he leads his group.
    while let Some(pid) = of(place) {
        let _ = kill_process_group(pid, Signal::KILL);
        thread::sleep(POLL);
    }
}

/// The socket on which the keeper of a place serves its device, relative to the folder of the place: the path of a socket may
/// have a hundred characters, and that of a state directory has no such limit.
pub(super) fn socket(place: &Place) -> PathBuf {
    let path = place.file("sock");
    path.file_name().map(PathBuf::from).unwrap_or_default()
}

/// The life of a keeper, if this program was started as one.
#[must_use]
pub fn called(words: &[OsString]) -> Option<ExitCode> {
    let [_, word, stem, socket, export, patience, server, device @ ..] = words else {
        return None;
    };
    if word != WORD || device.is_empty() {
        return None;
    }
    let place = Place::new(stem.into());
    let patience = patience.to_str().and_then(|p| p.parse().ok()).unwrap_or(0);
    let server = match server.to_str()? {
        ANYBODY => None,
        user => Some(user.parse().ok()?),
    };
    let relayed = Relayed {
        socket: socket.into(),
        export: export.to_string_lossy().into_owned(),
        patience: Duration::from_millis(patience),
        server,
    };
    let ended = keep(&place, relayed, device).unwrap_or_else(|why| {
        say(&why);
        1
    });
    Some(ExitCode::from(ended))
}

/// Nobody may listen any more: that is no failure.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

enum Event {
    Opened,
    Closed,
    /// The program ended.
    Ended(ExitStatus),
}

/// Keeps a device to its end; the exit code of the program that made it.
fn keep(place: &Place, relayed: Relayed, device: &[OsString]) -> Result<u8, String> {
    // Never let go of: whoever finds the lock free finds no process either.
    mem::forget(lock(place)?);
    // While the daemon is away nobody hears that it is.
    let relay = Relay::open(relayed, |event| {
        if let RelayEvent::Failing(why) = event {
            say(&format!("requests fail: {why}"));
        }
    });
    let relay = Arc::new(relay.map_err(|e| e.to_string())?);
    let path = socket(place);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (tell, events) = channel();
    run(device, tell.clone())?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (relay, tell) = (Arc::clone(&relay), tell.clone());
            let _ = tell.send(Event::Opened);
            thread::spawn(move || {
                // Whoever connected sees the end of it.
                let _ = relay.serve(stream);
                let _ = tell.send(Event::Closed);
            });
        }
    });
    let (mut open, mut ended) = (0, false);
    for event in events {
        match event {
            Event::Opened => open += 1,
            Event::Closed => open -= 1,
            Event::Ended(status) if status.success() => ended = true,
            // What it complained is said.
            Event::Ended(status) => return Ok(status.code().and_then(|c| c.try_into().ok()).unwrap_or(1)),
        }
        if ended && open == 0 {
            break;
        }
    }
    let _ = fs::remove_file(&path);
    Ok(0)
}

fn lock(place: &Place) -> Result<File, String> {
    let path = place.file("lock");
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed(e.into()))?;
    if file.metadata().map_err(failed)?.nlink() == 0 {
        return Err(format!("{}: the device is not wanted any more", path.display()));
    }
    Ok(file)
}

/// Runs the program of the device. It writes a line for every request that fails, and serves nothing any more once nobody reads
/// them: whoever uses the device would hang in the kernel.
fn run(device: &[OsString], tell: Sender<Event>) -> Result<(), String> {
    let (program, arguments) = device.split_first().ok_or("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            let hint = if e.kind() == io::ErrorKind::NotFound {
                " (is it installed?)"
            } else {
                ""
            };
            format!("{}: {e}{hint}", Path::new(program).display())
        })?;
    let complaints = child.stderr.take();
    let listening = thread::spawn(move || {
        let lines = complaints.map(|err| BufReader::new(err).split(b'\n'));
        let lines = lines.into_iter().flatten().map_while(Result::ok);
        for (n, line) in lines.enumerate() {
            if n < TOLD_MAX {
                say(String::from_utf8_lossy(&line).trim());
            }
        }
    });
    thread::spawn(move || {
        let Ok(status) = child.wait() else { return };
        // It may have left somebody in the background who never lets go of the pipe.
        let deadline = Instant::now() + LAST_WORDS;
        while !listening.is_finished() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        let _ = tell.send(Event::Ended(status));
    });
    Ok(())
}
