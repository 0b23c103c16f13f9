//! Numbers that another host names: where its generation begins, and where its stream goes on behind a gap.

use super::*;
use crate::SealFlags;
use model::LfcId;

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
