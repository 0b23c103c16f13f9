//! Twenty views of the past, mounted at once at random points while production is written to: each file system is clean, every
//! file can be read, and replication goes on meanwhile.
//!
//! fio writes to an ext4 and an xfs on the production node, and files come and go beside it. On the recovery node snapshots are
//! made at random records of what was received; each is checked in full (`e2fsck -f`, and `xfs_repair -n` behind the kernel's own
//! log replay) and mounted, while the writes go on and while those before it stay mounted.
//!
//! The longest time in which the peer acknowledged nothing although something was durable and not acknowledged is printed, not
//! asserted: on a machine that does other things too it says little. `BACKSTAY_VIEWS=100` mounts a hundred.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, root_for};
use control::{Command as Ask, Event, Options, Question, Reply, Request, client};
use model::WriteSeq;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use testkit::{
    proc::{need_tool, until},
    with_seeds,
};

/// Nobody listens to the progress of a status.
struct Deaf;

impl client::Listener for Deaf {
    fn event(&mut self, _: Event) {}

    fn ask(&mut self, _: &Question) -> bool {
        false
    }
}

/// What is durable on production, and what the peer has acknowledged.
fn cursors(control: &Path) -> (u64, u64) {
    let request = Request::new(Ask::Status { context: Some(1) }, Options::default());
    let outcome = client::call(control, &request, &mut Deaf).unwrap();
    let Ok(Reply::Status(status)) = outcome.result else {
        panic!("no status")
    };
    let cursors = &status.contexts[0].cursors;
    (cursors.durable, cursors.acknowledged)
}

/// The longest time without an acknowledgement while one was due, and how many looks there were.
fn longest_pause(control: &Path, end: &AtomicBool) -> (Duration, u64) {
    let (mut longest, mut looks) = (Duration::ZERO, 0);
    let (mut acknowledged, mut since) = (0, Instant::now());
    while !end.load(Ordering::Relaxed) {
        let before = Instant::now();
        let (durable, now) = cursors(control);
        if now > acknowledged || now >= durable {
            // It may have moved at any moment since the last look: from there on nothing is known to be late.
            (acknowledged, since) = (now, before);
        }
        longest = longest.max(before - since);
        looks += 1;
        thread::sleep(Duration::from_millis(4));
    }
    (longest, looks)
}

/// Files that come and go.
fn churn(folder: &Path, end: &AtomicBool) {
    let mut rng = StdRng::seed_from_u64(9);
    let mut n = 0u64;
    while !end.load(Ordering::Relaxed) {
        let path = folder.join(format!("d{}", n % 7));
        fs::create_dir_all(&path).unwrap();
        fs::write(
            path.join(format!("f{}", n % 50)),
            vec![b'x'; rng.random_range(0..40_000)],
        )
        .unwrap();
        if n.is_multiple_of(3) {
            let _ = fs::remove_file(path.join(format!("f{}", rng.random_range(0..50))));
        }
        if n % 20 == 19 {
            let _ = fs::rename(&path, folder.join(format!("old{}", n % 5)));
        }
        n += 1;
        thread::sleep(Duration::from_millis(3));
    }
}

/// Reads every file below a folder; how many there are.
fn read_all(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files += read_all(&entry.path());
        } else {
            fs::read(entry.path()).unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
            files += 1;
        }
    }
    files
}

fn mounts_below(folder: &Path) -> usize {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let below = |line: &&str| {
        line.split(' ')
            .nth(1)
            .is_some_and(|at| Path::new(at).starts_with(folder))
    };
    text.lines().filter(below).count()
}

