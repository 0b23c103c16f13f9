//! Data of several kinds, for compression.

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

/// Kinds of data, so many bytes of each.
pub fn kinds(len: usize) -> [(&'static str, Vec<u8>); 3] {
    [
        ("text-like", text(len)),
        ("database-like", database(len)),
        ("incompressible", noise(len)),
    ]
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(19).fill_bytes(&mut bytes);
    bytes
}

/// Words of this program's own pages, few of them often and many seldom, as in a language.
fn text(len: usize) -> Vec<u8> {
    let page = include_str!("../../docs/ARCHITECTURE.md");
    let words: Vec<&str> = page.split_whitespace().collect();
    let mut rng = StdRng::seed_from_u64(20);
    let mut text = Vec::with_capacity(len + 64);
    while text.len() < len {
        let part: f64 = rng.random();
        let word = words[(part * part * words.len() as f64) as usize % words.len()];
        text.extend_from_slice(word.as_bytes());
        text.push(if rng.random_range(0..12) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(len);
    text
}

/// Pages of 8 KiB as a database has them: a head, rows with rising ids, times, a name and a random key, and a fifth of the page free.
fn database(len: usize) -> Vec<u8> {
    const PAGE: usize = 8192;
    let mut rng = StdRng::seed_from_u64(21);
    let mut pages = Vec::with_capacity(len + PAGE);
    let mut id = 0_u64;
    while pages.len() < len {
        let end = pages.len() + PAGE;
        pages.extend_from_slice(&(id ^ 0x00a5_0000).to_le_bytes());
        pages.extend_from_slice(&[0, 1, 0, 4, 0, 32, 4, 32]);
        while pages.len() < end - PAGE / 5 {
            id += 1;
            pages.extend_from_slice(&id.to_le_bytes());
            pages.extend_from_slice(&(1_790_000_000_000 + id * 17).to_le_bytes());
            pages.extend_from_slice(&rng.next_u64().to_le_bytes());
            let name = format!(
                "customer-{:05}  status={:<8}",
                rng.random_range(0..50_000),
                ["open", "paid", "sent"][rng.random_range(0..3)]
            );
            pages.extend_from_slice(name.as_bytes());
        }
        pages.resize(end, 0);
    }
    pages.truncate(len);
    pages
}
