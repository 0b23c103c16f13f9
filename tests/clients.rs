//! Stock clients against the exports of real nodes: production's volumes, snapshots, and points by name alone.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{fs, path::Path, process::Command};
use testkit::{
    nbd::{Client, Error},
    proc::{Finished, need_tool, run, until},
};

const VOLUMES: [(&str, u64); 2] = [("data", 32 << 20), ("log", (4 << 20) + 512)];
const EPERM: u32 = 1;

#[track_caller]
fn tool(name: &str, args: &[&str]) -> Finished {
    run(Command::new(need_tool(name)).args(args), LONG)
}

/// A file of a few written ranges among zeroes.
fn image(path: &Path, len: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    for _ in 0..6 {
        let at = rng.random_range(0..bytes.len() - 100_000);
        rng.fill(&mut bytes[at..at + 100_000]);
    }
    fs::write(path, bytes).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a snapshot of now and answers its level.
fn snapshot(pair: &Pair) -> u64 {
    pair.received();
    let made = pair.json(REC, &["scrt_ra", "-C", "1", "-X"]);
    number(&made["reply"]["snapshot"]["level"])
}

#[test]
fn nbdinfo_sees_what_there_is() {
    let pair = Pair::new("info", &Setup::volumes(&VOLUMES));
    pair.open(PROD, "c1/data")
        .write(1 << 20, &[7; 8192], false)
        .unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "good"]).ok();
    let level = snapshot(&pair);
    let names = |node: &str| -> Vec<String> {
        let uri = format!("nbd+unix:///?socket={}", pair.socket(node).display());
        let list: Value = serde_json::from_str(&tool("nbdinfo", &["--list", "--json", &uri]).ok()).unwrap();
        let exports = list["exports"].as_array().unwrap().iter();
        exports
            .map(|e| e["export-name"].as_str().unwrap().to_owned())
            .collect()
    };
    let descriptions = |node: &str| {
        let uri = format!("nbd+unix:///?socket={}", pair.socket(node).display());
        tool("nbdinfo", &["--list", &uri]).ok()
    };
    assert_eq!(names(PROD), ["c1/data", "c1/log"]);
    assert!(descriptions(PROD).contains("protected volume of context 1"));
    let told = descriptions(REC);
    for word in [
        "event mark at ",
        "snapshot at ",
        "vdev at ",
        " behind the newest write",
    ] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    let listed = names(REC);
    for wanted in [
        format!("c1/rsn{level}/data"),
        format!("c1/sn{level}/log"),
        "c1/data@mark:good".to_owned(),
    ] {
        assert!(listed.contains(&wanted), "{wanted} is not in {listed:?}");
    }
    for (node, export, writable, size) in [
        (PROD, "c1/data".to_owned(), true, VOLUMES[0].1),
        (PROD, "c1/log".to_owned(), true, VOLUMES[1].1),
        (REC, format!("c1/rsn{level}/data"), false, VOLUMES[0].1),
        (REC, format!("c1/sn{level}/log"), true, VOLUMES[1].1),
        (REC, "c1/data@mark:good".to_owned(), false, VOLUMES[0].1),
        (REC, "c1/log@latest+rw".to_owned(), true, VOLUMES[1].1),
    ] {
        let uri = pair.uri(node, &export);
        let info: Value = serde_json::from_str(&tool("nbdinfo", &["--json", &uri]).ok()).unwrap();
        let export = &info["exports"][0];
        assert_eq!(info["structured"], true, "{uri}");
        assert_eq!(number(&export["export-size"]), size, "{uri}");
        assert_eq!(export["is_read_only"], !writable, "{uri}");
        // By name alone each connection resolves its own point, so that two of them need not agree.
        assert_eq!(export["can_multi_conn"], !uri.contains('@'), "{uri}");
        for can in ["can_flush", "can_fua", "can_trim", "can_zero"] {
            assert!(!writable || export[can] == true, "{uri}: {can}");
        }
        assert!(number(&export["block_size_maximum"]) >= 32 << 20, "{uri}");
        // What was never written is a hole; what was is not.
        let map: Value = serde_json::from_str(&tool("nbdinfo", &["--map", "--json", &uri]).ok()).unwrap();
        let extents = map.as_array().unwrap();
        let covered: u64 = extents.iter().map(|e| number(&e["length"])).sum();
        assert_eq!(covered, size, "{uri}: {map}");
        if uri.contains("data") {
            let holds = |e: &&Value| {
                let (at, len) = (number(&e["offset"]), number(&e["length"]));
                at <= 1 << 20 && at + len > 1 << 20
            };
            let written = extents.iter().find(holds).unwrap();
            assert_eq!(
                number(&written["type"]) & 2,
                0,
                "{uri}: what was written reads as zero"
            );
            let last = extents.last().unwrap();
            assert_eq!(number(&last["type"]) & 2, 2, "{uri}: {map}");
        }
    }
}

