//! Two hosts of any role, the links between them, and what must hold of them at every step.

mod faults;
mod looks;
mod work;

pub use work::reader;

use super::{
    host::{Host, ShipEnd, Up},
    hosts::Fallible,
    lines::Lines,
    link::Link,
    operator::{Command, Outcome},
};
use model::{ByteRange, GenId, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, RngCore};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use testkit::{
    Oracle,
    sim::{Image, Tear},
    workload::{Shape, Workload, noise},
};

/// Blocks of a restore's container: few, so that a restore has many.
pub const CONTAINER_BLOCKS: usize = 3;

/// Small volumes, not of whole blocks but for one that can grow.
pub const SIZES: [u64; 3] = [44 * 1024 + 777, 9_001, 8 << 10];
/// That one.
pub const GROWING: VolumeIndex = VolumeIndex(2);

/// One of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The configured production.
    A,
    /// The configured recovery.
    B,
}

impl Side {
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    pub const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A step of a link, named by its production's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Copy,
    Ship,
    /// Production hears.
    HearShip,
    /// The other one hears.
    HearFollow,
    /// The other one makes durable what it received, and says so.
    Keep,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An application works on a host, if it serves.
    Work(Side),
    Sync(Side),
    WriteBack(Side),
    Checkpoint(Side),
    /// Sealed containers go into the store.
    Ingest(Side),
    /// Whatever may go, goes: what the peer has, and what is too old.
    Forget(Side),
    /// The journal is at its limit.
    Overflow(Side),
    Link(Side, Stream),
    /// Everything that happens by itself between a production and its follower, once.
    Round(Side),
    /// The open container of a production is sealed.
    Seal(Side),
    /// A volume grows on both hosts, if they can talk.
    Grow(Side),
    Apply(Side),
    View(Side),
    /// What daemons do by themselves: ask after a boot, follow again.
    Settle,
    /// The network goes, or comes back.
    Cut,
    Mend,
    /// What a production had sent on a connection that is gone arrives still, as long as its next one has not greeted.
    Late(Side),
    /// The disk of a host has no room for what its journal stores, or has again.
    Full(Side),
    Room(Side),
    /// A host's clock jumps.
    Clock(Side),
    /// The power of a host is cut, or its process killed.
    Crash(Side),
    Command(Side, Command),
}

/// What a host has promised to applications.
#[derive(Default)]
pub struct Promised {
    answered: Arc<AtomicU64>,
    flushed: Arc<AtomicU64>,
    /// Its power was cut since it was up last: only what was flushed is promised.
    was_cut: bool,
}

impl Promised {
    fn restart(&mut self, at: WriteSeq) {
        self.answered.store(at.0, Ordering::Relaxed);
        self.flushed.store(at.0, Ordering::Relaxed);
        self.was_cut = false;
    }
}

/// What a history has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub histories: u64,
    pub steps: u64,
    pub crashes: u32,
    pub views: u32,
    pub old_views: u32,
    pub failovers: u32,
    pub failbacks: u32,
    pub resyncs: u32,
    pub follows: u32,
    pub restores: u32,
    pub refusals: u32,
    pub fences: u32,
    pub conflicts: u32,
    pub overflows: u32,
    pub copies: u32,
    pub jumps: u32,
    /// Messages of connections that were gone.
    pub late: u32,
    /// Steps that failed, and changed nothing, for want of room.
    pub full: u32,
    /// Containers that gave way for want of room.
    pub gave_way: u32,
    /// Jumps of a clock, and instants that were looked up.
    pub clocks: u32,
    pub instants: u32,
    pub grown: u32,
    pub way_forward: u32,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, o: Self) {
        self.histories += o.histories;
        self.steps += o.steps;
        self.crashes += o.crashes;
        self.views += o.views;
        self.old_views += o.old_views;
        self.failovers += o.failovers;
        self.failbacks += o.failbacks;
        self.resyncs += o.resyncs;
        self.follows += o.follows;
        self.restores += o.restores;
        self.refusals += o.refusals;
        self.fences += o.fences;
        self.conflicts += o.conflicts;
        self.overflows += o.overflows;
        self.copies += o.copies;
        self.jumps += o.jumps;
        self.late += o.late;
        self.full += o.full;
        self.gave_way += o.gave_way;
        self.clocks += o.clocks;
        self.instants += o.instants;
        self.grown += o.grown;
        self.way_forward = self.way_forward.max(o.way_forward);
    }
}

