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

/// The stretches of a pass, in order. They are counted and not listed: sparse volumes have hundreds of millions.
pub(super) struct Stretches {
    sizes: Vec<(VolumeIndex, u64)>,
    step: u64,
    /// Which of them, rising; `None`: all.
    chosen: Option<Vec<usize>>,
}

impl Stretches {
    /// Those of a context's volumes as they are now.
    pub fn of(context: &Context, sample: Option<Sample>) -> Self {
        let size = |(index, _)| (index, context.volume_size(index));
        Self::new(context.config.indexed().map(size).collect(), sample)
    }

    fn new(sizes: Vec<(VolumeIndex, u64)>, sample: Option<Sample>) -> Self {
        let step = if sample.is_some() { REGION } else { STRETCH };
        let mut stretches = Self {
            sizes,
            step,
            chosen: None,
        };
        if let Some(sample) = sample {
            let all = usize::try_from(stretches.count()).unwrap_or(usize::MAX);
            let count = usize::try_from(sample.count).unwrap_or(usize::MAX).min(all);
            let mut rng = StdRng::seed_from_u64(sample.seed);
            let mut chosen = index::sample(&mut rng, all, count).into_vec();
            chosen.sort_unstable();
            stretches.chosen = Some(chosen);
        }
        stretches
    }

    /// Bytes of the volumes that they are of: another sum, and they are others.
    pub fn volumes_bytes(&self) -> u64 {
        self.sizes.iter().map(|(_, size)| size).sum()
    }

    /// How many there are to choose from.
    fn count(&self) -> u64 {
        self.sizes.iter().map(|(_, size)| size.div_ceil(self.step)).sum()
    }

    /// The n-th.
    pub fn get(&self, n: u64) -> Option<(VolumeIndex, ByteRange)> {
        let mut left = match &self.chosen {
            Some(chosen) => *chosen.get(usize::try_from(n).ok()?)? as u64,
            None => n,
        };
        for (volume, size) in &self.sizes {
            let of_volume = size.div_ceil(self.step);
            if left < of_volume {
                let start = left * self.step;
                let end = (start + self.step).min(*size);
                return Some((*volume, ByteRange { start, end }));
            }
            left -= of_volume;
        }
        None
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        match &self.chosen {
            Some(chosen) => (0..chosen.len() as u64)
                .filter_map(|n| self.get(n))
                .map(|(_, range)| range.len())
                .sum(),
            None => self.volumes_bytes(),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_stretch_and_none_is_listed() {
        let sizes = vec![
            (VolumeIndex(0), (10 << 20) + 512),
            (VolumeIndex(1), 1),
            (VolumeIndex(2), 200 << 40),
        ];
        let all = Stretches::new(sizes.clone(), None);
        assert_eq!(all.bytes(), (10 << 20) + 512 + 1 + (200 << 40));
        assert_eq!(all.count(), 3 + 1 + (50 << 20));
        let at = |n| all.get(n).unwrap();
        assert_eq!(at(2), (VolumeIndex(0), ByteRange::at(8 << 20, (2 << 20) + 512)));
        assert_eq!(at(3), (VolumeIndex(1), ByteRange::at(0, 1)));
        assert_eq!(at(4), (VolumeIndex(2), ByteRange::at(0, STRETCH)));
        assert_eq!(at(all.count() - 1).1.end, 200 << 40);
        assert_eq!(all.get(all.count()), None);
        let sample = Some(Sample { count: 64, seed: 7 });
        let some = Stretches::new(sizes, sample);
        let chosen: Vec<_> = (0..).map_while(|n| some.get(n)).collect();
        assert_eq!(chosen.len(), 64);
        assert!(
            chosen
                .windows(2)
                .all(|two| two[0].1.end <= two[1].1.start || two[0].0 < two[1].0)
        );
        assert_eq!(
            some.bytes(),
            chosen.iter().map(|(_, range)| range.len()).sum::<u64>()
        );
    }
}
