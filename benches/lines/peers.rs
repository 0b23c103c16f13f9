//! The servers of others, each on a unix socket, started for a run and ended by its process id.

use crate::bench::Bench;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use testkit::proc::{Process, need_tool, run, until};

const SOON: Duration = Duration::from_secs(30);

/// Whose server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `qemu-nbd`, raw file, its default cache mode (write-back).
    QemuNbd,
    /// `nbdkit file`.
    Nbdkit,
    /// `nbdkit --filter=cow file`: writes go to a temporary file.
    NbdkitCow,
    /// `nbd-server` with flush and FUA.
    NbdServer,
    /// The same with `transactionlog` and `datalog = true`: every request is logged with its data.
    Datalog,
}

impl Peer {
    pub const ALL: [Self; 5] = [
        Self::QemuNbd,
        Self::Nbdkit,
        Self::NbdkitCow,
        Self::NbdServer,
        Self::Datalog,
    ];

    /// For the page: how [`Peer::start`] starts it.
    pub fn shown(self) -> &'static str {
        match self {
            Self::QemuNbd => "`qemu-nbd -t -e 0 -x v -f raw -k SOCKET IMAGE`",
            Self::Nbdkit => "`nbdkit -f -U SOCKET file IMAGE`",
            Self::NbdkitCow => "`nbdkit -f -U SOCKET --filter=cow file IMAGE`",
            Self::NbdServer => "`nbd-server -C FILE`, with `flush`, `fua` and `trim`",
            Self::Datalog => "the same, with `transactionlog = LOG` and `datalog = true`",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::QemuNbd => "qemu-nbd",
            Self::Nbdkit => "nbdkit file",
            Self::NbdkitCow => "nbdkit cow",
            Self::NbdServer => "plain nbd-server",
            Self::Datalog => "datalog",
        }
    }

    /// Starts it over an image.
    pub fn start(self, bench: &Bench, image: &Path) -> Serving {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("peer{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let socket = bench.scratch.join(format!("{name}.sock"));
        let serving = |kind: Kind, export: &str| Serving {
            uri: format!("nbd+unix:///{export}?socket={}", socket.display()),
            kind,
        };
        let start = |mut command: Command, export: &str| {
            let process = bench.scratch.start(&name, &mut command);
            process.wait_for_socket(&socket, SOON);
            serving(Kind::Child(process), export)
        };
        match self {
            Self::QemuNbd => {
                let mut command = Command::new(need_tool("qemu-nbd"));
                command
                    // Any number of clients, for as long as it lives.
                    .args(["-t", "-e", "0", "-x", "v", "-f", "raw", "-k"])
                    .arg(&socket)
                    .arg(image);
                start(command, "v")
            }
            Self::Nbdkit | Self::NbdkitCow => {
                let mut command = Command::new(need_tool("nbdkit"));
                command.args(["-f", "-U"]).arg(&socket);
                if self == Self::NbdkitCow {
                    command.arg("--filter=cow").env("TMPDIR", bench.scratch.path());
                }
                command.arg("file").arg(image);
                start(command, "")
            }
            Self::NbdServer | Self::Datalog => {
                let log = bench.scratch.join(format!("{name}.datalog"));
                let logged = match self {
                    Self::Datalog => format!("transactionlog = {}\ndatalog = true\n", log.display()),
                    _ => String::new(),
                };
                let config = bench.scratch.join(format!("{name}.conf"));
                let text = format!(
                    "[generic]\nunixsock = {}\n[v]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n{logged}",
                    socket.display(),
                    image.display(),
                );
                fs::write(&config, text).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
                let pid_file = bench.scratch.join(format!("{name}.pid"));
                let mut command = Command::new(need_tool("nbd-server"));
                command.arg("-C").arg(&config).arg("-p").arg(&pid_file);
                // It goes into the background by itself.
                run(&mut command, SOON).ok();
                let pid = until("nbd-server's process id", SOON, || {
                    let text = fs::read_to_string(&pid_file).ok()?;
                    Pid::from_raw(text.trim().parse().ok()?)
                });
                until("nbd-server's socket", SOON, || UnixStream::connect(&socket).ok());
                serving(Kind::Daemon { pid, log }, "v")
            }
        }
    }
}

/// A server that runs. Dropped, it ends, and so does its log.
pub struct Serving {
    /// What clients take.
    pub uri: String,
    kind: Kind,
}

enum Kind {
    Child(Process),
    Daemon { pid: Pid, log: PathBuf },
}

impl Serving {
    /// Ends the server in order and leaves its transaction log, if it wrote one, at `keep`.
    pub fn end_keeping_log(self, keep: &Path) {
        self.end();
        if let Kind::Daemon { log, .. } = &self.kind {
            fs::rename(log, keep).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        }
    }

    fn end(&self) {
        match &self.kind {
            Kind::Child(process) => {
                if process.ended().is_none() {
                    process.signal(Signal::TERM);
                    until("the end of a server", SOON, || process.ended());
                }
            }
            Kind::Daemon { pid, .. } => {
                let _ = kill_process(*pid, Signal::TERM);
                until("the end of nbd-server", SOON, || ended(*pid).then_some(()));
            }
        }
    }
}

/// Nobody may be there to wait for a daemon that ended: then it stays as a zombie.
fn ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.contains(") Z ")
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
        if let Kind::Daemon { log, .. } = &self.kind {
            let _ = fs::remove_file(log);
        }
    }
}
