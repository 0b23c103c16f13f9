//! What the random clients talk to: a small volume in memory whose answers are at once, and sometimes errors.

use crate::{
    BlockSizes, Errno, Export, ExportEntry, ExportInfo, Exports, Extent, MetaContext, Mutation, Op,
    OpenError, Status,
};
use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

/// Holes are found in this granularity.
const BLOCK: u64 = 4096;

/// What an export is like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) size: u64,
    pub(super) min_block: u32,
    pub(super) read_only: bool,
    pub(super) cheap_extents: bool,
    /// Reads and writes past it fail.
    pub(super) bad_from: u64,
}

pub(super) struct Volume {
    shape: Shape,
    pub(super) bytes: Arc<Mutex<Vec<u8>>>,
}

impl Volume {
    pub(super) fn new(shape: Shape, bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            shape,
            bytes: Arc::new(Mutex::new(bytes)),
        })
    }
}

/// Only this one, by any name.
pub(super) struct Only(pub(super) Arc<Volume>);

impl Exports for Only {
    fn list(&self) -> Vec<ExportEntry> {
        Vec::new()
    }

    fn open(&self, _: &str) -> Result<Arc<dyn Export>, OpenError> {
        Ok(self.0.clone())
    }
}

fn span(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl Export for Volume {
    fn info(&self) -> ExportInfo {
        let s = &self.shape;
        let info = if s.read_only {
            ExportInfo::read_only(s.size)
        } else {
            ExportInfo::writable(s.size)
        };
        ExportInfo {
            block: BlockSizes {
                min: s.min_block,
                ..BlockSizes::default()
            },
            cheap_extents: s.cheap_extents,
            ..info
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let range = offset..offset + buf.len() as u64;
        assert!(!buf.is_empty() && range.end <= self.shape.size);
        if range.end > self.shape.bad_from {
            return Err(Errno::Io);
        }
        buf.copy_from_slice(&self.bytes.lock().unwrap()[span(&range)]);
        Ok(())
    }

    fn submit(&self, batch: Vec<Mutation>) {
        assert!(!batch.is_empty());
        for m in batch {
            let (offset, len) = match &m.op {
                Op::Write { offset, data } => (*offset, data.len() as u64),
                Op::Zero { offset, len, .. } | Op::Trim { offset, len } => (*offset, *len),
                Op::Flush => {
                    m.reply.done(Ok(()));
                    continue;
                }
            };
            let range = offset..offset + len;
            assert!(len > 0 && range.end <= self.shape.size && !self.shape.read_only);
            if range.end > self.shape.bad_from {
                m.reply.done(Err(Errno::Io));
                continue;
            }
            let mut bytes = self.bytes.lock().unwrap();
            match m.op {
                Op::Write { data, .. } => bytes[span(&range)].copy_from_slice(&data),
                _ => bytes[span(&range)].fill(0),
            }
            m.reply.done(Ok(()));
        }
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, Errno> {
        let found = statuses(&self.bytes.lock().unwrap(), range, max);
        let extent = |s: Status| Extent {
            len: s.len,
            hole: s.bits != 0,
            zero: s.bits != 0,
        };
        Ok(found.into_iter().map(extent).collect())
    }

    fn contexts(&self) -> Vec<String> {
        vec!["x-test:zero".into()]
    }

    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        Ok((name == "x-test:zero").then(|| Arc::new(Zero(self.bytes.clone())) as Arc<dyn MetaContext>))
    }
}

/// 1 where it reads as zeroes.
struct Zero(Arc<Mutex<Vec<u8>>>);

impl MetaContext for Zero {
    fn status(&self, range: Range<u64>, max: usize) -> Result<Vec<Status>, Errno> {
        Ok(statuses(&self.0.lock().unwrap(), range, max))
    }
}

fn statuses(bytes: &[u8], range: Range<u64>, max: usize) -> Vec<Status> {
    let mut out: Vec<Status> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = ((at / BLOCK + 1) * BLOCK).min(bytes.len() as u64);
        let bits = u64::from(bytes[span(&(at..end))].iter().all(|b| *b == 0));
        let full = out.len() == max;
        match out.last_mut() {
            Some(last) if last.bits == bits => last.len += end - at,
            _ if full => break,
            _ => out.push(Status { len: end - at, bits }),
        }
        at = end;
    }
    out
}
