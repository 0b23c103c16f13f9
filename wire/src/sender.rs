//! Production's end of a context's stream: a machine without I/O.
//!
//! # Overview
//! One machine per connection. Its owner feeds it what the peer says ([`Sender::receive`]) and what the journal does
//! ([`Sender::journal`]); it answers actions. Frames are pulled: whenever [`Sender::want`] says so, the owner reads the next
//! frame from the journal and hands it over ([`Sender::frame`]), so that nothing is queued here and a slow peer costs no
//! memory.
//!
//! ```text
//! Greeting ── Welcome ──► Checking ── resume() ──► Streaming
//!     └── Refuse ──► Over ◄── diverged, fenced ──────┘
//! ```
//!
//! # Invariants
//! - `received_durable ≤ sent ≤ bound`, where the bound is the journal's `durable` (async) or `appended` (mwc, sync). Breaking
//!   it is a bug of the owner and panics.
//! - Frames are sent without a gap: each begins behind the one before it, or behind a [`Jump`].
//! - Bytes of unacknowledged frames never pass the window, except that one frame alone may be larger than it.
//! - A copy is sent right behind the frame that holds its stub. It is never sent twice: what is not acknowledged when the
//!   connection ends is lost, and reported by [`Sender::finish`] to be read again at a new position (`rules.md` C3).
//! - An offer is a copy without its bytes, for a peer that may have them; it is answered by an acknowledgement, as any copy, or
//!   by what the peer lacks. Then the copy is over, and what it lacks must come at a new position. Only peers of version 2
//!   are offered anything.
//!
//! # What it does not do
//! It keeps nothing across connections and decides nothing about histories: whether the peer's position lies on our line is
//! the journal's answer ([`SenderAction::CheckPosition`], [`Sender::resume`]).

use crate::{
    ProtocolError,
    message::{
        Ack, Copy, Frame, Hello, Jump, JumpCause, Lacks, Message, Offer, Position, RefuseCode, Seal, Version,
        Welcome,
    },
};
use model::{ByteRange, Payload, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use std::collections::{BTreeMap, VecDeque};

/// How far ahead of the disk frames may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendBound {
    /// Only durable frames (mode `async`).
    Durable,
    /// Every appended frame (modes `mwc` and `sync`); the peer applies only what is durable here.
    Appended,
}

/// Limits of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderOptions {
    /// Most bytes of frames that are not acknowledged.
    pub window_bytes: usize,
    /// Most bytes of copies that are not acknowledged.
    pub copy_window_bytes: usize,
    /// How far frames may be sent.
    pub bound: SendBound,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self {
            window_bytes: 32 << 20,
            copy_window_bytes: 32 << 20,
            bound: SendBound::Durable,
        }
    }
}

/// What the owner has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SenderAction {
    /// Send this to the peer.
    Send(Message),
    /// Look whether this position lies on our line with this digest, and answer with [`Sender::resume`]. When the peer still
    /// has a container open that ends exactly there, its seal was lost: send it again with [`Sender::seal`].
    CheckPosition {
        /// What the peer holds; [`Position::default`] when nothing.
        peer: Position,
        /// Its whole greeting.
        welcome: Welcome,
    },
    /// The peer is further than before.
    Acked(Ack),
    /// These copies are durable on the peer's volumes: their regions are no longer stale on their account.
    Copied(Vec<WriteSeq>),
    /// The peer lacks this of what it was offered.
    Lacks(Lacks),
    /// The histories have parted; the connection ends.
    Diverged {
        /// Our position.
        ours: Position,
        /// The peer's.
        theirs: Position,
    },
    /// The peer knows a higher term: make it durable and stop before the next acknowledgement.
    Fenced {
        /// The higher term.
        term: Term,
    },
    /// Both hold the same term as production: stop until an operator chooses.
    Conflict {
        /// The term.
        term: Term,
    },
    /// The peer refused.
    Refused {
        /// Why.
        code: RefuseCode,
        /// The same for people.
        text: String,
    },
    /// A message that is not of the stream, for the owner to answer.
    Deliver(Message),
    /// End the connection once what is queued is sent.
    Close,
}

/// The owner's answer to [`SenderAction::CheckPosition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It is on our line, and we hold every record behind it.
    Here,
    /// We no longer hold (or never journaled) what comes behind it, or it is not on our line and its owner has given its own
    /// line up; the regions that differ are stale, and the stream goes on elsewhere.
    Jump(Jump),
    /// It is not on our line, or we cannot tell.
    Diverged {
        /// Where we are.
        ours: Position,
    },
}

