//! Every kind of file system, one mounted in another, and who must not be disturbed.

use crate::{
    LOOKED_AT, attach_folder,
    common::{LONG, PROD, Pair, REC, root_for},
    mounted_at, mounting, nothing_left,
};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::PoisonError,
};
use testkit::proc::{Process, leftovers, need_tool, run};

/// Volumes of every kind, by depth: none that its parent does not carry.
const KINDS: [(&str, &str, &str, &str); 3] = [
    ("x", "320M", "xfs", "top/in/xfs"),
    ("e", "48M", "ext4", "top"),
    ("b", "160M", "btrfs", "top/in"),
];

struct World {
    pair: Pair,
    points: Vec<PathBuf>,
}

impl World {
    fn new(name: &str) -> Self {
        let pair = Pair::new(name, &mounting());
        let mut words: Vec<String> = ["protect", "-C", "1", "raw=16M"].map(str::to_owned).into();
        let mut points = Vec::new();
        for (volume, size, kind, at) in KINDS {
            let at = pair.scratch.join(at);
            words.push(format!("{volume}={size}"));
            words.extend(["--fs".into(), format!("{volume}={kind}")]);
            words.extend(["--mount".into(), format!("{volume}={}", at.display())]);
            points.push(at);
        }
        pair.cli(PROD, &words.iter().map(String::as_str).collect::<Vec<_>>())
            .ok();
        Self { pair, points }
    }

    fn rtmnt(&self, node: &str, words: &[&str]) -> String {
        self.pair.cli(node, &[&["rtmnt", "-C", "1"], words].concat()).ok()
    }

    fn rtumnt(&self, node: &str) -> String {
        self.pair.cli(node, &["rtumnt", "-C", "1"]).ok()
    }

    fn raw(&self) -> PathBuf {
        self.pair.scratch.join("dev/prod/c1/raw")
    }

    /// What is mounted here, without what other tests mount.
    fn table(&self) -> Vec<String> {
        let here = self.pair.scratch.path().display().to_string();
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table
            .lines()
            .filter(|l| l.contains(&here))
            .map(str::to_owned)
            .collect()
    }

    /// Refused, nothing changed, and the answer holds all this.
    #[track_caller]
    fn refused(&self, node: &str, words: &[&str], texts: &[&str]) {
        let table = self.table();
        let answer = self.pair.json(node, words);
        assert_eq!(answer["code"], 1, "{answer}");
        let said = format!("{} {} {}", answer["error"], answer["holders"], answer["hint"]);
        for text in texts {
            assert!(said.contains(text), "'{text}' is not in {answer}");
        }
        assert_eq!(self.table(), table);
    }
}

/// The lines of an answer that begin with a word, without it.
fn lines<'a>(said: &'a str, word: &'a str) -> Vec<&'a str> {
    said.lines()
        .filter_map(|l| l.strip_prefix(word))
        .map(str::trim)
        .collect()
}

/// Writes files, the last of them into the log of the file system alone.
fn fill(folder: &Path) {
    for n in 0..20 {
        fs::write(folder.join(format!("f{n}")), format!("{n}")).unwrap();
    }
    run(Command::new("sync").arg("--file-system").arg(folder), LONG).ok();
    let mut last = File::create(folder.join("last")).unwrap();
    last.write_all(b"last").unwrap();
    last.sync_all().unwrap();
}

#[track_caller]
fn is_filled(folder: &Path) {
    assert_eq!(fs::read_to_string(folder.join("f19")).unwrap(), "19");
    assert_eq!(
        fs::read_to_string(folder.join("last")).unwrap(),
        "last",
        "{}",
        folder.display()
    );
}

fn start(world: &World, name: &str, line: &str, path: &Path) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(path);
    let process = world.pair.scratch.start(name, &mut command);
    process.wait_for_line("ready", LONG);
    process
}

