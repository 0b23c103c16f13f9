//! Recovery: receives (through [`crate::agent::aba`]), journals, builds undo, applies, and shows views.
//!
//! | thread | sleeps on | does |
//! | --- | --- | --- |
//! | sync | received frames | one journal sync, rings `durable`: the receiver acknowledges |
//! | apply | `sealed`, received copies | writes copies; ingests sealed containers and applies them in order: undo durable, then overwritten; frees what nobody claims any more |
//!
//! A container that rotted before it was applied keeps what is behind it from being applied until production sends it again;
//! the replica, its views and restores go on as they are.
//!
//! Whoever overwrites the replica holds [`Recovery::writer`]: the apply thread for some copies and one container, a restore
//! for its whole length.

use super::{Context, ContextError, Views, retention::LOOK_AGAIN};
use crate::{
    applying::{Applier, CopyQueue},
    bell::Bell,
    damage,
};
use parking_lot::{Mutex, MutexGuard};
use snapshot::Volumes;
use std::{
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
    pub views: Arc<Views>,
    /// Rung by the receiver when it appended frames.
    pub received: Bell,
    /// Copies that were received and are not on the replica yet; `sealed` is rung for them.
    pub copies: Arc<CopyQueue>,
    writer: Arc<Mutex<()>>,
    damage: Arc<Mutex<Option<String>>>,
    stopping: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    woken: [Bell; 3],
}

impl Recovery {
    pub(super) fn start(context: &Arc<Context>, volumes: Volumes) -> Result<Self, ContextError> {
        context.journal.set_gives_way(false);
        let volumes = Arc::new(volumes);
        let views = Arc::new(Views::open(
            &context.journal,
            &volumes,
            context.overlay_dir(),
            context.config.overlay_limit.0,
        )?);
        let received = Bell::default();
        let copies = Arc::new(CopyQueue::default());
        let writer = Arc::new(Mutex::new(()));
        let damage = Arc::new(Mutex::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let agent = || Agent {
            context: Arc::clone(context),
            volumes: Arc::clone(&volumes),
            views: Arc::clone(&views),
            received: received.clone(),
            copies: Arc::clone(&copies),
            writer: Arc::clone(&writer),
            damage: Arc::clone(&damage),
            stopping: Arc::clone(&stopping),
        };
        let spawn = |what: &'static str, agent: Agent, run: fn(&Agent)| {
            context.spawn(what, move || run(&agent), || {})
        };
        let threads = vec![
            spawn("sync", agent(), sync_loop),
            spawn("apply", agent(), apply_loop),
        ];
        let bells = &context.bells;
        let woken = [received.clone(), bells.sealed.clone(), bells.acknowledged.clone()];
        Ok(Self {
            volumes,
            views,
            received,
            copies,
            writer,
            damage,
            stopping,
            threads: Mutex::new(threads),
            woken,
        })
    }

    /// Ends the threads; a container that is being applied is finished first.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for bell in &self.woken {
            bell.ring();
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        self.views.close();
        // What was written to vdevs and not flushed would be lost otherwise, as in a disk's cache.
        for snapshot in self.views.all() {
            if let Ok(Some(vdev)) = snapshot.made_vdev()
                && let Err(e) = vdev.flush()
            {
                tracing::warn!("vdevs of level {}: {e}", snapshot.level);
            }
        }
    }

    /// What is damaged and keeps everything behind it from being applied, and what is done about it.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        self.damage.lock().clone()
    }

    /// The right to overwrite the replica.
    pub fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock()
    }
}

struct Agent {
    context: Arc<Context>,
    volumes: Arc<Volumes>,
    views: Arc<Views>,
    received: Bell,
    copies: Arc<CopyQueue>,
    writer: Arc<Mutex<()>>,
    damage: Arc<Mutex<Option<String>>>,
    stopping: Arc<AtomicBool>,
}

impl Agent {
    /// Nothing is applied because of this damage, or that is over.
    fn stand_still(&self, why: Option<String>) {
        let mut damage = self.damage.lock();
        if let Some(why) = why.as_ref().filter(|why| damage.as_ref() != Some(why)) {
            tracing::warn!(context = self.context.id().0, "nothing is applied: {why}");
        }
        *damage = why;
    }

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
    let mut link = agent.context.bells.acknowledged.ear();
    while !agent.stopping.load(Ordering::Acquire) {
        let applied = apply_next(agent);
        // Room is made even while nothing can be applied.
        let kept = retain(agent);
        let moved = matches!(applied, Ok(true)) || matches!(kept, Ok(true));
        if moved {
            agent.context.bells.applied.ring();
        }
        match applied.and(kept) {
            Ok(_) => {
                agent.stand_still(None);
                agent.context.set_no_room(None);
                if !moved {
                    ear.wait(if agent.context.has_room() {
                        Duration::from_secs(3600)
                    } else {
                        LOOK_AGAIN
                    });
                }
            }
            // Nothing that was there is lost. Copies that were taken from the queue are: they were not acknowledged, and come
            // again with the next connection. That one brings none before there is room: it is left alone.
            Err(e) if e.is_full() => {
                let is_first = agent.context.no_room().is_none();
                agent.context.set_no_room(Some(e.to_string()));
                if is_first {
                    agent.context.end_link();
                }
                ear.wait(LOOK_AGAIN);
            }
            // Production keeps redo until it is applied here: what rotted meanwhile comes back from there. Until then all
            // that is applied stays of use, most of all when production is lost.
            Err(e) => match damage::refetch(&agent.context, &e) {
                Some(Ok(())) => {}
                Some(Err(why)) => {
                    agent.stand_still(Some(why));
                    link.wait(damage::ASK_EVERY);
                }
                None => return agent.poison("apply", &e),
            },
        }
    }
}

/// Frees what may go, now that more is applied or released; whether receiving stops or goes on because of it.
fn retain(agent: &Agent) -> Result<bool, ContextError> {
    let _writer = agent.writer.lock();
    Ok(agent.context.retention.pass(&agent.context, &agent.views)?)
}

/// Ingests what is sealed, writes the copies that wait, applies the next container; `false` when there was nothing to do, or
/// nothing may be done now.
fn apply_next(agent: &Agent) -> Result<bool, ContextError> {
    let journal = &agent.context.journal;
    while journal.ingest_sealed()?.is_some() {}
    let _writer = agent.writer.lock();
    let applier = Applier {
        journal,
        volumes: &agent.volumes,
        copies: &agent.copies,
        state: agent.context.state(),
    };
    Ok(applier.step(&mut || agent.context.bells.applied.ring())?)
}
