//! Which points are shown where a line is taken over, given up, or left.

use super::*;

/// A replica that was consistent up to record `3`, amid a resync since: all copies are here, and what came with them, and the containers
/// that hold it are applied or are not. It is then restored to `3`.
fn restored_to_before_a_resync(rng: &mut dyn RngCore, is_applied: bool) -> (Host, Point) {
    let mut host = Host::new();
    let fill = |host: &mut Host, rng: &mut dyn RngCore, byte: u8| {
        let start = rng.random_range(0..SIZE as u64 - 1000);
        host.append(vec![write(0, start, vec![byte; 1000])]);
    };
    (1..=3).for_each(|byte| fill(&mut host, rng, byte));
    host.seal();
    host.j.ingest_sealed().unwrap();
    host.apply();
    let end = |host: &Host| host.j.head().unwrap().0;
    host.j.set_consistent_until(end(&host)).unwrap();
    let copied = rng.random_range(0..BLOCKS) as usize * BLOCK_SIZE as usize;
    host.head[copied..copied + BLOCK_SIZE as usize].fill(0xcc);
    let ordinal = host.overwrite(host.head.clone(), OrdinalKind::Copies);
    host.j.set_applied_local(ordinal).unwrap();
    (4..=5).for_each(|byte| fill(&mut host, rng, byte));
    host.seal();
    host.j.set_consistent_from(end(&host)).unwrap();
    fill(&mut host, rng, 6);
    host.seal();
    host.j.ingest_sealed().unwrap();
    while is_applied && host.next_to_apply().is_some() {
        host.apply();
    }
    let point = resolve(&host.j, "seq:3").unwrap().point;
    host.restore(&point);
    (host, point)
}

fn reachable(host: &Host, generation: u32) -> Vec<u64> {
    let is_there = |n: &u64| resolve(&host.j, &format!("g{generation}:seq:{n}")).is_ok();
    let newest = host.j.lfc_rows(..).iter().map(|r| r.last_seq.0).max();
    (1..=newest.unwrap_or(0)).filter(is_there).collect()
}

/// C5: a failover at a restored point says that nothing is left to apply. Points of what it leaves that were never applied, and so lack
/// the copies, stay refused; those that were stay there; and the line that goes on is consistent from its first record.
#[test]
fn c5_what_was_left_before_its_copies_were_under_it_is_not_shown() {
    with_seeds("c5 left", 20, |rng| {
        for is_applied in [false, true] {
            let (mut host, point) = restored_to_before_a_resync(rng, is_applied);
            let left: &[u64] = if is_applied { &[1, 2, 3, 5, 6] } else { &[1, 2, 3] };
            assert_eq!(reachable(&host, 1), left);
            host.promote(&point);
            for _ in 0..2 {
                assert_eq!(reachable(&host, 1), left, "taken over: {is_applied}");
                assert_eq!(seq(&host.j, "latest"), 3, "today's line ends there");
                host.check();
                host.j = host.lab.open().unwrap().0;
            }
            let birth = host.j.begin_generation().unwrap();
            host.append(vec![birth]);
            host.write(rng);
            host.seal();
            host.j.ingest_sealed().unwrap();
            assert_eq!(reachable(&host, 1), left, "begun: {is_applied}");
            host.apply();
            let head = host.j.head().unwrap().0;
            assert_eq!(seq(&host.j, "latest"), head.seq.0);
            assert_eq!(reachable(&host, 1), left, "applied: {is_applied}");
            host.check();
            host.j = host.lab.open().unwrap().0;
            assert!(host.j.is_consistent());
            // The line that goes on has the first three too, and its own behind the six that were there.
            assert_eq!(host.check().0, left.len() + 3 + (head.seq.0 - 6) as usize);
        }
    });
}

/// L7: a host that took over a restored point, wrote nothing and gave that up goes back to that point, and to no other one.
#[test]
fn l7_a_restored_point_that_was_given_up_is_the_last_consistent_one() {
    with_seeds("l7 given up", 20, |rng| {
        for (is_applied, is_opened) in [(false, false), (false, true), (true, false), (true, true)] {
            let (mut host, point) = restored_to_before_a_resync(rng, is_applied);
            host.promote(&point);
            let before = reachable(&host, 1);
            if is_opened {
                // It was cut off before the first record of its generation.
                host.j.begin_generation().unwrap();
            }
            host.j
                .give_up(&context(Role::Recovery, ContextState::ResyncReady))
                .unwrap();
            assert!(host.j.is_consistent(), "it stands there");
            // As a stream from behind a gap says before anything else.
            host.j.set_consistent_until(position(&point)).unwrap();
            host.j = host.lab.open().unwrap().0;
            assert_eq!(
                host.j.last_consistent(),
                Some(position(&point)),
                "{is_applied} {is_opened}"
            );
            assert_eq!(reachable(&host, 1), before);
            host.check();
        }
    });
}

