//! Line 8: a database.

use super::Line;
use crate::{
    bench::{Bench, each},
    common::LONG,
    nodes::{Plan, done},
    outcome::{Aim::AtLeast, Outcome},
    peers::Peer,
    processors::Processors,
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use testkit::proc::{need_tool, run, until};

pub fn lines() -> Vec<Line> {
    vec![Line {
        number: 8,
        work: "pgbench, 2 clients, on ext4, full path",
        does: "The export, nbdfuse, a loop device, ext4, PostgreSQL with its defaults (every commit is durable), pgbench's own mix. Against the \
               same stack over a qemu-nbd export. Both databases run all the time; one of them is used at a time.",
        run: pgbench,
        bound: "",
    }]
}

/// Bytes of the volume; the database of the greatest scale takes a fifth.
const VOLUME: u64 = 1 << 30;

/// A database on an export. Dropped, it stops and undoes its mounts.
struct Database {
    socket: PathBuf,
    programs: PathBuf,
    data: PathBuf,
    /// What it stands on, from above.
    undo: [Command; 3],
}

impl Database {
    fn new(bench: &Bench, name: &str, uri: &str) -> Self {
        let scratch = &bench.scratch;
        // PostgreSQL does not run as root, and must get through.
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o711)).expect("it is ours");
        let fuse = scratch.folder(&format!("{name}.fuse"));
        let mut nbdfuse = Command::new(need_tool("nbdfuse"));
        nbdfuse.arg(fuse.join("nbd")).arg(uri);
        let _running = scratch.start(&format!("{name}.nbdfuse"), &mut nbdfuse);
        until("nbdfuse", LONG, || fuse.join("nbd").exists().then_some(()));
        let mut losetup = Command::new(need_tool("losetup"));
        let device = done(losetup.args(["--find", "--show"]).arg(fuse.join("nbd")));
        let device = device.trim();
        done(Command::new(need_tool("mkfs.ext4")).args(["-q", "-F", device]));
        let at = scratch.folder(&format!("{name}.mnt"));
        done(Command::new("mount").arg(device).arg(&at));
        done(Command::new("chown").arg("postgres").arg(&at));
        let socket = scratch.folder(&format!("{name}.run"));
        done(Command::new("chown").arg("postgres").arg(&socket));
        let mut undo = [
            Command::new("umount"),
            Command::new(need_tool("losetup")),
            Command::new("umount"),
        ];
        undo[0].arg(&at);
        undo[1].args(["--detach", device]);
        undo[2].arg(&fuse);
        let database = Self {
            socket,
            programs: programs(),
            data: at.join("db"),
            undo,
        };
        let data = database.data.display().to_string();
        database.run("initdb", &["-A", "trust", "-D", &data]);
        let options = format!("-c listen_addresses= -k {}", database.socket.display());
        let log = database.socket.join("log").display().to_string();
        database.run(
            "pg_ctl",
            &["-w", "-D", &data, "-l", &log, "-o", &options, "start"],
        );
        let scale = bench.scale.pgbench.to_string();
        let host = database.socket.display().to_string();
        database.run("pgbench", &["-i", "-q", "-s", &scale, "-h", &host, "postgres"]);
        database
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(need_tool("runuser"));
        command
            .args(["-u", "postgres", "--"])
            .arg(self.programs.join(program))
            .args(args);
        command.current_dir("/");
        run(&mut command, Duration::from_secs(900)).ok()
    }

    /// Transactions a second.
    fn measure(&self, seconds: u64) -> f64 {
        let (host, seconds) = (self.socket.display().to_string(), seconds.to_string());
        self.run("psql", &["-h", &host, "-c", "checkpoint", "postgres"]);
        let said = self.run(
            "pgbench",
            &["-c", "2", "-j", "2", "-T", &seconds, "-h", &host, "postgres"],
        );
        let tps = said.lines().find_map(|l| l.strip_prefix("tps = "));
        let tps = tps.and_then(|l| l.split(' ').next()?.parse().ok());
        tps.unwrap_or_else(|| panic!("{said}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let data = self.data.display().to_string();
        self.run("pg_ctl", &["-w", "-m", "immediate", "-D", &data, "stop"]);
        for step in &mut self.undo {
            // A loop device lets go of its file a moment later.
            until("what it stands on to let go", LONG, || {
                (run(step, LONG).code == 0).then_some(())
            });
        }
    }
}

/// Debian keeps them out of `PATH`.
fn programs() -> PathBuf {
    let folders = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let found = folders
        .map(|f| f.path().join("bin"))
        .find(|f: &PathBuf| Path::new(f).join("initdb").exists());
    found.expect("PostgreSQL is there: scripts/setup.sh installs it")
}

fn pgbench(bench: &Bench) -> Outcome {
    let ours = Plan {
        image: Some(&bench.scratch.image("pg-ours", VOLUME)),
        ..Plan::new("pgbench", VOLUME)
    }
    .full();
    let theirs = Peer::QemuNbd.start(bench, &bench.scratch.image("pg-theirs", VOLUME));
    let databases = [
        Database::new(bench, "ours", &ours.uri()),
        Database::new(bench, "theirs", &theirs.uri),
    ];
    let seconds = 2 * bench.scale.seconds;
    let mut busy = Processors::default();
    let runs = bench.rounds(bench.scale.rounds, 2, |who, _| {
        let tps = match who {
            0 => busy.during(&ours, || databases[0].measure(seconds)),
            _ => databases[1].measure(seconds),
        };
        ours.rest();
        tps
    });
    // Before what they stand on.
    drop(databases);
    let tps = |who: usize| each(&runs[who], |r| *r);
    let mut out = Outcome::default();
    out.ratio("", "qemu-nbd", AtLeast(0.95), tps(0).over(&tps(1)));
    out.series("full path", "transactions a second", tps(0));
    out.series("qemu-nbd", "transactions a second", tps(1));
    busy.tell("full path", &mut out);
    out.remark(format!("scale {}, {seconds} s a run", bench.scale.pgbench));
    out
}
