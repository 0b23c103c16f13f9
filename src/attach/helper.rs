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
//! * What may be mounted where, and whose exports become devices, is in the helper's own command line: [`Bounds`]. A question names an
//!   export, whose name is checked to be one; its device, its records and the name under `dev_root` follow from that. A device is one
//!   only while it stands on what this helper made: never by its number alone.
//! * A mount point is below one of the folders `--mount-root`, and all between is root's alone: no link, nothing in which another user
//!   can put anything, and nothing that is mounted, for its bytes are the daemon's. So one volume is not mounted in another.
//!   Everything is mounted `nosuid,nodev`: who writes a volume's bytes gets no privilege from what they say.
//! * Only processes that use such a mount or device are ended, of a list that was shown before, and by a descriptor of theirs.
//! * One question a connection, of at most 64 KiB, within ten seconds; at most sixteen at a time, and 256 devices.
//!
//! # A helper that is away
//!
//! The daemon begins without it, protects, ships and applies; what needs to know who holds a volume is refused, until the helper has
//! undone what an earlier daemon left. Which devices are of before a failure does not depend on it: [`super::Epochs`].
//!
//! # What it does not do
//!
//! The kernel, `blkid`, `mkfs`, the checkers and `btrfstune` read file systems whose bytes the daemon chooses: a fault in one of them is
//! not kept from it; formats that name other devices (btrfs, an external journal) are not looked through. What else looks at block
//! devices (udev, LVM) sees these too. What a checker prints is held in memory. Who uses the volumes can be shown other data, and be
//! made to wait.

use super::{Answer, Ask, AttachError, Devices, Told};
use crate::config::{AttachConfig, AttachMethod};
use anyhow::{Context as _, anyhow, bail};
use cli::AttachHelperArgs;
use rustix::{
    fs::{FlockOperation, Mode},
    net::sockopt::socket_peercred,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
        net::{UnixListener, UnixStream},
    },
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
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
/// How long a look may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
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
    let mut stream = UnixStream::connect(socket).map_err(|e| HelperError::Connect(e, user).at(socket))?;
    stream.set_read_timeout(patience(ask)).map_err(broken)?;
    send(&mut stream, ask).map_err(broken)?;
    let mut lines = BufReader::new(stream);
    loop {
        let line = read_line(&mut lines, ANSWER_BYTES_MAX).map_err(broken)?;
        match serde_json::from_slice(&line) {
            Ok(Line::Told(what)) => told(what),
            Ok(Line::Answer(answer)) => return Ok(answer),
            Ok(Line::Failed(error)) => return Err(error),
            Err(e) => return Err(failed(HelperError::Nonsense(e.to_string()))),
        }
    }
}

/// How long an answer may take, to what does no work that may take long. Who asks it may hold up everything.
fn patience(ask: &Ask) -> Option<Duration> {
    match ask {
        Ask::All | Ask::Identities | Ask::Disown { .. } => Some(ANSWER_WITHIN),
        _ => None,
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

/// What a helper does for whom.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The user that the daemon runs as.
    pub user: u32,
    /// Folders below which is mounted.
    pub mount_roots: Vec<PathBuf>,
}

impl Bounds {
    /// Whether a question is one that is answered at all.
    ///
    /// # Errors
    /// [`AttachError::Refused`] with the reason.
    pub fn check(&self, ask: &Ask) -> Result<(), AttachError> {
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
        match ask {
            Ask::Mount { how, .. } => self.check_mount_point(&how.at),
            _ => Ok(()),
        }
    }

    fn check_mount_point(&self, at: &Path) -> Result<(), AttachError> {
        let refused = |why: String| AttachError::Refused(format!("mount point {}: {why}", at.display()));
        let is_plain = at.is_absolute()
            && at
                .components()
                .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !is_plain {
            return Err(refused("it is not an absolute path without '..'".into()));
        }
        let Some(root) = self
            .mount_roots
            .iter()
            .find(|root| at != **root && at.starts_with(root))
        else {
            let roots: Vec<_> = self.mount_roots.iter().map(|r| r.display().to_string()).collect();
            return Err(refused(format!(
                "it is not below --mount-root {}",
                roots.join(", ")
            )));
        };
        // What is not there yet is made, in a folder in which nobody but root can put anything in its place; so not in one that is
        // mounted: its bytes are the daemon's.
        let device = fs::symlink_metadata(root)
            .map_err(|e| refused(e.to_string()))?
            .dev();
        for folder in at.ancestors().take_while(|folder| folder != root) {
            match fs::symlink_metadata(folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(refused(format!("{}: {e}", folder.display()))),
                // Something is mounted on the mount point itself: that is looked at there.
                Ok(m) if folder == at && m.is_dir() && m.dev() != device => {}
                Ok(m) if m.dev() != device => {
                    return Err(refused(format!(
                        "{} is on what is mounted below --mount-root",
                        folder.display()
                    )));
                }
                Ok(m) if !m.is_dir() => {
                    return Err(refused(format!("{} is a link, or no folder", folder.display())));
                }
                Ok(m) => roots_alone(folder, &m, false).map_err(refused)?,
            }
        }
        Ok(())
    }
}

/// Whether nobody but root can put anything in a folder; in one that is `above` what is there and root's, in the place of that.
fn roots_alone(folder: &Path, m: &fs::Metadata, above: bool) -> Result<(), String> {
    let is_sticky = above && m.mode() & 0o1000 != 0;
    let is_shared = m.mode() & 0o022 != 0 && !is_sticky;
    if m.uid() != 0 || is_shared {
        return Err(format!(
            "{} is not root's alone (user {}, mode {:o})",
            folder.display(),
            m.uid(),
            m.mode() & 0o7777
        ));
    }
    Ok(())
}

/// The same of a folder that is there, and of all above it.
fn roots_to(folder: &Path) -> anyhow::Result<()> {
    for above in folder.ancestors() {
        let is_above = above != folder;
        let m = fs::symlink_metadata(above).with_context(|| above.display().to_string())?;
        if !m.is_dir() {
            bail!("{}: it is a link, or no folder", above.display());
        }
        roots_alone(above, &m, is_above)
            .map_err(|why| anyhow!("{why}: another user could put something in its place"))?;
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
    pub bounds: Bounds,
    /// How devices are made.
    pub attach: AttachConfig,
}

/// What a command line must have.
fn need<'a, T>(value: Option<&'a T>, letter: &str) -> anyhow::Result<&'a T> {
    value.with_context(|| format!("{letter} is missing: a helper knows nothing but its command line"))
}