#[test]
fn twenty_views_are_mounted_at_once_under_load() {
    if !root_for("twenty_views_are_mounted_at_once_under_load") {
        return;
    }
    let count: usize = std::env::var("BACKSTAY_VIEWS").map_or(20, |v| v.parse().unwrap());
    for tool in ["fio", "mkfs.xfs", "xfs_repair", "e2fsck"] {
        let _ = need_tool(tool);
    }
    let setup = Setup {
        attach: "auto",
        ..Setup::default()
    };
    let pair = Pair::new("views", &setup);
    let kinds = [("one", "ext4"), ("two", "xfs")];
    let folders = kinds.map(|(name, _)| pair.scratch.join(name));
    let mut protect: Vec<String> = ["protect", "-C", "1", "one=96M", "two=320M"]
        .map(str::to_owned)
        .into();
    for ((name, kind), folder) in kinds.iter().zip(&folders) {
        protect.extend(["--fs".into(), format!("{name}={kind}")]);
        protect.extend(["--mount".into(), format!("{name}={}", folder.display())]);
    }
    let words: Vec<&str> = protect.iter().map(String::as_str).collect();
    pair.cli(PROD, &words).ok();
    pair.consistent();
    let first = pair.received();
    let end = AtomicBool::new(false);
    with_seeds("views", 1, |rng| {
        let fio: Vec<_> = folders
            .iter()
            .zip(kinds)
            .map(|(folder, (name, _))| {
                let mut fio = Command::new(need_tool("fio"));
                fio.args([
                    "--name=load",
                    "--rw=randrw",
                    "--rwmixread=20",
                    "--bs=4k-64k",
                    "--size=24m",
                ])
                .args(["--fsync=32", "--rate=3m,3m", "--time_based", "--runtime=3600"])
                .arg(format!("--directory={}", folder.display()))
                .stdout(Stdio::null());
                pair.scratch.start(&format!("fio-{name}"), &mut fio)
            })
            .collect();
        let mut files = 0;
        let (pause, looks) = thread::scope(|scope| {
            let end = &end;
            let control = pair.control(PROD);
            let pause = scope.spawn(move || longest_pause(&control, end));
            for folder in &folders {
                scope.spawn(move || churn(folder, end));
            }
            let ending = Ending(end);
            let mut mounted: Vec<PathBuf> = Vec::new();
            let mut shown = BTreeSet::new();
            for n in 0..count {
                thread::sleep(Duration::from_millis(rng.random_range(0..300)));
                // The very same point again is the same level, which is mounted already.
                let seq = until("a record that no view shows", LONG, || {
                    let received = pair.cursor(REC, "received");
                    let seq = rng.random_range(first.0..=received.0);
                    shown.insert(seq).then_some(WriteSeq(seq))
                });
                let made = pair.json(
                    REC,
                    &["scrt_ra", "-C", "1", "-q", "--at", &format!("seq:{}", seq.0)],
                );
                let level = made["reply"]["snapshot"]["level"].to_string();
                assert!(level != "null", "{made}");
                let at = pair.scratch.folder(&format!("at/{n}"));
                let mount = [
                    "rtmnt",
                    "-C",
                    "1",
                    "-f",
                    "--level",
                    &level,
                    "--at-dir",
                    at.to_str().unwrap(),
                ];
                let said = pair.cli(REC, &mount).ok();
                for words in ["e2fsck", "xfs_repair -n"] {
                    assert!(said.contains(words), "{words} is not in {said}");
                }
                mounted.push(at);
                for process in &fio {
                    assert_eq!(process.ended(), None, "fio ended: {}", process.log());
                }
            }
            for at in &mounted {
                assert_eq!(mounts_below(at), kinds.len(), "mounted below {}", at.display());
                files += read_all(at);
            }
            drop(ending);
            pause.join().unwrap()
        });
        for process in &fio {
            process.stop(LONG);
        }
        println!(
            "{count} views of an ext4 and an xfs mounted at once under fio, each clean; {files} files read; \
             longest time without a due acknowledgement: {} ms ({looks} looks)",
            pause.as_millis()
        );
    });
    pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
    pair.cli(PROD, &["rtumnt", "-FC", "1", "-f", "-q"]).ok();
    pair.drain();
    pair.same_files(&kinds.map(|(name, _)| name));
}

/// Ends what runs beside a test, also when it fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