#[test]
fn copies_both_ways_are_exact() {
    let pair = Pair::new("copy", &Setup::volumes(&VOLUMES));
    let (first, second) = (pair.scratch.join("first"), pair.scratch.join("second"));
    let back = pair.scratch.join("back");
    let head = pair.uri(PROD, "c1/data");
    image(&first, VOLUMES[0].1, 1);
    image(&second, VOLUMES[0].1, 2);
    tool("nbdcopy", &["--flush", text(&first), &head]).ok();
    let level = snapshot(&pair);
    tool(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", text(&second), &head],
    )
    .ok();
    pair.received();
    let same = |image: &Path, uri: &str| {
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", text(image), uri],
        )
        .ok();
        tool("nbdcopy", &[uri, text(&back)]).ok();
        let compared = run(Command::new("cmp").args([image, &back]), LONG);
        assert_eq!(compared.code, 0, "{uri}: {compared:?}");
        fs::remove_file(&back).unwrap();
        tool(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "qcow2", uri, text(&back)],
        )
        .ok();
        tool("qemu-img", &["compare", text(&back), "-F", "raw", uri]).ok();
        fs::remove_file(&back).unwrap();
    };
    same(&second, &head);
    same(&second, &pair.uri(REC, "c1/data@latest"));
    same(&first, &pair.uri(REC, &format!("c1/rsn{level}/data")));
    // Onto a vdev, which is its own from then on.
    let vdev = pair.uri(REC, &format!("c1/sn{level}/data"));
    same(&first, &vdev);
    tool("nbdcopy", &["--flush", text(&second), &vdev]).ok();
    same(&second, &vdev);
    same(&first, &pair.uri(REC, &format!("c1/rsn{level}/data")));
    let zero = pair.scratch.image("zero", VOLUMES[0].1);
    tool("nbdcopy", &[text(&zero), &vdev]).ok();
    same(&zero, &vdev);
    same(&second, &head);
}

#[test]
fn qemu_io_gets_exact_answers() {
    let pair = Pair::new("qemu", &Setup::volumes(&VOLUMES));
    let io = |uri: &str, commands: &[&str]| {
        let mut args = vec!["-f", "raw"];
        args.extend(commands.iter().flat_map(|c| ["-c", c]));
        args.push(uri);
        tool("qemu-io", &args)
    };
    let head = pair.uri(PROD, "c1/log");
    let wrote = io(
        &head,
        &[
            "write -P 0x11 0 1M",
            "write -f -P 0x22 1M 64k",
            "write -z 64k 64k",
            "discard 128k 64k",
            "aio_write -P 0x33 2M 2M",
            "aio_flush",
            "flush",
            "read -P 0x11 0 64k",
            "read -P 0 64k 64k",
            "read -P 0x22 1M 64k",
            "read -P 0x33 2M 2M",
        ],
    )
    .ok();
    assert!(!wrote.contains("failed"), "{wrote}");
    pair.received();
    let past = pair.uri(REC, "c1/log@latest");
    let read = tool(
        "qemu-io",
        &[
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 0x11 0 64k",
            "-c",
            "read -P 0x33 2M 2M",
            &past,
        ],
    )
    .ok();
    assert!(!read.contains("failed"), "{read}");
    let refused = io(&past, &["write -P 1 0 4k"]);
    assert!(refused.code != 0, "{refused:?}");
}

