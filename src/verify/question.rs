//! What production asks and the recovery host answers, as bytes (`docs/formats/wire.md`, request kind 28).

use bytes::{BufMut, Bytes};
use journal::Digest;
use model::{BLOCK_SIZE, ByteRange, ContextId, GenId, VolumeIndex, WriteSeq};

/// Most pieces of one question.
pub(super) const PIECES_MAX: usize = 4096;
/// Most bytes that one question is about.
const BYTES_MAX: u64 = 16 << 20;
/// Most bytes of a piece.
const PIECE_MAX: u32 = 1 << 20;

/// Pieces of a volume as of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub context: ContextId,
    pub generation: GenId,
    pub seq: WriteSeq,
    pub volume: VolumeIndex,
    /// Bytes of a piece; the volume's last one may be shorter.
    pub piece: u32,
    /// First piece, counted from the volume's beginning, and how many: rising, not touching each other.
    pub runs: Vec<(u64, u32)>,
    /// blake3 of each piece, in order.
    pub digests: Vec<Digest>,
}

/// What the recovery host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has compared, and these pieces, by their place among the digests, differ; rising.
    Differ(Vec<u32>),
    /// It cannot show that position now; it can be asked again.
    NotNow(String),
    /// It cannot compare: what it needs of its journal cannot be read.
    Unreadable(String),
    /// It has compared what it can read.
    Partly {
        /// Pieces that differ, as above.
        differ: Vec<u32>,
        /// Pieces that its volume cannot give; rising, none of them in `differ`.
        unreadable: Vec<Unreadable>,
    },
}

/// Some pieces in a row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The first, by its place among the digests.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// The failure of the first.
    pub why: String,
}

impl Unreadable {
    /// Their places.
    pub const fn pieces(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.count
    }
}

/// Most bytes of a failure's text.
const WHY_MAX: usize = 200;

impl Question {
    /// The runs as bytes of a volume of so many bytes; the last one may be cut by the volume's end.
    pub fn ranges(&self, size: u64) -> Vec<ByteRange> {
        let piece = u64::from(self.piece);
        let range = |(first, count): &(u64, u32)| ByteRange {
            start: first * piece,
            end: ((first + u64::from(*count)) * piece).min(size),
        };
        self.runs.iter().map(range).collect()
    }

    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(28 + self.runs.len() * 12 + self.digests.len() * 32);
        out.put_u32_le(self.context.0);
        out.put_u64_le(self.generation.0);
        out.put_u64_le(self.seq.0);
        out.put_u16_le(self.volume.0);
        out.put_u32_le(self.piece);
        out.put_u16_le(u16::try_from(self.runs.len()).unwrap_or(u16::MAX));
        for (first, count) in &self.runs {
            out.put_u64_le(*first);
            out.put_u32_le(*count);
        }
        self.digests.iter().for_each(|d| out.extend_from_slice(d));
        out.into()
    }

    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut at = Reader(body);
        let mut question = Self {
            context: ContextId(at.u32()?),
            generation: GenId(at.u64()?),
            seq: WriteSeq(at.u64()?),
            volume: VolumeIndex(at.u16()?),
            piece: at.u32()?,
            runs: Vec::new(),
            digests: Vec::new(),
        };
        let whole = question.piece > 0 && u64::from(question.piece).is_multiple_of(BLOCK_SIZE);
        if !whole || question.piece > PIECE_MAX {
            return None;
        }
        let (runs, mut pieces, mut end) = (at.u16()?, 0u64, 0u64);
        for n in 0..runs {
            let (first, count) = (at.u64()?, at.u32()?);
            pieces += u64::from(count);
            // Below 2^43, so that no byte of it is past 2^63.
            let fits = count > 0 && first < 1 << 43 && (n == 0 || first > end);
            if !fits || pieces > PIECES_MAX as u64 || pieces * u64::from(question.piece) > BYTES_MAX {
                return None;
            }
            end = first + u64::from(count);
            question.runs.push((first, count));
        }
        for _ in 0..pieces {
            question.digests.push(at.digest()?);
        }
        (pieces > 0 && at.0.is_empty()).then_some(question)
    }
}

