//! The power of either host is cut, or its process killed, at every durable step of every change of role: the host is started
//! again, the same command is typed again, what a refusal says is done, and what comes of it is what had come of it otherwise.
//!
//! Each procedure is played for N = 1, 2, 3, … with the N-th sync, commit or ingest of one host failing, until it runs through.
//! `map unify` has no procedure of its own: it is the two halves of a resync, with the maps saved before.

use super::{
    host::Up,
    lab::{FAILOVER, RESYNC, amid_a_resync, seq, unplanned},
    operator::{Command, FORCE, Hint, Outcome},
    world::{Side, Step, World},
};
use Side::{A, B};
use backstay::roles::Standing;
use model::{GenId, WriteSeq};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use testkit::with_seeds;

/// How often an operator types the same command before it is called a failure.
const TRIES: u32 = 8;

/// What is there before, what is typed with the power at risk, and what must have come of it.
struct Procedure {
    before: fn(&mut dyn RngCore) -> World,
    typed: fn(&mut World, &mut dyn RngCore),
    after: fn(&World, Before),
}

/// What the hosts held when the procedure began.
#[derive(Clone, Copy)]
struct Before {
    ends: [(GenId, WriteSeq); 2],
    /// The last consistent point of the other host, amid a resync.
    until: Option<WriteSeq>,
}

impl Before {
    fn of(world: &World) -> Self {
        let last = world.up(B).journal.consistent().pop();
        Self {
            ends: Side::ALL.map(|side| world.up(side).end()),
            until: last.and_then(|span| span.until).map(|until| until.seq),
        }
    }
}

impl World {
    /// Types a command until it has done what it was typed for. Without a crash the first time is enough.
    fn insist(&mut self, side: Side, command: &Command, rng: &mut dyn RngCore) {
        for _ in 0..TRIES {
            let crashes = self.counts.crashes;
            match self.step(&Step::Command(side, command.clone()), rng) {
                Some(outcome) if outcome.is_done() || outcome == Outcome::Waits => return,
                Some(outcome) => {
                    assert!(self.counts.crashes > 0, "{command:?} on {side:?} is {outcome:?}");
                    self.calm(rng);
                    if let Outcome::Refused(hint) = outcome {
                        self.follow_hint(side, hint, rng);
                    }
                }
                None => assert!(self.counts.crashes > crashes, "{command:?} came to nothing"),
            }
        }
        panic!("{command:?} on {side:?} was typed {TRIES} times");
    }

    fn follow_hint(&mut self, side: Side, hint: Hint, rng: &mut dyn RngCore) {
        if let Some((side, command)) = self.hinted(side, hint, rng) {
            self.step(&Step::Command(side, command), rng);
            self.calm(rng);
        }
    }

    /// Does a step, and again if a host went down in it.
    fn again(&mut self, step: &Step, rng: &mut dyn RngCore) {
        let crashes = self.counts.crashes;
        self.step(step, rng);
        if self.counts.crashes > crashes {
            self.step(step, rng);
        }
    }

    fn stands(&self, side: Side) -> Standing {
        self.up(side).standing().unwrap()
    }
}

/// Plays a procedure with every durable step of one host failing; answers how many there are.
fn every_step(procedure: &Procedure, side: Side, seed: u64) -> u64 {
    for n in 1.. {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = (procedure.before)(&mut rng);
        world.boot_both().unwrap();
        world.counts.crashes = 0;
        let before = Before::of(&world);
        world.trace.push(format!("{side:?} fails at durable step {n}"));
        world.hosts[side.index()].power.freeze_at(n);
        (procedure.typed)(&mut world, &mut rng);
        let struck = world.counts.crashes > 0;
        for host in &world.hosts {
            host.power.never_freeze();
        }
        world.calm(&mut rng);
        (procedure.after)(&world, before);
        world.recover(&mut rng);
        if !struck {
            return n - 1;
        }
    }
    unreachable!("a procedure has an end")
}

/// Both hosts. The seed says where writes are torn, and whether it is a cut or a kill.
fn every_step_of_either_host(name: &str, procedure: &Procedure) {
    let mut cuts = [0; 2];
    with_seeds(name, 1, |rng| {
        let seed = rng.next_u64();
        for side in Side::ALL {
            cuts[side.index()] += every_step(procedure, side, seed);
        }
    });
    println!("{name}: {} cuts of production, {} of recovery", cuts[0], cuts[1]);
    assert!(cuts[1] > 0 || cuts[0] > 0, "nothing was durable in it");
}

