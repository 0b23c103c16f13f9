//! The set of a resync, part by part (rule L1, `docs/ROLES.md`): each part alone and all of them together. What must be copied
//! is written down, and that is what is copied, each region once; what has a journal crosses as redo and is not copied too.
//!
//! | part | regions that |
//! | --- | --- |
//! | since | the new production wrote since the failover |
//! | unshipped | the old production wrote and never shipped |
//! | rolled back | a failover restore took back |
//! | held | were received while rolled back, and never applied |
//! | lost | the old production lost in a power cut of disks that lied, and the other host has |

use super::{
    host::REGION,
    lab::{FAILOVER, over_and_back, resync, seq, unplanned},
    operator::{Command, FORCE},
    world::{Side, Step, World},
};
use Side::{A, B};
use rand::{Rng, RngCore, seq::SliceRandom};
use testkit::{sim::Image, with_seeds};

/// Regions of each part: no two the same, and none the first, which a jump has copied at any rate (rule C2).
struct Parts {
    since: Vec<u64>,
    unshipped: Vec<u64>,
    rolled_back: Vec<u64>,
    held: Vec<u64>,
    lost: Vec<u64>,
}

impl Parts {
    fn draw(rng: &mut dyn RngCore) -> Self {
        let mut regions: Vec<u64> = (1..=10).collect();
        regions.shuffle(rng);
        let mut two = || regions.split_off(regions.len() - 2);
        Self {
            since: two(),
            unshipped: two(),
            rolled_back: two(),
            held: two(),
            lost: two(),
        }
    }
}

impl World {
    fn put_all(&mut self, side: Side, regions: &[u64], rng: &mut dyn RngCore) {
        for n in regions {
            self.put(side, *n, rng);
        }
    }

    /// Written on production, and received and not applied by the other host.
    fn put_held(&mut self, regions: &[u64], rng: &mut dyn RngCore) {
        let applied = self.up(B).journal.cursors().applied;
        self.put_all(A, regions, rng);
        self.stream_all(A, rng);
        assert_eq!(self.up(B).end(), self.up(A).end(), "not all was received");
        assert_eq!(
            self.up(B).journal.cursors().applied,
            applied,
            "a replica that is rolled back applies"
        );
    }

    /// The replica goes back to a point; what it has applied since is undone.
    fn roll_back(&mut self, point: model::WriteSeq, rng: &mut dyn RngCore) {
        self.run(B, Command::Restore(seq(point)), rng);
    }

    /// A resync, in which exactly this is copied and crosses as redo; then home.
    fn resync_copies(&mut self, copied: &[&[u64]], redo: &[u64], rng: &mut dyn RngCore) {
        self.count_what_crosses();
        resync(self, rng);
        self.look_at_pair(B);
        self.copied_is(&copied.concat());
        self.redo_is(redo);
        self.recover(rng);
    }
}

#[test]
fn l1_written_since_the_failover_crosses_as_redo() {
    with_seeds("since", 10, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        if rng.random() {
            world.run(A, Command::Stop(true), rng);
        }
        unplanned(&mut world, rng);
        world.put_all(B, &parts.since, rng);
        world.resync_copies(&[], &parts.since, rng);
    });
}

#[test]
fn l1_written_and_never_shipped_is_copied() {
    with_seeds("unshipped", 20, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        world.steps(&[Step::Cut], rng);
        world.put_all(A, &parts.unshipped, rng);
        if rng.random() {
            // The journal has given way meanwhile: the map knows.
            world.steps(&[Step::Seal(A), Step::WriteBack(A)], rng);
            while world.up(A).write_back(u64::MAX).unwrap() {}
            world.steps(&[Step::Checkpoint(A), Step::Overflow(A), Step::Overflow(A)], rng);
        }
        if rng.random() {
            world.steps(&[Step::Crash(A)], rng);
        }
        world.run(B, FAILOVER, rng);
        world.resync_copies(&[&parts.unshipped], &[], rng);
    });
}

#[test]
fn l1_rolled_back_by_a_failover_restore_is_copied() {
    with_seeds("rolled back", 20, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        let (_, point) = world.up(A).end();
        let image = world.hosts[A.index()].power.image();
        world.put_all(A, &parts.rolled_back, rng);
        world.calm(rng);
        world.roll_back(point, rng);
        unplanned(&mut world, rng);
        if rng.random() {
            // Then nobody but the map of the host that rolled back knows.
            world.put_back(A, &image);
        }
        world.resync_copies(&[&parts.rolled_back], &[], rng);
    });
}

