//! The messages, as values. Their bytes are in [`crate::codec`] and `docs/formats/wire.md`.

use bytes::Bytes;
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, VolumeIndex, WriteSeq};
use std::fmt;

/// A running chain digest or the digest of a configuration.
pub type Digest = [u8; 32];

/// The versions of the protocol, each with what it brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u16)]
pub enum Version {
    /// The first: everything in `docs/formats/wire.md` of which nothing else is said there.
    V1 = 1,
    /// A copy may be offered without its bytes ([`Message::Offer`], [`Message::Lacks`]), and one of a hole may be as long as
    /// 64 MiB.
    V2 = 2,
}

impl Version {
    /// The oldest that this build speaks.
    pub const OLDEST: Self = Self::V1;
    /// The newest that this build speaks.
    pub const NEWEST: Self = Self::V2;

    /// The version with this number, if this build speaks it.
    #[must_use]
    pub const fn from_number(n: u16) -> Option<Self> {
        match n {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    /// The newest version that lies within a peer's range.
    #[must_use]
    pub fn common(oldest: u16, newest: u16) -> Option<Self> {
        [Self::V1, Self::V2]
            .into_iter()
            .rev()
            .find(|v| (oldest..=newest).contains(&(*v as u16)))
    }
}

/// What names a write for good: generation and sequence number, with the chain digest at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Generation of the record; 0 before the first.
    pub generation: GenId,
    /// The record; 0 before the first.
    pub seq: WriteSeq,
    /// The running chain digest at its end; zeroes before the first.
    pub digest: Digest,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{} (", self.generation.0, self.seq)?;
        self.digest[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str(")")
    }
}

/// First message of whoever connected: who speaks, for which context, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version the sender speaks.
    pub oldest: u16,
    /// Newest protocol version the sender speaks.
    pub newest: u16,
    /// The context; 0 for requests between nodes.
    pub context: ContextId,
    /// The node's name.
    pub node: String,
    /// Its role in the context.
    pub role: Role,
    /// The highest term it has durably seen.
    pub term: Term,
    /// Its last durable record.
    pub durable: Position,
    /// Digest of the context's configuration as it has it.
    pub config: Digest,
    /// Random id of its store of the context; another one after the store was made anew.
    pub instance: u64,
}

impl Hello {
    /// The greeting of a connection for requests between nodes.
    #[must_use]
    pub fn node(name: impl Into<String>) -> Self {
        Self {
            oldest: Version::OLDEST as u16,
            newest: Version::NEWEST as u16,
            context: ContextId(0),
            node: name.into(),
            role: Role::Production,
            term: Term(0),
            durable: Position::default(),
            config: [0; 32],
            instance: 0,
        }
    }
}

/// The receiver's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both will speak.
    pub version: Version,
    /// The node's name.
    pub node: String,
    /// Its role in the context.
    pub role: Role,
    /// Its term, by now at least that of the greeting.
    pub term: Term,
    /// Its last received record; durable.
    pub received: Position,
    /// The redo container it has open; 0 when none.
    pub open_lfc: LfcId,
    /// Last record applied to its volumes.
    pub applied: WriteSeq,
    /// Whether its volumes still need a first sync.
    pub copying: bool,
    /// Whether an operator has given up its own line, so that the greeting's may take its place.
    pub gives_way: bool,
    /// Digest of the context's configuration as it has it.
    pub config: Digest,
    /// Random id of its store of the context; another one after the store was made anew.
    pub instance: u64,
}

