//! Recovery's end of a context's stream: a machine without I/O.
//!
//! # Overview
//! One machine per connection. Its owner feeds it what the peer says ([`Receiver::receive`]) and what became of it
//! ([`Receiver::durable`], [`Receiver::applied`], [`Receiver::copies_durable`]); it answers actions, in the order in which
//! they must take effect. Acknowledgements are pulled ([`Receiver::next_message`]) whenever the link can take one, so many
//! small syncs become one message on a busy link, and none waits on an idle one.
//!
//! ```text
//! Waiting ── Hello, checks ──► Greeted ── welcome() ──► Receiving
//!    └── any check fails: Refuse ──► Over
//! ```
//!
//! # Invariants
//! - `applied ≤ received_durable ≤ received`, and `applied ≤ may_apply`. Breaking it is a bug of the owner and panics.
//! - A frame is taken only if it continues exactly behind the last one. Within a generation records have no gap; a new
//!   generation may begin at any higher number, behind its parent.
//! - [`ReceiverAction::MayApply`] passes a frame only when production has said that it is durable, *and* the stream has moved
//!   past the frame, so that every copy of a stub in it has arrived before (`rules.md` C3).
//! - A copy is acknowledged only when its stub is durable here too: otherwise a crash would forget the stub of a copy that
//!   production believes done. So is an offer that names what is here; what is said to be lacking promises nothing.
//!
//! # What the owner must know
//! - Everything received must be durable before [`Receiver::welcome`]: the stream goes on behind it.
//! - A stub whose copy did not follow its frame will never get it: the connection was cut between. Its region comes again
//!   under another stub.
//! - The first frame of a connection may name another container than the one that is open here (a failover closes one
//!   early on one side only): the open one then ends where the stream stands.

use crate::{
    ProtocolError,
    codec::COPY_ACKS_MAX,
    message::{
        Ack, Copy, Digest, Frame, Hello, Jump, JumpCause, Kind, Lacks, Message, Offer, Position, RefuseCode,
        Seal, Version, Welcome,
    },
};
use model::{ContextId, LfcId, Role, Term, WriteSeq};
use std::collections::{BTreeSet, VecDeque};

/// What this node is when a peer connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverLocal {
    /// The context.
    pub context: ContextId,
    /// Our role in it.
    pub role: Role,
    /// The highest term we have durably seen.
    pub term: Term,
    /// Digest of its configuration as we have it.
    pub config: Digest,
}

/// What the owner has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiverAction {
    /// Send this to the peer.
    Send(Message),
    /// Whatever else comes of this greeting: make this term durable, and stop being production, if we are.
    HigherTerm {
        /// The term.
        term: Term,
    },
    /// A production with our term or a higher one has greeted. Make all that was received durable; then answer with
    /// [`Receiver::welcome`] or [`Receiver::refuse`].
    Greeted(Hello),
    /// Both hold the same term as production: stop until an operator chooses.
    Conflict {
        /// The term.
        term: Term,
    },
    /// Append this frame to the journal; its bytes must continue the chain to its digest.
    AppendFrame(Frame),
    /// Seal the container.
    Seal(Seal),
    /// The stream goes on behind another position; the open container ends.
    Jump(Jump),
    /// Write this copy in its place.
    WriteCopy(Copy),
    /// See whether the volumes hold this in its place; if so it is a copy that is there, else say what lacks
    /// ([`Receiver::copy_lacks`]).
    Compare(Offer),
    /// All copies of the sync are on our volumes: consistent from here on.
    CopiesComplete {
        /// Where the stream stands.
        seq: WriteSeq,
    },
    /// Apply no further than this; it only rises.
    MayApply {
        /// The last record.
        seq: WriteSeq,
    },
    /// The peer says that the histories have parted, or refuses otherwise.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Greeted { term: Term },
    Receiving,
    Over,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for its greeting",
            Self::Greeted { .. } => "its greeting is being answered",
            Self::Receiving => "receiving",
            Self::Over => "the connection ends",
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Receiver {
    local: ReceiverLocal,
    state: State,
    version: Version,
    received: Position,
    /// The container that frames go to; `None` after a seal.
    open: Option<LfcId>,
    /// The highest container seen.
    newest_lfc: LfcId,
    /// Our welcome said that our own line is given up: the sender may take us over to its own.
    gives_way: bool,
    /// No frame has come on this connection yet.
    fresh: bool,
    /// First record of the last frame: where a copy's stub may be.
    frame_first: WriteSeq,
    last_copy: WriteSeq,
    /// Production's durable cursor.
    told: WriteSeq,
    /// The end of the last frame that no copy can follow any more.
    settled: WriteSeq,
    may_apply: WriteSeq,
    ack: Ack,
    acked: Ack,
    /// Copies that were received and are not yet durable.
    copies: BTreeSet<WriteSeq>,
    /// Copies that are durable and not yet acknowledged.
    copies_done: BTreeSet<WriteSeq>,
    /// What lacks of copies that were offered, not said yet.
    lacks: VecDeque<Lacks>,
}

