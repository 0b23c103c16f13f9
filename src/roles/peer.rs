//! What two hosts ask each other about roles, outside a context's stream.
//!
//! | kind | question | answer |
//! | --- | --- | --- |
//! | 20 | context | what the asked host is for it: [`PeerStanding`] |
//! | 21 | context, volume, first byte | its stale regions from there on, a page of them: `StalePage` |
//! | 22 | context, term, whether a running production is to be stopped | gives its role up, durably: [`PeerStanding`] after that |
//! | 24 | context, configured production, failover id | keeps that as its configuration: nothing |
//! | 23 | context | the acting production begins to ship: [`PeerStanding`] |
//! | 29 | context, bytes of each volume | makes its storage ready for so many, durably (rule K3): what it is ready for |
//!
//! All are answered to the context's peer alone, stopped or not. Bodies are JSON: they are few and small.

use crate::{
    agent::meeting::PeerSet,
    context::{Context, ContextError, Running},
    node::Node,
    peer::PeerError,
    roles::{
        Next, Standing,
        row::standing_of,
        rules::{Here, Keeps, TERMS_BELOW},
    },
};
use bytes::Bytes;
use journal::{JournalError, LinePart};
use model::{ByteRange, ContextState, GenId, Role, Term, VolumeIndex, WriteSeq};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Request kind: what are you for this context?
pub const STANDING: u16 = 20;
/// Request kind: which regions are stale in your map?
pub const STALE: u16 = 21;
/// Request kind: give your role up.
pub const GIVE_UP: u16 = 22;
/// Request kind: this is the configured pair.
pub const PAIR: u16 = 24;
/// Request kind: ship what is to be resynced.
pub const ACTIVATE: u16 = 23;
/// Request kind: make the volumes' storage ready for larger sizes.
pub const EXTEND: u16 = 29;
/// Regions of one answer.
const PAGE: usize = 16_384;

/// A part of a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    id: u64,
    after: u64,
    upto: u64,
    /// Chain digest there, in hexadecimal.
    #[serde(default)]
    digest: Option<String>,
}

/// What a host is for a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerStanding {
    /// Role and state as [`Standing`] has them, by name of the state.
    production: bool,
    state: String,
    /// Whether an operator stopped it.
    pub stopped: bool,
    /// The highest term that it has seen.
    pub term: u64,
    line: Vec<Part>,
    /// Bytes of regions that are stale in its map.
    pub stale_bytes: u64,
    /// Records of its line that its volumes hold.
    pub applied: u64,
    /// Where its line ends.
    pub end: u64,
}

impl PeerStanding {
    /// What it is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let role = if self.production {
            Role::Production
        } else {
            Role::Recovery
        };
        Standing::of(
            role,
            ContextState::named(&self.state).unwrap_or(ContextState::Enabled),
        )
    }

    /// Whether it serves the volumes now.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.standing().serves() && !self.stopped
    }

    /// Its line.
    #[must_use]
    pub fn line(&self) -> Vec<LinePart> {
        let part = |p: &Part| LinePart {
            id: GenId(p.id),
            after: WriteSeq(p.after),
            upto: WriteSeq(p.upto),
            digest: p.digest.as_ref().and_then(digest),
        };
        self.line.iter().map(part).collect()
    }

    /// What a host says of itself.
    #[must_use]
    pub fn of(here: &Here<'_>) -> Self {
        let journal = here.journal;
        let (role, state) = standing_of(here.row).row();
        let part = |p: LinePart| Part {
            id: p.id.0,
            after: p.after.0,
            upto: p.upto.0,
            digest: p.digest.map(|d| blake3::Hash::from_bytes(d).to_string()),
        };
        let (_, end) = journal.line_cursors();
        Self {
            production: role == Role::Production,
            state: state.to_string(),
            stopped: here.row.state == ContextState::Stopped,
            term: here.row.term.0,
            line: journal.line_parts().into_iter().map(part).collect(),
            stale_bytes: here.stale_bytes(),
            applied: journal.cursors().written_back.min(end).0,
            end: end.0,
        }
    }
}

