//! Random clients: conversations that make sense, then bent, cut and shuffled, against the whole of the machine in memory.
//!
//! The seeds follow from the tests' names, so a run that passed passes again; `BACKSTAY_SEEDS=1000` plays a thousand times as
//! many (an hour and more), `BACKSTAY_SEED` one. What is demanded is more than not to panic: see each of the two.

mod export;
mod handshake;
mod transmission;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

/// Numbers at which something happens in parsers.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    7,
    511,
    512,
    513,
    4095,
    4096,
    4097,
    65_535,
    65_536,
    1 << 20,
    (1 << 25) - 1,
    1 << 25,
    (1 << 25) + 1,
    1 << 31,
    u32::MAX as u64,
    1 << 63,
    u64::MAX,
];

fn edge(rng: &mut StdRng) -> u64 {
    let at = *EDGES.choose(rng).unwrap();
    match rng.random_range(0..4) {
        0 => rng.random(),
        1 => at.wrapping_add(rng.random_range(0..8)).wrapping_sub(4),
        _ => at,
    }
}

/// Bends bytes: flips, numbers at the edges, cuts, repeats, insertions.
fn bend(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => {
                let number = edge(rng).to_be_bytes();
                let width = *[2, 4, 8].choose(rng).unwrap();
                for (to, from) in bytes[at..].iter_mut().zip(&number[8 - width..]) {
                    *to = *from;
                }
            }
            4 => {
                let end = rng.random_range(at..bytes.len().min(at + 64) + 1);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let end = rng.random_range(at..bytes.len().min(at + 16) + 1);
                bytes.drain(at..end);
            }
            _ => {
                let some: [u8; 4] = rng.random();
                bytes.splice(at..at, some);
            }
        }
    }
}

/// Where a stream is cut into what arrives at a time.
fn cuts(rng: &mut StdRng, len: usize) -> Vec<usize> {
    let most = *[1, 3, 40, 5000, usize::MAX].choose(rng).unwrap();
    let mut cuts = Vec::new();
    let mut left = len;
    while left > 0 {
        let n = rng.random_range(1..=left.min(most));
        cuts.push(n);
        left -= n;
    }
    cuts
}
