//! The attach helper: the one process of a host that needs root, where the daemon runs without.
//!
//! # Overview
//!
//! `backstay attach-helper` listens on a Unix socket, does what an [`Ask`] says and answers. It is the same work, by the same code
//! ([`Devices`]), that a daemon with privileges does itself; a daemon whose file has `[attach] helper` asks for it here
//! ([`super::Attacher`]). Devices and their records are the helper's: in its own state directory, which the daemon cannot write.
//!
//! # What one who has taken over the daemon can do through it
//!
//! * It is asked by one user alone, whom the kernel names, and connects to a socket at which that user listens.
//! * What may be mounted where, and whose exports become devices, is in the helper's own command line: [`Setup`]. A question names an
//!   export, whose name is checked to be one; its device, its records and the name under `dev_root` follow from that. A device is one
//!   only while it stands on what this helper made, never by its number alone, and while it is worked on nobody undoes it.
//! * A mount point is below one of the folders `--mount-root`, and all between is root's alone: no link, nothing in which another user
//!   can put anything, and nothing that is mounted, for its bytes are the daemon's ([`super::point`]). So one volume is not mounted in
//!   another, nor over the folders of another. A volume is mounted nowhere while it is checked, however long its bytes take to come, and
//!   then put onto the folder that was opened.
//!   Everything is mounted `nosuid,nodev`: who writes a volume's bytes gets no privilege from what they say.
//! * Only processes that use such a mount or device are ended, only those of the users `--may-end`, and by a descriptor of theirs. Whoever
//!   can hand an open file to a service makes that a user of his mount: so nobody is ended whose user is not named.
//! * One question a connection, of at most 64 KiB, within ten seconds; at most sixteen at a time, and 256 devices.
//!
//! # A helper that is away
//!
//! The daemon begins without it, protects, ships and applies; what needs to know who holds a volume is refused, until the helper has
//! undone what an earlier daemon left. Which devices are of before a failure does not depend on it: [`super::Epochs`].
//!
//! # What it does not do
//!
//! The kernel, `blkid`, `mkfs` and the checkers read file systems whose bytes the daemon chooses: a fault in one of them is not kept from
//! it. A btrfs is not mounted, because it names other devices; an ext4 may name the device of an external journal, and is. What else looks
//! at block devices sees these too: udev is told not to (`packaging/59-backstay-attach.rules`), LVM is not. What a checker prints is held
//! in memory. Who uses the volumes can be shown other data, and be made to wait.

use super::{
    Answer, Ask, AttachError, Devices, Told,
    device::Asker,
    point::{passable, roots_to},
};
use crate::config::{AttachConfig, AttachMethod};
use anyhow::{Context as _, anyhow, bail};
use cli::AttachHelperArgs;
use parking_lot::Mutex;
use rustix::{
    fs::{FlockOperation, Mode},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt::socket_peercred},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt, chown},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// The longest question; a list of all users of a large file system goes with one.
const ASK_BYTES_MAX: u64 = 64 << 10;
/// The longest line of an answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// How long a question may take to come.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// How often a helper that works says so,
const WORKING_EVERY: Duration = Duration::from_secs(4);
/// and after how long without a word it is as good as away.
const SILENT_FOR: Duration = Duration::from_secs(15);
/// Questions at a time.
const CONNECTIONS_MAX: usize = 16;
/// The longest name of an export, and of what it is.
const NAME_BYTES_MAX: usize = 512;

/// Why a helper could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// Nobody listens there, or not to this user.
    #[error("{0}: is it started, with --user {1}?")]
    Connect(io::Error, u32),
    /// It ended in the middle of an answer.
    #[error("{0}")]
    Broken(io::Error),
    /// What an earlier daemon left is not looked after yet.
    #[error("what an earlier daemon left attached is not looked after yet: is it started, with --user {0}?")]
    Unsettled(u32),
    /// What it says is no answer.
    #[error("an answer that is none: {0}")]
    Nonsense(String),
}

impl HelperError {
    pub(super) fn at(self, socket: &Path) -> AttachError {
        AttachError::Helper {
            socket: socket.to_owned(),
            source: self,
        }
    }
}

/// A line of an answer; the last one is no [`Line::Told`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// It is at work still.
    Working,
    Told(Told),
    Answer(Answer),
    Failed(AttachError),
}