impl Receiver {
    /// A machine for a connection that came in.
    #[must_use]
    pub const fn new(local: ReceiverLocal) -> Self {
        let zero = WriteSeq(0);
        Self {
            local,
            state: State::Waiting,
            version: Version::OLDEST,
            received: Position {
                generation: model::GenId(0),
                seq: zero,
                digest: [0; 32],
            },
            open: None,
            newest_lfc: LfcId(0),
            gives_way: false,
            fresh: true,
            frame_first: zero,
            last_copy: zero,
            told: zero,
            settled: zero,
            may_apply: zero,
            ack: Ack {
                received_durable: zero,
                applied: zero,
            },
            acked: Ack {
                received_durable: zero,
                applied: zero,
            },
            copies: BTreeSet::new(),
            copies_done: BTreeSet::new(),
            lacks: VecDeque::new(),
        }
    }

    /// Takes a message of the peer.
    ///
    /// # Errors
    /// When it cannot be right; the owner ends the connection.
    pub fn receive(&mut self, message: Message) -> Result<Vec<ReceiverAction>, ProtocolError> {
        match (self.state, message) {
            (State::Over, _) => Ok(Vec::new()),
            (State::Waiting, Message::Hello(h)) => Ok(self.greeted(h)),
            (State::Receiving, Message::Frame(f)) => self.frame(f),
            (State::Receiving, Message::Seal(s)) => self.seal(s),
            (State::Receiving, Message::Jump(j)) => self.jump(j),
            (State::Receiving, Message::Copy(c)) => {
                self.begin_copy(c.seq)?;
                Ok(vec![ReceiverAction::WriteCopy(c)])
            }
            (State::Receiving, Message::Offer(o)) if self.version >= Version::V2 => {
                self.begin_copy(o.seq)?;
                Ok(vec![ReceiverAction::Compare(o)])
            }
            (State::Receiving, Message::CopiesComplete { seq }) => self.complete(seq),
            (State::Receiving, Message::Durable { seq }) => {
                self.told = self.told.max(seq);
                Ok(self.release())
            }
            (_, Message::Refuse(r)) => {
                self.state = State::Over;
                Ok(vec![
                    ReceiverAction::Refused {
                        code: r.code,
                        text: r.text,
                    },
                    ReceiverAction::Close,
                ])
            }
            (_, Message::Bye { text }) => {
                self.state = State::Over;
                Ok(vec![
                    ReceiverAction::Deliver(Message::Bye { text }),
                    ReceiverAction::Close,
                ])
            }
            (State::Receiving, m @ (Message::Request(_) | Message::Response(_))) => {
                Ok(vec![ReceiverAction::Deliver(m)])
            }
            (state, m) => Err(ProtocolError::Unexpected {
                kind: m.kind(),
                state: state.name(),
            }),
        }
    }

