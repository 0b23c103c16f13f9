//! A host that may be anything: one power supply, a journal that says what it is, and what runs because of that.

use super::{
    hosts::{Fallible, Production, Recovery, first_line, grows, indexes, open_journal, volumes},
    link::{Follows, Ships},
};
use anyhow::bail;
use backstay::{
    agent::meeting::PeerSet,
    applying::{
        CopyQueue,
        acting::{apply_waiting, builds_undo, catch_up, replay},
    },
    context::extent_of,
    roles::{
        Standing,
        change::Host as Changed,
        peer::PeerStanding,
        row::{put_fence, put_standing, put_stop, standing_of},
        rules::Here,
    },
};
use journal::{
    Cell, ContextRow, Journal, MapShape, RestoreRow,
    tap::{Tap, TapLimits},
};
use model::{ByteRange, ContextState, GenId, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng, RngCore};
use snapshot::Volumes;
use std::{cell::Cell as Flag, collections::BTreeMap, sync::Arc};
use testkit::SimPower;

/// Bytes of a region: small, so that what is copied says much.
pub const REGION: u64 = 4 << 10;

/// Where clocks begin.
const CLOCK_START_NS: u64 = 1_000_000 * Timestamp::SECOND_NS;

thread_local! {
    /// The clocks of both machines: the configured production's, and the other's. A history has a thread of its own.
    static CLOCKS: [Flag<u64>; 2] = const { [Flag::new(CLOCK_START_NS), Flag::new(CLOCK_START_NS)] };
}

/// A machine's clock goes on by so much whenever somebody looks.
const TICK_NS: u64 = 1_000_000;

/// A look at a machine's clock.
fn look_at_clock<const HOST: usize>() -> Timestamp {
    CLOCKS.with(|clocks| {
        let now = clocks[HOST].get() + TICK_NS;
        clocks[HOST].set(now);
        Timestamp(now)
    })
}

/// A machine.
pub struct Host {
    pub name: &'static str,
    /// It is the configured production.
    pub home: bool,
    pub power: SimPower,
    sizes: Vec<u64>,
    /// Its process.
    pub up: Option<Up>,
    /// It has booted since it was up last; a killed process is the same boot.
    booted: bool,
}

/// A process that runs.
pub struct Up {
    pub journal: Arc<Journal>,
    pub volumes: Volumes,
    pub runs: Runs,
    /// It was booted and must hear its peer before it serves.
    pub held_back: bool,
    /// A production has greeted it while it was fenced.
    pub greeted: Flag<bool>,
    /// The peer's line and its own have parted.
    pub diverged: Flag<bool>,
    home: bool,
}

/// What runs.
#[allow(clippy::large_enum_variant, reason = "there are two of them, one a host")]
pub enum Runs {
    Nothing,
    Production { production: Production, undo: bool },
    Recovery(Recovery),
}

impl Host {
    pub fn new(name: &'static str, home: bool, sizes: &[u64]) -> Self {
        CLOCKS.with(|clocks| clocks[usize::from(!home)].set(CLOCK_START_NS));
        Self {
            name,
            home,
            power: SimPower::new(),
            sizes: sizes.to_vec(),
            up: None,
            booted: false,
        }
    }

    /// The process is gone, and with it, unless it was only killed, the boot.
    pub fn down(&mut self, killed: bool) {
        self.up = None;
        self.booted |= !killed;
    }

    /// What its clock will say when somebody looks.
    pub fn clock(&self) -> Timestamp {
        CLOCKS.with(|clocks| Timestamp(clocks[usize::from(!self.home)].get() + TICK_NS))
    }

    /// Its clock jumps: parts of a second, minutes or days, either way.
    pub fn jump_clock(&self, rng: &mut dyn RngCore) {
        let most = [
            900_000_000,
            100 * Timestamp::SECOND_NS,
            200_000 * Timestamp::SECOND_NS,
        ][rng.random_range(0..3)];
        let by = rng.random_range(1..most);
        CLOCKS.with(|clocks| {
            let clock = &clocks[usize::from(!self.home)];
            let now = clock.get();
            clock.set(if rng.random() {
                now + by
            } else {
                now.saturating_sub(by).max(1)
            });
        });
    }

    /// Whether its disk has no room for what is ingested.
    pub fn set_full(&self, full: bool) {
        self.power.store("db").set_full(full);
    }

    /// Starts the process, as the daemon opens a context.
    pub fn boot(&mut self) -> Fallible<&mut Up> {
        let journal = open_journal(&self.power, true)?;
        let is_new = journal.context()?.is_none();
        if is_new {
            first_start(&journal, self.home, &self.sizes)?;
        }
        let mut up = Up {
            volumes: volumes(&self.power, &self.sizes),
            journal,
            runs: Runs::Nothing,
            held_back: false,
            greeted: Flag::new(false),
            diverged: Flag::new(false),
            home: self.home,
        };
        if !up.is_stopped()? {
            up.held_back = !is_new && self.booted && up.standing()?.serves();
            if !up.held_back {
                up.start()?;
            }
        }
        self.booted = false;
        Ok(self.up.insert(up))
    }
}

