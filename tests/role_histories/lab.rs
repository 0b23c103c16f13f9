//! Histories that are written down: what an operator types, what an application writes, and what comes of it.

use super::{
    host::REGION,
    lines::same,
    operator::{Command, Outcome},
    world::{Side, Step, World, reader},
};
use model::{ByteRange, Target, VolumeIndex, WriteSeq, target::TargetKind};
use rand::RngCore;
use std::{collections::BTreeSet, io};
use testkit::workload::Operation;

pub const V: VolumeIndex = VolumeIndex(0);

/// A region of the first volume.
pub fn region(n: u64) -> ByteRange {
    ByteRange::at(n * REGION, REGION)
}

/// A target by number, on the current line.
pub fn seq(seq: WriteSeq) -> Target {
    Target::from(TargetKind::Seq(seq))
}

impl World {
    /// Both hosts are what they are configured to be, and equal.
    pub fn synced(rng: &mut dyn RngCore) -> Self {
        let mut world = Self::new(rng);
        for n in [1, 5, 9] {
            world.put(Side::A, n, rng);
        }
        world.calm(rng);
        assert!(world.is_whole().unwrap());
        world.copied.clear();
        world
    }

    /// An application writes a region of the first volume.
    pub fn put(&mut self, side: Side, n: u64, rng: &mut dyn RngCore) {
        self.boot_both().unwrap();
        let range = region(n);
        let write = Operation::Write {
            volume: V,
            offset: range.start,
            len: range.len(),
            fua: false,
        };
        self.operate(side, write, rng).unwrap();
        self.sync(side).unwrap();
    }

    /// Types a command that must do it.
    pub fn run(&mut self, side: Side, command: Command, rng: &mut dyn RngCore) {
        let outcome = self.step(&Step::Command(side, command.clone()), rng);
        assert!(
            outcome.is_some_and(Outcome::is_done),
            "{command:?} on {side:?} is {outcome:?}"
        );
    }

    /// Does steps.
    pub fn steps(&mut self, steps: &[Step], rng: &mut dyn RngCore) {
        for step in steps {
            self.step(step, rng);
        }
    }

    /// Frames, and nothing else, go from a production to its follower, until there are none.
    pub fn stream_all(&mut self, side: Side, rng: &mut dyn RngCore) {
        for _ in 0..20 {
            self.step(&Step::Round(side), rng);
        }
    }

    /// The acting production is on a line, and the other host is its replica, equal to it.
    pub fn look_at_pair(&self, acting: Side) {
        let (here, there) = (self.up(acting), self.up(acting.other()));
        let (id, at) = self.line_of(here);
        let oracle = self.lines.of(id);
        same(
            "production",
            oracle,
            at,
            &mut reader(here.production().expect("it serves")),
        );
        let row = there.row().unwrap();
        assert!(
            there.here(&row).journal.is_consistent(),
            "the replica is not consistent"
        );
        let mut read = |v, at, out: &mut [u8]| there.volumes.read(v, at, out).map_err(io::Error::other);
        same("the replica", oracle, at, &mut read);
    }

    /// Regions that were copied since this was asked last, each with how often.
    pub fn copied(&mut self) -> Vec<(VolumeIndex, u64)> {
        let copied = std::mem::take(&mut self.copied);
        let regions = |(volume, range): (VolumeIndex, ByteRange)| {
            (range.start / REGION..range.end.div_ceil(REGION)).map(move |n| (volume, n))
        };
        copied.into_iter().flat_map(regions).collect()
    }

    /// What was copied is the set, and no more than a region beside it: `rules.md` C2 wants one copy behind a jump.
    pub fn copied_is(&mut self, set: &[u64]) {
        let copied = self.copied();
        let once: BTreeSet<_> = copied.iter().copied().collect();
        assert_eq!(copied.len(), once.len(), "copied twice: {copied:?}");
        let wanted: BTreeSet<_> = set.iter().map(|n| (V, *n)).collect();
        let missing: Vec<_> = wanted.difference(&once).collect();
        assert!(missing.is_empty(), "{missing:?} of the set was not copied");
        let more: Vec<_> = once.difference(&wanted).filter(|r| **r != (V, 0)).collect();
        assert!(
            more.is_empty(),
            "{more:?} was copied and is not in the set {set:?}"
        );
    }
}
