//! The two hosts apart: one takes over from the other that is alive, and a journal overflows.

use super::{Mixture, ms};
use crate::{
    common::{LONG, number, other},
    world::World,
};
use model::WriteSeq;
use rand::{Rng, rngs::StdRng};
use serde_json::Value;
use std::{thread, time::Duration};
use testkit::proc::until;

/// What only the old production had: its line, as an export names it, and the newest record.
struct Lost {
    generation: u64,
    history: crate::load::Load,
}

impl Mixture {
    /// Nothing gave way, and nothing is copied.
    pub(super) fn nothing_stale(&self, why: &str) {
        let status = self.world.pair.status(self.production());
        assert_eq!(number(&status["stale_bytes"]), 0, "{why}: {status}");
        assert!(status["super_transaction"].is_null(), "{why}: {status}");
    }

    /// The replica is made production by force while the old production is alive: behind a link that is cut, where both are
    /// written for a while, or connected, where the old one gives up under its writer.
    pub fn forced(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        while !self.open.is_empty() {
            self.release(0);
        }
        let parted = rng.random_range(0..3) > 0;
        let why = format!("{why}: forced, {}", if parted { "parted" } else { "connected" });
        if parted {
            // Some of what is written goes over, and some does not.
            let [first, rest] = [(); 2].map(|()| ms(rng, 0..600));
            let links = &self.links;
            self.world.under_load(&why, rng, |_, _| {
                thread::sleep(first);
                links.iter().for_each(super::Link::part);
                thread::sleep(rest);
            });
            let known = self.world.pair.cursor(self.production(), "acknowledged");
            let lost = self.taken_over(known, &why, rng);
            self.both_written(lost, &why, rng);
        } else {
            let to = self.replica();
            let lasts = ms(rng, 0..400);
            let why = &why;
            let (done, _) = self.world.while_writing(rng, |pair, _| {
                thread::sleep(lasts);
                pair.json(to, &["rtdr", "-qfC", "1", "failover"])
            });
            let from = self.production();
            let mut history = self.goes_on_at(point_of(&done, why), why);
            assert!(
                history.is_refused(),
                "{why}: {from} gave up, and serves who was connected"
            );
            assert_eq!(
                self.world.pair.status(from)["head"]["context"]["state"],
                "FENCED",
                "{why}"
            );
            history.disconnect();
            self.follows(from, why, rng);
        }
        self.count(match parted {
            true => "forced failovers, parted",
            false => "forced failovers, connected",
        });
    }

    /// The replica takes over, perhaps with a kill amid the command. What the old production goes on with is another history.
    fn taken_over(&mut self, known: WriteSeq, why: &str, rng: &mut StdRng) -> Lost {
        let (from, to) = (self.production(), self.replica());
        self.amid_a_kill_of(&[to], to, &["rtdr", "-qfC", "1", "failover"], why, rng);
        let again = self.world.pair.json(to, &["rtdr", "-qfC", "1", "failover"]);
        let point = point_of(&again, why);
        assert!(
            point >= known,
            "{why}: {from} knows of {known} at {to}, which took over at {point}"
        );
        let windows = self.world.pair.json(from, &["scrt_ra", "-C", "1", "-v"]);
        let lfcs = windows["reply"]["windows"]["lfcs"].as_array();
        let generations = lfcs.into_iter().flatten().map(|lfc| number(&lfc["generation"]));
        let generation = generations.max().unwrap_or_else(|| panic!("{why}: {windows}"));
        let history = self.goes_on_at(point, why);
        Lost { generation, history }
    }

    /// The replica is production from this record on, and serves just that.
    fn goes_on_at(&mut self, point: WriteSeq, why: &str) -> crate::load::Load {
        let to = self.replica();
        let history = self.world.load.fork(point, to);
        self.line = point;
        self.world.serves(why);
        history
    }

    /// Both are production, and either is written and killed. Then they meet: the lower term is fenced, and follows.
    fn both_written(&mut self, mut lost: Lost, why: &str, rng: &mut StdRng) {
        let (from, to) = (lost.history.node, self.production());
        for _ in 0..rng.random_range(0..3) {
            lost.history.burst(rng, 20);
            self.world.load.follow(&self.world.pair, to);
            self.world.load.burst(rng, 20);
            if !rng.random_bool(self.kills) {
                continue;
            }
            let victim = [from, to][rng.random_range(0..2)];
            let pair = &self.world.pair;
            pair.kill9(victim);
            pair.start(victim);
            let head = pair.cursor(victim, "appended");
            let load = match victim == from {
                true => &mut lost.history,
                false => &mut self.world.load,
            };
            load.settle_killed(head, why);
            load.connect(pair);
            self.count("kills of one of two productions");
        }
        let pair = &self.world.pair;
        self.links.iter().for_each(super::Link::calm);
        until(&format!("{why}: {from} to be fenced"), LONG, || {
            (pair.status(from)["head"]["context"]["state"] == "FENCED").then_some(())
        });
        assert!(
            lost.history.is_refused(),
            "{why}: {from} is fenced, and serves who was connected"
        );
        lost.history.disconnect();
        self.follows(from, why, rng);
        // What only the old production had is read by its generation.
        let seq = lost.history.head();
        if seq > self.line {
            let name = format!("@g{}:seq:{}", lost.generation, seq.0);
            shows_lost(&self.world, &lost.history, from, &name, why);
            *self.counts.entry("lines that were given up, read").or_default() += 1;
        }
    }

