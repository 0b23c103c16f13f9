//! A stopped node's journal as text: one line for each slot, header, entry, frame, record and row (`backstay dump`).
//!
//! Nothing is interpreted that is not there: superblock and tails are shown as the files have them, before any recovery; rows,
//! frames and undo as the store has them. What does not check is shown as that, and hides nothing behind it.

use crate::{
    codec::Reader,
    cursors::Cursors,
    error::JournalError,
    frame::Frame,
    keys::{self, Parts},
    line::decode_start,
    load::Tables,
    rows::{
        Consistent, ContextRow, Floors, Generation, LfcRow, OrdinalRow, PinRow, Promotion, RestoreRow,
        decode_mark, decode_step, decode_touched,
    },
    shadow::{media_of, store_of},
    sizes::{Extents, SizeChange},
    superblock,
    tail::{self, ENVELOPE_BYTES},
    undo::decode_undo,
    withheld::Withheld,
};
use bytes::Bytes;
use model::{
    BlockNo, GenNo, LfcId, Ordinal, Payload, Record, RecordBody, VolumeIndex, WriteSeq, is_zero,
    ports::{Family, Medium, Store},
};
use std::{fmt::Debug, path::Path};

/// What is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Both slots.
    Superblock,
    /// Headers, entries, frames and records of both tails.
    Tails,
    /// Catalog, metadata and maps.
    Rows,
    /// A stored container: its row, frames and records.
    Lfc(GenNo, LfcId),
    /// A record, of every generation that has one of this number.
    Seq(WriteSeq),
    /// Before-images of an ordinal; `None`: of all.
    Undo(Option<Ordinal>),
    /// Both indexes.
    Index,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is.
    pub kind: &'static str,
    /// Where it stands.
    pub at: String,
    /// Its fields.
    pub text: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Takes the lines.
pub type Sink<'a> = &'a mut dyn FnMut(Line);

