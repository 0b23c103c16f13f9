//! Bits that rot at rest under real nodes: found, named, and mended from the other host, or refused for as long as they
//! cannot be (`rules.md` T5, T10, invariant 9).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{
    Clients, LONG, PROD, Pair, REC, Setup,
    tails::{journal, open_tail, rot},
};
use model::{BLOCK_SIZE, BlockNo, VolumeIndex};
use std::{fs, path::PathBuf};
use testkit::{
    nbd::{Client, Promise, Session, Step},
    proc::until,
};

const VOLUMES: [(&str, u64); 1] = [("data", 8 << 20)];

/// Containers that are sealed by nothing but marks and size.
fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"1h\"\n",
        ..Setup::volumes(&VOLUMES)
    }
}

/// Writes blocks, each in a frame of its own or nearly so, with a flush now and then.
fn write(session: &mut Session, first: u64, count: u64) {
    let steps = (first..first + count).flat_map(|n| {
        let block = Step::Blocks {
            first: BlockNo(n % (VOLUMES[0].1 / BLOCK_SIZE)),
            count: 1,
            fua: n % 4 == 0,
        };
        [Some(block), (n % 8 == 7).then_some(Step::Flush)]
            .into_iter()
            .flatten()
    });
    session.run(1, steps).unwrap();
}

fn session(pair: &Pair) -> Session {
    let mut session = Session::new(&pair.socket(PROD), "c1/data", VolumeIndex(0), 5);
    session.connect().unwrap();
    session
}

/// Waits until a damaged context is served again.
fn whole(pair: &Pair, node: &str) {
    until("the damaged context to be whole again", LONG, || {
        let status = pair.cli(node, &["status", "-C", "1", "--json"]);
        if status.stdout.contains("\"cursors\"") {
            return Some(());
        }
        eprintln!("{}", status.stdout);
        None
    });
    assert!(
        pair.log(node).contains("a damaged tail is whole again"),
        "{}",
        pair.log(node)
    );
}

fn kept(pair: &Pair, session: &Session) {
    let mut heads = Clients::open(pair, PROD, &VOLUMES, |v| format!("c1/{v}"));
    session.ledger().check(Promise::Acknowledged, &mut heads).unwrap();
}

/// T5: production's open tail rots; what is missing is fetched from recovery before anything is served, and nothing is lost.
#[test]
fn t5_production_fetches_what_rotted_in_its_tail() {
    let pair = Pair::new("rot-prod", &setup());
    let mut session = session(&pair);
    for round in 0..3 {
        write(&mut session, round * 40, 40);
        let head = pair.received();
        session.drop_connection();
        pair.kill9(PROD);
        let (tail, entries) = open_tail(&pair, PROD);
        assert!(entries.len() > 20, "{}", entries.len());
        // In the middle, at the beginning, and the header.
        let at = [entries[entries.len() / 2] + 200, entries[0] + 40, 30][round as usize];
        rot(&tail, at);
        pair.start(PROD);
        whole(&pair, PROD);
        assert_eq!(pair.cursor(PROD, "appended"), head, "the same generation goes on");
        kept(&pair, &session);
        session.connect().unwrap();
    }
    write(&mut session, 200, 10);
    session.drop_connection();
    pair.received();
    pair.drain();
    pair.same_files(&["data"]);
}

