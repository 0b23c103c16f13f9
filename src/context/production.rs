//! Production: capture, write-back, seal, copies. The link to the peer is in [`crate::agent::lca`].
//!
//! | thread | sleeps on | does |
//! | --- | --- | --- |
//! | sync | unsynced records | one journal sync, answers flushes, rings `durable` |
//! | write-back | `durable` | overwrites the volumes from durable frames; a checkpoint now and then. While this host holds earlier points: applies sealed containers, undo first ([`crate::applying::acting`]) |
//! | verify | its desk | compares the volumes with the replica, a pass at a time ([`crate::verify`]) |
//! | seal | a timer | seals by age, drops what the peer has applied, ingests what it has not, raises the bound when idle, lets the oldest give way at the journal's limit |

use super::{Context, ContextError, retention::LOOK_AGAIN};
use crate::{
    agent,
    applying::acting::{apply_waiting, builds_undo, catch_up, replay},
    bell::{Bell, Ear},
    roles::Standing,
};
use journal::tap::{Tap, TapLimits};
use model::WriteSeq;
use parking_lot::Mutex;
use snapshot::{ChangeSet, Volumes, write_back};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Bytes of frames that one pass of write-back coalesces.
const WRITE_BACK_BYTES: u64 = 32 << 20;
/// Bytes written back after which the volumes are synced: few, so that a sync of the journal on the same disk waits behind few, and
/// more than a moment's, so that those of the volumes do not come as often as the journal's.
const SYNC_BYTES: u64 = 16 << 20;
/// Bytes written back after which that is noted too, so that replay after a crash stays short.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Rest after which everything is checkpointed and the bound is raised.
const IDLE: Duration = Duration::from_secs(1);
/// A full disk is asked for room no more often than this.
const REST: Duration = Duration::from_millis(200);

/// A started production.
pub struct Production {
    /// The write path.
    pub tap: Arc<Tap>,
    /// The volumes below it.
    pub volumes: Arc<Volumes>,
    builds_undo: bool,
    stopping: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    link: Mutex<Option<agent::LinkHandle>>,
    wake: [Bell; 2],
}

impl Production {
    pub(super) fn start(context: &Arc<Context>, volumes: Volumes) -> Result<Self, ContextError> {
        let journal = &context.journal;
        let builds_undo = builds_undo(journal);
        journal.set_gives_way(!builds_undo);
        let open = if builds_undo {
            catch_up(journal, &volumes)?
        } else {
            let replayed = replay(journal, &volumes)?;
            if replayed > 0 {
                tracing::info!(context = context.id().0, records = replayed, "volumes replayed");
            }
            Vec::new()
        };
        let media = volumes
            .iter()
            .map(|(index, v)| (index, Arc::clone(v.medium())))
            .collect::<Vec<_>>();
        let limits = TapLimits {
            pinned_bytes_max: context.config.write_back_limit.0,
            whole_containers: builds_undo,
            peer: context.config.peer_rule(),
            ..TapLimits::default()
        };
        let tap = Arc::new(Tap::new(Arc::clone(journal), media, limits));
        tap.resume(&open)?;
        let write_back = if builds_undo { apply_loop } else { write_back_loop };
        let volumes = Arc::new(volumes);
        let stopping = Arc::new(AtomicBool::new(false));
        let threads = vec![
            spawn("sync", context, &tap, &volumes, &stopping, sync_loop),
            spawn("write-back", context, &tap, &volumes, &stopping, write_back),
            spawn("seal", context, &tap, &volumes, &stopping, seal_loop),
            spawn("verify", context, &tap, &volumes, &stopping, |agent| {
                let stopping = || agent.stopping() || agent.context.journal.poisoned().is_some();
                agent.context.verify.run(&agent.context, &agent.tap, &stopping);
            }),
        ];
        // After a failover nothing is shipped before the operator says so.
        let ships = context.standing() == Standing::Producing;
        let link = ships.then(|| agent::lca::start(context, &tap));
        Ok(Self {
            tap,
            volumes,
            builds_undo,
            stopping,
            threads: Mutex::new(threads),
            link: Mutex::new(link),
            wake: [context.bells.durable.clone(), context.verify.bell()],
        })
    }

