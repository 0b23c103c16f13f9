//! Lines 16, 17 and 19: the first sync, and what goes over the wire.

use super::Line;
use crate::{
    bench::{Bench, timed},
    common::{LONG, PROD, REC},
    nodes::{Nodes, Plan, done},
    outcome::{Aim::AtLeast, Aim::AtMost, Aim::Told, Outcome},
    stats::Samples,
    texts,
    writer::write_all,
};
use rand::{RngCore, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{fs, process::Command};
use testkit::{
    proc::{need_tool, until},
    proxy::Proxy,
};

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            number: 16,
            work: "first sync",
            does: "A volume of incompressible bytes; from the start of production's daemon, with the recovery node waiting, until the replica is \
                   consistent. Against `nbdcopy --flush` of the same export into a new file, behind it. The ratio is of rates.",
            run: first_sync,
            bound: "The processor: for 1 GiB both hosts together need 3.2 s of it (the recovery node 2.1: TLS, TCP and copies of the bytes 1.2, pwrite 0.6; production 1.1: BLAKE3, TLS, \
                reading), and half a second is production's first start, which writes its two tails once. Two cores cannot go beyond 640 MiB/s, about half of nbdcopy, which has neither digests, nor TLS, nor a journal.",
        },
        Line {
            number: 17,
            work: "resync: bytes on the wire for each dirty byte",
            does: "The link is cut and whole regions of 32 KiB are overwritten, each once, until the journal has given most of them up to the \
                   state map; then the link is there again. Counted by a proxy, both directions, TLS included, from then until the replica is consistent. \
                   `90 % equal`: nine of ten regions are overwritten by the very bytes that they hold.",
            run: resync,
            bound: "",
        },
        Line {
            number: 19,
            work: "bytes on the wire for each byte written",
            does: "64 KiB writes of one kind of data, counted as in line 17 until the peer has received them. `zstd -1`: the same bytes in one file, by the \
                   command.",
            run: wire,
            bound: "",
        },
    ]
}

fn first_sync(bench: &Bench) -> Outcome {
    let len = bench.scale.sync;
    let image = bench.image(len);
    let copy = bench.scratch.join("nbdcopy");
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let rate = |seconds: f64| (len >> 20) as f64 / seconds;
    for _ in 0..bench.scale.few_rounds {
        bench.quiet();
        let mut nodes = Plan {
            image: Some(&image),
            ..Plan::new("sync", len)
        }
        .stopped();
        nodes.start_recovery();
        let (seconds, ()) = timed(|| {
            nodes.pair.start(PROD);
            nodes.wait_consistent();
        });
        ours.0.push(rate(seconds));
        nodes.rest();
        bench.quiet();
        let mut nbdcopy = Command::new(need_tool("nbdcopy"));
        nbdcopy.arg("--flush").arg(nodes.uri()).arg(&copy);
        theirs.0.push(rate(timed(|| done(&mut nbdcopy)).0));
        let _ = fs::remove_file(&copy);
    }
    let mut out = Outcome::default();
    out.ratio("", "nbdcopy to a file", AtLeast(0.7), ours.over(&theirs));
    out.series("first sync", "MiB/s", ours);
    out.series("nbdcopy", "MiB/s", theirs);
    out.remark(format!("{} MiB", len >> 20));
    out
}

/// Two nodes with a proxy between that counts.
fn counted(name: &str, len: u64, keys: &str) -> (Nodes, Proxy) {
    let mut nodes = Plan {
        keys,
        ..Plan::new(name, len)
    }
    .stopped();
    let proxy = nodes.pair.proxied(REC, 1).remove(0);
    nodes.start_recovery();
    nodes.pair.start(PROD);
    nodes.wait_consistent();
    nodes.rest();
    (nodes, proxy)
}

const REGION: u64 = 32 << 10;

fn region(number: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(REGION).expect("small")];
    StdRng::seed_from_u64(number << 8 | version).fill_bytes(&mut bytes);
    bytes
}

