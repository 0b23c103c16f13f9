//! Snapshots, vdevs and points read by name.

use super::{Faults, contexts};
use crate::context::{Context, Lifeline, Reader, Running};
use journal::Position;
use model::{ByteRange, Target, VolumeIndex};
use nbd::{Errno, Export, ExportInfo, Extent, MetaContext, Mutation, Op};
use snapshot::{SnapshotError, Vdev, View};
use std::sync::{Arc, Weak};

/// One volume at a point.
pub(super) struct Past {
    context: Arc<Context>,
    /// What runs must be able to end while a client is there.
    running: Weak<Running>,
    view: Arc<View>,
    vdev: Option<Arc<Vdev>>,
    reader: Option<Reader>,
    lifeline: Lifeline,
    index: VolumeIndex,
}

impl Past {
    /// The volume of a snapshot, or of its vdev.
    pub(super) fn snapshot(
        context: &Arc<Context>,
        running: &Arc<Running>,
        view: Arc<View>,
        vdev: Option<Arc<Vdev>>,
        lifeline: Lifeline,
        index: VolumeIndex,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            running: Arc::downgrade(running),
            view,
            vdev,
            reader: None,
            lifeline,
            index,
        }
    }

    /// The volume at a point that one connection named.
    pub(super) fn read_by_name(
        context: &Arc<Context>,
        running: &Arc<Running>,
        reader: Reader,
        lifeline: Lifeline,
        index: VolumeIndex,
    ) -> Self {
        let view = Arc::clone(&reader.view);
        Self {
            reader: Some(reader),
            ..Self::snapshot(context, running, view, None, lifeline, index)
        }
    }

    fn vdev(&self) -> Option<&Vdev> {
        self.vdev
            .as_deref()
            .or_else(|| self.reader.as_ref().and_then(|r| r.vdev.as_ref()))
    }

    fn size(&self) -> u64 {
        self.view.size(self.index).unwrap_or(0)
    }

    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> Result<(), SnapshotError> {
        match self.vdev() {
            Some(vdev) => vdev.read_each(self.index, reads),
            None => self.view.read_each(self.index, reads),
        }
    }

    fn extents(&self, range: ByteRange) -> Result<Vec<snapshot::Extent>, Errno> {
        let found = match self.vdev() {
            Some(vdev) => vdev.extents(self.index, range),
            None => self.view.extents(self.index, range),
        };
        // What is known to be zero is answered without a read.
        self.still(found.map_err(|_| Errno::Io))
    }

    /// Asked behind a read: the volumes may have changed hands meanwhile.
    fn still<T>(&self, found: Result<T, Errno>) -> Result<T, Errno> {
        if self.lifeline.is_open() {
            found
        } else {
            Err(Errno::Shutdown)
        }
    }

    /// In which layer a range lies: 0 nowhere, it is zero; 1 in what was written to the vdev, or in the view where there is no
    /// vdev; 2 in the view below a vdev.
    fn depths(&self, range: ByteRange) -> Result<Vec<(ByteRange, u32)>, Errno> {
        let Some(vdev) = self.vdev() else {
            let extents = self.extents(range)?.into_iter();
            return Ok(extents.map(|e| (e.range, u32::from(!e.zero))).collect());
        };
        let own = vdev.written(self.index, range);
        let below = self.view.extents(self.index, range).map_err(|_| Errno::Io);
        let mut depths = Vec::new();
        for extent in self.still(below)? {
            for (part, is_own) in &own {
                if let Some(part) = part.intersect(extent.range) {
                    let depth = match (is_own, extent.zero) {
                        (true, _) => 1,
                        (false, false) => 2,
                        (false, true) => 0,
                    };
                    depths.push((part, depth));
                }
            }
        }
        Ok(depths)
    }

    fn position(&self) -> Position {
        let point = self.view.point();
        Position {
            generation: point.generation,
            seq: point.seq,
        }
    }

    /// What changed behind `since`, up to this point.
    fn changed_since(&self, since: &str) -> Result<Vec<ByteRange>, String> {
        let target: Target = since
            .parse()
            .map_err(|e: model::target::TargetError| e.to_string())?;
        let running = self.running.upgrade().ok_or("the context has stopped")?;
        let views = super::views(&running).ok_or("the context has changed its role")?;
        let point = views.resolve(&target).map_err(|e| e.to_string())?;
        let (from, to) = (
            Position {
                generation: point.generation,
                seq: point.seq,
            },
            self.position(),
        );
        let changed = self.context.journal.changed_between(self.index, from, to);
        Ok(changed.map_err(|e| e.to_string())?.unwrap_or_else(|| {
            tracing::warn!(
                context = self.context.id().0,
                "what changed from {from} to {to} is not known: an incremental backup is told that everything did"
            );
            vec![ByteRange::at(0, self.size())]
        }))
    }

    /// Marks on the line of this point, before it, newest first.
    fn earlier_marks(&self) -> Vec<String> {
        let here = self.position();
        let journal = &self.context.journal;
        let line = journal.line(Some(here.generation));
        let is_earlier = |m: &&model::EventMark| {
            let at = |span: &&journal::LineSpan| span.generation == m.generation;
            (m.generation, m.seq) < (here.generation, here.seq)
                && line.iter().find(at).is_some_and(|span| m.seq <= span.upto)
        };
        let marks = journal.marks();
        let earlier = marks.iter().filter(is_earlier).rev();
        earlier
            .take(contexts::MARKS_LISTED)
            .map(|m| m.name.clone())
            .collect()
    }
}

