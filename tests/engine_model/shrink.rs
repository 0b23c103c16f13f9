//! Making a failing history short: operations are left out for as long as it still fails.

use super::{
    ops::Op,
    run::{self, Counts},
};
use std::panic::{self, AssertUnwindSafe};

/// Operations done at most in search of a shorter history.
const EFFORT: usize = 3_000_000;

/// Does a history. If it fails, a shorter one that fails is looked for, printed, and done for its message.
pub fn run(sizes: &[u64], history: &[Op], seed: u64) -> Counts {
    let fails = |part: &[Op]| panic::catch_unwind(AssertUnwindSafe(|| run::run(sizes, part, seed))).err();
    match panic::catch_unwind(AssertUnwindSafe(|| run::run(sizes, history, seed))) {
        Ok(counts) => counts,
        Err(_) => {
            eprintln!("engine model: that failed; looking for a shorter history, which fails many times");
            let hook = panic::take_hook();
            panic::set_hook(Box::new(|_| {}));
            let short = shorten(history, |part| fails(part).is_some());
            panic::set_hook(hook);
            eprintln!("engine model: of {} operations, these are enough:", history.len());
            short
                .iter()
                .for_each(|op| eprintln!("  {:?} {:#x}", op.kind, op.seed));
            run::run(sizes, &short, seed);
            unreachable!("the short history fails, too");
        }
    }
}

/// Leaves out halves, quarters and so on, down to single operations.
fn shorten(history: &[Op], mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let mut short = history.to_vec();
    let mut part = short.len() / 2;
    let mut effort = 0;
    while part > 0 && effort < EFFORT {
        let mut at = 0;
        let before = short.len();
        while at < short.len() && effort < EFFORT {
            let mut less = short.clone();
            less.drain(at..(at + part).min(short.len()));
            effort += less.len();
            if fails(&less) {
                short = less;
            } else {
                at += part;
            }
        }
        // Single operations are tried again for as long as that helps.
        if part > 1 || short.len() == before {
            part /= 2;
        }
    }
    short
}

#[test]
fn a_history_is_made_as_short_as_it_can_be() {
    use super::ops::Kind;
    let op = |n| Op {
        kind: Kind::Flush,
        seed: n,
    };
    let history: Vec<Op> = (0..1000).map(op).collect();
    let needs = |part: &[Op]| [7, 500, 998].iter().all(|n| part.contains(&op(*n)));
    assert_eq!(shorten(&history, needs), [op(7), op(500), op(998)]);
}
