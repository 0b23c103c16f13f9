//! Whether a stale region is offered by its digest before its bytes are sent, and what of it comes again.
//!
//! After a gap most of what is stale may be equal: whole regions are stale for one block, files are written again with what they
//! held, both hosts of a failback were the same for a long time. An offer ([`wire::Offer`]) costs some hundred bytes and a second
//! reading where it fails. So regions are offered as long as that finds anything: behind some offers in a row of which the peer
//! lacked everything, ever more regions are sent without, up to 1024 for each offer, as it is for the compression of what does not
//! compress. A replica that begins empty starts there. Where nothing was found yet only a few offers are on their way at once, and the
//! copier waits for what comes of them: a resync whose regions all differ reads few of them twice, and one whose regions are equal
//! sends none of them meanwhile. To a replica that is far behind the copier offers nothing.
//!
//! What the recovery host does with an offer, and why nothing is taken for equal that is not: `src/applying/copies.rs`.

use model::ByteRange;

/// Failed offers in a row that are chance: most of a set can be equal.
const CHANCE: u32 = 4;
const SKIP_MAX_LOG2: u32 = 10;
/// Offers on their way while none was found to be there lately.
const UNSURE: usize = 16;

/// What is to be done with the next region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is offered.
    Offer,
    /// It is sent.
    Send,
    /// Some answer comes first.
    Wait,
}

/// How a range is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With its bytes.
    Bytes,
    /// Offered, with the digests of its pieces.
    Offer,
    /// Offered as a whole: it is a piece that seemed to be there.
    WholeOffer,
}

/// All of a range that was offered and of which the peer lacks these ranges, which rise: how each part of it comes again.
#[must_use]
pub fn owed(offered: ByteRange, lacking: &[ByteRange]) -> Vec<(ByteRange, How)> {
    let mut parts = Vec::new();
    let mut at = offered.start;
    let mut owe = |start: u64, end: u64, how| {
        if start < end {
            parts.push((ByteRange { start, end }, how));
        }
    };
    for range in lacking {
        owe(at, range.start, How::WholeOffer);
        owe(range.start, range.end, How::Bytes);
        at = range.end;
    }
    owe(at, offered.end, How::WholeOffer);
    parts
}

/// Remembers what the last offers came to.
#[derive(Debug, Default)]
pub struct Offers {
    /// Offers that failed since one did not.
    failed: u32,
    /// Regions to be sent before the next offer.
    skip: u32,
    found: bool,
    on_their_way: usize,
}

impl Offers {
    /// For a peer that holds nothing yet.
    pub fn hopeless() -> Self {
        Self {
            failed: CHANCE + SKIP_MAX_LOG2,
            skip: 1 << SKIP_MAX_LOG2,
            ..Self::default()
        }
    }

    /// What is to be done with the next region.
    pub const fn next(&mut self) -> Next {
        if self.skip > 0 {
            self.skip -= 1;
            Next::Send
        } else if self.found || self.on_their_way < UNSURE {
            Next::Offer
        } else {
            Next::Wait
        }
    }

    /// An offer is made.
    pub const fn made(&mut self) {
        self.on_their_way += 1;
    }

    /// An offer is over without an answer.
    pub const fn lost(&mut self) {
        self.on_their_way = self.on_their_way.saturating_sub(1);
    }

    /// What came of one: whether the peer held any of it.
    pub fn answered(&mut self, held_any: bool) {
        self.lost();
        if held_any {
            self.found = true;
            (self.failed, self.skip) = (0, 0);
            return;
        }
        self.failed = (self.failed + 1).min(CHANCE + SKIP_MAX_LOG2);
        if self.failed >= CHANCE {
            self.found = false;
            self.skip = 1 << (self.failed - CHANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers made for so many regions; `answer` says what comes of each, at once.
    fn offered(offers: &mut Offers, regions: usize, mut answer: impl FnMut(usize) -> bool) -> usize {
        (0..regions)
            .filter(|n| {
                let wanted = offers.next() == Next::Offer;
                if wanted {
                    offers.made();
                    offers.answered(answer(*n));
                }
                wanted
            })
            .count()
    }

    #[test]
    fn all_of_an_offer_is_owed_but_no_more() {
        let r = |start, end| ByteRange { start, end };
        for (lacking, parts) in [
            (vec![r(10, 90)], vec![(r(10, 90), How::Bytes)]),
            (
                vec![r(10, 20), r(50, 60)],
                vec![
                    (r(10, 20), How::Bytes),
                    (r(20, 50), How::WholeOffer),
                    (r(50, 60), How::Bytes),
                    (r(60, 90), How::WholeOffer),
                ],
            ),
            (
                vec![r(30, 90)],
                vec![(r(10, 30), How::WholeOffer), (r(30, 90), How::Bytes)],
            ),
        ] {
            assert_eq!(owed(r(10, 90), &lacking), parts, "{lacking:?}");
        }
    }

    #[test]
    fn what_never_succeeds_is_tried_ever_more_rarely() {
        let mut offers = Offers::default();
        assert!(offered(&mut offers, 4096, |_| false) < 20);
        let tried = offered(&mut offers, 1100, |_| true);
        assert!(tried > 50, "{tried}: good times come back");
        assert_eq!(offered(&mut offers, 1000, |_| true), 1000);
        assert!(offered(&mut Offers::hopeless(), 1024, |_| true) == 0);
    }

    #[test]
    fn one_of_ten_that_differs_changes_nothing() {
        assert_eq!(offered(&mut Offers::default(), 1000, |n| n % 10 != 0), 1000);
    }

    #[test]
    fn few_are_on_their_way_before_any_was_found() {
        let mut offers = Offers::default();
        let made = (0..1000)
            .filter(|_| {
                let wanted = offers.next() == Next::Offer;
                if wanted {
                    offers.made();
                }
                wanted
            })
            .count();
        assert_eq!((made, offers.next()), (UNSURE, Next::Wait));
        offers.lost();
        assert_eq!(offers.next(), Next::Offer, "one less");
        offers.made();
        offers.answered(true);
        for _ in 0..100 {
            assert_eq!(offers.next(), Next::Offer);
            offers.made();
        }
        (1..CHANCE).for_each(|_| offers.answered(false));
        assert_eq!(offers.next(), Next::Offer, "some differ, by chance");
        offers.answered(false);
        assert_eq!(offers.next(), Next::Send);
    }
}
