//! Recovery: receives (through [`crate::agent::aba`]), journals, builds undo, applies, and shows views.
//!
//! | thread | sleeps on | does |
//! | --- | --- | --- |
//! | sync | received frames | one journal sync, rings `durable`: the receiver acknowledges |
//! | apply | `sealed`, `applied` | ingests sealed containers and applies them in order: undo durable, then overwritten |
//!
//! Whoever overwrites the replica holds [`Recovery::writer`]: the apply thread for one container, a restore for its whole
//! length, the receiver for one copy.

use super::{Context, ContextError, Views};
use crate::bell::Bell;
use model::{ByteRange, ContextState, Payload, VolumeIndex, WriteSeq, ports::History};
use parking_lot::{Mutex, MutexGuard};
use snapshot::{ChangeSet, Lfc, Volumes, apply, apply_first_sync};
use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A started recovery.
pub struct Recovery {
    /// The replica.
    pub volumes: Arc<Volumes>,
    /// Snapshots and named readers.
    pub views: Views,
    /// Rung by the receiver when it appended frames.
    pub received: Bell,
    writer: Arc<Mutex<()>>,
    stopping: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    woken: (Bell, Bell),
}

impl Recovery {
    pub(super) fn start(context: &Arc<Context>, volumes: Volumes) -> Result<Self, ContextError> {
        let volumes = Arc::new(volumes);
        let views = Views::open(context, &volumes)?;
        let received = Bell::default();
        let writer = Arc::new(Mutex::new(()));
        let stopping = Arc::new(AtomicBool::new(false));
        let agent = || Agent {
            context: Arc::clone(context),
            volumes: Arc::clone(&volumes),
            received: received.clone(),
            writer: Arc::clone(&writer),
            stopping: Arc::clone(&stopping),
        };
        let spawn = |what: &'static str, agent: Agent, run: fn(&Agent)| {
            context.spawn(what, move || run(&agent), || {})
        };
        let threads = vec![
            spawn("sync", agent(), sync_loop),
            spawn("apply", agent(), apply_loop),
        ];
        let woken = (received.clone(), context.bells.sealed.clone());
        Ok(Self {
            volumes,
            views,
            received,
            writer,
            stopping,
            threads: Mutex::new(threads),
            woken,
        })
    }

    /// Ends the threads; a container that is being applied is finished first.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.woken.0.ring();
        self.woken.1.ring();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        // What was written to vdevs and not flushed would be lost otherwise, as in a disk's cache.
        for snapshot in self.views.all() {
            if let Err(e) = snapshot.vdev.flush() {
                tracing::warn!("vdevs of level {}: {e}", snapshot.level);
            }
        }
    }

    /// The right to overwrite the replica.
    pub fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock()
    }

    /// Writes a copy of a first sync (rule C3): no undo, because no earlier point can be asked for; synced by the caller.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn write_copy(
        &self,
        volume: VolumeIndex,
        range: ByteRange,
        payload: &Payload,
    ) -> Result<(), ContextError> {
        let v = self.volumes.get(volume)?;
        let failed = |source| ContextError::Io {
            what: format!("volume {}", v.name()),
            source,
        };
        let _writer = self.writer();
        match payload {
            Payload::Data(data) => v.medium().write_at(range.start, data).map_err(failed),
            Payload::Zero => {
                // A hole is zero already; writing it would only take space.
                let next = v.medium().next_data(range.start).map_err(failed)?;
                if next.is_some_and(|data| data.start < range.end) {
                    v.medium()
                        .write_zeroes(range.start, range.len())
                        .map_err(failed)?;
                }
                Ok(())
            }
        }
    }
}

struct Agent {
    context: Arc<Context>,
    volumes: Arc<Volumes>,
    received: Bell,
    writer: Arc<Mutex<()>>,
    stopping: Arc<AtomicBool>,
}

impl Agent {
    fn poison(&self, what: &str, error: &dyn std::fmt::Display) {
        self.context.poison(what, error);
    }
}

fn sync_loop(agent: &Agent) {
    let journal = &agent.context.journal;
    let mut ear = agent.received.ear();
    let mut idle = false;
    while !agent.stopping.load(Ordering::Acquire) {
        let rang = ear.wait(if idle {
            Duration::from_secs(3600)
        } else {
            Duration::from_secs(1)
        });
        let cursors = journal.cursors();
        let step = if cursors.durable < cursors.appended {
            journal.sync().map(|_| ())
        } else if rang || idle {
            Ok(())
        } else {
            journal.raise_bound()
        };
        idle = !rang;
        match step {
            Ok(()) => agent.context.bells.durable.ring(),
            Err(e) => return agent.poison("journal", &e),
        }
    }
}

fn apply_loop(agent: &Agent) {
    let mut ear = agent.context.bells.sealed.ear();
    while !agent.stopping.load(Ordering::Acquire) {
        match apply_next(agent) {
            Ok(true) => agent.context.bells.applied.ring(),
            Ok(false) => {
                ear.wait(Duration::from_secs(3600));
            }
            Err(e) => return agent.poison("apply", &e),
        }
    }
}

/// Ingests what is sealed, then applies the next container; `false` when there is none, or none may be applied now.
fn apply_next(agent: &Agent) -> Result<bool, ContextError> {
    let journal = &agent.context.journal;
    while journal.ingest_sealed()?.is_some() {}
    let _writer = agent.writer.lock();
    // Rule R-2: a rolled-back context receives and applies nothing.
    if agent.context.state() != ContextState::Enabled {
        return Ok(false);
    }
    let applied = journal.cursors().applied_ordinal;
    let behind = (Bound::Excluded(journal.cursors().applied_lfc), Bound::Unbounded);
    let Some(row) = journal.lfc_rows(behind).into_iter().next() else {
        return Ok(false);
    };
    let frames = journal.frames_of(row.generation, row.lfc)?;
    let changes: ChangeSet = frames.iter().flat_map(|f| f.records()).collect();
    let lfc = Lfc {
        generation: row.generation,
        lfc: row.lfc,
        last_seq: row.last_seq,
    };
    let history: &dyn History = &**journal;
    let ordinal = if needs_undo(agent, row.last_seq) {
        apply(&agent.volumes, history, lfc, applied, &changes, &mut |_| {})?.ordinal
    } else {
        // First sync: no earlier point can be asked for, so there is nothing to keep (rule C2).
        apply_first_sync(&agent.volumes, history, lfc, applied, &changes)?
    };
    journal.set_applied(ordinal, row.generation, row.lfc, row.last_seq)?;
    Ok(true)
}

/// Whether an earlier point than this container's start can be asked for.
fn needs_undo(agent: &Agent, last_seq: WriteSeq) -> bool {
    agent
        .context
        .consistent_from()
        .is_some_and(|from| last_seq > from)
}