#[test]
fn l1_held_and_never_applied_is_copied() {
    with_seeds("held", 20, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        let (_, point) = world.up(A).end();
        let image = world.hosts[A.index()].power.image();
        // Nothing is rolled back by this.
        world.roll_back(point, rng);
        world.put_held(&parts.held, rng);
        unplanned(&mut world, rng);
        assert_eq!(world.up(B).end().1, point);
        if rng.random() {
            world.put_back(A, &image);
        }
        world.resync_copies(&[&parts.held], &[], rng);
    });
}

/// The old production's disks had lied: it comes back as what it was before, and cannot know that it ever held more.
#[test]
fn l1_lost_by_the_old_production_is_copied() {
    with_seeds("lost", 20, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        let image = world.hosts[A.index()].power.image();
        world.put_all(A, &parts.lost, rng);
        match rng.random() {
            true => world.stream_all(A, rng),
            false => world.calm(rng),
        }
        let (_, end) = world.up(A).end();
        unplanned(&mut world, rng);
        assert_eq!(world.up(B).end().1, end, "what was received is kept");
        world.put_back(A, &image);
        world.boot_both().unwrap();
        assert!(world.up(A).end().1 < end, "nothing was lost");
        world.resync_copies(&[&parts.lost], &[], rng);
    });
}

/// All of them: rolled back, held, lost by the old production, which was then forced to serve alone and wrote more.
#[test]
fn l1_all_parts_of_the_set_at_once() {
    with_seeds("all parts", 40, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        let (_, point) = world.up(A).end();
        world.put_all(A, &parts.rolled_back, rng);
        world.calm(rng);
        world.roll_back(point, rng);
        world.put_held(&parts.held, rng);
        let image = world.hosts[A.index()].power.image();
        world.put_held(&parts.lost, rng);
        unplanned(&mut world, rng);
        world.put_all(B, &parts.since, rng);
        world.put_back(A, &image);
        world.run(A, Command::Start(FORCE), rng);
        world.put_all(A, &parts.unshipped, rng);
        let copied = [&parts.rolled_back, &parts.held, &parts.lost, &parts.unshipped];
        world.resync_copies(&copied.map(Vec::as_slice), &parts.since, rng);
    });
}

/// A machine lost records that its peer has, was made to serve and took their numbers again: equal numbers are then not equal
/// records. Nobody knows since when: everything is copied. As many, fewer or more than were lost: whoever holds the other's end
/// is the one that sees it.
fn taken_twice(world: &mut World, parts: &Parts, rng: &mut dyn RngCore) {
    let again = [&parts.unshipped[..], &parts.held, &parts.rolled_back].concat();
    for n in &again[..rng.random_range(1..=again.len())] {
        world.put(A, *n, rng);
        if rng.random() {
            world.steps(&[Step::Seal(A)], rng);
        }
    }
}

fn lost_and_shipped(world: &mut World, parts: &Parts, rng: &mut dyn RngCore) -> Image {
    if rng.random() {
        over_and_back(world, rng);
    }
    let image = world.hosts[A.index()].power.image();
    world.put_all(A, &parts.lost, rng);
    world.stream_all(A, rng);
    image
}

fn all_was_copied(world: &mut World) {
    let all: u64 = world.sizes.iter().map(|size| size.div_ceil(REGION)).sum();
    assert_eq!(world.copied().len() as u64, all);
}

#[test]
fn l1_numbers_that_were_taken_twice_are_nothing_in_common() {
    with_seeds("taken twice", 20, |rng| {
        let (mut world, parts) = (World::synced(rng), Parts::draw(rng));
        let image = lost_and_shipped(&mut world, &parts, rng);
        unplanned(&mut world, rng);
        if rng.random() {
            world.put_all(B, &parts.since, rng);
        }
        world.put_back(A, &image);
        world.run(A, Command::Start(FORCE), rng);
        taken_twice(&mut world, &parts, rng);
        world.count_what_crosses();
        resync(&mut world, rng);
        world.look_at_pair(B);
        all_was_copied(&mut world);
        world.recover(rng);
    });
}
