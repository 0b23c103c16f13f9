//! Both machines of the stream, joined by a pipe that can be cut at any moment, on random schedules.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bytes::{Bytes, BytesMut};
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use rand::{Rng as _, rngs::StdRng};
use std::collections::{BTreeSet, VecDeque};
use wire::{
    Copy, Decoder, Digest, Frame, Hello, Jump, JumpCause, Message, Position, Receiver, ReceiverAction,
    ReceiverLocal, Resume, Seal, SendBound, Sender, SenderAction, SenderOptions, Version, Welcome, codec,
};

const CONTEXT: ContextId = ContextId(1);
const TERM: Term = Term(3);
const REGION: u64 = 4096;

fn chain(before: &Digest, bytes: &[u8]) -> Digest {
    *blake3::hash(&[before, bytes].concat()).as_bytes()
}

/// A journal of production: frames and seals that exist, and how far they are durable.
#[derive(Default)]
struct Production {
    frames: Vec<Frame>,
    seals: Vec<Seal>,
    durable: WriteSeq,
    /// Frames before this one were dropped; always the first of a container.
    floor: usize,
    lfc: LfcId,
    /// Regions to copy, regions whose stub is in a frame, regions done.
    to_copy: Vec<u64>,
    stubs: Vec<(WriteSeq, u64)>,
    copied: BTreeSet<u64>,
    sealed_to: LfcId,
}

impl Production {
    fn new(regions: u64) -> Self {
        Self {
            lfc: LfcId::FIRST,
            to_copy: (0..regions).collect(),
            ..Self::default()
        }
    }

    fn end(&self) -> Position {
        self.frames.last().map_or_else(Position::default, Frame::end)
    }

    fn append(&mut self, rng: &mut StdRng) {
        let end = self.end();
        let birth = rng.random_ratio(1, 30);
        let first = WriteSeq(end.seq.0 + 1 + if birth { rng.random_range(0..50) } else { 0 });
        let last = WriteSeq(first.0 + rng.random_range(0..10));
        let bytes: Bytes = (0..rng.random_range(1..3000))
            .map(|_| rng.random::<u8>())
            .collect::<Vec<_>>()
            .into();
        for seq in first.0..=last.0 {
            if rng.random_ratio(1, 4)
                && let Some(region) = self.to_copy.pop()
            {
                self.stubs.push((WriteSeq(seq), region));
            }
        }
        self.frames.push(Frame {
            generation: if birth || end.generation.0 == 0 {
                GenId(rng.random())
            } else {
                end.generation
            },
            lfc: self.lfc,
            after: end.seq,
            first,
            last,
            durable: WriteSeq(0),
            digest: chain(&end.digest, &bytes),
            bytes,
        });
        if rng.random_ratio(1, 6) {
            let end = self.end();
            self.seals.push(Seal {
                lfc: self.lfc,
                last: end.seq,
                digest: end.digest,
                flags: 0,
            });
            self.lfc = self.lfc.next();
        }
    }

    fn seal_at(&self, seq: WriteSeq) -> Option<Seal> {
        self.seals.iter().find(|s| s.last == seq).copied()
    }

    /// The answer to a resume, as a journal that may have dropped its oldest containers gives it.
    fn resume(&self, peer: Position) -> Resume {
        let known = peer == Position::default() || self.frames.iter().any(|f| f.end() == peer);
        let floor = self
            .floor
            .checked_sub(1)
            .map_or_else(Position::default, |i| self.frames[i].end());
        if !known {
            Resume::Diverged { ours: self.end() }
        } else if peer.seq < floor.seq {
            Resume::Jump(Jump {
                to: floor,
                lfc: self.frames[self.floor - 1].lfc.next(),
                cause: JumpCause::Dropped,
                parent: None,
            })
        } else {
            Resume::Here
        }
    }
}

/// A journal and volumes of recovery.
#[derive(Default)]
struct Recovery {
    frames: Vec<Frame>,
    seals: Vec<Seal>,
    /// Positions that the stream jumped to, with the number of frames before.
    jumps: Vec<(usize, Position)>,
    at: Position,
    open: LfcId,
    durable: WriteSeq,
    durable_state: (usize, usize, usize, Position, LfcId),
    applied: WriteSeq,
    may_apply: WriteSeq,
    /// Copies written, and copies that are synced.
    written: Vec<WriteSeq>,
    copies: Vec<(WriteSeq, u64)>,
}

impl Recovery {
    fn sync(&mut self) {
        self.durable = self.at.seq;
        self.durable_state = (
            self.frames.len(),
            self.seals.len(),
            self.jumps.len(),
            self.at,
            self.open,
        );
    }

