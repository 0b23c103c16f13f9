//! The stream between the hosts: the real machines, with queues in place of a connection. What is in a queue when the link
//! is cut is lost.
//!
//! Who the two ends are, and what becomes of them when their terms do not fit, is theirs to say: [`Ships`] and [`Follows`].

use super::hosts::{Fallible, Production, Recovery};
use anyhow::bail;
use backstay::{
    agent::{
        aba::{copies_are_here, follow, local_of, pass_gap, refusal, welcome_of},
        meeting::{self, Acquaintance, PeerSet, end_of, over_the_gap},
        offers::{How, owed},
    },
    applying::{Arrived, CopyQueue},
    roles::{
        Standing,
        row::{put_standing, standing_of},
    },
};
use journal::{ContextRow, Digest, Journal, JournalError, SealFlags, tap::CopyTaken};
use model::{
    ByteRange, ContextId, GenId, LfcId, Payload, RecordBody, Role, Term, Timestamp, VolumeIndex, WriteSeq,
};
use snapshot::{RegionCopy, RegionOffer, piece_digest};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use wire::{
    Hello, Jump, Lacks, Message, Offer, Receiver, ReceiverAction, RefuseCode, Resume, Sender, SenderAction,
    SenderOptions, Version, Welcome,
};

pub const CONTEXT: ContextId = ContextId(1);
const CONFIG: [u8; 32] = [3; 32];
/// Most bytes of one copy: less than most volumes, so that a first sync takes many.
const COPY_BYTES: u64 = 32 << 10;
/// Name of the note that says which store of the peer the maps are about.
const PEER_INSTANCE: &str = "peer_instance";

/// Production's end of a link.
pub trait Ships {
    /// What runs there.
    fn production(&self) -> &Production;

    /// What a peer that gives way says of itself.
    fn set_of_peer(&self) -> Fallible<PeerSet> {
        bail!("nobody gives way here")
    }

    /// Both hosts' storage is made ready for what either is ready for, before anything is sent.
    fn match_extents(&self) -> Fallible {
        Ok(())
    }

    /// Another host has a better right to the role.
    fn fence(&self, term: Term) -> Fallible {
        bail!("fenced at term {term}")
    }
}

/// The other end.
pub trait Follows {
    /// Its journal.
    fn journal(&self) -> &Arc<Journal>;

    /// Copies that wait; `None`: nothing runs that could take them.
    fn copies(&self) -> Option<&CopyQueue>;

    /// A production has greeted with a better right to the role.
    fn fence(&self, term: Term) -> Fallible {
        bail!("fenced at term {term}")
    }

    /// Its line and production's have parted, or go together again.
    fn set_diverged(&self, _diverged: bool) {}

    /// A production has greeted one that is fenced.
    fn greeted_fenced(&self) -> Fallible {
        Ok(())
    }
}

impl Ships for Production {
    fn production(&self) -> &Production {
        self
    }
}

impl Follows for Recovery {
    fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    fn copies(&self) -> Option<&CopyQueue> {
        Some(&self.copies)
    }
}

fn row_of(journal: &Journal) -> Fallible<ContextRow> {
    Ok(journal.context()?.expect("made at the first boot"))
}

struct Known<'a, A>(&'a A);

impl<A: Ships> Acquaintance for Known<'_, A> {
    type Error = anyhow::Error;

    fn is_forced(&self) -> bool {
        self.0.production().journal.is_suspect()
    }

    fn instance(&self) -> Option<String> {
        let row = row_of(&self.0.production().journal).ok()?;
        row.notes.get(PEER_INSTANCE).cloned()
    }

    fn keep_instance(&self, instance: String) -> Fallible {
        let journal = &self.0.production().journal;
        let mut row = row_of(journal)?;
        row.notes.insert(PEER_INSTANCE.into(), instance);
        Ok(journal.put_context(&row)?)
    }

    fn match_extents(&self) -> Fallible {
        self.0.match_extents()
    }

    fn set_of_peer(&self) -> Fallible<PeerSet> {
        self.0.set_of_peer()
    }
}