/// The next frame that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The frame that follows this record.
    pub after: WriteSeq,
    /// Room for so many bytes; a longer frame has to wait, except when `alone`.
    pub bytes_max: usize,
    /// Nothing is on its way, so a frame of any size may be sent.
    pub alone: bool,
}

/// A copy that the peer did not acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostCopy {
    /// Its stub.
    pub seq: WriteSeq,
    /// The volume.
    pub volume: VolumeIndex,
    /// The region.
    pub range: ByteRange,
}

/// How far the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderCursors {
    /// Last record sent.
    pub sent: WriteSeq,
    /// What the peer has acknowledged.
    pub acked: Ack,
    /// Bytes of frames on their way.
    pub in_flight_bytes: usize,
    /// Bytes of copies on their way.
    pub copy_bytes: usize,
    /// Time from sending to acknowledgement of the newest acknowledged frame, in nanoseconds.
    pub ack_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Checking(Position),
    Streaming,
    Over,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Greeting => "waiting for its welcome",
            Self::Checking(_) => "checking its position",
            Self::Streaming => "streaming",
            Self::Over => "the connection ends",
        }
    }
}

#[derive(Debug)]
struct InFlight {
    last: WriteSeq,
    bytes: usize,
    at: Timestamp,
}

/// The machine.
#[derive(Debug)]
pub struct Sender {
    options: SenderOptions,
    hello: Hello,
    state: State,
    version: Version,
    appended: WriteSeq,
    durable: WriteSeq,
    /// The last `durable` that the peer was told.
    told: WriteSeq,
    sent: Position,
    /// First record of the last frame: where a copy's stub may be.
    frame_first: WriteSeq,
    last_copy: WriteSeq,
    acked: Ack,
    frames: VecDeque<InFlight>,
    copies: BTreeMap<WriteSeq, (LostCopy, usize)>,
    in_flight_bytes: usize,
    copy_bytes: usize,
    ack_ns: u64,
}

impl Sender {
    /// A machine for a new connection, and the greeting to send.
    #[must_use]
    pub fn new(options: SenderOptions, hello: Hello) -> (Self, SenderAction) {
        let greeting = SenderAction::Send(Message::Hello(hello.clone()));
        let durable = hello.durable.seq;
        let machine = Self {
            options,
            hello,
            state: State::Greeting,
            version: Version::OLDEST,
            appended: durable,
            durable,
            told: WriteSeq(0),
            sent: Position::default(),
            frame_first: WriteSeq(0),
            last_copy: WriteSeq(0),
            acked: Ack::default(),
            frames: VecDeque::new(),
            copies: BTreeMap::new(),
            in_flight_bytes: 0,
            copy_bytes: 0,
            ack_ns: 0,
        };
        (machine, greeting)
    }

    /// Takes a message of the peer.
    ///
    /// # Errors
    /// When it cannot be right; the owner ends the connection.
    pub fn receive(&mut self, now: Timestamp, message: Message) -> Result<Vec<SenderAction>, ProtocolError> {
        match (self.state, message) {
            (State::Over, _) => Ok(Vec::new()),
            (State::Greeting, Message::Welcome(w)) => self.welcomed(w),
            (_, Message::Refuse(r)) => {
                self.state = State::Over;
                let mut actions = Vec::new();
                if r.term > self.hello.term {
                    actions.push(SenderAction::Fenced { term: r.term });
                } else if r.code == RefuseCode::Conflict {
                    actions.push(SenderAction::Conflict { term: r.term });
                }
                actions.push(SenderAction::Refused {
                    code: r.code,
                    text: r.text,
                });
                actions.push(SenderAction::Close);
                Ok(actions)
            }
            (State::Streaming, Message::Ack(a)) => self.acknowledged(now, a),
            (State::Streaming, Message::CopyAck { seqs }) => self.copied(seqs),
            (State::Streaming, Message::Lacks(l)) if self.version >= Version::V2 => self.lacks(l),
            (_, Message::Bye { text }) => {
                self.state = State::Over;
                Ok(vec![
                    SenderAction::Deliver(Message::Bye { text }),
                    SenderAction::Close,
                ])
            }
            (State::Streaming | State::Checking(_), m @ (Message::Request(_) | Message::Response(_))) => {
                Ok(vec![SenderAction::Deliver(m)])
            }
            (state, m) => Err(ProtocolError::Unexpected {
                kind: m.kind(),
                state: state.name(),
            }),
        }
    }

