//! Two real nodes on loopback, and the commands, exports and files to look at them with.
//!
//! Every test has its own folder, ports and daemons; all of it is gone when the [`Pair`] is dropped. Volumes are not
//! attached as block devices unless a test says so, so that tests run beside each other and without root.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(dead_code, reason = "every test file uses its own part of this")]

pub mod tails;

#[allow(unused_imports, reason = "every test file uses its own part of this")]
pub use testkit::proc::root_for;

use model::{VolumeIndex, WriteSeq};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use testkit::{
    nbd::Client,
    proc::{Finished, Process, Scratch, behind, run, until},
    proxy::Proxy,
};

/// Time enough for anything that is not broken, on a machine that does other things too.
pub const LONG: Duration = Duration::from_secs(60);

/// The production node of every pair.
pub const PROD: &str = "prod";

/// The recovery node of every pair.
pub const REC: &str = "rec";

/// The program under test; `BACKSTAY_PROGRAM` names another build of it.
pub fn program() -> PathBuf {
    std::env::var_os("BACKSTAY_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_backstay").into(), PathBuf::from)
}

/// How a pair is set up.
#[derive(Clone)]
pub struct Setup {
    /// `[attach] method`.
    pub attach: &'static str,
    /// Volumes with their sizes, for a context that is there when the nodes start; none: the test protects by command.
    pub volumes: Vec<(&'static str, u64)>,
    /// Keys of the context's file beside the defaults.
    pub context: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            attach: "none",
            volumes: Vec::new(),
            context: "",
        }
    }
}

