//! Every boundary: at each point at which a file system's flush was answered, the volume as Backstay gives it is a file system that
//! recovers, that its own checker finds nothing wrong with, and that has whatever an application had synced by then.
//!
//! An ext4, an xfs and a btrfs, each on a volume of one context, under fio and a load of metadata (`loader.rs`), through `nbdfuse` and
//! a loop device. The idea is that of generic/482 of xfstests, which replays a dm-log-writes log to every FUA; here the journal is
//! the log.
//!
//! # How a point is known
//!
//! The journal does not keep flushes. A relay between `nbdfuse` and the production node notes the order of writes and flushes
//! (`recorder.rs`), and every request is found again in the journal of the recovery host: the same bytes, in the same order, nothing
//! left out and nothing more (`history.rs`). So a flush is a record's number, and a point is a snapshot at that record.
//!
//! # What is looked at
//!
//! - **The product's views** (`views.rs`). At every point the export `c1/VOLUME@seq:N` is compared with an image made of the records
//!   up to N: some in every byte, the others where something was written just before or just behind. So the images stand for
//!   the product, and are faster. Some points are snapshots that are mounted with all checks, as an operator does it.
//! - **Every point** (`states.rs`). The image is mounted, so that the kernel recovers its log; what was synced is looked for;
//!   unmounted; the checker must find nothing to mend.
//! - **Legal reorderings.** A disk may lose any blocks that were written since the last flush that was answered. At random
//!   moments a random part of them is left out, and the same is asked.
//! - **Illegal states** (`illegal.rs`). Where something that had been flushed is dropped, the same check must find it.
//!
//! # What it does not do
//!
//! A block is lost or there: 4 KiB are not torn, as a btrfs does not expect it of a disk. Nobody asks for FUA through a loop device; the
//! kernel flushes behind the write instead, and that flush is a point.
//!
//! `BACKSTAY_POINTS=10500` for so many flush points over the three; 240 unless told.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod filesystem;
mod history;
mod illegal;
mod image;
mod load;
mod loader;
mod recorder;
mod states;
mod views;

use common::{LONG, Pair, root_for};
use filesystem::Kind;
use history::History;
use loader::Promise;
use rand::{SeedableRng, rngs::StdRng};
use std::{process::Command, thread, time::Instant};
use testkit::{proc::run, with_seeds};

/// How many flush points there are to be, over all file systems.
fn points() -> usize {
    std::env::var("BACKSTAY_POINTS").map_or(240, |v| v.parse().unwrap())
}

/// How many of them are of this one.
fn points_of(kind: Kind) -> usize {
    (points() * kind.share).div_ceil(100)
}

/// A volume that has been under load.
pub struct Loaded {
    /// Its file system.
    pub kind: Kind,
    /// All that was written to it.
    pub history: History,
    /// What an application may rely on.
    pub promises: Vec<Promise>,
}

/// The same for every kind at once.
fn each<T: Sync, U: Send>(all: &[T], rng: &mut StdRng, work: impl Fn(&T, &mut StdRng) -> U + Sync) -> Vec<U> {
    thread::scope(|scope| {
        let one = |item| {
            let (work, mut rng) = (&work, StdRng::from_rng(&mut *rng));
            scope.spawn(move || work(item, &mut rng))
        };
        let all: Vec<_> = all.iter().map(one).collect();
        let join =
            |t: thread::ScopedJoinHandle<'_, U>| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        all.into_iter().map(join).collect()
    })
}

#[test]
fn every_flush_point_recovers_and_is_clean() {
    if !root_for("every_flush_point_recovers_and_is_clean") {
        return;
    }
    with_seeds("boundaries", 1, |rng| {
        let begun = Instant::now();
        let pair = load::pair();
        let all = load::loaded(&pair, rng);
        for Loaded {
            kind,
            history,
            promises,
        } in &all
        {
            println!(
                "{}: {} writes, {} flushes, {} points with something new, {} promises",
                kind.name,
                history.changes.len(),
                history.flushes(),
                history.points.len(),
                promises.len()
            );
            assert!(history.points.len() >= points_of(*kind));
        }
        println!("loaded: {:?}", begun.elapsed());
        compare_views(&pair, &all, rng);
        println!("compared: {:?}", begun.elapsed());
        let snapshots = 2 + points() / 600;
        let kept = views::mounted(&pair, &all, snapshots, rng);
        println!(
            "mounted: {:?}, {snapshots} snapshots, {kept} times something synced was there",
            begun.elapsed()
        );
        assert!(kept > 0);
        check_states(&pair, &all, rng);
        println!("checked: {:?}", begun.elapsed());
    });
}

fn compare_views(pair: &Pair, all: &[Loaded], rng: &mut StdRng) {
    let compared = each(all, rng, |loaded, _| views::compare(pair, loaded, 40));
    for (loaded, compared) in all.iter().zip(compared) {
        let views::Compared { near, whole, differ } = compared;
        println!(
            "{}: {whole} views equal in every byte, {near} in what was written around their point; {differ} differ from the next",
            loaded.kind.name
        );
        assert!(
            differ * 2 > near + whole,
            "views hardly differ from point to point"
        );
    }
}

fn check_states(pair: &Pair, all: &[Loaded], rng: &mut StdRng) {
    let memory = pair.scratch.folder("memory");
    run(
        Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&memory),
        LONG,
    )
    .ok();
    let looked = each(all, rng, |loaded, rng| {
        let reorderings = loaded.history.points.len().div_ceil(5);
        let looked = states::every_point(&pair.scratch, &memory, loaded, reorderings, rng);
        let bites = illegal::bites(&pair.scratch, &memory, loaded, 12 + points() / 300, rng);
        (looked, bites)
    });
    let mut by_checkers = 0;
    for (loaded, (looked, bites)) in all.iter().zip(&looked) {
        println!("{}: {looked}", loaded.kind.name);
        assert!(looked.kept > looked.points, "hardly anything was promised");
        for (way, bites) in bites {
            println!("{}: {way:?}: {bites}", loaded.kind.name);
            by_checkers += bites.check;
            // A block may be of no consequence, or be written again.
            let least = if matches!(way, illegal::Illegal::Block) {
                0
            } else {
                bites.tried / 2
            };
            assert!(
                bites.found() >= least,
                "what was durable was dropped, and hardly found"
            );
        }
    }
    assert!(by_checkers > 0, "no checker has found anything");
}