impl Answer {
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Differ(pieces) => {
                out.put_u8(0);
                out.put_u32_le(u32::try_from(pieces.len()).unwrap_or(u32::MAX));
                pieces.iter().for_each(|n| out.put_u32_le(*n));
            }
            Self::NotNow(why) => {
                out.put_u8(1);
                out.extend_from_slice(why.as_bytes());
            }
            Self::Unreadable(why) => {
                out.put_u8(2);
                out.extend_from_slice(why.as_bytes());
            }
            Self::Partly { differ, unreadable } => {
                out.put_u8(3);
                out.put_u32_le(u32::try_from(differ.len()).unwrap_or(u32::MAX));
                differ.iter().for_each(|n| out.put_u32_le(*n));
                out.put_u32_le(u32::try_from(unreadable.len()).unwrap_or(u32::MAX));
                for run in unreadable {
                    out.put_u32_le(run.first);
                    out.put_u32_le(run.count);
                    let why = &run.why[..run.why.floor_char_boundary(WHY_MAX)];
                    out.put_u8(u8::try_from(why.len()).unwrap_or(0));
                    out.extend_from_slice(why.as_bytes());
                }
            }
        }
        out.into()
    }

    /// Reads an answer to a question about so many pieces.
    pub fn decode(body: &[u8], asked: usize) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        let text = || String::from_utf8_lossy(rest).into_owned();
        match kind {
            0 => {
                let mut at = Reader(rest);
                let pieces = at.pieces(asked)?;
                at.0.is_empty().then_some(Self::Differ(pieces))
            }
            3 => {
                let mut at = Reader(rest);
                let differ = at.pieces(asked)?;
                let unreadable = at.unreadable(asked)?;
                let twice = |n: &u32| unreadable.iter().any(|run| run.pieces().contains(n));
                (at.0.is_empty() && !differ.iter().any(twice)).then_some(Self::Partly { differ, unreadable })
            }
            1 => Some(Self::NotNow(text())),
            2 => Some(Self::Unreadable(text())),
            _ => None,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Places among so many pieces, which rise.
    fn pieces(&mut self, asked: usize) -> Option<Vec<u32>> {
        let count = self.u32()? as usize;
        if count > asked {
            return None;
        }
        let pieces = (0..count).map(|_| self.u32()).collect::<Option<Vec<_>>>()?;
        let rises = pieces.windows(2).all(|w| w[0] < w[1]);
        let inside = pieces.last().is_none_or(|last| (*last as usize) < asked);
        (rises && inside).then_some(pieces)
    }

    /// Runs of them.
    fn unreadable(&mut self, asked: usize) -> Option<Vec<Unreadable>> {
        let runs = self.u32()? as usize;
        if runs > asked {
            return None;
        }
        let (mut all, mut end) = (Vec::new(), 0);
        for _ in 0..runs {
            let (first, count) = (self.u32()?, self.u32()?);
            let behind = first.checked_add(count)?;
            if count == 0 || first < end || behind as usize > asked {
                return None;
            }
            end = behind;
            let [len] = self.take::<1>()?;
            let (why, rest) = self.0.split_at_checked(len.into())?;
            self.0 = rest;
            let why = std::str::from_utf8(why).ok()?.to_owned();
            all.push(Unreadable { first, count, why });
        }
        Some(all)
    }

    fn digest(&mut self) -> Option<Digest> {
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::fmt::Write as _;

    fn question() -> Question {
        Question {
            context: ContextId(1),
            generation: GenId(0x1122_3344_5566_7788),
            seq: WriteSeq(70_250),
            volume: VolumeIndex(1),
            piece: 32 << 10,
            runs: vec![(4, 2), (7, 1)],
            digests: vec![[0xaa; 32], [0xbb; 32], [0xcc; 32]],
        }
    }

    fn answers() -> [Answer; 5] {
        [
            Answer::Differ(vec![]),
            Answer::Differ(vec![0, 2]),
            Answer::NotNow("the replica is rolled back".into()),
            Answer::Unreadable("undo 7, volume 0, block 2: its checksum is wrong".into()),
            Answer::Partly {
                differ: vec![0],
                unreadable: vec![Unreadable {
                    first: 1,
                    count: 2,
                    why: "volume data: read at 8192: input/output error".into(),
                }],
            },
        ]
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let mut text = String::new();
        let mut line = |what: &str, bytes: &[u8]| {
            write!(text, "{what} ").unwrap();
            bytes.iter().for_each(|b| write!(text, "{b:02x}").unwrap());
            text.push('\n');
        };
        line("question", &question().encode());
        for answer in answers() {
            line("answer", &answer.encode());
        }
        testkit::golden::check_text("wire/compare.txt", &text);
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let bytes = question().encode();
        assert_eq!(Question::decode(&bytes), Some(question()));
        assert_eq!(
            question().ranges(240 << 10),
            [
                ByteRange::at(128 << 10, 64 << 10),
                ByteRange::at(224 << 10, 16 << 10)
            ]
        );
        for cut in 0..bytes.len() {
            assert_eq!(Question::decode(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(Question::decode(&[&bytes[..], &[0]].concat()), None);
        let bad = |change: &dyn Fn(&mut Question)| {
            let mut bad = question();
            change(&mut bad);
            assert_eq!(Question::decode(&bad.encode()), None, "{bad:?}");
        };
        bad(&|q| q.piece = 0);
        bad(&|q| q.piece = 1000);
        bad(&|q| q.piece = 2 << 20);
        bad(&|q| q.runs = vec![]);
        bad(&|q| q.runs = vec![(4, 2), (6, 1)]);
        bad(&|q| q.runs = vec![(7, 1), (4, 2)]);
        bad(&|q| q.runs = vec![(1 << 43, 3)]);
        bad(&|q| q.runs = vec![(4, u32::MAX)]);
        for answer in answers() {
            let bytes = answer.encode();
            assert_eq!(Answer::decode(&bytes, 3), Some(answer));
        }
        for bad in [vec![2, 0], vec![1, 1], vec![3], vec![0, 1, 2, 2]] {
            assert_eq!(
                Answer::decode(&Answer::Differ(bad.clone()).encode(), 3),
                None,
                "{bad:?}"
            );
        }
        let partly = |differ: &[u32], runs: &[(u32, u32)]| Answer::Partly {
            differ: differ.to_vec(),
            unreadable: runs
                .iter()
                .map(|(first, count)| Unreadable {
                    first: *first,
                    count: *count,
                    why: "wüst".repeat(100),
                })
                .collect(),
        };
        let cut = Answer::decode(&partly(&[], &[(0, 1)]).encode(), 1).unwrap();
        assert!(
            matches!(&cut, Answer::Partly { unreadable, .. } if unreadable[0].why.len() <= WHY_MAX),
            "{cut:?}"
        );
        for bad in [
            partly(&[1], &[(0, 2)]),
            partly(&[], &[(1, 0)]),
            partly(&[], &[(2, 2)]),
            partly(&[], &[(1, 1), (0, 1)]),
            partly(&[], &[(u32::MAX, 2)]),
        ] {
            assert_eq!(Answer::decode(&bad.encode(), 3), None, "{bad:?}");
        }
        let whole = answers()[4].encode();
        for cut in 0..whole.len() {
            assert_eq!(Answer::decode(&whole[..cut], 3), None, "{cut}");
        }
        assert_eq!(Answer::decode(&[], 3), None);
        assert_eq!(Answer::decode(&[9], 3), None);
        assert_eq!(Answer::decode(&[0, 255, 255, 255, 255], 3), None);
    }

    #[test]
    fn noise_is_no_question_and_harms_nobody() {
        testkit::with_seeds("verify question", 2000, |rng| {
            let mut bytes = question().encode().to_vec();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            if let Some(read) = Question::decode(&bytes) {
                assert_eq!(read.encode(), bytes);
            }
            let _ = Answer::decode(&bytes, 3);
        });
    }
}