pub struct World {
    pub sizes: Vec<u64>,
    pub hosts: [Host; 2],
    /// The network between them.
    pub net: bool,
    pub links: [Option<Link>; 2],
    /// Connections that are gone, and what is still on its way on them.
    older: [Option<Link>; 2],
    /// Hosts whose disk is full.
    full: [bool; 2],
    pub lines: Lines,
    workload: Workload,
    promised: [Promised; 2],
    /// What a host has acknowledged as received: its journal never goes back behind this.
    kept: [(GenId, WriteSeq); 2],
    /// The volumes of a host are about to be taken as they are.
    as_they_are: [bool; 2],
    /// They were, and it has added nothing since.
    mixed: [bool; 2],
    pub counts: Counts,
    /// Regions that were taken to be copied.
    pub copied: Vec<(VolumeIndex, ByteRange)>,
    /// Ranges that were sent as redo.
    pub redo: Vec<(VolumeIndex, ByteRange)>,
    /// It was put back to an older state of itself: nothing that it had promised counts.
    was_put_back: [bool; 2],
    /// What was done, for whoever looks for the cause of a failure.
    pub trace: Vec<String>,
    /// No trace is kept: it costs more than the steps, and whoever plays the seed again has it.
    pub is_quiet: bool,
    told: String,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = self.trace.len().saturating_sub(400);
            self.trace[last..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// What applications do.
pub fn shape() -> Shape {
    Shape {
        len_max: 6 << 10,
        zero_len_max: 12 << 10,
        ..Shape::default()
    }
}

impl World {
    /// Two machines; the configured production's volumes hold something already.
    pub fn new(rng: &mut dyn RngCore) -> Self {
        let sizes = SIZES.to_vec();
        let hosts = [Host::new("a", true, &sizes), Host::new("b", false, &sizes)];
        for host in &hosts {
            host.power
                .set_tear([Tear::Sector, Tear::Byte, Tear::Bit][rng.random_range(0..3)]);
        }
        let mut before = Oracle::new(&sizes);
        for (volume, size) in super::hosts::indexes(&sizes) {
            let at = rng.random_range(0..size / 2);
            let data = noise(rng.random_range(1..size / 2), rng);
            before.write(WriteSeq(0), Timestamp(0), volume, at, &data);
            super::hosts::fill(&hosts[0].power, &sizes, |v| {
                (v == volume).then(|| (at, data.clone()))
            });
        }
        super::hosts::fill(&hosts[1].power, &sizes, |_| None);
        Self {
            workload: Workload::new(&sizes, shape()),
            sizes,
            hosts,
            net: true,
            links: [None, None],
            older: [None, None],
            full: [false; 2],
            lines: Lines::new(before),
            promised: Default::default(),
            kept: Default::default(),
            as_they_are: [false; 2],
            mixed: [false; 2],
            counts: Counts {
                histories: 1,
                ..Counts::default()
            },
            copied: Vec::new(),
            redo: Vec::new(),
            was_put_back: [false; 2],
            trace: Vec::new(),
            is_quiet: false,
            told: String::new(),
        }
    }

    /// The same with both journals in real files and the real store, on file systems that lose what was not synced.
    #[must_use]
    pub fn below(self) -> Self {
        for host in &self.hosts {
            super::hosts::below(&host.power);
        }
        self
    }

    /// Does a step; a host whose power went away in it is booted again at the next one, and looked at.
    pub fn step(&mut self, step: &Step, rng: &mut dyn RngCore) -> Option<Outcome> {
        self.counts.steps += 1;
        self.find_room(step);
        let done = self.boot_both().and_then(|()| self.act(step, rng));
        self.note(step, &done);
        let outcome = match done {
            Ok(outcome) => outcome,
            Err(e) => {
                let off = Side::ALL.into_iter().any(|side| self.is_off(side));
                assert!(
                    off || self.is_excused_by_room(&e),
                    "{step:?} failed with the power on: {e:#}"
                );
                None
            }
        };
        self.mourn(rng);
        Side::ALL.into_iter().for_each(|side| self.observe(side));
        outcome
    }

    fn note(&mut self, step: &Step, done: &Fallible<Option<Outcome>>) {
        if self.is_quiet {
            return;
        }
        let mut text = format!("{step:?}");
        match done {
            Ok(Some(outcome)) => text += &format!(" {outcome:?}"),
            Ok(None) => {}
            Err(e) => text += &format!(" failed: {e:#}"),
        }
        let mut hosts = String::new();
        for host in &self.hosts {
            hosts += &match &host.up {
                Some(up) => format!("\n    {} {}", host.name, looks::describe(up)),
                None => format!("\n    {} is down", host.name),
            };
        }
        // What changed nothing is not worth a line.
        if hosts != self.told || matches!(step, Step::Command(..)) {
            self.trace.push(text + &hosts);
            self.told = hosts;
        }
    }

    /// All that a rest does not change.
    pub fn picture(&self) -> String {
        self.hosts
            .iter()
            .map(|h| h.up.as_ref().map_or(String::new(), looks::describe))
            .collect()
    }

    /// Restarts whoever lost power.
    fn mourn(&mut self, rng: &mut dyn RngCore) {
        for side in Side::ALL {
            if self.hosts[side.index()].power.is_off() {
                self.crash(side, rng);
            }
        }
    }

    /// Cuts the power of a host, or kills its process.
    pub fn crash(&mut self, side: Side, rng: &mut dyn RngCore) {
        self.counts.crashes += 1;
        self.lose_links(side);
        let killed = rng.random_bool(0.25);
        let host = &mut self.hosts[side.index()];
        self.trace.push(format!(
            "{} of {}",
            if killed { "kill" } else { "power cut" },
            host.name
        ));
        match killed {
            true => host.power.kill(rng),
            false => host.power.cut(rng),
        }
        host.down(killed);
        self.promised[side.index()].was_cut |= !killed;
    }

    /// The machine is what it was when the image was made: its disks had lied about every sync since.
    pub fn put_back(&mut self, side: Side, image: &Image) {
        self.links = [None, None];
        self.older = [None, None];
        let i = side.index();
        self.trace.push(format!("{} is put back", self.hosts[i].name));
        self.hosts[i].power.put_back(image);
        self.hosts[i].down(false);
        self.promised[i].restart(WriteSeq(0));
        self.kept[i] = Default::default();
        self.was_put_back[i] = true;
    }

    pub fn boot_both(&mut self) -> Fallible {
        for side in Side::ALL {
            if self.hosts[side.index()].up.is_none() {
                self.hosts[side.index()].boot()?;
                if let Err(e) = self.look_after_boot(side) {
                    // Not up, as long as it was not looked at.
                    self.hosts[side.index()].down(true);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn act(&mut self, step: &Step, rng: &mut dyn RngCore) -> Fallible<Option<Outcome>> {
        self.make_way()?;
        match step {
            Step::Work(side) => self.work(*side, rng)?,
            Step::Sync(side) => self.sync(*side)?,
            Step::WriteBack(side) => {
                self.up(*side).write_back(rng.random_range(1..60_000))?;
            }
            Step::Checkpoint(side) => self.up(*side).checkpoint()?,
            Step::Ingest(side) => drop(self.up(*side).journal.ingest_sealed()?),
            Step::Forget(side) => self.forget(*side, rng)?,
            Step::Overflow(side) => self.overflow(*side, rng.random_range(1..4))?,
            Step::Link(side, stream) => {
                for _ in 0..rng.random_range(1..6) {
                    self.stream(*side, *stream)?;
                }
            }
            Step::Round(side) => self.round(*side)?,
            Step::Seal(side) => self.seal(*side)?,
            Step::Grow(side) => self.grow(*side, rng)?,
            Step::Apply(side) => drop(self.apply(*side)?),
            Step::View(side) => self.look_back(*side, rng)?,
            Step::Settle => self.settle_daemons()?,
            Step::Cut => {
                self.net = false;
                self.cut_links();
            }
            Step::Mend => self.net = true,
            Step::Late(side) => self.hear_late(*side, rng.random_range(1..6))?,
            Step::Full(side) => self.fill_disk(*side),
            // Before the boot, which may wait for it.
            Step::Room(_) => {}
            Step::Clock(side) => {
                self.counts.clocks += 1;
                self.hosts[side.index()].jump_clock(rng);
            }
            Step::Crash(side) => self.crash(*side, rng),
            Step::Command(side, command) => {
                let outcome = self.command(*side, command)?;
                self.count(command, outcome);
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    fn count(&mut self, command: &Command, outcome: Outcome) {
        match (command, outcome) {
            (_, Outcome::Refused(_)) => self.counts.refusals += 1,
            (Command::Failover(_), Outcome::Done) => self.counts.failovers += 1,
            (Command::Failback, Outcome::Done) => self.counts.failbacks += 1,
            (Command::Resync(_), Outcome::Done) => self.counts.resyncs += 1,
            (Command::Restore(_), Outcome::Done) => self.counts.restores += 1,
            _ => {}
        }
    }

    pub fn is_off(&self, side: Side) -> bool {
        self.hosts[side.index()].power.is_off()
    }

    pub fn up(&self, side: Side) -> &Up {
        self.hosts[side.index()].up.as_ref().expect("it is up")
    }

    pub fn up_mut(&mut self, side: Side) -> &mut Up {
        self.hosts[side.index()].up.as_mut().expect("it is up")
    }

    /// The host, if the other one can reach it.
    pub fn reachable(&self, side: Side) -> Option<&Up> {
        self.hosts[side.index()].up.as_ref().filter(|_| self.net)
    }

    /// What daemons do by themselves.
    pub fn settle_daemons(&mut self) -> Fallible {
        for side in Side::ALL {
            if self.up(side).held_back && self.net {
                self.hear_peer(side)?;
            }
            self.watch_peer(side)?;
            self.follow_again(side)?;
        }
        Ok(())
    }

    /// Ends what runs on a host, and its links.
    pub fn halt(&mut self, side: Side) -> Fallible {
        self.unlink(side);
        self.part(side);
        self.up_mut(side).halt()
    }

    /// The replica's end of a link ends; production is told nothing.
    pub fn part(&mut self, side: Side) {
        let there = side.other().index();
        (self.links[there], self.older[there]) = (None, None);
    }

    /// Production's end of a link ends in order: it says goodbye, and the other end hears it.
    pub fn unlink(&mut self, side: Side) {
        let Some(mut link) = self.links[side.index()].take() else {
            return;
        };
        link.goodbye();
        let Some(there) = self.reachable(side.other()) else {
            return;
        };
        // What becomes of that is no matter of whoever ends it.
        while let Ok(true) = link.hear_b(there) {}
    }

    /// A host that was fenced acknowledges nothing any more, and ends what it runs.
    pub fn end_fenced(&mut self, side: Side) -> Fallible {
        self.counts.fences += 1;
        if let Some(production) = self.up(side).production() {
            let refused = work::answer(production, VolumeIndex(0));
            assert!(
                refused.is_none_or(|answer| !answer),
                "acknowledged by a fenced host"
            );
        }
        self.halt(side)
    }

    /// One step of the link whose production's end is `side`.
    pub fn stream(&mut self, side: Side, stream: Stream) -> Fallible {
        let i = side.index();
        self.room_for_one(side)?;
        let dials = self.up(side).ships()?;
        if !self.net || !dials || self.links[i].as_ref().is_some_and(|l| l.is_over()) {
            self.links[i] = None;
            return Ok(());
        }
        let ends = ShipEnd {
            here: self.hosts[i].up.as_ref().expect("up"),
            there: self.hosts[side.other().index()].up.as_ref().expect("up"),
        };
        let link = match &mut self.links[i] {
            Some(link) => link,
            none => none.insert(Link::dial(&ends, ends.there)?),
        };
        // The follower's thread works for its newest connection only, from that one's greeting on.
        if stream == Stream::HearFollow {
            self.older[i] = None;
        }
        let (jumps, copies, redo) = (link.jumps, link.copied.len(), link.redo.len());
        let done = match stream {
            Stream::Copy => link.copy(&ends),
            Stream::Ship => link.pump(&ends).map(drop),
            Stream::HearShip => link.hear_a(&ends).map(drop),
            Stream::HearFollow => link.hear_b(ends.there).map(drop),
            Stream::Keep => ends
                .there
                .journal
                .sync()
                .map_err(Into::into)
                .and_then(|_| link.moved(ends.there)),
        };
        self.counts.jumps += link.jumps - jumps;
        self.counts.copies += u32::try_from(link.copied.len() - copies)?;
        self.copied.extend_from_slice(&link.copied[copies..]);
        self.redo.extend_from_slice(&link.redo[redo..]);
        let greeted = link.is_greeted();
        for side in Side::ALL {
            self.observe(side);
        }
        done?;
        if stream == Stream::Keep {
            self.keep(side.other());
        }
        for side in Side::ALL {
            let up = self.up(side);
            if up.production().is_some() && !up.standing()?.serves() {
                self.counts.conflicts += u32::from(self.up(side.other()).production().is_some());
                self.end_fenced(side)?;
            }
        }
        if greeted {
            // Invariant 8: they have been in contact.
            self.at_most_one_serves()?;
        }
        Ok(())
    }

    /// The link of a production goes on as far as it does by itself; one that is closed copies nothing any more.
    pub fn drain(&mut self, side: Side, rounds: u32, copies: bool) -> Fallible {
        for _ in 0..rounds {
            if !self.net || !self.up(side).ships()? {
                return Ok(());
            }
            match self.round_of(side, copies) {
                // The other end is gone: that is not this host's fault.
                Err(_) if !self.is_off(side) && self.is_off(side.other()) => return Ok(()),
                done => done?,
            }
        }
        Ok(())
    }

    /// Everything that happens by itself between a production and its follower, once.
    pub fn round(&mut self, side: Side) -> Fallible {
        self.round_of(side, true)
    }

    fn round_of(&mut self, side: Side, copies: bool) -> Fallible {
        self.sync(side)?;
        if copies {
            self.stream(side, Stream::Copy)?;
        }
        for step in [Stream::Ship, Stream::HearFollow, Stream::Keep, Stream::HearShip] {
            self.stream(side, step)?;
        }
        self.apply(side.other())?;
        Ok(())
    }
}
