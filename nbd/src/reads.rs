//! Reads and block status, run by the thread of the connection or its [readers](crate::readers), and the buffer in which their
//! replies are gathered.

use crate::{
    Errno, Export, Extent,
    chunk::{Form, Style},
    context::Ask,
    outbox::Outbox,
    readers::Readers,
    request::StatusAsked,
    session::Session,
};
use std::{
    io, mem,
    ops::Range,
    time::{Duration, Instant},
};

/// Replies are gathered up to about here before they are sent.
const GATHERED_BYTES: usize = 256 << 10;
/// Data of one chunk of a structured reply. Smaller than the longest read, so that sending overlaps with reading.
const CHUNK_BYTES: u64 = 1 << 20;
/// Reads shorter than this are not worth a look at the extents: they are one piece, and those of a round are read in one call.
const SPARSE_READ_BYTES: usize = 32 << 10;
/// Extents asked for at a time, for one read.
const EXTENTS_MAX: usize = 256;
/// A hint to cache is followed so far: the requests behind it wait.
const CACHED_BYTES_MAX: u64 = 32 << 20;
/// A buffer that a large read made longer than this is given back.
const KEPT_BYTES: usize = 2 << 20;

/// A request that the connection answers by itself.
#[derive(Clone, Debug)]
pub(crate) enum Inline {
    Read { range: Range<u64>, unfragmented: bool },
    Cache { range: Range<u64> },
    BlockStatus(StatusAsked),
}

/// Replies on their way out.
#[derive(Debug, Default)]
pub(crate) struct Gathered(Vec<u8>);

impl Gathered {
    /// For replies that are ready.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// Sends everything, and all that others posted before.
    pub(crate) fn flush(&mut self, outbox: &Outbox) -> io::Result<()> {
        let sent = outbox.send(&self.0);
        self.0.clear();
        self.0.shrink_to(KEPT_BYTES);
        sent
    }

    fn flush_if_long(&mut self, outbox: &Outbox) -> io::Result<()> {
        if self.0.len() >= GATHERED_BYTES {
            self.flush(outbox)
        } else {
            Ok(())
        }
    }

    /// Lets the export fill the next `len` bytes.
    fn read(&mut self, export: &dyn Export, offset: u64, len: usize) -> Result<(), Errno> {
        let from = self.0.len();
        self.0.resize(from + len, 0);
        export.read(offset, &mut self.0[from..])
    }
}

/// A read of one piece.
#[derive(Clone, Debug)]
pub(crate) struct Short(Form, Range<u64>);

/// Runs the requests of a round, with others where that takes long.
pub(crate) fn run_all(
    requests: Vec<(Form, Inline)>,
    session: &Session,
    out: &mut Gathered,
    outbox: &Outbox,
    readers: &mut Readers,
) -> io::Result<()> {
    let (mut short, mut long) = (Vec::new(), Vec::new());
    for (form, request) in requests {
        match request {
            Inline::Read { range, .. } if length(&range) < SPARSE_READ_BYTES => {
                short.push(Short(form, range));
            }
            request => long.push((form, request)),
        }
    }
    if !short.is_empty() {
        let own = readers.share(short);
        let reads = own.len();
        let time = run_short(own, session, out, outbox)?;
        readers.took(reads, time);
    }
    for (form, request) in long {
        run(request, form, session, out, outbox)?;
    }
    Ok(())
}

/// Runs short reads, as many in one call as are gathered before they are sent. Answers how long the export took.
pub(crate) fn run_short(
    reads: Vec<Short>,
    session: &Session,
    out: &mut Gathered,
    outbox: &Outbox,
) -> io::Result<Duration> {
    let (mut batch, mut bytes, mut time) = (Vec::new(), 0, Duration::ZERO);
    for read in reads {
        bytes += length(&read.1);
        if bytes > GATHERED_BYTES {
            time += run_batch(mem::take(&mut batch), session, out, outbox)?;
            bytes = length(&read.1);
        }
        batch.push(read);
    }
    Ok(time + run_batch(batch, session, out, outbox)?)
}