    /// Ends the threads after everything acknowledged is on the volumes; a poisoned journal ends them as it is.
    pub fn stop(&self) {
        // The link may wait behind one who waits for room on a disk.
        self.tap.let_go();
        if let Some(link) = self.link.lock().take() {
            link.stop();
        }
        self.tap.close();
        let _ = self.tap.sync_once();
        if self.builds_undo {
            // Only what is sealed can reach the volumes.
            let _ = self.tap.seal_now();
        }
        self.stopping.store(true, Ordering::Release);
        self.tap.end_syncs();
        // A sync thread that ended with a failure rings no more.
        self.wake.iter().for_each(Bell::ring);
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        // A repair may have begun another link meanwhile.
        if let Some(link) = self.link.lock().take() {
            link.stop();
        }
    }

    /// Begins a link to the peer, in the place of the one that runs.
    pub(super) fn relink(&self, context: &Arc<Context>) {
        let mut link = self.link.lock();
        if let Some(link) = link.take() {
            link.stop();
        }
        *link = Some(agent::lca::start(context, &self.tap));
    }
}

struct Agent {
    context: Arc<Context>,
    tap: Arc<Tap>,
    volumes: Arc<Volumes>,
    stopping: Arc<AtomicBool>,
}

impl Agent {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits before a full disk is asked for room again. Something may have happened that made some; but who writes rings at
    /// every sync, and every attempt builds a file.
    fn rest(&self, ear: &mut Ear) {
        let wait = |at_most| {
            let from = Instant::now();
            ear.wait(at_most);
            from.elapsed()
        };
        rest_by(wait, || self.stopping());
    }

    fn poison(&self, what: &str, error: &dyn std::fmt::Display) {
        self.context.poison(what, error);
    }
}

fn spawn(
    what: &'static str,
    context: &Arc<Context>,
    tap: &Arc<Tap>,
    volumes: &Arc<Volumes>,
    stopping: &Arc<AtomicBool>,
    run: fn(&Agent),
) -> JoinHandle<()> {
    let agent = Agent {
        context: Arc::clone(context),
        tap: Arc::clone(tap),
        volumes: Arc::clone(volumes),
        stopping: Arc::clone(stopping),
    };
    let tap = Arc::clone(tap);
    context.spawn(what, move || run(&agent), move || tap.end_syncs())
}

fn sync_loop(agent: &Agent) {
    while let Some(work) = agent.tap.flushes().wait_for_work(Duration::from_secs(3600)) {
        if !work {
            continue;
        }
        match agent.tap.sync_once() {
            Ok(_) => agent.context.bells.durable.ring(),
            Err(e) => {
                tracing::error!(
                    context = agent.context.id().0,
                    "journal: {e}: the context stops acknowledging"
                );
                return;
            }
        }
    }
    agent.context.bells.durable.ring();
}

