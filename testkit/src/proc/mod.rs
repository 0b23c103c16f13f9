//! Processes, sockets, mounts and folders of end-to-end tests: whatever a test starts is gone when it ends, passed or not.
//!
//! Everything here panics with the words that a person needs (the command, the deadline, the last lines of the log), as a
//! test would have to do with an error anyway. Nothing is ever killed by name, only by the id it was started with.

mod host;
mod leftovers;
mod process;
mod pty;
mod run;
mod scratch;

pub use host::{Host, Hosts};
pub use leftovers::leftovers;
pub use process::Process;
pub use pty::Pty;
pub use run::{Finished, behind, run};
pub use rustix::process::Signal;
pub use scratch::Scratch;

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How often things are looked at while waiting.
const POLL: Duration = Duration::from_millis(5);

/// The folder of the workspace.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate lies in the workspace")
}

/// Whether this is root, as file systems need it; says loudly what is left out otherwise.
#[must_use]
pub fn root_for(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !root {
        eprintln!("\n*** SKIPPED, needs root and /dev/fuse: {what} ***\n");
    }
    root
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
        "nbd-trplay" => "nbd-server",
        "nbdcopy" | "nbdinfo" | "nbddump" | "nbdfuse" => "libnbd-bin",
        "nbdsh" => "python3-libnbd",
        "qemu-nbd" | "qemu-img" | "qemu-io" | "qemu-storage-daemon" => "qemu-utils",
        "mkfs.ext4" | "e2fsck" | "debugfs" | "tune2fs" | "resize2fs" => "e2fsprogs",
        "mkfs.xfs" | "xfs_io" | "xfs_repair" => "xfsprogs",
        "mkfs.btrfs" | "btrfs" | "btrfstune" => "btrfs-progs",
        "mount" | "umount" | "losetup" => "mount",
        "blkdiscard" | "unshare" | "nsenter" | "setsid" | "runuser" => "util-linux",
        "ip" | "ss" => "iproute2",
        "psql" | "initdb" | "pg_ctl" | "postgres" | "pgbench" => "postgresql",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_or_named() {
        assert!(need_tool("sh").is_file() && root().join("Cargo.toml").is_file());
        assert_eq!(package_of("nbdcopy"), "libnbd-bin");
        assert!(std::panic::catch_unwind(|| need_tool("no-such-tool")).is_err());
    }
}

/// What the tests of this module share.
#[cfg(test)]
mod shared {
    use std::{process::Command, time::Duration};

    pub(super) const SOON: Duration = Duration::from_secs(10);

    pub(super) fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }
}