/// One connection.
pub struct Link {
    sender: Sender,
    receiver: Receiver,
    to_b: VecDeque<Message>,
    to_a: VecDeque<Message>,
    unsealed: Option<(GenId, LfcId)>,
    completing: bool,
    /// The peer may not be told that all is there before it has this record.
    completes_behind: WriteSeq,
    copier: Option<Copier>,
    waiting: BTreeMap<WriteSeq, (VolumeIndex, CopyTaken, How)>,
    /// What the peer lacks of offers, and what it seems to hold.
    owed: VecDeque<(VolumeIndex, ByteRange, How)>,
    /// Offers of which the peer held all, and of which it lacked some.
    pub offers: [u32; 2],
    offered: BTreeSet<WriteSeq>,
    /// The peer held bytes when it was met.
    peer_holds: bool,
    sent: BTreeMap<WriteSeq, (VolumeIndex, ByteRange)>,
    /// Times that the stream left something out.
    pub jumps: u32,
    /// Regions that were taken to be copied.
    pub copied: Vec<(VolumeIndex, ByteRange)>,
    /// Ranges whose bytes were sent as redo.
    pub redo: Vec<(VolumeIndex, ByteRange)>,
    /// Why production's end is over, once it is.
    over_a: Option<String>,
    /// The same of the other end; what it has sent is heard still.
    over_b: Option<String>,
    /// The peer waits for copies.
    peer_copies: bool,
    may_apply: WriteSeq,
    /// Stubs of copies in the last frame.
    stubs: BTreeMap<WriteSeq, Digest>,
}

#[derive(Default)]
struct Copier {
    at: (VolumeIndex, u64),
    any: bool,
}

impl Link {
    /// Connects and greets; the greeting is heard and answered.
    pub fn connect(a: &impl Ships, b: &impl Follows) -> Fallible<Self> {
        let mut link = Self::dial(a, b)?;
        link.hear_b(b)?;
        link.hear_a(a)?;
        assert!(link.is_greeted(), "a greeting without an answer");
        Ok(link)
    }

    /// Connects; the greeting is on its way.
    pub fn dial(a: &impl Ships, b: &impl Follows) -> Fallible<Self> {
        let journal = &a.production().journal;
        let row = row_of(journal)?;
        let hello = Hello {
            oldest: Version::OLDEST as u16,
            newest: Version::NEWEST as u16,
            context: CONTEXT,
            node: "a".into(),
            role: Role::Production,
            term: row.term,
            durable: end_of(journal)?,
            config: CONFIG,
            instance: instance(&row),
        };
        let options = SenderOptions {
            window_bytes: 128 << 10,
            ..SenderOptions::default()
        };
        let (sender, greeting) = Sender::new(options, hello);
        let receiver = Receiver::new(local_of(CONTEXT, CONFIG, &row_of(b.journal())?));
        let mut link = Self {
            sender,
            receiver,
            to_b: VecDeque::new(),
            to_a: VecDeque::new(),
            unsealed: None,
            completing: false,
            completes_behind: WriteSeq(0),
            copier: None,
            waiting: BTreeMap::new(),
            owed: VecDeque::new(),
            offers: [0; 2],
            offered: BTreeSet::new(),
            peer_holds: false,
            sent: BTreeMap::new(),
            jumps: 0,
            copied: Vec::new(),
            redo: Vec::new(),
            over_a: None,
            over_b: None,
            peer_copies: false,
            may_apply: WriteSeq(0),
            stubs: BTreeMap::new(),
        };
        link.act_a(a, vec![greeting])?;
        Ok(link)
    }

    /// Production hears one message; `false` when there is none.
    pub fn hear_a(&mut self, a: &impl Ships) -> Fallible<bool> {
        let Some(message) = self.to_a.pop_front() else {
            return Ok(false);
        };
        let actions = self.sender.receive(Timestamp::now(), message)?;
        self.act_a(a, actions)?;
        Ok(true)
    }

