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
    /// It cannot read what it should compare.
    Unreadable(String),
}

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
                let count = at.u32()? as usize;
                if count > asked || at.0.len() != count * 4 {
                    return None;
                }
                let pieces: Vec<u32> = (0..count).map_while(|_| at.u32()).collect();
                let rises = pieces.windows(2).all(|w| w[0] < w[1]);
                let inside = pieces.last().is_none_or(|last| (*last as usize) < asked);
                (rises && inside).then_some(Self::Differ(pieces))
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

    fn answers() -> [Answer; 4] {
        [
            Answer::Differ(vec![]),
            Answer::Differ(vec![0, 2]),
            Answer::NotNow("the replica is rolled back".into()),
            Answer::Unreadable("volume data: read at 8192: input/output error".into()),
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