    fn welcomed(&mut self, w: Welcome) -> Result<Vec<SenderAction>, ProtocolError> {
        let fault = |why| Err(ProtocolError::Welcome { why });
        if w.term > self.hello.term {
            self.state = State::Over;
            let code = RefuseCode::LowerTerm;
            let text = format!("term {} is higher than {}", w.term, self.hello.term);
            return Ok(vec![
                SenderAction::Fenced { term: w.term },
                SenderAction::Send(Message::refuse(code, self.hello.term, text)),
                SenderAction::Close,
            ]);
        }
        if w.term < self.hello.term {
            return fault("its term is lower than the greeting's");
        }
        if w.role != Role::Recovery {
            return fault("it is production too");
        }
        if w.config != self.hello.config {
            return fault("its configuration is another one");
        }
        if w.applied > w.received.seq {
            return fault("it has applied more than it has received");
        }
        if !(self.hello.oldest..=self.hello.newest).contains(&(w.version as u16)) {
            return fault("its version was not offered");
        }
        self.version = w.version;
        self.acked = Ack {
            received_durable: w.received.seq,
            applied: w.applied,
        };
        self.state = State::Checking(w.received);
        Ok(vec![SenderAction::CheckPosition {
            peer: w.received,
            welcome: w,
        }])
    }

    /// Takes the owner's answer to [`SenderAction::CheckPosition`].
    ///
    /// # Panics
    /// When nothing was asked, or a jump does not lead forward.
    pub fn resume(&mut self, answer: Resume) -> Vec<SenderAction> {
        let peer = match self.state {
            State::Checking(peer) => peer,
            // The connection may have ended while the journal was asked.
            State::Over => return Vec::new(),
            other => panic!("resume() while {}", other.name()),
        };
        let mut actions = Vec::new();
        self.sent = match answer {
            Resume::Here => peer,
            Resume::Jump(jump) => {
                let other_line = jump.cause == JumpCause::Line;
                assert!(
                    other_line || jump.to.seq >= peer.seq,
                    "a jump from {peer} back to {}",
                    jump.to
                );
                if other_line {
                    // What the peer had of its own line counts for nothing on ours.
                    self.acked = Ack {
                        received_durable: self.acked.received_durable.min(jump.to.seq),
                        applied: self.acked.applied.min(jump.to.seq),
                    };
                }
                actions.push(SenderAction::Send(Message::Jump(jump)));
                jump.to
            }
            Resume::Diverged { ours } => {
                self.state = State::Over;
                let text = format!("{peer} is not on the line that leads to {ours}");
                return vec![
                    SenderAction::Send(Message::refuse(RefuseCode::Diverged, self.hello.term, text)),
                    SenderAction::Diverged { ours, theirs: peer },
                    SenderAction::Close,
                ];
            }
        };
        self.state = State::Streaming;
        self.frame_first = self.sent.seq.next();
        actions.push(self.tell_durable());
        actions
    }

    /// Leaves out records in mid-stream, because they were dropped before the peer had them.
    ///
    /// # Panics
    /// When the jump does not lead forward, or past the bound.
    pub fn jump(&mut self, jump: Jump) -> SenderAction {
        assert_eq!(self.state, State::Streaming, "a jump outside the stream");
        assert!(
            jump.to.seq >= self.sent.seq,
            "a jump from {} back to {}",
            self.sent,
            jump.to
        );
        assert!(
            jump.to.seq <= self.bound(),
            "a jump to {} past the bound {}",
            jump.to,
            self.bound()
        );
        self.sent = jump.to;
        self.frame_first = jump.to.seq.next();
        SenderAction::Send(Message::Jump(jump))
    }

    fn tell_durable(&mut self) -> SenderAction {
        self.told = self.durable;
        SenderAction::Send(Message::Durable { seq: self.durable })
    }

