//! What the tools for a stopped node bring back: `fsck-journal`, `dump`, `salvage`. No daemon answers these; the program around
//! the command line does.

use crate::PointInfo;
use serde::{Deserialize, Serialize};

/// What `fsck-journal` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReply {
    /// The context, primary id.
    pub context: u32,
    /// The journal's folder.
    pub folder: String,
    /// What is damaged.
    pub findings: Vec<FindingInfo>,
    /// What a start mends by itself.
    pub notes: Vec<FindingInfo>,
    /// Findings that are not listed, because there are very many of their kind.
    pub more: u64,
    /// How much was read.
    pub read: ReadInfo,
}

impl CheckReply {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// One thing that does not check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingInfo {
    /// Its kind, a word for scripts: `tail`, `redo`, `undo_index`.
    pub kind: String,
    /// Where, in words.
    pub place: String,
    /// File of the journal's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Family of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Container, as `g1:70250`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// Apply ordinal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u64>,
    /// Byte of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byte: Option<u64>,
    /// What is wrong there.
    pub what: String,
    /// What it means.
    pub means: String,
    /// What to do.
    pub remedy: String,
}

/// How much a check has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadInfo {
    /// Rows of catalog, metadata and maps.
    pub rows: u64,
    /// Generations.
    pub generations: u64,
    /// Containers whose frames are here.
    pub containers: u64,
    /// Their frames.
    pub frames: u64,
    /// Their records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Before-images.
    pub undo_blocks: u64,
    /// Entries of the indexes.
    pub index_entries: u64,
    /// Overlays of vdevs.
    pub overlays: u64,
}

/// What `dump` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpReply {
    /// The context, primary id.
    pub context: u32,
    /// The journal's folder.
    pub folder: String,
    /// One for each slot, header, entry, frame, record and row; empty where they were written as they came.
    pub lines: Vec<DumpLine>,
}

/// A slot, header, entry, frame, record or row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpLine {
    /// What it is: `slot`, `tail`, `entry`, `frame`, `record`, `row`, `undo`.
    pub kind: String,
    /// Where it stands: file and byte, or family and key, or place in its frame.
    pub at: String,
    /// Its fields.
    pub text: String,
    /// Its bytes in hexadecimal, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

/// What `salvage` wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SalvageReply {
    /// The context, primary id.
    pub context: u32,
    /// The node's state directory.
    pub folder: String,
    /// The point.
    pub point: PointInfo,
    /// One for each volume.
    pub volumes: Vec<SalvagedVolume>,
    /// Why not all of it can be trusted, where that is no matter of ranges.
    pub warnings: Vec<String>,
}

impl SalvageReply {
    /// Whether every byte is what it was.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.warnings.is_empty() && self.volumes.iter().all(|v| v.lost.is_empty())
    }
}

/// A volume that was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SalvagedVolume {
    /// Its name.
    pub name: String,
    /// The file.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes that are not in holes.
    pub data_bytes: u64,
    /// What could not be read and is zero in the file.
    pub lost: Vec<LostRange>,
}

/// Bytes that cannot be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRange {
    /// The first of them.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// What `dump --log-writes` wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogWritesReply {
    /// The context, primary id.
    pub context: u32,
    /// The volume.
    pub volume: String,
    /// The log.
    pub file: String,
    /// The point over which it is to be replayed.
    pub from: PointInfo,
    /// The point that a replay of all of it leads to.
    pub to: PointInfo,
    /// Entries of the log.
    pub entries: u64,
    /// Its marks.
    pub marks: u64,
    /// Its bytes.
    pub bytes: u64,
}
