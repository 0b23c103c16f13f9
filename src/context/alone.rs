//! A production that starts by itself (invariant 8, `on_start_alone`): after a boot it does not serve before it has heard its
//! peer, which may have taken over meanwhile. A daemon that was only restarted serves at once.
//!
//! The question is asked by a thread of its own, again and again, so that a dead peer delays neither the daemon nor the other
//! contexts. Meanwhile the context is known, answers its peer, and serves nothing. `rtstart -f` overrides.

use super::{Context, ContextError};
use crate::{
    agent::lca::both_production,
    boot::{self, Alone},
    peer::PeerError,
    roles::{
        Standing, peer,
        rules::{has_better_right, is_contested},
    },
};
use model::{Role, Timestamp};
use std::{sync::Arc, time::Duration};

/// Name of the note that keeps the boot in which the context last served.
const BOOT: &str = "boot_id";
/// Time between two questions to a peer that does not answer.
const ASK_EVERY: Duration = Duration::from_secs(2);

impl Context {
    /// Why it does not run although nobody stopped it.
    #[must_use]
    pub fn held_back(&self) -> Option<String> {
        self.held_back.lock().clone()
    }

    pub(super) fn hold_back(&self, why: Option<String>) {
        *self.held_back.lock() = why;
        self.bells.applied.ring();
    }

    /// Starts a context that was opened: at once, or when its peer was heard. One whose volume is gone is kept, so that it
    /// can be declared lost.
    pub(super) fn start_by_itself(
        self: &Arc<Self>,
        last_alive: Option<Timestamp>,
        is_new: bool,
    ) -> Result<(), ContextError> {
        if self.is_stopped() {
            return Ok(());
        }
        if !is_new && self.standing().serves() && self.must_hear_peer(last_alive) {
            self.wait_for_peer();
            return Ok(());
        }
        match self.start() {
            Err(e @ ContextError::VolumeGone { .. }) => {
                tracing::error!(context = self.id().0, "not started: {e}");
                self.hold_back(Some(e.to_string()));
                Ok(())
            }
            started => started,
        }
    }

    fn must_hear_peer(&self, last_alive: Option<Timestamp>) -> bool {
        let now = match boot::boot_id() {
            Ok(now) => now,
            Err(e) => {
                tracing::warn!("which boot this is, is not known: {e}");
                return true;
            }
        };
        let row = self.row();
        let known = row.notes.get(BOOT).map(String::as_str);
        let config = &self.config;
        let alone = boot::may_serve_alone(
            known,
            &now,
            last_alive,
            Timestamp::now(),
            config.restart_grace.0,
            config.on_start_alone,
        );
        alone == Alone::AskPeer
    }

    /// A production since a failover ships nothing, so no link would ever tell it of another production: it asks now and then.
    pub(super) fn watch_peer(self: &Arc<Self>) {
        let context = Arc::downgrade(self);
        let work = move || {
            loop {
                std::thread::sleep(ASK_EVERY);
                let Some(context) = context.upgrade() else { return };
                if context.standing() != Standing::FailedOver || !context.is_running() {
                    return;
                }
                let Ok(Some(peer)) = peer::ask_if_known(&context) else {
                    continue;
                };
                if is_contested(context.term(), &peer) {
                    let why = match peer.term == context.term().0 {
                        true => both_production(&context, context.term()),
                        false => format!("{} is production at term {}", context.peer_name(), peer.term),
                    };
                    // Rule L6: both stop. The other one would go on, because this one serves no more when it asks.
                    if peer.term == context.term().0
                        && let Err(e) = peer::ask_to_give_up(&context, context.term(), true)
                    {
                        tracing::warn!(context = context.id().0, "{why}; and {e}");
                    }
                    context.fence(model::Term(peer.term), &why);
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("c{}-watch", self.id()))
            .spawn(work)
            .expect("a thread can be started");
    }

    /// Notes the boot in which the context serves.
    pub(super) fn note_boot(&self) -> Result<(), ContextError> {
        let Ok(now) = boot::boot_id() else { return Ok(()) };
        if self.role() == Role::Production && self.row().notes.get(BOOT) != Some(&now) {
            self.change_row(|row| drop(row.notes.insert(BOOT.into(), now)))?;
        }
        Ok(())
    }

    fn wait_for_peer(self: &Arc<Self>) {
        let peer = self.peer_name();
        let why = format!("{peer} has not been heard since this host was started, and may have taken over");
        tracing::warn!(context = self.id().0, "{why}: nothing is served");
        self.hold_back(Some(why));
        let context = Arc::downgrade(self);
        let work = move || {
            // Both hosts may have been started together.
            let mut pause = ASK_EVERY / 32;
            while let Some(context) = context.upgrade() {
                if context.held_back().is_none() || context.is_stopped() {
                    return;
                }
                if context.hear_peer() {
                    return;
                }
                drop(context);
                std::thread::sleep(pause);
                pause = (pause * 2).min(ASK_EVERY);
            }
        };
        std::thread::Builder::new()
            .name(format!("c{}-alone", self.id()))
            .spawn(work)
            .expect("a thread can be started");
    }

    /// Asks the peer; `true` when that has decided.
    pub(crate) fn hear_peer(self: &Arc<Self>) -> bool {
        match peer::ask_if_known(self) {
            Ok(Some(peer)) if has_better_right(self.term(), &peer) => {
                let why = format!(
                    "{} is {} at term {}",
                    self.peer_name(),
                    peer.standing(),
                    peer.term
                );
                self.hold_back(None);
                self.fence(model::Term(peer.term), &why);
                true
            }
            // It answers, and is not production; or it never had the context; or there is no such peer. One that has it and
            // cannot open it says nothing about who is production.
            Ok(_) | Err(PeerError::UnknownHost(_)) => {
                self.hold_back(None);
                // A stop that came meanwhile stays.
                if let Err(e) = self.start() {
                    tracing::error!(context = self.id().0, "not started: {e}");
                    self.hold_back(Some(e.to_string()));
                }
                true
            }
            Err(_) => false,
        }
    }
}
