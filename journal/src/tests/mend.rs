//! A damaged tail is mended with the peer's frames, or stays damaged (`rules.md` T5, T10, invariant 9).

use super::*;
use crate::{
    SealFlags,
    mend::{mend, missing},
};
use model::{ByteRange, GenNo, LfcId, ports::Medium};
use rand::{Rng, rngs::StdRng};
use testkit::with_seeds;

/// What the peer has: canonical frames, in order.
type Peer = Vec<Bytes>;

/// Appends one write a frame and gives the peer each frame.
fn write_both(j: &Journal, peer: &mut Peer, frames: u64, rng: &mut StdRng) {
    for _ in 0..frames {
        let bytes = vec![rng.random(); rng.random_range(1..2000)];
        let now = Timestamp(j.cursors().appended.0 * Timestamp::SECOND_NS);
        let frame = j
            .append(vec![write(0, rng.random_range(0..9000), bytes)], now)
            .unwrap();
        peer.push(frame.bytes().clone());
    }
}

/// What the peer sends when it is asked for the frames behind a record: a page of them.
fn page(peer: &Peer, after: WriteSeq, rng: &mut StdRng) -> Vec<Bytes> {
    let behind = peer
        .iter()
        .filter(|b| crate::FrameHeader::parse(b).unwrap().last_seq() > after);
    behind.take(rng.random_range(1..5)).cloned().collect()
}

/// Fetches until nothing is missing or the peer has no more; answers how often it was asked.
fn fetch(lab: &Lab, peer: &Peer, rng: &mut StdRng) -> Result<u32, JournalError> {
    let parts = lab.parts();
    mend(&parts, &[])?;
    let mut asked = 0;
    while let Some(m) = missing(&parts)? {
        assert!(m.after < m.upto, "{m:?}");
        asked += 1;
        if mend(&parts, &page(peer, m.after, rng))? == 0 {
            break;
        }
    }
    Ok(asked)
}

fn digest_of(frame: &Bytes) -> crate::Digest {
    frame[frame.len() - 32..].try_into().unwrap()
}

/// T5: production with a rotten open tail has every byte again, whichever bit it was, and keeps what the peer never had.
#[test]
fn t5_a_damaged_open_tail_is_what_it_was_after_mending() {
    let (mut asked, mut found) = (0, 0);
    with_seeds("mend open", 150, |rng| {
        let lab = Lab::new();
        let mut j = lab.fresh();
        let mut peer = Peer::new();
        // What was not known to be durable stands in both tails after a restart (T6).
        for _ in 0..rng.random_range(0..3) {
            write_both(&j, &mut peer, rng.random_range(1..4), rng);
            drop(j);
            j = lab.open().unwrap().0;
        }
        let synced = rng.random_range(2..10);
        write_both(&j, &mut peer, synced, rng);
        j.sync().unwrap();
        let (tail, rotten_end) = {
            let shared = j.shared.read();
            let open = shared.open.as_ref().unwrap();
            (open.tail, open.end_at)
        };
        let mut own = Peer::new();
        write_both(&j, &mut own, rng.random_range(1..5), rng);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        let head = j.head().unwrap();
        drop(j);
        for _ in 0..rng.random_range(1..4) {
            lab.tail(tail).flip_random_bit(
                ByteRange {
                    start: 0,
                    end: rotten_end,
                },
                rng,
            );
        }
        found += u32::from(matches!(lab.open(), Err(JournalError::Damaged(_))));
        asked += fetch(&lab, &peer, rng).unwrap();
        let (j, opened) = lab.open().unwrap();
        assert!(matches!(opened, Opened::Clean), "{opened:?}");
        assert_eq!(j.head().unwrap(), head);
        let all: Vec<Bytes> = peer.iter().chain(&own).cloned().collect();
        let read = j.frames_after(WriteSeq(0), u64::MAX).unwrap();
        assert_eq!(read.iter().map(|f| f.bytes().clone()).collect::<Vec<_>>(), all);
        // It goes on in the same generation.
        write_both(&j, &mut peer, 1, rng);
        assert_eq!(j.current_generation().unwrap().no, GenNo(1));
    });
    // Flipping one bit twice mends it, and headers are mended without the peer.
    assert!(found > 140 && asked > 100, "{found} {asked}");
}

