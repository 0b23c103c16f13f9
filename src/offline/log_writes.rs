//! `dump --log-writes`: a volume's records as a dm-log-writes log (N18; `docs/formats/log-writes.md`).
//!
//! # Overview
//!
//! The kernel's device-mapper target `log-writes` keeps every write of a device in a log, and `replay-log` (xfstests) plays it
//! over another device, up to any mark. Our journal holds the same for every volume: exported in that format, it lets a tool that
//! knows nothing of us rebuild the volume at every mark, over the volume as of the point where the log begins.
//!
//! # What becomes what
//!
//! | journal | log |
//! | --- | --- |
//! | the point the log begins behind | a mark `seq:N` |
//! | write | a write of whole sectors; where a record does not fill its first or last one, the sector as of that record |
//! | zeroes | a write of zeroes |
//! | discard | DISCARD (it reads as zeroes) |
//! | end of a container | FLUSH, then a mark `lfc:ID`: all before it is durable on this host (`rules.md` T2) |
//! | event mark | FLUSH, then a mark of its name: `rtmark` is a barrier |
//! | the point the log ends at | a mark `seq:N` |
//!
//! FUA never appears: the journal does not keep which write asked for it. A flush of a client leaves no trace either.
//!
//! # What it does not do
//!
//! It exports no log across copies (a first sync or resync sent bytes beside the journal) or across a change of size, and
//! imports none.

use super::{
    Done, Stopped, progress, refused,
    salvage::{Image, before, may_write, resolve, shown, view},
};
use crate::context::sizes_at;
use control::{Code, Failure, Reply, client::Listener, event::Unit, offline::LogWritesReply};
use journal::{Journal, Position};
use model::{ByteRange, Payload, Point, Record, RecordBody, Target, VolumeIndex, target::TargetKind};
use snapshot::{View, Volumes};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Bytes of a sector, and of an entry.
const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Bytes of an entry's fields.
const FIELDS: usize = 32;
/// Most bytes of one write.
const WRITE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of frames that are read at once.
const FRAMES_BYTES: u64 = 8 << 20;

pub(super) fn export(
    node: &Stopped,
    volume: Option<&str>,
    (from, to): (Option<&Target>, &Target),
    (file, force): (&Path, bool),
    dry_run: bool,
    listener: &mut dyn Listener,
) -> Done {
    let (index, name) = the_volume(node, volume)?;
    may_write(node, file, force)?;
    let (journal, _) = node.journal(false)?;
    let volumes = node.volumes(&journal, &[index])?;
    let from = match from {
        Some(target) => resolve(node, &journal, target)?,
        None => {
            let window = journal.window(None).map_err(|e| refused(e.to_string()))?;
            resolve(node, &journal, &seq_of(window.oldest.at))?
        }
    };
    let to = resolve(node, &journal, to)?;
    let at_first = volumes.get(index).map_err(|e| refused(e.to_string()))?.size();
    let size = sizes_at(&journal, &volumes, &to)
        .remove(&index)
        .unwrap_or(at_first);
    if !size.is_multiple_of(SECTOR) {
        return Err(refused(format!(
            "volume {name} has {size} bytes: not whole sectors"
        )));
    }
    if dry_run {
        let step = format!(
            "write the records of volume {name} behind {} and up to {} to {}",
            from.seq,
            to.seq,
            file.display()
        );
        return Ok(super::plan(shown(node, &journal, &from), vec![step]));
    }
    let image = Image::begin(file)?;
    let mut log = Log {
        image: &image,
        at: SECTOR,
        entries: 0,
        marks: 0,
    };
    let source = Past {
        node,
        journal: &journal,
        volumes: &volumes,
        index,
        size,
    };
    let written = source
        .walk(&mut log, &from, &to, listener)
        .and_then(|()| log.end());
    if let Err(e) = written {
        image.discard();
        return Err(e);
    }
    let (entries, marks, bytes) = (log.entries, log.marks, log.at);
    image.finish(force)?;
    Ok(Reply::LogWrites(Box::new(LogWritesReply {
        context: node.id,
        volume: name,
        file: file.display().to_string(),
        from: shown(node, &journal, &from),
        to: shown(node, &journal, &to),
        entries,
        marks,
        bytes,
    })))
}