fn first_start(journal: &Journal, home: bool, sizes: &[u64]) -> Fallible {
    if home {
        first_line(journal, sizes, REGION)?;
    }
    let instance = if home { "a" } else { "b" };
    Ok(journal.put_context(&ContextRow {
        role: if home { Role::Production } else { Role::Recovery },
        state: ContextState::Enabled,
        term: Term(1),
        since: Timestamp(1),
        notes: [("instance".to_owned(), instance.to_owned())].into(),
    })?)
}

/// State maps of a host that becomes production for the first time.
pub fn maps(journal: &Journal, sizes: &[u64]) -> Vec<(VolumeIndex, MapShape)> {
    let shape = |size| MapShape {
        size,
        region_size: REGION,
        default: Cell::Clean,
    };
    let shape = |(index, size)| (index, shape(extent_of(journal, index, size)));
    indexes(sizes).map(shape).collect()
}

impl Up {
    pub fn row(&self) -> Fallible<ContextRow> {
        Ok(self.journal.context()?.expect("made at the first boot"))
    }

    pub fn standing(&self) -> Fallible<Standing> {
        Ok(standing_of(&self.row()?))
    }

    pub fn is_stopped(&self) -> Fallible<bool> {
        Ok(self.row()?.state == ContextState::Stopped)
    }

    pub fn restore(&self) -> Fallible<Option<RestoreRow>> {
        Ok(self.journal.restore()?)
    }

    pub fn change_row(&self, change: impl FnOnce(&mut ContextRow)) -> Fallible {
        let mut row = self.row()?;
        change(&mut row);
        Ok(self.journal.put_context(&row)?)
    }

    pub fn set_standing(&self, standing: Standing, term: Term) -> Fallible {
        self.change_row(|row| put_standing(row, standing, term, None))
    }

    /// The row that makes this host this.
    pub fn row_as(&self, standing: Standing, term: Term) -> Fallible<ContextRow> {
        let mut row = self.row()?;
        put_stop(&mut row, None);
        put_standing(&mut row, standing, term, None);
        Ok(row)
    }

    pub fn here<'a>(&'a self, row: &'a ContextRow) -> Here<'a> {
        Here {
            row,
            journal: &self.journal,
        }
    }

