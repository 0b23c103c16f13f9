//! The protected volume, as applications open it.

use super::{Faults, contexts};
use crate::context::Running;
use journal::tap::{Request, Tap, VolumeChange};
use model::{ByteRange, VolumeIndex};
use nbd::{Errno, Export, ExportInfo, Extent, MetaContext, Mutation, Op};
use std::sync::Arc;

/// The protected volume.
pub(super) struct HeadExport {
    tap: Arc<Tap>,
    index: VolumeIndex,
    size: u64,
    description: String,
    faults: Faults,
    _running: Arc<Running>,
}

/// The longest zeroing that is handed to the tap at once. One request may be as long as the volume: in pieces, others get
/// in between, and none is held in memory whole.
const ZERO_PIECE_BYTES: u64 = 1 << 30;

impl HeadExport {
    /// The volume of `index` and size behind a tap; it keeps what runs.
    pub(super) fn new(
        running: &Arc<Running>,
        tap: Arc<Tap>,
        (index, size): (VolumeIndex, u64),
        description: String,
    ) -> Self {
        Self {
            tap,
            index,
            size,
            description,
            faults: Faults::default(),
            _running: Arc::clone(running),
        }
    }

    /// The last piece of a zeroing. Those before it are submitted at once, behind what was gathered before them; should one
    /// fail, its journal fails all that come after it.
    fn zero(&self, offset: u64, len: u64, discard: bool, gathered: &mut Vec<Request>) -> VolumeChange {
        let piece = |range: ByteRange| VolumeChange::Zero {
            volume: self.index,
            range,
            discard,
        };
        let mut rest = ByteRange::at(offset, len);
        while rest.len() > ZERO_PIECE_BYTES {
            let end = rest.start + ZERO_PIECE_BYTES;
            gathered.push(Request {
                change: Some(piece(ByteRange {
                    start: rest.start,
                    end,
                })),
                durable: false,
                done: Box::new(drop),
            });
            self.tap.submit(std::mem::take(gathered));
            rest.start = end;
        }
        piece(rest)
    }
}

impl Export for HeadExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            description: self.description.clone(),
            ..ExportInfo::writable(self.size)
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.tap.read(self.index, offset, buf).map_err(|e| {
            self.faults
                .log(format_args!("read of {} bytes at {offset}: {e}", buf.len()));
            Errno::Io
        })
    }

    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> Result<(), Errno> {
        self.tap.read_each(self.index, reads).map_err(|e| {
            self.faults.log(format_args!("{} reads: {e}", reads.len()));
            Errno::Io
        })
    }

    fn submit(&self, batch: Vec<Mutation>) {
        let mut requests = Vec::with_capacity(batch.len());
        for m in batch {
            let (change, durable) = match m.op {
                Op::Write { offset, data } => (
                    Some(VolumeChange::Write {
                        volume: self.index,
                        offset,
                        data,
                    }),
                    m.fua,
                ),
                Op::Zero {
                    offset,
                    len,
                    may_trim,
                } => (Some(self.zero(offset, len, may_trim, &mut requests)), m.fua),
                Op::Trim { offset, len } => (Some(self.zero(offset, len, true, &mut requests)), m.fua),
                Op::Flush => (None, true),
            };
            let reply = m.reply;
            requests.push(Request {
                durable,
                change,
                done: Box::new(move |result| reply.done(result.map_err(|_| Errno::Io))),
            });
        }
        self.tap.submit(requests);
    }

    fn extents(&self, range: std::ops::Range<u64>, max: usize) -> Result<Vec<Extent>, Errno> {
        let range = ByteRange {
            start: range.start,
            end: range.end,
        };
        let extents = self.tap.extents(self.index, range).map_err(|_| Errno::Io)?;
        Ok(extents
            .into_iter()
            .take(max)
            .map(|(r, zero)| Extent {
                len: r.len(),
                hole: zero,
                zero,
            })
            .collect())
    }

    fn contexts(&self) -> Vec<String> {
        vec![contexts::DEPTH.into()]
    }

    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        let (tap, index) = (Arc::clone(&self.tap), self.index);
        let depth = contexts::Depth(move |range| {
            let extents = tap.extents(index, range).map_err(|_| Errno::Io)?;
            let depths = extents.into_iter().map(|(range, zero)| (range, u32::from(!zero)));
            Ok(depths.collect())
        });
        Ok((name == contexts::DEPTH).then(|| Arc::new(depth) as Arc<dyn MetaContext>))
    }
}
