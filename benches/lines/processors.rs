//! Whose the processors are while something runs: where they are all busy, whoever is slower waits for them.

use crate::{
    common::{PROD, REC},
    nodes::Nodes,
    outcome::Outcome,
    stats::Samples,
};
use std::{fs, time::Instant};

/// Clock ticks of a second, for user space on every Linux (`proc(5)`).
const TICKS: f64 = 100.0;

/// Seconds of processors that a process has taken.
pub fn of_process(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = [11, 12].map(|n: usize| fields[n].parse::<f64>().expect("a number"));
    ticks.iter().sum::<f64>() / TICKS
}

/// Seconds of processors that the machine has spent on anything.
fn of_machine() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("Linux has it");
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = all.map(|n| n.parse().expect("a number")).collect();
    // All but what is idle, waits for a disk, or is counted twice (guests).
    let busy = [0, 1, 2, 5, 6, 7].map(|n: usize| ticks[n]);
    busy.iter().sum::<f64>() / TICKS
}

/// How many processors were busy, run by run: of the machine, of production, of the recovery node.
#[derive(Debug, Default)]
pub struct Processors([Samples; 3]);

impl Processors {
    /// Runs something.
    pub fn during<T>(&mut self, nodes: &Nodes, run: impl FnOnce() -> T) -> T {
        let follows = if nodes.acting == PROD { REC } else { PROD };
        let look = || {
            [
                of_machine(),
                nodes.processor(nodes.acting),
                nodes.processor(follows),
            ]
        };
        let (before, began) = (look(), Instant::now());
        let done = run();
        let (after, seconds) = (look(), began.elapsed().as_secs_f64());
        for (samples, (before, after)) in self.0.iter_mut().zip(before.iter().zip(after)) {
            samples.0.push((after - before) / seconds);
        }
        done
    }

    /// Tells them behind the figures of `what` was run.
    pub fn tell(self, what: &str, out: &mut Outcome) {
        let count = std::thread::available_parallelism().map_or(0, usize::from);
        let names = [
            format!("{what}: busy of {count} processors"),
            "… by production".to_owned(),
            "… by the recovery node".to_owned(),
        ];
        let told = names.iter().zip(self.0);
        for (name, samples) in told.filter(|(_, samples)| samples.0.iter().any(|n| *n > 0.0)) {
            out.series(name, "processors", samples);
        }
    }
}