impl Welcome {
    /// The answer on a connection for requests between nodes.
    #[must_use]
    pub fn node(name: impl Into<String>) -> Self {
        Self {
            // Questions and answers are the same in all of them.
            version: Version::OLDEST,
            node: name.into(),
            role: Role::Recovery,
            term: Term(0),
            received: Position::default(),
            open_lfc: LfcId(0),
            applied: WriteSeq(0),
            copying: false,
            gives_way: false,
            config: [0; 32],
            instance: 0,
        }
    }
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($(#[$vdoc:meta])* $variant:ident = $n:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$vdoc])* $variant = $n,)* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The one with this number.
            #[must_use]
            pub const fn from_number(n: $int) -> Option<Self> {
                match n { $($n => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// Why a connection is refused.
    RefuseCode(u16) {
        /// No common protocol version.
        Version = 1,
        /// This node does not have that context.
        Context = 2,
        /// The peer's term is lower than ours: it must stop before its next acknowledgement.
        LowerTerm = 3,
        /// Both hold the same term and are production: both stop until an operator chooses.
        Conflict = 4,
        /// The roles do not fit: the one that streams must be production, the other recovery.
        Role = 5,
        /// The configurations of the context differ.
        Config = 6,
        /// Another connection of the context is alive.
        Busy = 7,
        /// The histories have parted.
        Diverged = 8,
        /// The context is stopped here.
        Stopped = 9,
        /// The peer broke the protocol.
        Protocol = 10,
        /// This node failed.
        Internal = 11,
        /// The pairing secret is wrong, used, or too old.
        Pairing = 12,
    }
}

codes! {
    /// Why the stream leaves out records.
    JumpCause(u8) {
        /// A first sync: the receiver has nothing yet; all regions are copied.
        FirstSync = 1,
        /// Production dropped the records between; their regions are stale and will be copied.
        Dropped = 2,
        /// The receiver's end is not on the sender's line: it goes over to that line, wherever its own numbers are, and the
        /// regions in which the two differ will be copied (`rules.md` L1).
        Line = 3,
    }
}

codes! {
    /// The kinds of message, numbered as on the wire.
    Kind(u8) {
        /// [`Message::Hello`].
        Hello = 1,
        /// [`Message::Welcome`].
        Welcome = 2,
        /// [`Message::Refuse`].
        Refuse = 3,
        /// [`Message::Bye`].
        Bye = 4,
        /// [`Message::Ping`].
        Ping = 5,
        /// [`Message::Pong`].
        Pong = 6,
        /// [`Message::Pair`].
        Pair = 7,
        /// [`Message::Paired`].
        Paired = 8,
        /// [`Message::Frame`].
        Frame = 16,
        /// [`Message::Seal`].
        Seal = 17,
        /// [`Message::Jump`].
        Jump = 18,
        /// [`Message::Copy`].
        Copy = 19,
        /// [`Message::CopiesComplete`].
        CopiesComplete = 20,
        /// [`Message::Durable`].
        Durable = 21,
        /// [`Message::Offer`].
        Offer = 22,
        /// [`Message::Ack`].
        Ack = 32,
        /// [`Message::CopyAck`].
        CopyAck = 33,
        /// [`Message::Lacks`].
        Lacks = 34,
        /// [`Message::Request`].
        Request = 48,
        /// [`Message::Response`].
        Response = 49,
    }
}

/// The end of a connection before it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Why.
    pub code: RefuseCode,
    /// The term of the one that refuses.
    pub term: Term,
    /// The same for people.
    pub text: String,
}

/// One frame of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Generation of its records.
    pub generation: GenId,
    /// The redo container that holds it.
    pub lfc: LfcId,
    /// The record before its first one on the line: `first - 1`, except where a generation begins.
    pub after: WriteSeq,
    /// Its first record.
    pub first: WriteSeq,
    /// Its last record.
    pub last: WriteSeq,
    /// Production's last durable record when this was sent.
    pub durable: WriteSeq,
    /// The chain digest at its end.
    pub digest: Digest,
    /// The canonical bytes.
    pub bytes: Bytes,
}

impl Frame {
    /// The position at its end.
    #[must_use]
    pub const fn end(&self) -> Position {
        Position {
            generation: self.generation,
            seq: self.last,
            digest: self.digest,
        }
    }
}

/// The end of a redo container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The container.
    pub lfc: LfcId,
    /// Its last record.
    pub last: WriteSeq,
    /// The chain digest at its end.
    pub digest: Digest,
    /// Flags of the journal, carried as they are.
    pub flags: u8,
}

/// The stream leaves out records and goes on behind `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Where the stream now stands.
    pub to: Position,
    /// The container that the next frame is in.
    pub lfc: LfcId,
    /// Why.
    pub cause: JumpCause,
    /// What the generation of `to` continues; `None` for the first one of a context.
    pub parent: Option<Position>,
}

/// A region's bytes exactly as of the stub record `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The stub.
    pub seq: WriteSeq,
    /// The volume.
    pub volume: VolumeIndex,
    /// The region.
    pub range: ByteRange,
    /// Its bytes.
    pub payload: Payload,
}

/// A copy without its bytes: the receiver may have them already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The stub; its digest is that of the region's bytes.
    pub seq: WriteSeq,
    /// The volume.
    pub volume: VolumeIndex,
    /// The region.
    pub range: ByteRange,
    /// Bytes of a piece, the last one may be shorter; 0: it is not cut into any.
    pub piece: u32,
    /// The first eight bytes of each piece's digest, as a number: a hint which of them the receiver lacks.
    pub pieces: Vec<u64>,
}