/// Asks the helper behind a socket; `told` hears what goes on.
///
/// # Errors
/// [`AttachError::Helper`] when there is no answer; else what the work failed with there.
pub(super) fn ask(socket: &Path, ask: &Ask, told: &mut dyn FnMut(Told)) -> Result<Answer, AttachError> {
    let failed = |e: HelperError| e.at(socket);
    let broken = |e: io::Error| HelperError::Broken(e).at(socket);
    let user = rustix::process::geteuid().as_raw();
    let mut stream = connect(socket).map_err(|e| HelperError::Connect(e, user).at(socket))?;
    stream.set_write_timeout(Some(ASK_WITHIN)).map_err(broken)?;
    send(&mut stream, ask).map_err(broken)?;
    let until = patience(ask).map(|patience| Instant::now() + patience);
    let mut lines = BufReader::new(stream);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let wait = left.map_or(SILENT_FOR, |left| left.min(SILENT_FOR));
        if wait.is_zero() {
            return Err(broken(io::ErrorKind::TimedOut.into()));
        }
        lines.get_ref().set_read_timeout(Some(wait)).map_err(broken)?;
        let line = read_line(&mut lines, ANSWER_BYTES_MAX).map_err(broken)?;
        match serde_json::from_slice(&line) {
            Ok(Line::Working) => {}
            Ok(Line::Told(what)) => told(what),
            Ok(Line::Answer(answer)) => return Ok(answer),
            Ok(Line::Failed(error)) => return Err(error),
            Err(e) => return Err(failed(HelperError::Nonsense(e.to_string()))),
        }
    }
}

/// How long everything may take of what must not hold up who asks: looks, and the daemon's own end. All else takes as long as it takes,
/// while the helper says that it lives.
fn patience(ask: &Ask) -> Option<Duration> {
    let seconds = match ask {
        Ask::All | Ask::Identities | Ask::Disown { .. } => 15,
        Ask::Users { .. } | Ask::Leave { .. } => 60,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

/// Connects to the helper; one that takes nobody in for a while is as good as away.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let until = Instant::now() + ASK_WITHIN;
    loop {
        // Without waiting: a full queue of a helper that hangs has no end.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&made, &SocketAddrUnix::new(socket)?) {
            Ok(()) => {
                let stream = UnixStream::from(made);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn send(stream: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// What comes before a moment.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(out)
    }
}

/// A whole line of at most so many bytes.
fn read_line(from: &mut impl BufRead, max: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(max).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        Some(_) if line.len() as u64 + 1 == max => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line of more than {max} bytes"),
        )),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ended in the middle of a line",
        )),
    }
}

/// Whether a question is one that is answered at all; where is mounted is told by what is found there ([`super::point`]).
///
/// # Errors
/// [`AttachError::Refused`] with the reason.
pub fn check(ask: &Ask) -> Result<(), AttachError> {
    let names: Vec<&String> = match ask {
        Ask::All | Ask::Identities | Ask::Leave { .. } => Vec::new(),
        Ask::Settle { stay } => stay.iter().map(|(export, _)| export).collect(),
        Ask::Disown { exports } | Ask::Users { exports } | Ask::End { exports, .. } => {
            exports.iter().collect()
        }
        Ask::Attach { export, .. }
        | Ask::Detach { export }
        | Ask::Probe { export }
        | Ask::Make { export, .. }
        | Ask::Mount { export, .. }
        | Ask::Unmount { export, .. }
        | Ask::Sync { export } => vec![export],
    };
    if let Some(name) = names.into_iter().find(|name| !is_export(name)) {
        return Err(AttachError::Refused(format!(
            "'{name}' is not the name of an export"
        )));
    }
    if let Ask::Attach {
        identity: Some(identity),
        ..
    } = ask
        && (identity.len() > NAME_BYTES_MAX || !identity.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(AttachError::Refused(format!("'{identity}' is no identity")));
    }
    Ok(())
}

/// Whether this is how exports of volumes and snapshots are named: `c1/data`, `c1/rsn10/data`.
fn is_export(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(is_plain)
    };
    let context = name.strip_prefix('c').and_then(|rest| rest.split('/').next());
    name.len() <= NAME_BYTES_MAX
        && context.is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
        && (2..=3).contains(&name.split('/').count())
        && name.split('/').all(is_part)
}

/// How a helper is set up: all of it, because the daemon can write no file that it reads.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens.
    pub socket: PathBuf,
    /// The daemon's NBD socket.
    pub exports: PathBuf,
    /// Folder of its records.
    pub state_dir: PathBuf,
    /// For whom.
    pub asker: Asker,
    /// How devices are made.
    pub attach: AttachConfig,
}

/// What a command line must have.
fn need<'a, T>(value: Option<&'a T>, letter: &str) -> anyhow::Result<&'a T> {
    value.with_context(|| format!("{letter} is missing: a helper knows nothing but its command line"))
}

/// A user by name or number.
fn user_of(letter: &str, name: &str) -> anyhow::Result<u32> {
    match name.parse() {
        Ok(uid) => Ok(uid),
        Err(_) => Ok(uzers::get_user_by_name(name)
            .with_context(|| format!("{letter} {name}: there is no such user"))?
            .uid()),
    }
}

