//! Histories that are written down: what an operator types, what an application writes, and what comes of it.

use super::{
    host::REGION,
    lines::same,
    operator::{Command, FORCE, How, Outcome},
    world::{Side, Step, World, reader},
};
use journal::{Space, Wanted};
use model::{ByteRange, Target, VolumeIndex, WriteSeq, target::TargetKind};
use rand::RngCore;
use std::{collections::BTreeSet, io};
use testkit::workload::Operation;

pub const V: VolumeIndex = VolumeIndex(0);

/// What an operator types.
pub const FAILOVER: Command = Command::Failover(How {
    force: false,
    inconsistent: false,
});
pub const RESYNC: Command = Command::Resync(How {
    force: false,
    inconsistent: false,
});

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

    /// Does steps, in which the power of a host goes at its `nth` durable step; then both are up.
    pub fn steps_with_a_cut(&mut self, side: Side, nth: u64, steps: &[Step], rng: &mut dyn RngCore) {
        self.hosts[side.index()].power.freeze_at(nth);
        self.steps(steps, rng);
        self.hosts[side.index()].power.never_freeze();
        self.boot_both().unwrap();
    }

    /// The window wanted of a host is so many bytes: what lies before it and no other claim holds is freed.
    pub fn shrink_window(&self, side: Side, bytes: u64) {
        let wanted = Wanted {
            bytes: Some(bytes),
            ..Wanted::default()
        };
        let journal = &self.up(side).journal;
        journal
            .retain(&wanted, Space::Limit(u64::MAX), Vec::new())
            .unwrap();
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

    /// From here on it is counted what crosses.
    pub fn count_what_crosses(&mut self) {
        self.copied.clear();
        self.redo.clear();
    }

    /// The regions whose records crossed are these.
    pub fn redo_is(&mut self, regions: &[u64]) {
        let redo = std::mem::take(&mut self.redo);
        let found: BTreeSet<_> = redo
            .into_iter()
            .map(|(v, range)| (v, range.start / REGION))
            .collect();
        let wanted: BTreeSet<_> = regions.iter().map(|n| (V, *n)).collect();
        assert_eq!(found, wanted, "regions that crossed as redo");
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

/// The other host is down, or cannot be reached.
pub fn unplanned(world: &mut World, rng: &mut dyn RngCore) {
    world.steps(&[Step::Cut], rng);
    world.run(Side::B, FAILOVER, rng);
}

/// The old production follows the acting one, from where it is.
pub fn resync(world: &mut World, rng: &mut dyn RngCore) {
    world.steps(&[Step::Mend], rng);
    world.calm(rng);
    world.run(Side::A, RESYNC, rng);
    world.run(Side::B, RESYNC, rng);
    world.calm(rng);
}

/// The old production insists on its own data and writes; the acting one gives its line up for that.
pub fn taken_back(world: &mut World, rng: &mut dyn RngCore) {
    world.run(Side::A, Command::Failover(FORCE), rng);
    world.put(Side::A, 7, rng);
    world.run(Side::B, RESYNC, rng);
}

/// The roles have gone over and back, with a write on each side: more generations, and both hosts have state maps.
pub fn over_and_back(world: &mut World, rng: &mut dyn RngCore) {
    world.run(Side::A, Command::Stop(true), rng);
    world.run(Side::B, FAILOVER, rng);
    world.put(Side::B, 1, rng);
    world.run(Side::A, RESYNC, rng);
    world.run(Side::B, RESYNC, rng);
    world.calm(rng);
    world.run(Side::B, Command::Stop(true), rng);
    world.run(Side::A, Command::Failback, rng);
    world.run(Side::B, Command::Failback, rng);
    world.put(Side::A, 5, rng);
    world.calm(rng);
    assert!(world.is_whole().unwrap());
}

/// The journal of a production gave way while its peer could not be reached.
pub fn overflowed(world: &mut World, rng: &mut dyn RngCore) {
    world.steps(&[Step::Cut], rng);
    for n in [2, 3, 4] {
        world.put(Side::A, n, rng);
        world.steps(&[Step::Seal(Side::A)], rng);
    }
    world.steps(
        &[
            Step::WriteBack(Side::A),
            Step::WriteBack(Side::A),
            Step::WriteBack(Side::A),
        ],
        rng,
    );
    while world.up(Side::A).write_back(u64::MAX).unwrap() {}
    world.steps(&[Step::Checkpoint(Side::A)], rng);
    // What the peer has goes first.
    for _ in 0..20 {
        if !world.up(Side::A).is_stale() {
            world.steps(&[Step::Overflow(Side::A)], rng);
        }
    }
    assert!(world.up(Side::A).is_stale());
}

/// Some copies of a resync are on the replica, and some are not.
pub fn amid_a_resync(rng: &mut dyn RngCore) -> World {
    let mut world = World::synced(rng);
    overflowed(&mut world, rng);
    world.steps(&[Step::Mend], rng);
    rounds_until_copying(&mut world, rng);
    world
}

/// The stream goes on until the replica is at no point.
pub fn rounds_until_copying(world: &mut World, rng: &mut dyn RngCore) {
    for _ in 0..200 {
        world.steps(&[Step::Round(Side::A)], rng);
        let last = world.up(Side::B).journal.consistent().pop();
        if last.is_some_and(|span| span.until.is_some()) {
            return;
        }
    }
    panic!("no resync began");
}

/// The recovery host took over and wrote much; then the old production insisted on its own data, and the other one follows it
/// now, amid a resync, on a line of lower numbers than its own had. Answers where its own line ended.
pub fn behind_lower_numbers(rng: &mut dyn RngCore) -> (World, WriteSeq) {
    let mut world = World::synced(rng);
    world.run(Side::A, Command::Stop(true), rng);
    world.run(Side::B, FAILOVER, rng);
    for n in [2, 3, 4, 2, 3, 4, 2, 3, 4] {
        world.put(Side::B, n, rng);
    }
    world.run(Side::A, Command::Failover(FORCE), rng);
    world.put(Side::A, 6, rng);
    let (_, own_end) = world.up(Side::B).end();
    world.run(Side::B, RESYNC, rng);
    world.run(Side::A, RESYNC, rng);
    rounds_until_copying(&mut world, rng);
    (world, own_end)
}
