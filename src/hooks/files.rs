//! Which files are the hooks of an event, and whether they may be run.

use super::HookEvent;
use rustix::process::geteuid;
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Why a hook was not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookFault {
    /// The node's file names a folder that is not there.
    #[error("the folder of hooks {} is gone", .0.display())]
    Gone(PathBuf),
    /// A file or folder cannot be looked at.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Something else than a program.
    #[error("{} is no program", .0.display())]
    NoProgram(PathBuf),
    /// Nobody may run it.
    #[error("{path} is not executable: chmod +x {path}, or take it away", path = .0.display())]
    NotExecutable(PathBuf),
    /// Others than its owner can change it.
    #[error("{path} (mode {mode:04o}) can be written by others than its owner: chmod go-w {path}", path = path.display())]
    Writable {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another user can change it.
    #[error("{path} belongs to user {owner}, not to root or the daemon's user {user}: chown {user} {path}", path = path.display())]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The daemon's user.
        user: u32,
    },
    /// It could not be started.
    #[error("{}: {source}{}", path.display(), hint(source))]
    Start {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
}

/// What may lie behind a start that failed.
fn hint(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) {
        " (hooks get no shell: does it begin with a line like #!/bin/sh?)"
    } else if error.kind() == io::ErrorKind::NotFound {
        " (is the program in its #! line there?)"
    } else {
        ""
    }
}

/// A file that is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// Event and, in a folder, the file.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Hook {
    /// Whether it is a program that nobody else can change.
    pub(super) fn check(&self) -> Result<(), HookFault> {
        // The file that a link leads to is what runs, and whoever can write its folder can put another in its place.
        let path = fs::canonicalize(&self.path).map_err(io_at(&self.path))?;
        let meta = fs::metadata(&path).map_err(io_at(&path))?;
        if !meta.is_file() {
            return Err(HookFault::NoProgram(self.path.clone()));
        }
        is_ours(&path)?;
        is_ours(path.parent().unwrap_or(Path::new("/")))?;
        // And whoever can write a folder above can put another folder in the place of that one: where the name leads through,
        // and where it ends.
        let named = std::path::absolute(&self.path).map_err(io_at(&self.path))?;
        for above in named.ancestors().skip(1).chain(path.ancestors().skip(2)) {
            is_ours_above(above)?;
        }
        if meta.mode() & 0o111 == 0 {
            return Err(HookFault::NotExecutable(path));
        }
        Ok(())
    }
}

/// The hooks of an event in the order in which they run; each is still to be checked.
pub(super) fn find(dir: &Path, dir_is_named: bool, event: HookEvent) -> Result<Vec<Hook>, HookFault> {
    if !exists(dir)? {
        return if dir_is_named {
            Err(HookFault::Gone(dir.to_owned()))
        } else {
            Ok(Vec::new())
        };
    }
    is_ours(dir)?;
    let path = dir.join(event.name());
    if !exists(&path)? {
        return Ok(Vec::new());
    }
    if !fs::metadata(&path).map_err(io_at(&path))?.is_dir() {
        let name = event.name().to_owned();
        return Ok(vec![Hook { name, path }]);
    }
    is_ours(&path)?;
    let mut hooks = Vec::new();
    for entry in fs::read_dir(&path).map_err(io_at(&path))? {
        let entry = entry.map_err(io_at(&path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What editors leave behind is not a second hook.
        if !name.starts_with('.') && !name.ends_with('~') {
            hooks.push(Hook {
                name: format!("{event}/{name}"),
                path: entry.path(),
            });
        }
    }
    hooks.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(hooks)
}

/// Whether there is anything: a link that leads nowhere is something, and will be complained of.
fn exists(path: &Path) -> Result<bool, HookFault> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_at(path)(e)),
    }
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> HookFault {
    move |source| HookFault::Io {
        path: path.to_owned(),
        source,
    }
}

fn is_ours(path: &Path) -> Result<(), HookFault> {
    let meta = fs::metadata(path).map_err(io_at(path))?;
    judge(path, meta.uid(), meta.mode(), geteuid().as_raw())
}

/// Whether only root and the daemon's user can put something else in the place of what is theirs in this folder.
fn is_ours_above(path: &Path) -> Result<(), HookFault> {
    let meta = fs::metadata(path).map_err(io_at(path))?;
    judge_above(path, meta.uid(), meta.mode(), geteuid().as_raw())
}

/// As [`judge`], of a folder above: where its sticky bit is set, as in `/tmp`, each can take away and rename only what is his.
pub(super) fn judge_above(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), HookFault> {
    let mode = if mode & 0o1000 == 0 { mode } else { mode & !0o022 };
    judge(path, owner, mode, user)
}

/// Whether only root and the daemon's user can change what is here.
pub(super) fn judge(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), HookFault> {
    let path = path.to_owned();
    if owner != 0 && owner != user {
        return Err(HookFault::Foreign { path, owner, user });
    }
    if mode & 0o022 != 0 {
        let mode = mode & 0o7777;
        return Err(HookFault::Writable { path, mode });
    }
    Ok(())
}
