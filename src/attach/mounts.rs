//! The mount table, and who uses what is mounted.
//!
//! Nothing here looks into a mounted file system: it may stand on a device that waits for this very daemon.

use rustix::process::Pid;
use std::{
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long somebody may look at a device who does not use it.
const A_LOOK: Duration = Duration::from_secs(2);

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: PathBuf,
    /// What.
    pub source: PathBuf,
}

/// All that is mounted, in the order in which it was.
#[must_use]
pub fn table() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Mount> {
    let at = unescape(line.split(' ').nth(4)?);
    let (_, rest) = line.split_once(" - ")?;
    let source = unescape(rest.split(' ').nth(1)?);
    Some(Mount { at, source })
}

/// Takes the octal escapes out of a path of the mount table.
fn unescape(text: &str) -> PathBuf {
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

/// Where a device is mounted, the newest first.
#[must_use]
pub fn of(device: &Path) -> Vec<PathBuf> {
    let mounts = table().into_iter().rev().filter(|m| m.source == device);
    mounts.map(|m| m.at).collect()
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
        users = elsewhere(device);
        if users.is_empty() {
            users.push("a mount that cannot be seen from here".into());
        }
    }
    users
}

/// Processes in whose own mount namespace a device is mounted, one for each such namespace.
fn elsewhere(device: &Path) -> Vec<String> {
    let mut seen = vec![fs::read_link("/proc/self/ns/mnt").ok()];
    let mut found = Vec::new();
    for (pid, folder) in pids() {
        let namespace = fs::read_link(folder.join("ns/mnt")).ok();
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let table = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
        if table.lines().filter_map(parse).any(|m| m.source == device) {
            found.push(format!(
                "{} in a mount namespace of its own",
                named(&pid, &folder)
            ));
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
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let first = text.lines().skip(1).filter_map(|l| l.split(' ').next());
    first.map(unescape).collect()
}

/// Loop devices with the files that they stand on.
#[must_use]
pub fn loops() -> Vec<(PathBuf, PathBuf)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = devices.filter_map(|entry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let file = file.trim_end_matches('\n').trim_end_matches(" (deleted)");
        Some((Path::new("/dev").join(entry.file_name()), PathBuf::from(file)))
    });
    devices.collect()
}

/// Processes that `use_it`, told by what they have open and, when asked, by what they have mapped; this one is not among them.
fn processes(use_it: impl Fn(&[PathBuf], &dyn Fn() -> Vec<PathBuf>) -> bool) -> Vec<(Pid, String)> {
    let this = std::process::id().to_string();
    let mut found = Vec::new();
    for (pid, folder) in pids() {
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let links = ["cwd", "root", "exe"].map(|l| folder.join(l));
        let links = links.into_iter().chain(files.map(|f| f.path()));
        let links: Vec<PathBuf> = links.filter_map(|l| fs::read_link(l).ok()).collect();
        let number = pid.parse().ok().and_then(Pid::from_raw);
        if pid != this
            && use_it(&links, &|| mapped(&folder))
            && let Some(number) = number
        {
            found.push((number, named(&pid, &folder)));
        }
    }
    found
}

fn pids() -> Vec<(String, PathBuf)> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|process| {
        let pid = process.file_name().into_string().ok()?;
        pid.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| (pid, process.path()))
    });
    all.collect()
}

/// A process as `pid command`.
fn named(pid: &str, folder: &Path) -> String {
    let command = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    format!("{pid} {}", command.trim())
}

fn mapped(process: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let files = text
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    files.map(|f| f.trim_end_matches(" (deleted)").into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_taken_apart() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\040a/b\134c rw,noatime master:1 - ext3 /dev/loop\0405 rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.at, Path::new(r"/mnt a/b\c"));
        assert_eq!(mount.source, Path::new("/dev/loop 5"));
        assert_eq!(parse("36 35 98:0 / /x"), None);
        assert_eq!(unescape(r"/a\"), Path::new(r"/a\"));
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