fn the_volume(node: &Stopped, name: Option<&str>) -> Done<(VolumeIndex, String)> {
    let config = node.config()?;
    let mut all = config
        .indexed()
        .filter(|(_, v)| name.is_none_or(|name| name == v.name));
    match (all.next(), all.next()) {
        (Some((index, volume)), None) => Ok((index, volume.name.clone())),
        (None, _) => Err(refused(format!("context {} has no such volume", node.id))),
        _ => Err(Box::new(Failure::new(
            Code::Usage,
            "which volume? a log is of one: -L NAME",
        ))),
    }
}

fn seq_of(at: Position) -> Target {
    Target {
        generation: Some(at.generation),
        kind: TargetKind::Seq(at.seq),
    }
}

/// A volume's history on this host.
struct Past<'a> {
    node: &'a Stopped,
    journal: &'a Arc<Journal>,
    volumes: &'a Volumes,
    index: VolumeIndex,
    size: u64,
}

impl Past<'_> {
    fn walk(&self, log: &mut Log<'_>, from: &Point, to: &Point, listener: &mut dyn Listener) -> Done<()> {
        let line = self.journal.line(None);
        let along = |point: &Point| {
            let span = line.iter().position(|s| s.generation == point.generation)?;
            (point.seq <= line[span].upto).then_some((span, point.seq))
        };
        let (Some(begin), Some(end)) = (along(from), along(to)) else {
            return Err(refused(
                "both points must be on the line that this host is on now",
            ));
        };
        if end < begin {
            return Err(Box::new(Failure::new(Code::Usage, "--to is before --from")));
        }
        let containers: BTreeMap<Position, model::LfcId> = self
            .journal
            .lfc_rows(..)
            .iter()
            .map(|row| {
                let at = Position {
                    generation: row.generation,
                    seq: row.last_seq,
                };
                (at, row.lfc)
            })
            .collect();
        log.mark(&format!("seq:{}", from.seq))?;
        let mut at = from.seq;
        'all: while (at) < to.seq {
            let frames = self
                .journal
                .frames_after(at, FRAMES_BYTES)
                .map_err(|e| refused(e.to_string()))?;
            let Some(last) = frames.last() else { break };
            progress(
                listener,
                "export",
                at.0 - from.seq.0,
                to.seq.0 - from.seq.0,
                Unit::Writes,
            );
            for frame in &frames {
                let generation = self.journal.generation_by_id(frame.generation()).map(|g| g.no);
                let Some(span) = line.iter().find(|s| Some(s.generation) == generation) else {
                    return Err(refused("a frame is of a generation that is not on this line"));
                };
                for record in frame.records() {
                    if record.seq <= at || record.seq > span.upto {
                        continue;
                    }
                    if record.seq > to.seq {
                        break 'all;
                    }
                    let place = Position {
                        generation: span.generation,
                        seq: record.seq,
                    };
                    self.record(log, record, place)?;
                    if let Some(lfc) = containers.get(&place) {
                        log.flush()?;
                        log.mark(&format!("lfc:{lfc}"))?;
                    }
                }
            }
            at = last.last_seq();
        }
        log.mark(&format!("seq:{}", to.seq))
    }

    fn record(&self, log: &mut Log<'_>, record: &Record, place: Position) -> Done<()> {
        match &record.body {
            RecordBody::Mark { name, .. } => {
                log.flush()?;
                return log.mark(name);
            }
            RecordBody::Copy { .. } if record.volume == self.index => {
                let text = format!(
                    "record {} is a copy: its bytes were sent beside the journal, and no log across it can be replayed",
                    record.seq
                );
                let hint = "begin behind the copies (--from), or end before them (--to)";
                return Err(Box::new(Failure::new(Code::Refused, text).with_hint(hint)));
            }
            RecordBody::Size { .. } if record.volume == self.index => {
                let text = format!(
                    "record {} changes the volume's size: a log has one size",
                    record.seq
                );
                return Err(refused(text));
            }
            _ => {}
        }
        if record.volume != self.index {
            return Ok(());
        }
        let (Some(range), Some(payload)) = (record.changed(), record.payload()) else {
            return Ok(());
        };
        let whole = ByteRange {
            start: range.start / SECTOR * SECTOR,
            end: (range.end.div_ceil(SECTOR) * SECTOR).min(self.size),
        };
        if whole != range {
            // The bytes around it in its sectors, as of the record itself.
            let mut bytes = vec![0; (whole.end - whole.start) as usize];
            let view = self.before(place)?;
            let read = view.read(self.index, whole.start, &mut bytes);
            read.map_err(|e| refused(e.to_string()))?;
            let inside = (range.start - whole.start) as usize..(range.end - whole.start) as usize;
            payload.copy_to(0, &mut bytes[inside]);
            return log.write(whole.start, &bytes);
        }
        match (&record.body, payload) {
            (_, Payload::Data(data)) => log.write(range.start, &data),
            (RecordBody::Zero { discard: true, .. }, Payload::Zero) => log.discard(range),
            (_, Payload::Zero) => {
                let mut at = range.start;
                while at < range.end {
                    let n = (range.end - at).min(WRITE_BYTES_MAX);
                    log.write(at, &vec![0; n as usize])?;
                    at += n;
                }
                Ok(())
            }
        }
    }

    /// The volumes right before a record.
    fn before(&self, place: Position) -> Done<View> {
        let seq = before(place.seq);
        // By number alone: it may be the last one of the generation before.
        let target = Target {
            generation: None,
            kind: TargetKind::Seq(seq),
        };
        view(
            self.journal,
            self.volumes,
            resolve(self.node, self.journal, &target)?,
        )
    }
}

