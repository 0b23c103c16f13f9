//! Every state that a crash may leave, recovered and checked.

use crate::{
    Loaded,
    filesystem::Stand,
    history::{Crash, History, Survivors},
    image::Image,
    loader::Promise,
    recorder::Tick,
};
use rand::rngs::StdRng;
use std::{fmt, fs::File, panic, path::Path, thread};
use testkit::proc::Scratch;

/// A state, and when the crash was.
enum State {
    /// The power went right behind a flush, and the disk had written everything.
    Flushed,
    /// It went at this tick, and the disk had written what it liked.
    Crashed(Tick),
}

/// What was looked at.
#[derive(Default)]
pub struct Looked {
    /// Flush points.
    pub points: usize,
    /// Legal reorderings.
    pub reordered: usize,
    /// Blocks that the reorderings left out.
    pub lost: usize,
    /// Times that something synced was looked for and found.
    pub kept: usize,
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            points,
            reordered,
            lost,
            kept,
        } = self;
        write!(
            f,
            "{points} flush points and {reordered} reorderings without {lost} blocks recovered and clean, \
             {kept} times something synced was there"
        )
    }
}

/// Recovers and checks every flush point of a volume and so many reorderings.
pub fn every_point(
    scratch: &Scratch,
    memory: &Path,
    loaded: &Loaded,
    reorderings: usize,
    rng: &mut StdRng,
) -> Looked {
    let Loaded { kind, history, .. } = loaded;
    let mut looked = Looked::default();
    let flushed = |n: &usize| (State::Flushed, Survivors::prefix(*n));
    let mut states: Vec<(State, Survivors)> = history.points.iter().map(flushed).collect();
    looked.points = states.len();
    let drawn = (0..reorderings * 20).filter_map(|_| history.crash(rng));
    for Crash { tick, left, lost } in drawn.take(reorderings) {
        looked.lost += lost;
        states.push((State::Crashed(tick), left));
    }
    looked.reordered = states.len() - looked.points;
    states.sort_by_key(|(_, left)| left.whole);
    let parts = states.chunks(states.len().div_ceil(kind.stands));
    looked.kept = thread::scope(|scope| {
        let run = |(number, states)| {
            scope.spawn(move || {
                let mut stand = Stand::new(scratch, memory, *kind, number);
                in_order(scratch, &mut stand, loaded, states)
            })
        };
        let runs: Vec<_> = parts.enumerate().map(run).collect();
        let join =
            |t: thread::ScopedJoinHandle<'_, usize>| t.join().unwrap_or_else(|e| panic::resume_unwind(e));
        runs.into_iter().map(join).sum()
    });
    looked
}

/// Recovers and checks states in the order of the history. Answers how often something synced was there.
fn in_order(scratch: &Scratch, stand: &mut Stand, loaded: &Loaded, states: &[(State, Survivors)]) -> usize {
    let Loaded {
        kind,
        history,
        promises,
    } = loaded;
    let (mut image, mut kept) = (Image::new(kind.size), 0);
    for (state, left) in states {
        image.advance(history, left.whole);
        let holds = |p: &&Promise| match state {
            State::Flushed => p.holds_at_count(left.whole),
            State::Crashed(tick) => p.holds_at_tick(*tick),
        };
        let write = |file: &File| image.write(history, left, file);
        kept += stand
            .check(write, promises.iter().filter(holds))
            .unwrap_or_else(|wrong| {
                let name = scratch.join(format!("wrong.{}", kind.name));
                let file = File::create_new(&name).unwrap();
                file.set_len(kind.size).unwrap();
                write(&file);
                panic!(
                    "{}, {}: {wrong}\nBACKSTAY_KEEP=1 keeps the state: {}",
                    kind.name,
                    told(state, left, history),
                    name.display()
                )
            });
    }
    kept
}

fn told(state: &State, left: &Survivors, history: &History) -> String {
    let seq = history.seq(left.whole);
    match state {
        State::Flushed => format!("flush point at record {seq}"),
        State::Crashed(tick) => format!(
            "crash at tick {tick}: all up to record {seq}, and of the changes behind it {:?}",
            left.more
        ),
    }
}
