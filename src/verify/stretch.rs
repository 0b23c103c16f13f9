//! What a pass compares, stretch by stretch, and how fast.

use super::state::Sample;
use crate::context::Context;
use model::{ByteRange, VolumeIndex};
use rand::{SeedableRng as _, rngs::StdRng, seq::index};
use std::time::{Duration, Instant};

/// Bytes of a stretch of a pass over everything.
pub(super) const STRETCH: u64 = 4 << 20;
/// Bytes of a region that is chosen at random.
const REGION: u64 = 1 << 20;

/// A sample of all there is is no sample.
pub(super) fn smaller(context: &Context, sample: Option<u64>) -> Option<u64> {
    sample.filter(|count| *count < regions(context))
}

/// Regions of all volumes.
fn regions(context: &Context) -> u64 {
    let of_volume = |(index, _)| context.volume_size(index).div_ceil(REGION);
    context.config.indexed().map(of_volume).sum()
}

/// The stretches of a pass, in order.
pub(super) fn stretches(context: &Context, sample: Option<Sample>) -> Vec<(VolumeIndex, ByteRange)> {
    let step = if sample.is_some() { REGION } else { STRETCH };
    let mut all = Vec::new();
    for (index, _) in context.config.indexed() {
        let size = context.volume_size(index);
        let starts = (0..size.div_ceil(step)).map(|n| n * step);
        all.extend(starts.map(|start| {
            let end = (start + step).min(size);
            (index, ByteRange { start, end })
        }));
    }
    let Some(sample) = sample else { return all };
    let count = usize::try_from(sample.count).unwrap_or(usize::MAX).min(all.len());
    let mut rng = StdRng::seed_from_u64(sample.seed);
    let mut chosen = index::sample(&mut rng, all.len(), count).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|n| all[n]).collect()
}

/// Keeps to so many bytes a second.
pub(super) struct Pace {
    rate: u64,
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub fn new(rate: u64) -> Self {
        Self {
            rate,
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// How long to rest after so many more bytes. Time that was lost by waiting is not made up for.
    pub fn spent(&mut self, bytes: u64) -> Duration {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
        let rest = due.saturating_sub(self.since.elapsed());
        if rest.is_zero() {
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        rest
    }
}