fn resync(bench: &Bench) -> Outcome {
    let len = bench.scale.volume;
    // The least that a journal may have, so that most of what is written is given up.
    let keys = "lfc_size = \"2M\"\njournal_limit = \"8M\"\nrollback_window = \"4M\"\n";
    let (nodes, proxy) = counted("resync", len, keys);
    let mut order: Vec<u64> = (0..len / REGION).collect();
    let mut client = nodes.client();
    // All regions hold what is known.
    write_all(
        &mut client,
        order.iter().map(|n| (n * REGION, region(*n, 0))),
        |_, _| {},
    );
    nodes.rest();
    let mut out = Outcome::default();
    for (part, equal_of_ten, most) in [("all differ", 0, 1.05), ("90 % equal", 9, 0.15)] {
        let mut samples = Samples::default();
        for round in 0..bench.scale.few_rounds as u64 {
            order.shuffle(&mut StdRng::seed_from_u64(17 + round));
            let version = 1 + round + if equal_of_ten == 0 { 0 } else { 100 };
            let dirty = &order[..order.len() / 2];
            // What the last round left is what `equal` regions are written with.
            let known: Vec<(u64, Vec<u8>)> = dirty
                .iter()
                .enumerate()
                .map(|(i, n)| {
                    let offset = n * REGION;
                    let same = (i as u64) % 10 < equal_of_ten;
                    let bytes = if same {
                        client.read(offset, REGION).expect("a read succeeds")
                    } else {
                        region(*n, version)
                    };
                    (offset, bytes)
                })
                .collect();
            proxy.refuse(true);
            proxy.cut();
            write_all(&mut client, known, |_, _| {});
            let stale = until("a journal that gave way", LONG, || {
                let stale = nodes.pair.status(PROD)["stale_bytes"].as_u64().unwrap_or(0);
                (stale > 0).then_some(stale)
            });
            let head = nodes.head();
            let _ = proxy.take();
            proxy.refuse(false);
            until("all at the peer", LONG * 5, || {
                (nodes.pair.cursor(REC, "received").0 >= head).then_some(())
            });
            nodes.wait_consistent();
            let bytes = proxy.take();
            samples
                .0
                .push(bytes as f64 / (dirty.len() as u64 * REGION) as f64);
            out.remark(format!(
                "{part}: {} MiB dirty, {} MiB of it in the state map, {:.1} MiB on the wire",
                (dirty.len() as u64 * REGION) >> 20,
                stale >> 20,
                bytes as f64 / f64::from(1 << 20)
            ));
            nodes.rest();
        }
        out.ratio(part, "dirty bytes", AtMost(most), samples);
    }
    out
}

fn wire(bench: &Bench) -> Outcome {
    let bytes = bench.scale.volume / 4;
    let (nodes, proxy) = counted("wire", bench.scale.volume, "journal_limit = \"6G\"\n");
    let mut client = nodes.client();
    let mut out = Outcome::default();
    for (name, data) in texts::kinds(usize::try_from(bytes).expect("it fits into memory")) {
        let (mut wire, mut packed) = (Samples::default(), Samples::default());
        let path = bench.scratch.join("data");
        fs::write(&path, &data).expect("it can be written");
        let mut zstd = Command::new(need_tool("zstd"));
        zstd.args(["-1", "-q", "-c"]).arg(&path);
        let zstd = zstd.output().expect("zstd runs").stdout.len() as f64 / data.len() as f64;
        for _ in 0..bench.scale.few_rounds {
            nodes.rest();
            let _ = proxy.take();
            let writes = data
                .chunks(64 << 10)
                .zip(0..)
                .map(|(piece, n)| (n << 16, piece.to_vec()));
            write_all(&mut client, writes, |_, _| {});
            nodes.pair.received();
            wire.0.push(proxy.take() as f64 / data.len() as f64);
            packed.0.push(zstd);
        }
        let raw = if name == "incompressible" {
            AtMost(1.01)
        } else {
            Told
        };
        let against_zstd = if name == "incompressible" {
            Told
        } else {
            AtMost(1.05)
        };
        out.ratio(name, "zstd -1 of the same", against_zstd, wire.over(&packed));
        out.ratio(name, "raw bytes", raw, wire);
    }
    out.remark(format!("{} MiB of each", bytes >> 20));
    out
}