    fn greeted(&mut self, hello: Hello) -> Vec<ReceiverAction> {
        let local = self.local;
        let Some(version) = Version::common(hello.oldest, hello.newest) else {
            let text = format!(
                "no common protocol version: {} to {} was offered, this node speaks {} to {}",
                hello.oldest,
                hello.newest,
                Version::OLDEST as u16,
                Version::NEWEST as u16
            );
            return self.refuse(RefuseCode::Version, &text);
        };
        self.version = version;
        if hello.context != local.context {
            let text = format!("context {} is not here", hello.context);
            return self.refuse(RefuseCode::Context, &text);
        }
        if hello.term < local.term {
            let text = format!("term {} is lower than {}", hello.term, local.term);
            return self.refuse(RefuseCode::LowerTerm, &text);
        }
        let mut actions = Vec::new();
        if hello.term > local.term {
            actions.push(ReceiverAction::HigherTerm { term: hello.term });
        }
        if hello.role != Role::Production {
            actions.extend(self.refuse(RefuseCode::Role, "only production streams"));
        } else if hello.term == local.term && local.role == Role::Production {
            actions.push(ReceiverAction::Conflict { term: local.term });
            let text = format!("both nodes are production at term {}", local.term);
            actions.extend(self.refuse(RefuseCode::Conflict, &text));
        } else if hello.config != local.config {
            actions.extend(self.refuse(RefuseCode::Config, "the configurations of the context differ"));
        } else {
            self.state = State::Greeted { term: hello.term };
            actions.push(ReceiverAction::Greeted(hello));
        }
        actions
    }

    /// Accepts the greeting with what this node has, all of it durable; its version is the newest that both speak.
    ///
    /// # Panics
    /// When no greeting waits, or the welcome does not fit it (term not raised, applied past received).
    pub fn welcome(&mut self, mut welcome: Welcome) -> Vec<ReceiverAction> {
        let term = match self.state {
            State::Greeted { term } => term,
            // The connection may have ended while the answer was made.
            State::Over => return Vec::new(),
            other => panic!("welcome() while {}", other.name()),
        };
        assert_eq!(
            welcome.term, term,
            "the greeting's term is durable before it is answered"
        );
        assert!(welcome.applied <= welcome.received.seq, "applied past received");
        self.state = State::Receiving;
        self.gives_way = welcome.gives_way;
        self.local.term = term;
        self.received = welcome.received;
        self.settled = welcome.received.seq;
        self.may_apply = welcome.applied;
        self.told = welcome.applied;
        self.open = Some(welcome.open_lfc).filter(|l| *l >= LfcId::FIRST);
        self.newest_lfc = welcome.open_lfc;
        self.ack = Ack {
            received_durable: welcome.received.seq,
            applied: welcome.applied,
        };
        self.acked = self.ack;
        welcome.version = self.version;
        vec![ReceiverAction::Send(Message::Welcome(welcome))]
    }

    /// Ends the connection, with the reason.
    pub fn refuse(&mut self, code: RefuseCode, text: &str) -> Vec<ReceiverAction> {
        self.state = State::Over;
        vec![
            ReceiverAction::Send(Message::refuse(code, self.local.term, text)),
            ReceiverAction::Close,
        ]
    }

    fn frame(&mut self, f: Frame) -> Result<Vec<ReceiverAction>, ProtocolError> {
        let order = |what, got, expected| Err(ProtocolError::Order { what, got, expected });
        if f.after != self.received.seq {
            return order("the frame after", f.after.0, self.received.seq.0);
        }
        let gapless = f.first == f.after.next();
        if f.last < f.first || !(gapless || (f.first > f.after && f.generation != self.received.generation)) {
            return order("the frame from", f.first.0, f.after.next().0);
        }
        let lfc_fits = match self.open {
            Some(open) if f.lfc == open => true,
            Some(open) => self.fresh && f.lfc > open,
            None => f.lfc > self.newest_lfc,
        };
        if !lfc_fits || !f.lfc.is_redo() {
            return order(
                "the frame in container",
                f.lfc.0,
                self.open.unwrap_or(self.newest_lfc).0,
            );
        }
        self.settled = self.received.seq;
        self.told = self.told.max(f.durable);
        self.received = f.end();
        self.frame_first = f.first;
        self.open = Some(f.lfc);
        self.newest_lfc = f.lfc;
        self.fresh = false;
        let mut actions = self.release();
        actions.push(ReceiverAction::AppendFrame(f));
        Ok(actions)
    }

