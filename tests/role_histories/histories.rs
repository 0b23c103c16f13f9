//! Random histories: anything in any order, crashes at any durable step, and in the end the way forward.

use super::{
    operator::{Command, FORCE, How},
    world::{Counts, Side, Step, Stream, World},
};
use model::{Target, WriteSeq, target::TargetKind};
use rand::{Rng, RngCore};
use testkit::{proc::root_for, seeds::SEED_VARIABLE, with_seeds};

/// One of these, each as often as it says.
fn weighted<T: Clone>(of: &[(u32, T)], rng: &mut dyn RngCore) -> T {
    let mut n = rng.random_range(0..of.iter().map(|(weight, _)| weight).sum());
    for (weight, one) in of {
        if n < *weight {
            return one.clone();
        }
        n -= weight;
    }
    unreachable!("the weights are summed")
}

/// What an operator may type, in any order.
fn command(world: &World, side: Side, rng: &mut dyn RngCore) -> Command {
    let how = |force, inconsistent| How { force, inconsistent };
    let point = point(world, side, rng);
    weighted(
        &[
            (6, Command::Failover(how(false, false))),
            (4, Command::Failover(how(true, false))),
            (1, Command::Failover(how(true, true))),
            (8, Command::Resync(how(false, false))),
            (1, Command::Resync(how(true, false))),
            (8, Command::Failback),
            (5, Command::Start(how(false, false))),
            (1, Command::Start(how(true, false))),
            (4, Command::Stop(true)),
            (2, Command::Stop(false)),
            (4, Command::Restore(point)),
            (2, Command::Undo),
            (1, Command::CopyAll),
        ],
        rng,
    )
}

/// Draws a step.
fn draw(world: &World, rng: &mut dyn RngCore) -> Step {
    let side = Side::ALL[rng.random_range(0..2)];
    let stream = [
        Stream::Copy,
        Stream::Ship,
        Stream::HearShip,
        Stream::HearFollow,
        Stream::Keep,
    ][rng.random_range(0..5)];
    let command = Step::Command(side, command(world, side, rng));
    weighted(
        &[
            (300, Step::Work(side)),
            (60, Step::Sync(side)),
            (50, Step::WriteBack(side)),
            (20, Step::Checkpoint(side)),
            (20, Step::Ingest(side)),
            (20, Step::Forget(side)),
            (12, Step::Overflow(side)),
            (20, Step::Seal(side)),
            (10, Step::Grow(side)),
            (150, Step::Link(side, stream)),
            (120, Step::Round(side)),
            (60, Step::Apply(side)),
            (25, Step::View(side)),
            (40, Step::Settle),
            (12, Step::Cut),
            (30, Step::Mend),
            (20, Step::Late(side)),
            (4, Step::Full(side)),
            (10, Step::Room(side)),
            (8, Step::Clock(side)),
            (6, Step::Crash(side)),
            (70, command),
        ],
        rng,
    )
}

