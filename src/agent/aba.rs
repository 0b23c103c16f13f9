//! ABA: receives frames, seals and copies on recovery, journals them, and acknowledges what is durable.
//!
//! # Overview
//!
//! A connection is read by a task; its messages, and the rings of the journal's bells, go to one thread that drives
//! [`wire::Receiver`] and does what it says, in order. So a frame is in the journal's tail before the next message is looked
//! at, and a copy is in the apply thread's queue before its container can be sealed, let alone applied (rule C3).
//!
//! # Invariants
//!
//! - Everything received before is made durable before the welcome: the stream goes on behind it.
//! - A copy is acknowledged only after the volumes were synced, and only if its stub is durable here.
//! - Where production dropped records, what was received before stays as it is; no later point is shown before all copies
//!   are here.
//! - One connection a context: a newer one from the same pinned peer ends the older, which may be half-open; what the older
//!   one's thread has not begun to work on by then is dropped.

use super::{
    DEFECT, LinkError, config_digest, flags_of,
    lca::both_production,
    meeting::{self, end_of},
};
use crate::{
    applying::Arrived,
    context::{Context, Recovery, Running},
    roles::{
        Standing,
        row::{gave_up_before_restore, standing_of},
        rules::TERMS_BELOW,
    },
};
use bytes::Bytes;
use journal::{ContextRow, Journal, JournalError, NewGeneration, Position};
use model::{ByteRange, ContextId, ContextState, GenNo, LfcId, RecordBody, Role, VolumeIndex, WriteSeq};
use snapshot::{RegionCopy, RegionOffer};
use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};
use tokio::sync::mpsc;
use wire::{
    Incoming, Lacks, Message, Outgoing, Receiver, ReceiverAction, ReceiverLocal, RefuseCode, Version, Welcome,
};

/// Request kind: the replica is rolled back (body 1) or applies again (body 0).
pub const ROLLED_BACK: u16 = 2;

/// Request kind: nothing more is received, the body says why (in UTF-8); empty: there is room again.
pub const NO_ROOM: u16 = 3;

/// Request kind, from production: how far the copies are (bytes left and bytes in all, u64 each).
pub const COPIES: u16 = 4;

/// Request kind: the replica is consistent, durably, from the record on at which production said so (u64).
pub const CONSISTENT: u16 = 5;

/// Most bytes that wait while there is no room: more than production's windows of frames and copies, however small the
/// frames in them are.
const PARKED_BYTES: usize = 256 << 20;

/// Most bytes of a region that is offered: it is read into memory to be compared.
const OFFER_BYTES: u64 = 16 << 20;

/// What the receiving thread is told.
enum Event {
    Message(Message),
    /// More is durable, or applied, or the state changed.
    Moved,
    /// The connection ended.
    Over(String),
}

/// Serves a connection whose first message named this context; returns when it is over.
pub async fn serve(
    context: Arc<Context>,
    hello: Message,
    mut incoming: Incoming<tokio::net::TcpStream>,
    outgoing: Outgoing,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let (events, inbox) = mpsc::channel::<Event>(32);
    let runtime = tokio::runtime::Handle::current();
    let thread = {
        let (context, outgoing) = (Arc::clone(&context), outgoing.clone());
        let name = format!("c{}-receive", context.id());
        let work = move || {
            let turn = context.next_receiver();
            let run = || receive(&context, turn, hello, inbox, &outgoing, &runtime);
            let why = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
                context.broken("receive");
                DEFECT.to_owned()
            });
            tracing::info!(context = context.id().0, "receiving ended: {why}");
            // The peer that left through this connection may be here again through a newer one.
            if context.receiver_turn(turn).is_some() {
                context.set_peer(false, None);
            }
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(work)
            .expect("a thread can be started")
    };
    let (mut durable, mut applied) = (context.bells.durable.ear(), context.bells.applied.ear());
    let over = loop {
        let event = tokio::select! {
            message = incoming.next() => match message {
                Ok(Some(message)) => Event::Message(message),
                Ok(None) => break "the peer ended the connection".to_owned(),
                Err(e) => break e.to_string(),
            },
            () = durable.listen() => Event::Moved,
            () = applied.listen() => Event::Moved,
            () = super::stopped(&mut stop) => break "the link was replaced or stopped".to_owned(),
        };
        if events.send(event).await.is_err() {
            break "the receiver ended".to_owned();
        }
    };
    let _ = events.send(Event::Over(over)).await;
    drop(events);
    let _ = super::blocking(move || thread.join()).await;
    outgoing.shutdown("the link ends").await;
}