/// The sealed container that waits in its tail is mended up to exactly where the next one begins.
#[test]
fn t5_a_damaged_sealed_tail_is_what_it_was_after_mending() {
    with_seeds("mend sealed", 150, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        let mut peer = Peer::new();
        if rng.random() {
            write_both(&j, &mut peer, 3, rng);
            j.seal(SealFlags::default()).unwrap();
            j.ingest_sealed().unwrap();
        }
        let (tail, lfc) = {
            let shared = j.shared.read();
            let open = shared.open.as_ref().unwrap();
            (open.tail, open.header.start.lfc)
        };
        write_both(&j, &mut peer, 6, rng);
        let end = j.shared.read().open.as_ref().unwrap().end_at;
        let row = j.seal(SealFlags::default()).unwrap();
        write_both(&j, &mut peer, rng.random_range(0..3), rng);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        let head = j.head().unwrap();
        drop(j);
        let range = ByteRange { start: 0, end };
        // Sometimes the whole tail is gone.
        if rng.random_range(0..4) == 0 {
            lab.tail(tail).write_at(0, &vec![0; end as usize]).unwrap();
            lab.tail(tail).sync().unwrap();
        } else {
            lab.tail(tail).flip_random_bit(range, rng);
        }
        fetch(&lab, &peer, rng).unwrap();
        let (j, _) = lab.open().unwrap();
        assert_eq!(j.head().unwrap(), head);
        assert_eq!(j.lfc_row(GenNo(1), lfc).unwrap().end_digest, row.end_digest);
        assert_eq!(j.frames_of(GenNo(1), lfc).unwrap().len(), 6);
    });
}

/// Tails that are lost as a whole are written again, each container in its own.
#[test]
fn t5_lost_tails_are_fetched_whole() {
    with_seeds("mend lost", 100, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        let mut peer = Peer::new();
        write_both(&j, &mut peer, 3, rng);
        if rng.random() {
            j.append(vec![mark("end")], at(99))
                .map(|f| peer.push(f.bytes().clone()))
                .unwrap();
        }
        j.seal(SealFlags {
            mark: false,
            cut: None,
        })
        .unwrap();
        if rng.random() {
            j.ingest_sealed().unwrap();
        }
        write_both(&j, &mut peer, 4, rng);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        let head = j.head().unwrap();
        drop(j);
        let lost = rng.random_range(1..4);
        for tail in (0..2).filter(|t| lost & (1 << t) != 0) {
            lab.tail(tail).write_at(0, &vec![0; TAIL as usize]).unwrap();
            lab.tail(tail).sync().unwrap();
        }
        fetch(&lab, &peer, rng).unwrap();
        let (j, _) = lab.open().unwrap();
        assert_eq!(j.head().unwrap(), head);
        let read = j.frames_after(WriteSeq(0), u64::MAX).unwrap();
        assert_eq!(read.last().unwrap().digest(), digest_of(peer.last().unwrap()));
        assert_eq!(j.lfc_rows(..).len(), 1);
    });
}

/// A cut at any moment of mending leaves damage that is mended by the next attempt, never less than before.
#[test]
fn t5_mending_survives_a_cut_anywhere() {
    with_seeds("mend cut", 200, |rng| {
        let lab = Lab::new();
        lab.power.set_tear(testkit::sim::Tear::Byte);
        let j = lab.fresh();
        let mut peer = Peer::new();
        write_both(&j, &mut peer, 6, rng);
        j.sync().unwrap();
        if rng.random() {
            j.seal(SealFlags::default()).unwrap();
            write_both(&j, &mut peer, 3, rng);
            j.sync().unwrap();
        }
        j.raise_bound().unwrap();
        let head = j.head().unwrap();
        drop(j);
        let end = 4096 + 2000;
        lab.tail(0).flip_random_bit(ByteRange { start: 0, end }, rng);
        for _ in 0..4 {
            lab.power.freeze_at(rng.random_range(1..6));
            let cut = fetch(&lab, &peer, rng).is_err();
            lab.power.cut(rng);
            if !cut {
                break;
            }
        }
        fetch(&lab, &peer, rng).unwrap();
        let (j, _) = lab.open().unwrap();
        assert_eq!(j.head().unwrap(), head);
    });
}

