//! Folders that clean up after a test.

use super::{
    Process,
    leftovers::{end_processes, let_go, loops_below},
    run::try_run,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

/// A temporary folder that owns what a test starts and mounts.
///
/// When it is dropped, what is mounted below it is unmounted, what was started through it or names it in its command line is killed
/// by its id, loop devices on its files are undone, and the folder goes, unless something is still mounted there. `BACKSTAY_KEEP=1`
/// keeps the folder of a test that failed.
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
        loops_below(&self.path).iter().for_each(let_go);
        let started = self.started.get_mut().unwrap_or_else(PoisonError::into_inner);
        for process in started.drain(..).rev() {
            process.end();
        }
        end_processes(&self.path);
        loops_below(&self.path).iter().for_each(let_go);
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
pub(super) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
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
    use crate::proc::{
        run,
        shared::{SOON, sh},
    };

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
}