/// Works on what is heard until the connection is over, and answers why it is.
fn receive(
    context: &Arc<Context>,
    turn: u64,
    hello: Message,
    mut inbox: mpsc::Receiver<Event>,
    outgoing: &Outgoing,
    runtime: &tokio::runtime::Handle,
) -> String {
    let row = context.row();
    let local = local_of(context.id(), config_digest(&context.config), &row);
    let mut end = End {
        context: Arc::clone(context),
        journal: Arc::clone(&context.journal),
        receiver: Receiver::new(local),
        outgoing,
        runtime,
        stubs: BTreeMap::new(),
        may_apply: WriteSeq(0),
        told_rolled_back: false,
        told_no_room: None,
        parked: VecDeque::new(),
        parked_bytes: 0,
        requests: 0,
    };
    let mut event = Event::Message(hello);
    loop {
        let Some(working) = context.receiver_turn(turn) else {
            break "a newer connection took over".to_owned();
        };
        let step = match event {
            Event::Message(message) => end.heard(message),
            Event::Moved => end.moved().and_then(|()| end.unpark()),
            Event::Over(why) => break why,
        };
        drop(working);
        if let Err(e) = step {
            end.complain(&e);
            break e.to_string();
        }
        event = match inbox.blocking_recv() {
            Some(next) => next,
            None => break "the connection is over".to_owned(),
        };
    }
}

struct End<'a> {
    context: Arc<Context>,
    journal: Arc<Journal>,
    receiver: Receiver,
    outgoing: &'a Outgoing,
    runtime: &'a tokio::runtime::Handle,
    /// Stubs of copies in the last frame: which bytes they are of, and their digests.
    stubs: BTreeMap<WriteSeq, (VolumeIndex, ByteRange, journal::Digest)>,
    may_apply: WriteSeq,
    told_rolled_back: bool,
    told_no_room: Option<String>,
    /// What arrived while there was no room, in order.
    parked: VecDeque<Message>,
    parked_bytes: usize,
    requests: u64,
}

