//! Undo containers that tests have in memory as a whole, and what the journal does with images that end.

use super::*;
use model::{
    BlockNo, Ordinal, Payload, VolumeIndex,
    ports::{BeforeImage, Ended, History, HistoryError, OrdinalKind},
};

/// Known before-images, and what they belong to.
#[derive(Clone)]
pub(crate) struct UndoContainer {
    pub ordinal: Ordinal,
    pub kind: OrdinalKind,
    pub blocks: Vec<(VolumeIndex, BlockNo, Payload)>,
}

pub(crate) trait CommitWhole: History {
    fn commit_whole(&self, container: &UndoContainer) -> Result<(), HistoryError> {
        let blocks = container.blocks.iter().cloned();
        let mut images = blocks.map(|(volume, block, image)| {
            Ok(BeforeImage {
                volume,
                block,
                image: Some(image),
            })
        });
        self.commit_undo(container.ordinal, &container.kind, &mut images)
            .map(drop)
    }
}

impl<H: History> CommitWhole for H {}

/// Whoever gives the images of a container has none any more before the last one: nothing is published and nothing poisoned, and
/// what was taken is not there when the ordinal is committed with other blocks.
#[test]
fn t3_images_that_end_early_leave_no_undo() {
    let lab = Lab::new();
    let j = lab.fresh();
    let kind = OrdinalKind::Copies;
    let image = |block, fill| {
        Ok(BeforeImage {
            volume: VolumeIndex(0),
            block: BlockNo(block),
            image: Some(Payload::Data(Bytes::from(vec![fill; 4096]))),
        })
    };
    for taken in 0..4 {
        let mut images = (0..taken).map(|b| image(b, 1)).chain([Err(Ended), image(9, 1)]);
        let done = j.commit_undo(Ordinal(1), &kind, &mut images);
        assert!(matches!(done, Err(HistoryError::Ended)), "{done:?}");
        assert_eq!(j.published(), Ordinal(0));
    }
    assert!(j.poisoned().is_none());
    drop(j);
    let (j, _) = lab.open().unwrap();
    let blocks = j.commit_undo(Ordinal(1), &kind, &mut [image(2, 2), image(7, 2)].into_iter());
    assert_eq!(
        blocks.unwrap(),
        [(VolumeIndex(0), BlockNo(2)), (VolumeIndex(0), BlockNo(7))]
    );
    let found = j.first_undo(VolumeIndex(0), BlockNo(0), 10, Ordinal(0), Ordinal(1));
    for (block, found) in (0..).zip(found.unwrap()) {
        let expected = Payload::Data(Bytes::from(vec![2; 4096]));
        assert_eq!(
            found,
            [2, 7].contains(&block).then_some(expected),
            "block {block}"
        );
    }
}

/// Images come in order, each block once, each of one block's length: anything else is a defect, and nothing is published.
#[test]
fn t3_images_out_of_order_are_refused() {
    let image = |block, len| {
        Ok(BeforeImage {
            volume: VolumeIndex(0),
            block: BlockNo(block),
            image: Some(Payload::Data(Bytes::from(vec![7; len]))),
        })
    };
    for wrong in [
        [image(3, 4096), image(2, 4096)],
        [image(3, 4096), image(3, 4096)],
        [image(3, 4096), image(4, 512)],
    ] {
        let j = Lab::new().fresh();
        let done = j.commit_undo(Ordinal(1), &OrdinalKind::Copies, &mut wrong.into_iter());
        assert!(done.is_err());
        assert_eq!(j.published(), Ordinal(0));
    }
}
