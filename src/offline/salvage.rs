//! `salvage`: volumes at a point, from one host's state directory alone (N20).
//!
//! # Overview
//!
//! A host that builds undo (a recovery host, or a production that was one) shows any point of its window through a
//! [`View`], as it does while it runs. A production that builds none has one state: its volumes with everything behind
//! `checkpointed` written again in order, as its start would do; here that goes to the image instead of the volume.
//!
//! # What is never written
//!
//! Bytes that do not check. A block that cannot be read ends the command with its place; with `best_effort` it is a hole in the
//! image and a range in the answer.
//!
//! # Crash consistency
//!
//! An image is written beside its place, synced, and takes its name when it is whole: a file of that name is never half of one.

use super::{Done, Stopped, failed, progress, refused};
use crate::{applying::acting::builds_undo, context::sizes_at};
use control::{
    Code, Event, Failure, PointInfo, Reply,
    client::Listener,
    event::Unit,
    offline::{LostRange, SalvageReply, SalvagedVolume},
};
use journal::{Frame, Journal, Position, ResolveError};
use model::{
    BLOCK_SIZE, ByteRange, Payload, Point, Role, Target, Timestamp, VolumeIndex, WriteSeq, ports::History,
    target::TargetKind,
};
use snapshot::{View, Volumes};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes of frames that are written again at once.
const REPLAY_BYTES: u64 = 8 << 20;
/// Most blocks that a refusal names.
const NAMED_MAX: usize = 20;

pub(super) struct Order<'a> {
    pub at: &'a Target,
    pub volume: Option<&'a str>,
    pub out: &'a Path,
    pub best_effort: bool,
    pub force: bool,
    pub dry_run: bool,
}

pub(super) fn salvage(node: &Stopped, order: &Order<'_>, listener: &mut dyn Listener) -> Done {
    let config = node.config()?;
    let wanted: Vec<(VolumeIndex, String, PathBuf)> = config
        .indexed()
        .filter(|(_, v)| order.volume.is_none_or(|name| name == v.name))
        .map(|(index, v)| {
            let file = match order.volume {
                Some(_) => order.out.to_owned(),
                None => order.out.join(&v.name),
            };
            (index, v.name.clone(), file)
        })
        .collect();
    if wanted.is_empty() {
        let names: Vec<_> = config.volumes.iter().map(|v| v.name.as_str()).collect();
        let text = format!(
            "context {} has no such volume: it has {}",
            node.id,
            names.join(", ")
        );
        return Err(refused(text));
    }
    outside(node, order.out)?;
    if order.volume.is_none() && !order.dry_run {
        std::fs::create_dir_all(order.out).map_err(failed(order.out.display()))?;
    }
    for (_, _, file) in wanted
        .iter()
        .filter(|_| order.volume.is_some() || order.out.is_dir())
    {
        may_write(node, file, order.force)?;
    }
    let (journal, damage) = node.journal(order.best_effort)?;
    let indexes: Vec<_> = wanted.iter().map(|(index, ..)| *index).collect();
    let volumes = node.volumes(&journal, &indexes)?;
    let mut warnings: Vec<String> = damage
        .iter()
        .map(|d| format!("the journal is damaged: {d}"))
        .collect();
    let source = Source::at(node, &journal, volumes, order.at, damage.is_some())?;
    let info = node.point_info(&journal, &source.point(&journal), Some(order.at.to_string()));
    listener.event(Event::Resolved {
        level: None,
        point: info.clone(),
    });
    if let Source::Broken(_) = &source {
        warnings.push(format!(
            "records behind {} are not replayed, and may be on the volumes in part",
            info.seq
        ));
    }
    if order.dry_run {
        let step = |(_, name, file): &(VolumeIndex, String, PathBuf)| {
            format!("write volume {name} to {}", file.display())
        };
        return Ok(super::plan(info, wanted.iter().map(step).collect()));
    }
    let mut done = Vec::new();
    for (index, name, file) in wanted {
        let image = Image::begin(&file)?;
        let written = source.write(&journal, index, &image, listener);
        let written = written.inspect_err(|_| image.discard())?;
        if !written.lost.is_empty() && !order.best_effort {
            image.discard();
            return Err(lost(node, &name, &written.lost));
        }
        image.finish(order.force)?;
        done.push(SalvagedVolume {
            name,
            file: file.display().to_string(),
            ..written
        });
    }
    Ok(Reply::Salvage(Box::new(SalvageReply {
        context: node.id,
        folder: node.state.display().to_string(),
        point: info,
        volumes: done,
        warnings,
    })))
}

/// Fills a buffer from a place, or says why not.
type Reads<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), String>;

/// Takes frames to be written again.
type Put<'a> = &'a mut dyn FnMut(&[Arc<Frame>]) -> Done<()>;

