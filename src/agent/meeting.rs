//! Where a peer's end lies in relation to our line, and what the stream therefore begins with (rules L1, L4, C4).
//!
//! # Overview
//!
//! Production has heard how far the recovery host is and whether that host's own line was given up. [`judge`] tells four cases
//! apart, from the journal alone:
//!
//! | the peer's end | verdict |
//! | --- | --- |
//! | on our line, and all behind it is held | [`Verdict::Here`]: frames flow |
//! | on our line, and what comes next gave way to the state map | [`Verdict::Jump`]: those regions are stale already |
//! | elsewhere, but its owner gave its line up; or before a part of our line that cannot be sent frame by frame | [`Verdict::Apart`] |
//! | elsewhere | [`Verdict::Diverged`]: an operator chooses |
//!
//! [`bring_together`] is for hosts that are apart. It makes the one symmetric set of rule L1 stale in our own map, durably: every
//! block of every record past the newest common position that either host holds, and the peer's stale cells. Then the stream
//! jumps to the beginning of our newest generation, whose records are sent as redo (what only they change is in no need of a
//! copy), and the copier sends what is stale.
//!
//! [`meet`] is all of it, with what the two hosts remember of each other.
//!
//! # Invariants
//!
//! - The set is durable before the jump is sent. Interrupted before, all of it is done again; interrupted after it, our own map
//!   knows all that is missing.
//! - A cell that is taken over is stale at our own newest position (C4): no copy that is on its way can clear it.
//! - What cannot be known (a catalog that does not reach back, a peer without a journal) is stale wholly, never clean.

use journal::{Journal, JournalError, LinePart, Parent, tap::Tap};
use model::{ByteRange, LfcId, VolumeIndex, WriteSeq};
use std::cmp::Ordering;
use wire::{Jump, JumpCause, Position, Resume, Welcome};

/// How the stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer's end is on our line, and we hold every record behind it.
    Here,
    /// It is on our line, and what comes next gave way to the state map.
    Jump(Jump),
    /// The two must be brought together first.
    Apart,
    /// The peer's end is not on our line, and nobody has given its line up.
    Diverged {
        /// Our own end.
        ours: Position,
    },
}

/// What the peer says of its line when hosts are brought together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSet {
    /// Its line.
    pub line: Vec<LinePart>,
    /// Its stale regions; `None`: it does not know which differ.
    pub stale: Option<Vec<(VolumeIndex, ByteRange)>>,
}

/// What whoever owns the context knows of the peer and keeps, beside the journal.
pub trait Acquaintance {
    /// Why the peer could not be asked, or the journal failed.
    type Error: From<JournalError>;

    /// Whether an operator wants what is stale to be copied, whatever the peer says it has.
    fn is_forced(&self) -> bool;

    /// The store of the peer that our state maps are about.
    fn instance(&self) -> Option<String>;

    /// Takes another store of the peer for the one that our state maps are about; durable when it returns.
    ///
    /// # Errors
    /// When it could not be kept.
    fn keep_instance(&self, instance: String) -> Result<(), Self::Error>;

    /// Makes the storage of both hosts ready for what either is ready for: no region of a volume may be on one host alone, where no map
    /// and no copy of the other would know of it. Their histories go together.
    ///
    /// # Errors
    /// When a host's storage cannot be made so long, or holds what nobody has asked about.
    fn match_extents(&self) -> Result<(), Self::Error>;

    /// The line and the stale regions of a peer that gives way.
    ///
    /// # Errors
    /// When it cannot be reached.
    fn set_of_peer(&self) -> Result<PeerSet, Self::Error>;
}

/// What a meeting has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    /// How the stream begins.
    pub resume: Resume,
    /// The peer has a new store: everything is copied.
    pub is_new: bool,
    /// The peer has lost what it had acknowledged: everything is copied.
    pub went_back: bool,
}

