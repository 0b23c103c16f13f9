//! A context whose journal is damaged, and its way out.
//!
//! # Overview
//!
//! A journal that opens below what was durable is not opened (invariant 9). Its context is then *damaged*: it serves nothing
//! and moves nothing, every command and the peer are told so, and what is missing. The damage is on the disk, so the state
//! survives every restart without a record of its own.
//!
//! The frames that a tail lost are the same bytes on the other host: production keeps redo until it is applied on recovery, and
//! recovery has what was acknowledged. So the damaged host asks the other one ([`FRAMES`]), now and then until it is reached,
//! for the frames behind its last whole record; [`journal::mend`] puts them in their places; then the journal is opened as
//! ever, and the context goes on in the same generation. Both directions are the same code: production asks before it serves
//! anything, recovery before it greets anybody.
//!
//! A container that rotted in the recovery host's store before it was applied comes back the same way (`refetch`), because
//! production still holds it. As long as production is not there, applying stands still and the rest of the context goes on:
//! what is applied can be read and restored, which is what a recovery host is for.
//!
//! # Invariants
//!
//! - The asker proves its position (generation, record, chain digest), and the other host answers only with frames of that
//!   generation that it holds durably, and only to the context's peer. Whether its own line has gone on elsewhere since, by a
//!   failover, is no matter: a frame is the same bytes.
//! - An answer is at most `PAGE_BYTES`; a frame that is longer comes in parts.
//!
//! # What it does not do
//!
//! It gives up nothing: what the other host does not hold either stays damage until somebody decides. Metadata and the
//! superblock are of this host alone: no peer can mend them.

use crate::{
    agent::meeting::{self, Verdict},
    applying::ApplyError,
    bell::Bell,
    config::ContextConfig,
    context::{Context, ContextError, Place},
    node::Node,
    peer::PeerError,
};
use bytes::Bytes;
use control::{Code, Failure};
use journal::{
    Damage, FRAME_BYTES_MAX, Frame, FrameHeader, Journal, JournalError, LfcRow,
    mend::{self, Missing},
};
use model::{ContextId, GenId, GenNo, LfcId, WriteSeq};
use parking_lot::Mutex;
use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use wire::Position;

/// Request kind: the frames of a context behind a position (`docs/formats/wire.md`).
pub const FRAMES: u16 = 16;
/// Bytes of the question.
const QUESTION_BYTES: usize = 60;
/// Most bytes of an answer.
const PAGE_BYTES: usize = 1 << 20;
/// How often the other host is asked while it is away.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(2);
/// How seldom it is asked at most, when it was there and could not help: each attempt may read whole tails.
const ASK_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// Why a damaged context is not whole yet.
#[derive(Debug, thiserror::Error)]
enum Still {
    /// The peer was not asked: it may come at any time, and looking for it reads nothing.
    #[error("{0}")]
    Away(PeerError),
    /// What the peer has does not help, or the damage is not the peer's to mend.
    #[error("{0}")]
    Damaged(String),
}

impl Still {
    /// How long to wait after an attempt that came `pause` after the one before.
    fn next_pause(&self, pause: Duration) -> Duration {
        match self {
            Self::Away(_) => ASK_EVERY,
            Self::Damaged(_) => (pause * 2).min(ASK_AT_LEAST_EVERY),
        }
    }
}

impl From<JournalError> for Still {
    fn from(e: JournalError) -> Self {
        Self::Damaged(e.to_string())
    }
}

impl From<PeerError> for Still {
    fn from(e: PeerError) -> Self {
        match e {
            PeerError::Refused { .. } => Self::Damaged(e.to_string()),
            e => Self::Away(e),
        }
    }
}

/// A damaged context.
pub struct Damaged {
    place: Place,
    damage: String,
    peer: String,
    now: Mutex<Now>,
    /// Rung when the peer is there.
    peer_is_here: Bell,
}

