//! The index log: what survives a restart. Byte table: `docs/formats/overlay.md`.
//!
//! Two halves, of which one is in use: a header that names its generation, then entries. A half that is full, and every
//! reopening, is followed by the map as it is in the other half, with the next generation; its header is written when its
//! entries are durable, and is the moment of change. An entry's checksum is seeded with the log's id, the generation and
//! the entry's place, so what an earlier generation left in a half never checks.

use super::{failed, map::Place};
use crate::error::{Result, SnapshotError};
use model::{BlockNo, VolumeIndex, checks, ports::Medium};
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"BSOVLOG1";
const HEADER_LEN: u64 = 4096;
const HEADER_USED: usize = 44;
const ENTRY_LEN: u64 = 32;
/// Entries read at once.
const READ_ENTRIES: u64 = 4096;
const KIND_SLOT: u8 = 1;
const KIND_ZERO: u8 = 2;
/// Most blocks of a volume (4 PiB): a count has 40 bits.
pub(super) const BLOCKS_MAX: u64 = (1 << 40) - 1;

/// One change of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub volume: VolumeIndex,
    pub block: BlockNo,
    pub count: u64,
    pub place: Place,
}

impl Entry {
    /// Whether `next` only makes this one longer.
    pub(super) fn continued_by(&self, next: &Self) -> bool {
        let place = match self.place {
            Place::Slot(slot) => Place::Slot(slot + self.count),
            Place::Zero => Place::Zero,
        };
        self.volume == next.volume && self.block.0 + self.count == next.block.0 && place == next.place
    }

