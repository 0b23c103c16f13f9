//! Writes whose places, bytes or times the bench must know: over one connection, some in flight.

use model::BLOCK_SIZE;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::time::{Duration, Instant};
use testkit::nbd::{Client, Request};

/// Writes in flight.
const DEPTH: usize = 32;

/// Submits what comes and answers when all of it is answered and flushed. `answered` is told of each answer, in the order of
/// the writes.
///
/// # Panics
/// When the connection breaks or an answer is an error.
pub fn write_all(
    client: &mut Client,
    writes: impl IntoIterator<Item = (u64, Vec<u8>)>,
    mut answered: impl FnMut(u64, Instant),
) {
    let mut first = None;
    for (offset, data) in writes {
        let request = Request::Write {
            offset,
            data,
            fua: false,
        };
        let cookie = client.submit(&request).expect("the server takes writes");
        let first = *first.get_or_insert(cookie);
        while client.in_flight() >= DEPTH {
            complete(client, first, &mut answered);
        }
    }
    while client.in_flight() > 0 {
        complete(client, first.unwrap_or(0), &mut answered);
    }
    client.flush().expect("a flush is answered");
}

/// Blocks at random places, so many in flight, each with FUA, for so long; how many a second.
///
/// # Panics
/// As [`write_all`].
pub fn durable_writes(client: &mut Client, blocks: u64, depth: usize, lasts: Duration, seed: u64) -> f64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut data = vec![0; usize::try_from(BLOCK_SIZE).expect("small")];
    rng.fill_bytes(&mut data);
    let (from, mut first, mut answered) = (Instant::now(), None, 0_u32);
    while from.elapsed() < lasts || client.in_flight() > 0 {
        if from.elapsed() < lasts {
            let request = Request::Write {
                offset: rng.random_range(0..blocks) * BLOCK_SIZE,
                data: data.clone(),
                fua: true,
            };
            let cookie = client.submit(&request).expect("the server takes writes");
            first.get_or_insert(cookie);
            if client.in_flight() < depth {
                continue;
            }
        }
        complete(client, first.unwrap_or(0), &mut |_, _| answered += 1);
    }
    f64::from(answered) / from.elapsed().as_secs_f64()
}

fn complete(client: &mut Client, first: u64, answered: &mut impl FnMut(u64, Instant)) {
    let done = client
        .complete()
        .expect("the server answers")
        .expect("something is in flight");
    done.result.expect("a write succeeds");
    answered(done.cookie - first, done.at);
}

/// Which blocks a history touches.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Of each ten, so many are ever written, scattered over the volume.
    pub tenths: u64,
}

impl Places {
    /// One of them, at random.
    pub fn any(self, rng: &mut StdRng) -> u64 {
        let stretches = (self.blocks / 10).max(1);
        rng.random_range(0..stretches) * 10 + rng.random_range(0..self.tenths)
    }
}

/// So many bytes of history: blocks of noise at random places.
pub fn history(client: &mut Client, places: Places, bytes: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut block = vec![0; usize::try_from(BLOCK_SIZE).expect("small")];
    rng.fill_bytes(&mut block);
    let writes = (0..bytes / BLOCK_SIZE).map(|n| {
        // As incompressible as new noise would be, and no two blocks are equal.
        block[..8].copy_from_slice(&(seed << 40 | n).to_le_bytes());
        (places.any(&mut rng) * BLOCK_SIZE, block.clone())
    });
    write_all(client, writes, |_, _| {});
}