/// What is known of it at the moment.
struct Now {
    missing: Option<Missing>,
    said: String,
}

impl Damaged {
    /// A context that could not be opened because of `damage`.
    pub(crate) fn new(place: Place, damage: &Damage) -> Self {
        let missing = mend::missing(&place.parts).unwrap_or_default();
        let peer = place.peer().to_owned();
        let said = match missing {
            Some(_) => format!("{peer} is being asked for them"),
            None => format!("{peer} cannot mend that"),
        };
        Self {
            damage: damage.to_string(),
            peer,
            now: Mutex::new(Now { missing, said }),
            place,
            peer_is_here: Bell::default(),
        }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &ContextConfig {
        &self.place.config
    }

    /// The other host.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// One sentence for people: what is damaged, what is missing, what is being done.
    #[must_use]
    pub fn sentence(&self) -> String {
        let now = self.now.lock();
        let lost = now.missing.map_or_else(String::new, |m| {
            format!("; records {} to {} are not whole here", m.after.next(), m.upto)
        });
        format!(
            "context {} is damaged: {}{lost}; {}",
            self.place.config.id, self.damage, now.said
        )
    }

    /// The answer to every command on it.
    #[must_use]
    pub fn failure(&self, code: Code) -> Failure {
        let mendable = self.now.lock().missing.is_some();
        let failure = Failure::new(code, self.sentence());
        if mendable {
            failure
                .with_hint(format!(
                    "nothing is served before it is whole; {} is asked again and again: see that its daemon runs",
                    self.peer
                ))
                .with_hint_command(
                    format!("backstay status -C {}", self.place.config.id),
                    self.peer.clone(),
                )
        } else {
            failure
                .with_hint("nothing is served; the damage is of this host's own metadata: see docs/DAMAGE.md")
        }
    }

    /// The peer was heard.
    pub(crate) fn ring(&self) {
        self.peer_is_here.ring();
    }

    /// Looks again at what is missing.
    fn look(&self) -> Result<Option<Missing>, JournalError> {
        let missing = mend::missing(&self.place.parts)?;
        self.now.lock().missing = missing;
        Ok(missing)
    }

    /// Mends the journal with what the peer has and opens the context. The tails are read again only when they changed.
    fn attempt(&self, node: &Arc<Node>) -> Result<Arc<Context>, Still> {
        let parts = &self.place.parts;
        let mut taken = 0;
        let mut missing = self.now.lock().missing;
        while let Some(place) = missing {
            let from = Position {
                generation: place.generation,
                seq: place.after,
                digest: place.digest,
            };
            let frames = fetch(node, &self.peer, self.place.config.context(), from)?;
            taken += mend::mend(parts, &frames)?;
            missing = self.look()?;
            // Frames that came and did not move the damage would come for ever.
            if missing.is_some_and(|m| (m.generation, m.after) == (place.generation, place.after)) {
                return Err(Still::Damaged(format!(
                    "{} holds nothing behind record {} that continues it",
                    self.peer, place.after
                )));
            }
        }
        let opened = Context::open(&self.place, node, false);
        if opened.is_err() {
            self.look()?;
        }
        let context = opened.map_err(|e| Still::Damaged(e.to_string()))?;
        tracing::info!(
            context = self.place.config.id,
            frames = taken,
            "a damaged tail is whole again"
        );
        Ok(context)
    }
}

/// Asks the peer, now and then, until the context is whole or the node ends.
pub(crate) fn keep_asking(node: &Arc<Node>, damaged: &Arc<Damaged>) {
    let (node, damaged): (Weak<Node>, _) = (Arc::downgrade(node), Arc::clone(damaged));
    let work = move || {
        let mut ear = damaged.peer_is_here.ear();
        // What needs no frame: a header that is lost and whose frames are all here.
        let begun = mend::mend(&damaged.place.parts, &[]).and_then(|_| damaged.look());
        if let Err(e) = begun {
            damaged.now.lock().said = e.to_string();
        }
        let mut pause = ASK_EVERY;
        loop {
            let until = Instant::now() + pause;
            let left = || until.saturating_duration_since(Instant::now());
            // A peer that comes is asked at once, if it is one that can help.
            while ear.wait(left()) {
                if damaged.now.lock().missing.is_some() {
                    pause = ASK_EVERY;
                    break;
                }
            }
            let Some(node) = node.upgrade().filter(|n| n.is_damaged(&damaged)) else {
                return;
            };
            match damaged.attempt(&node) {
                Ok(context) => return node.mended(&damaged, context),
                Err(still) => {
                    pause = still.next_pause(pause);
                    let text = still.to_string();
                    let mut now = damaged.now.lock();
                    if now.said != text {
                        tracing::warn!(context = damaged.place.config.id, "still damaged: {text}");
                    }
                    now.said = text;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("mend".into())
        .spawn(work)
        .expect("a thread can be started");
}

/// Puts a container of the store that does not check there again, if the peer still holds it. `None`: the error was something
/// else. An error is why it stays damaged for now: asking again later may help.
pub(crate) fn refetch(context: &Context, error: &ContextError) -> Option<Result<(), String>> {
    let (ContextError::Journal(error) | ContextError::Apply(ApplyError::Journal(error))) = error else {
        return None;
    };
    let JournalError::Damaged(damage @ Damage::Container { generation, lfc, .. }) = error else {
        return None;
    };
    let journal = &context.journal;
    let row = journal.lfc_row(*generation, *lfc)?;
    let peer = context.peer_name();
    if journal.waiting_end() == Some(row.last_seq) {
        return Some(Err(format!(
            "{damage}, in its tail: restart the daemon, it fetches from {peer} what is missing"
        )));
    }
    let done = refetch_row(context, &row);
    Some(done.map_err(|why| format!("{damage}; it is fetched from {peer} when that has it: {why}")))
}

fn refetch_row(context: &Context, row: &LfcRow) -> Result<(), String> {
    let (journal, generation, lfc): (&Journal, GenNo, LfcId) = (&context.journal, row.generation, row.lfc);
    let peer = context.peer_name();
    let id = journal
        .generations()
        .into_iter()
        .find(|g| g.no == generation)
        .map(|g| g.id);
    let mut at = Position {
        generation: id.unwrap_or_default(),
        seq: WriteSeq(row.first_seq.0 - 1),
        digest: row.prev_digest,
    };
    let mut frames = Vec::new();
    while at.seq < row.last_seq {
        let some = fetch(&context.node(), peer, context.id(), at).map_err(|e| e.to_string())?;
        if some.is_empty() {
            return Err(format!("{peer} holds nothing behind record {}", at.seq));
        }
        for bytes in some {
            if at.seq == row.last_seq {
                break;
            }
            // Each frame moves the position on, or a peer that repeats itself would be asked for ever.
            at = continued(at, lfc, &bytes)
                .ok_or_else(|| format!("what {peer} sent does not continue record {}", at.seq))?;
            frames.push(bytes);
        }
    }
    let failed = |e: JournalError| e.to_string();
    journal.mend_container(generation, lfc, &frames).map_err(failed)?;
    // A place that rots again at once is not called whole.
    journal.frames_of(generation, lfc).map_err(failed)?;
    tracing::info!(
        context = context.id().0,
        lfc = lfc.0,
        "a damaged container is whole again"
    );
    Ok(())
}

/// The position behind a frame, if the frame is of this container and continues the position exactly.
fn continued(at: Position, lfc: LfcId, bytes: &Bytes) -> Option<Position> {
    let frame = Frame::parse(bytes.clone()).ok()?;
    let h = frame.header();
    let expected = (at.generation, lfc, at.seq.next(), at.digest);
    ((h.generation, h.lfc, h.first_seq, h.prev_digest) == expected).then(|| Position {
        seq: frame.last_seq(),
        digest: frame.digest(),
        ..at
    })
}

/// Whole frames behind a position, from another host: at least one, if it has one.
fn fetch(node: &Node, host: &str, context: ContextId, from: Position) -> Result<Vec<Bytes>, PeerError> {
    let mut got: Vec<u8> = Vec::new();
    loop {
        let question = question(context, from, got.len());
        let part = node.peers().request(node, host, FRAMES, question)?;
        let over = part.is_empty() || got.len() > FRAME_BYTES_MAX;
        got.extend_from_slice(&part);
        let frames = split(&Bytes::copy_from_slice(&got));
        if over || !frames.is_empty() {
            return Ok(frames);
        }
    }
}

fn split(all: &Bytes) -> Vec<Bytes> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Ok(header) = FrameHeader::parse(&all[at..]) {
        let end = at + header.frame_len();
        if end > all.len() {
            break;
        }
        frames.push(all.slice(at..end));
        at = end;
    }
    frames
}

fn question(context: ContextId, from: Position, skip: usize) -> Bytes {
    let mut body = Vec::with_capacity(QUESTION_BYTES);
    body.extend_from_slice(&context.0.to_le_bytes());
    body.extend_from_slice(&from.generation.0.to_le_bytes());
    body.extend_from_slice(&from.seq.0.to_le_bytes());
    body.extend_from_slice(&from.digest);
    body.extend_from_slice(&(skip as u64).to_le_bytes());
    Bytes::from(body)
}

fn read_question(body: &[u8]) -> Option<(ContextId, Position, u64)> {
    let body: &[u8; QUESTION_BYTES] = body.try_into().ok()?;
    let u64_at = |at: usize| body[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let context = ContextId(u32::from_le_bytes(body[..4].try_into().ok()?));
    let from = Position {
        generation: GenId(u64_at(4)?),
        seq: WriteSeq(u64_at(12)?),
        digest: body[20..52].try_into().ok()?,
    };
    Some((context, from, u64_at(52)?))
}

/// Answers [`FRAMES`] for a host that is the context's peer.
pub(crate) fn answer(node: &Node, asker: &str, body: &[u8]) -> Result<Bytes, String> {
    let (id, from, skip) = read_question(body).ok_or("the question has another form")?;
    let here = node.name();
    let context = node
        .context(id.0)
        .filter(|c| c.id() == id && c.peer_name() == asker);
    let Some(context) = context else {
        return Err(match node.damaged_context(id.0) {
            Some(_) => format!("context {id} is damaged on {here}, too"),
            None => format!("context {id} is not one of {asker} here"),
        });
    };
    let journal = &context.journal;
    let gone = |e: JournalError| format!("{here} does not hold the records behind {}: {e}", from.seq);
    let durable = journal.cursors().durable;
    let skip = usize::try_from(skip)
        .unwrap_or(usize::MAX)
        .min(2 * FRAME_BYTES_MAX);
    let wanted = skip + PAGE_BYTES;
    let verdict = meeting::judge(journal, from, false).map_err(gone)?;
    let mut frames = match verdict {
        Verdict::Here => journal.frames_after(from.seq, wanted as u64).map_err(gone)?,
        _ => Vec::new(),
    };
    frames.retain(|f| f.generation() == from.generation && f.last_seq() <= durable);
    if frames.is_empty() {
        frames = left_behind(journal, from, wanted).map_err(gone)?;
    }
    if frames.is_empty() {
        return match verdict {
            Verdict::Here => Ok(Bytes::new()),
            Verdict::Jump(_) => Err(format!(
                "{here} does not hold what is behind record {} any more",
                from.seq
            )),
            _ if from.seq > durable => Err(format!("{here} has received no more than record {durable}")),
            _ => Err(format!("record {} of {here} is of another history", from.seq)),
        };
    }
    let mut all = Vec::new();
    for frame in &frames {
        if all.len() >= wanted {
            break;
        }
        all.extend_from_slice(frame.bytes());
    }
    let end = all.len().min(wanted);
    Ok(Bytes::copy_from_slice(&all[skip.min(end)..end]))
}

/// Frames behind a position of a generation that this host's line has left, or has left behind: the same bytes, whatever became
/// of the line. Empty where the position is not ours, or what is behind it is not held.
fn left_behind(journal: &Journal, from: Position, wanted: usize) -> Result<Vec<Arc<Frame>>, JournalError> {
    let Some(no) = journal.generation_by_id(from.generation).map(|g| g.no) else {
        return Ok(Vec::new());
    };
    match journal.digest_at(no, from.seq) {
        Ok(found) if found == (from.seq, from.digest) => {}
        Ok(_) | Err(JournalError::NotHeld { .. }) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let (mut frames, mut bytes) = (Vec::new(), 0);
    let mut next = from.seq.next();
    // What is sealed is durable.
    for row in journal.lfc_rows((no, LfcId(0))..=(no, LfcId(u64::MAX))) {
        if row.last_seq < next {
            continue;
        }
        if row.first_seq > next || !journal.is_held(&row) || bytes >= wanted {
            break;
        }
        for frame in journal.frames_of(no, row.lfc)? {
            if frame.first_seq() >= next {
                bytes += frame.len();
                frames.push(frame);
            }
        }
        next = row.last_seq.next();
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::Draft;
    use model::{RecordBody, Timestamp, VolumeIndex};

    #[test]
    fn who_is_away_is_looked_for_and_who_cannot_help_is_asked_ever_less() {
        let away = Still::from(PeerError::Silent("rec".into()));
        let refused = Still::from(PeerError::Refused {
            host: "rec".into(),
            text: "it does not hold that".into(),
        });
        let mut pause = ASK_EVERY;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pause = refused.next_pause(pause);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [4, 8, 16, 32, 60, 60]);
        assert_eq!(away.next_pause(pause), ASK_EVERY);
    }

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let from = Position {
            generation: GenId(7),
            seq: WriteSeq(8),
            digest: [9; 32],
        };
        let body = question(ContextId(3), from, 5);
        assert_eq!(body.len(), QUESTION_BYTES);
        assert_eq!(read_question(&body), Some((ContextId(3), from, 5)));
        assert_eq!(read_question(&body[1..]), None);
    }

    /// A peer that repeats a frame, leaves one out or answers with another container is not asked for ever.
    #[test]
    fn a_frame_moves_the_position_on_or_is_refused() {
        let frame = |generation, lfc, seq, digest| {
            let draft = Draft {
                volume: VolumeIndex(0),
                body: RecordBody::Birth {
                    parent: None,
                    parent_digest: [0; 32],
                },
            };
            Frame::build(generation, lfc, WriteSeq(seq), digest, &[(draft, Timestamp(seq))])
        };
        let at = Position {
            generation: GenId(7),
            seq: WriteSeq(8),
            digest: [9; 32],
        };
        let next = frame(GenId(7), LfcId(4), 9, [9; 32]);
        let behind = continued(at, LfcId(4), &next).unwrap();
        assert_eq!((behind.generation, behind.seq), (GenId(7), WriteSeq(9)));
        assert_eq!(continued(behind, LfcId(4), &next), None, "the same once more");
        let others = [
            frame(GenId(7), LfcId(4), 10, [9; 32]),
            frame(GenId(7), LfcId(4), 8, [9; 32]),
            frame(GenId(7), LfcId(4), 9, [8; 32]),
            frame(GenId(7), LfcId(5), 9, [9; 32]),
            frame(GenId(6), LfcId(4), 9, [9; 32]),
            next.slice(..next.len() - 1),
        ];
        for other in others {
            assert_eq!(continued(at, LfcId(4), &other), None);
        }
    }
}
