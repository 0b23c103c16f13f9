//! How far long work has come.

use std::time::{Duration, Instant};

/// How far a restore has come, for a bar with rate and remaining time.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Blocks that may differ.
    pub blocks_total: u64,
    /// Of these, looked at so far in this run or an earlier one.
    pub blocks_done: u64,
    /// Blocks that did differ and were overwritten in this run.
    pub blocks_changed: u64,
    /// Bytes written in this run.
    pub bytes_written: u64,
    began: Instant,
    skipped: u64,
}

impl Progress {
    /// At the beginning of a run that finds `blocks_done` of `blocks_total` already done.
    #[must_use]
    pub fn start(blocks_total: u64, blocks_done: u64) -> Self {
        Self {
            blocks_total,
            blocks_done,
            blocks_changed: 0,
            bytes_written: 0,
            began: Instant::now(),
            skipped: blocks_done,
        }
    }

    /// Time since this run began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Bytes looked at in a second, on average over this run.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let bytes = (self.blocks_done - self.skipped) * model::BLOCK_SIZE;
        bytes as f64 / self.elapsed().as_secs_f64().max(1e-9)
    }

    /// Time that the rest takes at this run's rate; `None` while the rate is unknown.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.blocks_total.saturating_sub(self.blocks_done) * model::BLOCK_SIZE;
        let seconds = left as f64 / self.rate();
        Duration::try_from_secs_f64(seconds).ok()
    }
}