    /// The journal's cursors have moved.
    ///
    /// # Panics
    /// When one of them falls, or `durable` passes `appended`.
    pub fn journal(&mut self, appended: WriteSeq, durable: WriteSeq) -> Vec<SenderAction> {
        assert!(durable <= appended, "durable {durable} past appended {appended}");
        assert!(
            appended >= self.appended && durable >= self.durable,
            "the journal's cursors fell"
        );
        (self.appended, self.durable) = (appended, durable);
        // Frames carry the cursor; only what was sent before it was durable needs a word of its own.
        let news = self.state == State::Streaming && self.told < self.sent.seq && self.told < durable;
        if news {
            vec![self.tell_durable()]
        } else {
            Vec::new()
        }
    }

    /// Changes how far frames may be sent; what is sent stays sent.
    pub const fn set_bound(&mut self, bound: SendBound) {
        self.options.bound = bound;
    }

    const fn bound(&self) -> WriteSeq {
        match self.options.bound {
            SendBound::Durable => self.durable,
            SendBound::Appended => self.appended,
        }
    }

    /// The frame to hand over next, if one may be sent.
    #[must_use]
    pub fn want(&self) -> Option<Want> {
        let room = self.options.window_bytes.saturating_sub(self.in_flight_bytes);
        let wanted = self.state == State::Streaming && self.sent.seq < self.bound() && room > 0;
        wanted.then_some(Want {
            after: self.sent.seq,
            bytes_max: room,
            alone: self.frames.is_empty(),
        })
    }

    /// Sends a frame. Its `durable` is filled in here.
    ///
    /// # Panics
    /// When it was not wanted: not the next one, past the bound, or larger than the room.
    pub fn frame(&mut self, now: Timestamp, mut frame: Frame) -> SenderAction {
        let want = self
            .want()
            .unwrap_or_else(|| panic!("frame to {} is not wanted", frame.last));
        assert_eq!(frame.after, want.after, "frames are sent without a gap");
        assert!(
            frame.after < frame.first && frame.first <= frame.last,
            "a frame's records rise"
        );
        assert!(
            frame.last <= self.bound(),
            "sent {} past the bound {}",
            frame.last,
            self.bound()
        );
        assert!(
            want.alone || frame.bytes.len() <= want.bytes_max,
            "a frame past the window"
        );
        frame.durable = self.durable;
        self.told = self.durable;
        self.sent = frame.end();
        self.frame_first = frame.first;
        self.in_flight_bytes += frame.bytes.len();
        self.frames.push_back(InFlight {
            last: frame.last,
            bytes: frame.bytes.len(),
            at: now,
        });
        SenderAction::Send(Message::Frame(frame))
    }

    /// Tells that a container ends where the stream stands.
    ///
    /// # Panics
    /// When it ends elsewhere.
    pub fn seal(&mut self, seal: Seal) -> SenderAction {
        assert_eq!(self.state, State::Streaming, "a seal outside the stream");
        assert_eq!(
            (seal.last, seal.digest),
            (self.sent.seq, self.sent.digest),
            "a seal stands at the end of its frames"
        );
        self.frame_first = self.sent.seq.next();
        SenderAction::Send(Message::Seal(seal))
    }

    /// Bytes of copies that may still be begun. To be asked *before* a stub takes its position: a stub that was sent must be
    /// followed by its copy.
    #[must_use]
    pub fn copy_room(&self) -> usize {
        match self.state {
            State::Streaming => self.options.copy_window_bytes.saturating_sub(self.copy_bytes),
            _ => 0,
        }
    }

    /// Sends a copy, right behind the frame that holds its stub.
    ///
    /// # Panics
    /// When its stub is not in the last frame, or copies are out of order.
    pub fn copy(&mut self, copy: Copy) -> SenderAction {
        let bytes = match &copy.payload {
            Payload::Data(d) => d.len(),
            Payload::Zero => 0,
        };
        let lost = LostCopy {
            seq: copy.seq,
            volume: copy.volume,
            range: copy.range,
        };
        self.begin_copy(lost, bytes);
        SenderAction::Send(Message::Copy(copy))
    }

    /// Sends a copy without its bytes, right behind the frame that holds its stub.
    ///
    /// # Panics
    /// As [`Sender::copy`]; and when the peer does not know offers.
    pub fn offer(&mut self, offer: Offer) -> SenderAction {
        assert!(self.version >= Version::V2, "an offer to a peer that knows none");
        let lost = LostCopy {
            seq: offer.seq,
            volume: offer.volume,
            range: offer.range,
        };
        self.begin_copy(lost, 0);
        SenderAction::Send(Message::Offer(offer))
    }