impl Setup {
    /// As a command line says.
    ///
    /// # Errors
    /// When it lacks something, or names a user, a method or a time that is none, or a path that is not absolute.
    pub fn of(args: &AttachHelperArgs) -> anyhow::Result<Self> {
        let name = need(args.user.as_ref(), "--user")?;
        let user = match name.parse() {
            Ok(uid) => uid,
            Err(_) => uzers::get_user_by_name(name)
                .with_context(|| format!("--user {name}: there is no such user"))?
                .uid(),
        };
        let method = match args.method.as_str() {
            "auto" => AttachMethod::Auto,
            "nbd" => AttachMethod::Nbd,
            "fuse" => AttachMethod::Fuse,
            other => bail!("--method {other}: it is auto, nbd or fuse"),
        };
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
            bounds: Bounds {
                user,
                mount_roots: args.mount_root.clone(),
            },
            attach: AttachConfig {
                method,
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
    roots_to(&folder_of(&setup.socket)).context("--socket")?;
    fs::create_dir_all(&setup.attach.dev_root).context("--dev-root")?;
    roots_to(&setup.attach.dev_root).context("--dev-root")?;
    for root in &setup.bounds.mount_roots {
        let real = fs::canonicalize(root).with_context(|| format!("--mount-root {}", root.display()))?;
        roots_to(root).context("--mount-root")?;
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
        if real != *root || root == Path::new("/") {
            bail!(
                "--mount-root {}: name a real folder, not a link or /: everything below it may be mounted over",
                root.display()
            );
        }
    }
    let state = &setup.state_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("create {}", state.display()))?;
    roots_to(state).context("--state-dir")?;
    let lock =
        File::create(state.join("lock")).with_context(|| format!("create {}/lock", state.display()))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another attach helper runs on {}", state.display()))?;
    let devices = Devices::new(&setup.attach, &state.join("attach"), setup.exports.clone());
    let devices = devices.wary_of(setup.bounds.user);
    let listener = listen(&setup.socket, setup.bounds.user)?;
    tracing::info!(socket = %setup.socket.display(), user = setup.bounds.user, "attach helper serving");
    let helper = Arc::new(Helper {
        devices,
        bounds: setup.bounds.clone(),
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
    bounds: Bounds,
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
        if !user.is_root() && user.as_raw() != self.bounds.user {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {} asks; the daemon is {}", user.as_raw(), self.bounds.user),
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
        let is_change = !matches!(
            ask,
            Ask::All | Ask::Identities | Ask::Users { .. } | Ask::Probe { .. }
        );
        let said = format!("{ask:?}");
        // Who asked may have gone; what was begun is ended all the same.
        let mut listens = true;
        let mut tell = |line: &Line| listens = listens && send(&mut stream, line).is_ok();
        let done = self
            .bounds
            .check(&ask)
            .and_then(|()| self.devices.perform(ask, &mut |told| tell(&Line::Told(told))));
        match &done {
            Ok(_) if is_change => tracing::info!("{said}"),
            Ok(_) => {}
            Err(e) => tracing::warn!("{said}: {e}"),
        }
        tell(&match done {
            Ok(answer) => Line::Answer(answer),
            Err(e) => Line::Failed(e.portable()),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

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
    fn mount_points_are_below_a_root_and_reached_by_no_link() {
        if !rustix::process::geteuid().is_root() {
            eprintln!(
                "SKIPPED: mount_points_are_below_a_root_and_reached_by_no_link needs root, whose the folders must be"
            );
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap().join("root");
        fs::create_dir_all(root.join("there")).unwrap();
        symlink("/etc", root.join("link")).unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        for (name, mode, owner) in [("open", 0o777, 0), ("theirs", 0o755, 7), ("sticky", 0o1777, 0)] {
            fs::create_dir(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
            chown(root.join(name), Some(owner), None).unwrap();
        }
        fs::write(root.join("file"), "").unwrap();
        let bounds = Bounds {
            user: 7,
            mount_roots: vec![root.clone()],
        };
        for at in ["there", "there/and/not/there", "new"] {
            bounds.check_mount_point(&root.join(at)).unwrap();
        }
        for at in [
            root.clone(),
            root.join("../x"),
            root.join("link"),
            root.join("link/passwd"),
            root.join("dangling"),
            root.join("dangling/x"),
            root.join("open/x"),
            root.join("theirs/x"),
            root.join("theirs"),
            root.join("sticky/new"),
            root.join("file"),
            root.join("file/x"),
            PathBuf::from("there"),
            PathBuf::from("/etc"),
            PathBuf::from(format!("{}2/x", root.display())),
        ] {
            let refused = bounds.check_mount_point(&at);
            assert!(
                matches!(refused, Err(AttachError::Refused(_))),
                "{}",
                at.display()
            );
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
