//! What `status` shows.

use crate::{HeadLine, Moment, PointInfo, WindowInfo};
use serde::{Deserialize, Serialize};

/// All contexts of a node, or one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// This node.
    pub host: String,
    /// When the figures were taken.
    pub taken: Moment,
    /// Whether the daemon is dead and this is what the disk said.
    pub old: bool,
    /// By id.
    pub contexts: Vec<ContextStatus>,
}

impl StatusReply {
    /// Whether every context is healthy, and the figures are not old.
    #[must_use]
    pub fn healthy(&self) -> bool {
        !self.old && self.contexts.iter().all(|c| c.healthy)
    }
}

/// One context on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextStatus {
    /// Host, ids, role, state, term, peer; its `context` is always there.
    pub head: HeadLine,
    /// Whether nothing needs an operator.
    pub healthy: bool,
    /// The one sentence: `every write is at rec1`, `stopped by root@prod1`, `replica not consistent: first sync`.
    pub verdict: String,
    /// Node status: 100 all well, 60 works with something missing, 30 does not protect.
    pub node_status: u8,
    /// What needs attention, most urgent first.
    pub warnings: Vec<String>,
    /// Configured mode: `async`, `mwc`, `sync`.
    pub mode: String,
    /// How it works now, when that differs: `mwc above the high-water mark`.
    pub mode_now: Option<String>,
    /// When the peer last acknowledged anything.
    pub last_ack: Option<Moment>,
    /// What would be lost if production died now.
    pub rpo: Rpo,
    /// Journaled and not acknowledged by the peer, in bytes (on the replica side: received and not applied).
    pub backlog_bytes: u64,
    /// Bytes in regions that differ from the peer and that no journal covers.
    pub stale_bytes: u64,
    /// What gave way to the state map since the replica was last consistent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub super_transaction: Option<SuperTransaction>,
    /// A first sync or resync that is under way, on both hosts.
    pub resync: Option<ResyncStatus>,
    /// Whether this host is production though it is not configured so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acting: bool,
    /// The host that this one gave way to, while it is fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_by: Option<String>,
    /// Why it is fenced: `rec1 is production at term 4, this host was at term 3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_reason: Option<String>,
    /// Whether the replica can be used as it stands.
    pub consistent: bool,
    /// The window of today's line.
    pub window: Option<WindowInfo>,
    /// The window that was configured.
    pub window_wanted: WindowWanted,
    /// The point that a failover restore went to, while ROLLED_BACK or RESTORING.
    pub restored: Option<PointInfo>,
    /// Positions.
    pub cursors: Cursors,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
    /// Snapshots, by level.
    pub snapshots: Vec<SnapshotStatus>,
    /// Journal in use.
    pub journal_bytes: u64,
    /// Its limit.
    pub journal_limit_bytes: Option<u64>,
    /// How many pins there are.
    #[serde(default)]
    pub pins: u64,
    /// The newest point that a validation passed at.
    pub proven_good: Option<PointInfo>,
    /// The last verify that came to its end, on production.
    pub verified: Option<Verified>,
    /// The verify that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifying: Option<Verifying>,
    /// Who stopped it and when, while it is stopped.
    pub stopped: Option<Stopped>,
}

/// Production's journal reached its limit while the peer was away or too slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperTransaction {
    /// Since when.
    pub since: Moment,
    /// Containers that gave way.
    pub containers: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How far a first sync or resync is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// Bytes still to be copied.
    pub bytes_left: u64,
    /// Bytes of which that is left.
    pub bytes_total: u64,
    /// Bytes a second, once any were copied.
    pub rate: Option<f64>,
    /// Seconds to go at that rate.
    pub eta_s: Option<u64>,
    /// From which host to which: `rec1 -> prod1`.
    pub direction: String,
}

/// What would be lost if production died now. On a replica without a link it is unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rpo {
    /// Records; `None`: unknown.
    pub writes: Option<u64>,
    /// Bytes; `None`: unknown.
    pub bytes: Option<u64>,
    /// Seconds from the newest safe record to now; `None`: unknown.
    pub seconds: Option<f64>,
}

/// The configured window; both may be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowWanted {
    /// In seconds.
    pub seconds: Option<u64>,
    /// In bytes of journal.
    pub bytes: Option<u64>,
}

/// Record positions; those that the role does not have are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursors {
    /// Ordered here.
    pub appended: u64,
    /// Durable here.
    pub durable: u64,
    /// On the volumes.
    pub written_back: u64,
    /// On the volumes, synced.
    pub checkpointed: u64,
    /// Sent to the peer.
    pub sent: u64,
    /// Durable at the peer.
    pub acknowledged: u64,
    /// Received (replica side).
    pub received: u64,
    /// Applied to the replica's volumes.
    pub applied: u64,
    /// The open container.
    pub lfc: u64,
}

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// What applications open, while it is there.
    pub device: Option<String>,
    /// The filesystem; `None` for a raw volume.
    pub filesystem: Option<String>,
    /// The configured mount point.
    pub mount: Option<String>,
    /// Whether it is mounted now.
    pub mounted: bool,
    /// Whether anybody has it open.
    pub open: bool,
    /// Bytes that may differ from the peer whatever it has received: its map was lost, or an operator said so. All of them:
    /// the volume needs a full sync.
    #[serde(default)]
    pub suspect_bytes: u64,
}

impl VolumeStatus {
    /// Whether nothing of it can be taken for equal to the peer.
    #[must_use]
    pub const fn needs_full_sync(&self) -> bool {
        self.bytes > 0 && self.suspect_bytes >= self.bytes
    }
}

/// One snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its level.
    pub level: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where it stands.
    pub point: PointInfo,
    /// Bytes of its overlays in use.
    pub overlay_bytes: u64,
    /// Their limit.
    pub overlay_limit_bytes: Option<u64>,
    /// Where its filesystems are mounted.
    pub mounts: Vec<String>,
    /// Whether its point is gone (reads fail) or its overlay is (it has no vdev); a warning says which.
    #[serde(default)]
    pub broken: bool,
}

/// The last verify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When.
    pub at: Moment,
    /// At which container.
    pub lfc: u64,
    /// Ranges that differed.
    pub mismatches: u64,
    /// Bytes that were compared; fewer than the volumes have: a sample.
    #[serde(default)]
    pub compared_bytes: u64,
    /// Bytes that are known to differ still, by this verify or an earlier one.
    #[serde(default)]
    pub differing_bytes: u64,
}

/// A verify that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verifying {
    /// Who began it: an operator, `schedule`, `catch-up`.
    pub by: String,
    /// When.
    pub since: Moment,
    /// Bytes compared so far.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// Bytes a second, once any were compared.
    pub rate: Option<f64>,
    /// Seconds to go at that rate.
    pub eta_s: Option<u64>,
    /// What it waits for.
    pub waits: Option<String>,
}

/// Who stopped a context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// `user@host`.
    pub by: String,
    /// When.
    pub at: Moment,
}