    fn begin_copy(&mut self, copy: LostCopy, bytes: usize) {
        assert_eq!(self.state, State::Streaming, "a copy outside the stream");
        assert!(
            self.frame_first <= copy.seq && copy.seq <= self.sent.seq && self.last_copy < copy.seq,
            "the copy of {} does not follow its stub's frame {} to {}",
            copy.seq,
            self.frame_first,
            self.sent.seq
        );
        self.last_copy = copy.seq;
        self.copies.insert(copy.seq, (copy, bytes));
        self.copy_bytes += bytes;
    }

    /// The version that both ends speak.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Copies that are not acknowledged.
    #[must_use]
    pub fn copies_in_flight(&self) -> usize {
        self.copies.len()
    }

    /// Tells that the running sync is complete: the peer is consistent from where the stream stands.
    ///
    /// # Panics
    /// When copies are still on their way.
    pub fn copies_complete(&mut self) -> SenderAction {
        assert_eq!(self.state, State::Streaming, "a completion outside the stream");
        assert!(
            self.copies.is_empty(),
            "{} copies are still on their way",
            self.copies.len()
        );
        SenderAction::Send(Message::CopiesComplete { seq: self.sent.seq })
    }

    /// How far the stream is.
    #[must_use]
    pub const fn cursors(&self) -> SenderCursors {
        SenderCursors {
            sent: self.sent.seq,
            acked: self.acked,
            in_flight_bytes: self.in_flight_bytes,
            copy_bytes: self.copy_bytes,
            ack_ns: self.ack_ns,
        }
    }

    /// Since when the oldest unacknowledged frame is on its way.
    #[must_use]
    pub fn oldest_sent_at(&self) -> Option<Timestamp> {
        self.frames.front().map(|f| f.at)
    }

    /// Whether frames flow.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// The connection is gone: answers the copies that were lost with it.
    #[must_use]
    pub fn finish(self) -> Vec<LostCopy> {
        self.copies.into_values().map(|(lost, _)| lost).collect()
    }

    fn acknowledged(&mut self, now: Timestamp, ack: Ack) -> Result<Vec<SenderAction>, ProtocolError> {
        let range = |what, got: WriteSeq, least: WriteSeq, most: WriteSeq| match got {
            got if got < least || got > most => Err(ProtocolError::AckRange {
                what,
                got: got.0,
                least: least.0,
                most: most.0,
            }),
            _ => Ok(()),
        };
        range(
            "received",
            ack.received_durable,
            self.acked.received_durable,
            self.sent.seq,
        )?;
        // What the peer had applied before this connection it may keep saying.
        let told = self.durable.max(self.acked.applied);
        range(
            "applied",
            ack.applied,
            self.acked.applied,
            ack.received_durable.min(told),
        )?;
        while let Some(f) = self.frames.pop_front_if(|f| f.last <= ack.received_durable) {
            self.in_flight_bytes -= f.bytes;
            self.ack_ns = now.0.saturating_sub(f.at.0);
        }
        let news = ack != self.acked;
        self.acked = ack;
        Ok(if news {
            vec![SenderAction::Acked(ack)]
        } else {
            Vec::new()
        })
    }

    fn copied(&mut self, seqs: Vec<WriteSeq>) -> Result<Vec<SenderAction>, ProtocolError> {
        for seq in &seqs {
            let Some((_, bytes)) = self.copies.remove(seq) else {
                return Err(ProtocolError::AckRange {
                    what: "copy",
                    got: seq.0,
                    least: 0,
                    most: self.last_copy.0,
                });
            };
            self.copy_bytes -= bytes;
        }
        Ok(vec![SenderAction::Copied(seqs)])
    }

    fn lacks(&mut self, lacks: Lacks) -> Result<Vec<SenderAction>, ProtocolError> {
        let fault = |got, least, most| {
            let what = "what it lacks of a copy";
            Err(ProtocolError::AckRange {
                what,
                got,
                least,
                most,
            })
        };
        let Some((offer, bytes)) = self.copies.remove(&lacks.seq) else {
            return fault(lacks.seq.0, 0, self.last_copy.0);
        };
        self.copy_bytes -= bytes;
        let (start, end) = (offer.range.start, offer.range.end);
        if let Some(out) = lacks.ranges.iter().find(|r| r.start < start || r.end > end) {
            return fault(out.start, start, end);
        }
        Ok(vec![SenderAction::Lacks(lacks)])
    }
}
