//! A peer that has nothing, or less than it once had (rules C4, C5, T5): what it lacks is copied, never assumed.

use super::{
    hosts::{Production, Recovery},
    link::Link,
};
use bytes::Bytes;
use journal::tap::{Request, VolumeChange};
use model::VolumeIndex;
use snapshot::Volumes;
use testkit::SimPower;

const SIZES: [u64; 1] = [256 << 10];

/// One container of four blocks, written back, checkpointed and in the store.
fn container(a: &Production, at: u64, byte: u8) {
    for block in 0..4 {
        a.tap.submit(vec![Request {
            change: Some(VolumeChange::Write {
                volume: VolumeIndex(0),
                offset: at + block * 4096,
                data: Bytes::from(vec![byte; 4096]),
            }),
            durable: false,
            done: Box::new(|answer| answer.unwrap()),
        }]);
    }
    a.tap.sync_once().unwrap();
    a.tap.seal_now().unwrap();
    a.write_back(u64::MAX).unwrap();
    a.checkpoint().unwrap();
    while a.journal.ingest_sealed().unwrap().is_some() {}
}

/// Runs the link until nothing is left to do.
fn settle(link: &mut Link, a: &Production, b: &Recovery) {
    for _ in 0..400 {
        a.tap.sync_once().unwrap();
        link.copy(a).unwrap();
        while link.pump(a).unwrap() {}
        while link.hear_b(b).unwrap() {}
        b.journal.sync().unwrap();
        while b.apply_next().unwrap() {}
        link.moved(b).unwrap();
        while link.hear_a(a).unwrap() {}
    }
    assert!(link.rests());
}

fn bytes(volumes: &Volumes) -> Vec<u8> {
    let mut buf = vec![0; usize::try_from(SIZES[0]).unwrap()];
    let (_, volume) = volumes.iter().next().unwrap();
    volume.medium().read_at(0, &mut buf).unwrap();
    buf
}

/// The journal gives way before the first contact; the link is cut after the jump and before the first frame behind it.
#[test]
fn c5_a_first_sync_behind_a_gap_survives_a_cut_before_its_first_frame() {
    let (pa, pb) = (SimPower::new(), SimPower::new());
    let a = Production::boot(&pa, &SIZES).unwrap();
    let b = Recovery::boot(&pb, &SIZES).unwrap();
    container(&a, 0, 1);
    container(&a, 65536, 2);
    a.give_way(1).unwrap();
    let mut link = Link::connect(&a, &b).unwrap();
    while link.hear_b(&b).unwrap() {}
    b.journal.sync().unwrap();
    drop(link);
    let mut link = Link::connect(&a, &b).unwrap();
    settle(&mut link, &a, &b);
    assert!(b.stands() && bytes(&a.volumes) == bytes(&b.volumes));
}

/// The recovery host is put back to an older state of itself (a backup of its machine) after production dropped what the
/// newer one had applied: everything is copied, because nobody knows what it lacks.
#[test]
fn c4_a_peer_that_went_back_is_copied_whole() {
    let (pa, pb, pc) = (SimPower::new(), SimPower::new(), SimPower::new());
    let a = Production::boot(&pa, &SIZES).unwrap();
    let b = Recovery::boot(&pb, &SIZES).unwrap();
    let backup = Recovery::boot(&pc, &SIZES).unwrap();
    container(&a, 0, 1);
    for host in [&backup, &b] {
        let mut link = Link::connect(&a, host).unwrap();
        settle(&mut link, &a, host);
    }
    // The backup has seen all that b has, as if they were one.
    let mut link = Link::connect(&a, &backup).unwrap();
    settle(&mut link, &a, &backup);
    drop(link);
    let mut link = Link::connect(&a, &b).unwrap();
    container(&a, 65536, 2);
    settle(&mut link, &a, &b);
    assert!(bytes(&a.volumes) == bytes(&b.volumes));
    a.drop_applied().unwrap();
    drop(link);
    let mut link = Link::connect(&a, &backup).unwrap();
    settle(&mut link, &a, &backup);
    assert!(backup.stands());
    assert!(
        bytes(&a.volumes) == bytes(&backup.volumes),
        "consistent, and another"
    );
}