    fn crash(&mut self) {
        let (frames, seals, jumps, at, open) = self.durable_state;
        self.frames.truncate(frames);
        self.seals.truncate(seals);
        self.jumps.truncate(jumps);
        (self.at, self.open) = (at, open);
    }

    fn act(&mut self, action: ReceiverAction, out: &mut VecDeque<Message>) {
        match action {
            ReceiverAction::Send(m) => out.push_back(m),
            ReceiverAction::AppendFrame(f) => {
                assert_eq!(f.after, self.at.seq, "exactly once and in order");
                assert_eq!(f.digest, chain(&self.at.digest, &f.bytes));
                assert!(self.open == LfcId(0) || self.open == f.lfc);
                (self.at, self.open) = (f.end(), f.lfc);
                self.frames.push(Frame {
                    durable: WriteSeq(0),
                    ..f
                });
            }
            ReceiverAction::Seal(s) => {
                assert_eq!(
                    (s.lfc, s.last, s.digest),
                    (self.open, self.at.seq, self.at.digest)
                );
                self.open = LfcId(0);
                self.seals.push(s);
            }
            ReceiverAction::Jump(j) => {
                self.jumps.push((self.frames.len(), j.to));
                (self.at, self.open) = (j.to, LfcId(0));
            }
            ReceiverAction::WriteCopy(c) => {
                assert!(
                    self.applied <= c.seq && self.may_apply <= c.seq,
                    "C3: nothing past a copy before the copy"
                );
                assert!(
                    self.frames
                        .last()
                        .is_some_and(|f| f.first <= c.seq && c.seq <= f.last)
                );
                self.written.push(c.seq);
                self.copies.push((c.seq, c.range.start / REGION));
            }
            ReceiverAction::MayApply { seq } => {
                assert!(seq > self.may_apply);
                self.may_apply = seq;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// One connection: both machines and what is on its way.
struct Link {
    sender: Sender,
    receiver: Receiver,
    forth: VecDeque<Message>,
    back: VecDeque<Message>,
}

fn through_codec(message: Message) -> Message {
    let (head, payload) = codec::encode(&message).unwrap().into_parts();
    let mut buf = BytesMut::from(&[head, payload].concat()[..]);
    let decoded = Decoder::peer().decode(&mut buf).unwrap().unwrap();
    assert!(buf.is_empty() && decoded == message);
    decoded
}

struct World {
    production: Production,
    recovery: Recovery,
    link: Option<Link>,
    options: SenderOptions,
    now: Timestamp,
    cuts: u32,
}

impl World {
    fn new(rng: &mut StdRng) -> Self {
        let bound = if rng.random() {
            SendBound::Durable
        } else {
            SendBound::Appended
        };
        let options = SenderOptions {
            window_bytes: rng.random_range(1000..20_000),
            copy_window_bytes: 10_000,
            bound,
        };
        Self {
            production: Production::new(12),
            recovery: Recovery::default(),
            link: None,
            options,
            now: Timestamp(0),
            cuts: 0,
        }
    }

    fn connect(&mut self) {
        let hello = Hello {
            oldest: 1,
            newest: 1,
            context: CONTEXT,
            node: "prod1".into(),
            role: Role::Production,
            term: TERM,
            durable: Position {
                seq: self.production.durable,
                ..Position::default()
            },
            config: [9; 32],
            instance: 1,
        };
        let (mut sender, greeting) = Sender::new(self.options, hello);
        let end = self.production.end().seq;
        assert!(sender.journal(end, self.production.durable).is_empty());
        let SenderAction::Send(greeting) = greeting else {
            panic!("{greeting:?}")
        };
        let local = ReceiverLocal {
            context: CONTEXT,
            role: Role::Recovery,
            term: TERM,
            config: [9; 32],
        };
        let forth = VecDeque::from([greeting]);
        self.production.sealed_to = LfcId(0);
        self.recovery.may_apply = self.recovery.applied;
        self.link = Some(Link {
            sender,
            receiver: Receiver::new(local),
            forth,
            back: VecDeque::new(),
        });
    }

    fn cut(&mut self, crash: bool) {
        let Some(link) = self.link.take() else { return };
        self.cuts += 1;
        for lost in link.sender.finish() {
            let region = lost.range.start / REGION;
            self.production.stubs.retain(|(seq, _)| *seq != lost.seq);
            self.production.to_copy.push(region);
        }
        self.recovery.written.clear();
        if crash {
            self.recovery.crash();
        }
    }

    fn deliver_forth(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(message) = link.forth.pop_front().map(through_codec) else {
            return;
        };
        for action in link.receiver.receive(message).unwrap() {
            match action {
                ReceiverAction::Greeted(_) => {
                    self.recovery.sync();
                    let welcome = Welcome {
                        version: Version::V1,
                        node: "rec1".into(),
                        role: Role::Recovery,
                        term: TERM,
                        received: self.recovery.at,
                        open_lfc: self.recovery.open,
                        applied: self.recovery.applied,
                        copying: true,
                        gives_way: false,
                        config: [9; 32],
                        instance: 2,
                    };
                    for action in link.receiver.welcome(welcome) {
                        self.recovery.act(action, &mut link.back);
                    }
                }
                action => self.recovery.act(action, &mut link.back),
            }
        }
    }

    fn deliver_back(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(message) = link.back.pop_front().map(through_codec) else {
            return;
        };
        for action in link.sender.receive(self.now, message).unwrap() {
            match action {
                SenderAction::CheckPosition { peer, welcome } => {
                    let answer = self.production.resume(peer);
                    for action in link.sender.resume(answer) {
                        let SenderAction::Send(m) = action else {
                            panic!("{action:?}")
                        };
                        link.forth.push_back(m);
                    }
                    let seal = self
                        .production
                        .seal_at(peer.seq)
                        .filter(|s| s.lfc == welcome.open_lfc);
                    if let Some(seal) = seal.filter(|_| answer == Resume::Here) {
                        let SenderAction::Send(m) = link.sender.seal(seal) else {
                            panic!()
                        };
                        link.forth.push_back(m);
                    }
                }
                SenderAction::Acked(ack) => assert!(ack.applied <= ack.received_durable),
                SenderAction::Copied(seqs) => {
                    for seq in seqs {
                        let at = self.production.stubs.iter().position(|(s, _)| *s == seq).unwrap();
                        let (_, region) = self.production.stubs.remove(at);
                        assert!(
                            self.production.copied.insert(region),
                            "a copy is acknowledged once"
                        );
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn send_frame(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(want) = link.sender.want() else { return };
        let frame = self
            .production
            .frames
            .iter()
            .find(|f| f.after == want.after)
            .unwrap()
            .clone();
        let bound = match self.options.bound {
            SendBound::Durable => self.production.durable,
            SendBound::Appended => self.production.end().seq,
        };
        if frame.last > bound || (!want.alone && frame.bytes.len() > want.bytes_max) {
            return;
        }
        let mut out = vec![link.sender.frame(self.now, frame.clone())];
        for (seq, region) in self
            .production
            .stubs
            .iter()
            .filter(|(s, _)| frame.first <= *s && *s <= frame.last)
        {
            let payload = if region % 2 == 0 {
                Payload::Zero
            } else {
                Payload::Data(vec![1; 4096].into())
            };
            let range = ByteRange::at(region * REGION, REGION);
            out.push(link.sender.copy(Copy {
                seq: *seq,
                volume: VolumeIndex(0),
                range,
                payload,
            }));
        }
        if let Some(seal) = self.production.seal_at(frame.last) {
            out.push(link.sender.seal(seal));
        }
        let flying = link.sender.cursors().in_flight_bytes;
        assert!(flying <= self.options.window_bytes || flying == frame.bytes.len());
        for action in out {
            let SenderAction::Send(m) = action else {
                panic!("{action:?}")
            };
            link.forth.push_back(m);
        }
    }

    fn moved(&mut self) {
        if let Some(link) = &mut self.link {
            for action in link
                .sender
                .journal(self.production.end().seq, self.production.durable)
            {
                let SenderAction::Send(m) = action else {
                    panic!("{action:?}")
                };
                link.forth.push_back(m);
            }
        }
    }

    fn sync_recovery(&mut self) {
        self.recovery.sync();
        if let Some(link) = self.link.as_mut().filter(|l| l.receiver.is_receiving()) {
            link.receiver.durable(self.recovery.durable);
        }
    }

    fn apply(&mut self) {
        let to = self.recovery.may_apply.min(self.recovery.durable);
        assert!(
            to <= self.production.durable,
            "recovery applies nothing that production could lose"
        );
        if let Some(link) = self.link.as_mut().filter(|l| l.receiver.is_receiving())
            && to > self.recovery.applied
        {
            self.recovery.applied = to;
            link.receiver.applied(to);
        }
    }

    fn acknowledge(&mut self, copies: bool) {
        let Some(link) = self.link.as_mut().filter(|l| l.receiver.is_receiving()) else {
            return;
        };
        if copies {
            link.receiver.copies_durable(self.recovery.written.drain(..));
        }
        link.back.extend(link.receiver.next_message());
    }

    fn step(&mut self, rng: &mut StdRng, drops: bool) {
        self.now.0 += 1;
        match rng.random_range(0..100) {
            0..10 => {
                self.production.append(rng);
                self.moved();
            }
            10..20 => {
                self.production.durable = self.production.end().seq;
                self.moved();
            }
            20..40 => self.send_frame(),
            40..58 => self.deliver_forth(),
            58..76 => self.deliver_back(),
            76..82 => self.sync_recovery(),
            82..86 => self.apply(),
            86..94 => self.acknowledge(rng.random()),
            94..96 => {
                let crash = rng.random();
                self.cut(crash);
            }
            96 if drops && self.link.is_none() => {
                let starts = |i: &usize| {
                    *i > 0 && self.production.frames[*i].lfc != self.production.frames[*i - 1].lfc
                };
                let durable = |i: &usize| self.production.frames[*i].after <= self.production.durable;
                let all: Vec<_> = (0..self.production.frames.len())
                    .filter(starts)
                    .filter(durable)
                    .collect();
                if let Some(i) = all.get(rng.random_range(0..all.len().max(1))) {
                    self.production.floor = self.production.floor.max(*i);
                    // What was to be copied with a dropped stub is copied under a new one.
                    let floor = self.production.frames[self.production.floor].first;
                    let (gone, kept) = self.production.stubs.iter().partition(|(s, _)| *s < floor);
                    self.production.stubs = kept;
                    let gone: Vec<(WriteSeq, u64)> = gone;
                    self.production
                        .to_copy
                        .extend(gone.into_iter().map(|(_, region)| region));
                }
            }
            _ if self.link.is_none() => self.connect(),
            _ => {}
        }
    }

    /// Until nothing moves any more, on a link that holds.
    fn settle(&mut self, rng: &mut StdRng) {
        for _ in 0..10_000 {
            if self.link.is_none() {
                self.connect();
            }
            if !self.production.to_copy.is_empty() {
                self.production.append(rng);
            }
            self.production.durable = self.production.end().seq;
            self.moved();
            self.send_frame();
            self.deliver_forth();
            self.sync_recovery();
            self.apply();
            self.acknowledge(true);
            self.deliver_back();
            let link = self.link.as_ref().unwrap();
            let done = link.sender.cursors().acked.received_durable == self.production.end().seq
                && link.forth.is_empty()
                && link.back.is_empty()
                && self.production.to_copy.is_empty()
                && self.production.stubs.is_empty();
            if done {
                return;
            }
        }
        panic!(
            "the stream stands still: {:?} {:?}",
            self.link.as_ref().unwrap().sender,
            self.production.stubs
        );
    }

    fn check(&self) {
        let (ours, theirs) = (&self.production.frames, &self.recovery.frames);
        // Left out is exactly what a jump passed over.
        let mut expected = ours.iter();
        for (i, frame) in theirs.iter().enumerate() {
            for (_, to) in self.recovery.jumps.iter().filter(|(at, _)| *at == i) {
                while expected.as_slice().first().is_some_and(|f| f.last <= to.seq) {
                    expected.next();
                }
            }
            assert_eq!(expected.next(), Some(frame));
        }
        assert_eq!(self.recovery.at, self.production.end());
        if self.recovery.jumps.is_empty() {
            assert_eq!(theirs.len(), ours.len());
            assert_eq!(self.recovery.seals, self.production.seals);
        }
        assert_eq!(self.production.copied.len(), 12, "every region was copied");
        let regions: BTreeSet<_> = self.recovery.copies.iter().map(|(_, r)| *r).collect();
        assert_eq!(regions.len(), 12);
        let mut seqs: Vec<_> = self.recovery.copies.iter().map(|(s, _)| *s).collect();
        seqs.sort_unstable();
        assert!(seqs.windows(2).all(|w| w[0] != w[1]), "no copy is sent twice");
    }
}

fn play(name: &str, drops: bool) {
    let (mut cuts, mut jumps) = (0, 0);
    testkit::seeds::with_seeds(name, 150, |rng| {
        let mut world = World::new(rng);
        for _ in 0..3000 {
            world.step(rng, drops);
        }
        world.settle(rng);
        world.check();
        cuts += world.cuts;
        jumps += world.recovery.jumps.len();
    });
    assert!(cuts > 0 && (jumps > 0) == drops, "{cuts} cuts, {jumps} jumps");
}

#[test]
fn every_frame_arrives_once_and_in_order_across_cuts() {
    play("wire stream", false);
}

#[test]
fn only_dropped_frames_are_left_out() {
    play("wire stream with drops", true);
}