    pub fn changed(&self) -> Changed<'_> {
        Changed {
            journal: &self.journal,
            volumes: &self.volumes,
        }
    }

    /// What it answers its peer.
    pub fn says(&self) -> Fallible<PeerStanding> {
        Ok(PeerStanding::of(&self.here(&self.row()?)))
    }

    /// Its line and stale regions, for a peer that brings the two together.
    fn set(&self) -> PeerSet {
        let mapped = self.journal.mapped_volumes();
        let mut stale = Some(Vec::new());
        for (volume, _) in self.volumes.iter() {
            if !mapped.contains(&volume) {
                stale = None;
            }
            let runs = self.journal.map_runs(volume).into_iter();
            let runs = runs.filter(|(_, cell)| *cell != Cell::Clean);
            if let Some(stale) = &mut stale {
                stale.extend(runs.map(|(range, _)| (volume, range)));
            }
        }
        PeerSet {
            line: self.journal.line_parts(),
            stale,
        }
    }

    /// Starts what its standing says, as the daemon does.
    pub fn start(&mut self) -> Fallible {
        let row = self.row()?;
        let idle = matches!(standing_of(&row), Standing::Fenced | Standing::FailingOver);
        if !matches!(self.runs, Runs::Nothing) || idle {
            return Ok(());
        }
        let (journal, volumes) = (&self.journal, &self.volumes);
        let undo = builds_undo(journal);
        journal.set_indexed(row.role == Role::Recovery || undo);
        journal.set_gives_way(row.role == Role::Production && !undo);
        self.runs = match row.role {
            Role::Recovery => Runs::Recovery(Recovery {
                journal: Arc::clone(journal),
                volumes: volumes.clone(),
                copies: CopyQueue::default(),
            }),
            Role::Production => {
                let open = if undo {
                    catch_up(journal, volumes)?
                } else {
                    replay(journal, volumes)?;
                    Vec::new()
                };
                let media = volumes.iter().map(|(i, v)| (i, Arc::clone(v.medium())));
                let limits = TapLimits {
                    frame_bytes_max: 64 << 10,
                    whole_containers: undo,
                    ..TapLimits::default()
                };
                let clock = if self.home {
                    look_at_clock::<0>
                } else {
                    look_at_clock::<1>
                };
                let tap = Tap::new(Arc::clone(journal), media.collect::<Vec<_>>(), limits).with_clock(clock);
                tap.resume(&open)?;
                let production = Production {
                    journal: Arc::clone(journal),
                    tap,
                    volumes: volumes.clone(),
                };
                Runs::Production { production, undo }
            }
        };
        self.held_back = false;
        Ok(())
    }

    /// Ends what runs; everything acknowledged is on the volumes, as far as it can be.
    pub fn halt(&mut self) -> Fallible {
        if let Runs::Production { production, undo } = &self.runs {
            production.tap.close();
            production.tap.sync_once()?;
            if *undo {
                production.tap.seal_now()?;
            }
            while self.write_back(u64::MAX)? {}
        }
        self.runs = Runs::Nothing;
        Ok(())
    }

    /// One step of write-back; `false` when there was nothing to do.
    pub fn write_back(&self, bytes: u64) -> Fallible<bool> {
        match &self.runs {
            Runs::Production {
                production,
                undo: true,
            } => Ok(apply_waiting(&production.tap, &production.volumes)?),
            Runs::Production { production, .. } => {
                let before = self.journal.cursors().written_back;
                production.write_back(bytes)?;
                Ok(self.journal.cursors().written_back > before)
            }
            _ => Ok(false),
        }
    }

    /// The volumes of a production without undo are synced.
    pub fn checkpoint(&self) -> Fallible {
        match &self.runs {
            Runs::Production {
                production,
                undo: false,
            } => production.checkpoint(),
            _ => Ok(()),
        }
    }

    pub fn production(&self) -> Option<&Production> {
        match &self.runs {
            Runs::Production { production, .. } => Some(production),
            _ => None,
        }
    }

    pub fn recovery(&self) -> Option<&Recovery> {
        match &self.runs {
            Runs::Recovery(recovery) => Some(recovery),
            _ => None,
        }
    }

    /// The production that serves, if this is one.
    pub fn serving(&self) -> Fallible<Option<&Production>> {
        let serves = self.standing()?.serves();
        Ok(self.production().filter(|_| serves))
    }

    /// Whether its link dials.
    pub fn ships(&self) -> Fallible<bool> {
        Ok(self.production().is_some() && self.standing()? == Standing::Producing)
    }

    /// The newest durable record of its line.
    pub fn end(&self) -> (GenId, WriteSeq) {
        let mut parts = self.journal.line_parts().into_iter();
        // A generation without a record adds nothing.
        let last = parts.rfind(|part| part.upto > part.after);
        last.map_or((GenId(0), WriteSeq(0)), |part| (part.id, part.upto))
    }

    pub fn is_stale(&self) -> bool {
        let mut volumes = self.journal.mapped_volumes().into_iter();
        volumes.any(|volume| self.journal.next_stale(volume, 0, 1).is_some())
    }

    /// Stale regions, each once.
    pub fn stale(&self) -> BTreeMap<VolumeIndex, Vec<ByteRange>> {
        let mut all = BTreeMap::new();
        for volume in self.journal.mapped_volumes() {
            let runs = self.journal.map_runs(volume).into_iter();
            let runs = runs
                .filter(|(_, cell)| *cell != Cell::Clean)
                .map(|(range, _)| range);
            all.insert(volume, runs.collect());
        }
        all
    }

    pub const fn is_home(&self) -> bool {
        self.home
    }

    /// Nothing is acknowledged any more; what runs ends a moment later.
    pub fn fence_now(&self, term: Term) -> Fallible {
        if let Some(production) = self.production() {
            production.tap.close();
        }
        self.change_row(|row| {
            put_fence(row, term, "by the other host");
        })
    }
}

/// Production's end of a link, and the host at the other end.
pub struct ShipEnd<'a> {
    pub here: &'a Up,
    pub there: &'a Up,
}

impl Ships for ShipEnd<'_> {
    fn production(&self) -> &Production {
        self.here.production().expect("one that ships is production")
    }

    fn set_of_peer(&self) -> Fallible<PeerSet> {
        Ok(self.there.set())
    }

    fn match_extents(&self) -> Fallible {
        for (index, volume) in self.here.volumes.iter() {
            let of = |up: &Up| extent_of(&up.journal, index, volume.size());
            let bytes = of(self.here).max(of(self.there));
            for up in [self.here, self.there] {
                grows(&up.journal, &up.volumes, index, bytes)?;
            }
        }
        Ok(())
    }

    fn fence(&self, term: Term) -> Fallible {
        self.here.fence_now(term)
    }
}

impl Follows for Up {
    fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    fn copies(&self) -> Option<&CopyQueue> {
        match &self.runs {
            Runs::Recovery(recovery) => Some(&recovery.copies),
            _ => None,
        }
    }

    fn fence(&self, term: Term) -> Fallible {
        if self.row()?.role != Role::Production {
            bail!("a replica has no role to lose at term {term}");
        }
        self.fence_now(term)
    }

    fn set_diverged(&self, diverged: bool) {
        self.diverged.set(diverged);
    }

    fn greeted_fenced(&self) -> Fallible {
        self.greeted.set(true);
        Ok(())
    }
}