    /// The old production gives way and follows, perhaps with kills amid both commands.
    fn follows(&mut self, from: &'static str, why: &str, rng: &mut StdRng) {
        let to = other(from);
        self.amid_a_kill(from, &["rtdr", "-qC", "1", "resync"], why, rng);
        // Where it is done at home, the same command means this host's own data, and is refused.
        self.insist(to, &["rtdr", "-qC", "1", "resync"], "ENABLED", why, rng);
        let pair = &self.world.pair;
        until(&format!("{why}: {from} to follow"), LONG, || {
            let status = pair.status(from);
            (status["head"]["context"]["state"] == "ENABLED" && status["consistent"] == true).then_some(())
        });
        // It says so of its own line, too, before it has heard what it lacks of the other.
        pair.waits(to, "resynced");
        self.world.serves(why);
        self.world.load.disconnect();
        self.world.load.follow(&self.world.pair, to);
        self.world.settle(why);
        self.nothing_stale(why);
        self.line = self.world.load.head();
    }

    /// Production writes past its journal's limit with the link cut; what gave way is copied, whoever is killed meanwhile, and
    /// the last point before it can be looked at throughout. Now and then production is lost amid the copies for good.
    pub fn overflow(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        while !self.open.is_empty() {
            self.release(0);
        }
        let production = self.production();
        let mark = self.world.load.set_mark(&self.world.pair);
        let before = self.world.load.head();
        self.world.settle(why);
        let links = &self.links;
        self.world.load.rest = Duration::ZERO;
        self.world.under_load(why, rng, |pair, _| {
            links.iter().for_each(super::Link::part);
            until(&format!("{why}: the journal to overflow"), LONG * 2, || {
                let status = pair.status(production);
                (number(&status["stale_bytes"]) > 0 && !status["super_transaction"].is_null()).then_some(())
            });
        });
        self.world.load.rest = super::REST;
        self.world.load.disconnect();
        let pair = &self.world.pair;
        if rng.random_bool(self.kills) {
            // A production that comes back knows what gave way.
            let stale = number(&pair.status(production)["stale_bytes"]);
            pair.kill9(production);
            pair.start(production);
            let head = pair.cursor(production, "appended");
            self.world.load.settle_killed(head, why);
            let now = number(&pair.status(production)["stale_bytes"]);
            assert!(now >= stale, "{why}: {stale} bytes were stale, and {now} are");
        }
        self.world.serves(why);
        self.links.iter().for_each(super::Link::calm);
        let replica = self.replica();
        for _ in 0..rng.random_range(0..3) {
            thread::sleep(ms(rng, 0..300));
            self.world.shows(&format!("@mark:{mark}"), before);
            let victim = [production, replica][rng.random_range(0..2)];
            if rng.random_bool(self.kills) {
                self.world.pair.kill9(victim);
                self.world.pair.start(victim);
                *self.counts.entry("kills amid copies").or_default() += 1;
            }
        }
        self.count("overflows");
        if rng.random_range(0..3) == 0 && self.lost_amid_copies(why, rng) {
            self.count("productions lost amid copies");
            return;
        }
        self.world.pair.waits(production, "resynced");
        // Copies have numbers of their own.
        self.world.load.follow(&self.world.pair, production);
        self.world.serves(why);
        self.world.settle(why);
        self.nothing_stale(why);
        self.world.shows(&format!("@mark:{mark}"), before);
        self.line = self.world.load.head();
    }

    /// The replica takes over in the middle of a resync: it goes back to its last consistent point (L7). Whether it came to that.
    fn lost_amid_copies(&mut self, why: &str, rng: &mut StdRng) -> bool {
        let (from, to) = (self.production(), self.replica());
        self.links.iter().for_each(super::Link::part);
        let pair = &self.world.pair;
        until(&format!("{why}: {to} to be alone"), LONG, || {
            (pair.status(to)["head"]["context"]["peer"]["state"] != "connected").then_some(())
        });
        // Where it is not in the middle of the copies, it is before them or behind.
        if pair.status(to)["consistent"] == true {
            self.links.iter().for_each(super::Link::calm);
            return false;
        }
        let mut lost = self.taken_over(WriteSeq(0), why, rng);
        // Copies have numbers of their own.
        lost.history.follow(&self.world.pair, from);
        self.both_written(lost, why, rng);
        true
    }
}

/// Where a failover took over, by its answer.
fn point_of(answer: &Value, why: &str) -> WriteSeq {
    let point = answer["reply"]["role"]["point"]["seq"].as_u64();
    WriteSeq(point.unwrap_or_else(|| panic!("{why}: {answer}")))
}

/// What the old production had at its end, on the host that follows now.
fn shows_lost(world: &World, history: &crate::load::Load, node: &str, name: &str, why: &str) {
    use crate::common::Clients;
    let volumes = history.volumes_at(history.head());
    let mut view = Clients::open(&world.pair, node, &volumes, |v| format!("c1/{v}{name}"));
    let same = history.oracle.compare(history.head(), &mut view);
    same.unwrap_or_else(|e| panic!("{why}: {name} on {node}: {e}"));
}
