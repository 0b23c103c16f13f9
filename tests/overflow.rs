//! The peer is away and the journal reaches its limit: the application goes on, what gave way is copied at the next contact
//! and only that, and the replica stays usable at its last consistent point until then (R8, R10, R11, R12, C2-C5, N19).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Clients, LONG, PROD, Pair, REC, Setup, number};
use model::VolumeIndex;
use rand::{Rng, rngs::StdRng};
use std::{thread, time::Duration};
use testkit::{nbd::Client, proc::until, with_seeds};

const VOLUMES: [(&str, u64); 2] = [("data", 48 << 20), ("log", (8 << 20) + 512)];
/// Of the journal, in containers of 2 MiB.
const LIMIT: u64 = 8 << 20;
const REGION: u64 = 32 << 10;

type Image = Vec<Vec<u8>>;

/// What the volumes hold, by the writes that were answered.
struct World<'a> {
    pair: &'a Pair,
    image: Image,
    clients: Vec<Client>,
    written: u64,
}

impl<'a> World<'a> {
    fn new(pair: &'a Pair) -> Self {
        let image = VOLUMES.map(|(_, size)| vec![0; usize::try_from(size).unwrap()]);
        let mut world = Self {
            pair,
            image: image.to_vec(),
            clients: Vec::new(),
            written: 0,
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.clients = VOLUMES
            .iter()
            .map(|(v, _)| self.pair.open(PROD, &format!("c1/{v}")))
            .collect();
    }

    /// Writes that change about so many bytes, each answered well; some at odd places, some zeroes.
    fn write(&mut self, rng: &mut StdRng, bytes: u64) {
        let end = self.written + bytes;
        while self.written < end {
            let v = usize::from(rng.random_range(0..6) == 0);
            let size = VOLUMES[v].1;
            let len = match rng.random_range(0..10) {
                0 => rng.random_range(1..9000),
                1..7 => 4096 * rng.random_range(1..=16),
                _ => 4096 * rng.random_range(16..=128),
            };
            let at = rng.random_range(0..size - len);
            // Half of the volume stays as it is, so that a copy of everything would be seen.
            let at = if len % 4096 == 0 { at / 8192 * 4096 } else { at / 2 };
            let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
            if rng.random_range(0..12) == 0 {
                let range = model::ByteRange::at(at, len);
                self.clients[v].write_zeroes(range).unwrap();
                self.image[v][usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap()].fill(0);
            } else {
                let mut data = vec![0; range.len()];
                rng.fill(&mut data[..]);
                self.clients[v]
                    .write(at, &data, rng.random_range(0..50) == 0)
                    .unwrap();
                self.image[v][range].copy_from_slice(&data);
            }
            self.written += len;
        }
    }

    fn mark(&mut self, name: &str) -> Image {
        self.pair
            .cli(PROD, &["rtmark", "-C", "1", "--name", name, "--no-sync"])
            .ok();
        self.image.clone()
    }
}

/// The replica at a target, whole.
fn read(pair: &Pair, target: &str) -> Image {
    let clients = Clients::open(pair, REC, &VOLUMES, |v| format!("c1/{v}@{target}"));
    let whole = |mut client: Client| {
        let size = client.size();
        let parts = (0..size).step_by(1 << 20);
        parts
            .flat_map(|at| client.read(at, (1 << 20).min(size - at)).unwrap())
            .collect()
    };
    clients.0.into_iter().map(whole).collect()
}

#[track_caller]
fn same(what: &str, got: &Image, wanted: &Image) {
    for (v, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        if let Some(at) = (0..got.len()).find(|i| got[*i] != wanted[*i]) {
            panic!(
                "{what}: volume {:?} differs first at byte {at}",
                VolumeIndex(u16::try_from(v).unwrap())
            );
        }
    }
}

fn setup() -> Setup {
    Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\njournal_limit = \"8M\"\nrecovery_journal_limit = \"1G\"\n",
        ..Setup::volumes(&VOLUMES)
    }
}

