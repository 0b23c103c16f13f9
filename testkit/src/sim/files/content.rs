//! What a file holds: bytes and a length, live and durable apart.

use super::{
    super::{
        layers::Layers,
        pages::{Pages, small},
        tear::Tear,
    },
    Order,
};
use model::ByteRange;
use rand::{Rng, RngCore};

/// The bytes of a file that are durable, and its length.
pub(super) type Durable = (Pages, u64);

#[derive(Debug, Default)]
pub(super) struct Content {
    bytes: Layers,
    len: u64,
    durable_len: u64,
    /// The length after each change that no sync has made durable.
    lens: Vec<u64>,
}

const SECTOR: u64 = 512;

impl Content {
    pub(super) fn of((pages, len): Durable) -> Self {
        Self {
            bytes: Layers::of(pages),
            len,
            durable_len: len,
            lens: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let end = at.saturating_add(len).min(self.len);
        let mut out = vec![0; small(end.saturating_sub(at))];
        self.bytes.live.read(at, &mut out);
        out
    }

    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        let range = ByteRange::at(at, data.len() as u64);
        self.change(range, Some(data), self.len.max(range.end));
    }

    /// Zeroes what lies within the file.
    pub(super) fn zero(&mut self, range: ByteRange) {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        self.change(ByteRange { start, end }, None, self.len);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let gone = ByteRange {
            start: len.min(self.len),
            end: self.len,
        };
        self.change(gone, None, len);
    }

    fn change(&mut self, range: ByteRange, data: Option<&[u8]>, len: u64) {
        self.bytes.write(range, data);
        self.len = len;
        self.lens.push(len);
    }

    pub(super) fn sync(&mut self) {
        self.bytes.settle(self.bytes.end());
        self.durable_len = self.len;
        self.lens.clear();
    }

    /// What a power cut leaves for certain.
    pub(super) fn durable(&self) -> Durable {
        (self.bytes.durable.clone(), self.durable_len)
    }

    /// What a power cut leaves now.
    ///
    /// Half of the time the changes are there in order up to one, and of the next one a beginning of any length: a file that is
    /// appended to ends anywhere. Else any of them are there, and then the length is another thing than the bytes, which are
    /// zero where it alone is there; unless the order is kept: then what is added to a file is there without a gap.
    pub(super) fn after_cut(&self, tear: Tear, order: Order, rng: &mut dyn RngCore) -> Durable {
        let (mut pages, len) = match rng.random() {
            true => self.in_order(tear, rng),
            false => {
                let pages = self.bytes.after_cut(tear, rng);
                let len = self.any_len(rng);
                match order {
                    Order::Any => (pages, len),
                    Order::Kept => (pages.clone(), self.without_gap(&pages, len)),
                }
            }
        };
        let longest = self.lens.iter().fold(self.durable_len, |a, b| a.max(*b));
        pages.zero(ByteRange {
            start: len,
            end: longest.max(len),
        });
        (pages, len)
    }

    fn any_len(&self, rng: &mut dyn RngCore) -> u64 {
        let n = self.lens.len();
        let len = |i: usize| {
            if i == 0 {
                self.durable_len
            } else {
                self.lens[i - 1]
            }
        };
        match rng.random_range(0..4) {
            0 => self.durable_len,
            1 => self.len,
            2 => len(rng.random_range(0..=n)),
            _ => {
                let (a, b) = (len(rng.random_range(0..=n)), len(rng.random_range(0..=n)));
                rng.random_range(a.min(b)..=a.max(b))
            }
        }
    }

    /// Where the first byte is missing of what was added, but no more than `len`.
    fn without_gap(&self, pages: &Pages, len: u64) -> u64 {
        let added = small(len.saturating_sub(self.durable_len));
        let (mut kept, mut live) = (vec![0; added], vec![0; added]);
        pages.read(self.durable_len, &mut kept);
        self.bytes.live.read(self.durable_len, &mut live);
        let same = kept.iter().zip(&live).take_while(|(a, b)| a == b).count();
        len.min(self.durable_len + same as u64)
    }

    fn in_order(&self, tear: Tear, rng: &mut dyn RngCore) -> Durable {
        let writes = self.bytes.unsynced();
        let (mut pages, mut len) = self.durable();
        let kept = rng.random_range(0..=writes.len());
        for (write, after) in writes.iter().zip(&self.lens).take(kept) {
            write.apply(&mut pages);
            len = *after;
        }
        if let Some(write) = writes.get(kept)
            && let Some(data) = &write.data
        {
            let (start, end) = (write.range.start, write.range.end);
            let torn = rng.random_range(start..=end);
            let torn = match tear {
                Tear::Whole => start,
                // What is overwritten changes by sectors; what is added may end anywhere.
                Tear::Sector if torn < len => (torn / SECTOR * SECTOR).max(start),
                _ => torn,
            };
            pages.write(start, &data[..small(torn - start)]);
            if torn > start {
                len = len.max(torn);
            }
        }
        (pages, len)
    }
}