    fn seal(&mut self, s: Seal) -> Result<Vec<ReceiverAction>, ProtocolError> {
        if self.open != Some(s.lfc) {
            return Err(ProtocolError::Order {
                what: "the seal of container",
                got: s.lfc.0,
                expected: self.open.unwrap_or(LfcId(0)).0,
            });
        }
        if s.last != self.received.seq {
            return Err(ProtocolError::Order {
                what: "the seal at",
                got: s.last.0,
                expected: self.received.seq.0,
            });
        }
        if s.digest != self.received.digest {
            return Err(ProtocolError::SealDigest {
                lfc: s.lfc.0,
                seq: s.last.0,
            });
        }
        self.settled = self.received.seq;
        self.open = None;
        self.fresh = false;
        let mut actions = vec![ReceiverAction::Seal(s)];
        actions.extend(self.release());
        Ok(actions)
    }

    fn jump(&mut self, j: Jump) -> Result<Vec<ReceiverAction>, ProtocolError> {
        if j.cause == JumpCause::Line {
            return self.other_line(j);
        }
        if j.to.seq < self.received.seq {
            return Err(ProtocolError::Order {
                what: "a jump to",
                got: j.to.seq.0,
                expected: self.received.seq.0,
            });
        }
        if j.lfc <= self.newest_lfc {
            return Err(ProtocolError::Order {
                what: "a jump to container",
                got: j.lfc.0,
                expected: self.newest_lfc.next().0,
            });
        }
        // What lies before the gap is settled; nothing is received of what lies in it.
        self.settled = j.to.seq;
        self.received = j.to;
        self.frame_first = j.to.seq.next();
        self.open = Some(j.lfc);
        self.newest_lfc = j.lfc;
        self.fresh = false;
        let mut actions = vec![ReceiverAction::Jump(j)];
        actions.extend(self.release());
        Ok(actions)
    }

    /// Goes over to the sender's line: what was received of our own counts for nothing there. Only at the very start of the
    /// stream, and only for a node that said in its welcome that its own line is given up.
    fn other_line(&mut self, j: Jump) -> Result<Vec<ReceiverAction>, ProtocolError> {
        if !self.gives_way || !self.fresh {
            return Err(ProtocolError::Unexpected {
                kind: Kind::Jump,
                state: "its own line was not given up",
            });
        }
        let base = j.to.seq;
        self.received = j.to;
        self.settled = base;
        self.frame_first = base.next();
        self.open = Some(j.lfc);
        self.newest_lfc = j.lfc;
        self.fresh = false;
        self.gives_way = false;
        self.told = self.told.min(base);
        self.may_apply = self.may_apply.min(base);
        self.ack = Ack {
            received_durable: self.ack.received_durable.min(base),
            applied: self.ack.applied.min(base),
        };
        self.acked = self.ack;
        Ok(vec![ReceiverAction::Jump(j)])
    }

    fn begin_copy(&mut self, seq: WriteSeq) -> Result<(), ProtocolError> {
        let at_frame = self.frame_first.0 > 0 && self.frame_first <= seq && seq <= self.received.seq;
        if !at_frame || seq <= self.last_copy || self.settled >= seq {
            let expected = self.received.seq.0;
            return Err(ProtocolError::Order {
                what: "the copy of",
                got: seq.0,
                expected,
            });
        }
        self.last_copy = seq;
        self.copies.insert(seq);
        Ok(())
    }