/// Invariant 9: with the peer away nothing is served, everything says why and what is missing; when the peer is there the
/// context is whole.
#[test]
fn i9_a_damaged_production_waits_for_its_peer() {
    let pair = Pair::new("rot-away", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 40);
    let head = pair.received();
    session.drop_connection();
    pair.stop(REC);
    pair.kill9(PROD);
    let (tail, entries) = open_tail(&pair, PROD);
    rot(&tail, entries[20] + 100);
    // Twice: the damage is on the disk and not in somebody's memory.
    for _ in 0..2 {
        pair.start(PROD);
        let status = pair.cli(PROD, &["status", "-C", "1"]);
        assert_eq!(status.code, 2, "{status:?}");
        let said = format!("{}{}", status.stdout, status.stderr);
        assert!(
            said.contains("context 1 is damaged: tail") && said.contains("are not whole here"),
            "{said}"
        );
        assert!(said.contains("Next: backstay status -C 1   on rec"), "{said}");
        for command in [
            &["rtstart", "-C", "1"][..],
            &["rtmark", "-C", "1", "--name", "m"],
            &["scrt_ra", "-C", "1", "-p"],
        ] {
            let refused = pair.cli(PROD, command);
            assert_eq!(refused.code, 75, "{refused:?}");
            assert!(refused.stderr.contains("context 1 is damaged"), "{refused:?}");
        }
        let all = pair.cli(PROD, &["status"]);
        assert!(all.code == 2 && all.stderr.contains("damaged"), "{all:?}");
        assert!(
            Client::connect(&pair.socket(PROD), "c1/data").is_err(),
            "a damaged context serves nothing"
        );
        pair.kill9(PROD);
    }
    pair.start(PROD);
    until("the peer to be missed", LONG, || {
        pair.cli(PROD, &["status", "-C", "1"])
            .stderr
            .contains("rec is not reachable")
            .then_some(())
    });
    pair.start(REC);
    whole(&pair, PROD);
    assert_eq!(pair.cursor(PROD, "appended"), head);
    kept(&pair, &session);
}

/// Invariant 9: records that recovery never received and that rotted are not made up: the context stays damaged, and is
/// exactly what it was if the bit comes back.
#[test]
fn i9_what_nobody_has_stays_damaged() {
    let pair = Pair::new("rot-lost", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 20);
    pair.received();
    pair.stop(REC);
    write(&mut session, 20, 20);
    session.drop_connection();
    let head = pair.cursor(PROD, "appended");
    pair.kill9(PROD);
    let (tail, entries) = open_tail(&pair, PROD);
    let at = entries[entries.len() - 8] + 100;
    rot(&tail, at);
    let before = fs::read(&tail).unwrap();
    pair.start(REC);
    pair.start(PROD);
    until("the peer to be asked", LONG, || {
        let said = pair.cli(PROD, &["status", "-C", "1"]).stderr;
        said.contains("rec has received no more than record")
            .then_some(())
    });
    let prod_as_rec_sees_it = pair.status(REC);
    assert_eq!(
        prod_as_rec_sees_it["head"]["context"]["peer"]["state"],
        "unreachable"
    );
    pair.stop(PROD);
    assert!(fs::read(&tail).unwrap() == before, "the tail was changed");
    rot(&tail, at);
    pair.start(PROD);
    assert_eq!(pair.cursor(PROD, "appended"), head);
    kept(&pair, &session);
    pair.waits(PROD, "drained");
}

/// The last resort of `docs/DAMAGE.md`: what is on production's volumes becomes a new history, in a first sync.
#[test]
fn i9_beginning_anew_ends_damage_that_nothing_mends() {
    let pair = Pair::new("rot-anew", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 30);
    session.drop_connection();
    pair.waits(PROD, "drained");
    pair.stop(PROD);
    pair.stop(REC);
    let superblock = journal(&pair, PROD).join("super");
    // Another byte: the same bit once more might only mend what nobody has written since.
    rot(&superblock, 24);
    rot(&superblock, 4096 + 24);
    pair.start(PROD);
    assert_eq!(pair.cli(PROD, &["status", "-C", "1"]).code, 2);
    pair.stop(PROD);
    for node in [PROD, REC] {
        fs::remove_dir_all(journal(&pair, node)).unwrap();
        fs::remove_file(pair.scratch.join(format!("state/{node}/c1/format"))).unwrap();
    }
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    // It was all written back before.
    kept(&pair, &session);
    session.connect().unwrap();
    write(&mut session, 30, 10);
    session.drop_connection();
    pair.waits(PROD, "drained");
    pair.drain();
    pair.same_files(&["data"]);
}