    fn act_a(&mut self, a: &impl Ships, actions: Vec<SenderAction>) -> Fallible {
        for action in actions {
            match action {
                SenderAction::Send(message) => self.to_b.push_back(message),
                SenderAction::CheckPosition { peer, welcome } => self.meet(a, peer, &welcome)?,
                SenderAction::Acked(ack) => {
                    let journal = &a.production().journal;
                    journal.set_peer(ack.received_durable, ack.applied, false)?;
                    self.forget_covered(a)?;
                }
                SenderAction::Copied(seqs) => {
                    for seq in seqs {
                        let (volume, range) = self.sent.remove(&seq).expect("a copy that was sent");
                        a.production().journal.clear_if_older(&[(volume, range, seq)])?;
                        self.offers[0] += u32::from(self.offered.remove(&seq));
                    }
                }
                SenderAction::Lacks(lacks) => {
                    self.offers[1] += 1;
                    assert!(self.offered.remove(&lacks.seq), "an offer");
                    let (volume, range) = self.sent.remove(&lacks.seq).expect("an offer that was sent");
                    let owed = owed(range, &lacks.ranges).into_iter();
                    self.owed.extend(owed.map(|(range, how)| (volume, range, how)));
                }
                SenderAction::Fenced { term } | SenderAction::Conflict { term } => a.fence(term)?,
                SenderAction::Refused { text, .. } => self.over_a = Some(text),
                SenderAction::Diverged { .. } => self.over_a = Some("the histories have parted".into()),
                SenderAction::Close => drop(self.over_a.get_or_insert_with(|| "closed".into())),
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    }

    /// As the LCA does.
    fn meet(&mut self, a: &impl Ships, peer: wire::Position, welcome: &Welcome) -> Fallible {
        let production = a.production();
        let met = meeting::meet(&production.journal, &production.tap, peer, welcome, &Known(a))?;
        // A generation may have begun: the machine must know before it jumps there.
        let (appended, durable) = production.journal.line_cursors();
        let actions = self.sender.journal(appended, durable);
        assert!(
            actions.is_empty(),
            "before the stream there is nothing to say: {actions:?}"
        );
        let actions = self.sender.resume(met.resume);
        self.act_a(a, actions)?;
        self.peer_copies = welcome.copying;
        self.peer_holds = peer.seq > WriteSeq(0);
        match met.resume {
            Resume::Here => {
                let open = Some(welcome.open_lfc).filter(|l| *l >= LfcId::FIRST && peer.seq.0 > 0);
                self.unsealed = open.map(|l| (peer.generation, l));
                self.forget_covered(a)?;
                if welcome.copying {
                    self.tell_sizes(a, false)?;
                }
                if welcome.copying || self.stale(a, (VolumeIndex(0), 0)).is_some() {
                    self.copier.get_or_insert_default();
                }
            }
            Resume::Jump(jump) => self.jumped(a, &jump)?,
            Resume::Diverged { .. } => {}
        }
        Ok(())
    }

    /// As the LCA does.
    fn forget_covered(&self, a: &impl Ships) -> Fallible {
        let journal = &a.production().journal;
        if !self.peer_copies && !journal.is_suspect() {
            journal.forget_covered()?;
        }
        Ok(())
    }

    /// The stream left out what the journal gave up.
    fn jumped(&mut self, a: &impl Ships, jump: &Jump) -> Fallible {
        self.jumps += 1;
        self.peer_copies = true;
        self.unsealed = None;
        self.completing = false;
        self.waiting = self.waiting.split_off(&jump.to.seq.next());
        let first = [(VolumeIndex(0), ByteRange { start: 0, end: 1 })];
        a.production().journal.mark_stale(&first, jump.to.seq)?;
        self.tell_sizes(a, true)?;
        self.copier.get_or_insert_default();
        Ok(())
    }

    fn stale(&self, a: &impl Ships, from: (VolumeIndex, u64)) -> Option<(VolumeIndex, ByteRange)> {
        let a = a.production();
        let volumes = a.volumes.iter().map(|(v, _)| v).filter(|v| *v >= from.0);
        volumes.into_iter().find_map(|v| {
            let from = if v == from.0 { from.1 } else { 0 };
            Some((v, a.journal.next_stale(v, from, COPY_BYTES)?))
        })
    }

    /// The copier's next step.
    pub fn copy(&mut self, a: &impl Ships) -> Fallible {
        let Some(Copier { at, any }) = self.copier.take() else {
            return Ok(());
        };
        if let Some((volume, range, how)) = self.owed.pop_front() {
            self.begin(a, (volume, range, how), false)?;
            self.copier = Some(Copier { at, any: true });
        } else if let Some((volume, range)) = self.stale(a, at) {
            let last = self.stale(a, (volume, range.end)).is_none();
            self.copied.push((volume, range));
            // Some are not offered, so that both kinds meet.
            let is_offer = self.peer_holds && !self.copied.len().is_multiple_of(4);
            let how = if is_offer { How::Offer } else { How::Bytes };
            self.begin(a, (volume, range, how), last)?;
            let at = (volume, range.end);
            self.copier = Some(Copier { at, any: true });
        } else if !self.waiting.is_empty() || !self.sent.is_empty() {
            self.copier = Some(Copier { at, any });
        } else if any {
            self.copier = Some(Copier::default());
        } else {
            self.completing = true;
        }
        Ok(())
    }

    /// As the LCA does.
    fn tell_sizes(&mut self, a: &impl Ships, behind_gap: bool) -> Fallible {
        if let Some(last) = a.production().tap.tell_sizes(behind_gap)? {
            self.completes_behind = last;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        a: &impl Ships,
        (volume, range, mut how): (VolumeIndex, ByteRange, How),
        last: bool,
    ) -> Fallible {
        let copy = a.production().tap.copy(volume, range, last)?;
        if copy.payload == Payload::Zero {
            how = How::Bytes;
        }
        self.waiting.insert(copy.seq, (volume, copy, how));
        Ok(())
    }

    /// The message behind a copy's stub.
    fn copy_message(&mut self, region: u64, volume: VolumeIndex, copy: CopyTaken, how: How) -> SenderAction {
        let (seq, range) = (copy.seq, copy.range);
        let region = u32::try_from(region).expect("a small region");
        self.sent.insert(seq, (volume, range));
        let (piece, pieces) = match (how, &copy.payload) {
            (How::Offer, Payload::Data(data)) => {
                let digests = data.chunks(region as usize).map(|b| *blake3::hash(b).as_bytes());
                (region, digests.map(|d| piece_digest(&d)).collect())
            }
            (How::WholeOffer, _) => (0, Vec::new()),
            _ => {
                return self.sender.copy(wire::Copy {
                    seq,
                    volume,
                    range,
                    payload: copy.payload,
                });
            }
        };
        self.offered.insert(seq);
        self.sender.offer(Offer {
            seq,
            volume,
            range,
            piece,
            pieces,
        })
    }

    /// Sends one frame, with the seal before it and the copies behind it; `false` when nothing may be sent.
    pub fn pump(&mut self, a: &impl Ships) -> Fallible<bool> {
        let journal = &a.production().journal;
        let (appended, durable) = journal.line_cursors();
        let actions = self.sender.journal(appended, durable);
        self.act_a(a, actions)?;
        if !self.sender.is_streaming() {
            return Ok(false);
        }
        self.seal(a)?;
        self.complete(a)?;
        let Some(want) = self.sender.want() else {
            return Ok(false);
        };
        if let Some(jump) = over_the_gap(journal, want.after) {
            let sent = self.sender.jump(jump);
            self.act_a(a, vec![sent])?;
            self.jumped(a, &jump)?;
            return Ok(true);
        }
        let frames = match journal.frames_after(want.after, want.bytes_max as u64) {
            // Records of before this host took the line over gave way: the next connection finds out what is to be copied.
            Err(e @ JournalError::NotHeld { .. }) => {
                self.over_a = Some(e.to_string());
                return Ok(false);
            }
            frames => frames?,
        };
        let Some(frame) = frames.first() else {
            return Ok(false);
        };
        if frame.last_seq() > journal.cursors().durable || !(want.alone || frame.len() <= want.bytes_max) {
            return Ok(false);
        }
        let container = (frame.generation(), frame.lfc());
        assert!(
            self.unsealed.is_none_or(|l| l == container),
            "a frame of {container:?} before the seal of {:?}",
            self.unsealed
        );
        self.unsealed = Some(container);
        let wire = wire::Frame {
            generation: frame.generation(),
            lfc: frame.lfc(),
            after: want.after,
            first: frame.first_seq(),
            last: frame.last_seq(),
            durable: WriteSeq(0),
            digest: frame.digest(),
            bytes: frame.bytes().clone(),
        };
        let sent = self.sender.frame(Timestamp::now(), wire);
        self.act_a(a, vec![sent])?;
        for record in frame.records() {
            let changed = record.changed().map(|range| (record.volume, range));
            self.redo.extend(changed);
            let RecordBody::Copy { .. } = record.body else {
                continue;
            };
            // A stub of an older connection: its copy is lost, and its region comes again.
            let Some((volume, copy, how)) = self.waiting.remove(&record.seq) else {
                continue;
            };
            let shape = a.production().journal.map_shape(volume);
            let region = shape.expect("a volume with a map").region_size;
            let sent = self.copy_message(region, volume, copy, how);
            self.act_a(a, vec![sent])?;
        }
        Ok(true)
    }

    fn seal(&mut self, a: &impl Ships) -> Fallible {
        let journal = &a.production().journal;
        let Some((generation, lfc)) = self.unsealed else {
            return Ok(());
        };
        let generation = journal.generation_by_id(generation).map(|g| g.no);
        let row = generation.and_then(|g| journal.lfc_row(g, lfc));
        if let Some(row) = row.filter(|r| r.last_seq == self.sender.cursors().sent) {
            self.unsealed = None;
            let seal = wire::Seal {
                lfc: row.lfc,
                last: row.last_seq,
                digest: row.end_digest,
                flags: u8::from(row.sealed.mark),
            };
            let sent = self.sender.seal(seal);
            self.act_a(a, vec![sent])?;
        }
        Ok(())
    }

    fn complete(&mut self, a: &impl Ships) -> Fallible {
        let lacks_sizes = self.sender.cursors().sent < self.completes_behind;
        if !self.completing || lacks_sizes || self.sender.copies_in_flight() > 0 {
            return Ok(());
        }
        if self.stale(a, (VolumeIndex(0), 0)).is_some() {
            self.completing = false;
            self.copier.get_or_insert_default();
            return Ok(());
        }
        if self.unsealed.is_some() {
            a.production().tap.seal_now()?;
            self.seal(a)?;
            if self.unsealed.is_some() {
                return Ok(());
            }
        }
        self.completing = false;
        let sent = self.sender.copies_complete();
        self.act_a(a, vec![sent])?;
        self.peer_copies = false;
        Ok(())
    }

    /// Recovery hears one message; `false` when there is none.
    pub fn hear_b(&mut self, b: &impl Follows) -> Fallible<bool> {
        let Some(message) = self.to_b.pop_front() else {
            return Ok(false);
        };
        let begins = self.receiver.is_receiving();
        let actions = self.receiver.receive(message)?;
        self.act_b(b, actions)?;
        if begins && self.receiver.is_receiving() {
            let mut row = row_of(b.journal())?;
            if standing_of(&row) == Standing::ResyncReady {
                let term = row.term;
                put_standing(&mut row, Standing::Replica, term, None);
                b.journal().put_context(&row)?;
            }
        }
        self.acknowledge();
        Ok(true)
    }

    fn act_b(&mut self, b: &impl Follows, actions: Vec<ReceiverAction>) -> Fallible {
        let journal = b.journal();
        for action in actions {
            match action {
                ReceiverAction::Send(message) => self.to_a.push_back(message),
                ReceiverAction::HigherTerm { term } if row_of(journal)?.role == Role::Production => {
                    b.fence(term)?;
                }
                ReceiverAction::HigherTerm { term } => {
                    let mut row = row_of(journal)?;
                    row.term = term;
                    journal.put_context(&row)?;
                }
                ReceiverAction::Conflict { term } => b.fence(term)?,
                ReceiverAction::Greeted(_) => self.greeted(b)?,
                ReceiverAction::AppendFrame(frame) => {
                    follow(journal, &frame)?;
                    let appended = journal.append_received(frame.bytes)?;
                    let stubs = appended.records().iter().filter_map(|r| match r.body {
                        RecordBody::Copy { digest, .. } => Some((r.seq, digest)),
                        _ => None,
                    });
                    self.stubs = stubs.collect();
                }
                ReceiverAction::Seal(seal) => {
                    let flags = SealFlags {
                        mark: seal.flags & 1 != 0,
                        ..SealFlags::default()
                    };
                    journal.seal_received(seal.lfc, seal.last, &seal.digest, flags)?;
                }
                ReceiverAction::WriteCopy(copy) => {
                    assert!(self.stubs.contains_key(&copy.seq), "a copy without its stub");
                    let copy = RegionCopy {
                        seq: copy.seq,
                        volume: copy.volume,
                        range: copy.range,
                        payload: copy.payload,
                    };
                    arrived(b, Arrived::Copy(copy));
                }
                ReceiverAction::Compare(offer) => {
                    let digest = self.stubs.get(&offer.seq).copied();
                    let offer = RegionOffer {
                        seq: offer.seq,
                        volume: offer.volume,
                        range: offer.range,
                        digest: digest.expect("an offer without its stub"),
                        piece: offer.piece.into(),
                        pieces: offer.pieces,
                    };
                    arrived(b, Arrived::Offer(offer));
                }
                ReceiverAction::Jump(jump) => {
                    pass_gap(journal, &jump)?;
                    self.may_apply = self.may_apply.min(self.receiver.ack().applied);
                }
                ReceiverAction::CopiesComplete { seq } => {
                    copies_are_here(journal, seq)?;
                }
                ReceiverAction::MayApply { seq } => {
                    self.may_apply = seq;
                    journal.set_peer_durable(seq);
                }
                ReceiverAction::Refused { code, text } => {
                    if code == RefuseCode::Diverged {
                        b.set_diverged(true);
                    }
                    self.over_b = Some(text);
                }
                ReceiverAction::Close => drop(self.over_b.get_or_insert_with(|| "closed".into())),
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    }

    fn greeted(&mut self, b: &impl Follows) -> Fallible {
        let journal = b.journal();
        let row = row_of(journal)?;
        if standing_of(&row) == Standing::Fenced {
            b.greeted_fenced()?;
        }
        if let Some(why) = refusal(CONTEXT, &row, b.copies().is_some()) {
            let actions = self.receiver.refuse(RefuseCode::Stopped, &why);
            return self.act_b(b, actions);
        }
        b.copies().expect("one that runs").begin();
        journal.sync()?;
        let welcome = Welcome {
            node: "b".into(),
            config: CONFIG,
            instance: instance(&row),
            ..welcome_of(journal, &row)?
        };
        self.may_apply = welcome.applied;
        let actions = self.receiver.welcome(welcome);
        b.set_diverged(false);
        self.act_b(b, actions)
    }

    /// Recovery's journal or volumes moved: says what can be said.
    pub fn moved(&mut self, b: &impl Follows) -> Fallible {
        let Some(copies) = b.copies().filter(|_| self.receiver.is_receiving()) else {
            return Ok(());
        };
        let c = b.journal().cursors();
        // As in the daemon: this stream vouches for its own end only.
        let durable = c.durable.min(self.receiver.received().seq);
        self.receiver
            .durable(durable.max(self.receiver.ack().received_durable));
        let applied = c.applied.min(self.may_apply).min(durable);
        if applied > self.receiver.ack().applied {
            self.receiver.applied(applied);
        }
        self.receiver.copies_durable(copies.take_written());
        for (seq, ranges) in copies.take_lacking() {
            self.receiver.copy_lacks(Lacks { seq, ranges });
        }
        self.acknowledge();
        Ok(())
    }

    fn acknowledge(&mut self) {
        while let Some(message) = self.receiver.next_message() {
            self.to_a.push_back(message);
        }
    }

    /// Production's end says goodbye, as a link does that is stopped.
    #[allow(dead_code, reason = "the role histories call it")]
    pub fn goodbye(&mut self) {
        let text = "the link ends".to_owned();
        self.to_b.push_back(Message::Bye { text });
    }

    /// Whether nothing more comes of it: what an end has sent before it ended is heard still.
    pub fn is_over(&self) -> bool {
        let heard = (self.to_a.is_empty(), self.to_b.is_empty());
        (self.over_a.is_some() && heard.1) || (self.over_b.is_some() && heard.0)
    }

    /// Whether the greeting was answered and the answer heard.
    pub fn is_greeted(&self) -> bool {
        self.is_over() || self.sender.is_streaming()
    }

    /// Whether nothing is on its way and nothing is left to do for copies.
    pub fn rests(&self) -> bool {
        self.to_a.is_empty() && self.to_b.is_empty() && self.copier.is_none() && !self.completing
    }
}

fn arrived(b: &impl Follows, what: Arrived) {
    let journal = b.journal();
    let last = journal.consistent().pop();
    assert!(
        last.is_none_or(|span| span.until.is_some()),
        "a copy for a consistent replica"
    );
    let copies = b.copies().expect("one that receives runs");
    assert!(
        copies.push(what, journal.sealed_end()),
        "the window is smaller than the queue"
    );
}

/// Random number of a host's store; those of fixed hosts have none.
fn instance(row: &ContextRow) -> u64 {
    let note = row.notes.get("instance");
    note.and_then(|i| u64::from_str_radix(i, 16).ok()).unwrap_or(1)
}
