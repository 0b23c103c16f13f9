//! A pair under a load, and what must hold of it at every moment.
#![allow(dead_code, reason = "every test uses its own part of this")]

use crate::{
    common::{Clients, LONG, PROD, Pair, number, other},
    load::{Load, Orders},
};
use model::WriteSeq;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use std::{fs, thread, time::Duration};
use testkit::{nbd::Error, proc::until};

pub const VOLUMES: [(&str, u64); 2] = [("data", 12 << 20), ("log", 4 << 20)];

/// A pair, and the writer with its history.
pub struct World {
    pub pair: Pair,
    pub load: Load,
    /// How often both hosts were looked at.
    pub looks: usize,
}

/// What the two hosts said, one after the other.
pub struct Look {
    pub production: Value,
    pub replica: Value,
}

impl World {
    /// A pair at rest whose production runs, and whose volumes are zero.
    pub fn new(pair: Pair) -> Self {
        let head = pair.cursor(PROD, "appended");
        let mut load = Load::at(&pair, &VOLUMES, head);
        load.rest = Duration::from_millis(2);
        Self { pair, load, looks: 0 }
    }

    /// Does something while the writer writes, which sees no error.
    #[track_caller]
    pub fn under_load<T>(
        &mut self,
        why: &str,
        rng: &mut StdRng,
        act: impl FnOnce(&Pair, &mut usize) -> T,
    ) -> T {
        let (done, wrote) = self.while_writing(rng, act);
        let told = |e| {
            panic!(
                "{why}: the application was told of it: {e}\n{}",
                self.pair.log(self.load.node)
            )
        };
        wrote.unwrap_or_else(told);
        done
    }

    /// Does something while the writer writes; what it did, and what the writer ended with.
    pub fn while_writing<T>(
        &mut self,
        rng: &mut StdRng,
        act: impl FnOnce(&Pair, &mut usize) -> T,
    ) -> (T, Result<(), Error>) {
        let (orders, seed) = (Orders::default(), rng.random());
        let (pair, load, looks) = (&self.pair, &mut self.load, &mut self.looks);
        thread::scope(|scope| {
            let orders = &orders;
            let writer = scope.spawn(move || load.run(pair, seed, orders));
            let ended = EndAtLast(orders);
            let done = act(pair, looks);
            drop(ended);
            (done, writer.join().unwrap())
        })
    }

    /// Waits until all is at the replica, as production says, and sees that it is.
    #[track_caller]
    pub fn settle(&mut self, why: &str) {
        let node = self.load.node;
        self.pair.waits(node, "drained");
        let look = look(&self.pair, node, why);
        self.looks += 1;
        let head = self.load.head().0;
        assert_eq!(look.at_production("appended"), head, "{why}");
        assert_eq!(
            look.at_replica("received"),
            head,
            "{why}: drained, says production"
        );
    }

    /// So many random records behind one, and some marks, each held against the oracle; how many.
    pub fn views(&self, behind: WriteSeq, count: usize, rng: &mut StdRng) -> usize {
        let positions: Vec<WriteSeq> = self.load.oracle.positions().filter(|seq| *seq > behind).collect();
        let random = positions.choose_multiple(rng, count);
        let mut targets: Vec<_> = random.map(|seq| (format!("seq:{}", seq.0), *seq)).collect();
        let marks: Vec<_> = self.load.marks.iter().filter(|(_, seq)| *seq > behind).collect();
        let marks = marks.choose_multiple(rng, count / 3);
        targets.extend(marks.map(|(name, seq)| (format!("mark:{name}"), *seq)));
        for (target, seq) in &targets {
            self.shows(&format!("@{target}"), *seq);
        }
        targets.len()
    }

    /// What the replica shows of every volume by this name is what was there at a record.
    #[track_caller]
    pub fn shows(&self, name: &str, seq: WriteSeq) {
        let node = other(self.load.node);
        let export = |volume: &str| match name.strip_prefix('@') {
            Some(_) => format!("c1/{volume}{name}"),
            None => format!("c1/{name}/{volume}"),
        };
        let mut view = Clients::open(&self.pair, node, &self.load.volumes_at(seq), export);
        let same = self.load.oracle.compare(seq, &mut view);
        same.unwrap_or_else(|e| panic!("{name} on {node} is not record {seq}: {e}"));
    }

