//! Incremental backups with stock tools: what changed since an earlier point, as a QEMU dirty bitmap (N17).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use testkit::proc::{need_tool, run};

const SIZE: u64 = (24 << 20) + 512;

#[track_caller]
fn tool(name: &str, args: &[&str]) -> String {
    run(Command::new(need_tool(name)).args(args), LONG).ok()
}

struct World {
    pair: Pair,
    image: Vec<u8>,
    rng: StdRng,
}

impl World {
    /// Answered writes here and there, then a mark.
    fn work_until(&mut self, mark: &str) {
        let mut client = self.pair.open(PROD, "c1/data");
        for _ in 0..40 {
            let len = self.rng.random_range(1..30_000);
            let at = self.rng.random_range(0..SIZE - len);
            let mut data = vec![0; usize::try_from(len).unwrap()];
            self.rng.fill(&mut data[..]);
            client.write(at, &data, false).unwrap();
            let at = usize::try_from(at).unwrap();
            self.image[at..at + data.len()].copy_from_slice(&data);
        }
        client.flush().unwrap();
        self.pair
            .cli(PROD, &["rtmark", "-C", "1", "--no-sync", "--name", mark])
            .ok();
        self.pair.received();
    }

    /// A point as QEMU names it.
    fn point(&self, mark: &str) -> Value {
        json!({
            "driver": "nbd",
            "export": format!("c1/data@mark:{mark}"),
            "server": { "type": "unix", "path": self.pair.socket(REC) },
        })
    }

    /// First byte and length of what `qemu-img map` calls dirty: a bitmap's dirty parts are those without data.
    fn dirty(&self, since: &str, mark: &str) -> Vec<(u64, u64)> {
        let mut point = self.point(mark);
        point["x-dirty-bitmap"] = format!("qemu:dirty-bitmap:since-mark:{since}").into();
        let image = format!("json:{point}");
        let map: Value = serde_json::from_str(&tool("qemu-img", &["map", "--output=json", &image])).unwrap();
        let extents = map.as_array().unwrap().iter();
        let dirty = extents.filter(|e| e["data"] == false);
        dirty
            .map(|e| (number(&e["start"]), number(&e["length"])))
            .collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.pair.scratch.join(name)
    }

    /// What changed behind `since`, in a file over the backup before it.
    fn increment(&self, since: &str, mark: &str, below: &Path) -> PathBuf {
        let file = self.file(&format!("{mark}.qcow2"));
        let (name, below) = (file.to_str().unwrap(), below.to_str().unwrap());
        let point = format!("json:{}", json!({ "driver": "raw", "file": self.point(mark) }));
        tool(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &point, name],
        );
        let dirty = self.dirty(since, mark);
        let mut reads = vec!["-f".to_owned(), "qcow2".into(), "-C".into()];
        for (start, len) in &dirty {
            reads.extend(["-c".to_owned(), format!("r {start} {len}")]);
        }
        reads.push(name.to_owned());
        // Copy on read: what is read stays in the file.
        tool("qemu-io", &reads.iter().map(String::as_str).collect::<Vec<_>>());
        tool(
            "qemu-img",
            &[
                "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, name,
            ],
        );
        let bytes: u64 = dirty.iter().map(|(_, len)| len).sum();
        assert!(0 < bytes && bytes < SIZE / 4, "{bytes} bytes of {SIZE}");
        file
    }
}

