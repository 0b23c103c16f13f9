//! Hosts made of namespaces: each has its own network, mounts, processes, shared memory and name, and dies as a whole.
//!
//! A [`Host`] is a first process that waits in new namespaces. Whatever runs on the host runs below it, so that a
//! [`Host::crash`] ends everything there at once, as a power failure does: what was mounted is gone with the namespace, what
//! only the page cache of a mounted file system had is lost, and files of the machine itself stay. It ends by itself when the
//! test's process is gone, however that died: it waits for the end of a pipe.
//!
//! [`Hosts`] are two of them with a cable between. Nothing of this has a name on the machine (no interface, no named
//! namespace), so tests run beside each other with the same addresses.
//!
//! Needs root, and `unshare`, `nsenter` (util-linux) and `ip` (iproute2).

use super::{
    Scratch,
    leftovers::{is_free, let_go, loops_below},
    run::{run, signal_one},
    until,
};
use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Time enough for a step of a host.
const LIMIT: Duration = Duration::from_secs(60);

/// The end of the cable, on each host.
const CABLE: &str = "peer0";

/// Runs on a host as its first process. When the test's process is gone, so is the host; its loop devices, which belong to the
/// machine, let go of their files when nobody has them open any more.
const LIVE: &str = r#"
echo up
cat >/dev/null
losetup --list --noheadings --output NAME,BACK-FILE | while read -r device file; do
  case "$file" in "$2"/*) losetup --detach "$device" ;; esac
done
"#;

/// Runs on a host before it is up: `$1` is its name, `$2` its folder. The boot id is a new one at each boot, as after a real one.
/// What other tests have mounted came along with the new namespace, and they could not get rid of it.
const BOOT: &str = r#"
set -eu
while read -r _ _ _ _ at _; do
  case "$at" in "${2%/*}"/*) ;; */backstay-*) umount -l "$at" 2>/dev/null || true ;; esac
done </proc/self/mountinfo
hostname "$1"
mount -t tmpfs none /dev/shm
cat /proc/sys/kernel/random/uuid >"$2/boot_id"
mount --bind "$2/boot_id" /proc/sys/kernel/random/boot_id
mount --bind "$2/hosts" /etc/hosts
ip link set lo up
"#;

/// A host. Dropped, it crashes.
#[derive(Debug)]
pub struct Host {
    name: String,
    folder: PathBuf,
    prepare: String,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    /// `unshare`, outside of the host, in all its namespaces but that of processes.
    holder: Child,
    /// The host lives while this is open.
    _pipe: ChildStdin,
}

impl Host {
    /// A host that is not up yet. `folder` is its own; `prepare` is more for a shell to run on it at each boot, with its name
    /// in `$1` and its folder in `$2`.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn new(name: &str, folder: &Path, prepare: &str) -> Self {
        let known = folder.join("hosts");
        let made = fs::create_dir_all(folder)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(known));
        made.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        Self {
            name: name.to_owned(),
            folder: folder.to_owned(),
            prepare: prepare.to_owned(),
            running: Mutex::new(None),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder, which outlives it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it is up already, or does not come up.
    #[track_caller]
    pub fn boot(&self) {
        let mut running = self.running();
        assert!(running.is_none(), "{} is up", self.name);
        let log = self.folder.join("boot.log");
        let errors = File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let script = format!("{BOOT}\n{}\n{LIVE}", self.prepare);
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--net", "--mount", "--uts", "--ipc", "--pid"])
            .args([
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
            ])
            .args(["sh", "-c", &script, "boot", &self.name])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut holder = unshare.spawn().unwrap_or_else(|e| panic!("{unshare:?}: {e}"));
        let pipe = holder.stdin.take().expect("its input is a pipe");
        let mut said = BufReader::new(holder.stdout.take().expect("its output is a pipe"));
        let mut line = String::new();
        let up = loop {
            line.clear();
            match said.read_line(&mut line) {
                Ok(1..) if line == "up\n" => break true,
                Ok(1..) => {}
                _ => break false,
            }
        };
        let pid = holder.id();
        *running = Some(Running { holder, _pipe: pipe });
        let said = || fs::read_to_string(&log).unwrap_or_default();
        assert!(up, "{} did not come up: {}", self.name, said());
        let environment = self.folder.join("environment");
        let enter = format!(
            "#!/bin/sh\n[ ! -e '{0}' ] || . '{0}'\nexec {1} \"$@\"\n",
            environment.display(),
            enter(pid)
        );
        let path = self.enter();
        let written = fs::write(&path, enter)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
        written.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Whether it is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.running().is_some()
    }

    /// A program that runs its arguments on the host while it is up, for scripts. It sources `environment` in the host's folder
    /// first, if that is there.
    #[must_use]
    pub fn enter(&self) -> PathBuf {
        self.folder.join("enter")
    }

    #[track_caller]
    fn pid(&self) -> u32 {
        let running = self.running();
        let up = running
            .as_ref()
            .unwrap_or_else(|| panic!("{} is down", self.name));
        up.holder.id()
    }

    /// A command on the host, not yet run.
    ///
    /// # Panics
    /// When the host is down.
    #[track_caller]
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        assert!(self.is_up(), "{} is down", self.name);
        let mut command = Command::new(self.enter());
        command.arg(program);
        command
    }

    /// Runs a line of shell on the host; what it wrote.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        run(self.command("sh").args(["-c", line]), LIMIT).ok()
    }

    /// Ends everything on the host at once. Nothing when it is down.
    ///
    /// # Panics
    /// When something of it does not go.
    #[track_caller]
    pub fn crash(&self) {
        let Some(Running { mut holder, _pipe }) = self.running().take() else {
            return;
        };
        let loops = loops_below(&self.folder);
        loops.iter().for_each(let_go);
        let _ = fs::remove_file(self.enter());
        // The kernel ends all of a process namespace with its first process, and that one when all are gone.
        let first = first_below(holder.id());
        match first {
            Some(pid) => signal_one(pid, rustix::process::Signal::KILL),
            None => drop(holder.kill()),
        }
        until(&format!("the end of {}", self.name), LIMIT, || {
            holder.try_wait().ok().flatten()
        });
        // Its mounts go with the namespace, a moment later; a loop device that nobody mounts any more lets go of its file.
        until("loop devices to be free", LIMIT, || {
            loops.iter().all(is_free).then_some(())
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A second panic would hide the first.
            let crashed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.crash()));
            if crashed.is_err() {
                eprintln!("{}: something of it is left", self.name);
            }
        } else {
            self.crash();
        }
    }
}