    /// What production serves is what was there at the newest record.
    #[track_caller]
    pub fn serves(&self, why: &str) {
        self.serves_on(self.load.node, why);
    }

    /// As [`World::serves`], on a node that has become production.
    #[track_caller]
    pub fn serves_on(&self, node: &str, why: &str) {
        let head = self.load.head();
        let mut exports = Clients::open(&self.pair, node, &self.load.volumes_at(head), |v| {
            format!("c1/{v}")
        });
        let same = self.load.oracle.compare(head, &mut exports);
        same.unwrap_or_else(|e| panic!("{why}: {node} serves: {e}"));
    }

    /// The oldest record of the window of the replica.
    pub fn oldest(&self) -> WriteSeq {
        let window = self
            .pair
            .json(other(self.load.node), &["scrt_ra", "-C", "1", "-p"]);
        WriteSeq(number(&window["reply"]["windows"]["windows"][0]["oldest"]["seq"]))
    }

    /// Views of the whole history, and the replica at rest; the number of views.
    pub fn check(&mut self, rng: &mut StdRng) -> usize {
        self.load.disconnect();
        let views = self.views(self.oldest(), 10 * crate::factor(), rng);
        self.pair.drain();
        self.pair.same_files(&VOLUMES.map(|(v, _)| v));
        views
    }
}

/// Ends the writer even when what is done meanwhile panics: the scope would wait for it for ever.
struct EndAtLast<'a>(&'a Orders);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Look {
    /// A cursor of production.
    pub fn at_production(&self, cursor: &str) -> u64 {
        number(&self.production["cursors"][cursor])
    }

    /// A cursor of the replica.
    pub fn at_replica(&self, cursor: &str) -> u64 {
        number(&self.replica["cursors"][cursor])
    }
}

/// Asks both hosts how they are. What production says of its peer must be true: the peer is asked after it.
#[track_caller]
pub fn look(pair: &Pair, node: &str, why: &str) -> Look {
    let look = Look {
        production: pair.status(node),
        replica: pair.status(other(node)),
    };
    let (a, b) = (&look.production, &look.replica);
    for (here, there) in [("acknowledged", "received"), ("applied", "applied")] {
        let (said, is) = (look.at_production(here), look.at_replica(there));
        assert!(
            said <= is,
            "{why}: production says {here} {said}, {there} is {is}\n{a}\n{b}"
        );
    }
    let says_all = a["verdict"].as_str().unwrap().starts_with("every write is at");
    let all = says_all || number(&a["rpo"]["writes"]) == 0;
    assert!(
        !all || look.at_replica("received") >= look.at_production("appended"),
        "{why}: not every write is at the replica\n{a}\n{b}"
    );
    assert!(
        a["consistent"] == false || b["consistent"] == true,
        "{why}: the replica is not consistent\n{a}\n{b}"
    );
    let is_there = a["head"]["context"]["peer"]["state"] == "connected" && a["stale_bytes"] == 0;
    assert!(
        a["healthy"] == false || is_there,
        "{why}: that is not healthy\n{a}"
    );
    look
}

/// Waits until production says this of its peer.
#[track_caller]
pub fn peer_is(pair: &Pair, node: &str, state: &str, why: &str, looks: &mut usize) {
    until(&format!("{why}: the peer to be {state}"), LONG * 2, || {
        *looks += 1;
        let look = look(pair, node, why);
        thread::sleep(Duration::from_millis(100));
        (look.production["head"]["context"]["peer"]["state"] == state).then_some(())
    });
}

/// Bytes that a daemon holds in memory, and the most it ever held.
pub fn memory(pair: &Pair, node: &str) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", pair.id(node))).unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        number.parse::<u64>().unwrap() << 10
    };
    (of("VmRSS"), of("VmHWM"))
}