/// A recovery host whose received tail rotted fetches it from production, and the stream goes on; production is told
/// meanwhile.
#[test]
fn i9_recovery_fetches_what_rotted_in_its_tail() {
    let pair = Pair::new("rot-rec", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 30);
    pair.received();
    // Later frames say that the earlier ones were durable; without such a witness they would be a torn end.
    write(&mut session, 30, 10);
    pair.received();
    pair.kill9(REC);
    session.drop_connection();
    pair.stop(PROD);
    let (tail, entries) = open_tail(&pair, REC);
    rot(&tail, entries[entries.len() / 4] + 100);
    pair.start(REC);
    let status = pair.cli(REC, &["status", "-C", "1"]);
    assert!(
        status.code == 2 && status.stderr.contains("context 1 is damaged"),
        "{status:?}"
    );
    pair.start(PROD);
    whole(&pair, REC);
    session.connect().unwrap();
    write(&mut session, 40, 20);
    session.drop_connection();
    pair.received();
    let mut latest = Clients::open(&pair, REC, &VOLUMES, |v| format!("c1/{v}@latest"));
    session
        .ledger()
        .check(Promise::Acknowledged, &mut latest)
        .unwrap();
    drop(latest);
    pair.drain();
    pair.same_files(&["data"]);
}

/// Both tails of production are blank: the catalog says where they began, the peer has the rest.
#[test]
fn t5_lost_tails_are_fetched_whole() {
    let pair = Pair::new("rot-tails", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 30);
    let head = pair.received();
    session.drop_connection();
    pair.stop(PROD);
    for n in [0, 1] {
        let path = journal(&pair, PROD).join(format!("tail.{n}"));
        let len = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![0; usize::try_from(len).unwrap()]).unwrap();
    }
    pair.start(PROD);
    whole(&pair, PROD);
    assert_eq!(pair.cursor(PROD, "appended"), head);
    kept(&pair, &session);
}

/// Invariant 9: a file or the whole folder of a journal that is gone is not taken for a new one.
#[test]
fn i9_a_lost_file_or_folder_is_not_a_new_journal() {
    let pair = Pair::new("rot-gone", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 30);
    session.drop_connection();
    pair.received();
    let folder = journal(&pair, PROD);
    let aside = pair.scratch.join("aside");
    for gone in ["tail.0", "tail.1", "super", "db", ""] {
        pair.kill9(PROD);
        fs::rename(folder.join(gone), &aside).unwrap();
        pair.start(PROD);
        let status = pair.cli(PROD, &["status"]);
        assert!(
            status.code == 2 && status.stderr.contains("is gone"),
            "{gone}: {status:?}"
        );
        for (command, code) in [
            (&["status", "-C", "1"][..], 2),
            (&["rtstart", "-C", "1"], 75),
            (&["rtmark", "-C", "1", "--name", "m"], 75),
        ] {
            let refused = pair.cli(PROD, command);
            assert_eq!(refused.code, code, "{gone}: {refused:?}");
            let why = refused.stderr.contains("context 1 could not be opened")
                && refused.stderr.contains("is gone");
            assert!(why, "{gone}: {refused:?}");
            assert!(refused.stderr.contains("Next: backstay status"), "{refused:?}");
        }
        assert!(Client::connect(&pair.socket(PROD), "c1/data").is_err());
        pair.stop(PROD);
        let _ = fs::remove_dir(&folder);
        fs::rename(&aside, folder.join(gone)).unwrap();
        pair.start(PROD);
        kept(&pair, &session);
    }
}

/// One slot of the superblock costs nothing; both are damage that no peer can mend, and the text says so.
#[test]
fn i9_a_lost_superblock_is_named() {
    let pair = Pair::new("rot-super", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 10);
    pair.received();
    session.drop_connection();
    pair.stop(PROD);
    let superblock = journal(&pair, PROD).join("super");
    rot(&superblock, 20);
    pair.start(PROD);
    kept(&pair, &session);
    pair.stop(PROD);
    // Another byte: the same bit once more might only mend what nobody has written since.
    rot(&superblock, 24);
    rot(&superblock, 4096 + 24);
    pair.start(PROD);
    let status = pair.cli(PROD, &["status", "-C", "1"]);
    assert_eq!(status.code, 2, "{status:?}");
    assert!(
        status.stderr.contains("superblock: neither slot checks"),
        "{status:?}"
    );
    assert!(status.stderr.contains("docs/DAMAGE.md"), "{status:?}");
}

/// The file of the store that holds these bytes, and where.
fn in_store(pair: &Pair, node: &str, bytes: &[u8]) -> (PathBuf, u64) {
    for file in fs::read_dir(journal(pair, node).join("db")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "sst") {
            let all = fs::read(&path).unwrap();
            if let Some(at) = all.windows(bytes.len()).position(|w| w == bytes) {
                return (path, at as u64);
            }
        }
    }
    panic!("no file of the store holds these bytes");
}