/// A digest as it was told; one of another form is none.
fn digest(text: &String) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}

/// Stale regions of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StalePage {
    /// Pairs of first byte and end.
    regions: Vec<(u64, u64)>,
    /// Where to go on; `None`: that was all.
    next: Option<u64>,
    /// Whether the host has a map of the volume at all.
    known: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StaleQuestion {
    context: u32,
    volume: u16,
    from: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GiveUpQuestion {
    context: u32,
    term: u64,
    force: bool,
    /// Under which the asking command holds the lock there.
    #[serde(default)]
    lock: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivateQuestion {
    context: u32,
    /// Under which the asking command holds the lock there.
    #[serde(default)]
    lock: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairQuestion {
    context: u32,
    production: String,
    failover_id: u32,
    /// Under which the asking command holds the lock there.
    #[serde(default)]
    lock: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtendQuestion {
    context: u32,
    /// By index; one that is ready for more stays so.
    extents: Vec<u64>,
}

fn json(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("plain values"))
}

fn read<'a, T: Deserialize<'a>>(host: &str, body: &'a [u8]) -> Result<T, PeerError> {
    serde_json::from_slice(body).map_err(|e| PeerError::Refused {
        host: host.to_owned(),
        text: format!("an answer of another form: {e}"),
    })
}

/// Asks the peer what it is.
///
/// # Errors
/// When it cannot be reached or does not have the context, or not in working order.
pub fn ask(context: &Context) -> Result<PeerStanding, PeerError> {
    ask_if_known(context)?.ok_or_else(|| PeerError::Refused {
        host: context.peer_name().to_owned(),
        text: format!("context {} is not there", context.id()),
    })
}

/// Asks the peer what it is; `None`: it has no such context, not even a broken one.
///
/// # Errors
/// When it cannot be reached, or its context is not in working order.
pub fn ask_if_known(context: &Context) -> Result<Option<PeerStanding>, PeerError> {
    let body = json(&context.id().0);
    let node = context.node();
    let answer = node.peers().request(&node, context.peer_name(), STANDING, body)?;
    read(context.peer_name(), &answer)
}

/// Asks the peer to give its role up at `term`; `force`: even if it runs.
///
/// # Errors
/// When it cannot be reached or refuses.
pub fn ask_to_give_up(context: &Context, term: Term, force: bool) -> Result<PeerStanding, PeerError> {
    let body = json(&GiveUpQuestion {
        context: context.id().0,
        term: term.0,
        force,
        lock: context.token(),
    });
    let node = context.node();
    let answer = node.peers().request(&node, context.peer_name(), GIVE_UP, body)?;
    read(context.peer_name(), &answer)
}

/// Asks the acting production to begin the resync.
///
/// # Errors
/// When it cannot be reached or refuses.
pub fn ask_to_activate(context: &Context) -> Result<PeerStanding, PeerError> {
    let node = context.node();
    let body = json(&ActivateQuestion {
        context: context.id().0,
        lock: context.token(),
    });
    let answer = node.peers().request(&node, context.peer_name(), ACTIVATE, body)?;
    read(context.peer_name(), &answer)
}

/// Tells the peer what the pair is configured to be.
///
/// # Errors
/// When it cannot be reached or refuses.
pub fn ask_to_pair(context: &Context, production: &str, failover_id: u32) -> Result<(), PeerError> {
    let node = context.node();
    let body = json(&PairQuestion {
        context: context.id().0,
        production: production.to_owned(),
        failover_id,
        lock: context.token(),
    });
    node.peers()
        .request(&node, context.peer_name(), PAIR, body)
        .map(drop)
}

/// Asks the peer to make its volumes' storage ready for so many bytes; answers what it is ready for.
///
/// # Errors
/// When it cannot be reached, or its storage cannot be made so long.
pub fn ask_to_extend(context: &Context, extents: Vec<u64>) -> Result<Vec<u64>, PeerError> {
    let node = context.node();
    let body = json(&ExtendQuestion {
        context: context.id().0,
        extents,
    });
    let answer = node.peers().request(&node, context.peer_name(), EXTEND, body)?;
    read(context.peer_name(), &answer)
}

/// The peer's line, and its stale regions.
///
/// # Errors
/// When it cannot be reached.
pub fn set_of(context: &Context) -> Result<PeerSet, PeerError> {
    let line = ask(context)?.line();
    let node = context.node();
    let peer = context.peer_name();
    let mut stale = Some(Vec::new());
    for (volume, _) in context.config.indexed() {
        let mut from = Some(0);
        while let Some(at) = from {
            let body = json(&StaleQuestion {
                context: context.id().0,
                volume: volume.0,
                from: at,
            });
            let page: StalePage = read(peer, &node.peers().request(&node, peer, STALE, body)?)?;
            if !page.known {
                stale = None;
            }
            let regions = page.regions.iter().filter(|(start, end)| start < end);
            let regions = regions.map(|(start, end)| {
                let range = ByteRange {
                    start: *start,
                    end: *end,
                };
                (volume, range)
            });
            if let Some(stale) = &mut stale {
                stale.extend(regions);
            }
            // A peer that does not lead forward is not asked for ever.
            from = page.next.filter(|next| *next > at);
        }
    }
    Ok(PeerSet { line, stale })
}

/// Answers one of these requests.
pub(crate) fn answer(node: &Arc<Node>, asker: &str, kind: u16, body: &[u8]) -> Result<Bytes, String> {
    let form = |e: serde_json::Error| format!("the question has another form: {e}");
    let context = |id: u32| {
        node.context(id)
            .filter(|c| c.id().0 == id && c.peer_name() == asker)
            .ok_or_else(|| format!("context {id} is not one of {asker} here"))
    };
    match kind {
        STANDING => {
            let id: u32 = serde_json::from_slice(body).map_err(form)?;
            if !node.knows_of(id) {
                return Ok(json(&None::<PeerStanding>));
            }
            Ok(json(&Some(standing_here(&*context(id)?))))
        }
        ACTIVATE => {
            let question: ActivateQuestion = serde_json::from_slice(body).map_err(form)?;
            let context = context(question.context)?;
            asked_for(&context, question.lock, "ships what is to be resynced", || {
                if context.standing() == Standing::FailedOver && !context.is_stopped() {
                    crate::ops::role::ship(&context).map_err(|e| e.to_string())?;
                }
                Ok(())
            })?;
            Ok(json(&standing_here(&context)))
        }
        PAIR => {
            let question: PairQuestion = serde_json::from_slice(body).map_err(form)?;
            let context = context(question.context)?;
            let id = question.failover_id;
            if node.context(id).is_some_and(|other| other.id() != context.id()) || id == context.id().0 {
                return Err(format!("id {id} belongs to another context there"));
            }
            if ![context.node_name(), asker].contains(&question.production.as_str()) {
                return Err(format!(
                    "{} keeps no copy of context {}",
                    question.production,
                    context.id()
                ));
            }
            asked_for(&context, question.lock, "keeps the pair", || {
                let pair = context.set_pair(&question.production, id);
                pair.map(drop).map_err(|e| e.to_string())
            })?;
            Ok(Bytes::new())
        }
        EXTEND => {
            let question: ExtendQuestion = serde_json::from_slice(body).map_err(form)?;
            let context = context(question.context)?;
            for ((index, _), bytes) in context.config.indexed().zip(question.extents) {
                context.extend(index, bytes).map_err(|e| e.to_string())?;
            }
            Ok(json(&context.extents()))
        }
        STALE => {
            let question: StaleQuestion = serde_json::from_slice(body).map_err(form)?;
            Ok(json(&stale_page(&*context(question.context)?, &question)))
        }
        _ => {
            let question: GiveUpQuestion = serde_json::from_slice(body).map_err(form)?;
            let context = context(question.context)?;
            asked_for(&context, question.lock, "gives its role up", || {
                give_up(&context, Term(question.term), question.force)
            })?;
            Ok(json(&standing_here(&context)))
        }
    }
}

/// Does what the peer asks for under the lock of its command, or this host's own, and notes it in the log.
fn asked_for(
    context: &Context,
    lock: Option<u64>,
    what: &str,
    work: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let log = |holder: &control::Holder| {
        let begun = model::Timestamp::now();
        let done = work();
        let by = format!("{}: {} {what}", holder.command, context.node_name());
        let node = context.node();
        node.jobs()
            .log()
            .note(Some(context.id().0), &holder.operator, &by, begun, &done);
        done
    };
    let done = context.for_peer(lock, what, log);
    done.unwrap_or_else(|holder| {
        Err(format!(
            "another command works on context {} there: {holder}",
            context.id()
        ))
    })
}

fn standing_here(context: &Context) -> PeerStanding {
    PeerStanding::of(&Here {
        row: &context.row(),
        journal: &context.journal,
    })
}

fn stale_page(context: &Context, question: &StaleQuestion) -> StalePage {
    let volume = VolumeIndex(question.volume);
    let known = context.journal.mapped_volumes().contains(&volume);
    let (mut regions, mut from) = (Vec::new(), question.from);
    while regions.len() < PAGE
        && let Some(range) = context.journal.next_stale(volume, from, 1 << 40)
    {
        regions.push((range.start, range.end));
        from = range.end;
    }
    StalePage {
        next: (regions.len() == PAGE).then_some(from),
        regions,
        known,
    }
}

/// Gives the role up: durably, before the answer. A production that runs does so only if the other host insists; then it
/// stops first and lets the link drain as far as that goes by itself.
fn give_up(context: &Arc<Context>, term: Term, force: bool) -> Result<(), String> {
    let here = context.node_name().to_owned();
    if term.0 >= TERMS_BELOW {
        return Err(format!(
            "{here} takes no term like {term}: none would be left above it"
        ));
    }
    let row = context.row();
    let side = Here {
        row: &row,
        journal: &context.journal,
    };
    match side.gives_up(context.is_home(), term, force) {
        Ok(true) => {}
        Ok(false) => return raise_term(context, term).map_err(|e| e.to_string()),
        Err(Keeps::Refused(next)) => return Err(refusal(context, next)),
        Err(Keeps::HigherTerm) => {
            return Err(format!(
                "{here} is at term {}, which is higher than {term}",
                context.term()
            ));
        }
    }
    stop_serving(context).map_err(|e| e.to_string())?;
    let why = format!("it gave its role up to {} at term {term}", context.peer_name());
    context
        .set_standing(Standing::Fenced, term, Some(&why))
        .map_err(|e| e.to_string())?;
    context.halt();
    tracing::warn!(context = context.id().0, term = term.0, "{why}");
    Ok(())
}

fn refusal(context: &Context, next: Next) -> String {
    let (command, _) = next.command(context.id());
    let state = if context.is_running() { "runs" } else { "is there" };
    format!(
        "{} {state} on {}: {command} there first",
        context.standing(),
        context.node_name()
    )
}

fn raise_term(context: &Context, term: Term) -> Result<(), JournalError> {
    if term > context.term() {
        context.change_row(|row| row.term = row.term.max(term))?;
    }
    Ok(())
}

/// Ends capture: nothing is acknowledged any more, what was is durable.
fn stop_serving(context: &Arc<Context>) -> Result<(), ContextError> {
    if let Some(running) = context.running()
        && let Running::Production(production) = &*running
    {
        production.tap.close();
        production.tap.sync_once()?;
        production.tap.seal_now()?;
        context.bells.sealed.ring();
        context.bells.durable.ring();
        crate::ops::lifecycle::wait_for_peer(context, std::time::Duration::from_secs(10));
    }
    Ok(())
}