/// Answer to an [`Offer`] of what the receiver does not have; the copy is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacks {
    /// The stub.
    pub seq: WriteSeq,
    /// What it lacks of the region, rising and apart; never nothing.
    pub ranges: Vec<ByteRange>,
}

/// How far the receiver is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Last record that is durable in the receiver's journal.
    pub received_durable: WriteSeq,
    /// Last record applied to its volumes.
    pub applied: WriteSeq,
}

/// A small question from node to node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the asker; the answer repeats it.
    pub id: u64,
    /// What is asked, numbered by the caller of this crate.
    pub kind: u16,
    /// The rest of the question.
    pub body: Bytes,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The question's id.
    pub id: u64,
    /// 0 when it was done, else the caller's code.
    pub code: u16,
    /// The rest of the answer.
    pub body: Bytes,
}

/// How a node presents itself in a pairing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCard {
    /// Its name.
    pub name: String,
    /// Where it listens, `host:port`, best first; may be empty for a node that only connects.
    pub endpoints: Vec<String>,
}

/// Anything that one node says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// First of the one that connected.
    Hello(Hello),
    /// The answer to it.
    Welcome(Welcome),
    /// The other answer; the connection ends.
    Refuse(Refuse),
    /// The connection ends in order.
    Bye {
        /// Why, for people.
        text: String,
    },
    /// Are you there?
    Ping {
        /// Repeated by the answer.
        nonce: u64,
    },
    /// I am.
    Pong {
        /// The question's.
        nonce: u64,
    },
    /// A node that has a pairing string asks to be known.
    Pair {
        /// The secret part of the string.
        secret: [u8; 10],
        /// Who asks.
        card: NodeCard,
    },
    /// Both nodes know each other now.
    Paired {
        /// Who answers.
        card: NodeCard,
    },
    /// A frame.
    Frame(Frame),
    /// The end of a container.
    Seal(Seal),
    /// Records are left out.
    Jump(Jump),
    /// A region beside the journal.
    Copy(Copy),
    /// A region that the receiver may have.
    Offer(Offer),
    /// All copies of the running sync are on the receiver's volumes; it is consistent from `seq` on.
    CopiesComplete {
        /// The end of the stream at that moment.
        seq: WriteSeq,
    },
    /// Production's durable cursor: the receiver may apply as far.
    Durable {
        /// The last durable record.
        seq: WriteSeq,
    },
    /// Received and applied.
    Ack(Ack),
    /// These copies are durable on the receiver's volumes.
    CopyAck {
        /// Their stubs, rising.
        seqs: Vec<WriteSeq>,
    },
    /// It has not.
    Lacks(Lacks),
    /// A question between nodes.
    Request(Request),
    /// Its answer.
    Response(Response),
}

impl Message {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refuse(_) => Kind::Refuse,
            Self::Bye { .. } => Kind::Bye,
            Self::Ping { .. } => Kind::Ping,
            Self::Pong { .. } => Kind::Pong,
            Self::Pair { .. } => Kind::Pair,
            Self::Paired { .. } => Kind::Paired,
            Self::Frame(_) => Kind::Frame,
            Self::Seal(_) => Kind::Seal,
            Self::Jump(_) => Kind::Jump,
            Self::Copy(_) => Kind::Copy,
            Self::Offer(_) => Kind::Offer,
            Self::CopiesComplete { .. } => Kind::CopiesComplete,
            Self::Durable { .. } => Kind::Durable,
            Self::Ack(_) => Kind::Ack,
            Self::CopyAck { .. } => Kind::CopyAck,
            Self::Lacks(_) => Kind::Lacks,
            Self::Request(_) => Kind::Request,
            Self::Response(_) => Kind::Response,
        }
    }

    /// A refusal.
    #[must_use]
    pub fn refuse(code: RefuseCode, term: Term, text: impl Into<String>) -> Self {
        Self::Refuse(Refuse {
            code,
            term,
            text: text.into(),
        })
    }

    /// Bytes of its payload, near enough to bound queues with.
    #[must_use]
    pub fn weight(&self) -> usize {
        64 + match self {
            Self::Frame(f) => f.bytes.len(),
            Self::Copy(Copy {
                payload: Payload::Data(d),
                ..
            }) => d.len(),
            Self::Offer(o) => o.pieces.len() * 8,
            Self::CopyAck { seqs } => seqs.len() * 8,
            Self::Lacks(l) => l.ranges.len() * 16,
            Self::Request(r) => r.body.len(),
            Self::Response(r) => r.body.len(),
            _ => 0,
        }
    }
}