    fn complete(&mut self, seq: WriteSeq) -> Result<Vec<ReceiverAction>, ProtocolError> {
        if seq != self.received.seq {
            return Err(ProtocolError::Order {
                what: "completion at",
                got: seq.0,
                expected: self.received.seq.0,
            });
        }
        if !self.copies.is_empty() || !self.copies_done.is_empty() || !self.lacks.is_empty() {
            return Err(ProtocolError::Unexpected {
                kind: Kind::CopiesComplete,
                state: "copies are not acknowledged yet",
            });
        }
        self.settled = seq;
        let mut actions = vec![ReceiverAction::CopiesComplete { seq }];
        actions.extend(self.release());
        Ok(actions)
    }

    fn release(&mut self) -> Vec<ReceiverAction> {
        let seq = self.told.min(self.settled);
        if seq <= self.may_apply {
            return Vec::new();
        }
        self.may_apply = seq;
        vec![ReceiverAction::MayApply { seq }]
    }

    /// The journal is durable up to `seq` (of what was received on this connection).
    ///
    /// # Panics
    /// When that was never received, or the cursor falls.
    pub fn durable(&mut self, seq: WriteSeq) {
        assert!(
            seq <= self.received.seq,
            "durable {seq} past received {}",
            self.received.seq
        );
        assert!(seq >= self.ack.received_durable, "durable fell to {seq}");
        self.ack.received_durable = seq;
    }

    /// The volumes hold every record up to `seq`.
    ///
    /// # Panics
    /// When that is not durable or must not be applied yet, or the cursor falls.
    pub fn applied(&mut self, seq: WriteSeq) {
        assert!(
            seq <= self.ack.received_durable,
            "applied {seq} past durable {}",
            self.ack.received_durable
        );
        assert!(
            seq <= self.may_apply,
            "applied {seq} past production's durable {}",
            self.may_apply
        );
        assert!(seq >= self.ack.applied, "applied fell to {seq}");
        self.ack.applied = seq;
    }

    /// These copies are durable on the volumes.
    ///
    /// # Panics
    /// When one of them was not received on this connection.
    pub fn copies_durable(&mut self, seqs: impl IntoIterator<Item = WriteSeq>) {
        for seq in seqs {
            assert!(self.copies.remove(&seq), "no copy of {seq} is waiting");
            self.copies_done.insert(seq);
        }
    }

    /// The volumes do not hold what was offered.
    ///
    /// # Panics
    /// When it was not offered on this connection.
    pub fn copy_lacks(&mut self, lacks: Lacks) {
        assert!(
            self.copies.remove(&lacks.seq),
            "no copy of {} is waiting",
            lacks.seq
        );
        self.lacks.push_back(lacks);
    }

    /// The next acknowledgement, if there is something new to say; to be asked again until `None`.
    pub fn next_message(&mut self) -> Option<Message> {
        if self.state != State::Receiving {
            return None;
        }
        if self.ack != self.acked {
            self.acked = self.ack;
            return Some(Message::Ack(self.ack));
        }
        if let Some(lacks) = self.lacks.pop_front() {
            return Some(Message::Lacks(lacks));
        }
        let durable = self.ack.received_durable;
        let seqs: Vec<_> = self
            .copies_done
            .iter()
            .copied()
            .take_while(|s| *s <= durable)
            .take(COPY_ACKS_MAX)
            .collect();
        seqs.iter().for_each(|s| {
            self.copies_done.remove(s);
        });
        (!seqs.is_empty()).then_some(Message::CopyAck { seqs })
    }

    /// Where the stream stands.
    #[must_use]
    pub const fn received(&self) -> Position {
        self.received
    }

    /// What this node has acknowledged or is about to.
    #[must_use]
    pub const fn ack(&self) -> Ack {
        self.ack
    }

    /// Whether frames flow.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.state == State::Receiving
    }
}