/// T10: an overlay that is gone costs its snapshot the vdev, and nothing else; `-W` releases it.
#[test]
fn t10_a_lost_overlay_breaks_its_vdev_and_nothing_else() {
    let pair = Pair::new("rot-overlay", &setup());
    let mut client = pair.open(PROD, "c1/data");
    client.write(0, &[1; 4096], true).unwrap();
    drop(client);
    pair.waits(PROD, "drained");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-X"]).ok();
    // It is made when its vdev is opened.
    drop(pair.open(REC, "c1/sn10/data"));
    let overlay = pair.scratch.join("state/rec/c1/overlay/sn10");
    let log = overlay.join("log");
    // A file cut short, then the whole folder gone.
    for gone in [false, true] {
        pair.stop(REC);
        if gone {
            fs::remove_dir_all(&overlay).unwrap();
        } else {
            fs::File::options()
                .write(true)
                .open(&log)
                .unwrap()
                .set_len(10)
                .unwrap();
        }
        pair.start(REC);
        let status = pair.status(REC);
        assert_eq!(status["snapshots"][0]["broken"], true, "{status}");
        let warnings = status["warnings"].to_string();
        assert!(
            warnings.contains("snapshot 10 is broken, its overlay cannot be used")
                && warnings.contains("scrt_ra -C 1 -W --level 10"),
            "{warnings}"
        );
        assert!(Client::connect(&pair.socket(REC), "c1/sn10/data").is_err());
        let mut point = pair.open(REC, "c1/rsn10/data");
        assert_eq!(point.read(0, 4096).unwrap(), [1; 4096]);
    }
    let refused = pair.cli(REC, &["rtmnt", "-C", "1"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("-W --level 10"), "{refused:?}");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W", "--level", "10"]).ok();
    assert_eq!(pair.status(REC)["warnings"].to_string(), "[]");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-X"]).ok();
    let mut vdev = pair.open(REC, "c1/sn10/data");
    vdev.write(0, &[2; 4096], true).unwrap();
    assert_eq!(vdev.read(0, 4096).unwrap(), [2; 4096]);
}

/// T10: redo that rotted in the recovery host's store is a gap with its reason; its boundaries and all other points are exact.
#[test]
fn t10_rotten_redo_is_a_gap_and_every_other_point_is_exact() {
    let pair = Pair::new("rot-redo", &setup());
    let mut client = pair.open(PROD, "c1/data");
    let mut moments: Vec<(u64, u8)> = Vec::new();
    let block = |fill: u8| vec![fill; 4096];
    for (n, name) in ["one", "two", "three"].iter().enumerate() {
        for k in 0..3 {
            let fill = u8::try_from(n * 10 + k + 1).unwrap();
            client.write(0, &block(fill), true).unwrap();
            moments.push((pair.cursor(PROD, "appended").0, fill));
        }
        pair.cli(PROD, &["rtmark", "-C", "1", "--name", name]).ok();
    }
    drop(client);
    pair.waits(PROD, "drained");
    pair.stop(REC);
    let (file, at) = in_store(&pair, REC, &block(12)[..64]);
    rot(&file, at + 1000);
    pair.start(REC);
    let read = |target: &str| {
        let mut client =
            Client::connect(&pair.socket(REC), &format!("c1/data@{target}")).map_err(|e| e.to_string())?;
        client.read(0, 4096).map_err(|e| e.to_string())
    };
    let exact = |target: &str, fill: u8| assert_eq!(read(target).unwrap(), block(fill), "{target}");
    // Found by the first who reads; never other bytes.
    let rotten = moments[4].0;
    assert!(
        read(&format!("seq:{rotten}")).is_err(),
        "damaged bytes were served"
    );
    for (name, fill) in [("one", 3), ("two", 13), ("three", 23)] {
        exact(&format!("mark:{name}"), fill);
    }
    for (seq, fill) in moments.iter().filter(|(_, fill)| !(11..=13).contains(fill)) {
        exact(&format!("seq:{seq}"), *fill);
    }
    let windows = pair.cli(REC, &["scrt_ra", "-C", "1", "-p"]);
    windows.ok();
    let json = pair.json(REC, &["scrt_ra", "-C", "1", "-p"]);
    let gaps = &json["reply"]["windows"]["windows"][0]["gaps"];
    assert_eq!(gaps.as_array().unwrap().len(), 1, "{json}");
    assert!(gaps[0]["why"].as_str().unwrap().contains("is damaged"), "{gaps}");
    let refused = pair.cli(REC, &["scrt_ra", "-C", "1", "--seq", &rotten.to_string()]);
    assert_eq!(refused.code, 3, "{refused:?}");
    // The context goes on.
    let mut client = pair.open(PROD, "c1/data");
    client.write(0, &block(99), true).unwrap();
    drop(client);
    pair.received();
    exact("latest", 99);
}

/// T10: a container that rotted before it was applied comes back from production, which holds it until then.
#[test]
fn t10_redo_that_is_not_applied_comes_back_from_production() {
    let pair = unapplied_and_rotten("rot-unapplied");
    pair.start(REC);
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--undo"]).ok();
    until("the damaged container to be whole again", LONG, || {
        pair.log(REC)
            .contains("a damaged container is whole again")
            .then_some(())
    });
    pair.waits(PROD, "drained");
    pair.drain();
    pair.same_files(&["data"]);
}

/// A replica that stands at mark `one` while redo behind it waits in the store, with one bit of it rotten; recovery is stopped.
fn unapplied_and_rotten(name: &str) -> Pair {
    let pair = Pair::new(name, &setup());
    let mut client = pair.open(PROD, "c1/data");
    client.write(0, &[1; 4096], true).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "one"]).ok();
    pair.waits(PROD, "drained");
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "-f", "-F", "--mark", "one"])
        .ok();
    client.write(0, &[77; 4096], true).unwrap();
    client.write(4096, &[78; 4096], true).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "two"]).ok();
    drop(client);
    pair.received();
    // What waits is moved into the store at the latest when the node starts.
    pair.stop(REC);
    pair.start(REC);
    pair.stop(REC);
    let (file, at) = in_store(&pair, REC, &[77; 64]);
    rot(&file, at + 1000);
    pair
}

