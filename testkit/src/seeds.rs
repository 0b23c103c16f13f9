//! Random histories that can be played again.

use rand::{SeedableRng, rngs::StdRng};

/// The variable that replays one seed (decimal, or hexadecimal after `0x`).
pub const SEED_VARIABLE: &str = "BACKSTAY_SEED";

/// The variable that says how many times as many seeds are to be tried (for nights; 1 unless set).
pub const FACTOR_VARIABLE: &str = "BACKSTAY_SEEDS";

/// The variable that says which of a test's seeds comes first: a night goes on where the one before ended (0 unless set).
pub const FROM_VARIABLE: &str = "BACKSTAY_SEEDS_FROM";

/// Runs `test` with `count` generators, and on a panic prints the seed and how to replay it.
///
/// The seeds follow from `name`, so a gate that passed passes again; `BACKSTAY_SEEDS=20` tries twenty times as many and
/// `BACKSTAY_SEED=0x1234` only that one; `BACKSTAY_SEEDS_FROM=6000` leaves the first 6000 out. Answers how many were tried:
/// a test that counts what its seeds showed asks first whether there were enough.
///
/// # Panics
/// When `test` does, and when one of the variables holds no number.
pub fn with_seeds(name: &str, count: u64, mut test: impl FnMut(&mut StdRng)) -> u64 {
    let number = |variable: &str| {
        let text = std::env::var(variable).ok()?;
        let number = text
            .strip_prefix("0x")
            .map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok());
        assert!(number.is_some(), "{variable}={text} is not a number");
        number
    };
    let replayed = number(SEED_VARIABLE);
    let count = if replayed.is_some() {
        1
    } else {
        count * number(FACTOR_VARIABLE).unwrap_or(1)
    };
    let from = number(FROM_VARIABLE).unwrap_or(0);
    for i in from..from + count {
        let seed = replayed.unwrap_or_else(|| derive(name, i));
        let _told = TellOnPanic { name, seed };
        test(&mut StdRng::seed_from_u64(seed));
    }
    count
}

struct TellOnPanic<'a> {
    name: &'a str,
    seed: u64,
}

impl Drop for TellOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}: failed with seed {:#x}; replay with {SEED_VARIABLE}={:#x}",
                self.name, self.seed, self.seed
            );
        }
    }
}

/// FNV-1a over the name and the number, mixed.
fn derive(name: &str, i: u64) -> u64 {
    let bytes = name.bytes().chain(i.to_le_bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)
    });
    crate::block::mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn seeds_differ_and_repeat() {
        let draw = |name| {
            let mut drawn = Vec::new();
            let tried = with_seeds(name, 5, |rng| drawn.push(rng.random::<u64>()));
            assert_eq!(drawn.len() as u64, tried);
            drawn
        };
        let first = draw("a");
        assert_eq!(first, draw("a"));
        let mut all = [first, draw("b")].concat();
        let drawn = all.len();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() == drawn || std::env::var(SEED_VARIABLE).is_ok());
    }
}
