//! What a receiver takes, in which order, and when it says that it has it.

use super::lab::{copy, durable, frame, lacks, offer, panics, position, receiving, seal};
use model::{GenId, LfcId, WriteSeq};
use wire::{Ack, Frame, Jump, JumpCause, Message, ProtocolError, ReceiverAction, Seal};

#[test]
fn a_frame_must_continue_the_stream() {
    let good = frame(100, 104);
    let bad = [
        ("gap", frame(101, 104)),
        ("repeat", frame(99, 104)),
        (
            "jump within a generation",
            Frame {
                first: WriteSeq(103),
                ..good.clone()
            },
        ),
        (
            "an older container",
            Frame {
                lfc: LfcId(2),
                ..good.clone()
            },
        ),
        (
            "undo",
            Frame {
                lfc: LfcId(5),
                ..good.clone()
            },
        ),
    ];
    for (what, f) in bad {
        let e = receiving().receive(durable(f)).unwrap_err();
        assert!(matches!(e, ProtocolError::Order { .. }), "{what}: {e}");
    }
    let mut r = receiving();
    assert_eq!(
        r.receive(durable(good.clone())).unwrap().pop(),
        Some(ReceiverAction::AppendFrame(Frame {
            durable: WriteSeq(104),
            ..good
        }))
    );
    assert!(
        r.receive(durable(Frame {
            lfc: LfcId(6),
            ..frame(104, 105)
        }))
        .is_err(),
        "a container ends with its seal"
    );
    // A generation may begin at a higher number, behind its parent.
    let birth = Frame {
        generation: GenId(2),
        first: WriteSeq(150),
        ..frame(104, 160)
    };
    assert!(r.receive(durable(birth)).is_ok());
}

#[test]
fn the_first_frame_may_open_another_container() {
    let mut r = receiving();
    r.receive(durable(Frame {
        lfc: LfcId(8),
        ..frame(100, 101)
    }))
    .unwrap();
    assert!(r.receive(Message::Seal(seal(101))).is_err(), "4 was closed by it");
}

#[test]
fn a_seal_must_match() {
    for bad in [
        seal(103),
        Seal {
            lfc: LfcId(6),
            ..seal(104)
        },
        Seal {
            digest: [0; 32],
            ..seal(104)
        },
    ] {
        let mut r = receiving();
        r.receive(durable(frame(100, 104))).unwrap();
        assert!(r.receive(Message::Seal(bad)).is_err(), "{bad:?}");
    }
    let mut r = receiving();
    r.receive(durable(frame(100, 104))).unwrap();
    let actions = r.receive(Message::Seal(seal(104))).unwrap();
    assert_eq!(
        actions,
        [
            ReceiverAction::Seal(seal(104)),
            ReceiverAction::MayApply { seq: WriteSeq(104) }
        ]
    );
    assert!(r.receive(Message::Seal(seal(104))).is_err(), "twice");
    assert!(
        r.receive(durable(frame(104, 105))).is_err(),
        "a frame for a sealed container"
    );
    r.receive(durable(Frame {
        lfc: LfcId(6),
        ..frame(104, 105)
    }))
    .unwrap();
}

#[test]
fn a_copy_keeps_its_place() {
    let mut r = receiving();
    assert!(
        r.receive(Message::Copy(copy(100))).is_err(),
        "its frame came on an earlier connection"
    );
    let mut r = receiving();
    r.receive(durable(frame(100, 104))).unwrap();
    assert_eq!(
        r.receive(Message::Copy(copy(102))).unwrap(),
        [ReceiverAction::WriteCopy(copy(102))]
    );
    for bad in [101, 102, 105] {
        assert!(r.receive(Message::Copy(copy(bad))).is_err(), "{bad}");
    }
    r.receive(Message::Copy(copy(104))).unwrap();
    r.receive(durable(frame(104, 106))).unwrap();
    assert!(
        r.receive(Message::Copy(copy(104))).is_err(),
        "behind the next frame"
    );
    r.receive(Message::Seal(seal(106))).unwrap();
    assert!(r.receive(Message::Copy(copy(106))).is_err(), "behind the seal");
}

#[test]
fn nothing_is_applied_before_production_has_it_and_copies_have_come() {
    let mut r = receiving();
    // Durable on production, but a copy may still follow: only what was received before is released.
    let actions = r.receive(durable(frame(100, 104))).unwrap();
    assert_eq!(actions[0], ReceiverAction::MayApply { seq: WriteSeq(100) });
    assert!(matches!(&actions[1..], [ReceiverAction::AppendFrame(_)]));
    // The next frame settles it, and is itself not durable there yet.
    let actions = r.receive(Message::Frame(frame(104, 108))).unwrap();
    assert_eq!(actions[0], ReceiverAction::MayApply { seq: WriteSeq(104) });
    assert_eq!(r.receive(Message::Seal(seal(108))).unwrap().len(), 1);
    r.durable(WriteSeq(108));
    assert!(panics(|| r.applied(WriteSeq(108))));
    let actions = r.receive(Message::Durable { seq: WriteSeq(200) }).unwrap();
    assert_eq!(actions, [ReceiverAction::MayApply { seq: WriteSeq(108) }]);
    r.applied(WriteSeq(108));
    assert_eq!(
        r.ack(),
        Ack {
            received_durable: WriteSeq(108),
            applied: WriteSeq(108)
        }
    );
}