/// A full backup and two incrementals, with both hosts killed between them, are the volume at each mark byte for byte.
#[test]
fn n17_a_full_backup_and_two_incrementals_are_the_volume() {
    let setup = Setup {
        context: "lfc_size = \"2M\"\n",
        ..Setup::volumes(&[("data", SIZE)])
    };
    let pair = Pair::new("incremental", &setup);
    pair.consistent();
    let image = vec![0; usize::try_from(SIZE).unwrap()];
    let rng = StdRng::seed_from_u64(17);
    let mut world = World { pair, image, rng };

    world.work_until("monday");
    let full = world.file("full.qcow2");
    let monday = format!("json:{}", world.point("monday"));
    tool(
        "qemu-img",
        &["convert", "-O", "qcow2", &monday, full.to_str().unwrap()],
    );

    world.work_until("tuesday");
    world.pair.kill9(REC);
    world.pair.start(REC);
    let first = world.increment("monday", "tuesday", &full);
    let tuesday = world.image.clone();

    world.work_until("wednesday");
    for node in [PROD, REC] {
        world.pair.kill9(node);
    }
    for node in [REC, PROD] {
        world.pair.start(node);
    }
    world.pair.received();
    let second = world.increment("tuesday", "wednesday", &first);

    for (backup, mark, image) in [
        (&first, "tuesday", &tuesday),
        (&second, "wednesday", &world.image),
    ] {
        let raw = world.file("restored.raw");
        tool(
            "qemu-img",
            &[
                "convert",
                "-O",
                "raw",
                backup.to_str().unwrap(),
                raw.to_str().unwrap(),
            ],
        );
        assert!(fs::read(&raw).unwrap()[..image.len()] == image[..], "{mark}");
        let point = format!("json:{}", world.point(mark));
        tool("qemu-img", &["compare", backup.to_str().unwrap(), &point]);
    }
    // Over two days, and over none.
    let sum = |dirty: Vec<(u64, u64)>| dirty.iter().map(|(_, len)| len).sum::<u64>();
    let both = sum(world.dirty("monday", "wednesday"));
    assert!(both > sum(world.dirty("tuesday", "wednesday")));
    assert_eq!(sum(world.dirty("wednesday", "wednesday")), 0);
}

/// What is offered is listed; what cannot be answered is refused by name, and the connection goes on.
#[test]
fn contexts_are_listed_and_refused_by_name() {
    let setup = Setup::volumes(&[("data", SIZE)]);
    let pair = Pair::new("contexts", &setup);
    pair.consistent();
    let image = vec![0; usize::try_from(SIZE).unwrap()];
    let rng = StdRng::seed_from_u64(18);
    let mut world = World { pair, image, rng };
    world.work_until("a");
    world.work_until("b");
    let contexts = |export: &str| -> Vec<String> {
        let uri = world.pair.uri(REC, export);
        let info: Value = serde_json::from_str(&tool("nbdinfo", &["--json", &uri])).unwrap();
        let contexts = info["exports"][0]["contexts"].as_array().unwrap().iter();
        contexts.map(|c| c.as_str().unwrap().to_owned()).collect()
    };
    let listed = contexts("c1/data@mark:b");
    for wanted in [
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:since-mark:a",
    ] {
        assert!(listed.iter().any(|c| c == wanted), "{wanted}: {listed:?}");
    }
    assert!(
        !contexts("c1/data@mark:a")
            .iter()
            .any(|c| c.contains("since-mark:b"))
    );
    assert!(!contexts("c1/data@mark:b+rw").iter().any(|c| c.contains("since-")));
    // By another word for the same point, and by one that is not there.
    let uri = world.pair.uri(REC, "c1/data@mark:b");
    let list = world.pair.json(PROD, &["rtmark", "-C", "1", "--list"]);
    let marks = list["reply"]["marks"]["marks"].as_array().unwrap();
    let a = marks.iter().find(|m| m["name"] == "a").unwrap();
    let by = |since: &str| {
        let map = format!("--map=qemu:dirty-bitmap:since-{since}");
        run(
            Command::new(need_tool("nbdinfo")).args(["--json", &map, &uri]),
            LONG,
        )
    };
    assert_eq!(by(&format!("seq:{}", number(&a["seq"]))).ok(), by("mark:a").ok());
    let missing = by("mark:none");
    assert_ne!(missing.code, 0, "{missing:?}");
    // The depth of a vdev tells what was written to it.
    let mut vdev = world.pair.open(REC, "c1/data@mark:b+rw");
    vdev.write(0, &[1; 4096], false).unwrap();
    drop(vdev);
    let made = world.pair.json(REC, &["scrt_ra", "-C", "1", "--mark", "b"]);
    let level = number(&made["reply"]["snapshot"]["level"]);
    let name = format!("c1/sn{level}/data");
    world.pair.open(REC, &name).write(8192, &[1; 4096], true).unwrap();
    let uri = world.pair.uri(REC, &name);
    let map: Value =
        serde_json::from_str(&tool("nbdinfo", &["--json", "--map=qemu:allocation-depth", &uri])).unwrap();
    let at = |offset: u64| {
        let mut extents = map.as_array().unwrap().iter();
        let found = extents.find(|e| {
            let start = number(&e["offset"]);
            (start..start + number(&e["length"])).contains(&offset)
        });
        number(&found.unwrap()["type"])
    };
    assert_eq!(at(8192), 1, "{map}");
    let written = world.image.iter().position(|b| *b != 0).unwrap() as u64;
    assert!(at(written) == 2 || (8192..12_288).contains(&written), "{map}");
}