/// Invariant 9: a peer that has less, or frames of another history, mends nothing; the journal stays damaged and says what it
/// lacks.
#[test]
fn i9_what_the_peer_does_not_have_stays_damage() {
    with_seeds("mend less", 100, |rng| {
        let lab = Lab::new();
        let j = lab.fresh();
        let mut peer = Peer::new();
        write_both(&j, &mut peer, 8, rng);
        j.sync().unwrap();
        j.raise_bound().unwrap();
        let rotten = rng.random_range(0..8_usize);
        let at = j.shared.read().open.as_ref().unwrap().frames[rotten].at;
        drop(j);
        lab.tail(0).flip_bit(at + 100, 1);
        let has = rng.random_range(0..=rotten);
        let less: Peer = peer[..has].to_vec();
        fetch(&lab, &less, rng).unwrap();
        assert!(matches!(lab.open(), Err(JournalError::Damaged(_))));
        let m = missing(&lab.parts()).unwrap().unwrap();
        assert_eq!((m.after, m.upto), (WriteSeq(rotten as u64), WriteSeq(8)));
        // Another history with the same numbers.
        let other = Lab::new();
        let o = other.fresh();
        let mut strange = Peer::new();
        write_both(&o, &mut strange, 8, rng);
        fetch(&lab, &strange, rng).unwrap();
        assert_eq!(missing(&lab.parts()).unwrap().unwrap(), m);
        assert!(matches!(lab.open(), Err(JournalError::Damaged(_))));
        fetch(&lab, &peer, rng).unwrap();
        assert_eq!(lab.open().unwrap().0.cursors().appended, WriteSeq(8));
    });
}

/// A recovery host whose received tail is damaged is mended the same way, and the stream goes on behind its last frame.
#[test]
fn i9_a_received_tail_is_mended_and_the_stream_goes_on() {
    with_seeds("mend received", 60, |rng| {
        let (a, b) = (Lab::new(), Lab::new());
        let j = a.fresh();
        let mut sent = Peer::new();
        write_both(&j, &mut sent, 9, rng);
        j.sync().unwrap();
        let (r, _) = b.open().unwrap();
        let first = NewGeneration {
            first_seq: Some(WriteSeq(1)),
            first_lfc: Some(LfcId(2)),
            ..NewGeneration::own(GenId(0xA1), None)
        };
        r.create_generation(first).unwrap();
        for frame in &sent[..7] {
            r.append_received(frame.clone()).unwrap();
        }
        r.sync().unwrap();
        r.raise_bound().unwrap();
        let end = r.shared.read().open.as_ref().unwrap().end_at;
        drop(r);
        b.tail(0).flip_random_bit(ByteRange { start: 4096, end }, rng);
        assert!(matches!(b.open(), Err(JournalError::Damaged(_))));
        fetch(&b, &sent, rng).unwrap();
        let (r, _) = b.open().unwrap();
        // It may have been given more than it had.
        let has = r.cursors().appended.0 as usize;
        assert!(has >= 7);
        for frame in &sent[has..] {
            r.append_received(frame.clone()).unwrap();
        }
        assert_eq!(r.head().unwrap(), j.head().unwrap());
    });
}

/// What the store or the superblock lost is not the peer's to know.
#[test]
fn i9_lost_metadata_is_not_mended() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 3, 600);
    j.seal(SealFlags::default()).unwrap();
    j.ingest_sealed().unwrap();
    drop(j);
    lab.power.store("db").lose_commits(1);
    assert_eq!(missing(&lab.parts()).unwrap(), None);
    assert_eq!(mend(&lab.parts(), &[]).unwrap(), 0);
}

/// T10: frames of a container that rotted in the store come back whole or not at all.
#[test]
fn t10_a_rotten_container_is_mended_by_exactly_its_frames() {
    let lab = Lab::new();
    let j = lab.fresh();
    fill(&j, 4, 600);
    j.seal(SealFlags::default()).unwrap();
    j.ingest_sealed().unwrap();
    let frames: Peer = j
        .frames_of(GenNo(1), LfcId(2))
        .unwrap()
        .iter()
        .map(|f| f.bytes().clone())
        .collect();
    drop(j);
    let (j, _) = lab.open().unwrap();
    let key = crate::keys::redo(GenNo(1), LfcId(2), 1);
    assert!(
        lab.power
            .store("db")
            .flip_bit(model::ports::Family::Redo, &key, 200, 3)
    );
    assert!(matches!(
        j.frames_of(GenNo(1), LfcId(2)),
        Err(JournalError::Damaged(_))
    ));
    assert_eq!(j.rotten_containers().len(), 1);
    for wrong in [&frames[..3], &frames[1..], &[]] {
        let refused = j.mend_container(GenNo(1), LfcId(2), wrong);
        assert!(matches!(refused, Err(JournalError::Damaged(_))), "{refused:?}");
    }
    j.mend_container(GenNo(1), LfcId(2), &frames).unwrap();
    assert_eq!(j.frames_of(GenNo(1), LfcId(2)).unwrap().len(), 4);
    assert!(j.rotten_containers().is_empty() && j.poisoned().is_none());
}
