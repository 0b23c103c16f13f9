//! The stream between the hosts: the real machines, with queues in place of a connection. What is in a queue when the link
//! is cut is lost.

use super::hosts::{Fallible, Production, Recovery};
use anyhow::bail;
use backstay::agent::{
    aba::{follow, pass_gap},
    meeting::{Verdict, end_of, judge, over_the_gap, take_peer},
};
use journal::{SealFlags, tap::CopyTaken};
use model::{ByteRange, ContextId, GenNo, LfcId, RecordBody, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use snapshot::RegionCopy;
use std::collections::{BTreeMap, VecDeque};
use wire::{
    Hello, Jump, Message, Receiver, ReceiverAction, ReceiverLocal, Resume, Sender, SenderAction,
    SenderOptions, Version, Welcome,
};

const CONTEXT: ContextId = ContextId(1);
const CONFIG: [u8; 32] = [3; 32];
/// Most bytes of one copy: less than most volumes, so that a first sync takes many.
const COPY_BYTES: u64 = 32 << 10;

/// One connection.
pub struct Link {
    sender: Sender,
    receiver: Receiver,
    to_b: VecDeque<Message>,
    to_a: VecDeque<Message>,
    unsealed: Option<LfcId>,
    completing: bool,
    copier: Option<Copier>,
    waiting: BTreeMap<WriteSeq, (VolumeIndex, CopyTaken)>,
    sent: BTreeMap<WriteSeq, (VolumeIndex, ByteRange)>,
    /// Times that the stream left something out.
    pub jumps: u32,
    /// The peer waits for copies.
    peer_copies: bool,
    may_apply: WriteSeq,
}

#[derive(Default)]
struct Copier {
    at: (VolumeIndex, u64),
    any: bool,
}

impl Link {
    /// Connects and greets.
    pub fn connect(a: &Production, b: &Recovery) -> Fallible<Self> {
        let hello = Hello {
            oldest: Version::OLDEST as u16,
            newest: Version::NEWEST as u16,
            context: CONTEXT,
            node: "a".into(),
            role: Role::Production,
            term: Term(1),
            durable: end_of(&a.journal)?,
            config: CONFIG,
            instance: 1,
        };
        let options = SenderOptions {
            window_bytes: 128 << 10,
            ..SenderOptions::default()
        };
        let (sender, greeting) = Sender::new(options, hello);
        let receiver = Receiver::new(ReceiverLocal {
            context: CONTEXT,
            role: Role::Recovery,
            term: Term(1),
            config: CONFIG,
            gives_way: false,
        });
        let mut link = Self {
            sender,
            receiver,
            to_b: VecDeque::new(),
            to_a: VecDeque::new(),
            unsealed: None,
            completing: false,
            copier: None,
            waiting: BTreeMap::new(),
            sent: BTreeMap::new(),
            jumps: 0,
            peer_copies: false,
            may_apply: WriteSeq(0),
        };
        link.act_a(a, vec![greeting])?;
        link.hear_b(b)?;
        link.hear_a(a)?;
        Ok(link)
    }

    /// Production hears one message; `false` when there is none.
    pub fn hear_a(&mut self, a: &Production) -> Fallible<bool> {
        let Some(message) = self.to_a.pop_front() else {
            return Ok(false);
        };
        let actions = self.sender.receive(Timestamp::now(), message)?;
        self.act_a(a, actions)?;
        Ok(true)
    }

    fn act_a(&mut self, a: &Production, actions: Vec<SenderAction>) -> Fallible {
        for action in actions {
            match action {
                SenderAction::Send(message) => self.to_b.push_back(message),
                SenderAction::CheckPosition { peer, welcome } => {
                    let resume = match judge(&a.journal, peer, welcome.gives_way)? {
                        Verdict::Here => Resume::Here,
                        Verdict::Jump(jump) => Resume::Jump(jump),
                        other => bail!("the peer's {peer} is not on the line: {other:?}"),
                    };
                    let actions = self.sender.resume(resume);
                    self.act_a(a, actions)?;
                    self.unsealed = Some(welcome.open_lfc).filter(|l| *l >= LfcId::FIRST && peer.seq.0 > 0);
                    let lacks = welcome.copying || matches!(resume, Resume::Jump(_));
                    take_peer(&a.journal, peer.seq, welcome.applied, lacks)?;
                    self.peer_copies = welcome.copying;
                    match resume {
                        Resume::Here => self.forget_covered(a)?,
                        Resume::Jump(jump) => self.jumped(a, &jump)?,
                        Resume::Diverged { .. } => bail!("the peer's {peer} is not on the line: {resume:?}"),
                    }
                    if welcome.copying || self.stale(a, (VolumeIndex(0), 0)).is_some() {
                        self.copier.get_or_insert_default();
                    }
                }
                SenderAction::Acked(ack) => {
                    a.journal.set_peer(ack.received_durable, ack.applied, false)?;
                    self.forget_covered(a)?;
                }
                SenderAction::Copied(seqs) => {
                    for seq in seqs {
                        let (volume, range) = self.sent.remove(&seq).expect("a copy that was sent");
                        a.journal.clear_if_older(&[(volume, range, seq)])?;
                    }
                }
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    }

    /// As the LCA does.
    fn forget_covered(&self, a: &Production) -> Fallible {
        if !self.peer_copies {
            a.journal.forget_covered()?;
        }
        Ok(())
    }

    /// The stream left out what the journal gave up.
    fn jumped(&mut self, a: &Production, jump: &Jump) -> Fallible {
        self.jumps += 1;
        self.peer_copies = true;
        self.unsealed = None;
        self.completing = false;
        self.waiting = self.waiting.split_off(&jump.to.seq.next());
        let first = [(VolumeIndex(0), ByteRange { start: 0, end: 1 })];
        a.journal.mark_stale(&first, jump.to.seq)?;
        self.copier.get_or_insert_default();
        Ok(())
    }

    fn stale(&self, a: &Production, from: (VolumeIndex, u64)) -> Option<(VolumeIndex, ByteRange)> {
        let volumes = a.volumes.iter().map(|(v, _)| v).filter(|v| *v >= from.0);
        volumes.into_iter().find_map(|v| {
            let from = if v == from.0 { from.1 } else { 0 };
            Some((v, a.journal.next_stale(v, from, COPY_BYTES)?))
        })
    }

    /// The copier's next step.
    pub fn copy(&mut self, a: &Production) -> Fallible {
        let Some(Copier { at, any }) = self.copier.take() else {
            return Ok(());
        };
        if let Some((volume, range)) = self.stale(a, at) {
            let last = self.stale(a, (volume, range.end)).is_none();
            let copy = a.tap.copy(volume, range, last)?;
            self.waiting.insert(copy.seq, (volume, copy));
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

    /// Sends one frame, with the seal before it and the copies behind it; `false` when nothing may be sent.
    pub fn pump(&mut self, a: &Production) -> Fallible<bool> {
        let c = a.journal.cursors();
        let actions = self.sender.journal(c.appended, c.durable);
        self.act_a(a, actions)?;
        self.seal(a)?;
        self.complete(a)?;
        let Some(want) = self.sender.want() else {
            return Ok(false);
        };
        if let Some(jump) = over_the_gap(&a.journal, want.after) {
            let sent = self.sender.jump(jump);
            self.act_a(a, vec![sent])?;
            self.jumped(a, &jump)?;
            return Ok(true);
        }
        let frames = a.journal.frames_after(want.after, want.bytes_max as u64)?;
        let Some(frame) = frames.first() else {
            return Ok(false);
        };
        if frame.last_seq() > c.durable || !(want.alone || frame.len() <= want.bytes_max) {
            return Ok(false);
        }
        assert!(
            self.unsealed.is_none_or(|l| l == frame.lfc()),
            "a frame of {} before the seal of {:?}",
            frame.lfc(),
            self.unsealed
        );
        self.unsealed = Some(frame.lfc());
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
            let RecordBody::Copy { .. } = record.body else {
                continue;
            };
            // A stub of an older connection: its copy is lost, and its region comes again.
            let Some((volume, copy)) = self.waiting.remove(&record.seq) else {
                continue;
            };
            self.sent.insert(copy.seq, (volume, copy.range));
            let copy = wire::Copy {
                seq: copy.seq,
                volume,
                range: copy.range,
                payload: copy.payload,
            };
            let sent = self.sender.copy(copy);
            self.act_a(a, vec![sent])?;
        }
        Ok(true)
    }

    fn seal(&mut self, a: &Production) -> Fallible {
        let generation = a.journal.current_generation().map_or(GenNo(0), |g| g.no);
        let row = self.unsealed.and_then(|lfc| a.journal.lfc_row(generation, lfc));
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

    fn complete(&mut self, a: &Production) -> Fallible {
        if !self.completing || self.sender.copies_in_flight() > 0 {
            return Ok(());
        }
        if self.stale(a, (VolumeIndex(0), 0)).is_some() {
            self.completing = false;
            self.copier.get_or_insert_default();
            return Ok(());
        }
        if self.unsealed.is_some() {
            a.tap.seal_now()?;
            self.seal(a)?;
            if self.unsealed.is_some() {
                return Ok(());
            }
        }
        self.completing = false;
        self.peer_copies = false;
        let sent = self.sender.copies_complete();
        self.act_a(a, vec![sent])
    }

    /// Recovery hears one message; `false` when there is none.
    pub fn hear_b(&mut self, b: &Recovery) -> Fallible<bool> {
        let Some(message) = self.to_b.pop_front() else {
            return Ok(false);
        };
        let actions = self.receiver.receive(message)?;
        self.act_b(b, actions)?;
        self.acknowledge();
        Ok(true)
    }

    fn act_b(&mut self, b: &Recovery, actions: Vec<ReceiverAction>) -> Fallible {
        let journal = &b.journal;
        for action in actions {
            match action {
                ReceiverAction::Send(message) => self.to_a.push_back(message),
                ReceiverAction::Greeted(_) => {
                    b.copies.begin();
                    journal.sync()?;
                    let welcome = Welcome {
                        version: Version::NEWEST,
                        node: "b".into(),
                        role: Role::Recovery,
                        term: Term(1),
                        received: end_of(journal)?,
                        open_lfc: journal.open_row().map_or(LfcId(0), |r| r.lfc),
                        applied: journal.cursors().applied,
                        copying: b.consistent_from().is_none(),
                        gives_way: false,
                        config: CONFIG,
                        instance: 2,
                    };
                    self.may_apply = welcome.applied;
                    let actions = self.receiver.welcome(welcome);
                    self.act_b(b, actions)?;
                }
                ReceiverAction::AppendFrame(frame) => {
                    follow(journal, &frame)?;
                    journal.append_received(frame.bytes)?;
                }
                ReceiverAction::Seal(seal) => {
                    let flags = SealFlags {
                        mark: seal.flags & 1 != 0,
                        ..SealFlags::default()
                    };
                    journal.seal_received(seal.lfc, seal.last, &seal.digest, flags)?;
                }
                ReceiverAction::WriteCopy(copy) => {
                    let copy = RegionCopy {
                        seq: copy.seq,
                        volume: copy.volume,
                        range: copy.range,
                        payload: copy.payload,
                    };
                    assert!(b.consistent_from().is_none(), "a copy for a consistent replica");
                    let room = b.copies.push(copy, journal.sealed_end());
                    assert!(room, "the window is smaller than the queue");
                }
                ReceiverAction::Jump(jump) => drop(pass_gap(journal, &jump)?),
                ReceiverAction::CopiesComplete { seq } => {
                    let generation = journal.current_generation().map_or(GenNo(0), |g| g.no);
                    journal.set_consistent_from(journal::Position { generation, seq })?;
                }
                ReceiverAction::MayApply { seq } => {
                    self.may_apply = seq;
                    journal.set_peer_durable(seq);
                }
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    }

    /// Recovery's journal or volumes moved: says what can be said.
    pub fn moved(&mut self, b: &Recovery) -> Fallible {
        let c = b.journal.cursors();
        // As in the daemon: this stream vouches for its own end only.
        let durable = c.durable.min(self.receiver.received().seq);
        self.receiver
            .durable(durable.max(self.receiver.ack().received_durable));
        let applied = c.applied.min(self.may_apply).min(durable);
        if applied > self.receiver.ack().applied {
            self.receiver.applied(applied);
        }
        self.receiver.copies_durable(b.copies.take_written());
        self.acknowledge();
        Ok(())
    }

    fn acknowledge(&mut self) {
        while let Some(message) = self.receiver.next_message() {
            self.to_a.push_back(message);
        }
    }

    /// Whether nothing is on its way and nothing is left to do for copies.
    pub fn rests(&self) -> bool {
        self.to_a.is_empty() && self.to_b.is_empty() && self.copier.is_none() && !self.completing
    }
}