/// A log that is being written.
struct Log<'a> {
    image: &'a Image,
    at: u64,
    entries: u64,
    marks: u64,
}

/// An entry's sector.
fn entry(sector: u64, sectors: u64, flags: u64, text: &str) -> Vec<u8> {
    let mut text = text;
    // A name longer than the sector has room for is cut where a character ends.
    while text.len() > SECTOR as usize - FIELDS - 1 {
        let end = text.char_indices().next_back().map_or(0, |(at, _)| at);
        text = &text[..end];
    }
    let mut bytes = Vec::with_capacity(SECTOR as usize);
    for field in [sector, sectors, flags, text.len() as u64] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(SECTOR as usize, 0);
    bytes
}

impl Log<'_> {
    fn put(&mut self, entry: &[u8], data: &[u8]) -> Done<()> {
        self.image.write(self.at, entry)?;
        self.image.write(self.at + SECTOR, data)?;
        self.at += SECTOR + data.len() as u64;
        self.entries += 1;
        Ok(())
    }

    fn write(&mut self, at: u64, data: &[u8]) -> Done<()> {
        self.put(&entry(at / SECTOR, data.len() as u64 / SECTOR, 0, ""), data)
    }

    fn discard(&mut self, range: ByteRange) -> Done<()> {
        self.put(
            &entry(range.start / SECTOR, range.len() / SECTOR, DISCARD, ""),
            &[],
        )
    }

    fn flush(&mut self) -> Done<()> {
        self.put(&entry(0, 0, FLUSH, ""), &[])
    }

    fn mark(&mut self, text: &str) -> Done<()> {
        self.marks += 1;
        self.put(&entry(0, 0, MARK, text), &[])
    }

    /// The superblock comes last: a log without one is no log.
    fn end(&mut self) -> Done<()> {
        let mut bytes = Vec::with_capacity(SECTOR as usize);
        for field in [MAGIC, VERSION, self.entries] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&(SECTOR as u32).to_le_bytes());
        bytes.resize(SECTOR as usize, 0);
        self.image.write(0, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_fields_of_the_kernel() {
        let bytes = entry(7, 2, DISCARD, "");
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..32], [7u64, 2, 4, 0].map(u64::to_le_bytes).concat());
        let bytes = entry(0, 0, MARK, "end-of-day");
        assert_eq!(bytes[24..43], *b"\x0a\0\0\0\0\0\0\0end-of-day\0");
        let long = "ä".repeat(400);
        let bytes = entry(0, 0, MARK, &long);
        let len = usize::from(u16::from_le_bytes([bytes[24], bytes[25]]));
        assert_eq!((len, bytes.len()), (478, 512));
        assert!(std::str::from_utf8(&bytes[32..32 + len]).is_ok());
    }
}
