//! When a body is worth compressing.
//!
//! A link is often faster than zstd, and much of what applications write does not compress. So: small bodies never; of a
//! large one a sample first; and after bodies that gained nothing, ever more bodies are not even sampled, up to 1 in 1024.

/// Shorter bodies are sent as they are.
const BODY_BYTES_MIN: usize = 16 << 10;
const SAMPLE_BYTES: usize = 4 << 10;
const SAMPLES: usize = 4;
/// The level that keeps up with a disk.
pub(crate) const LEVEL: i32 = 1;
const SKIP_MAX_LOG2: u32 = 10;

/// Remembers what the last bodies gained.
#[derive(Debug, Default)]
pub(crate) struct Adaptive {
    misses: u32,
    skip: u32,
}

impl Adaptive {
    /// Whether this body should be compressed.
    pub(crate) fn wants(&mut self, body: [&[u8]; 2]) -> bool {
        let part = if body[0].len() > body[1].len() {
            body[0]
        } else {
            body[1]
        };
        if part.len() <= BODY_BYTES_MIN {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let good = sample_compresses(part);
        if !good {
            self.missed();
        }
        good
    }

    /// What came of it.
    pub(crate) const fn gained(&mut self, gained: bool) {
        if gained {
            self.misses = 0;
        } else {
            self.missed();
        }
    }

    const fn missed(&mut self) {
        if self.misses < SKIP_MAX_LOG2 {
            self.misses += 1;
        }
        self.skip = 1 << self.misses;
    }
}

/// Whether pieces from all over the body shrink below 0.8.
fn sample_compresses(body: &[u8]) -> bool {
    let stride = body.len() / SAMPLES;
    let mut packed = 0;
    let mut out = vec![0; zstd_safe::compress_bound(SAMPLE_BYTES)];
    for piece in (0..SAMPLES).map(|i| &body[i * stride..][..SAMPLE_BYTES.min(stride)]) {
        match zstd_safe::compress(&mut out[..], piece, LEVEL) {
            Ok(len) => packed += len,
            Err(_) => return false,
        }
    }
    packed * 10 < SAMPLES * SAMPLE_BYTES.min(stride) * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore as _, SeedableRng as _};

    fn noise(len: usize) -> Vec<u8> {
        let mut v = vec![0; len];
        rand::rngs::StdRng::seed_from_u64(1).fill_bytes(&mut v);
        v
    }

    #[test]
    fn only_large_bodies_that_shrink() {
        let mut a = Adaptive::default();
        assert!(!a.wants([&[], &[0; 16 << 10]]));
        assert!(a.wants([&[], &[0; 17 << 10]]));
        assert!(!a.wants([&[1; 100], &noise(1 << 20)]));
    }

    #[test]
    fn hopeless_bodies_are_sampled_ever_more_rarely() {
        let mut a = Adaptive::default();
        let body = noise(32 << 10);
        let sampled = (0..4096).filter(|_| {
            let before = a.skip;
            assert!(!a.wants([&[], &body]));
            before == 0
        });
        assert!(sampled.count() < 16);
        // Good bodies come back into their own.
        let tried = (0..1100).position(|_| a.wants([&[], &[0; 32 << 10]]));
        assert!(tried.is_some());
        a.gained(true);
        assert!(a.wants([&[], &[0; 32 << 10]]));
    }
}