/// Rounds of overflow and resync, with kills of either host in between; every point that was consistent stays exact.
#[test]
fn c4_what_gave_way_is_copied_and_only_that() {
    let pair = Pair::new("overflow", &setup());
    with_seeds("overflow", 1, |rng| {
        let mut world = World::new(&pair);
        world.write(rng, 6 << 20);
        let mut points: Vec<(String, Image)> = Vec::new();
        let mut amid = 0;
        for round in 0..3 {
            let before = format!("before{round}");
            points.push((before.clone(), world.mark(&before)));
            pair.waits(PROD, "drained");
            pair.kill9(REC);
            world.write(rng, 5 * LIMIT);
            let status = until("the journal is within its limit", LONG, || {
                let status = pair.status(PROD);
                (number(&status["journal_bytes"]) <= LIMIT + (4 << 20)).then_some(status)
            });
            let stale = number(&status["stale_bytes"]);
            assert!(stale > 0, "{status}");
            assert!(number(&status["super_transaction"]["containers"]) > 0, "{status}");
            assert!(
                stale <= VOLUMES[0].1 / 2 + VOLUMES[1].1 / 2 + 2 * (512 << 10) + 2 * REGION,
                "{stale} bytes are stale: more than was written"
            );
            if round % 2 == 1 {
                // A production that comes back knows what gave way.
                pair.kill9(PROD);
                pair.start(PROD);
                world.connect();
                assert!(number(&pair.status(PROD)["stale_bytes"]) >= stale);
            }
            pair.start(REC);
            // While the copies arrive, and whoever is killed meanwhile, the last consistent point is there and exact.
            for _ in 0..3 {
                amid += usize::from(!pair.status(REC)["consistent"].as_bool().unwrap());
                thread::sleep(Duration::from_millis(rng.random_range(0..150)));
                let some = rng.random_range(1..256 << 10);
                world.write(rng, some);
                same(
                    &before,
                    &read(&pair, &format!("mark:{before}")),
                    &points[points.len() - 1].1,
                );
                match rng.random_range(0..3) {
                    0 => {
                        pair.kill9(REC);
                        pair.start(REC);
                    }
                    1 => {
                        pair.kill9(PROD);
                        pair.start(PROD);
                        world.connect();
                    }
                    _ => {}
                }
            }
            pair.waits(PROD, "resynced");
            let after = format!("after{round}");
            points.push((after.clone(), world.mark(&after)));
            pair.waits(PROD, "drained");
            until("the replica is consistent", LONG, || {
                pair.status(REC)["consistent"].as_bool().unwrap().then_some(())
            });
            let status = pair.status(PROD);
            assert!(status["super_transaction"].is_null(), "{status}");
            assert_eq!(number(&status["stale_bytes"]), 0);
            for (name, image) in &points {
                same(name, &read(&pair, &format!("mark:{name}")), image);
            }
        }
        let window = pair.json(REC, &["scrt_ra", "-C", "1", "-p"]);
        let gaps = window["reply"]["windows"]["windows"][0]["gaps"]
            .as_array()
            .map_or(0, Vec::len);
        println!(
            "{} points exact over {gaps} gaps, {} MiB written; looked at {amid} times amid a resync",
            points.len(),
            world.written >> 20
        );
        assert!(gaps > 0, "{window}");
        world.clients.clear();
        pair.drain();
        pair.same_files(&VOLUMES.map(|(v, _)| v));
        for (v, (name, _)) in VOLUMES.iter().enumerate() {
            assert!(std::fs::read(pair.backing(REC, name)).unwrap() == world.image[v]);
        }
    });
}

/// The recovery host lost all it had, after production dropped redo that was applied there: everything is copied again,
/// by itself, and the history begins anew.
#[test]
fn c5_a_recovery_store_that_was_lost_is_filled_again() {
    let pair = Pair::new("lost", &setup());
    with_seeds("lost", 1, |rng| {
        let mut world = World::new(&pair);
        world.write(rng, 8 << 20);
        world.mark("gone");
        pair.waits(PROD, "drained");
        until("redo is dropped", LONG, || {
            (number(&pair.status(PROD)["journal_bytes"]) < 4 << 20).then_some(())
        });
        pair.kill9(REC);
        std::fs::remove_dir_all(pair.scratch.join("state/rec/c1")).unwrap();
        pair.start(REC);
        world.write(rng, 1 << 20);
        pair.waits(PROD, "drained");
        let image = world.mark("anew");
        pair.waits(PROD, "drained");
        pair.waits(REC, "consistent");
        same("anew", &read(&pair, "mark:anew"), &image);
        let gone = pair.cli(REC, &["scrt_ra", "-C", "1", "--mark", "gone"]);
        assert_eq!(gone.code, 3, "{gone:?}");
        world.clients.clear();
        pair.drain();
        pair.same_files(&VOLUMES.map(|(v, _)| v));
    });
}