/// A stretch of history that leads somewhere, as a list of steps.
fn episode(world: &World, rng: &mut dyn RngCore) -> Vec<Step> {
    let serves = |side: Side| {
        let up = world.hosts[side.index()].up.as_ref();
        up.is_some_and(|up| up.serving().is_ok_and(|serves| serves.is_some()))
    };
    let acting = if serves(Side::B) { Side::B } else { Side::A };
    let other = acting.other();
    let how = How {
        force: rng.random_bool(0.5),
        inconsistent: rng.random_bool(0.1),
    };
    let mut steps = Vec::new();
    let work = |steps: &mut Vec<Step>, rounds: bool, rng: &mut dyn RngCore| {
        if rng.random_bool(0.3) {
            steps.push(Step::Grow(acting));
        }
        for _ in 0..rng.random_range(1..10) {
            steps.push(Step::Work(acting));
            if rounds && rng.random_bool(0.7) {
                steps.push(Step::Round(acting));
            }
        }
    };
    match rng.random_range(0..13) {
        0 => work(&mut steps, true, rng),
        // The host or the link is gone, or neither.
        1 => {
            work(&mut steps, true, rng);
            if rng.random_bool(0.5) {
                steps.push(Step::Cut);
                work(&mut steps, false, rng);
            }
            steps.push(Step::Command(other, Command::Failover(how)));
        }
        2 => {
            work(&mut steps, true, rng);
            steps.push(Step::Command(acting, Command::Stop(true)));
            steps.push(Step::Command(other, Command::Failover(How::default())));
        }
        // From a restored point, with frames that are held and not applied.
        3 => {
            work(&mut steps, true, rng);
            steps.push(Step::Command(other, Command::Restore(point(world, other, rng))));
            work(&mut steps, true, rng);
            steps.push(Step::View(other));
            steps.push(Step::Command(other, Command::Failover(how)));
        }
        4 => {
            steps.push(Step::Mend);
            steps.push(Step::Settle);
            steps.push(Step::Round(acting));
            steps.push(Step::Command(other, Command::Resync(How::default())));
            steps.push(Step::Command(acting, Command::Resync(How::default())));
            work(&mut steps, true, rng);
        }
        5 => {
            steps.push(Step::Mend);
            steps.extend((0..8).map(|_| Step::Round(acting)));
            steps.push(Step::Command(acting, Command::Stop(true)));
            let order = if rng.random_bool(0.5) {
                Side::ALL
            } else {
                [Side::B, Side::A]
            };
            steps.extend(order.map(|side| Step::Command(side, Command::Failback)));
            steps.push(Step::Command(Side::B, Command::Failback));
        }
        6 => {
            steps.push(Step::Cut);
            work(&mut steps, false, rng);
            steps.extend([Step::Sync(acting), Step::Seal(acting), Step::WriteBack(acting)]);
            steps.extend([Step::Checkpoint(acting), Step::Overflow(acting), Step::Mend]);
            work(&mut steps, true, rng);
        }
        7 => {
            steps.extend(Side::ALL.map(Step::Forget));
            steps.extend(Side::ALL.map(Step::View));
        }
        // Production is gone, or the network, and what was on its way arrives.
        8 => {
            work(&mut steps, true, rng);
            work(&mut steps, false, rng);
            steps.extend([Step::Sync(acting), Step::Link(acting, Stream::Ship)]);
            steps.push([Step::Cut, Step::Crash(acting)][rng.random_range(0..2)].clone());
            steps.extend([
                Step::Late(acting),
                Step::Apply(other),
                Step::Late(acting),
                Step::Mend,
            ]);
        }
        // A full disk, of a production alone or with its peer, or of the replica.
        9 => {
            let side = [acting, acting, other][rng.random_range(0..3)];
            steps.push(Step::Full(side));
            let alone = side == acting && rng.random_bool(0.6);
            if alone {
                steps.push(Step::Cut);
            }
            for _ in 0..rng.random_range(1..6) {
                work(&mut steps, !alone, rng);
                steps.extend([Step::Seal(acting), Step::Apply(other)]);
            }
            steps.extend([Step::Room(side), Step::Mend]);
        }
        10 => {
            let side = if rng.random_bool(0.8) { acting } else { other };
            for _ in 0..rng.random_range(1..4) {
                steps.push(Step::Clock(side));
                work(&mut steps, true, rng);
                steps.extend([Step::View(other), Step::Round(acting)]);
            }
        }
        // A line is left in the middle of a long container. The one that follows it is short, and its numbers come twice here.
        11 => {
            steps.push(Step::Mend);
            steps.extend((0..6).map(|_| Step::Round(acting)));
            steps.extend((0..rng.random_range(2..8)).flat_map(|_| [Step::Work(acting), Step::Round(acting)]));
            steps.push(Step::Cut);
            steps.extend((0..rng.random_range(10..60)).map(|_| Step::Work(acting)));
            steps.push(Step::Command(other, Command::Failover(FORCE)));
            steps.push(Step::Mend);
            let resync = |side| Step::Command(side, Command::Resync(How::default()));
            steps.extend([resync(acting), resync(other), Step::Settle]);
            steps.extend((0..rng.random_range(0..3)).flat_map(|_| [Step::Work(other), Step::Round(other)]));
            steps.extend([Step::Settle, Step::Command(other, Command::Stop(true))]);
            steps.push(Step::Command(acting, Command::Failover(How::default())));
            steps.extend([resync(other), resync(acting), Step::Settle]);
            steps.extend((0..3).flat_map(|_| [Step::Work(acting), Step::Round(acting)]));
        }
        _ => steps.extend((0..6).map(|_| Step::Round(acting))),
    }
    steps
}

/// A point that a host may have: of any of its consistent stretches.
fn point(world: &World, side: Side, rng: &mut dyn RngCore) -> Target {
    let up = world.hosts[side.index()].up.as_ref();
    let spans = up.map_or(Vec::new(), |up| up.journal.consistent());
    let head = up.map_or(0, |up| up.journal.cursors().durable.0);
    let drawn = spans.get(rng.random_range(0..spans.len().max(1)));
    let Some(span) = drawn else {
        return Target::from(TargetKind::Latest);
    };
    let until = span.until.map_or(head, |until| until.seq.0);
    let seq = WriteSeq(rng.random_range(span.from.seq.0..=until.max(span.from.seq.0)));
    Target::from(TargetKind::Seq(seq))
}

fn history(mut world: World, rng: &mut dyn RngCore, total: &mut Counts) {
    world.is_quiet = std::env::var_os(SEED_VARIABLE).is_none();
    if rng.random_bool(0.9) {
        for _ in 0..rng.random_range(1..12) {
            world.step(&Step::Work(Side::A), rng);
        }
        world.calm(rng);
    }
    let wild = [0.05, 0.3, 0.9][rng.random_range(0..3)];
    for _ in 0..rng.random_range(1..5) {
        for host in &world.hosts {
            if rng.random_bool(0.4) {
                host.power.freeze_at(rng.random_range(1..50));
            }
        }
        for step in episode(&world, rng) {
            while rng.random_bool(wild) && world.counts.steps < 600 {
                let step = draw(&world, rng);
                world.step(&step, rng);
            }
            world.step(&step, rng);
        }
        if rng.random_bool(0.15) {
            world.calm(rng);
        }
    }
    world.recover(rng);
    world.step(&Step::View(Side::B), rng);
    *total += world.counts;
}

#[test]
fn random_histories_of_roles() {
    let mut total = Counts::default();
    let tried = with_seeds("roles: random", 300, |rng| {
        history(World::new(rng), rng, &mut total);
    });
    println!("{tried} random histories: {total:?}");
}

/// The same one level down: real files and the real store, cut at the syncs that RocksDB makes.
#[test]
fn random_histories_of_roles_below_the_store() {
    if !root_for("histories on file systems that lose what was not synced") {
        return;
    }
    let mut total = Counts::default();
    let tried = with_seeds("roles, below: random", 6, |rng| {
        history(World::new(rng).below(), rng, &mut total);
    });
    println!("{tried} random histories below the store: {total:?}");
}
