//! Sparse bytes: the contents of one simulated medium.

use model::ByteRange;
use std::{collections::BTreeMap, sync::Arc};

const PAGE: u64 = 4096;

type Page = [u8; PAGE as usize];

/// Bytes of a medium of any length, of which only the pages that were ever written take memory.
///
/// Pages are shared between copies until one is changed, so a copy of a whole medium is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pages: BTreeMap<u64, Arc<Page>>,
}

/// The parts of `range` page by page: (page, first byte in it, bytes).
fn parts(range: ByteRange) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let (page, skip) = (at / PAGE, at % PAGE);
            let len = (PAGE - skip).min(range.end - at);
            at += len;
            (page, small(skip), small(len))
        })
    })
}

/// An amount that fits in memory.
pub(super) fn small(n: u64) -> usize {
    usize::try_from(n).expect("amounts of bytes at hand fit in memory")
}

impl Pages {
    fn page_mut(&mut self, page: u64) -> &mut Page {
        Arc::make_mut(
            self.pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE as usize])),
        )
    }

    pub(super) fn read(&self, at: u64, out: &mut [u8]) {
        let mut done = 0;
        for (page, skip, len) in parts(ByteRange::at(at, out.len() as u64)) {
            let out = &mut out[done..done + len];
            match self.pages.get(&page) {
                Some(p) => out.copy_from_slice(&p[skip..skip + len]),
                None => out.fill(0),
            }
            done += len;
        }
    }

    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        let mut done = 0;
        for (page, skip, len) in parts(ByteRange::at(at, data.len() as u64)) {
            self.page_mut(page)[skip..skip + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
    }

    pub(super) fn zero(&mut self, range: ByteRange) {
        self.copy_from(&Self::default(), range);
    }

    /// Makes `range` what it is in `other`; costs as much as there are pages, however long the range.
    pub(super) fn copy_from(&mut self, other: &Self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let inner = range.start.div_ceil(PAGE)..range.end / PAGE;
        if inner.start >= inner.end {
            for (page, skip, len) in parts(range) {
                self.copy_part(other, page, skip, len);
            }
            return;
        }
        let gone: Vec<u64> = self.pages.range(inner.clone()).map(|(page, _)| *page).collect();
        for page in gone {
            self.pages.remove(&page);
        }
        for (page, bytes) in other.pages.range(inner.clone()) {
            self.pages.insert(*page, Arc::clone(bytes));
        }
        for edge in [
            ByteRange {
                start: range.start,
                end: inner.start * PAGE,
            },
            ByteRange {
                start: inner.end * PAGE,
                end: range.end,
            },
        ] {
            for (page, skip, len) in parts(edge) {
                self.copy_part(other, page, skip, len);
            }
        }
    }

    fn copy_part(&mut self, other: &Self, page: u64, skip: usize, len: usize) {
        match other.pages.get(&page) {
            Some(from) => self.page_mut(page)[skip..skip + len].copy_from_slice(&from[skip..skip + len]),
            None if self.pages.contains_key(&page) => self.page_mut(page)[skip..skip + len].fill(0),
            None => {}
        }
    }

    /// The next run of written pages at or after `at`, not clipped to the medium's end.
    pub(super) fn next_data(&self, at: u64) -> Option<ByteRange> {
        let mut run: Option<(u64, u64)> = None;
        for page in self.pages.range(at / PAGE..).map(|(page, _)| *page) {
            match &mut run {
                None => run = Some((page, page + 1)),
                Some((_, end)) if *end == page => *end += 1,
                Some(_) => break,
            }
        }
        run.map(|(first, end)| ByteRange {
            start: (first * PAGE).max(at),
            end: end * PAGE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn behave_as_plain_bytes() {
        const LEN: usize = 20_000;
        let mut rng = StdRng::seed_from_u64(1);
        let (mut pages, mut other) = (Pages::default(), Pages::default());
        let (mut bytes, mut others) = (vec![0u8; LEN], vec![0u8; LEN]);
        for _ in 0..2000 {
            let start = rng.random_range(0..LEN);
            let end = rng.random_range(start..=LEN);
            let range = ByteRange {
                start: start as u64,
                end: end as u64,
            };
            match rng.random_range(0..5) {
                0 => {
                    pages.zero(range);
                    bytes[start..end].fill(0);
                }
                1 => {
                    pages.copy_from(&other, range);
                    bytes[start..end].copy_from_slice(&others[start..end]);
                }
                2 => {
                    let fill = vec![rng.random(); end - start];
                    other.write(range.start, &fill);
                    others[start..end].copy_from_slice(&fill);
                }
                _ => {
                    let fill = vec![rng.random(); end - start];
                    pages.write(range.start, &fill);
                    bytes[start..end].copy_from_slice(&fill);
                }
            }
            let mut seen = vec![1; LEN];
            pages.read(0, &mut seen);
            assert!(seen == bytes);
            let mut at = 0;
            while let Some(run) = pages.next_data(at) {
                assert!(
                    bytes[at as usize..(run.start as usize).min(LEN)]
                        .iter()
                        .all(|b| *b == 0)
                );
                at = run.end;
            }
            assert!(bytes.get(at as usize..).unwrap_or(&[]).iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn terabytes_are_cheap() {
        let mut pages = Pages::default();
        pages.write(1 << 40, b"far");
        pages.zero(ByteRange {
            start: 3,
            end: (1 << 45) + 1,
        });
        pages.write(1 << 44, b"far");
        let copy = pages.clone();
        pages.copy_from(
            &copy,
            ByteRange {
                start: 0,
                end: 1 << 45,
            },
        );
        assert_eq!(pages.next_data(0), Some(ByteRange::at(1 << 44, 4096)));
    }
}