impl Setup {
    /// As a command line says.
    ///
    /// # Errors
    /// When it lacks something, or names a user or a time that is none, or a path that is not absolute.
    pub fn of(args: &AttachHelperArgs) -> anyhow::Result<Self> {
        let name = need(args.user.as_ref(), "--user")?;
        let user = user_of("--user", name)?;
        let may_end = args.may_end.iter().map(|name| user_of("--may-end", name));
        let patience = args.patience.parse().map_err(|e| anyhow!("--patience: {e}"))?;
        let path = |path: Option<&PathBuf>, letter| {
            let path = need(path, letter)?;
            if path.is_relative() {
                bail!("{letter} {}: it must be absolute", path.display());
            }
            Ok(path.clone())
        };
        need(args.mount_root.first(), "--mount-root")?;
        for root in &args.mount_root {
            path(Some(root), "--mount-root")?;
        }
        Ok(Self {
            socket: path(args.socket.as_ref(), "--socket")?,
            exports: path(args.exports.as_ref(), "--exports")?,
            state_dir: path(args.state_dir.as_ref(), "--state-dir")?,
            asker: Asker {
                user,
                ground: args.mount_root.clone(),
                may_end: may_end.collect::<Result<_, _>>()?,
            },
            attach: AttachConfig {
                // The kernel's own client leaves it to numbers alone whose a device is.
                method: AttachMethod::Fuse,
                dev_root: path(Some(&args.dev_root), "--dev-root")?,
                patience,
                helper: None,
            },
        })
    }
}

