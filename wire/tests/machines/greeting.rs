//! How a stream begins: terms, versions, and positions on lines that may be others.

use super::lab::{
    NOW, ack, copy, durable, frame, hello, lacks, local, offer, panics, position, receiving, streaming,
    welcome,
};
use bytes::Bytes;
use model::{ContextId, LfcId, Role, Term, WriteSeq};
use wire::{
    Ack, Frame, Hello, Jump, JumpCause, Message, ProtocolError, Receiver, ReceiverAction, ReceiverLocal,
    Refuse, RefuseCode, Resume, Sender, SenderAction, SenderOptions, Version, Welcome,
};

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

/// A receiver whose own line ends at 100 and was given up.
fn giving_way() -> Receiver {
    let mut r = Receiver::new(local(Role::Recovery, 3));
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