/// Finds out how the stream begins, and takes the peer's position as it is. A peer whose store was made anew has none of the
/// regions that another store once acknowledged: all are stale again, durably, before it is taken for the one we know.
///
/// # Errors
/// When the peer cannot be asked, or the journal fails; met again it goes on.
pub fn meet<A: Acquaintance>(
    journal: &Journal,
    tap: &Tap,
    peer: Position,
    welcome: &Welcome,
    known: &A,
) -> Result<Met, A::Error> {
    let mut theirs = None;
    let mut verdict = judge(journal, peer, welcome.gives_way)?;
    if welcome.gives_way {
        let set = known.set_of_peer()?;
        // It may have nothing that we lack, and still know regions that differ.
        if verdict != Verdict::Here || set.stale.as_ref().is_none_or(|stale| !stale.is_empty()) {
            verdict = Verdict::Apart;
        }
        theirs = Some(set);
    }
    let met = |resume| Met {
        resume,
        is_new: false,
        went_back: false,
    };
    if let Verdict::Diverged { ours } = verdict {
        return Ok(met(Resume::Diverged { ours }));
    }
    known.match_extents()?;
    let instance = format!("{:016x}", welcome.instance);
    let before = known.instance();
    let is_new = before.as_ref().is_some_and(|before| *before != instance);
    if is_new {
        journal.all_stale()?;
    }
    if is_new || before.is_none() {
        known.keep_instance(instance)?;
    }
    // Rule L3: it ended a container where we have not, at a change of role that did not come to its end. The records that
    // belong into that container have no place there any more.
    if verdict == Verdict::Here && welcome.open_lfc == LfcId(0) && !ends_container(journal, peer) {
        tap.seal_now()?;
        if !ends_container(journal, peer) {
            verdict = Verdict::Apart;
        }
    }
    // Also when the peer is new: its store may have come with a replica that takes itself for consistent.
    if verdict == Verdict::Apart || (known.is_forced() && !welcome.copying) {
        let jump = bring_together(journal, tap, peer, theirs.as_ref())?;
        return Ok(Met {
            is_new,
            ..met(Resume::Jump(jump))
        });
    }
    let lacks = welcome.copying || matches!(verdict, Verdict::Jump(_));
    let went_back = take_peer(journal, peer.seq, welcome.applied.min(peer.seq), lacks)?;
    Ok(Met {
        resume: match verdict {
            Verdict::Jump(jump) => Resume::Jump(jump),
            _ => Resume::Here,
        },
        is_new,
        went_back,
    })
}

/// Where this host's line ends, as the wire says it.
///
/// # Errors
/// When the journal cannot be read.
pub fn end_of(journal: &Journal) -> Result<Position, JournalError> {
    let end = journal.line_end()?;
    Ok(
        end.map_or(Position::default(), |(generation, seq, digest)| Position {
            generation,
            seq,
            digest,
        }),
    )
}

/// Tells where the peer's end lies. `gives_way`: its owner has given its line up.
///
/// A position inside a container that was dropped cannot be compared by its digest; that it names a generation of our line
/// and is durable here is enough, because a generation has one writer and never takes a number twice.
///
/// # Errors
/// When the journal cannot be read.
pub fn judge(journal: &Journal, peer: Position, gives_way: bool) -> Result<Verdict, JournalError> {
    let parts = journal.line_parts();
    if peer.seq == WriteSeq(0) {
        // It has nothing: it starts at our beginning, if that is still here and one generation leads from there.
        if gives_way || parts.len() > 1 || journal.awaits_birth() {
            return Ok(Verdict::Apart);
        }
        return Ok(jump_to_floor(journal, JumpCause::FirstSync).map_or(Verdict::Here, Verdict::Jump));
    }
    let on_line =
        |part: &LinePart| part.id == peer.generation && part.after <= peer.seq && peer.seq <= part.upto;
    let is_on_line = is_ours(journal, peer, gives_way)?;
    let Some(i) = parts.iter().position(on_line).filter(|_| is_on_line) else {
        if gives_way {
            return Ok(Verdict::Apart);
        }
        let ours = end_of(journal)?;
        return Ok(Verdict::Diverged { ours });
    };
    if i + 1 == parts.len() {
        // The newest part: our own records, or what we have taken over and not added to.
        let cut = journal.awaits_birth() && has_more(journal, parts[i]);
        let behind = peer.seq < parts[i].upto;
        // What gives way before this host adds to the line is on no map: where the two differ, the rows say.
        let unmapped =
            journal.awaits_birth() && (is_stale(journal) || behind && is_freed(journal, parts[i], peer.seq));
        if (gives_way || cut) && behind || unmapped {
            return Ok(Verdict::Apart);
        }
        return Ok(over_the_gap(journal, peer.seq).map_or(Verdict::Here, Verdict::Jump));
    }
    // A generation of ours begins where the peer ends: all of it is redo, if it is all here.
    let next = i + 2 == parts.len() && peer.seq == parts[i].upto;
    if next && !is_stale(journal) && is_held(journal, parts[i + 1]) {
        return Ok(Verdict::Here);
    }
    Ok(Verdict::Apart)
}