/// Lays out the replies of short reads, and lets the export fill them in one call.
fn run_batch(
    reads: Vec<Short>,
    session: &Session,
    out: &mut Gathered,
    outbox: &Outbox,
) -> io::Result<Duration> {
    let start = out.0.len();
    let mut data_at = Vec::with_capacity(reads.len());
    for Short(form, range) in &reads {
        match form.style {
            Style::Simple => form.success(&mut out.0),
            Style::Structured | Style::Extended => {
                form.data_head(&mut out.0, true, range.start, length(range))
            }
        }
        data_at.push(out.0.len());
        out.0.resize(out.0.len() + length(range), 0);
    }
    let (mut rest, mut at) = (&mut out.0[start..], start);
    let mut buffers = Vec::with_capacity(reads.len());
    for (Short(_, range), data_at) in reads.iter().zip(data_at) {
        let (buffer, behind) = rest[data_at - at..].split_at_mut(length(range));
        buffers.push((range.start, buffer));
        (rest, at) = (behind, data_at + length(range));
    }
    let began = Instant::now();
    let done = session.export.read_each(&mut buffers);
    let time = began.elapsed();
    if done.is_err() {
        // Whichever failed is told to whom it belongs, with its place. It is one piece, whether pieces are allowed or not.
        out.0.truncate(start);
        let unfragmented = false;
        for Short(form, range) in reads {
            run(Inline::Read { range, unfragmented }, form, session, out, outbox)?;
        }
    }
    out.flush_if_long(outbox)?;
    Ok(time)
}

/// Runs a request and gathers its reply; sends when enough is gathered.
fn run(
    request: Inline,
    form: Form,
    session: &Session,
    out: &mut Gathered,
    outbox: &Outbox,
) -> io::Result<()> {
    match request {
        Inline::Read { range, unfragmented } => match form.style {
            Style::Simple => read_simple(range, form, session, out),
            Style::Structured | Style::Extended if unfragmented => read_whole(range, form, session, out),
            Style::Structured | Style::Extended => read_chunks(range, form, session, out, outbox)?,
        },
        Inline::Cache { range } => match cache(range, session) {
            Ok(()) => form.success(&mut out.0),
            Err(e) => form.failure(&mut out.0, e, &e.to_string()),
        },
        Inline::BlockStatus(asked) => {
            let ask = Ask {
                export: &*session.export,
                size: session.terms.info.size,
                range: asked.offset..asked.offset + asked.len,
                one: asked.one,
            };
            session.terms.contexts.reply(&ask, &asked.only, form, &mut out.0);
        }
    }
    out.flush_if_long(outbox)
}

fn read_simple(range: Range<u64>, form: Form, session: &Session, out: &mut Gathered) {
    let start = out.0.len();
    form.success(&mut out.0);
    if let Err(e) = out.read(&*session.export, range.start, length(&range)) {
        out.0.truncate(start);
        form.failure(&mut out.0, e, "");
    }
}

fn read_whole(range: Range<u64>, form: Form, session: &Session, out: &mut Gathered) {
    let start = out.0.len();
    form.data_head(&mut out.0, true, range.start, length(&range));
    if let Err(e) = out.read(&*session.export, range.start, length(&range)) {
        out.0.truncate(start);
        form.failure(&mut out.0, e, &e.to_string());
    }
}

/// A read in as many chunks as it has pieces, zeroes not sent. The first piece that fails ends it.
fn read_chunks(
    range: Range<u64>,
    form: Form,
    session: &Session,
    out: &mut Gathered,
    outbox: &Outbox,
) -> io::Result<()> {
    for (piece, zero) in pieces(&range, session) {
        let (offset, last, start) = (piece.start, piece.end == range.end, out.0.len());
        if zero {
            let len = u32::try_from(length(&piece)).expect("a read is at most the largest payload");
            form.hole(&mut out.0, last, offset, len);
        } else {
            form.data_head(&mut out.0, last, offset, length(&piece));
            if let Err(e) = out.read(&*session.export, offset, length(&piece)) {
                out.0.truncate(start);
                let text = format!("read at {offset}: {e}");
                if offset == range.start {
                    form.failure(&mut out.0, e, &text);
                } else {
                    form.failure_at(&mut out.0, e, &text, offset);
                }
                return Ok(());
            }
        }
        out.flush_if_long(outbox)?;
    }
    Ok(())
}