/// It serves, or would if it had heard its peer since it was booted.
fn serves(up: &Up) -> bool {
    up.production().is_some() || up.held_back
}

fn has_taken_over(up: &Up, at: (GenId, WriteSeq)) {
    assert_eq!(up.standing().unwrap(), Standing::FailedOver);
    assert!(serves(up), "it does not serve");
    assert_eq!(up.end(), at, "taken over elsewhere");
}

/// Production writes; some of it is received and not applied, and, if it is wanted, some was never shipped.
fn at_work(rng: &mut dyn RngCore) -> World {
    let mut world = World::synced(rng);
    for n in [2, 3] {
        world.put(A, n, rng);
    }
    world.stream_all(A, rng);
    world
}

#[test]
fn cuts_in_a_planned_failover() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = at_work(rng);
            world.put(A, 4, rng);
            world
        },
        typed: |world, rng| {
            world.insist(A, &Command::Stop(true), rng);
            // A drain to a peer that is gone is refused; it is typed again when that is back.
            if world.boot_both().is_ok() && world.up(B).end() != world.up(A).end() {
                world.insist(A, &Command::Start(FORCE), rng);
                world.insist(A, &Command::Stop(true), rng);
            }
            world.insist(B, &FAILOVER, rng);
        },
        after: |world, before| has_taken_over(world.up(B), before.ends[0]),
    };
    every_step_of_either_host("planned failover", &procedure);
}

/// And then the network comes back: the old production is fenced.
#[test]
fn cuts_in_an_unplanned_failover() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = at_work(rng);
            world.steps(&[Step::Cut], rng);
            world.put(A, 4, rng);
            world
        },
        typed: |world, rng| {
            world.insist(B, &FAILOVER, rng);
            for step in [
                Step::Mend,
                Step::Settle,
                Step::Round(A),
                Step::Round(A),
                Step::Settle,
            ] {
                world.again(&step, rng);
            }
        },
        after: |world, before| {
            has_taken_over(world.up(B), before.ends[1]);
            assert_eq!(world.stands(A), Standing::Fenced);
        },
    };
    every_step_of_either_host("unplanned failover", &procedure);
}

/// The old production runs, and gives its role up first.
#[test]
fn cuts_in_a_forced_failover() {
    let procedure = Procedure {
        before: at_work,
        typed: |world, rng| world.insist(B, &Command::Failover(FORCE), rng),
        after: |world, before| {
            has_taken_over(world.up(B), before.ends[0]);
            assert_eq!(world.stands(A), Standing::Fenced);
        },
    };
    every_step_of_either_host("forced failover", &procedure);
}

/// The replica was rolled back, and has received more since.
#[test]
fn cuts_in_a_failover_from_a_restored_point() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = World::synced(rng);
            let (_, point) = world.up(B).end();
            world.put(A, 3, rng);
            world.calm(rng);
            world.run(B, Command::Restore(seq(point)), rng);
            world.put(A, 2, rng);
            world.stream_all(A, rng);
            world.steps(&[Step::Cut], rng);
            world
        },
        typed: |world, rng| world.insist(B, &FAILOVER, rng),
        after: |world, before| {
            let up = world.up(B);
            assert_eq!(up.standing().unwrap(), Standing::FailedOver);
            assert!(serves(up) && up.end().1 < before.ends[1].1);
            assert!(up.is_stale(), "what was rolled back and held is stale (L2)");
        },
    };
    every_step_of_either_host("failover from a restored point", &procedure);
}

/// Copies are arriving: the last consistent point is gone back to first (L7).
#[test]
fn cuts_in_a_failover_amid_a_resync() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = amid_a_resync(rng);
            world.steps(&[Step::Cut], rng);
            world
        },
        typed: |world, rng| world.insist(B, &Command::Failover(FORCE), rng),
        after: |world, before| {
            let up = world.up(B);
            assert_eq!(up.standing().unwrap(), Standing::FailedOver);
            assert_eq!(Some(up.end().1), before.until);
        },
    };
    every_step_of_either_host("failover amid a resync", &procedure);
}