/// What a volume is read from.
enum Source {
    /// History behind the volumes, at a point.
    View(View),
    /// The volumes of a production, and everything that its journal has for them.
    Head(Volumes),
    /// The same of one whose journal is damaged: what it has up to the damage.
    Broken(Volumes),
}

impl Source {
    fn at(
        node: &Stopped,
        journal: &Arc<Journal>,
        volumes: Volumes,
        target: &Target,
        is_damaged: bool,
    ) -> Done<Self> {
        let row = journal.context().map_err(|e| refused(e.to_string()))?;
        let row = row.ok_or_else(|| refused("the context never started: there is nothing"))?;
        if row.role == Role::Production && !builds_undo(journal) {
            if target.kind != TargetKind::Latest || target.generation.is_some() {
                let text =
                    format!("'{target}': this host was production and keeps no earlier points, only latest");
                let hint = "the recovery host's state directory has them";
                return Err(Box::new(Failure::new(Code::OutsideWindow, text).with_hint(hint)));
            }
            return Ok(if is_damaged {
                Self::Broken(volumes)
            } else {
                Self::Head(volumes)
            });
        }
        let mut target = target.clone();
        if is_damaged && target.generation.is_none() {
            // Nothing is open, so no line is the current one: the newest is meant.
            target.generation = journal.generations().last().map(|g| g.no);
        }
        let point = resolve(node, journal, &target)?;
        Ok(Self::View(view(journal, &volumes, point)?))
    }

    fn point(&self, journal: &Journal) -> Point {
        match self {
            Self::View(view) => view.point().clone(),
            Self::Head(_) | Self::Broken(_) => {
                let row = journal.open_row();
                let row = row.or_else(|| journal.lfc_rows(..).last().map(|row| (**row).clone()));
                let end = row.as_ref().map(|r| (r.generation, r.last_seq));
                let head = journal.head().map(|(at, _)| (at.generation, at.seq));
                let (generation, seq) = head.or(end).unwrap_or_default();
                Point {
                    generation,
                    seq,
                    lfc: row.as_ref().map(|r| r.lfc).unwrap_or_default(),
                    time: row.map(|r| r.last_time).unwrap_or_default(),
                    base: journal.published(),
                    redo: Vec::new(),
                }
            }
        }
    }

    fn write(
        &self,
        journal: &Journal,
        index: VolumeIndex,
        image: &Image,
        listener: &mut dyn Listener,
    ) -> Done<SalvagedVolume> {
        match self {
            Self::View(view) => {
                let size = view.size(index).map_err(|e| refused(e.to_string()))?;
                let zero = |range: ByteRange| {
                    let extents = view.extents(index, range);
                    extents
                        .ok()
                        .and_then(|all| all.first().copied())
                        .filter(|e| e.zero)
                        .map(|e| e.range.end)
                };
                image.copy(
                    size,
                    &zero,
                    &|at, buf| view.read(index, at, buf).map_err(|e| e.to_string()),
                    listener,
                )
            }
            Self::Head(volumes) | Self::Broken(volumes) => {
                let volume = volumes.get(index).map_err(|e| refused(e.to_string()))?;
                let medium = volume.medium();
                // Of a damaged journal nothing is open, and no line is today's: the newest generation's is.
                let newest = journal.generations().last().map(|g| Position {
                    generation: g.no,
                    seq: WriteSeq(u64::MAX),
                });
                let at_newest = || journal.size_at(index, newest?);
                let size = journal
                    .size_now(index)
                    .or_else(at_newest)
                    .unwrap_or(volume.size());
                let zero = |range: ByteRange| match medium.next_data(range.start) {
                    Ok(Some(data)) if data.start > range.start => Some(data.start),
                    Ok(None) => Some(size),
                    _ => None,
                };
                let read = |at, buf: &mut [u8]| medium.read_at(at, buf).map_err(|e| e.to_string());
                let written = image.copy(size, &zero, &read, listener)?;
                let mut put = |frames: &[Arc<Frame>]| replay(frames, index, image, size);
                match self {
                    Self::Broken(_) => rows_behind(journal, &mut put)?,
                    _ => frames_behind(journal, &mut put)?,
                }
                Ok(SalvagedVolume {
                    data_bytes: image.data_bytes()?,
                    ..written
                })
            }
        }
    }
}

/// Hands on everything that may not be on a production's volumes, as its start would take it.
fn frames_behind(journal: &Journal, put: Put<'_>) -> Done<()> {
    let cursors = journal.cursors();
    let mut from = cursors.checkpointed;
    while from < cursors.durable {
        let frames = journal
            .frames_after(from, REPLAY_BYTES)
            .map_err(|e| refused(e.to_string()))?;
        let Some(last) = frames.last() else { break };
        put(&frames)?;
        from = last.last_seq();
    }
    Ok(())
}