/// Reads for nobody: what keeps the bytes below the export has them at hand when they are asked for.
fn cache(range: Range<u64>, session: &Session) -> Result<(), Errno> {
    let range = range.start..range.end.min(range.start + CACHED_BYTES_MAX);
    let mut nobody = Vec::new();
    for (piece, _) in pieces(&range, session).into_iter().filter(|(_, zero)| !zero) {
        nobody.resize(length(&piece), 0);
        session.export.read(piece.start, &mut nobody)?;
    }
    Ok(())
}

/// The chunks of a read, in order and without gap: (range, reads as zeroes).
fn pieces(range: &Range<u64>, session: &Session) -> Vec<(Range<u64>, bool)> {
    let sparse = session.terms.info.cheap_extents && length(range) >= SPARSE_READ_BYTES;
    // Where the extents are unknown, all is data: always a true answer.
    let extents = if sparse {
        session
            .export
            .extents(range.clone(), EXTENTS_MAX)
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    split(range, &extents)
}

fn split(range: &Range<u64>, extents: &[Extent]) -> Vec<(Range<u64>, bool)> {
    // Runs of one kind, joined; what no extent covers is data.
    let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
    let mut at = range.start;
    let rest = Extent {
        len: u64::MAX,
        hole: false,
        zero: false,
    };
    for e in extents.iter().chain([&rest]) {
        let end = at.saturating_add(e.len).min(range.end);
        match runs.last_mut() {
            _ if end == at => {}
            Some((last, zero)) if *zero == e.zero => last.end = end,
            _ => runs.push((at..end, e.zero)),
        }
        at = end;
    }
    let mut out = Vec::with_capacity(runs.len());
    for (run, zero) in runs {
        let step = if zero { u64::MAX } else { CHUNK_BYTES };
        let mut at = run.start;
        while at < run.end {
            let end = at.saturating_add(step).min(run.end);
            out.push((at..end, zero));
            at = end;
        }
    }
    out
}

/// The length of a part of a read, which is at most the largest payload.
fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ext(len: u64, zero: bool) -> Extent {
        Extent {
            len,
            hole: zero,
            zero,
        }
    }

    #[test]
    fn what_no_extent_covers_is_data() {
        assert_eq!(split(&(10..30), &[]), [(10..30, false)]);
        assert_eq!(
            split(&(10..30), &[ext(5, true)]),
            [(10..15, true), (15..30, false)]
        );
        assert_eq!(
            split(&(10..30), &[ext(5, true), ext(3, true), ext(99, false)]),
            [(10..18, true), (18..30, false)]
        );
    }

    #[test]
    fn data_is_cut_in_chunks_and_holes_are_not() {
        let m = CHUNK_BYTES;
        assert_eq!(
            split(&(0..3 * m), &[ext(m + 1, false), ext(9 * m, true)]),
            [(0..m, false), (m..m + 1, false), (m + 1..3 * m, true)]
        );
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once(
            extents in prop::collection::vec((0u64..1 << 22, any::<bool>()), 0..20),
            start in 0u64..1 << 40, len in 1u64..1 << 25,
        ) {
            let e: Vec<_> = extents.iter().map(|&(l, z)| ext(l, z)).collect();
            let mut at = start;
            for (r, zero) in split(&(start..start + len), &e) {
                prop_assert!(r.start == at && r.end > at && (zero || r.end - r.start <= CHUNK_BYTES));
                at = r.end;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
