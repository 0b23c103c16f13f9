//! What a run of records does to the volumes: newest wins, byte-exact, in block order.

use bytes::{Bytes, BytesMut};
use model::{BlockNo, ByteRange, Payload, Piece, RangeMap, Record, VolumeIndex, WriteSeq};
use std::{collections::BTreeMap, iter};

/// Most bytes of one data run; keeps a single write, and the buffer it is put together in, small.
const RUN_BYTES_MAX: usize = 1 << 20;

/// One stretch of a volume and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The volume.
    pub volume: VolumeIndex,
    /// The bytes.
    pub range: ByteRange,
    /// What they become; data has exactly `range.len()` bytes.
    pub payload: Payload,
}

/// The final bytes that some records leave, by (volume, offset).
///
/// Records are added in the order of the line. What one record wrote and a later one wrote again is there once: a change
/// set is never larger than what its records touch.
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    volumes: BTreeMap<VolumeIndex, RangeMap>,
}

impl ChangeSet {
    /// No changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record's effect over those before it; records that change no bytes have none.
    pub fn add(&mut self, record: &Record) {
        if let (Some(range), Some(payload)) = (record.changed(), record.payload()) {
            self.put(record.volume, range, record.seq, payload);
        }
    }

    /// Puts `payload` over whatever was in `range`; data must have exactly `range.len()` bytes.
    pub fn put(&mut self, volume: VolumeIndex, range: ByteRange, seq: WriteSeq, payload: Payload) {
        if !range.is_empty() {
            self.volumes
                .entry(volume)
                .or_default()
                .insert(range, seq, payload);
        }
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    /// The volumes that change, in order.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeIndex> {
        self.volumes.keys().copied()
    }

    /// Bytes that change.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces().map(|(_, piece)| piece.range.len()).sum()
    }

    /// Every block that changes, wholly or in part, in (volume, block) order without repeats.
    pub fn blocks(&self) -> impl Iterator<Item = (VolumeIndex, BlockNo)> {
        let mut last = None;
        self.pieces()
            .flat_map(|(volume, piece)| piece.range.blocks().map(move |block| (volume, block)))
            .filter(move |key| last.replace(*key) != Some(*key))
    }

    /// The changes in (volume, offset) order, adjacent ones of the same kind put together.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.volumes
            .iter()
            .flat_map(|(volume, map)| coalesce(*volume, map.pieces()))
    }

    /// The changes as they were put, in (volume, offset) order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (VolumeIndex, Piece)> {
        self.volumes
            .iter()
            .flat_map(|(volume, map)| map.pieces().map(move |piece| (*volume, piece)))
    }
}

impl<'a> FromIterator<&'a Record> for ChangeSet {
    fn from_iter<I: IntoIterator<Item = &'a Record>>(records: I) -> Self {
        let mut changes = Self::new();
        changes.extend(records);
        changes
    }
}

impl<'a> Extend<&'a Record> for ChangeSet {
    fn extend<I: IntoIterator<Item = &'a Record>>(&mut self, records: I) {
        for record in records {
            self.add(record);
        }
    }
}

impl Extend<Record> for ChangeSet {
    fn extend<I: IntoIterator<Item = Record>>(&mut self, records: I) {
        for record in records {
            self.add(&record);
        }
    }
}

impl FromIterator<Record> for ChangeSet {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let mut changes = Self::new();
        changes.extend(records);
        changes
    }
}

fn coalesce(volume: VolumeIndex, pieces: impl Iterator<Item = Piece>) -> impl Iterator<Item = Run> {
    let mut pieces = pieces.peekable();
    iter::from_fn(move || {
        let Piece {
            mut range, payload, ..
        } = pieces.next()?;
        let payload = match payload {
            Payload::Zero => {
                while let Some(next) =
                    pieces.next_if(|p| p.range.start == range.end && p.payload == Payload::Zero)
                {
                    range.end = next.range.end;
                }
                Payload::Zero
            }
            Payload::Data(first) => {
                // A lone piece is passed on as it is; only neighbours are copied together.
                let mut whole = Whole::One(first);
                while let Some(Piece {
                    range: more,
                    payload: Payload::Data(data),
                    ..
                }) = pieces.next_if(|p| {
                    p.range.start == range.end
                        && matches!(&p.payload, Payload::Data(d) if whole.len() + d.len() <= RUN_BYTES_MAX)
                }) {
                    range.end = more.end;
                    whole = whole.join(&data);
                }
                Payload::Data(whole.freeze())
            }
        };
        Some(Run {
            volume,
            range,
            payload,
        })
    })
}

enum Whole {
    One(Bytes),
    Many(BytesMut),
}

impl Whole {
    fn len(&self) -> usize {
        match self {
            Self::One(b) => b.len(),
            Self::Many(b) => b.len(),
        }
    }

    fn join(self, data: &[u8]) -> Self {
        let mut many = match self {
            Self::One(b) => BytesMut::from(&b[..]),
            Self::Many(b) => b,
        };
        many.extend_from_slice(data);
        Self::Many(many)
    }

    fn freeze(self) -> Bytes {
        match self {
            Self::One(b) => b,
            Self::Many(b) => b.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(text: &'static [u8]) -> Payload {
        Payload::Data(Bytes::from_static(text))
    }

    #[test]
    fn newest_wins_and_neighbours_join() {
        let mut changes = ChangeSet::new();
        let mut put = |v, at, p: Payload, len| {
            changes.put(VolumeIndex(v), ByteRange::at(at, len), WriteSeq(1), p);
        };
        put(1, 10, data(b"old!"), 4);
        put(0, 4094, data(b"abcd"), 4);
        put(1, 12, data(b"new"), 3);
        put(0, 4098, Payload::Zero, 3);
        put(0, 4101, Payload::Zero, 8192);
        let runs: Vec<_> = changes
            .runs()
            .map(|r| (r.volume.0, r.range.start, r.range.end, r.payload))
            .collect();
        assert_eq!(
            runs,
            [
                (0, 4094, 4098, data(b"abcd")),
                (0, 4098, 12_293, Payload::Zero),
                (1, 10, 15, data(b"olnew")),
            ]
        );
        let blocks: Vec<_> = changes.blocks().map(|(v, b)| (v.0, b.0)).collect();
        assert_eq!(blocks, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]);
        assert_eq!(changes.bytes(), 4 + 3 + 8192 + 5);
    }

    #[test]
    fn data_runs_stay_bounded() {
        let mut changes = ChangeSet::new();
        for i in 0..5u64 {
            let piece = Bytes::from(vec![1; RUN_BYTES_MAX / 2]);
            let range = ByteRange::at(i * piece.len() as u64, piece.len() as u64);
            changes.put(VolumeIndex(0), range, WriteSeq(i), Payload::Data(piece));
        }
        assert_eq!(changes.runs().count(), 3);
    }
}