/// What was rolled back stays what it was, whatever becomes of the host that took over there: its points were consistent.
#[test]
fn c5_what_was_rolled_back_can_be_reached() {
    with_seeds("c5 rolled back", 10, |rng| {
        let mut host = Host::new();
        for _ in 0..2 {
            for _ in 0..3 {
                let start = rng.random_range(0..SIZE as u64 - 1000);
                host.append(vec![write(0, start, vec![rng.random(); 1000])]);
            }
            host.seal();
            host.j.ingest_sealed().unwrap();
            host.apply();
        }
        let point = resolve(&host.j, "seq:3").unwrap().point;
        host.restore(&point);
        host.promote(&point);
        assert_eq!(seq(&host.j, "latest"), 3);
        assert_eq!(reachable(&host, 1), [1, 2, 3, 4, 5, 6]);
        host.j
            .give_up(&context(Role::Recovery, ContextState::ResyncReady))
            .unwrap();
        host.j.set_consistent_until(position(&point)).unwrap();
        host.j = host.lab.open().unwrap().0;
        assert_eq!(reachable(&host, 1), [1, 2, 3, 4, 5, 6]);
        let window = host.j.window(Some(GenNo(1))).unwrap();
        assert_eq!(
            (window.newest.at.seq, window.gaps.len()),
            (WriteSeq(6), 0),
            "{window:?}"
        );
        host.check();
    });
}

/// A host gave up what it took over at a restored point, and is restored to another one: what lacks its copies is no more there than
/// before.
#[test]
fn c5_a_second_restored_point_shows_no_more_than_the_first() {
    with_seeds("c5 twice", 20, |rng| {
        for (is_applied, to) in [(false, 2), (true, 2), (true, 6)] {
            let (mut host, point) = restored_to_before_a_resync(rng, is_applied);
            host.promote(&point);
            let before = reachable(&host, 1);
            host.j
                .give_up(&context(Role::Recovery, ContextState::ResyncReady))
                .unwrap();
            let other = resolve(&host.j, &format!("g1:seq:{to}")).unwrap().point;
            host.restore(&other);
            host.promote(&other);
            assert_eq!(reachable(&host, 1), before, "{is_applied} {to}");
            assert_eq!(seq(&host.j, "latest"), to);
            host.check();
            let birth = host.j.begin_generation().unwrap();
            host.append(vec![birth]);
            host.seal();
            host.j.ingest_sealed().unwrap();
            host.apply();
            assert_eq!(reachable(&host, 1), before, "{is_applied} {to}");
            assert_eq!(seq(&host.j, "latest"), host.j.head().unwrap().0.seq.0);
            host.check();
        }
    });
}

/// A span that ends on another line is one of this line too, up to where they part: a drill took over at 6 and wrote, and the line that
/// the host follows since left at 4.
#[test]
fn c5_a_span_that_ends_on_another_line_is_on_this_one_as_far() {
    let mut host = Host::new();
    let rng = &mut rand::rng();
    (0..3).for_each(|_| host.append(vec![write(0, 0, vec![rng.random(); 1000])]));
    host.append(vec![write(0, 0, vec![1; 1000])]);
    host.append(vec![write(0, 0, vec![2; 1000])]);
    host.append(vec![write(0, 0, vec![3; 1000])]);
    host.seal();
    host.j.ingest_sealed().unwrap();
    host.apply();
    let at = |seq| Position {
        generation: GenNo(1),
        seq: WriteSeq(seq),
    };
    let row = context(Role::Production, ContextState::FailedOver);
    host.j
        .promote(GenId(77), at(6), crate::tests::at(1), &row)
        .unwrap();
    let birth = host.j.begin_generation().unwrap();
    host.append(vec![birth]);
    host.seal();
    host.j.ingest_sealed().unwrap();
    host.apply();
    host.j
        .give_up(&context(Role::Recovery, ContextState::ResyncReady))
        .unwrap();
    let end = host.j.head().unwrap().0;
    host.j.set_consistent_until(end).unwrap();
    let (seq, digest) = host.j.digest_at(GenNo(1), WriteSeq(4)).unwrap();
    let id = host.j.generations()[0].id;
    host.j
        .follow_behind_gap(
            GenId(88),
            Some(Parent { id, seq, digest }),
            LfcId(end.seq.0 * 2 + 100),
            WriteSeq(50),
            [1; 32],
        )
        .unwrap();
    host.j = host.lab.open().unwrap().0;
    for n in 1..=4 {
        assert_eq!(seq_of(&host.j, &format!("seq:{n}")), Some(n));
    }
    assert_eq!(seq_of(&host.j, "seq:5"), None, "not of this line");
    assert_eq!(seq_of(&host.j, "g1:seq:6"), Some(6));
}

fn seq_of(j: &Journal, target: &str) -> Option<u64> {
    resolve(j, target).ok().map(|r| r.point.seq.0)
}
