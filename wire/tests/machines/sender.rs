//! What a sender may send, and what it hears back.

use super::lab::{NOW, ack, copy, frame, lacks, offer, panics, seal, streaming};
use model::{ByteRange, Payload, Timestamp, WriteSeq};
use wire::{Copy, Frame, Message, ProtocolError, SendBound, SenderAction, SenderOptions};

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