/// T10: with production away, redo that rotted before it was applied stops applying and nothing else: the points before it
/// are read and restored, and all heals when production is there again.
#[test]
fn t10_redo_that_is_not_applied_stops_nothing_else_while_production_is_away() {
    let pair = unapplied_and_rotten("rot-waits");
    pair.stop(PROD);
    // A restart in between: the damage is on the disk.
    for _ in 0..2 {
        pair.start(REC);
        pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--undo"]).ok();
        until("the damage to be found", LONG, || {
            let warnings = pair.status(REC)["warnings"].to_string();
            let said = ["nothing is applied: container g", "it is fetched from prod"];
            said.iter().all(|words| warnings.contains(words)).then_some(())
        });
        let mut one = pair.open(REC, "c1/data@mark:one");
        assert_eq!(one.read(0, 4096).unwrap(), [1; 4096]);
        drop(one);
        pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "one"]).ok();
        pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
        pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "-F", "--mark", "one"])
            .ok();
        pair.stop(REC);
    }
    pair.start(REC);
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--undo"]).ok();
    pair.start(PROD);
    until("the damaged container to be whole again", LONG, || {
        pair.log(REC)
            .contains("a damaged container is whole again")
            .then_some(())
    });
    pair.waits(PROD, "drained");
    pair.drain();
    pair.same_files(&["data"]);
    let warnings = pair.status(REC)["warnings"].to_string();
    assert!(!warnings.contains("nothing is applied"), "{warnings}");
}

/// T10: a tail that rots while the daemon runs stops applying and nothing else; a restart fetches what is missing.
#[test]
fn t10_a_tail_that_rots_while_the_daemon_runs_says_so_and_comes_back_with_a_restart() {
    let pair = Pair::new("rot-running", &setup());
    let mut client = pair.open(PROD, "c1/data");
    client.write(0, &[1; 4096], true).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "one"]).ok();
    pair.waits(PROD, "drained");
    client.write(0, &[77; 4096], true).unwrap();
    client.write(4096, &[78; 4096], true).unwrap();
    pair.received();
    let (tail, entries) = open_tail(&pair, REC);
    rot(&tail, entries[0] + 200);
    // The mark ends the container, which is now to be stored.
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "two"]).ok();
    until("the damage to be found", LONG, || {
        let warnings = pair.status(REC)["warnings"].to_string();
        let said = [
            "nothing is applied: container g",
            "in its tail: restart the daemon",
        ];
        said.iter().all(|words| warnings.contains(words)).then_some(())
    });
    let mut one = pair.open(REC, "c1/data@mark:one");
    assert_eq!(one.read(0, 4096).unwrap(), [1; 4096]);
    drop(one);
    pair.stop(REC);
    pair.start(REC);
    whole(&pair, REC);
    client.write(8192, &[79; 4096], true).unwrap();
    drop(client);
    pair.waits(PROD, "drained");
    pair.drain();
    pair.same_files(&["data"]);
}