/// A snapshot or vdev.
pub(super) struct PastExport {
    past: Arc<Past>,
    description: String,
    faults: Faults,
}

impl PastExport {
    /// The export of a volume at a point.
    pub(super) fn new(past: Past, description: String) -> Self {
        Self {
            past: Arc::new(past),
            description,
            faults: Faults::default(),
        }
    }

    fn change(&self, op: Op) -> Result<(), Errno> {
        let Some(vdev) = self.past.vdev() else {
            return Err(Errno::Perm);
        };
        let index = self.past.index;
        let done = match op {
            Op::Write { offset, data } => vdev.write(index, offset, &data),
            Op::Zero { offset, len, .. } | Op::Trim { offset, len } => vdev.zero(index, offset, len),
            Op::Flush => vdev.flush(),
        };
        done.map_err(|e| {
            if e.is_full() {
                return Errno::NoSpc;
            }
            self.faults.log(format_args!("vdev: {e}"));
            Errno::Io
        })
    }
}

impl Export for PastExport {
    fn info(&self) -> ExportInfo {
        let size = self.past.size();
        let info = if self.past.vdev().is_some() {
            ExportInfo::writable(size)
        } else {
            ExportInfo::read_only(size)
        };
        ExportInfo {
            description: self.description.clone(),
            // Each connection by name resolves for itself, so two of them may see different points.
            multi_conn: self.past.reader.is_none(),
            ..info
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let done = self.past.read_each(&mut [(offset, buf)]);
        self.past.still(Ok(()))?;
        done.map_err(|e| {
            self.faults
                .log(format_args!("view: read of {} bytes at {offset}: {e}", buf.len()));
            Errno::Io
        })
    }

    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> Result<(), Errno> {
        let done = self.past.read_each(reads);
        self.past.still(Ok(()))?;
        done.map_err(|e| {
            self.faults.log(format_args!("view: {} reads: {e}", reads.len()));
            Errno::Io
        })
    }

    fn submit(&self, batch: Vec<Mutation>) {
        for m in batch {
            let mut done = self.change(m.op);
            if m.fua && done.is_ok() {
                done = self.change(Op::Flush);
            }
            m.reply.done(done);
        }
    }

    fn extents(&self, range: std::ops::Range<u64>, max: usize) -> Result<Vec<Extent>, Errno> {
        let found = self.past.extents(ByteRange {
            start: range.start,
            end: range.end,
        })?;
        let found = found.into_iter().take(max).map(|e| Extent {
            len: e.range.len(),
            hole: e.zero,
            zero: e.zero,
        });
        Ok(found.collect())
    }

    fn contexts(&self) -> Vec<String> {
        let mut all = vec![contexts::DEPTH.to_owned()];
        if self.past.vdev().is_none() {
            let marks = self.past.earlier_marks().into_iter();
            all.extend(marks.map(|name| format!("{}mark:{name}", contexts::SINCE)));
        }
        all
    }

    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        if name == contexts::DEPTH {
            let past = Arc::clone(&self.past);
            return Ok(Some(Arc::new(contexts::Depth(move |range| past.depths(range)))));
        }
        let Some(since) = name.strip_prefix(contexts::SINCE) else {
            return Ok(None);
        };
        // What is written to a vdev is in no journal.
        if self.past.vdev().is_some() {
            return Ok(None);
        }
        let changed = self.past.changed_since(since)?;
        Ok(Some(Arc::new(contexts::Dirty::new(changed, self.past.size()))))
    }
}