/// Both halves, and the copying: the two hosts are apart in what was rolled back, held, written there and written here.
#[test]
fn cuts_in_a_resync() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = World::synced(rng);
            let (_, point) = world.up(B).end();
            world.put(A, 3, rng);
            world.calm(rng);
            world.run(B, Command::Restore(seq(point)), rng);
            world.put(A, 2, rng);
            world.stream_all(A, rng);
            unplanned(&mut world, rng);
            world.put(A, 4, rng);
            world.put(B, 7, rng);
            world
        },
        typed: |world, rng| {
            for step in [
                Step::Mend,
                Step::Settle,
                Step::Round(A),
                Step::Round(A),
                Step::Settle,
            ] {
                world.again(&step, rng);
            }
            world.insist(A, &RESYNC, rng);
            world.insist(B, &RESYNC, rng);
            world.calm(rng);
        },
        after: |world, _| world.look_at_pair(B),
    };
    every_step_of_either_host("resync", &procedure);
}

/// The other host is acting production, and everything of it is here.
fn over_there(rng: &mut dyn RngCore) -> World {
    let mut world = World::synced(rng);
    world.run(A, Command::Stop(true), rng);
    world.run(B, FAILOVER, rng);
    world.put(B, 2, rng);
    world.run(A, RESYNC, rng);
    world.run(B, RESYNC, rng);
    world.calm(rng);
    world.put(B, 3, rng);
    world
}

fn is_home(world: &World, before: Before) {
    assert!(world.is_whole().unwrap(), "not home");
    assert_eq!(world.up(A).end(), before.ends[1], "something was lost on the way");
}

#[test]
fn cuts_in_a_failback_typed_on_production_first() {
    let procedure = Procedure {
        before: over_there,
        typed: |world, rng| {
            world.insist(B, &Command::Stop(true), rng);
            world.insist(A, &Command::Failback, rng);
            world.insist(B, &Command::Failback, rng);
            world.calm(rng);
        },
        after: is_home,
    };
    every_step_of_either_host("failback, production first", &procedure);
}

#[test]
fn cuts_in_a_failback_typed_on_recovery_first() {
    let procedure = Procedure {
        before: over_there,
        typed: |world, rng| {
            world.insist(B, &Command::Stop(true), rng);
            world.insist(B, &Command::Failback, rng);
            world.insist(A, &Command::Failback, rng);
            world.calm(rng);
        },
        after: is_home,
    };
    every_step_of_either_host("failback, recovery first", &procedure);
}

#[test]
fn cuts_in_an_overflow() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = World::synced(rng);
            world.steps(&[Step::Cut], rng);
            for n in [2, 3, 4] {
                world.put(A, n, rng);
                world.steps(&[Step::Seal(A)], rng);
            }
            world
        },
        typed: |world, rng| {
            let steps = [
                Step::WriteBack(A),
                Step::WriteBack(A),
                Step::WriteBack(A),
                Step::Checkpoint(A),
            ];
            let give_way = [
                Step::Overflow(A),
                Step::Overflow(A),
                Step::Overflow(A),
                Step::Mend,
            ];
            steps
                .iter()
                .chain(&give_way)
                .for_each(|step| world.again(step, rng));
            world.calm(rng);
        },
        after: |world, before| {
            assert!(world.is_whole().unwrap());
            assert!(world.up(A).end() >= before.ends[0], "something was lost");
        },
    };
    every_step_of_either_host("overflow", &procedure);
}

/// The acting production's journal gives way before the old one is back: it builds undo, and earlier points go.
#[test]
fn cuts_in_an_overflow_on_the_acting_production() {
    let procedure = Procedure {
        before: |rng| {
            let mut world = World::synced(rng);
            unplanned(&mut world, rng);
            for n in [2, 3, 4] {
                world.put(B, n, rng);
                world.steps(&[Step::Seal(B)], rng);
            }
            world
        },
        typed: |world, rng| {
            let steps = [Step::WriteBack(B), Step::WriteBack(B), Step::WriteBack(B)];
            let give_way = [
                Step::Overflow(B),
                Step::Overflow(B),
                Step::Overflow(B),
                Step::Mend,
            ];
            steps
                .iter()
                .chain(&give_way)
                .for_each(|step| world.again(step, rng));
            world.calm(rng);
            world.insist(A, &RESYNC, rng);
            world.insist(B, &RESYNC, rng);
            world.calm(rng);
        },
        after: |world, before| {
            world.look_at_pair(B);
            assert!(world.up(B).end() >= before.ends[1], "something was lost");
        },
    };
    every_step_of_either_host("overflow on the acting production", &procedure);
}
