//! The mount table, and who uses what is mounted.
//!
//! Nothing here looks into a mounted file system: it may stand on a device that waits for this very daemon.

use rustix::process::Pid;
use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long somebody may look at a device who does not use it.
pub(super) const A_LOOK: Duration = Duration::from_secs(2);

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, while it is mounted.
    pub id: u64,
    /// Where.
    pub at: PathBuf,
    /// What.
    pub source: PathBuf,
    /// The kind of file system.
    pub kind: String,
}

impl Mount {
    /// Whether it is what is on this device. The source of what is mounted through FUSE is what any user says.
    fn is_of(&self, device: &Path) -> bool {
        self.source == device && !self.kind.starts_with("fuse")
    }
}

/// All that is mounted, in the order in which it was. Whoever cannot see it does nothing until he can: what is not seen is not "not
/// mounted".
#[must_use]
pub fn table() -> Vec<Mount> {
    loop {
        match table_of(Path::new("/proc/self")) {
            Ok(table) => return table,
            Err(e) => tracing::error!("/proc/self/mountinfo: {e}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What is mounted, as a process sees it.
fn table_of(process: &Path) -> io::Result<Vec<Mount>> {
    let text = fs::read(process.join("mountinfo"))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// A line, which is not text: a file system may say anything of itself.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let at = unescape(words.nth(3)?);
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next()?);
    Some(Mount { id, at, source, kind })
}

/// Takes the octal escapes out of a path of the mount table.
fn unescape(text: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let number = octal
            .and_then(|o| std::str::from_utf8(o).ok())
            .and_then(|o| u8::from_str_radix(o, 8).ok());
        out.push(number.unwrap_or(byte));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(out).into()
}

/// Where a device is mounted, the newest first.
#[must_use]
pub fn of(device: &Path) -> Vec<PathBuf> {
    let mounts = table().into_iter().rev().filter(|m| m.is_of(device));
    mounts.map(|m| m.at).collect()
}

/// Whether anything is mounted at a path without links.
#[must_use]
pub fn is_at(path: &Path) -> bool {
    table().iter().any(|m| m.at == path)
}

/// What is mounted exactly at `at`, on top.
#[must_use]
pub fn at(at: &Path) -> Option<PathBuf> {
    // A mount point is listed without links. What is above it may hang, and then is not mounted on.
    let mut table = table();
    let direct = |t: &[Mount], at: &Path| t.iter().rev().find(|m| m.at == at).map(|m| m.source.clone());
    if let Some(source) = direct(&table, at) {
        return Some(source);
    }
    let real = fs::canonicalize(at).ok().filter(|real| real != at)?;
    table.retain(|m| m.at == real);
    direct(&table, &real)
}

/// Who uses the file system mounted at `at`: processes as `pid command`, mounts in it other than `ours`, loop devices and swap.
#[must_use]
pub fn users_of(at: &Path, ours: &[PathBuf]) -> Vec<String> {
    let mut users: Vec<String> = processes_in(at).into_iter().map(|(_, name)| name).collect();
    let below = table()
        .into_iter()
        .filter(|m| m.at != at && m.at.starts_with(at) && !ours.contains(&m.at));
    users.extend(below.map(|m| format!("{} is mounted at {}", m.source.display(), m.at.display())));
    let loops = loops().into_iter().filter(|(_, file)| file.starts_with(at));
    users.extend(loops.map(|(device, file)| format!("{} stands on {}", device.display(), file.display())));
    users.extend(swaps().into_iter().filter(|s| s.starts_with(at)).map(swap));
    users
}

/// Processes that use the file system mounted at `at`, with their names as `pid command`.
#[must_use]
pub fn processes_in(at: &Path) -> Vec<(Pid, String)> {
    processes(|links, maps| {
        links.iter().any(|link| link.starts_with(at)) || maps().iter().any(|file| file.starts_with(at))
    })
}

/// Processes that have a block device open, with their names as `pid command`.
#[must_use]
pub fn processes_on(device: &Path) -> Vec<(Pid, String)> {
    processes(|links, _| links.iter().any(|link| link == device))
}

/// Who uses a block device, and goes on using it: processes, mounts, what is made of it, swap. Whoever only has a look at every
/// device there is, as `blkid` and `udev` do, is gone in a moment.
#[must_use]
pub fn users_of_device(device: &Path) -> Vec<String> {
    let deadline = Instant::now() + A_LOOK;
    loop {
        let users = users_now(device);
        if users.is_empty() || Instant::now() > deadline {
            return users;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn users_now(device: &Path) -> Vec<String> {
    let mut users: Vec<String> = processes_on(device).into_iter().map(|(_, name)| name).collect();
    users.extend(of(device).iter().map(|at| format!("mounted at {}", at.display())));
    let made = device
        .file_name()
        .and_then(|name| fs::read_dir(Path::new("/sys/block").join(name).join("holders")).ok());
    let made = made.into_iter().flatten().flatten().map(|e| e.path());
    users.extend(made.filter_map(|path| Some(format!("/dev/{}", path.file_name()?.display()))));
    users.extend(swaps().into_iter().filter(|s| s == device).map(swap));
    if users.is_empty() && is_claimed(device) {
        let elsewhere = processes_elsewhere(device).into_iter();
        users.extend(elsewhere.map(|(_, name)| format!("{name} in a mount namespace of its own")));
        if users.is_empty() {
            users.push("a mount that cannot be seen from here".into());
        }
    }
    users
}

/// Processes in whose own mount namespace a device is mounted that is not in this one: one for each such namespace.
#[must_use]
pub fn processes_elsewhere(device: &Path) -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    if !of(device).is_empty() {
        return found;
    }
    let mut seen = vec![fs::read_link("/proc/self/ns/mnt").ok()];
    for (pid, folder) in pids() {
        let namespace = fs::read_link(folder.join("ns/mnt")).ok();
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        // It may have ended.
        let table = table_of(&folder).unwrap_or_default();
        if table.iter().any(|m| m.is_of(device)) {
            found.push((pid, named(pid, &folder)));
        }
    }
    found
}

fn swap(path: PathBuf) -> String {
    format!("swap on {}", path.display())
}

/// Whether somebody has the device for himself, as a mount has.
fn is_claimed(device: &Path) -> bool {
    use rustix::{
        fs::{Mode, OFlags, open},
        io::Errno,
    };
    open(
        device,
        OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .is_err_and(|e| e == Errno::BUSY)
}

fn swaps() -> Vec<PathBuf> {
    let text = fs::read("/proc/swaps").unwrap_or_default();
    let lines = text.split(|b| *b == b'\n').skip(1);
    let first = lines.filter_map(|l| l.split(|b| *b == b' ').next());
    first.filter(|path| !path.is_empty()).map(unescape).collect()
}

/// Loop devices with the files that they stand on.
#[must_use]
pub fn loops() -> Vec<(PathBuf, PathBuf)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = devices.filter_map(|entry| {
        let file = fs::read(entry.path().join("loop/backing_file")).ok()?;
        let file = file.strip_suffix(b"\n").unwrap_or(&file);
        Some((Path::new("/dev").join(entry.file_name()), there_or_gone(file)))
    });
    devices.collect()
}

/// Processes that `use_it`, told by what they have open and, when asked, by what they have mapped; this one is not among them.
fn processes(use_it: impl Fn(&[PathBuf], &dyn Fn() -> Vec<PathBuf>) -> bool) -> Vec<(Pid, String)> {
    let this = rustix::process::getpid();
    let mut found = Vec::new();
    for (pid, folder) in pids() {
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let links = ["cwd", "root", "exe"].map(|l| folder.join(l));
        let links = links.into_iter().chain(files.map(|f| f.path()));
        let links: Vec<PathBuf> = links.filter_map(|l| fs::read_link(l).ok()).collect();
        if pid != this && use_it(&links, &|| mapped(&folder)) {
            found.push((pid, named(pid, &folder)));
        }
    }
    found
}

fn pids() -> Vec<(Pid, PathBuf)> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        Some((Pid::from_raw(pid)?, process.path()))
    });
    all.collect()
}

/// A process as `pid command`.
fn named(pid: Pid, folder: &Path) -> String {
    let command = fs::read(folder.join("comm")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command);
    format!("{} {}", pid.as_raw_nonzero(), command.trim())
}

fn mapped(process: &Path) -> Vec<PathBuf> {
    let text = fs::read(process.join("maps")).unwrap_or_default();
    let lines = text.split(|b| *b == b'\n');
    let files = lines.filter_map(|line| line.iter().position(|b| *b == b'/').map(|at| &line[at..]));
    files.map(there_or_gone).collect()
}

/// The path of a file that may have been removed.
fn there_or_gone(path: &[u8]) -> PathBuf {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    OsString::from_vec(path.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_taken_apart() {
        let line = br"36 35 98:0 /mnt1 /mnt\040a/b\134c rw,noatime master:1 - ext3 /dev/loop\0405 rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, &*mount.kind), (36, "ext3"));
        assert_eq!(mount.at, Path::new(r"/mnt a/b\c"));
        assert_eq!(mount.source, Path::new("/dev/loop 5"));
        assert_eq!(parse(b"36 35 98:0 / /x"), None);
        assert_eq!(unescape(br"/a\"), Path::new(r"/a\"));
        // What is no text hides nothing.
        let strange = parse(b"7 1 0:5 /\xff /x rw - btrfs /dev/loop5 rw,subvol=/\xff").unwrap();
        assert_eq!(strange.at, Path::new("/x"));
        assert!(strange.is_of(Path::new("/dev/loop5")));
        let told = parse(b"7 1 0:5 / /x rw - fuse.mine /dev/loop5 rw").unwrap();
        assert!(!told.is_of(Path::new("/dev/loop5")));
        assert!(table().iter().any(|m| m.at == Path::new("/")));
        assert!(at(Path::new("/")).is_some() && at(Path::new("/no/such")).is_none());
    }

    #[test]
    fn users_are_found_by_what_they_have_open() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        assert_eq!(users_of(&at, &[]), Vec::<String>::new());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(&at)
            .spawn()
            .unwrap();
        let wanted = format!("{} sleep", child.id());
        // Between its start and its program it has another name.
        while users_of(&at, &[]) != [wanted.clone()] {
            std::thread::yield_now();
        }
        assert_eq!(users_of(&at.join("elsewhere"), &[]), Vec::<String>::new());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