impl End<'_> {
    fn send(&self, message: Message) -> Result<(), LinkError> {
        Ok(self.runtime.block_on(self.outgoing.send(message))?)
    }

    /// Says why what was received is not taken: production would else see a link that ends, and nobody there knew why.
    fn complain(&self, e: &LinkError) {
        if !matches!(e, LinkError::Connection(_) | LinkError::Ended) {
            let code = match self.context.is_stopped() {
                true => RefuseCode::Stopped,
                false => RefuseCode::Protocol,
            };
            let refuse = Message::refuse(code, self.context.term(), e.to_string());
            // An error means that the connection is gone.
            let _ = self.send(refuse);
        }
    }

    fn running(&self) -> Result<Arc<Running>, LinkError> {
        self.context
            .running()
            .ok_or_else(|| LinkError::Refused("the context is stopped".into()))
    }

    /// While retention has no room nothing more is journaled: what arrives waits here, and because nothing of it is acknowledged,
    /// production's window fills and no more comes. The link stays alive.
    fn heard(&mut self, message: Message) -> Result<(), LinkError> {
        let is_greeting = !self.receiver.is_receiving();
        if is_greeting || (self.parked.is_empty() && self.context.has_room()) {
            return self.message(message);
        }
        self.parked_bytes += message.weight();
        self.parked.push_back(message);
        if self.parked_bytes > PARKED_BYTES {
            return Err(LinkError::Refused("there is no room for more".into()));
        }
        self.unpark()
    }

    fn unpark(&mut self) -> Result<(), LinkError> {
        while self.context.has_room() {
            let Some(message) = self.parked.pop_front() else {
                return Ok(());
            };
            self.parked_bytes -= message.weight();
            self.message(message)?;
        }
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<(), LinkError> {
        let begins = self.receiver.is_receiving();
        let actions = self.receiver.receive(message)?;
        // Not a goodbye, nor a refusal: those say nothing of our part of the set.
        let goes_on = begins && self.receiver.is_receiving();
        if goes_on && self.context.standing() == Standing::ResyncReady {
            // The acting production has our part of the set: from here on this is a replica like any other.
            self.act(actions)?;
            // A restore may have begun meanwhile: then the two meet again behind it.
            if !self
                .context
                .change_standing(Standing::ResyncReady, Standing::Replica)?
            {
                return Err(LinkError::Refused("a restore began here".into()));
            }
            self.context.bells.applied.ring();
            return self.acknowledge();
        }
        self.act(actions)?;
        self.acknowledge()
    }

    fn act(&mut self, actions: Vec<ReceiverAction>) -> Result<(), LinkError> {
        for action in actions {
            match action {
                ReceiverAction::Send(message) => self.send(message)?,
                ReceiverAction::HigherTerm { term } if term.0 >= TERMS_BELOW => {
                    let text = format!("no term would be left above {term}");
                    return Err(LinkError::Refused(text));
                }
                ReceiverAction::HigherTerm { term } if self.context.role() == Role::Production => {
                    let why = format!("{} is at term {term}", self.context.peer_name());
                    self.context.fence(term, &why);
                }
                ReceiverAction::HigherTerm { term } => {
                    self.context.change_row(|row| row.term = term)?;
                }
                ReceiverAction::Greeted(_) => self.greeted()?,
                ReceiverAction::AppendFrame(frame) => {
                    follow(&self.journal, &frame)?;
                    let context = &self.context;
                    let appended = self
                        .journal
                        .append_received_if(frame.bytes, |frame| check_records(context, frame))?;
                    self.stubs = appended
                        .records()
                        .iter()
                        .filter_map(|r| match r.body {
                            RecordBody::Copy { range, digest } => Some((r.seq, (r.volume, range, digest))),
                            _ => None,
                        })
                        .collect();
                    self.ring_received()?;
                }
                ReceiverAction::Seal(seal) => {
                    self.journal
                        .seal_received(seal.lfc, seal.last, &seal.digest, flags_of(&seal))?;
                    self.context.bells.sealed.ring();
                    self.context.bells.durable.ring();
                }
                ReceiverAction::WriteCopy(copy) => self.copy(copy)?,
                ReceiverAction::Compare(offer) => self.offer(offer)?,
                ReceiverAction::CopiesComplete { seq } => {
                    copies_are_here(&self.journal, seq)?;
                    tracing::info!(context = self.context.id().0, seq = seq.0, "all copies are here");
                    self.context.bells.sealed.ring();
                    self.tell(CONSISTENT, Bytes::copy_from_slice(&seq.0.to_le_bytes()))?;
                }
                ReceiverAction::MayApply { seq } => {
                    self.may_apply = seq;
                    self.journal.set_peer_durable(seq);
                    self.context.bells.sealed.ring();
                    // What an earlier connection let be applied may all be: then nothing else will move.
                    self.note_cursors();
                }
                ReceiverAction::Conflict { term } => {
                    let why = both_production(&self.context, term);
                    self.context.fence(term, &why);
                }
                ReceiverAction::Refused { code, text } => {
                    self.context.set_peer(false, Some(text.clone()));
                    if code == RefuseCode::Diverged {
                        self.context.set_diverged();
                    }
                    return Err(LinkError::Refused(text));
                }
                ReceiverAction::Jump(jump) => self.jump(&jump)?,
                ReceiverAction::Deliver(Message::Request(request)) if request.kind == COPIES => {
                    if let Some((left, total)) = two_numbers(&request.body) {
                        self.context.set_copies(left, total);
                    }
                }
                ReceiverAction::Deliver(_) => {}
                ReceiverAction::Close => return Err(LinkError::Ended),
                other => tracing::warn!("an action that ABA does not know: {other:?}"),
            }
        }
        Ok(())
    }

    fn copy(&mut self, copy: wire::Copy) -> Result<(), LinkError> {
        let digest = journal::tap::digest(copy.range, &copy.payload);
        self.check_stub(copy.seq, copy.volume, copy.range, Some(digest))?;
        self.arrived(Arrived::Copy(RegionCopy {
            seq: copy.seq,
            volume: copy.volume,
            range: copy.range,
            payload: copy.payload,
        }))
    }

    fn offer(&mut self, offer: wire::Offer) -> Result<(), LinkError> {
        if offer.range.len() > OFFER_BYTES {
            let text = format!("{} bytes are offered at once", offer.range.len());
            return Err(LinkError::Refused(text));
        }
        let digest = self.check_stub(offer.seq, offer.volume, offer.range, None)?;
        self.arrived(Arrived::Offer(RegionOffer {
            seq: offer.seq,
            volume: offer.volume,
            range: offer.range,
            digest,
            piece: offer.piece.into(),
            pieces: offer.pieces,
        }))
    }

    /// Rule C2: the stub in the journal vouches for what comes beside it. Answers its digest.
    fn check_stub(
        &self,
        seq: WriteSeq,
        volume: VolumeIndex,
        range: ByteRange,
        digest: Option<journal::Digest>,
    ) -> Result<journal::Digest, LinkError> {
        let stub = self
            .stubs
            .get(&seq)
            .filter(|stub| (stub.0, stub.1) == (volume, range));
        match stub {
            Some(stub) if digest.is_none_or(|digest| digest == stub.2) => Ok(stub.2),
            _ => {
                let text = format!("the copy of record {seq} is not what its stub says");
                Err(LinkError::Refused(text))
            }
        }
    }

    /// Hands what arrived to the apply thread.
    fn arrived(&mut self, arrived: Arrived) -> Result<(), LinkError> {
        if self.context.consistent_from().is_some() {
            // It would stand in the replica before the records that lead to it.
            return Err(LinkError::Refused(
                "a copy came for a replica that is consistent".into(),
            ));
        }
        let running = self.running()?;
        let behind = self.journal.sealed_end();
        if !recovery(&running)?.copies.push(arrived, behind) {
            return Err(LinkError::Refused("more copies came than can wait".into()));
        }
        self.context.bells.sealed.ring();
        Ok(())
    }

    fn jump(&mut self, jump: &wire::Jump) -> Result<(), LinkError> {
        let last = pass_gap(&self.journal, jump)?;
        self.may_apply = self.may_apply.min(self.receiver.ack().applied);
        tracing::warn!(
            context = self.context.id().0,
            after = last.0,
            to = jump.to.seq.0,
            "production dropped records that are not here: their regions are copied"
        );
        self.context.bells.sealed.ring();
        self.ring_received()
    }

    fn ring_received(&self) -> Result<(), LinkError> {
        let running = self.running()?;
        recovery(&running)?.received.ring();
        Ok(())
    }

    fn greeted(&mut self) -> Result<(), LinkError> {
        let row = self.context.row();
        let id = self.context.id();
        if self.context.standing() == Standing::Fenced {
            crate::ops::role::follow_again(&self.context);
        }
        if let Some(why) = refusal(id, &row, self.context.is_running()) {
            // Who hears that it is stopped says no more than that.
            let code = match gave_up_before_restore(&row) {
                true => RefuseCode::Role,
                false => RefuseCode::Stopped,
            };
            let actions = self.receiver.refuse(code, &why);
            return self.act(actions);
        }
        if let Some(error) = self.journal.poisoned() {
            let why = format!("the context stopped acknowledging there: {error}");
            let actions = self.receiver.refuse(RefuseCode::Internal, &why);
            return self.act(actions);
        }
        let running = self.running()?;
        recovery(&running)?.copies.begin();
        self.journal.sync()?;
        let welcome = Welcome {
            node: self.context.node_name().to_owned(),
            config: config_digest(&self.context.config),
            instance: self.context.instance(),
            ..welcome_of(&self.journal, &row)?
        };
        self.may_apply = welcome.applied;
        let actions = self.receiver.welcome(welcome);
        self.context.set_peer(true, None);
        self.act(actions)
    }

    /// Tells the machine how far journal and volumes are.
    fn note_cursors(&mut self) {
        let cursors = self.journal.cursors();
        // An older connection's thread may still append what it had read; this stream vouches for its own end only.
        let durable = cursors.durable.min(self.receiver.received().seq);
        if durable > self.receiver.ack().received_durable {
            self.receiver.durable(durable);
        }
        let applied = cursors.applied.min(self.may_apply).min(durable);
        if applied > self.receiver.ack().applied {
            self.receiver.applied(applied);
        }
    }

    /// Tells the machine what moved, and sends what that makes sayable.
    fn moved(&mut self) -> Result<(), LinkError> {
        if let Some(error) = self.journal.poisoned() {
            return Err(error.into());
        }
        if !self.receiver.is_receiving() {
            return Ok(());
        }
        self.note_cursors();
        let running = self.running()?;
        let copies = &recovery(&running)?.copies;
        self.receiver.copies_durable(copies.take_written());
        for (seq, ranges) in copies.take_lacking() {
            self.receiver.copy_lacks(Lacks { seq, ranges });
        }
        let rolled_back = matches!(
            self.context.state(),
            ContextState::RolledBack | ContextState::Restoring
        );
        if rolled_back != self.told_rolled_back {
            self.told_rolled_back = rolled_back;
            self.tell(ROLLED_BACK, Bytes::copy_from_slice(&[u8::from(rolled_back)]))?;
        }
        let no_room = self
            .context
            .retention
            .no_room(&self.context)
            .or_else(|| self.context.no_room());
        if no_room.is_some() != self.told_no_room.is_some() {
            self.told_no_room.clone_from(&no_room);
            self.tell(NO_ROOM, Bytes::from(no_room.unwrap_or_default()))?;
        }
        self.acknowledge()
    }

    fn tell(&mut self, kind: u16, body: Bytes) -> Result<(), LinkError> {
        self.requests += 1;
        let id = self.requests;
        self.send(Message::Request(wire::Request { id, kind, body }))
    }

    fn acknowledge(&mut self) -> Result<(), LinkError> {
        let mut any = false;
        while let Some(message) = self.receiver.next_message() {
            self.send(message)?;
            any = true;
        }
        if any {
            self.context.peer_acknowledged();
        }
        Ok(())
    }
}