#[test]
fn every_kind_one_in_another() {
    if !root_for("every_kind_one_in_another") {
        return;
    }
    let _looked_at = LOOKED_AT.write().unwrap_or_else(PoisonError::into_inner);
    let world = World::new("kinds");
    let pair = &world.pair;
    world.points.iter().for_each(|p| fill(p));
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "good", "--no-sync"])
        .ok();

    // The inner ones first, and back the other way round.
    let unmounted = world.rtumnt(PROD);
    let said = |said: &str, word: &str| {
        let all: Vec<PathBuf> = lines(said, word)
            .into_iter()
            .map(|l| PathBuf::from(l.rsplit(' ').next().unwrap().trim_end_matches("...")))
            .collect();
        all
    };
    let [x, e, b] = &world.points[..] else {
        unreachable!("three kinds")
    };
    assert_eq!(
        said(&unmounted, "Unmounting "),
        [x, b, e].map(PathBuf::clone),
        "{unmounted}"
    );
    nothing_left(pair, PROD);
    let mounted = world.rtmnt(PROD, &[]);
    assert_eq!(
        said(&mounted, "Mounting "),
        [e, b, x].map(PathBuf::clone),
        "{mounted}"
    );
    world.points.iter().for_each(|p| is_filled(p));
    let table = world.table();
    // Already so: nothing is mounted twice.
    world.rtmnt(PROD, &[]);
    assert_eq!(world.table(), table);
    assert!(world.raw().exists(), "raw volumes are attached");

    // Somebody uses what is to go.
    let reader = start(
        &world,
        "reader",
        "exec <\"$0\"; echo ready; exec sleep 600",
        &world.raw(),
    );
    world.refused(PROD, &["rtumnt", "-C", "1"], &[&reader.id().to_string(), "sleep"]);
    reader.end();
    let program = x.join("program");
    fs::copy(need_tool("sleep"), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let running = start(&world, "running", "echo ready; exec \"$0\" 600", &program);
    world.refused(
        PROD,
        &["rtumnt", "-C", "1"],
        &[&running.id().to_string(), "program"],
    );
    running.end();
    let image = b.join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let losetup = |words: &[&str], path: &Path| run(Command::new("losetup").args(words).arg(path), LONG).ok();
    let device = losetup(&["--find", "--show"], &image);
    world.refused(PROD, &["rtumnt", "-C", "1"], &[device.trim(), "stands on"]);
    losetup(&["--detach"], Path::new(device.trim()));
    let foreign = e.join("foreign");
    fs::create_dir(&foreign).unwrap();
    let tmpfs = |at: &Path| run(Command::new("mount").args(["-t", "tmpfs", "mine"]).arg(at), LONG).ok();
    let umount = |at: &Path| run(Command::new("umount").arg(at), LONG).ok();
    tmpfs(&foreign);
    world.refused(PROD, &["rtumnt", "-C", "1"], &["mine is mounted at", "foreign"]);
    umount(&foreign);
    // Somebody mounts over it: his is not unmounted for ours.
    tmpfs(x);
    world.refused(PROD, &["rtumnt", "-C", "1"], &["mine is mounted there"]);
    assert_eq!(mounted_at(x), Some("mine".into()));
    umount(x);
    world.rtumnt(PROD);
    nothing_left(pair, PROD);

    // Somebody else's mount where ours is to go: all or none.
    fs::create_dir_all(b).unwrap();
    tmpfs(e);
    world.refused(
        PROD,
        &["rtmnt", "-C", "1"],
        &["e: mount: ", "mine is mounted there"],
    );
    nothing_left(pair, PROD);
    umount(e);

    past(&world);
    pair.cli(PROD, &["rtumnt", "-FC", "1"]).ok();
    pair.drain();
    pair.same_files(&["raw", "x", "e", "b"]);
}

/// Snapshots of all that, on the same host as what they are of: a btrfs there has a twin.
fn past(world: &World) {
    let pair = &world.pair;
    world.rtmnt(PROD, &[]);
    pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "good"]).ok();
    world.refused(
        REC,
        &["rtmnt", "-C", "1"],
        &["b: UUID: ", "has the same id", "--new-uuid"],
    );
    assert_eq!(leftovers(&attach_folder(pair, REC)), Vec::<String>::new());
    world.refused(
        REC,
        &["rtmnt", "-C", "1", "--read-only"],
        &["has the same id", "unmount that one first"],
    );
    let writes = pair.cli(REC, &["rtmnt", "-C", "1", "--new-uuid", "--read-only"]);
    assert_eq!(writes.code, 64, "{writes:?}");
    let keeps = pair.cli(PROD, &["rtmnt", "-C", "1", "--new-uuid"]);
    assert_eq!(keeps.code, 64, "{keeps:?}");
    let mounted = world.rtmnt(REC, &["--new-uuid", "-f"]);
    for words in [
        "btrfstune -m",
        "btrfs check --readonly",
        "xfs_repair -n",
        "e2fsck -p -f",
    ] {
        assert!(mounted.contains(words), "'{words}' is not in {mounted}");
    }
    let there = |root: &str| {
        let root = pair.scratch.join(root);
        let below = |p: &PathBuf| root.join(p.strip_prefix("/").unwrap());
        world.points.iter().map(below).collect::<Vec<_>>()
    };
    there("mnt").iter().for_each(|p| is_filled(p));
    // The same volumes a second time, elsewhere: another snapshot.
    let elsewhere = pair.scratch.join("else").display().to_string();
    world.refused(
        REC,
        &["rtmnt", "-C", "1", "--at-dir", &elsewhere],
        &["is mounted at"],
    );
    assert!(!pair.scratch.join("else").exists());
    pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "good", "--name", "two"])
        .ok();
    world.rtmnt(REC, &["--level", "11", "--at-dir", &elsewhere, "--new-uuid"]);
    there("else").iter().for_each(|p| is_filled(p));
    world.rtumnt(REC);
    nothing_left(pair, REC);
    // It has an id of its own by now, and what production has is not its twin.
    world.rtmnt(REC, &["--level", "10"]);
    world.rtumnt(REC);
    // Without a twin nothing is rewritten, and nothing needs to be.
    world.rtumnt(PROD);
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W", "--all"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "good"]).ok();
    world.rtmnt(REC, &["--read-only"]);
    assert!(there("mnt")[2].join("f19").exists());
    world.rtumnt(REC);
    world.rtmnt(REC, &[]);
    there("mnt").iter().for_each(|p| is_filled(p));
    world.rtumnt(REC);
    nothing_left(pair, REC);
}
