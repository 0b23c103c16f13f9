//! States that no crash may leave, because what a flush had made durable is not there: the check must find them.
//!
//! A check that cannot fail is no check. These are the states that a replica with a wrong order, a lost record or a mixture of two
//! times would show.

use crate::{
    Loaded,
    filesystem::{Stand, Wrong},
    history::{History, Survivors, blocks_of},
    image::Image,
    loader::Promise,
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::{fmt, fs::File, path::Path};
use testkit::proc::Scratch;

/// A way to drop what a flush had made durable.
#[derive(Clone, Copy, Debug)]
pub enum Illegal {
    /// Half of the blocks of some last flushes, whichever: a disk that ignores flushes. Half of them right behind the unmount.
    Ignored,
    /// All since an operation began that was synced in the end: a volume of an earlier time.
    Behind,
    /// One block that was written shortly before a flush. Many are of no consequence.
    Block,
}

/// All of them.
pub const ILLEGAL: [Illegal; 3] = [Illegal::Ignored, Illegal::Behind, Illegal::Block];

/// How often such a state was found, and by what.
#[derive(Default)]
pub struct Bites {
    /// How many were looked at.
    pub tried: usize,
    /// By the mount.
    pub mount: usize,
    /// By something synced that is not there.
    pub promise: usize,
    /// By the checker.
    pub check: usize,
}

impl Bites {
    /// How many were found.
    pub fn found(&self) -> usize {
        self.mount + self.promise + self.check
    }
}

impl fmt::Display for Bites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tried,
            mount,
            promise,
            check,
        } = self;
        let found = self.found();
        write!(
            f,
            "{found} of {tried} found ({mount} do not mount, {promise} lack what was synced, {check} by the checker)"
        )
    }
}

/// Drops what a flush had made durable, so often in each way, and looks how often the same check finds it.
pub fn bites(
    scratch: &Scratch,
    memory: &Path,
    loaded: &Loaded,
    count: usize,
    rng: &mut StdRng,
) -> Vec<(Illegal, Bites)> {
    let Loaded {
        kind,
        history,
        promises,
    } = loaded;
    let mut stand = Stand::new(scratch, memory, *kind, kind.stands);
    let bites = ILLEGAL.map(|way| {
        // What had been promised at so many changes must be there.
        let mut states: Vec<(usize, Survivors)> = (0..count)
            .map(|_| match way {
                Illegal::Ignored => ignored(history, rng),
                Illegal::Behind => behind(history, promises, rng),
                Illegal::Block => lost_block(history, rng),
            })
            .collect();
        states.sort_by_key(|(_, left)| left.whole);
        let (mut image, mut bites) = (Image::new(kind.size), Bites::default());
        for (upto, left) in &states {
            image.advance(history, left.whole);
            bites.tried += 1;
            let write = |file: &File| image.write(history, left, file);
            match stand.check(write, promises.iter().filter(|p| p.holds_at_count(*upto))) {
                Ok(_) => {}
                Err(Wrong::Mount(_)) => bites.mount += 1,
                Err(Wrong::Promise(_)) => bites.promise += 1,
                Err(Wrong::Check(_)) => bites.check += 1,
            }
        }
        (way, bites)
    });
    bites.into()
}

fn ignored(history: &History, rng: &mut StdRng) -> (usize, Survivors) {
    let points = &history.points;
    let last = points.len() - 1;
    let at = if rng.random() {
        last
    } else {
        rng.random_range(last / 2..last)
    };
    let (whole, upto) = (points[rng.random_range(0..at - at / 8)], points[at]);
    let blocks = |n: usize| {
        blocks_of(history.changes[n].range)
            .map(|_| rng.random())
            .collect()
    };
    let more = (whole..upto).zip((whole..upto).map(blocks).map(Some)).collect();
    (upto, Survivors { whole, more })
}

fn behind(history: &History, promises: &[Promise], rng: &mut StdRng) -> (usize, Survivors) {
    let points = &history.points;
    let behind_one = |p: &&Promise| points[0] <= p.begun().count;
    let made: Vec<&Promise> = promises.iter().filter(behind_one).collect();
    let promise = made
        .choose(rng)
        .expect("most promises are made behind the first point");
    let before = points.partition_point(|n| *n <= promise.begun().count);
    (promise.from().count, Survivors::prefix(points[before - 1]))
}

fn lost_block(history: &History, rng: &mut StdRng) -> (usize, Survivors) {
    let at = rng.random_range(3..history.points.len());
    let (whole, upto) = (history.points[at - 3], history.points[at]);
    let victim = rng.random_range(whole..upto);
    let blocks = blocks_of(history.changes[victim].range).count();
    let gone = rng.random_range(0..blocks);
    let kept = |n: usize| (n == victim).then(|| (0..blocks).map(|b| b != gone).collect());
    let more = (whole..upto).map(|n| (n, kept(n))).collect();
    (upto, Survivors { whole, more })
}