/// The words before a command that run it on the host of this holder.
fn enter(holder: u32) -> String {
    format!("nsenter --net --mount --uts --ipc --target={holder} --pid=/proc/{holder}/ns/pid_for_children --")
}

fn first_below(holder: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Two hosts with a cable between them; the first has [`Hosts::ADDRESSES`]`[0]`.
#[derive(Debug)]
pub struct Hosts {
    hosts: [Host; 2],
}

impl Hosts {
    /// Their addresses, the same in every test.
    pub const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

    /// Two hosts that are up and know each other's names, with folders of these names in the scratch folder. `prepare` is as
    /// for [`Host::new`].
    ///
    /// # Panics
    /// When they do not come up.
    #[track_caller]
    #[must_use]
    pub fn new(scratch: &Scratch, names: [&str; 2], prepare: &str) -> Self {
        let mut known = "127.0.0.1 localhost\n".to_owned();
        for (address, name) in Self::ADDRESSES.iter().zip(names) {
            writeln!(known, "{address} {name}").expect("a text takes all");
        }
        let hosts = names.map(|name| {
            let folder = scratch.folder(name);
            fs::write(folder.join("hosts"), &known).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            let host = Host::new(name, &folder, prepare);
            host.boot();
            host
        });
        let both = Self { hosts };
        both.wire();
        both
    }

    /// One of them.
    ///
    /// # Panics
    /// When none is called so.
    #[track_caller]
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        &self.hosts[self.index(name)]
    }

    #[track_caller]
    fn index(&self, name: &str) -> usize {
        let found = self.hosts.iter().position(|host| host.name == name);
        found.unwrap_or_else(|| panic!("no host is called {name}"))
    }

    /// Lays the cable: its ends are made in the hosts themselves.
    fn wire(&self) {
        let [a, b] = self.hosts.each_ref().map(|host| host.pid().to_string());
        let mut made = Command::new("nsenter");
        made.args([
            "--target", &a, "--net", "ip", "link", "add", CABLE, "type", "veth",
        ])
        .args(["peer", "name", CABLE, "netns", &b]);
        run(&mut made, LIMIT).ok();
        for (host, address) in self.hosts.iter().zip(Self::ADDRESSES) {
            host.sh(&format!(
                "ip address add {address}/24 dev {CABLE} && ip link set {CABLE} up"
            ));
        }
    }

    /// Starts a host that has crashed, and lays the cable anew: it went with its end.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn boot(&self, name: &str) {
        self.host(name).boot();
        if self.hosts.iter().all(Host::is_up) {
            self.wire();
        }
    }

    /// Pulls the cable: both ends see that it is gone.
    ///
    /// # Panics
    /// When a host is down.
    #[track_caller]
    pub fn cut(&self) {
        for host in &self.hosts {
            host.sh(&format!("ip link set {CABLE} down"));
        }
    }

    /// Plugs it in again, and lets everybody be heard.
    ///
    /// # Panics
    /// When a host is down.
    #[track_caller]
    pub fn mend(&self) {
        for (host, other) in self.hosts.iter().zip([1, 0]) {
            let other = Self::ADDRESSES[other];
            host.sh(&format!(
                "ip link set {CABLE} up; ip neigh del {other} dev {CABLE} 2>/dev/null || true"
            ));
        }
    }

    /// Loses all that this host sends from now on, silently; it still hears the other. Both hosts muted are a line that is dead
    /// although it is plugged in.
    ///
    /// # Panics
    /// When the host is down.
    #[track_caller]
    pub fn mute(&self, name: &str) {
        let other = Self::ADDRESSES[1 - self.index(name)];
        // To a card that nobody has.
        self.host(name).sh(&format!(
            "ip neigh replace {other} lladdr 02:00:00:00:00:99 dev {CABLE} nud permanent"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{Process, shared::SOON};

    fn may_run() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("\n*** SKIPPED, needs root: hosts of namespaces ***\n");
        }
        root
    }

    /// Says a line to the other host whenever it hears one.
    fn listen(scratch: &Scratch, host: &Host, address: &str) -> Process {
        let serve = format!(
            "use IO::Socket::INET; $| = 1; my $s = IO::Socket::INET->new(LocalAddr => '{address}:7', Proto => 'udp') or die; \
             print \"listens\\n\"; while (defined $s->recv(my $d, 99)) {{ print \"$d\\n\"; $s->send($d) }}"
        );
        let process = scratch.start(host.name(), host.command("perl").args(["-e", &serve]));
        process.wait_for_line("listens", SOON);
        process
    }

    /// Sends a line and waits a moment for the echo.
    fn echo(host: &Host, address: &str, text: &str) -> bool {
        let ask = format!(
            "use IO::Socket::INET; my $s = IO::Socket::INET->new(PeerAddr => '{address}:7', Proto => 'udp') or exit 1; \
             $s->send('{text}') or exit 1; my $r = ''; vec($r, fileno($s), 1) = 1; \
             exit !(select($r, undef, undef, 0.5) && defined $s->recv(my $d, 99))"
        );
        run(host.command("perl").args(["-e", &ask]), SOON).code == 0
    }

    #[test]
    fn the_cable_is_cut_both_ways_or_one() {
        if !may_run() {
            return;
        }
        let scratch = Scratch::new("cable");
        let hosts = Hosts::new(&scratch, ["a", "b"], "");
        let [_, to_b] = Hosts::ADDRESSES;
        let on_b = listen(&scratch, hosts.host("b"), to_b);
        let a = hosts.host("a");
        assert_eq!(a.sh("hostname; getent hosts b"), format!("a\n{to_b}       b\n"));
        assert!(echo(a, to_b, "first"));
        hosts.cut();
        assert!(!echo(a, to_b, "cut"));
        hosts.mend();
        assert!(echo(a, to_b, "mended"));
        // What b sends is lost, what a sends arrives.
        hosts.mute("b");
        assert!(!echo(a, to_b, "heard"));
        on_b.wait_for_line("heard", SOON);
        hosts.mend();
        hosts.mute("a");
        assert!(!echo(a, to_b, "unheard"));
        hosts.mend();
        assert!(echo(a, to_b, "last"));
        assert!(!on_b.log().contains("unheard") && !on_b.log().contains("cut"));
        // A host that comes again is another boot on the same cable.
        let boot_id = || hosts.host("b").sh("cat /proc/sys/kernel/random/boot_id");
        let before = boot_id();
        hosts.host("b").crash();
        assert!(!hosts.host("b").is_up() && !echo(a, to_b, "nobody"));
        on_b.wait(SOON);
        hosts.boot("b");
        assert_ne!(boot_id(), before);
        let _again = listen(&scratch, hosts.host("b"), to_b);
        assert!(echo(a, to_b, "again"));
    }

    #[test]
    fn a_crash_takes_all_that_runs_and_is_mounted_there() {
        if !may_run() {
            return;
        }
        let scratch = Scratch::new("crash");
        let host = Host::new(
            "one",
            &scratch.join("one"),
            "mount -t tmpfs none /mnt; mkdir /mnt/made",
        );
        host.boot();
        assert!(Path::new("/mnt/made").symlink_metadata().is_err());
        let image = scratch.image("one/image", 16 << 20);
        host.sh(&format!(
            "mkfs.ext4 -q {0}; losetup --find --show {0} >{0}.loop; mount $(cat {0}.loop) /mnt/made; echo kept >/mnt/made/file; sync",
            image.display()
        ));
        // In the background, as a daemon: no child of what started it.
        host.sh("setsid sleep 600 >/dev/null 2>&1 & cd /mnt/made; setsid sleep 601 >/dev/null 2>&1 &");
        let sleeper = scratch.start(
            "sleeper",
            host.command("sh").args(["-c", "echo $$; exec sleep 602"]),
        );
        sleeper.wait_for_line("", SOON);
        assert_eq!(loops_below(host.folder()).len(), 1);
        host.crash();
        assert_eq!(sleeper.wait(SOON), 137);
        assert!(loops_below(host.folder()).is_empty() && !host.enter().exists());
        host.boot();
        assert_eq!(host.sh("ps ax").matches("sleep").count(), 0);
        let read = host.sh(&format!(
            "d=$(losetup --find --show {}); mount $d /mnt/made; cat /mnt/made/file",
            image.display()
        ));
        assert_eq!(read, "kept\n");
        // What a script types goes through the program that enters the host.
        let entered = run(Command::new(host.enter()).args(["hostname"]), SOON).ok();
        assert_eq!(entered, "one\n");
        drop(host);
        let path = scratch.path().to_owned();
        assert!(loops_below(&path).is_empty());
        drop(scratch);
        assert!(!path.exists());
    }
}