#[test]
fn cursors_keep_their_order() {
    let mut r = receiving();
    r.receive(durable(frame(100, 104))).unwrap();
    r.receive(Message::Seal(seal(104))).unwrap();
    assert!(panics(|| r.durable(WriteSeq(105))), "durable past received");
    assert!(panics(|| r.applied(WriteSeq(104))), "applied past durable");
    r.durable(WriteSeq(104));
    assert!(panics(|| r.durable(WriteSeq(103))), "durable falls");
}

#[test]
fn acknowledgements_are_gathered() {
    let mut r = receiving();
    assert_eq!(r.next_message(), None);
    for n in 100..110 {
        r.receive(durable(frame(n, n + 1))).unwrap();
        r.durable(WriteSeq(n + 1));
    }
    r.applied(WriteSeq(105));
    let ack = Ack {
        received_durable: WriteSeq(110),
        applied: WriteSeq(105),
    };
    assert_eq!(r.next_message(), Some(Message::Ack(ack)));
    assert_eq!(r.next_message(), None);
}

#[test]
fn a_copy_is_acknowledged_only_when_its_stub_is_durable() {
    let mut r = receiving();
    r.receive(durable(frame(100, 104))).unwrap();
    r.receive(Message::Copy(copy(102))).unwrap();
    r.copies_durable([WriteSeq(102)]);
    assert_eq!(r.next_message(), None);
    assert!(
        r.receive(Message::CopiesComplete { seq: WriteSeq(104) }).is_err(),
        "production has no acknowledgement yet"
    );
    r.durable(WriteSeq(104));
    assert!(matches!(r.next_message(), Some(Message::Ack(_))));
    assert_eq!(
        r.next_message(),
        Some(Message::CopyAck {
            seqs: vec![WriteSeq(102)]
        })
    );
    assert!(r.receive(Message::CopiesComplete { seq: WriteSeq(103) }).is_err());
    let actions = r.receive(Message::CopiesComplete { seq: WriteSeq(104) }).unwrap();
    assert_eq!(actions[0], ReceiverAction::CopiesComplete { seq: WriteSeq(104) });
    assert!(panics(|| r.copies_durable([WriteSeq(102)])), "twice");
}

#[test]
fn a_jump_leads_forward_only() {
    let jump = |seq| {
        Message::Jump(Jump {
            to: position(seq),
            lfc: LfcId(10),
            cause: JumpCause::Dropped,
            parent: None,
        })
    };
    assert!(receiving().receive(jump(99)).is_err());
    let mut r = receiving();
    r.receive(jump(300)).unwrap();
    assert!(
        r.receive(durable(frame(300, 301))).is_err(),
        "the open container ended"
    );
    r.receive(durable(Frame {
        lfc: LfcId(10),
        ..frame(300, 301)
    }))
    .unwrap();
}

/// An offer has the place of a copy, and is over when it is answered: acknowledged as any copy, behind its durable stub, or not.
#[test]
fn c3_an_offer_keeps_the_place_of_a_copy() {
    let mut r = receiving();
    r.receive(durable(frame(100, 104))).unwrap();
    for (seq, good) in [(105, false), (102, true), (102, false), (103, true), (104, true)] {
        let heard = r.receive(Message::Offer(offer(seq)));
        assert_eq!(heard.is_ok(), good, "{seq}");
        if good {
            assert_eq!(heard.unwrap(), [ReceiverAction::Compare(offer(seq))]);
        }
    }
    r.copy_lacks(lacks(103, 4096));
    r.copies_durable([WriteSeq(102), WriteSeq(104)]);
    assert!(
        r.receive(Message::CopiesComplete { seq: WriteSeq(104) }).is_err(),
        "nothing is answered yet"
    );
    assert_eq!(r.next_message(), Some(Message::Lacks(lacks(103, 4096))));
    assert_eq!(
        r.next_message(),
        None,
        "what is there is not said before its stub is durable"
    );
    r.durable(WriteSeq(104));
    assert!(matches!(r.next_message(), Some(Message::Ack(_))));
    let seqs = vec![WriteSeq(102), WriteSeq(104)];
    assert_eq!(r.next_message(), Some(Message::CopyAck { seqs }));
    r.receive(Message::CopiesComplete { seq: WriteSeq(104) }).unwrap();
    assert!(panics(|| r.copy_lacks(lacks(103, 4096))), "twice");
}
