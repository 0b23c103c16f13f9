//! Two nodes, a file system on each volume, and what is left of a load on all of them.

use crate::{
    Loaded,
    common::{LONG, PROD, Pair, REC, Setup},
    each,
    filesystem::{KINDS, Kind, attach},
    history::{self, History},
    loader::{Loader, Promise, loose},
    points_of,
    recorder::{Log, Recorder, Tick},
};
use model::VolumeIndex;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};
use testkit::proc::{need_tool, run, until};

const LFC_BYTES: u64 = 8 << 20;

/// A pair whose context has a volume for each kind; only the recovery node attaches.
pub fn pair() -> Pair {
    let volumes = KINDS.map(|kind| (kind.name, kind.size));
    let setup = Setup {
        context: "lfc_size = \"8M\"\nlfc_max_age = \"5s\"\n",
        ..Setup::volumes(&volumes)
    };
    let pair = Pair::stopped("boundaries", &setup);
    let edit = |file: String, from: String, to: String| {
        let path = pair.scratch.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(&from), "{from} is not in {text}");
        fs::write(&path, text.replace(&from, &to)).unwrap();
    };
    for node in [PROD, REC] {
        for Kind { name, .. } in KINDS {
            let volume = format!("name = \"{name}\"\n");
            let mounted = format!("{volume}filesystem = \"{name}\"\nmount = \"/{name}\"\n");
            edit(format!("state/{node}/contexts/1.toml"), volume, mounted);
        }
    }
    let fuse = "method = \"fuse\"".to_owned();
    edit(format!("etc/{REC}.toml"), "method = \"none\"".to_owned(), fuse);
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    pair
}

/// What is left of a load: what went over the relay, from where on its points count, and the promises.
type Run = (Log, Tick, Vec<Promise>);

/// A file system on a volume under load until so many flush points are there, then unmounted.
fn load(pair: &Pair, kind: Kind, count: usize, rng: &mut StdRng) -> Run {
    let scratch = &pair.scratch;
    let Kind { name, .. } = kind;
    let socket = scratch.join(format!("{name}.sock"));
    let recorder = Recorder::new(&socket, &pair.socket(PROD));
    let (fuse, at) = (
        scratch.folder(&format!("fuse/{name}")),
        scratch.folder(&format!("live/{name}")),
    );
    let disk = fuse.join("disk");
    let uri = format!("nbd+unix:///c1/{name}?socket={}", socket.display());
    // One connection, on which the order is known.
    let mut nbdfuse = Command::new(need_tool("nbdfuse"));
    nbdfuse.args(["-C", "1"]).arg(&disk).arg(&uri);
    let nbdfuse = scratch.start(&format!("nbdfuse-{name}"), &mut nbdfuse);
    until("the disk of nbdfuse", LONG, || disk.exists().then_some(()));
    let device = attach(&disk);
    kind.make(&device);
    kind.mount(&device, &at);
    let mut loader = Loader::new(&at, &recorder, rng);
    let (from, before) = (recorder.now().tick, recorder.points());
    let mut fio = Command::new(need_tool("fio"));
    fio.args([
        "--name=load",
        "--rw=randwrite",
        "--bs=4k-16k",
        "--size=6m",
        "--fsync=6",
    ])
    .args(["--rate=1m", "--time_based", "--runtime=36000", "--fallocate=none"])
    .arg(format!("--directory={}", at.display()));
    let fio = scratch.start(&format!("fio-{name}"), &mut fio);
    let end = AtomicBool::new(false);
    let seed = StdRng::from_rng(rng);
    thread::scope(|scope| {
        let (at, end) = (&at, &end);
        let _ending = Ending(end);
        scope.spawn(move || loose(at, seed, end));
        while recorder.points() < before + count {
            loader.step();
            assert_eq!(fio.ended(), None, "fio ended: {}", fio.log());
        }
    });
    fio.stop(LONG);
    println!("{name}: {:?}", loader.done);
    let promises = loader.promises();
    run(Command::new("umount").arg(&at), LONG).ok();
    kind.forget(&device);
    run(Command::new("losetup").arg("--detach").arg(&device), LONG).ok();
    // A loop device lets go of its file a moment after it is detached.
    until("nbdfuse to be unmounted", LONG, || {
        (run(Command::new("umount").arg(&fuse), LONG).code == 0).then_some(())
    });
    nbdfuse.wait(LONG);
    let log = recorder.log();
    assert_eq!(log.failed, None, "{name}");
    (log, from, promises)
}

/// Ends what runs beside a load, also when it fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Loads all volumes, and finds what was written in the journal of the recovery host.
pub fn loaded(pair: &Pair, rng: &mut StdRng) -> Vec<Loaded> {
    let base = pair.received();
    let runs = each(&KINDS, rng, |kind, rng| load(pair, *kind, points_of(*kind), rng));
    pair.waits(PROD, "drained");
    pair.stop(REC);
    let journal = pair.scratch.join(format!("state/{REC}/c1/journal"));
    let mut records = history::records(&journal, LFC_BYTES, base);
    pair.start(REC);
    let one = |((index, kind), (log, from, promises)): ((u16, Kind), Run)| Loaded {
        kind,
        history: History::new(kind.name, log, records.remove(&VolumeIndex(index)).unwrap(), from),
        promises,
    };
    (0..).zip(KINDS).zip(runs).map(one).collect()
}