    fn encode(&self, seed: u32, durable: u32) -> [u8; ENTRY_LEN as usize] {
        let (kind, slot) = match self.place {
            Place::Slot(slot) => (KIND_SLOT, slot),
            Place::Zero => (KIND_ZERO, 0),
        };
        let mut b = [0; ENTRY_LEN as usize];
        b[4] = kind;
        b[5..10].copy_from_slice(&self.count.to_le_bytes()[..5]);
        b[10..12].copy_from_slice(&self.volume.0.to_le_bytes());
        b[12..20].copy_from_slice(&self.block.0.to_le_bytes());
        b[20..28].copy_from_slice(&slot.to_le_bytes());
        b[28..32].copy_from_slice(&durable.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &b[4..]);
        b[..4].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// The entry and how many before it were durable; `None` when the checksum does not fit.
    fn decode(b: &[u8; ENTRY_LEN as usize], seed: u32, slots: u64) -> Option<Result<(Self, u32)>> {
        if !checks(&crc32c::crc32c_append(seed, &b[4..]), &u32_at(b, 0)) {
            return None;
        }
        let mut count = [0; 8];
        count[..5].copy_from_slice(&b[5..10]);
        let (count, slot) = (u64::from_le_bytes(count), u64_at(b, 20));
        let place = match b[4] {
            KIND_SLOT => Place::Slot(slot),
            KIND_ZERO => Place::Zero,
            other => return Some(Err(damaged(format!("unknown kind {other}")))),
        };
        let entry = Self {
            volume: VolumeIndex(u16::from_le_bytes([b[10], b[11]])),
            block: BlockNo(u64_at(b, 12)),
            count,
            place,
        };
        let fits = count > 0
            && entry
                .block
                .0
                .checked_add(count)
                .is_some_and(|end| end <= BLOCKS_MAX)
            && match place {
                Place::Slot(slot) => slot.checked_add(count).is_some_and(|end| end <= slots),
                Place::Zero => slot == 0,
            };
        Some(if fits {
            Ok((entry, u32_at(b, 28)))
        } else {
            Err(damaged(format!("impossible entry {entry:?}")))
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    id: u64,
    generation: u64,
    slots: u64,
    /// Entries that were durable before the header was written.
    begun_with: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_USED] {
        let mut b = [0; HEADER_USED];
        b[..8].copy_from_slice(&MAGIC);
        for (i, field) in [self.id, self.generation, self.slots, self.begun_with]
            .into_iter()
            .enumerate()
        {
            b[8 + 8 * i..16 + 8 * i].copy_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&b[..HEADER_USED - 4]);
        b[HEADER_USED - 4..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// The version of a header that is whole and not of ours.
    fn other_version(b: &[u8; HEADER_USED]) -> Option<char> {
        let checks = crc32c::crc32c(&b[..HEADER_USED - 4]) == u32_at(b, HEADER_USED - 4);
        (checks && b[..7] == MAGIC[..7] && b[7] != MAGIC[7]).then_some(char::from(b[7]))
    }

    fn decode(b: &[u8; HEADER_USED]) -> Option<Self> {
        let ok = b[..8] == MAGIC
            && checks(
                &crc32c::crc32c(&b[..HEADER_USED - 4]),
                &u32_at(b, HEADER_USED - 4),
            );
        ok.then(|| Self {
            id: u64_at(b, 8),
            generation: u64_at(b, 16),
            slots: u64_at(b, 24),
            begun_with: u64_at(b, 32),
        })
    }

    /// What the checksums of this half's entries begin with.
    fn seed(&self, place: u64) -> u32 {
        let mut b = [0; 24];
        b[..8].copy_from_slice(&self.id.to_le_bytes());
        b[8..16].copy_from_slice(&self.generation.to_le_bytes());
        b[16..].copy_from_slice(&place.to_le_bytes());
        crc32c::crc32c(&b)
    }
}

/// The log, open for appending.
pub(super) struct Log {
    medium: Arc<dyn Medium>,
    half: u64,
    header: Header,
    len: u64,
    capacity: u64,
}

impl Log {
    /// Bytes of a half with room for `entries`.
    pub(super) const fn half_len(entries: u64) -> u64 {
        HEADER_LEN + (entries * ENTRY_LEN).next_multiple_of(HEADER_LEN)
    }

    /// An empty log over whatever the medium held.
    pub(super) fn create(medium: Arc<dyn Medium>, id: u64, slots: u64) -> Result<Self> {
        let mut log = Self::closed(medium, id, slots)?;
        for half in 0..2 {
            let at = log.half_at(half);
            log.zero(at, HEADER_LEN)?;
        }
        log.sync()?;
        log.restart(&[])?;
        Ok(log)
    }

    /// The log and its entries; the caller must restart it before it appends.
    pub(super) fn open(medium: Arc<dyn Medium>, id: u64, slots: u64) -> Result<(Self, Vec<Entry>)> {
        let mut log = Self::closed(medium, id, slots)?;
        let mut newest: Option<(u64, Header)> = None;
        for half in 0..2 {
            let mut b = [0; HEADER_USED];
            log.read(log.half_at(half), &mut b)?;
            if let Some(found) = Header::other_version(&b) {
                let known = char::from(MAGIC[7]);
                return Err(damaged(format!(
                    "the index log: version {found} was found, this build reads up to {known}"
                )));
            }
            if let Some(header) = Header::decode(&b)
                && newest.is_none_or(|(_, n)| n.generation < header.generation)
            {
                newest = Some((half, header));
            }
        }
        let Some((half, header)) = newest else {
            return Err(damaged("no half of the index log has a valid header".into()));
        };
        if header.id != id || header.slots != slots {
            return Err(damaged(format!(
                "the index log is of overlay {:016x} with {} slots, not of {id:016x} with {slots}",
                header.id, header.slots
            )));
        }
        (log.half, log.header) = (half, header);
        let entries = log.replay()?;
        log.len = entries.len() as u64;
        // A process that was killed may have left this header readable but not durable. It must be, before a new
        // generation is written over what the other half has.
        log.write(log.half_at(half), &header.encode())?;
        log.sync()?;
        Ok((log, entries))
    }

    fn closed(medium: Arc<dyn Medium>, id: u64, slots: u64) -> Result<Self> {
        let half_len = medium.len() / 2 / HEADER_LEN * HEADER_LEN;
        // More would not fit the 32 bits of an entry's durable count, nor any overlay worth having.
        let capacity = (half_len.saturating_sub(HEADER_LEN) / ENTRY_LEN).min(u64::from(u32::MAX));
        if slots > BLOCKS_MAX || capacity < 2 * slots + 1 {
            return Err(damaged(format!(
                "an index log of {} bytes is too short for {slots} slots",
                medium.len()
            )));
        }
        Ok(Self {
            medium,
            half: 1,
            header: Header {
                id,
                generation: 0,
                slots,
                begun_with: 0,
            },
            len: 0,
            capacity,
        })
    }

    /// Entries that a half has room for.
    pub(super) const fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(super) const fn has_room(&self, entries: usize) -> bool {
        self.len + entries as u64 <= self.capacity
    }

    fn half_at(&self, half: u64) -> u64 {
        half * (self.medium.len() / 2 / HEADER_LEN * HEADER_LEN)
    }

    fn entry_at(&self, half: u64, place: u64) -> u64 {
        self.half_at(half) + HEADER_LEN + place * ENTRY_LEN
    }

    /// Appends entries, whose data is durable, and makes them so.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        self.write_entries(self.half, &self.header, self.len, entries)?;
        self.sync()?;
        self.len += entries.len() as u64;
        Ok(())
    }

    /// Begins a new generation in the other half with the whole map, whose data is durable.
    pub(super) fn restart(&mut self, entries: &[Entry]) -> Result<()> {
        let half = 1 - self.half;
        let header = Header {
            generation: self.header.generation + 1,
            begun_with: entries.len() as u64,
            ..self.header
        };
        self.write_entries(half, &header, 0, entries)?;
        self.sync()?;
        let at = self.half_at(half);
        self.write(at, &header.encode())?;
        self.sync()?;
        // From here on damage to the new header must not bring the old half back to life. If a crash keeps this from
        // the disk, the higher generation wins all the same.
        let old = self.half_at(self.half);
        self.zero(old, HEADER_LEN)?;
        (self.half, self.header, self.len) = (half, header, entries.len() as u64);
        Ok(())
    }

    fn write_entries(&self, half: u64, header: &Header, from: u64, entries: &[Entry]) -> Result<()> {
        if from + entries.len() as u64 > self.capacity {
            return Err(SnapshotError::OverlayLogFull {
                entries: self.capacity,
            });
        }
        let durable = u32::try_from(from).unwrap_or(u32::MAX);
        let mut place = from;
        for part in entries.chunks(READ_ENTRIES as usize) {
            let at = self.entry_at(half, place);
            let mut bytes = Vec::with_capacity(part.len() * ENTRY_LEN as usize);
            for entry in part {
                bytes.extend_from_slice(&entry.encode(header.seed(place), durable));
                place += 1;
            }
            self.write(at, &bytes)?;
        }
        Ok(())
    }

    fn replay(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bad = None;
        let mut buf = vec![0; (READ_ENTRIES * ENTRY_LEN) as usize];
        let mut place = 0;
        while place < self.capacity {
            let n = READ_ENTRIES.min(self.capacity - place);
            let part = &mut buf[..(n * ENTRY_LEN) as usize];
            let at = self.entry_at(self.half, place);
            // Behind the last bytes ever written nothing can claim anything.
            let written = self.medium.next_data(at).map_err(|e| failed("read log", at, e))?;
            let end = at + n * ENTRY_LEN;
            if written.is_none_or(|data| data.start >= self.entry_at(self.half, self.capacity)) {
                bad = bad.or(Some(place));
                break;
            }
            if written.is_some_and(|data| data.start >= end) {
                bad = bad.or(Some(place));
                place += n;
                continue;
            }
            self.read(at, part)?;
            for (i, raw) in part.as_chunks::<{ ENTRY_LEN as usize }>().0.iter().enumerate() {
                let here = place + i as u64;
                match (Entry::decode(raw, self.header.seed(here), self.header.slots), bad) {
                    (None, _) => bad = bad.or(Some(here)),
                    (Some(decoded), None) => entries.push(decoded?.0),
                    (Some(decoded), Some(bad)) => {
                        let (_, durable) = decoded?;
                        if u64::from(durable) > bad {
                            return Err(damaged(format!(
                                "index log entry {bad} does not check, but {durable} were durable"
                            )));
                        }
                    }
                }
            }
            place += n;
        }
        if bad.is_some_and(|bad| bad < self.header.begun_with) {
            return Err(damaged(format!(
                "index log has {} good entries, it was begun with {}",
                entries.len(),
                self.header.begun_with
            )));
        }
        Ok(entries)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.medium
            .read_at(at, buf)
            .map_err(|e| failed("read log", at, e))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.medium
            .write_at(at, bytes)
            .map_err(|e| failed("write log", at, e))
    }

    fn zero(&self, at: u64, len: u64) -> Result<()> {
        self.medium
            .write_zeroes(at, len)
            .map_err(|e| failed("write log", at, e))
    }

    fn sync(&self) -> Result<()> {
        self.medium.sync().map_err(|e| failed("sync log", 0, e))
    }
}

fn damaged(what: String) -> SnapshotError {
    SnapshotError::OverlayDamaged(what)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut n = [0; 4];
    n.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(n)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut n = [0; 8];
    n.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ByteRange;
    use testkit::SimPower;

    const GOLDEN: &[u8] = include_bytes!("../../../testdata/overlay/index-log.bin");
    const ID: u64 = 0x0102_0304_0506_0708;
    const SLOTS: u64 = 16;

    fn medium() -> Arc<dyn Medium> {
        Arc::new(SimPower::new().medium("log", 2 * Log::half_len(100)))
    }

    fn entries() -> Vec<Entry> {
        vec![
            Entry {
                volume: VolumeIndex(1),
                block: BlockNo(0x0011_2233),
                count: 3,
                place: Place::Slot(5),
            },
            Entry {
                volume: VolumeIndex(0),
                block: BlockNo(7),
                count: 0x00AB_CDEF,
                place: Place::Zero,
            },
        ]
    }

    /// `docs/formats/overlay.md`. A change of the format needs another magic, and a reader for this one.
    #[test]
    fn the_format_stays() {
        let medium = medium();
        let mut log = Log::create(Arc::clone(&medium), ID, SLOTS).unwrap();
        for entry in entries() {
            log.append(&[entry]).unwrap();
        }
        let mut written = vec![0; 4096 + 64];
        medium.read_at(0, &mut written).unwrap();
        assert!(
            written == GOLDEN,
            "the index log differs from testdata/overlay/index-log.bin"
        );
    }

    #[test]
    fn the_golden_log_is_read() {
        let medium = medium();
        medium.write_at(0, GOLDEN).unwrap();
        let (mut log, read) = Log::open(Arc::clone(&medium), ID, SLOTS).unwrap();
        assert_eq!(read, entries());
        log.restart(&read).unwrap();
        let (log, read) = Log::open(medium, ID, SLOTS).unwrap();
        assert_eq!((log.half, log.header.generation, read), (1, 2, entries()));
    }

    #[test]
    fn a_log_of_another_version_is_refused_with_both_numbers() {
        let medium = medium();
        let mut other = GOLDEN.to_vec();
        other[7] = b'9';
        let crc = crc32c::crc32c(&other[..HEADER_USED - 4]);
        other[HEADER_USED - 4..HEADER_USED].copy_from_slice(&crc.to_le_bytes());
        medium.write_at(0, &other).unwrap();
        let refused = Log::open(medium, ID, SLOTS).err().unwrap().to_string();
        assert!(
            refused.contains("version 9 was found, this build reads up to 1"),
            "{refused}"
        );
    }

    /// What an earlier generation left behind a torn end does not come back when the end moves on.
    #[test]
    fn entries_of_another_generation_do_not_check() {
        let medium = medium();
        let mut log = Log::create(Arc::clone(&medium), ID, SLOTS).unwrap();
        let all = entries();
        log.append(&all).unwrap();
        log.restart(&[]).unwrap();
        log.restart(&all[..1]).unwrap();
        // Half 0 again: the second entry of its first generation is still there.
        let (log, read) = Log::open(medium, ID, SLOTS).unwrap();
        assert_eq!((log.half, read), (0, all[..1].to_vec()));
    }

    /// The header is the change: whatever it counts is durable before it can be.
    #[test]
    fn entries_are_durable_before_the_header_that_counts_them() {
        let power = SimPower::new();
        let medium = power.medium("log", 2 * Log::half_len(100));
        let mut log = Log::create(Arc::new(medium.clone()), ID, SLOTS).unwrap();
        power.freeze_at(2);
        assert!(log.restart(&entries()).is_err());
        let half = medium.len() / 2;
        let durable = medium.durable(ByteRange::at(half + HEADER_LEN, 64));
        assert_eq!(durable, medium.live(ByteRange::at(half + HEADER_LEN, 64)));
        assert!(durable.iter().any(|b| *b != 0));
        assert_eq!(medium.durable(ByteRange::at(half, 64)), [0; 64]);
    }

    #[test]
    fn impossible_entries_are_damage() {
        for (count, block, place) in [
            (0, 0, Place::Zero),
            (1, BLOCKS_MAX, Place::Zero),
            (2, 0, Place::Slot(SLOTS - 1)),
            (1, 0, Place::Slot(u64::MAX)),
        ] {
            let medium = medium();
            let mut log = Log::create(Arc::clone(&medium), ID, SLOTS).unwrap();
            let entry = Entry {
                volume: VolumeIndex(0),
                block: BlockNo(block),
                count,
                place,
            };
            log.append(&[entry]).unwrap();
            assert!(Log::open(medium, ID, SLOTS).is_err(), "{entry:?}");
        }
    }
}
