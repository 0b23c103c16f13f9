//! What is kept of verifies, in the context's row.

use control::reply::DifferingRange;
use model::{ByteRange, VolumeIndex};
use serde::{Deserialize, Serialize};

/// Name of the note.
pub(super) const NOTE: &str = "verify";
/// Ranges that are listed; of others only their bytes.
pub(super) const LISTED_MAX: usize = 1000;

/// Bytes that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Differs {
    /// The volume, by its index.
    pub volume: u16,
    /// First byte.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

impl Differs {
    pub(super) fn new(volume: VolumeIndex, range: ByteRange) -> Self {
        Self {
            volume: volume.0,
            start: range.start,
            end: range.end,
        }
    }

    pub(super) fn place(self) -> (VolumeIndex, ByteRange) {
        let range = ByteRange {
            start: self.start,
            end: self.end,
        };
        (VolumeIndex(self.volume), range)
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// As commands show it.
    #[must_use]
    pub fn named(self, names: &[&str]) -> DifferingRange {
        DifferingRange {
            volume: names
                .get(usize::from(self.volume))
                .map_or_else(String::new, |n| (*n).to_owned()),
            first: self.start,
            end: self.end,
        }
    }
}

/// Bytes that the other host cannot read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Where.
    pub place: Differs,
    /// What it says of the first of them.
    pub why: String,
}

/// Sorts ranges and joins those that touch.
pub(super) fn join(ranges: &mut Vec<Differs>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let touches = next.volume == last.volume && next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
}

/// What of a range is in none of the others, which rise.
pub(super) fn without(whole: Differs, less: &[Differs]) -> Vec<Differs> {
    let mut out = Vec::new();
    let mut at = whole.start;
    for cut in less.iter().filter(|d| d.volume == whole.volume) {
        if cut.start > at && at < whole.end {
            let end = cut.start.min(whole.end);
            out.push(Differs {
                start: at,
                end,
                ..whole
            });
        }
        at = at.max(cut.end);
    }
    if at < whole.end {
        out.push(Differs { start: at, ..whole });
    }
    out
}

/// Bytes of ranges.
pub(super) fn bytes(ranges: &[Differs]) -> u64 {
    ranges.iter().map(Differs::len).sum()
}

/// Why a pass was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By somebody.
    #[default]
    Operator,
    /// It was time.
    Schedule,
    /// All copies of a first sync or resync had ended.
    CatchUp,
}

/// Regions chosen at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub count: u64,
    pub seed: u64,
}

/// A pass that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// Its number on this host.
    pub number: u64,
    /// Why.
    pub cause: Cause,
    /// By whom.
    pub by: String,
    /// Whether what differs is copied again.
    pub repair: bool,
    pub(super) sample: Option<Sample>,
    /// The term at which it was begun.
    pub(super) term: u64,
    /// When, in nanoseconds of Unix time.
    pub(super) since: u64,
    /// The next stretch.
    pub(super) next: u64,
    /// Bytes compared so far.
    pub compared: u64,
    /// Bytes of all volumes when it was begun.
    #[serde(default)]
    pub(super) bytes: u64,
    /// Ranges found so far.
    pub(super) found: u64,
    /// Bytes found that are not listed.
    pub(super) unlisted: u64,
    /// What was copied again and is equal now.
    pub(super) repaired: Vec<Differs>,
}

impl Pass {
    /// When it was begun, in nanoseconds of Unix time.
    #[must_use]
    pub const fn since(&self) -> u64 {
        self.since
    }
}

/// A pass that has come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its number on this host.
    pub number: u64,
    /// When it was begun, in nanoseconds of Unix time.
    pub since: u64,
    /// When it ended.
    pub at: u64,
    /// Bytes compared.
    pub compared: u64,
    /// Regions, if they were chosen at random.
    pub sample: Option<u64>,
    /// The container that was open at its end.
    pub lfc: u64,
    /// Ranges that it found.
    pub found: u64,
    /// What differed and is equal now.
    pub repaired: Vec<Differs>,
    /// Why it could not go on.
    pub failure: Option<String>,
    /// Whether it was cancelled.
    pub cancelled: bool,
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// Number of the newest pass.
    pub number: u64,
    pub pass: Option<Pass>,
    /// The last pass that compared all that it was to compare.
    pub last: Option<Ended>,
    /// When a pass over everything last ended, however it did.
    pub full_at: u64,
    /// What is known to differ.
    pub known: Vec<Differs>,
    /// Of those, what the other host could not read; at most as many.
    pub unread: Vec<Unread>,
    /// Bytes known to differ that are not listed.
    pub unlisted: u64,
}

/// What is to be seen of it.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The pass that is under way.
    pub pass: Option<Pass>,
    /// Bytes that it compares in all.
    pub total: u64,
    /// Bytes a second since it was begun, or gone on with.
    pub rate: Option<f64>,
    /// What it waits for.
    pub waits: Option<String>,
    /// The last one that came to its end.
    pub last: Option<Ended>,
    /// What is known to differ,
    pub known: Vec<Differs>,
    /// what of it the other host could not read,
    pub unread: Vec<Unread>,
    /// and bytes beside that list.
    pub unlisted: u64,
}

impl Live {
    /// Bytes that are known to differ.
    #[must_use]
    pub fn differing_bytes(&self) -> u64 {
        bytes(&self.known) + self.unlisted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differs(volume: u16, start: u64, end: u64) -> Differs {
        Differs { volume, start, end }
    }

    #[test]
    fn what_is_left_of_a_range() {
        let still = [differs(0, 4, 8), differs(1, 0, 100), differs(1, 110, 120)];
        assert_eq!(without(differs(0, 0, 4), &still), [differs(0, 0, 4)]);
        assert_eq!(without(differs(0, 4, 8), &still), []);
        assert_eq!(
            without(differs(1, 90, 130), &still),
            [differs(1, 100, 110), differs(1, 120, 130)]
        );
        let mut all = vec![
            differs(0, 8, 12),
            differs(1, 0, 4),
            differs(0, 4, 8),
            differs(0, 0, 2),
        ];
        join(&mut all);
        assert_eq!(all, [differs(0, 0, 2), differs(0, 4, 12), differs(1, 0, 4)]);
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let mut kept = Kept {
            number: 3,
            known: vec![differs(1, 4096, 8192)],
            ..Kept::default()
        };
        kept.last = Some(Ended {
            failure: Some("no".into()),
            ..Ended::default()
        });
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
        // A later version may keep more.
        assert_eq!(
            serde_json::from_str::<Kept>(r#"{"number":3,"more":1}"#)
                .unwrap()
                .number,
            3
        );
    }
}