impl Setup {
    /// A context 1 of these volumes with small containers.
    pub fn volumes(volumes: &[(&'static str, u64)]) -> Self {
        Self {
            volumes: volumes.to_vec(),
            context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\n",
            ..Self::default()
        }
    }
}

/// A production and a recovery node.
pub struct Pair {
    running: Mutex<[Option<Process>; 2]>,
    /// The test's folder. Below it: `etc`, `state`, `dev`, `mnt`.
    pub scratch: Scratch,
}

/// The other of the two.
pub fn other(node: &str) -> &'static str {
    if node == PROD { REC } else { PROD }
}

fn index(node: &str) -> usize {
    match node {
        PROD => 0,
        REC => 1,
        other => panic!("no node is called {other}"),
    }
}

/// A port below those that the kernel gives out to clients: a node that is down keeps its port.
fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::process::id().wrapping_mul(37);
    loop {
        let n = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + n % 20_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Pair {
    /// Two nodes that know each other, started, and a consistent context 1 if there are volumes.
    pub fn new(name: &str, setup: &Setup) -> Self {
        let pair = Self::stopped(name, setup);
        pair.start(PROD);
        pair.start(REC);
        if !setup.volumes.is_empty() {
            pair.consistent();
        }
        pair
    }

    /// As [`Pair::new`], with neither node started.
    pub fn stopped(name: &str, setup: &Setup) -> Self {
        Self::stopped_in(Scratch::new(name), setup)
    }

    /// As [`Pair::stopped`], in a folder that is there already: something may be mounted at `state/NODE`.
    pub fn stopped_in(scratch: Scratch, setup: &Setup) -> Self {
        let etc = scratch.folder("etc");
        let ports = [port(), port()];
        let keys = [PROD, REC].map(|node| {
            let folder = scratch.folder(&format!("state/{node}/identity"));
            let identity = wire::Identity::load_or_make(&folder).unwrap();
            identity.fingerprint().to_string()
        });
        for (node, peer) in [(PROD, REC), (REC, PROD)] {
            let (mine, other) = (index(node), index(peer));
            let root = scratch.path().display();
            let mount_root = if node == PROD {
                "/".to_owned()
            } else {
                format!("{root}/mnt")
            };
            let text = format!(
                "name = \"{node}\"\nstate_dir = \"{root}/state/{node}\"\nmount_root = \"{mount_root}\"\n\
                 [listen]\npeer = \"127.0.0.1:{}\"\n\
                 [attach]\nmethod = \"{}\"\ndev_root = \"{root}/dev/{node}\"\n\
                 [[host]]\nname = \"{peer}\"\nendpoints = [\"127.0.0.1:{}\"]\nidentity = \"{}\"\n",
                ports[mine], setup.attach, ports[other], keys[other],
            );
            fs::write(etc.join(format!("{node}.toml")), text).unwrap();
            let contexts = scratch.folder(&format!("state/{node}/contexts"));
            if !setup.volumes.is_empty() {
                // Most tests are of something else, and start production without its peer; those of a boot say otherwise.
                let alone = match setup.context.contains("on_start_alone") {
                    true => "",
                    false => "on_start_alone = \"serve\"\n",
                };
                let mut text = format!(
                    "id = 1\nfailover_id = 2\nproduction = \"{PROD}\"\nrecovery = [\"{REC}\"]\n{alone}{}",
                    setup.context
                );
                for (volume, size) in &setup.volumes {
                    write!(text, "[[volume]]\nname = \"{volume}\"\nsize = \"{size}\"\n").unwrap();
                }
                fs::write(contexts.join("1.toml"), text).unwrap();
            }
        }
        Self {
            running: Mutex::default(),
            scratch,
        }
    }

    /// Adds keys of `[listen]`, and tables, to the file of a node that is stopped.
    pub fn configure(&self, node: &str, listen: &str, tables: &str) {
        let path = self.scratch.join(format!("etc/{node}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replacen("[listen]\n", &format!("[listen]\n{listen}"), 1);
        fs::write(&path, text + tables).unwrap();
    }

    /// What goes to a node goes through proxies, so many, which are its endpoints in this order. The other node is stopped.
    pub fn proxied(&self, node: &str, count: u64) -> Vec<Proxy> {
        let path = self.scratch.join(format!("etc/{}.toml", other(node)));
        let text = fs::read_to_string(&path).unwrap();
        let (before, behind) = text.split_once("endpoints = [\"127.0.0.1:").unwrap();
        let (port, after) = behind.split_once("\"]").unwrap();
        let port = port.parse().unwrap();
        let proxies: Vec<Proxy> = (0..count).map(|seed| Proxy::new(port, seed)).collect();
        let endpoints: Vec<String> = proxies.iter().map(|p| format!("127.0.0.1:{}", p.port)).collect();
        fs::write(&path, format!("{before}endpoints = {endpoints:?}{after}")).unwrap();
        proxies
    }

    /// Starts a node's daemon and waits until it serves.
    pub fn start(&self, node: &str) {
        self.start_with(node, &[]);
    }

    /// As [`Pair::start`], with variables in its environment.
    pub fn start_with(&self, node: &str, variables: &[(&str, &str)]) {
        let config = self.scratch.join(format!("etc/{node}.toml"));
        let mut command = Command::new(program());
        command.args(["serve", "--config"]).arg(config);
        command.envs(variables.iter().copied());
        let process = self.scratch.start(node, &mut command);
        process.wait_for_line("serving", LONG);
        process.wait_for_socket(&self.control(node), LONG);
        self.running.lock().unwrap()[index(node)] = Some(process);
    }

    /// Gives everything of both nodes, which are stopped, to the user `daemon`, with a program that it can run.
    pub fn give_away(&self) {
        fs::copy(program(), self.scratch.join("backstay")).unwrap();
        let mut chown = Command::new("chown");
        run(chown.args(["-R", "daemon:daemon"]).arg(self.scratch.path()), LONG).ok();
    }

    /// As [`Pair::start`], of what was given away: as that user, without any capability.
    pub fn start_unprivileged(&self, node: &str) {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "daemon", "--regid", "daemon", "--clear-groups"])
            .args(["--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"])
            .arg(self.scratch.join("backstay"))
            .args(["serve", "--config"])
            .arg(self.scratch.join(format!("etc/{node}.toml")));
        let process = self.scratch.start(node, &mut command);
        process.wait_for_line("serving", LONG);
        process.wait_for_socket(&self.control(node), LONG);
        self.running.lock().unwrap()[index(node)] = Some(process);
    }

    fn take(&self, node: &str) -> Process {
        self.running.lock().unwrap()[index(node)]
            .take()
            .expect("the node runs")
    }

    /// `kill -9`.
    pub fn kill9(&self, node: &str) {
        self.take(node).kill9();
    }

    /// Starts a node's daemon and kills it after so long, wherever it is then.
    pub fn start_killed(&self, node: &str, after: Duration) {
        let config = self.scratch.join(format!("etc/{node}.toml"));
        let mut command = Command::new(program());
        command.args(["serve", "--config"]).arg(config);
        let process = self.scratch.start(node, &mut command);
        std::thread::sleep(after);
        process.kill9();
    }

    /// SIGTERM; the daemon must end well.
    pub fn stop(&self, node: &str) {
        assert_eq!(self.take(node).stop(LONG), 0, "{node} did not end well");
    }

    /// The process of a node's daemon.
    pub fn id(&self, node: &str) -> u32 {
        let running = self.running.lock().unwrap();
        running[index(node)].as_ref().expect("the node runs").id()
    }

    /// What the node's daemon has logged since it was started.
    pub fn log(&self, node: &str) -> String {
        // Another thread may have failed with it in its hands.
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running[index(node)]
            .as_ref()
            .map_or_else(String::new, Process::log)
    }

    /// The control socket.
    pub fn control(&self, node: &str) -> PathBuf {
        self.scratch.join(format!("state/{node}/control.sock"))
    }

    /// The socket of the exports.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.scratch.join(format!("state/{node}/nbd.sock"))
    }

    /// The file behind a volume.
    pub fn backing(&self, node: &str, volume: &str) -> PathBuf {
        self.scratch.join(format!("state/{node}/c1/volumes/{volume}"))
    }

    /// URI of an export, as libnbd, qemu and fio take it.
    pub fn uri(&self, node: &str, export: &str) -> String {
        let export = export.replace('+', "%2B");
        format!("nbd+unix:///{export}?socket={}", self.socket(node).display())
    }

    /// Opens an export.
    #[track_caller]
    pub fn open(&self, node: &str, export: &str) -> Client {
        Client::connect(&self.socket(node), export).unwrap_or_else(|e| panic!("{export} on {node}: {e}"))
    }

    /// A command on a node, not yet run.
    pub fn command(&self, node: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .args(["--node", node])
            .env("BACKSTAY_ETC", self.scratch.join("etc"))
            .env("TZ", "UTC")
            .env_remove("BACKSTAY_CONFIG");
        command
    }

    /// A command on a node, to its end, without input.
    #[track_caller]
    pub fn cli(&self, node: &str, args: &[&str]) -> Finished {
        run(&mut self.command(node, args), LONG * 3)
    }

    /// As [`Pair::cli`], with lines to answer questions.
    pub fn cli_with(&self, node: &str, args: &[&str], input: &str) -> Finished {
        let mut child = self
            .command(node, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that asks nothing may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Finished {
            command: format!("{args:?}"),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The object that a command with `--json` ends with, whatever its exit code.
    #[track_caller]
    pub fn json(&self, node: &str, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let finished = self.cli(node, &all);
        let last = finished.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{finished:?}: {e}"))
    }

    /// The status of context 1.
    #[track_caller]
    pub fn status(&self, node: &str) -> Value {
        let all = self.json(node, &["status", "-C", "1"]);
        let context = all["reply"]["status"]["contexts"][0].clone();
        assert!(context.is_object(), "{all}");
        context
    }

    /// A position of context 1: `appended`, `received`, `applied`, ...
    #[track_caller]
    pub fn cursor(&self, node: &str, name: &str) -> WriteSeq {
        WriteSeq(self.status(node)["cursors"][name].as_u64().unwrap())
    }

    /// Protects a new volume, `data` of 64 MiB, with ext4 on it, mounted; where.
    #[track_caller]
    pub fn protect_mounted(&self) -> PathBuf {
        let data = self.scratch.join("data");
        let at = data.to_str().unwrap();
        let mounted = ["protect", "-C", "1", "data=64M", "--fs", "ext4", "--mount", at];
        self.cli(PROD, &mounted).ok();
        data
    }

    /// Waits until the replica is consistent.
    #[track_caller]
    pub fn consistent(&self) {
        self.waits(PROD, "consistent");
    }

    /// `backstay wait`.
    #[track_caller]
    pub fn waits(&self, node: &str, until: &str) {
        self.cli(node, &["wait", "-C", "1", "--until", until, "--timeout", "60"])
            .ok();
    }

    /// Waits until the recovery node has received all that production has, and answers the position.
    #[track_caller]
    pub fn received(&self) -> WriteSeq {
        let head = self.cursor(PROD, "appended");
        until("all records at recovery", LONG, || {
            (self.cursor(REC, "received") >= head).then_some(())
        });
        head
    }

    /// Stops production with everything drained; the replica then holds what it held.
    #[track_caller]
    pub fn drain(&self) {
        self.cli(PROD, &["rtstop", "-C", "1", "-S"]).ok();
    }

    /// Asserts that the replica's files equal those of production; both must be at rest.
    #[track_caller]
    pub fn same_files(&self, volumes: &[&str]) {
        for volume in volumes {
            let [a, b] = [PROD, REC].map(|node| self.backing(node, volume));
            let compared = run(Command::new("cmp").args([&a, &b]), LONG);
            assert_eq!(compared.code, 0, "replica of {volume}: {compared:?}");
        }
    }

    /// As [`Pair::same_files`], as far as the volumes go: what storage holds behind the end of a volume is nobody's.
    pub fn same_volumes(&self, volumes: &[(&str, u64)]) {
        for (volume, bytes) in volumes {
            let [a, b] = [PROD, REC].map(|node| self.backing(node, volume));
            let limit = format!("--bytes={bytes}");
            let compared = run(Command::new("cmp").arg(limit).args([&a, &b]), LONG);
            assert_eq!(compared.code, 0, "replica of {volume}: {compared:?}");
        }
    }
}

/// What a failed test would have us look at is gone with the pair: it is told here.
impl Drop for Pair {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in [PROD, REC] {
            // It may be that the daemon answers nobody.
            let mut limit = Command::new("timeout");
            limit.arg("10");
            let mut status = behind(limit, &self.command(node, &["status", "-C", "1"]));
            let said = status.output().map(|o| [o.stdout, o.stderr].concat());
            let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
            println!("== {node}\n{said}\n-- log\n{}", self.log(node));
        }
    }
}

/// Connections to the exports of all volumes, by index: something to compare with the oracle.
pub struct Clients(pub Vec<Client>);

impl Clients {
    /// Opens `name(volume)` of each.
    #[track_caller]
    pub fn open(pair: &Pair, node: &str, volumes: &[(&str, u64)], name: impl Fn(&str) -> String) -> Self {
        let open = |(volume, size): &(&str, u64)| {
            let client = pair.open(node, &name(volume));
            assert_eq!(client.size(), *size, "size of {}", name(volume));
            client
        };
        Self(volumes.iter().map(open).collect())
    }
}

impl testkit::oracle::Read for Clients {
    fn read(&mut self, volume: VolumeIndex, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        let client = &mut self.0[usize::from(volume.0)];
        let bytes = client.read(at, out.len() as u64).map_err(std::io::Error::other)?;
        out.copy_from_slice(&bytes);
        Ok(())
    }
}

/// A field of a JSON object as a number.
#[track_caller]
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}
