//! Newest-wins map from byte ranges of one volume to payloads.

use crate::{ByteRange, Payload, WriteSeq};
use std::collections::BTreeMap;

/// The part of a payload that a piece owns.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    end: u64,
    seq: WriteSeq,
    payload: Payload,
}

/// Disjoint pieces of one volume, each owned by the newest record put there. Adjacent pieces are never merged.
#[derive(Clone, Debug, Default)]
pub struct RangeMap {
    pieces: BTreeMap<u64, Owned>,
}

/// One piece, clipped to what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes.
    pub range: ByteRange,
    /// The record that owns it.
    pub seq: WriteSeq,
    /// What the bytes are; data has exactly `range.len()` bytes.
    pub payload: Payload,
}

/// `payload`, which describes `whole`, narrowed to `part`.
fn narrow(payload: &Payload, whole: ByteRange, part: ByteRange) -> Payload {
    match payload {
        Payload::Zero => Payload::Zero,
        Payload::Data(data) => {
            let index = |at: u64| usize::try_from(at - whole.start).expect("a payload fits in memory");
            Payload::Data(data.slice(index(part.start)..index(part.end)))
        }
    }
}

impl RangeMap {
    /// Whether the map has no piece.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Puts `payload` over whatever was in `range`.
    pub fn insert(&mut self, range: ByteRange, seq: WriteSeq, payload: Payload) {
        if range.is_empty() {
            return;
        }
        self.cut(range, |_| true);
        self.pieces.insert(
            range.start,
            Owned {
                end: range.end,
                seq,
                payload,
            },
        );
    }

    /// Takes out of `range` whatever records `<= upto` own; newer records keep their bytes.
    pub fn release(&mut self, range: ByteRange, upto: WriteSeq) {
        self.cut(range, |seq| seq <= upto);
    }

    fn cut(&mut self, range: ByteRange, goes: impl Fn(WriteSeq) -> bool) {
        let starts: Vec<u64> = self
            .overlapping(range)
            .filter(|(_, owned)| goes(owned.seq))
            .map(|(start, _)| start)
            .collect();
        for start in starts {
            let Some(owned) = self.pieces.remove(&start) else {
                continue;
            };
            let whole = ByteRange {
                start,
                end: owned.end,
            };
            for rest in [
                ByteRange {
                    start,
                    end: range.start.min(owned.end),
                },
                ByteRange {
                    start: range.end.max(start),
                    end: owned.end,
                },
            ] {
                if !rest.is_empty() {
                    let payload = narrow(&owned.payload, whole, rest);
                    self.pieces.insert(
                        rest.start,
                        Owned {
                            end: rest.end,
                            seq: owned.seq,
                            payload,
                        },
                    );
                }
            }
        }
    }

    fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = (u64, &Owned)> {
        let first = self
            .pieces
            .range(..=range.start)
            .next_back()
            .filter(|(_, owned)| owned.end > range.start)
            .map_or(range.start, |(start, _)| *start);
        self.pieces
            .range(first..range.end.max(first))
            .map(|(start, owned)| (*start, owned))
    }

    /// Every piece of `range`, in order, clipped to it.
    #[must_use]
    pub fn lookup(&self, range: ByteRange) -> Vec<Piece> {
        self.overlapping(range)
            .filter_map(|(start, owned)| {
                let whole = ByteRange {
                    start,
                    end: owned.end,
                };
                let part = whole.intersect(range)?;
                Some(Piece {
                    range: part,
                    seq: owned.seq,
                    payload: narrow(&owned.payload, whole, part),
                })
            })
            .collect()
    }

    /// Every piece, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.pieces.iter().map(|(start, owned)| Piece {
            range: ByteRange {
                start: *start,
                end: owned.end,
            },
            seq: owned.seq,
            payload: owned.payload.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// Random inserts and releases against a byte-by-byte model.
    #[test]
    fn behaves_as_bytes_with_owners() {
        const LEN: usize = 64;
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..300 {
            let (mut map, mut bytes) = (RangeMap::default(), [None::<(u64, u8)>; LEN]);
            for seq in 1..30u64 {
                let start = random(LEN as u64);
                let range = ByteRange {
                    start,
                    end: start + random(LEN as u64 - start + 1),
                };
                let span = range.start as usize..range.end as usize;
                if random(4) == 0 {
                    let upto = random(seq + 1);
                    map.release(range, WriteSeq(upto));
                    bytes[span]
                        .iter_mut()
                        .filter(|b| b.is_some_and(|(s, _)| s <= upto))
                        .for_each(|b| *b = None);
                } else if random(3) == 0 {
                    map.insert(range, WriteSeq(seq), Payload::Zero);
                    bytes[span].fill(Some((seq, 0)));
                } else {
                    let data: Vec<u8> = span.clone().map(|_| random(255) as u8 + 1).collect();
                    map.insert(range, WriteSeq(seq), Payload::Data(Bytes::copy_from_slice(&data)));
                    span.zip(data).for_each(|(i, d)| bytes[i] = Some((seq, d)));
                }
                let start = random(LEN as u64);
                let asked = ByteRange {
                    start,
                    end: start + random(LEN as u64 - start + 1),
                };
                let mut seen = [None::<(u64, u8)>; LEN];
                for piece in map.lookup(asked) {
                    let mut out = vec![0; piece.range.len() as usize];
                    piece.payload.copy_to(0, &mut out);
                    for (i, b) in (piece.range.start as usize..).zip(out) {
                        assert!(seen[i].is_none(), "pieces overlap");
                        seen[i] = Some((piece.seq.0, b));
                    }
                }
                let asked = asked.start as usize..asked.end as usize;
                assert_eq!(seen[asked.clone()], bytes[asked]);
            }
        }
    }
}
