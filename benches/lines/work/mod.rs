//! The lines of the table: what each does and is compared with.

mod apps;
mod durable;
mod lag;
mod modes;
mod past;
mod reads;
mod replay;
mod start;
mod steady;
mod sync;
mod writes;

pub use past::Past;

use crate::{bench::Bench, outcome::Outcome};

/// A line of the table.
pub struct Line {
    pub number: u32,
    /// As in the table.
    pub work: &'static str,
    /// What exactly is done, for whoever reads the figures.
    pub does: &'static str,
    /// How it comes by its figures.
    pub run: fn(&Bench) -> Outcome,
    /// What bounds it, by a profile, where an aim was out of reach; else empty. Said beside the figures when one is missed.
    pub bound: &'static str,
}

/// In which order they run: what says most comes first, should the time not do for all.
pub const ORDER: [u32; 23] = [
    1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 16, 19, 17, 8, 20, 10, 18, 22, 23, 15, 21,
];

/// All of them, in that order.
pub fn lines() -> Vec<Line> {
    let mut all: Vec<Line> = [
        writes::lines(),
        durable::lines(),
        reads::lines(),
        lag::lines(),
        past::lines(),
        replay::lines(),
        sync::lines(),
        apps::lines(),
        steady::lines(),
        start::lines(),
        modes::lines(),
    ]
    .into_iter()
    .flatten()
    .collect();
    all.sort_by_key(|line| ORDER.iter().position(|n| *n == line.number));
    all
}
