//! What another host says and must not be followed: where its generation begins, where its stream goes on behind a gap, records that
//! its owner knows to be wrong.

use super::*;
use crate::SealFlags;
use crate::tests::undo::{CommitWhole, UndoContainer};
use model::{LfcId, Ordinal, ports::OrdinalKind};

/// A peer names where its generation begins. What it says must leave room for numbers behind it: this host seals the container, and
/// takes its line over, when that peer is gone.
#[test]
fn a_generation_that_would_run_out_of_numbers_is_not_followed() {
    for (first_seq, first_lfc) in [
        (WriteSeq(u64::MAX - 1), LfcId(2)),
        (WriteSeq(1), LfcId(u64::MAX - 1)),
        (WriteSeq(u64::MAX / 2), LfcId(2)),
    ] {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 3, 600);
        let received = NewGeneration {
            id: GenId(0xB2),
            parent: None,
            first_seq: Some(first_seq),
            first_lfc: Some(first_lfc),
        };
        let followed = j.create_generation(received);
        assert!(matches!(followed, Err(JournalError::Refused(_))), "{followed:?}");
        fill(&j, 3, 600);
        j.seal(SealFlags::default()).unwrap();
        j.create_generation(NewGeneration::own(GenId(0xC3), None))
            .unwrap();
        fill(&j, 3, 600);
        j.seal(SealFlags::default()).unwrap();
    }
}

/// The same for where a stream goes on behind a gap.
#[test]
fn a_gap_that_would_run_out_of_numbers_is_not_passed() {
    for (lfc, first_seq) in [
        (LfcId(u64::MAX - 1), WriteSeq(100)),
        (LfcId(100), WriteSeq(u64::MAX - 1)),
    ] {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 3, 600);
        let passed = j.skip_to(lfc, first_seq, [7; 32]);
        assert!(matches!(passed, Err(JournalError::Refused(_))), "{passed:?}");
        fill(&j, 3, 600);
        j.seal(SealFlags::default()).unwrap();
    }
}

/// A record that can never be applied would keep everything behind it from being applied, too.
#[test]
fn a_frame_with_a_record_that_its_owner_refuses_stays_outside() {
    let (a, b) = (Lab::new(), Lab::new());
    let (a, b) = (a.fresh(), b.fresh());
    let inside = a.append(vec![write(0, 4096, vec![1; 600])], at(1)).unwrap();
    let outside = a.append(vec![write(0, 1 << 40, vec![2; 600])], at(2)).unwrap();
    let below = |frame: &crate::Frame| {
        let ends = frame.records().iter().filter_map(|r| Some(r.changed()?.end));
        match ends.max() {
            Some(end) if end > 1 << 30 => Err(JournalError::Refused("it ends behind the volume".into())),
            _ => Ok(()),
        }
    };
    b.append_received_if(inside.bytes().clone(), below).unwrap();
    let refused = b.append_received_if(outside.bytes().clone(), below);
    assert!(matches!(refused, Err(JournalError::Refused(_))), "{refused:?}");
    assert_eq!(b.cursors().appended, inside.last_seq());
    assert!(b.poisoned().is_none());
    b.append_received(outside.bytes().clone()).unwrap();
}

/// The stream goes on behind a gap while a container is applied: that it was applied is not forgotten, or it would be applied again
/// when retention has freed it.
#[test]
fn t8_a_gap_does_not_forget_what_was_applied_meanwhile() {
    for _ in 0..300 {
        let lab = Lab::new();
        let j = lab.fresh();
        fill(&j, 3, 600);
        let row = j.seal(SealFlags::default()).unwrap();
        let kind = OrdinalKind::Apply {
            generation: row.generation,
            lfc: row.lfc,
            last_seq: row.last_seq,
        };
        let undo = UndoContainer {
            ordinal: Ordinal(1),
            kind,
            blocks: Vec::new(),
        };
        j.commit_whole(&undo).unwrap();
        let gate = std::sync::Barrier::new(2);
        std::thread::scope(|s| {
            s.spawn(|| {
                gate.wait();
                j.skip_to(LfcId(100), WriteSeq(1000), [7; 32]).unwrap();
            });
            gate.wait();
            j.set_applied(Ordinal(1), row.generation, row.lfc, row.last_seq)
                .unwrap();
        });
        let cursors = j.cursors();
        assert_eq!(cursors.applied_lfc, (row.generation, row.lfc));
        assert_eq!(
            (cursors.applied_ordinal, cursors.applied),
            (Ordinal(1), row.last_seq)
        );
    }
}