/// Moves what a volume stands on aside.
fn take_away(pair: &Pair, node: &str) -> (PathBuf, PathBuf) {
    let there = pair.backing(node, "data");
    let aside = pair.scratch.join(format!("{node}-data"));
    fs::rename(&there, &aside).unwrap();
    (there, aside)
}

/// A volume or replica that is gone is not made anew, empty, under a map that calls it clean.
#[test]
fn i9_a_backing_that_is_gone_is_not_made_anew() {
    let pair = Pair::new("gone", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 30);
    session.drop_connection();
    pair.waits(PROD, "drained");

    // Under a daemon that was down.
    pair.stop(REC);
    let (there, aside) = take_away(&pair, REC);
    for times in 1..=2 {
        pair.start(REC);
        let status = pair.cli(REC, &["status"]);
        assert_eq!(status.code, 2, "{status:?}");
        let gone = format!("{} is gone, which held volume data", there.display());
        let way_out = "put it back, or declare it lost (rtdr -C 1 resync, scconfig -C 1 -M -L data)";
        assert!(status.stdout.contains(&gone), "{status:?}");
        assert!(status.stdout.contains(way_out), "{status:?}");
        let refused = pair.cli(REC, &["rtstart", "-C", "1"]);
        assert!(refused.stderr.contains(&gone), "{refused:?}");
        assert!(!there.exists(), "start {times}");
        pair.stop(REC);
    }
    // Emptied is as bad as gone.
    fs::write(&there, "").unwrap();
    pair.start(REC);
    let status = pair.cli(REC, &["status"]);
    assert!(status.stderr.contains("has 0 bytes"), "{status:?}");
    assert_eq!(fs::metadata(&there).unwrap().len(), 0);
    pair.stop(REC);
    fs::rename(&aside, &there).unwrap();
    pair.start(REC);

    // Under a context that was stopped.
    pair.cli(PROD, &["rtstop", "-C", "1"]).ok();
    let (there, aside) = take_away(&pair, PROD);
    let refused = pair.cli(PROD, &["rtstart", "-C", "1"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(
        refused.stderr.contains("is gone, which held volume data"),
        "{refused:?}"
    );
    assert!(!there.exists());
    fs::rename(&aside, &there).unwrap();
    pair.cli(PROD, &["rtstart", "-C", "1"]).ok();

    kept(&pair, &session);
    session.connect().unwrap();
    write(&mut session, 30, 10);
    session.drop_connection();
    pair.waits(PROD, "drained");
    assert_eq!(pair.status(REC)["warnings"], serde_json::json!([]));
    pair.drain();
    pair.same_files(&["data"]);
}

/// A file that took the place of another is said, as long as it is there.
#[test]
fn i9_a_backing_that_was_replaced_is_said() {
    let pair = Pair::new("replaced", &setup());
    let mut session = session(&pair);
    write(&mut session, 0, 10);
    session.drop_connection();
    pair.waits(PROD, "drained");
    let warns = || {
        let warnings = pair.status(REC)["warnings"].to_string();
        warnings.contains("what volume data stands on is gone, or not what was opened before")
    };
    assert!(!warns());
    pair.stop(REC);
    let (there, aside) = take_away(&pair, REC);
    fs::copy(&aside, &there).unwrap();
    for _ in 0..2 {
        pair.start(REC);
        assert!(pair.log(REC).contains("it is not what was opened before"));
        assert!(warns());
        assert_eq!(pair.cli(REC, &["status", "-C", "1"]).code, 2);
        pair.stop(REC);
    }
    fs::rename(&aside, &there).unwrap();
    pair.start(REC);
    assert!(!warns());
}