/// The same where the journal is damaged and nothing is open: container by container, up to the damage.
fn rows_behind(journal: &Journal, put: Put<'_>) -> Done<()> {
    let checkpointed = journal.cursors().checkpointed;
    let newest = journal.generations().last().map(|g| g.no);
    let rows = journal.lfc_rows(..);
    let wanted = rows
        .iter()
        .filter(|row| Some(row.generation) == newest && row.last_seq > checkpointed);
    for row in wanted {
        let frames = journal.frames_of(row.generation, row.lfc);
        put(&frames.map_err(|e| refused(e.to_string()))?)?;
    }
    Ok(())
}

/// Writes records again.
fn replay(frames: &[Arc<Frame>], index: VolumeIndex, image: &Image, size: u64) -> Done<()> {
    for record in frames
        .iter()
        .flat_map(|f| f.records())
        .filter(|r| r.volume == index)
    {
        let (Some(range), Some(payload)) = (record.changed(), record.payload()) else {
            continue;
        };
        if range.end > size {
            return Err(refused(format!(
                "record {} passes the end of the volume",
                record.seq
            )));
        }
        image.put(range, &payload)?;
    }
    Ok(())
}

/// The point that a target means on this host.
pub(super) fn resolve(node: &Stopped, journal: &Journal, target: &Target) -> Done<Point> {
    journal
        .resolve(target, Timestamp::now())
        .map(|resolved| resolved.point)
        .map_err(|e| not_reached(node, &e))
}

fn not_reached(node: &Stopped, error: &ResolveError) -> Box<Failure> {
    let mut failure = crate::ops::snapshot::not_reached(error);
    if failure.hint.is_none() {
        failure.hint = Some(format!("what there is: {} rows", node.command("dump")));
    }
    Box::new(failure)
}

/// The volumes at a point.
pub(super) fn view(journal: &Arc<Journal>, volumes: &Volumes, point: Point) -> Done<View> {
    let history: Arc<dyn History> = Arc::clone(journal) as Arc<dyn History>;
    let sizes = sizes_at(journal, volumes, &point);
    View::new(point, sizes, volumes.clone(), history).map_err(|e| refused(e.to_string()))
}

/// What cannot be read, by name.
fn lost(node: &Stopped, volume: &str, ranges: &[LostRange]) -> Box<Failure> {
    let bytes: u64 = ranges.iter().map(|r| r.bytes).sum();
    let text =
        format!("{bytes} bytes of volume {volume} cannot be read as of that point; nothing was written");
    let mut failure = Failure::new(Code::Refused, text)
        .with_hint("take another point, or write what can be read: --best-effort");
    failure.caused_by = ranges
        .iter()
        .take(NAMED_MAX)
        .map(|r| {
            let (first, last) = (r.offset / BLOCK_SIZE, (r.offset + r.bytes - 1) / BLOCK_SIZE);
            format!(
                "blocks {first} to {last} ({} bytes at {}): {}",
                r.bytes, r.offset, r.why
            )
        })
        .collect();
    if ranges.len() > NAMED_MAX {
        failure
            .caused_by
            .push(format!("and {} ranges more", ranges.len() - NAMED_MAX));
    }
    failure
        .caused_by
        .push(format!("all of it: {}", node.command("fsck-journal")));
    failure.into()
}

/// Refuses a place where nothing may be written.
pub(super) fn may_write(node: &Stopped, file: &Path, force: bool) -> Done<()> {
    outside(node, file)?;
    match std::fs::symlink_metadata(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(file.display())(e)),
        Ok(meta) if !meta.is_file() => Err(refused(format!(
            "{} is no file: write into a file, and copy it from there",
            file.display()
        ))),
        Ok(_) if force => Ok(()),
        Ok(_) => {
            let text = format!("{} is there already", file.display());
            Err(Box::new(
                Failure::new(Code::Refused, text).with_hint("-f replaces it"),
            ))
        }
    }
}

/// Refuses a place below the state directory, whether its folders are there already or not.
fn outside(node: &Stopped, path: &Path) -> Done<()> {
    let state = &node.state;
    let state = state.canonicalize().map_err(failed(state.display()))?;
    let mut above = path.parent();
    let there = loop {
        match above {
            Some(folder) if !folder.as_os_str().is_empty() => match folder.canonicalize() {
                Ok(there) => break there,
                Err(_) => above = folder.parent(),
            },
            _ => break Path::new(".").canonicalize().map_err(failed("."))?,
        }
    };
    let itself = path.canonicalize();
    if there.starts_with(&state) || itself.is_ok_and(|path| path.starts_with(&state)) {
        let text = format!(
            "{} is in the state directory that is read: nothing is written there",
            path.display()
        );
        return Err(Box::new(Failure::new(Code::Usage, text)));
    }
    Ok(())
}

