//! Messages, and machines in the midst of a stream.

use bytes::Bytes;
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use std::panic::{AssertUnwindSafe, catch_unwind};
use wire::{
    Ack, Copy, Frame, Hello, Lacks, Message, Offer, Position, Receiver, ReceiverAction, ReceiverLocal,
    Resume, Seal, Sender, SenderAction, SenderOptions, Version, Welcome,
};

pub const NOW: Timestamp = Timestamp(1);

pub fn hello(term: u64) -> Hello {
    Hello {
        context: ContextId(1),
        term: Term(term),
        durable: position(100),
        config: [9; 32],
        ..Hello::node("prod1")
    }
}

pub fn welcome(term: u64) -> Welcome {
    Welcome {
        version: Version::V2,
        term: Term(term),
        received: position(100),
        open_lfc: LfcId(4),
        applied: WriteSeq(90),
        config: [9; 32],
        ..Welcome::node("rec1")
    }
}

pub fn position(seq: u64) -> Position {
    Position {
        generation: GenId(1),
        seq: WriteSeq(seq),
        digest: [seq as u8; 32],
    }
}

pub fn frame(after: u64, last: u64) -> Frame {
    Frame {
        generation: GenId(1),
        lfc: LfcId(4),
        after: WriteSeq(after),
        first: WriteSeq(after + 1),
        last: WriteSeq(last),
        durable: WriteSeq(0),
        digest: [last as u8; 32],
        bytes: Bytes::from(vec![1; 100]),
    }
}

pub fn durable(frame: Frame) -> Message {
    Message::Frame(Frame {
        durable: frame.last,
        ..frame
    })
}

pub fn copy(seq: u64) -> Copy {
    Copy {
        seq: WriteSeq(seq),
        volume: VolumeIndex(0),
        range: ByteRange::at(0, 4096),
        payload: Payload::Zero,
    }
}

pub fn offer(seq: u64) -> Offer {
    Offer {
        seq: WriteSeq(seq),
        volume: VolumeIndex(0),
        range: ByteRange::at(4096, 8192),
        piece: 4096,
        pieces: vec![1, 2],
    }
}

pub fn lacks(seq: u64, start: u64) -> Lacks {
    Lacks {
        seq: WriteSeq(seq),
        ranges: vec![ByteRange::at(start, 4096)],
    }
}

pub fn seal(last: u64) -> Seal {
    Seal {
        lfc: LfcId(4),
        last: WriteSeq(last),
        digest: [last as u8; 32],
        flags: 0,
    }
}

pub fn ack(received: u64, applied: u64) -> Message {
    Message::Ack(Ack {
        received_durable: WriteSeq(received),
        applied: WriteSeq(applied),
    })
}

pub fn panics(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

pub fn local(role: Role, term: u64) -> ReceiverLocal {
    ReceiverLocal {
        context: ContextId(1),
        role,
        term: Term(term),
        config: [9; 32],
    }
}

pub fn receiving() -> Receiver {
    let mut r = Receiver::new(local(Role::Recovery, 3));
    assert_eq!(
        r.receive(Message::Hello(hello(3))).unwrap(),
        [ReceiverAction::Greeted(hello(3))]
    );
    assert_eq!(
        r.welcome(welcome(3)),
        [ReceiverAction::Send(Message::Welcome(welcome(3)))]
    );
    r
}

pub fn streaming(options: SenderOptions) -> Sender {
    let (mut s, greeting) = Sender::new(options, hello(3));
    assert_eq!(greeting, SenderAction::Send(Message::Hello(hello(3))));
    let actions = s.receive(NOW, Message::Welcome(welcome(3))).unwrap();
    assert_eq!(
        actions,
        [SenderAction::CheckPosition {
            peer: position(100),
            welcome: welcome(3)
        }]
    );
    assert_eq!(s.want(), None);
    let actions = s.resume(Resume::Here);
    assert_eq!(
        actions,
        [SenderAction::Send(Message::Durable { seq: WriteSeq(100) })]
    );
    s
}