/// Times behind this are no times; nanoseconds of Unix time.
const TIMES_BELOW: u64 = 1 << 63;

/// What lies outside the volumes could never be applied, nor could anything behind it.
fn check_records(context: &Context, frame: &journal::Frame) -> Result<(), JournalError> {
    for record in frame.records() {
        let end = match &record.body {
            RecordBody::Copy { range, .. } => Some(range.end),
            RecordBody::Size { size } => Some(*size),
            _ => record.changed().map(|range| range.end),
        };
        let is_inside = end.is_none_or(|end| end <= context.extent(record.volume));
        if !is_inside || record.time.0 >= TIMES_BELOW {
            return Err(JournalError::Refused(format!(
                "record {} lies outside the volumes of the context, or in no time",
                record.seq
            )));
        }
    }
    Ok(())
}

fn two_numbers(body: &[u8]) -> Option<(u64, u64)> {
    let (first, second) = body.split_first_chunk::<8>()?;
    Some((
        u64::from_le_bytes(*first),
        u64::from_le_bytes(second.try_into().ok()?),
    ))
}

/// What a host is to whoever connects.
#[must_use]
pub fn local_of(context: ContextId, config: [u8; 32], row: &ContextRow) -> ReceiverLocal {
    let standing = standing_of(row);
    ReceiverLocal {
        context,
        // One that is fenced claims nothing.
        role: match standing {
            Standing::Fenced => Role::Recovery,
            _ => row.role,
        },
        term: row.term,
        config,
    }
}