fn write_back_loop(agent: &Agent) {
    let mut ear = agent.context.bells.durable.ear();
    let (mut unsynced, mut unnoted) = (0, 0);
    loop {
        let stopping = agent.stopping();
        let frames = agent.tap.take_durable(WRITE_BACK_BYTES);
        if frames.is_empty() {
            let rang = !stopping
                && ear.wait(if unnoted > 0 {
                    IDLE
                } else {
                    Duration::from_secs(3600)
                });
            if !rang && unnoted > 0 {
                match checkpoint(agent) {
                    Ok(()) => (unsynced, unnoted) = (0, 0),
                    Err(e) => return agent.poison("checkpoint", &e),
                }
            }
            if stopping {
                return;
            }
            continue;
        }
        let changes: ChangeSet = frames.iter().flat_map(|f| f.records()).collect();
        while let Err(e) = write_back(&agent.volumes, &changes) {
            // The journal holds it: writers wait when too much does (invariant 6).
            if !e.waits_for_room() || agent.context.journal.poisoned().is_some() {
                return agent.poison("write-back", &e);
            }
            if agent.stopping() {
                // What the volumes lack is in the journal: the next start writes it.
                return agent.context.set_no_room(None);
            }
            agent.context.set_no_room(Some(e.to_string()));
            agent.rest(&mut ear);
        }
        agent.context.set_no_room(None);
        if let Err(e) = agent.tap.written_back(&frames) {
            return agent.poison("write-back", &e);
        }
        let bytes = changes.bytes().max(1);
        (unsynced, unnoted) = (unsynced + bytes, unnoted + bytes);
        if unnoted >= CHECKPOINT_BYTES {
            match checkpoint(agent) {
                Ok(()) => (unsynced, unnoted) = (0, 0),
                Err(e) => return agent.poison("checkpoint", &e),
            }
        } else if unsynced >= SYNC_BYTES {
            match agent.volumes.sync() {
                Ok(()) => unsynced = 0,
                Err(e) => return agent.poison("write-back", &e),
            }
        }
    }
}

/// Write-back of a production that holds earlier points: whole containers, in order, undo first (rule W2).
fn apply_loop(agent: &Agent) {
    let mut ear = agent.context.bells.durable.ear();
    loop {
        let stopping = agent.stopping();
        match apply_waiting(&agent.tap, &agent.volumes) {
            Ok(true) => agent.context.bells.applied.ring(),
            Ok(false) if stopping => return,
            Ok(false) => {
                agent.context.set_no_room(None);
                ear.wait(Duration::from_secs(3600));
            }
            // What the volumes lack is in the journal: the next start applies it.
            Err(e) if e.is_full() && stopping => return agent.context.set_no_room(None),
            Err(e) if e.is_full() => {
                agent.context.set_no_room(Some(e.to_string()));
                // The seal thread makes room as a rule; but it seals, too, and may be who waits for it.
                if let Err(e) = make_room(agent) {
                    return agent.poison("journal", &e);
                }
                agent.rest(&mut ear);
            }
            Err(e) => return agent.poison("write-back", &e),
        }
    }
}

/// Lets earlier points, and then what the peer lacks, give way on a production that builds undo (K2).
fn make_room(agent: &Agent) -> Result<(), ContextError> {
    let cursors = agent.context.journal.cursors();
    agent
        .context
        .keep_history(cursors.applied_by_peer.min(cursors.checkpointed))?;
    agent.context.relieve(|| checkpoint(agent))
}

/// Syncs the volumes and moves `checkpointed` to what was written back before.
fn checkpoint(agent: &Agent) -> Result<(), ContextError> {
    let upto = agent.context.journal.cursors().written_back;
    agent.volumes.sync()?;
    agent.context.journal.set_checkpointed(upto)?;
    // Redo may be dropped, also when nobody writes.
    agent.context.bells.durable.ring();
    Ok(())
}