/// Whether our own chain says the same of the peer's end, as far as we still know. Only a line that was taken over at a
/// restored point ends inside a frame.
fn is_ours(journal: &Journal, peer: Position, gives_way: bool) -> Result<bool, JournalError> {
    let Some(generation) = journal.generation_by_id(peer.generation) else {
        return Ok(false);
    };
    match journal.digest_at(generation.no, peer.seq) {
        Ok((seq, digest)) => Ok(digest == peer.digest && (seq == peer.seq || gives_way)),
        Err(JournalError::NotHeld { .. }) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Whether a container of ours ends at the peer's position, as far as we still know.
fn ends_container(journal: &Journal, peer: Position) -> bool {
    let Some(generation) = journal.generation_by_id(peer.generation) else {
        return true;
    };
    let no = generation.no;
    let rows = journal.lfc_rows((no, LfcId(0))..=(no, LfcId(u64::MAX)));
    let holds = |first: WriteSeq, last: WriteSeq| first <= peer.seq && peer.seq <= last;
    if let Some(row) = rows.iter().find(|row| holds(row.first_seq, row.last_seq)) {
        return row.last_seq == peer.seq;
    }
    let open = journal.open_row().filter(|row| row.generation == no);
    !open.is_some_and(|row| holds(row.first_seq, row.last_seq))
}

/// Whether this journal holds records of a part's generation past its end: the line was taken over before them.
fn has_more(journal: &Journal, part: LinePart) -> bool {
    let generation = journal.current_generation();
    generation.is_some_and(|g| g.id != part.id) || journal.cursors().appended > part.upto
}

fn is_stale(journal: &Journal) -> bool {
    let mut volumes = journal.mapped_volumes().into_iter();
    volumes.any(|volume| journal.next_stale(volume, 0, 1).is_some())
}

/// Whether redo of a part's generation is freed behind a record of it.
fn is_freed(journal: &Journal, part: LinePart, seq: WriteSeq) -> bool {
    let (generation, lfc) = journal.floors().redo;
    let of_part = journal.generation_by_id(part.id).map(|g| g.no);
    match Some(generation).cmp(&of_part) {
        Ordering::Less => false,
        Ordering::Equal => journal
            .lfc_row(generation, lfc)
            .is_none_or(|row| row.last_seq > seq),
        Ordering::Greater => true,
    }
}

/// Whether every container of a part's generation is held. The newest part need not be of the newest generation: that may have
/// been opened, and lost its first record with the power.
fn is_held(journal: &Journal, part: LinePart) -> bool {
    let generation = journal.generation_by_id(part.id);
    generation.is_some_and(|g| journal.floors().redo < (g.no, g.first_lfc))
}

/// The jump that a stream needs which stands at `sent`, if the journal gave up what comes next.
#[must_use]
pub fn over_the_gap(journal: &Journal, sent: WriteSeq) -> Option<Jump> {
    // What gives way there is on no map: the two meet again, and are brought together.
    if journal.awaits_birth() {
        return None;
    }
    let newest = journal.current_generation()?.no;
    // What is freed of earlier generations is history, not a gap.
    let in_newest = journal.floors().redo.0 == newest;
    jump_to_floor(journal, JumpCause::Dropped).filter(|jump| in_newest && sent < jump.to.seq)
}

/// A jump behind the newest container that is not kept; `None` when all are.
fn jump_to_floor(journal: &Journal, cause: JumpCause) -> Option<Jump> {
    let (generation, lfc) = journal.floors().redo;
    let row = journal.lfc_row(generation, lfc)?;
    let generation = journal.generations().into_iter().find(|g| g.no == generation)?;
    Some(Jump {
        to: Position {
            generation: generation.id,
            seq: row.last_seq,
            digest: row.end_digest,
        },
        lfc: lfc.next(),
        cause,
        parent: generation.parent.map(parent_position),
    })
}

fn parent_position(parent: Parent) -> Position {
    Position {
        generation: parent.id,
        seq: parent.seq,
        digest: parent.digest,
    }
}

/// The other way round, for who receives it.
#[must_use]
pub fn parent_of(position: &Position) -> Parent {
    Parent {
        id: position.generation,
        seq: position.seq,
        digest: position.digest,
    }
}

/// Makes the set stale and answers the jump that the stream begins with. `peer` is the peer's end, `theirs` what it says of
/// its line if that was given up.
///
/// # Errors
/// When the journal fails.
pub fn bring_together(
    journal: &Journal,
    tap: &Tap,
    peer: Position,
    theirs: Option<&PeerSet>,
) -> Result<Jump, JournalError> {
    // Copies need positions, and those need a generation of our own. The peer is on it as soon as it is told of the jump: a host that
    // lost its birth with the power would not know it.
    tap.begin_generation()?;
    journal.sync()?;
    let cause = match (theirs, peer.seq) {
        (_, WriteSeq(0)) => JumpCause::FirstSync,
        (Some(_), _) => JumpCause::Line,
        (None, _) => JumpCause::Dropped,
    };
    // Where the stream goes on is fixed first: what is written from here on is in the set, or behind it.
    let jump = jump_to_newest(journal, tap, peer, cause)?;
    let known = match theirs {
        Some(theirs) => journal.common(&theirs.line)?,
        None => journal
            .position_of(peer.generation, peer.seq)
            .filter(|_| peer.seq.0 > 0),
    };
    // What begins behind the jump crosses as redo.
    let upto = journal.position_of(jump.to.generation, jump.to.seq);
    let own = match known {
        Some(place) => journal.touched_between(place, upto)?,
        None => None,
    };
    let their_stale = match theirs {
        Some(theirs) => theirs.stale.clone(),
        None => Some(Vec::new()),
    };
    match (own, their_stale) {
        (Some(mut ranges), Some(more)) => {
            ranges.extend(more);
            journal.take_over(&ranges)?;
        }
        _ => {
            journal.all_stale()?;
        }
    }
    journal.reset_peer(WriteSeq(0), WriteSeq(0))?;
    Ok(jump)
}

/// A jump to where our newest generation begins, if that is news to the peer and still held; else behind what is not held,
/// or to our end.
fn jump_to_newest(
    journal: &Journal,
    tap: &Tap,
    peer: Position,
    cause: JumpCause,
) -> Result<Jump, JournalError> {
    let newest = journal.current_generation().ok_or(JournalError::NoGeneration)?;
    let parent = newest.parent.map(parent_position);
    if peer.generation == newest.id {
        // It knows this generation: its records up to here are covered by the set, and the next container is new to it.
        tap.seal_now()?;
        let (_, seq, digest) = journal.line_end()?.ok_or(JournalError::NoGeneration)?;
        let rows = journal.lfc_rows((newest.no, LfcId(0))..);
        let lfc = rows.last().map_or(newest.first_lfc, |row| row.lfc.next());
        let to = Position {
            generation: newest.id,
            seq,
            digest,
        };
        return Ok(Jump {
            to,
            lfc,
            cause,
            parent,
        });
    }
    if journal.floors().redo.0 == newest.no
        && let Some(jump) = jump_to_floor(journal, cause)
    {
        return Ok(jump);
    }
    Ok(Jump {
        to: Position {
            generation: newest.id,
            seq: WriteSeq(newest.first_seq.0 - 1),
            digest: newest.root_digest(),
        },
        lfc: newest.first_lfc,
        cause,
        parent,
    })
}

/// Takes the peer's position as it is. One that is behind what it had acknowledged was put back to an older state; if it also
/// `lacks` records that are not kept here, or was amid copies, nobody knows which regions it lost, and all are stale; so are
/// they where it is not known what it had acknowledged. Answers whether that is so.
///
/// # Errors
/// When the journal fails.
pub fn take_peer(
    journal: &Journal,
    received: WriteSeq,
    applied: WriteSeq,
    lacks: bool,
) -> Result<bool, JournalError> {
    let known = journal.cursors().received_by_peer;
    // A line that was taken over knows nothing of what the peer had of it.
    let unknown = known == WriteSeq(0) && journal.line_parts().len() > 1;
    let went_back = lacks && (unknown || received < known);
    if went_back {
        journal.all_stale()?;
    }
    journal.reset_peer(received, applied)?;
    // Until a moment ago what it had acknowledged could be freed: since `lacks` was found out it may have been.
    let freed = !went_back && received < known && over_the_gap(journal, received).is_some();
    if freed {
        journal.all_stale()?;
    }
    Ok(went_back || freed)
}

/// What a host that gave its line up must copy at least: the blocks of every record past the common position that it holds.
/// `None`: not known.
///
/// # Errors
/// When the catalog cannot be read.
pub fn own_part(
    journal: &Journal,
    theirs: &[LinePart],
) -> Result<Option<Vec<(VolumeIndex, ByteRange)>>, JournalError> {
    journal
        .common(theirs)?
        .map_or(Ok(None), |place| journal.touched_past(place))
}