#[test]
fn the_past_cannot_be_written() {
    let pair = Pair::new("eperm", &Setup::volumes(&VOLUMES));
    let level = snapshot(&pair);
    for export in [format!("c1/rsn{level}/data"), "c1/data@latest".to_owned()] {
        let mut client = pair.open(REC, &export);
        let range = model::ByteRange::at(0, 4096);
        let refused = [
            client.write(0, &[1; 4096], false),
            client.write_zeroes(range),
            client.trim(range),
        ];
        for answer in refused {
            assert_eq!(answer.unwrap_err().errno(), Some(EPERM), "{export}");
        }
        assert_eq!(client.read(0, 4096).unwrap(), [0; 4096]);
    }
    // The read-write twin takes it and shows it to nobody else.
    let mut twin = pair.open(REC, "c1/data@latest+rw");
    twin.write(0, &[1; 4096], false).unwrap();
    assert_eq!(twin.read(0, 4096).unwrap(), [1; 4096]);
    assert_eq!(pair.open(REC, "c1/data@latest").read(0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn names_that_lead_nowhere_say_why() {
    let pair = Pair::new("names", &Setup::volumes(&VOLUMES));
    for (node, name, why) in [
        (PROD, "", "no export name"),
        (PROD, "data", "no export name"),
        (PROD, "c9/data", "context 9 is not on this node"),
        (PROD, "c1/nothing", "it has data, log"),
        (PROD, "c1/data@latest", "is shown on rec"),
        (REC, "c1/data", "c1/data@latest"),
        (REC, "c1/sn99/data", "no snapshot 99"),
        (REC, "c1/data@mark:none", "none"),
        (REC, "c1/data@seq:999999", "seq:999999"),
        (REC, "c1/data@lfc:3", "undo"),
        (REC, "c1/data@epoch:1", "epoch:1"),
        (REC, "c1/data@someday", "someday"),
        (REC, "c1/data@restored", ""),
    ] {
        let error = match Client::connect(&pair.socket(node), name) {
            Err(Error::Refused { text, .. }) => text,
            Ok(_) if why.is_empty() => continue,
            other => panic!("{name} on {node}: {other:?}"),
        };
        assert!(error.contains(why), "{name} on {node}: {error}");
    }
    // The text reaches the operator through a stock client.
    let info = tool("qemu-img", &["info", &pair.uri(REC, "c1/data@lfc:3")]);
    assert!(info.code != 0 && info.stderr.contains("undo"), "{info:?}");
    // A stopped context says how to start it.
    pair.cli(PROD, &["rtstop", "-C", "1"]).ok();
    match Client::connect(&pair.socket(PROD), "c1/data") {
        Err(Error::Refused { text, .. }) => assert!(text.contains("rtstart -C 1"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn fio_verifies_with_and_without_flush() {
    let pair = Pair::new("fio", &Setup::volumes(&VOLUMES));
    let fio = |uri: &str, more: &[&str]| {
        run(
            Command::new(need_tool("fio"))
                .current_dir(pair.scratch.path())
                .args([
                    "--name=verify",
                    "--ioengine=nbd",
                    "--iodepth=32",
                    "--bs=4k",
                    "--size=16m",
                ])
                .args(["--verify=crc32c", "--verify_fatal=1", "--randseed=5"])
                .arg(format!("--uri={uri}"))
                .args(more),
            LONG,
        )
        .ok()
    };
    let head = pair.uri(PROD, "c1/data");
    fio(&head, &["--rw=randwrite"]);
    fio(&head, &["--rw=randwrite", "--fsync=64", "--offset=16m"]);
    // What was written at production is verified at recovery, by name and in a snapshot.
    let level = snapshot(&pair);
    for export in ["c1/data@latest".to_owned(), format!("c1/rsn{level}/data")] {
        let uri = pair.uri(REC, &export);
        fio(&uri, &["--rw=randread", "--verify_only", "--readonly"]);
        fio(
            &uri,
            &["--rw=randread", "--verify_only", "--readonly", "--offset=16m"],
        );
    }
    fio(
        &pair.uri(REC, &format!("c1/sn{level}/data")),
        &["--rw=randwrite", "--fsync=32"],
    );
    until("production's clients to be gone", LONG, || {
        (pair.status(PROD)["volumes"][0]["open"] == false).then_some(())
    });
    pair.drain();
    pair.same_files(&["data", "log"]);
}

/// In more than one piece: others get in between.
#[test]
fn a_whole_volume_is_zeroed_in_one_request() {
    const LEN: u64 = (1 << 30) + (16 << 20) + 512;
    let pair = Pair::new("zero", &Setup::volumes(&[("huge", LEN)]));
    let places = [0, 1 << 29, (1 << 30) - 256, LEN - 512];
    let mut client = pair.open(PROD, "c1/huge");
    for at in places {
        client.write(at, &[7; 512], false).unwrap();
    }
    client.write_zeroes(model::ByteRange::at(0, LEN)).unwrap();
    client.write(1 << 20, &[9; 512], true).unwrap();
    let check = |mut client: Client| {
        for at in places {
            assert_eq!(client.read(at, 512).unwrap(), [0; 512], "at {at}");
        }
        assert_eq!(client.read(1 << 20, 512).unwrap(), [9; 512]);
    };
    check(client);
    pair.received();
    check(pair.open(REC, "c1/huge@latest"));
}