fn seal_loop(agent: &Agent) {
    let journal = &agent.context.journal;
    let mut ear = agent.context.bells.durable.ear();
    let (mut dropped, mut looked) = (WriteSeq(0), WriteSeq(0));
    while !agent.stopping() {
        // An open container with records wakes the thread at its age; an empty one lets it sleep until something happens.
        let nap = if journal.open_is_empty() {
            Duration::from_secs(3600)
        } else {
            IDLE
        };
        let rang = ear.wait(nap);
        let mut step = || -> Result<(), ContextError> {
            if agent.tap.seal_if_due(model::Timestamp::now())?.is_some() {
                agent.context.bells.sealed.ring();
            }
            match empty_tail(agent) {
                // It waits in its tail; when that is needed, containers give way.
                Err(e) if e.is_full() => tracing::debug!("{e}"),
                done => done?,
            }
            agent.context.note_given_way()?;
            if !rang {
                journal.raise_bound()?;
            }
            // Every sync rings; the catalog is only looked through when there may be something to free.
            let cursors = journal.cursors();
            let upto = cursors.applied_by_peer.min(cursors.checkpointed);
            let sealed = journal.sealed_end();
            if builds_undo(journal) {
                // Earlier points can be asked for: what nobody claims goes, undo and redo together.
                if upto > dropped || sealed != looked || !rang {
                    agent.context.keep_history(upto)?;
                    dropped = upto;
                }
            } else if upto > dropped && drop_applied(agent, upto)? {
                dropped = upto;
            }
            // The journal grows by containers.
            if sealed != looked || !rang {
                agent.context.relieve(|| checkpoint(agent))?;
                looked = sealed;
            }
            Ok(())
        };
        if let Err(e) = step() {
            return agent.poison("journal", &e);
        }
    }
}

/// Takes a sealed container out of its tail. Where the peer applies what it receives it is dropped there a moment later, and
/// never written to the store (rule T8); where the peer is away, or the tail is soon needed, it goes into the store.
fn empty_tail(agent: &Agent) -> Result<(), ContextError> {
    let journal = &agent.context.journal;
    let Some(last) = journal.waiting_end() else {
        return Ok(());
    };
    let cursors = journal.cursors();
    let acting = builds_undo(journal);
    if cursors.applied_by_peer >= last && cursors.written_back >= last && !acting {
        if cursors.checkpointed < last {
            checkpoint(agent)?;
        }
        match journal.drop_sealed() {
            // A writer sealed the next one meanwhile, and took this one into the store itself.
            Err(journal::JournalError::Refused(_)) => {}
            done => drop(done?),
        }
    } else if acting || journal.is_half_full() || !agent.context.peer().connected {
        while journal.ingest_sealed()?.is_some() {}
    } else {
        return Ok(());
    }
    agent.context.bells.sealed.ring();
    Ok(())
}

/// Frees redo up to `upto`, which the volumes hold durably and the peer has applied (rule T8; pins and archives are not kept
/// here yet). `false`: not all could be freed yet.
fn drop_applied(agent: &Agent, upto: WriteSeq) -> Result<bool, journal::JournalError> {
    let journal = &agent.context.journal;
    let all = journal.drop_applied(upto)?;
    journal.forget_old_rows(&agent.context.wanted())?;
    Ok(all)
}

/// [`Agent::rest`]; `wait` waits until something happens, at most so long, and answers how long that was.
fn rest_by(mut wait: impl FnMut(Duration) -> Duration, stopping: impl Fn() -> bool) {
    let mut rested = wait(LOOK_AGAIN);
    while rested < REST && !stopping() {
        rested += wait(REST - rested);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a disk that stays full is asked for room in ten seconds in which something happens so often.
    fn asked(happens_every: Duration) -> usize {
        let (mut clock, mut asked) = (Duration::ZERO, 0);
        while clock < Duration::from_secs(10) {
            asked += 1;
            let wait = |at_most| {
                let waited = happens_every.min(at_most);
                clock += waited;
                waited
            };
            rest_by(wait, || false);
        }
        asked
    }

    #[test]
    fn a_full_disk_is_asked_for_room_five_times_a_second_at_most() {
        assert_eq!(asked(Duration::from_millis(1)), 50);
        assert_eq!(asked(Duration::from_millis(500)), 20, "when something happened");
        assert_eq!(asked(Duration::MAX), 5, "room may come from outside");
    }

    #[test]
    fn who_is_to_stop_does_not_rest() {
        let mut waits = 0;
        let wait = |_| {
            waits += 1;
            Duration::from_millis(1)
        };
        rest_by(wait, || true);
        assert_eq!(waits, 1);
    }
}