/// Serves until it is ended.
///
/// # Errors
/// When it cannot begin.
pub fn serve(setup: &Setup) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("attaching and mounting needs root: start it as root, and the daemon as --user");
    }
    let folder_of = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    roots_to(&folder_of(&setup.socket)).map_err(|why| anyhow!("--socket: {why}"))?;
    passable(&setup.attach.dev_root).context("--dev-root")?;
    roots_to(&setup.attach.dev_root).map_err(|why| anyhow!("--dev-root: {why}"))?;
    for root in &setup.asker.ground {
        roots_to(root).map_err(|why| anyhow!("--mount-root: {why}"))?;
        let own = [
            &setup.socket,
            &setup.state_dir,
            &setup.exports,
            &setup.attach.dev_root,
        ];
        if let Some(own) = own.into_iter().find(|own| own.starts_with(root)) {
            bail!(
                "--mount-root {}: {} is below it, and could be mounted over",
                root.display(),
                own.display()
            );
        }
        let others = setup.asker.ground.iter().filter(|other| *other != root);
        if let Some(other) = others.into_iter().find(|other| other.starts_with(root)) {
            bail!(
                "--mount-root {} and {}: one is below the other, and could be mounted over",
                root.display(),
                other.display()
            );
        }
        if root == Path::new("/") {
            bail!("--mount-root /: name a folder, everything below which may be mounted over");
        }
    }
    let state = &setup.state_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("create {}", state.display()))?;
    roots_to(state).map_err(|why| anyhow!("--state-dir: {why}"))?;
    let lock =
        File::create(state.join("lock")).with_context(|| format!("create {}/lock", state.display()))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another attach helper runs on {}", state.display()))?;
    let devices = Devices::new(&setup.attach, &state.join("attach"), setup.exports.clone());
    let devices = devices.wary_of(setup.asker.clone());
    let user = setup.asker.user;
    let listener = listen(&setup.socket, user)?;
    tracing::info!(socket = %setup.socket.display(), user, "attach helper serving");
    let helper = Arc::new(Helper {
        devices,
        user,
        open: AtomicUsize::new(0),
    });
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => helper.take(stream),
            Err(e) => {
                tracing::warn!("accept: {e}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

/// A socket that its user alone may open, from the moment on at which it is there.
fn listen(socket: &Path, user: u32) -> anyhow::Result<UnixListener> {
    let failed = || format!("listen on {}", socket.display());
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(failed),
        _ => {}
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    let listener = listener.with_context(failed)?;
    chown(socket, Some(user), None).with_context(failed)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).with_context(failed)?;
    Ok(listener)
}

/// One of the questions at a time, whatever becomes of it.
struct Seat(Arc<Helper>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Helper {
    devices: Devices,
    /// Who may ask, beside root.
    user: u32,
    open: AtomicUsize,
}

impl Helper {
    /// Answers a connection on a thread of its own, unless there are too many.
    fn take(self: &Arc<Self>, stream: UnixStream) {
        if self.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.open.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("more than {CONNECTIONS_MAX} questions at a time");
            return;
        }
        let seat = Seat(Arc::clone(self));
        let answer = move || {
            if let Err(e) = seat.0.answer(stream) {
                tracing::warn!("not answered: {e}");
            }
        };
        if let Err(e) = thread::Builder::new().name("answer".into()).spawn(answer) {
            tracing::warn!("not answered: {e}");
        }
    }

    fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let user = socket_peercred(&stream)?.uid;
        if !user.is_root() && user.as_raw() != self.user {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {} asks; the daemon is {}", user.as_raw(), self.user),
            ));
        }
        // Who does not read is not waited for: the work goes on.
        stream.set_write_timeout(Some(ASK_WITHIN))?;
        let mut question = BufReader::new(Timed {
            stream: &stream,
            until: Instant::now() + ASK_WITHIN,
        });
        let ask = read_line(&mut question, ASK_BYTES_MAX)
            .and_then(|line| Ok(serde_json::from_slice::<Ask>(&line)?));
        let ask = match ask {
            Ok(ask) => ask,
            Err(e) => {
                let refused = AttachError::Refused(format!("that is no question: {e}"));
                let _ = send(&mut stream, &Line::Failed(refused));
                return Err(e);
            }
        };
        // Who asked may have gone; what was begun is ended all the same.
        let stream = Mutex::new(Some(stream));
        let tell = |line: &Line| {
            let mut stream = stream.lock();
            if let Some(Err(_)) = stream.as_mut().map(|stream| send(stream, line)) {
                *stream = None;
            }
        };
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let tell = &tell;
            scope.spawn(move || {
                while ended.recv_timeout(WORKING_EVERY) == Err(RecvTimeoutError::Timeout) {
                    tell(&Line::Working);
                }
            });
            self.work(ask, tell);
            drop(end);
        });
        Ok(())
    }

    fn work(&self, ask: Ask, tell: &impl Fn(&Line)) {
        let is_change = !matches!(
            ask,
            Ask::All | Ask::Identities | Ask::Users { .. } | Ask::Probe { .. }
        );
        let said = format!("{ask:?}");
        let done = check(&ask).and_then(|()| self.devices.perform(ask, &mut |told| tell(&Line::Told(told))));
        match &done {
            Ok(_) if is_change => tracing::info!("{said}"),
            Ok(_) => {}
            Err(e) => tracing::warn!("{said}: {e}"),
        }
        tell(&match done {
            Ok(answer) => Line::Answer(answer),
            Err(e) => Line::Failed(e.portable()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_told_from_paths() {
        for name in ["c1/data", "c12/sn10/my-vol_1.x+", "c1/rsn10/data"] {
            assert!(is_export(name), "{name}");
        }
        let long = format!("c1/{}", "x".repeat(NAME_BYTES_MAX));
        for name in [
            "",
            "c1",
            "c1/",
            "c1//data",
            "/c1/data",
            "data",
            "cx/data",
            "c/data",
            "c1/..",
            "c1/../x",
            "c1/a/b/c",
            "c1/a b",
            "c1/a\n",
            "c1/a\0",
            "c1/\u{e4}",
            "c1/data#id",
            &long,
        ] {
            assert!(!is_export(name), "{name}");
        }
    }

    #[test]
    fn failures_come_through_as_what_they_are() {
        let io = || AttachError::io("/x")(io::Error::other("broken"));
        for (error, said) in [
            (io(), "/x: broken"),
            (AttachError::Disabled, "exports only"),
            (
                AttachError::At {
                    step: "check".into(),
                    error: Box::new(io()),
                    left: true,
                },
                "check: /x: broken",
            ),
        ] {
            let sent = serde_json::to_vec(&Line::Failed(error.portable())).unwrap();
            let Line::Failed(heard) = serde_json::from_slice(&sent).unwrap() else {
                panic!("it is a failure");
            };
            assert!(heard.to_string().contains(said), "{heard}");
        }
        let busy = AttachError::Busy {
            path: "/m".into(),
            holders: vec!["7 sh".into()],
        };
        let sent = serde_json::to_vec(&Line::Failed(busy.portable())).unwrap();
        let heard = serde_json::from_slice(&sent).unwrap();
        assert!(matches!(heard, Line::Failed(AttachError::Busy { holders, .. }) if holders == ["7 sh"]));
    }

    #[test]
    fn lines_are_bounded() {
        let mut long: &[u8] = &[b'x'; 100];
        assert_eq!(
            read_line(&mut long, 50).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let mut torn: &[u8] = b"half";
        assert_eq!(
            read_line(&mut torn, 50).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let mut whole: &[u8] = b"line\nmore";
        assert_eq!(read_line(&mut whole, 50).unwrap(), b"line");
    }
}
