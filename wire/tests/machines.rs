//! The rules of each stream machine, one by one. Schedules of both together are in `stream.rs`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bytes::Bytes;
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use std::panic::{AssertUnwindSafe, catch_unwind};
use wire::{
    Ack, Copy, Frame, Hello, Jump, JumpCause, Lacks, Message, Offer, Position, ProtocolError, Receiver,
    ReceiverAction, ReceiverLocal, Refuse, RefuseCode, Resume, Seal, SendBound, Sender, SenderAction,
    SenderOptions, Version, Welcome,
};

const NOW: Timestamp = Timestamp(1);

fn hello(term: u64) -> Hello {
    Hello {
        context: ContextId(1),
        term: Term(term),
        durable: position(100),
        config: [9; 32],
        ..Hello::node("prod1")
    }
}

fn welcome(term: u64) -> Welcome {
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

fn position(seq: u64) -> Position {
    Position {
        generation: GenId(1),
        seq: WriteSeq(seq),
        digest: [seq as u8; 32],
    }
}

fn frame(after: u64, last: u64) -> Frame {
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

fn durable(frame: Frame) -> Message {
    Message::Frame(Frame {
        durable: frame.last,
        ..frame
    })
}

fn copy(seq: u64) -> Copy {
    Copy {
        seq: WriteSeq(seq),
        volume: VolumeIndex(0),
        range: ByteRange::at(0, 4096),
        payload: Payload::Zero,
    }
}

fn offer(seq: u64) -> Offer {
    Offer {
        seq: WriteSeq(seq),
        volume: VolumeIndex(0),
        range: ByteRange::at(4096, 8192),
        piece: 4096,
        pieces: vec![1, 2],
    }
}

fn lacks(seq: u64, start: u64) -> Lacks {
    Lacks {
        seq: WriteSeq(seq),
        ranges: vec![ByteRange::at(start, 4096)],
    }
}

fn seal(last: u64) -> Seal {
    Seal {
        lfc: LfcId(4),
        last: WriteSeq(last),
        digest: [last as u8; 32],
        flags: 0,
    }
}

fn panics(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

fn local(role: Role, term: u64) -> ReceiverLocal {
    ReceiverLocal {
        context: ContextId(1),
        role,
        term: Term(term),
        config: [9; 32],
        gives_way: false,
    }
}

fn receiving() -> Receiver {
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

/// The code with which a greeting is refused, and what else the owner is told.
fn refused(local: ReceiverLocal, hello: Hello) -> (RefuseCode, Vec<ReceiverAction>) {
    let mut r = Receiver::new(local);
    let mut actions = r.receive(Message::Hello(hello)).unwrap();
    assert_eq!(actions.pop(), Some(ReceiverAction::Close));
    let Some(ReceiverAction::Send(Message::Refuse(refuse))) = actions.pop() else {
        panic!("{actions:?}")
    };
    assert_eq!(refuse.term, local.term, "the refused side learns our term");
    assert!(
        r.receive(durable(frame(100, 101))).unwrap().is_empty(),
        "it is over"
    );
    (refuse.code, actions)
}

#[test]
fn a_lower_term_is_refused_whatever_it_says() {
    for role in [Role::Recovery, Role::Production] {
        assert_eq!(refused(local(role, 4), hello(3)), (RefuseCode::LowerTerm, vec![]));
    }
}

#[test]
fn two_productions_of_one_term_both_stop() {
    let (code, told) = refused(local(Role::Production, 3), hello(3));
    assert_eq!(
        (code, told),
        (
            RefuseCode::Conflict,
            vec![ReceiverAction::Conflict { term: Term(3) }]
        )
    );
    let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
    let refuse = Refuse {
        code,
        term: Term(3),
        text: "both".into(),
    };
    let actions = s.receive(NOW, Message::Refuse(refuse)).unwrap();
    assert_eq!(actions[0], SenderAction::Conflict { term: Term(3) });
}

#[test]
fn a_higher_term_fences_even_when_the_greeting_is_refused() {
    let fenced = vec![ReceiverAction::HigherTerm { term: Term(4) }];
    let other = Hello {
        config: [8; 32],
        ..hello(4)
    };
    assert_eq!(
        refused(local(Role::Production, 3), other),
        (RefuseCode::Config, fenced.clone())
    );
    let other = Hello {
        role: Role::Recovery,
        ..hello(4)
    };
    assert_eq!(
        refused(local(Role::Production, 3), other),
        (RefuseCode::Role, fenced.clone())
    );
    let mut r = Receiver::new(local(Role::Production, 3));
    let actions = r.receive(Message::Hello(hello(4))).unwrap();
    assert_eq!(actions, [fenced[0].clone(), ReceiverAction::Greeted(hello(4))]);
    assert!(
        panics(|| drop(r.welcome(welcome(3)))),
        "a welcome before the term is raised"
    );
}

#[test]
fn other_contexts_and_versions_are_refused() {
    let other = Hello {
        context: ContextId(2),
        ..hello(3)
    };
    assert_eq!(refused(local(Role::Recovery, 3), other).0, RefuseCode::Context);
    let other = Hello {
        oldest: 3,
        newest: 4,
        ..hello(3)
    };
    assert_eq!(refused(local(Role::Recovery, 3), other).0, RefuseCode::Version);
    assert_eq!(Version::common(1, 9), Some(Version::V2));
    assert_eq!(Version::common(0, 1), Some(Version::V1));
}

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

/// A receiver whose own line ends at 100 and was given up.
fn giving_way() -> Receiver {
    let mut r = Receiver::new(ReceiverLocal {
        gives_way: true,
        ..local(Role::Recovery, 3)
    });
    r.receive(Message::Hello(hello(3))).unwrap();
    r.welcome(Welcome {
        gives_way: true,
        ..welcome(3)
    });
    r
}

#[test]
fn l1_only_a_line_that_was_given_up_goes_over_to_another() {
    let jump = |seq| {
        Message::Jump(Jump {
            to: position(seq),
            lfc: LfcId(2),
            cause: JumpCause::Line,
            parent: Some(position(70)),
        })
    };
    assert!(
        receiving().receive(jump(80)).is_err(),
        "its line was not given up"
    );
    let mut r = giving_way();
    r.receive(jump(80)).unwrap();
    assert_eq!(
        (r.ack().received_durable, r.ack().applied),
        (WriteSeq(80), WriteSeq(80))
    );
    assert!(r.receive(jump(80)).is_err(), "once, at the very start");
    r.receive(durable(Frame {
        lfc: LfcId(2),
        ..frame(80, 81)
    }))
    .unwrap();
    r.durable(WriteSeq(81));
    assert_eq!(r.ack().received_durable, WriteSeq(81));
    let mut late = giving_way();
    late.receive(durable(frame(100, 101))).unwrap();
    assert!(
        late.receive(jump(80)).is_err(),
        "frames of its own line came first"
    );
}

#[test]
fn l1_what_a_peer_acknowledged_of_its_own_line_counts_for_nothing_on_ours() {
    let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
    let peer = Welcome {
        gives_way: true,
        ..welcome(3)
    };
    s.receive(NOW, Message::Welcome(peer)).unwrap();
    s.resume(Resume::Jump(Jump {
        to: position(80),
        lfc: LfcId(2),
        cause: JumpCause::Line,
        parent: Some(position(70)),
    }));
    assert_eq!(s.cursors().sent, WriteSeq(80));
    assert_eq!(s.cursors().acked.received_durable, WriteSeq(80));
    let ack = Ack {
        received_durable: WriteSeq(80),
        applied: WriteSeq(79),
    };
    assert!(
        s.receive(NOW, Message::Ack(ack)).is_err(),
        "it never falls after that"
    );
}

fn streaming(options: SenderOptions) -> Sender {
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

fn ack(received: u64, applied: u64) -> Message {
    Message::Ack(Ack {
        received_durable: WriteSeq(received),
        applied: WriteSeq(applied),
    })
}

#[test]
fn a_foreign_position_is_divergence() {
    let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
    s.receive(NOW, Message::Welcome(welcome(3))).unwrap();
    let actions = s.resume(Resume::Diverged { ours: position(120) });
    assert!(matches!(&actions[0], SenderAction::Send(Message::Refuse(r)) if r.code == RefuseCode::Diverged));
    assert_eq!(
        actions[1..],
        [
            SenderAction::Diverged {
                ours: position(120),
                theirs: position(100)
            },
            SenderAction::Close
        ]
    );
    assert_eq!(s.want(), None);
}

#[test]
fn a_higher_term_in_any_answer_fences() {
    let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
    let actions = s.receive(NOW, Message::Welcome(welcome(4))).unwrap();
    assert_eq!(actions[0], SenderAction::Fenced { term: Term(4) });
    let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
    let refuse = Refuse {
        code: RefuseCode::LowerTerm,
        term: Term(5),
        text: String::new(),
    };
    let actions = s.receive(NOW, Message::Refuse(refuse)).unwrap();
    assert_eq!(actions[0], SenderAction::Fenced { term: Term(5) });
    assert_eq!(actions.last(), Some(&SenderAction::Close));
}

#[test]
fn a_welcome_must_fit_the_greeting() {
    for bad in [
        welcome(2),
        Welcome {
            role: Role::Production,
            ..welcome(3)
        },
        Welcome {
            config: [8; 32],
            ..welcome(3)
        },
        Welcome {
            applied: WriteSeq(101),
            ..welcome(3)
        },
    ] {
        let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
        assert!(s.receive(NOW, Message::Welcome(bad)).is_err());
    }
}

#[test]
fn sent_stays_behind_the_bound() {
    let mut s = streaming(SenderOptions::default());
    s.journal(WriteSeq(110), WriteSeq(104));
    assert!(
        panics(|| drop(s.frame(NOW, frame(100, 105)))),
        "async sends only what is durable"
    );
    s.frame(NOW, frame(100, 104));
    assert_eq!(s.want(), None);
    s.set_bound(SendBound::Appended);
    let SenderAction::Send(Message::Frame(f)) = s.frame(NOW, frame(104, 110)) else {
        panic!()
    };
    assert_eq!(f.durable, WriteSeq(104));
    // The peer hears when what it has becomes durable; and not of what it does not have.
    let told = s.journal(WriteSeq(120), WriteSeq(112));
    assert_eq!(
        told,
        [SenderAction::Send(Message::Durable { seq: WriteSeq(112) })]
    );
    assert!(s.journal(WriteSeq(130), WriteSeq(120)).is_empty());
    assert!(
        panics(|| drop(s.journal(WriteSeq(130), WriteSeq(119)))),
        "cursors do not fall"
    );
}

#[test]
fn the_window_bounds_what_is_on_its_way() {
    let mut s = streaming(SenderOptions {
        window_bytes: 250,
        ..SenderOptions::default()
    });
    s.journal(WriteSeq(200), WriteSeq(200));
    assert!(s.want().unwrap().alone);
    s.frame(NOW, frame(100, 101));
    s.frame(NOW, frame(101, 102));
    assert_eq!(s.want().unwrap().bytes_max, 50);
    assert!(panics(|| drop(s.frame(NOW, frame(102, 103)))), "past the window");
    s.receive(Timestamp(8), ack(101, 90)).unwrap();
    assert_eq!((s.cursors().in_flight_bytes, s.cursors().ack_ns), (100, 7));
    s.frame(NOW, frame(102, 103));
    s.receive(NOW, ack(103, 103)).unwrap();
    let large = Frame {
        bytes: vec![0; 1000].into(),
        ..frame(103, 104)
    };
    s.frame(NOW, large);
    assert_eq!(s.want(), None, "one large frame goes alone");
}

#[test]
fn impossible_acknowledgements_are_refused() {
    for (received, applied) in [(105, 90), (99, 90), (104, 89), (102, 103)] {
        let mut s = streaming(SenderOptions::default());
        s.journal(WriteSeq(104), WriteSeq(104));
        s.frame(NOW, frame(100, 104));
        let e = s.receive(NOW, ack(received, applied)).unwrap_err();
        assert!(
            matches!(e, ProtocolError::AckRange { .. }),
            "{received} {applied}: {e}"
        );
    }
    let mut s = streaming(SenderOptions {
        bound: SendBound::Appended,
        ..SenderOptions::default()
    });
    s.journal(WriteSeq(104), WriteSeq(102));
    s.frame(NOW, frame(100, 104));
    assert!(
        s.receive(NOW, ack(104, 103)).is_err(),
        "applied what production may lose"
    );
    let mut s = streaming(SenderOptions::default());
    assert!(
        s.receive(
            NOW,
            Message::CopyAck {
                seqs: vec![WriteSeq(100)]
            }
        )
        .is_err()
    );
}

#[test]
fn unacknowledged_copies_are_reported_lost() {
    let mut s = streaming(SenderOptions {
        copy_window_bytes: 5000,
        ..SenderOptions::default()
    });
    s.journal(WriteSeq(110), WriteSeq(110));
    assert!(
        panics(|| drop(s.copy(copy(100)))),
        "its frame was sent on an earlier connection"
    );
    s.frame(NOW, frame(100, 104));
    let data = Copy {
        payload: Payload::Data(vec![0; 4096].into()),
        ..copy(102)
    };
    s.copy(data);
    s.copy(copy(104));
    assert_eq!((s.copy_room(), s.copies_in_flight()), (904, 2));
    assert!(panics(|| drop(s.copies_complete())));
    let acked = vec![WriteSeq(102)];
    let actions = s.receive(NOW, Message::CopyAck { seqs: acked.clone() }).unwrap();
    assert_eq!(actions, [SenderAction::Copied(acked)]);
    assert_eq!(s.copy_room(), 5000);
    s.seal(seal(104));
    assert!(panics(|| drop(s.copy(copy(104)))), "behind the seal");
    let lost = s.finish();
    assert_eq!(lost.len(), 1);
    assert_eq!(
        (lost[0].seq, lost[0].range),
        (WriteSeq(104), ByteRange::at(0, 4096))
    );
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

#[test]
fn what_lacks_of_an_offer_is_heard_once_and_within_it() {
    let sent = || {
        let mut s = streaming(SenderOptions::default());
        s.journal(WriteSeq(104), WriteSeq(104));
        s.frame(NOW, frame(100, 104));
        assert_eq!(
            s.offer(offer(102)),
            SenderAction::Send(Message::Offer(offer(102)))
        );
        assert!(panics(|| drop(s.copies_complete())));
        s
    };
    let mut s = sent();
    let good = lacks(102, 8192);
    let heard = s.receive(NOW, Message::Lacks(good.clone())).unwrap();
    assert_eq!(heard, [SenderAction::Lacks(good.clone())]);
    assert_eq!(s.copies_in_flight(), 0);
    assert!(s.receive(NOW, Message::Lacks(good)).is_err(), "twice");
    for bad in [lacks(102, 0), lacks(102, 8193), lacks(101, 4096)] {
        assert!(sent().receive(NOW, Message::Lacks(bad)).is_err());
    }
    assert_eq!(sent().finish().len(), 1, "without an answer it is lost");
}

/// A peer of version 1 has never heard of offers: it is sent none, and none is taken from it.
#[test]
fn a_peer_of_version_1_knows_no_offers() {
    let old = Hello {
        newest: 1,
        ..hello(3)
    };
    let mut r = Receiver::new(local(Role::Recovery, 3));
    r.receive(Message::Hello(old.clone())).unwrap();
    let answer = Welcome {
        version: Version::V1,
        ..welcome(3)
    };
    assert_eq!(
        r.welcome(welcome(3)),
        [ReceiverAction::Send(Message::Welcome(answer.clone()))],
        "it is answered in its own version"
    );
    r.receive(durable(frame(100, 104))).unwrap();
    assert!(r.receive(Message::Offer(offer(102))).is_err());

    let (mut s, _) = Sender::new(SenderOptions::default(), hello(3));
    s.receive(NOW, Message::Welcome(answer)).unwrap();
    s.resume(Resume::Here);
    assert_eq!(s.version(), Version::V1);
    s.journal(WriteSeq(104), WriteSeq(104));
    s.frame(NOW, frame(100, 104));
    assert!(panics(|| drop(s.offer(offer(102)))));
    s.copy(copy(103));
    assert!(s.receive(NOW, Message::Lacks(lacks(103, 4096))).is_err());

    let (mut s, _) = Sender::new(SenderOptions::default(), old);
    assert!(
        s.receive(NOW, Message::Welcome(welcome(3))).is_err(),
        "a version that was not offered"
    );
}

#[test]
fn messages_out_of_place_end_the_connection() {
    let mut s = streaming(SenderOptions::default());
    for m in [
        Message::Welcome(welcome(3)),
        Message::Hello(hello(3)),
        durable(frame(100, 101)),
    ] {
        assert!(matches!(s.receive(NOW, m), Err(ProtocolError::Unexpected { .. })));
    }
    let mut r = Receiver::new(local(Role::Recovery, 3));
    assert!(
        r.receive(durable(frame(100, 101))).is_err(),
        "before the greeting"
    );
    assert!(
        r.receive(Message::Request(wire::Request {
            id: 1,
            kind: 1,
            body: Bytes::new()
        }))
        .is_err()
    );
    let mut r = receiving();
    for m in [
        ack(100, 90),
        Message::Hello(hello(3)),
        Message::Welcome(welcome(3)),
    ] {
        assert!(matches!(r.receive(m), Err(ProtocolError::Unexpected { .. })));
    }
}