/// Why a production that has greeted is not welcome.
#[must_use]
pub fn refusal(id: ContextId, row: &ContextRow, is_running: bool) -> Option<String> {
    match standing_of(row) {
        Standing::Fenced => Some(format!("it is fenced: rtdr -C {id} resync there makes it follow")),
        Standing::FailingOver => Some(format!("a failover is under way there: rtdr -C {id} failover")),
        // What a host has that gave its line up is told at a meeting as one that did, and no later.
        _ if gave_up_before_restore(row) => Some(format!(
            "it gave its line up and is restored there: scrt_ra -C {id} --undo makes it follow"
        )),
        _ if row.role == Role::Production => Some("it is production itself".to_owned()),
        _ if row.state == ContextState::Stopped || !is_running => {
            Some("the context is stopped here".to_owned())
        }
        _ => None,
    }
}

/// Where this host's line and volumes are, for a production that is welcome. The caller has synced the journal, and says who
/// it is.
///
/// # Errors
/// When the journal cannot be read.
pub fn welcome_of(journal: &Journal, row: &ContextRow) -> Result<Welcome, JournalError> {
    let received = end_of(journal)?;
    let spans = journal.consistent();
    Ok(Welcome {
        version: Version::NEWEST,
        node: String::new(),
        role: Role::Recovery,
        term: row.term,
        received,
        open_lfc: journal.open_row().map_or(LfcId(0), |r| r.lfc),
        applied: journal.cursors().applied.min(received.seq),
        copying: spans.last().is_none_or(|span| span.until.is_some()),
        gives_way: standing_of(row) == Standing::ResyncReady,
        config: [0; 32],
        instance: 0,
    })
}