/// A file that is being written under another name.
pub(super) struct Image {
    file: File,
    path: PathBuf,
    last: PathBuf,
}

impl Image {
    /// A new file beside `path`.
    pub(super) fn begin(path: &Path) -> Done<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&partial);
        Ok(Self {
            file: file.map_err(failed(partial.display()))?,
            path: partial,
            last: path.to_owned(),
        })
    }

    fn fail(&self, e: io::Error) -> Box<Failure> {
        Box::new(Failure::new(
            Code::PartWay,
            format!("{}: {e}", self.path.display()),
        ))
    }

    /// Bytes at a place.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Done<()> {
        self.file.write_all_at(bytes, at).map_err(|e| self.fail(e))
    }

    fn put(&self, range: ByteRange, payload: &Payload) -> Done<()> {
        match payload {
            Payload::Data(data) => self.write(range.start, data),
            Payload::Zero => {
                let zeroes = vec![0; CHUNK_BYTES as usize];
                let mut at = range.start;
                while at < range.end {
                    let n = (range.end - at).min(CHUNK_BYTES);
                    self.write(at, &zeroes[..n as usize])?;
                    at += n;
                }
                Ok(())
            }
        }
    }

    fn data_bytes(&self) -> Done<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata().map_err(|e| self.fail(e))?.blocks() * 512)
    }

    /// Copies what can be read, and notes what cannot. `zero` answers up to where it is known to be zero from a place on.
    fn copy(
        &self,
        size: u64,
        zero: &dyn Fn(ByteRange) -> Option<u64>,
        read: Reads<'_>,
        listener: &mut dyn Listener,
    ) -> Done<SalvagedVolume> {
        self.file.set_len(size).map_err(|e| self.fail(e))?;
        let mut written = SalvagedVolume {
            bytes: size,
            ..SalvagedVolume::default()
        };
        let mut buf = vec![0; CHUNK_BYTES as usize];
        let mut at = 0;
        while at < size {
            let end = (at + CHUNK_BYTES).min(size);
            if let Some(data_at) = zero(ByteRange { start: at, end }).filter(|to| *to > at) {
                at = data_at.min(size);
                continue;
            }
            progress(listener, "salvage", at, size, Unit::Bytes);
            let chunk = &mut buf[..(end - at) as usize];
            if read(at, chunk).is_ok() {
                written.data_bytes += self.sparse(at, chunk)?;
            } else {
                // Block by block: one that cannot be read hides no other.
                for (block, n) in (at..end).step_by(BLOCK_SIZE as usize).zip(0u64..) {
                    let from = (n * BLOCK_SIZE) as usize;
                    let to = chunk.len().min(from + BLOCK_SIZE as usize);
                    match read(block, &mut chunk[from..to]) {
                        Ok(()) => written.data_bytes += self.sparse(block, &chunk[from..to])?,
                        Err(why) => add_lost(&mut written.lost, block, (to - from) as u64, why),
                    }
                }
            }
            at = end;
        }
        progress(listener, "salvage", size, size, Unit::Bytes);
        Ok(written)
    }

    /// Writes the blocks that are not zero; answers their bytes.
    fn sparse(&self, at: u64, bytes: &[u8]) -> Done<u64> {
        let mut written = 0;
        for (block, n) in bytes.chunks(BLOCK_SIZE as usize).zip(0u64..) {
            if block.iter().any(|b| *b != 0) {
                self.write(at + n * BLOCK_SIZE, block)?;
                written += block.len() as u64;
            }
        }
        Ok(written)
    }

    /// Takes the file away.
    pub(super) fn discard(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Makes it durable under its name.
    pub(super) fn finish(self, force: bool) -> Done<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let flags = if force {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        let named = || -> io::Result<()> {
            self.file.sync_all()?;
            renameat_with(CWD, &self.path, CWD, &self.last, flags)?;
            media::sync_parent(&self.last)
        };
        named().map_err(|e| {
            self.discard();
            self.fail(e)
        })
    }
}

/// Adds a range, joined to the one before it where both have one reason.
fn add_lost(lost: &mut Vec<LostRange>, offset: u64, bytes: u64, why: String) {
    match lost.last_mut() {
        Some(last) if last.offset + last.bytes == offset && last.why == why => last.bytes += bytes,
        _ => lost.push(LostRange { offset, bytes, why }),
    }
}

/// A point by a record's number, as commands show it.
pub(super) fn shown(node: &Stopped, journal: &Journal, point: &Point) -> PointInfo {
    node.point_info(journal, point, None)
}

/// The record before another one.
pub(super) fn before(seq: WriteSeq) -> WriteSeq {
    WriteSeq(seq.0.saturating_sub(1))
}
