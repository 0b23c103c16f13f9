//! The product's own answer at the points: its views are the replayed images, byte for byte, and its mounts keep what was promised.

use crate::{
    Loaded,
    common::{Pair, REC},
    image::Image,
};
use model::{BLOCK_SIZE, ByteRange, WriteSeq};
use rand::{Rng, rngs::StdRng};
use std::path::Path;
use testkit::nbd::Client;

/// Most bytes of one read.
const READ_BYTES: u64 = 1 << 20;

/// What was compared.
#[derive(Default)]
pub struct Compared {
    /// Views in what was written shortly before and shortly behind their point.
    pub near: usize,
    /// Views in every byte.
    pub whole: usize,
    /// Times that a view was seen to differ from the next point.
    pub differ: usize,
}

/// Compares the view at every flush point with the image: every `whole`-th in every byte, all others in each block that was
/// written between the point before and the point behind. So that this would find a wrong view, each view is also compared
/// with the image of the next point.
pub fn compare(pair: &Pair, loaded: &Loaded, whole: usize) -> Compared {
    let Loaded { kind, history, .. } = loaded;
    let (mut image, mut compared) = (Image::new(kind.size), Compared::default());
    let mut before: Option<Client> = None;
    let all = ByteRange::at(0, kind.size);
    for (n, &count) in history.points.iter().enumerate() {
        image.advance(history, count);
        let seq = history.seq(count);
        let mut view = pair.open(REC, &format!("c1/{}@seq:{seq}", kind.name));
        assert_eq!(view.size(), kind.size);
        let from = n.checked_sub(1).map_or(0, |n| history.points[n]);
        let to = history
            .points
            .get(n + 1)
            .copied()
            .unwrap_or(history.changes.len());
        let near = runs(&history.blocks(from..to));
        let differs = if n % whole == 0 {
            compared.whole += 1;
            first_difference(&mut view, &image, &[all])
        } else {
            compared.near += 1;
            first_difference(&mut view, &image, &near)
        };
        assert_eq!(
            differs, None,
            "{}: the view at record {seq}, first wrong byte",
            kind.name
        );
        if let Some(before) = &mut before {
            let written = runs(&history.blocks(from..count));
            compared.differ += usize::from(first_difference(before, &image, &written).is_some());
        }
        before = Some(view);
    }
    compared
}

/// Runs of blocks as ranges that one read takes.
fn runs(blocks: &[u64]) -> Vec<ByteRange> {
    let runs = blocks.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| ByteRange::at(run[0] * BLOCK_SIZE, run.len() as u64 * BLOCK_SIZE))
        .collect()
}

fn first_difference(view: &mut Client, image: &Image, ranges: &[ByteRange]) -> Option<u64> {
    for range in ranges {
        for start in (range.start..range.end).step_by(READ_BYTES as usize) {
            let part = ByteRange {
                start,
                end: range.end.min(start + READ_BYTES),
            };
            let read = view.read(part.start, part.len()).unwrap();
            let expected = image.bytes(part);
            if read != expected {
                let at = read.iter().zip(expected).position(|(a, b)| a != b);
                return Some(start + at.expect("they differ") as u64);
            }
        }
    }
    None
}

/// Takes snapshots at flush points of any volume and mounts them, with a full check, as an operator does. All volumes are there as
/// of the same record: what was promised on each of them is looked for. Answers how much of it was found.
pub fn mounted(pair: &Pair, all: &[Loaded], count: usize, rng: &mut StdRng) -> usize {
    // Before, there is no file system yet on one of the volumes.
    let first = all.iter().map(|l| l.history.seq(l.history.points[0])).max();
    let first = first.expect("there are volumes");
    let of_one = |l: &Loaded| {
        l.history
            .points
            .iter()
            .map(|&n| l.history.seq(n))
            .collect::<Vec<_>>()
    };
    let points: Vec<WriteSeq> = all.iter().flat_map(of_one).filter(|seq| *seq >= first).collect();
    let mut kept = 0;
    for n in 0..count {
        let seq = points[rng.random_range(0..points.len())];
        kept += mounted_at(pair, all, seq, &pair.scratch.folder(&format!("at/{n}")));
    }
    kept
}

fn mounted_at(pair: &Pair, all: &[Loaded], seq: WriteSeq, at: &Path) -> usize {
    let made = pair.json(REC, &["scrt_ra", "-C", "1", "-q", "--at", &format!("seq:{seq}")]);
    let level = made["reply"]["snapshot"]["level"].to_string();
    assert!(level != "null", "{made}");
    let at_dir = at.to_str().unwrap();
    let mount = ["rtmnt", "-C", "1", "-f", "--level", &level, "--at-dir", at_dir];
    pair.cli(REC, &mount).ok();
    let mut kept = 0;
    for Loaded {
        kind,
        history,
        promises,
    } in all
    {
        let upto = history.count_at(seq);
        for promise in promises.iter().filter(|p| p.holds_at_count(upto)) {
            let checked = promise.check(&at.join(kind.name));
            checked.unwrap_or_else(|e| panic!("{} mounted at record {seq}: {e}", kind.name));
            kept += 1;
        }
    }
    pair.cli(REC, &["rtumnt", "-C", "1"]).ok();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W"]).ok();
    kept
}