/// Goes over to the generation of a frame that begins one: its first record says what it continues.
///
/// # Errors
/// When that is not where this host's line ends, or the journal fails.
pub fn follow(journal: &Journal, frame: &wire::Frame) -> Result<(), JournalError> {
    let current = journal.current_generation();
    if current.as_ref().is_some_and(|g| g.id == frame.generation) {
        return Ok(());
    }
    let parsed = journal::Frame::parse(frame.bytes.clone())?;
    let parent = parsed.records().first().and_then(|r| journal::parent_of(&r.body));
    let parent = match parent {
        Some(parent) => parent,
        // The first frame of all may lie behind a beginning that is gone.
        None if current.is_none() => None,
        None => {
            return Err(JournalError::Refused(format!(
                "record {} begins a generation and does not say what it continues",
                frame.first
            )));
        }
    };
    let end = journal.line_end()?;
    let fits = match (&parent, end) {
        (Some(parent), Some((id, seq, digest))) => {
            (parent.id, parent.seq) == (id, seq) && parent.digest == digest
        }
        (_, None) => true,
        (None, Some(_)) => false,
    };
    if !fits {
        return Err(JournalError::Refused(format!(
            "record {} begins a generation that does not continue this host's line",
            frame.first
        )));
    }
    journal.create_generation(NewGeneration {
        id: frame.generation,
        parent,
        first_seq: Some(frame.first),
        first_lfc: Some(frame.lfc),
    })?;
    Ok(())
}

/// All copies are here: the volumes are consistent from a record of this host's line on.
///
/// # Errors
/// When the journal fails.
pub fn copies_are_here(journal: &Journal, seq: WriteSeq) -> Result<(), JournalError> {
    let here = place(journal);
    journal.set_consistent_from(Position { seq, ..here })?;
    // What this host knew to differ was part of the set: it is all here.
    journal.nothing_differs()
}

/// Where this host's line ends. One that was taken over and not added to ends where it was taken over, whatever is held behind that,
/// or was opened.
fn place(journal: &Journal) -> Position {
    let end = journal
        .line_head()
        .and_then(|(id, seq)| journal.position_of(id, seq));
    end.unwrap_or_else(|| Position {
        generation: journal.current_generation().map_or(GenNo(0), |g| g.no),
        seq: WriteSeq(0),
    })
}

/// The stream goes on elsewhere: behind records that production dropped, or on production's own line. What was received
/// stands, later points wait for copies (rule C5). Answers the last record before the gap.
///
/// # Errors
/// When the journal fails, or the jump does not lead forward on the same generation.
pub fn pass_gap(journal: &Journal, jump: &wire::Jump) -> Result<WriteSeq, JournalError> {
    let first_seq = jump.to.seq.next();
    let parent = jump.parent.as_ref().map(meeting::parent_of);
    let follow =
        || journal.follow_behind_gap(jump.to.generation, parent, jump.lfc, first_seq, jump.to.digest);
    let Some(generation) = journal.current_generation() else {
        follow()?;
        return Ok(WriteSeq(0));
    };
    let last = place(journal);
    // Before the journal goes on behind the gap: no point past it may be shown, whatever happens next.
    journal.set_consistent_until(last)?;
    if generation.id == jump.to.generation {
        journal.skip_to(jump.lfc, first_seq, jump.to.digest)?;
    } else {
        follow()?;
    }
    Ok(last.seq)
}

fn recovery(running: &Running) -> Result<&Recovery, LinkError> {
    match running {
        Running::Recovery(r) => Ok(r),
        Running::Production(_) => {
            Err(JournalError::Internal("production runs where recovery was checked").into())
        }
    }
}