/// Shows a part of the journal in `dir`.
///
/// # Errors
/// When the folder or a family of the store cannot be read; what stands in it and does not check is a line that says so.
pub fn dump(dir: &Path, lfc_size: u64, what: What, sink: Sink<'_>) -> Result<(), JournalError> {
    match what {
        What::Superblock => slots(&*media_of(dir, lfc_size)?.0, sink),
        What::Tails => {
            let (_, tails) = media_of(dir, lfc_size)?;
            (0..)
                .zip(&tails)
                .try_for_each(|(n, medium)| tail_lines(&**medium, n, sink))
        }
        What::Rows => {
            let store = store_of(dir)?;
            [Family::Catalog, Family::Meta, Family::Map]
                .into_iter()
                .try_for_each(|family| rows(&*store, family, sink))
        }
        What::Lfc(generation, lfc) => container(&*store_of(dir)?, generation, lfc, sink),
        What::Seq(seq) => record(dir, lfc_size, seq, sink),
        What::Undo(ordinal) => undo(&*store_of(dir)?, ordinal, sink),
        What::Index => {
            let store = store_of(dir)?;
            [Family::RedoIndex, Family::UndoIndex]
                .into_iter()
                .try_for_each(|family| index(&*store, family, sink))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn slots(medium: &dyn Medium, sink: Sink<'_>) -> Result<(), JournalError> {
    for slot in 0..2 {
        let at = slot * superblock::SLOT_BYTES;
        let mut block = vec![0; crate::codec::index(superblock::SLOT_BYTES)];
        medium
            .read_at(at, &mut block)
            .map_err(|e| JournalError::io("superblock", e))?;
        let text = match superblock::decode(&block) {
            Ok((counter, b)) => format!(
                "counter={counter} durable={} metadata={} checkpointed={}",
                b.durable, b.meta_seq, b.checkpointed
            ),
            Err(_) if is_zero(&block) => "blank".into(),
            Err(e) => format!("does not check: {e}"),
        };
        sink(Line {
            kind: "slot",
            at: format!("super byte {at}"),
            text,
            bytes: block.into(),
        });
    }
    Ok(())
}

fn tail_lines(medium: &dyn Medium, n: usize, sink: Sink<'_>) -> Result<(), JournalError> {
    let name = format!("tail.{n}");
    let all = tail::read_all(medium, &name)?;
    let scan = tail::scan(medium, &name)?;
    let head = all.slice(..all.len().min(crate::codec::index(tail::HEADER_BYTES)));
    let text = match scan.header {
        Some(h) => format!(
            "counter={} generation={:016x} container={} first={} digest={}{}{}{}",
            h.counter,
            h.start.generation.0,
            h.start.lfc,
            h.start.first_seq,
            hex(&h.start.prev_digest),
            if h.prev_flags.mark { " before=mark" } else { "" },
            h.prev_flags
                .cut
                .map(|at| format!(" before=cut:{at}"))
                .unwrap_or_default(),
            if h.start.after_gap { " after-gap" } else { "" },
        ),
        None if is_zero(&head) => "blank".into(),
        None => "no header that checks".into(),
    };
    sink(Line {
        kind: "tail",
        at: format!("{name} byte 0"),
        text,
        bytes: head,
    });
    for (loc, frame) in &scan.frames {
        let at = crate::codec::index(loc.at);
        let envelope = all.slice(at - ENVELOPE_BYTES..at);
        let durable =
            tail::read_envelope(&all[at - ENVELOPE_BYTES..]).map_or(WriteSeq(0), |(_, durable)| durable);
        sink(Line {
            kind: "entry",
            at: format!("{name} byte {}", at - ENVELOPE_BYTES),
            text: format!("bytes={} durable={durable}", loc.len),
            bytes: envelope,
        });
        frame_lines(frame, format!("{name} byte {at}"), sink);
    }
    sink(Line {
        kind: "end",
        at: format!("{name} byte {}", scan.end_at),
        text: format!(
            "{}{}",
            scan.fault,
            if scan.cut_bytes > 0 {
                " (an entry was begun)"
            } else {
                ""
            }
        ),
        bytes: Bytes::new(),
    });
    for stray in &scan.strays {
        sink(Line {
            kind: "stray",
            at: format!("{name} byte {}", stray.at),
            text: format!(
                "a whole frame that does not continue: generation={:016x} container={} last={} durable={}",
                stray.generation.0, stray.lfc, stray.last_seq, stray.durable
            ),
            bytes: Bytes::new(),
        });
    }
    Ok(())
}

fn frame_lines(frame: &Frame, at: String, sink: Sink<'_>) {
    let h = frame.header();
    sink(Line {
        kind: "frame",
        at,
        text: format!(
            "generation={:016x} container={} first={} records={} bytes={} before={} digest={}",
            h.generation.0,
            h.lfc,
            h.first_seq,
            h.records,
            frame.len(),
            hex(&h.prev_digest),
            hex(&frame.digest())
        ),
        bytes: frame.bytes().slice(..crate::frame::FRAME_HEADER_BYTES),
    });
    for record in frame.records() {
        sink(record_line(record));
    }
}

fn record_line(record: &Record) -> Line {
    let mut bytes = Bytes::new();
    let text = match &record.body {
        RecordBody::Write { offset, data } => {
            bytes = data.clone();
            format!("write offset={offset} bytes={}", data.len())
        }
        RecordBody::Zero { range, discard } => {
            let kind = if *discard { "discard" } else { "zero" };
            format!("{kind} offset={} bytes={}", range.start, range.len())
        }
        RecordBody::Mark {
            name,
            description,
            keep_ns,
        } => {
            let keep = keep_ns.map(|ns| format!(" keep={ns}ns")).unwrap_or_default();
            format!("mark name={name:?} description={description:?}{keep}")
        }
        RecordBody::Copy { range, digest } => {
            format!(
                "copy offset={} bytes={} blake3={}",
                range.start,
                range.len(),
                hex(digest)
            )
        }
        RecordBody::Size { size } => format!("size bytes={size}"),
        RecordBody::ClockStep { from, to } => format!("clock-step from={from} to={to}"),
        RecordBody::Birth {
            parent,
            parent_digest,
        } => match parent {
            Some((id, seq)) => format!("birth parent={:016x}:{seq} digest={}", id.0, hex(parent_digest)),
            None => "birth".into(),
        },
    };
    Line {
        kind: "record",
        at: record.seq.to_string(),
        text: format!("volume={} time={} {text}", record.volume, record.time),
        bytes,
    }
}

/// A decoded row, or why there is none.
fn shown<T: Debug>(row: Result<T, crate::codec::Malformed>) -> String {
    match row {
        Ok(row) => format!("{row:?}"),
        Err(e) => format!("does not check: {e}"),
    }
}

fn digests(row: &LfcRow) -> String {
    format!(
        "LfcRow records={}..={} times={}..={} frames={} writes={} bytes={} before={} digest={}{}{}{}{}{}",
        row.first_seq,
        row.last_seq,
        row.first_time,
        row.last_time,
        row.frames,
        row.writes,
        row.bytes,
        hex(&row.prev_digest),
        hex(&row.end_digest),
        if row.sealed.mark { " mark" } else { "" },
        row.sealed.cut.map(|at| format!(" cut:{at}")).unwrap_or_default(),
        if row.dropped { " dropped" } else { "" },
        if row.indexed { " indexed" } else { "" },
        if row.after_gap { " after-gap" } else { "" },
    )
}

fn rows(store: &dyn Store, family: Family, sink: Sink<'_>) -> Result<(), JournalError> {
    store.scan(family, &[], &[0xff; 24], &mut |key, value| {
        let text = match family {
            Family::Catalog => catalog(key, value),
            Family::Meta => Some(meta(key, value)),
            _ => Some(crate::map::shown(key, value)),
        };
        sink(Line {
            kind: "row",
            at: format!("{} {}", keys::family_name(family), hex(key)),
            text: text.unwrap_or_else(|| "the key has another form".into()),
            bytes: Bytes::copy_from_slice(value),
        });
        true
    })?;
    Ok(())
}

fn catalog(key: &[u8], value: &[u8]) -> Option<String> {
    let mut p = Parts(key);
    Some(match p.u8()? {
        keys::GENERATION => {
            let no = GenNo(p.u32()?);
            match Generation::decode(no, value) {
                Ok(g) => format!(
                    "g{no}: Generation id={:016x} first={} container={}{}",
                    g.id.0,
                    g.first_seq,
                    g.first_lfc,
                    g.parent
                        .map(|p| format!(" parent={:016x}:{} digest={}", p.id.0, p.seq, hex(&p.digest)))
                        .unwrap_or_default()
                ),
                Err(e) => format!("g{no}: does not check: {e}"),
            }
        }
        keys::LFC => {
            let (no, lfc) = (GenNo(p.u32()?), LfcId(p.u64()?));
            match LfcRow::decode(no, lfc, value) {
                Ok(row) => format!("g{no}:{lfc}: {}", digests(&row)),
                Err(e) => format!("g{no}:{lfc}: does not check: {e}"),
            }
        }
        keys::ORDINAL => {
            let ordinal = Ordinal(p.u64()?);
            shown(OrdinalRow::decode(ordinal, value))
        }
        keys::MARK => {
            let (no, seq) = (GenNo(p.u32()?), WriteSeq(p.u64()?));
            shown(decode_mark(no, seq, value))
        }
        keys::CLOCK_STEP => {
            let (no, seq) = (GenNo(p.u32()?), WriteSeq(p.u64()?));
            format!("g{no}:{seq}: ClockStep {}", shown(decode_step(value)))
        }
        keys::SIZE => {
            let (no, seq) = (GenNo(p.u32()?), WriteSeq(p.u64()?));
            format!("g{no}:{seq}: {}", shown(SizeChange::decode(value)))
        }
        keys::TOUCHED => {
            let (no, lfc) = (GenNo(p.u32()?), LfcId(p.u64()?));
            let ranges = decode_touched(value).map(|ranges| {
                let one = |(v, r): &(VolumeIndex, model::ByteRange)| format!("{v}:{}..{}", r.start, r.end);
                ranges.iter().map(one).collect::<Vec<_>>().join(" ")
            });
            match ranges {
                Ok(ranges) => format!("g{no}:{lfc}: Touched {ranges}"),
                Err(e) => format!("g{no}:{lfc}: does not check: {e}"),
            }
        }
        _ => return None,
    })
}

fn meta(key: &[u8], value: &[u8]) -> String {
    match key {
        keys::META_SEQ => format!("batch {}", shown(Reader(value).u64())),
        keys::CURSORS => shown(Cursors::decode(value)),
        keys::CONTEXT => shown(ContextRow::decode(value)),
        keys::RESTORE => shown(RestoreRow::decode(value)),
        keys::FLOORS => shown(Floors::decode(value)),
        keys::START => match decode_start(value) {
            Ok((no, s)) => format!(
                "Start g{no} container={} first={} digest={}",
                s.lfc,
                s.first_seq,
                hex(&s.prev_digest)
            ),
            Err(e) => format!("does not check: {e}"),
        },
        keys::CONSISTENT => shown(Consistent::decode_all(value)),
        keys::PROMOTION => shown(Promotion::decode(value)),
        keys::WITHHELD => shown(Withheld::decode(value)),
        keys::EXTENTS => shown(Extents::decode(value)),
        [keys::PIN, id @ ..] => shown(PinRow::decode(Parts(id).u64().unwrap_or_default(), value)),
        _ => "the key has another form".into(),
    }
}

fn container(store: &dyn Store, generation: GenNo, lfc: LfcId, sink: Sink<'_>) -> Result<(), JournalError> {
    let key = keys::lfc(generation, lfc);
    let row = store.get(Family::Catalog, &key)?;
    let Some(value) = row else {
        return Err(JournalError::NotHeld { generation, lfc });
    };
    sink(Line {
        kind: "row",
        at: format!("catalog {}", hex(&key)),
        text: catalog(&key, &value).unwrap_or_default(),
        bytes: value,
    });
    let (from, to) = (
        keys::redo(generation, lfc, 0),
        keys::redo(generation, LfcId(lfc.0 + 1), 0),
    );
    store.scan(Family::Redo, &from, &to, &mut |key, value| {
        let at = format!("redo {}", hex(key));
        match Frame::parse(Bytes::copy_from_slice(value)) {
            Ok(frame) => frame_lines(&frame, at, sink),
            Err(e) => sink(Line {
                kind: "frame",
                at,
                text: format!("does not check: {e}"),
                bytes: Bytes::copy_from_slice(value),
            }),
        }
        true
    })?;
    Ok(())
}

/// A record by its number, wherever it stands.
fn record(dir: &Path, lfc_size: u64, seq: WriteSeq, sink: Sink<'_>) -> Result<(), JournalError> {
    let store = store_of(dir)?;
    let tables = Tables::load(&*store)?;
    let mut any = false;
    let mut of_frame = |frame: &Frame, at: String| {
        let wanted = frame.first_seq() <= seq && seq <= frame.last_seq();
        if let Some(record) = frame.records().iter().find(|r| wanted && r.seq == seq) {
            any = true;
            let line = record_line(record);
            let (generation, lfc) = (frame.generation().0, frame.lfc());
            let at = format!(
                "{} in {at} (generation={generation:016x} container={lfc})",
                line.at
            );
            sink(Line { at, ..line });
        }
    };
    for row in tables
        .rows
        .values()
        .filter(|r| r.first_seq <= seq && seq <= r.last_seq)
    {
        let key = |frame| keys::redo(row.generation, row.lfc, frame);
        let to = keys::redo(row.generation, LfcId(row.lfc.0 + 1), 0);
        store.scan(Family::Redo, &key(0), &to, &mut |key, value| {
            if let Ok(frame) = Frame::parse(Bytes::copy_from_slice(value)) {
                of_frame(&frame, format!("redo {}", hex(key)));
            }
            true
        })?;
    }
    let (_, tails) = media_of(dir, lfc_size)?;
    for (n, medium) in tails.iter().enumerate() {
        let name = format!("tail.{n}");
        for (loc, frame) in tail::scan(&**medium, &name)?.frames {
            of_frame(&frame, format!("{name} byte {}", loc.at));
        }
    }
    match any {
        true => Ok(()),
        false => Err(JournalError::Refused(format!("record {seq} is not held here"))),
    }
}

fn undo(store: &dyn Store, ordinal: Option<Ordinal>, sink: Sink<'_>) -> Result<(), JournalError> {
    let key = |ordinal| keys::undo(ordinal, VolumeIndex(0), BlockNo(0));
    let (from, to) = match ordinal {
        Some(ordinal) => (key(ordinal), key(ordinal.next())),
        None => (Vec::new(), vec![0xff; 24]),
    };
    store.scan(Family::Undo, &from, &to, &mut |key, value| {
        let mut p = Parts(key);
        let at = (|| {
            Some(format!(
                "ordinal {} volume {} block {}",
                p.u64()?,
                p.u16()?,
                p.u64()?
            ))
        })();
        let value = Bytes::copy_from_slice(value);
        let (text, bytes) = match decode_undo(&value) {
            Ok(Payload::Zero) => ("zeroes".into(), Bytes::new()),
            Ok(Payload::Data(data)) => (format!("blake3={}", blake3::hash(&data).to_hex()), data),
            Err(e) => (format!("does not check: {e}"), value),
        };
        sink(Line {
            kind: "undo",
            at: at.unwrap_or_else(|| format!("key {}", hex(key))),
            text,
            bytes,
        });
        true
    })?;
    Ok(())
}

fn index(store: &dyn Store, family: Family, sink: Sink<'_>) -> Result<(), JournalError> {
    store.scan(family, &[], &[0xff; 24], &mut |key, value| {
        let text = keys::index_parts(key).and_then(|(volume, block, mut rest)| {
            let block = format!("volume={volume} block={}", block.0);
            if family == Family::UndoIndex {
                let kind = match value {
                    [0] => "zeroes",
                    [1] => "data",
                    _ => "an unknown flag",
                };
                return Some(format!("{block} ordinal={} {kind}", rest.u64()?));
            }
            let mut r = Reader(value);
            let at = format!("{block} g{}:{}", rest.u32()?, rest.u64()?);
            Some(format!(
                "{at} container={} frame={} record={}",
                r.u64().ok()?,
                r.u32().ok()?,
                r.u32().ok()?
            ))
        });
        sink(Line {
            kind: "entry",
            at: format!("{} {}", keys::family_name(family), hex(key)),
            text: text.unwrap_or_else(|| "it has another form".into()),
            bytes: Bytes::copy_from_slice(value),
        });
        true
    })?;
    Ok(())
}
