//! What a command brings back: all that human output and `--json` need, in bytes and [`Moment`]s.

use crate::{
    Code, MissingInfo, Moment, PointInfo, Progress, WaitFor, WindowInfo,
    jobs::{JobInfo, JobsReply, LogReply},
    offline::{CheckReply, DumpReply, LogWritesReply, SalvageReply},
    status::StatusReply,
};
use serde::{Deserialize, Serialize};

/// The answer of a command that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// `status`.
    Status(StatusReply),
    /// `scrt_ra -X` or a target alone.
    Snapshot(SnapshotReply),
    /// `scrt_ra -F` and `--undo`.
    Restore(RestoreReply),
    /// `scrt_ra -W`.
    Release(ReleaseReply),
    /// `scrt_ra -p -e -v`.
    Windows(WindowsReply),
    /// `rtmark`.
    Mark(MarkInfo),
    /// `rtmark --list`.
    Marks(MarksReply),
    /// `rtmnt`.
    Mount(MountReply),
    /// `rtumnt`.
    Unmount(UnmountReply),
    /// `rtstart`.
    Start(StartReply),
    /// `rtstop`.
    Stop(StopReply),
    /// `rtdr`.
    Role(RoleReply),
    /// `scconfig -M`, `-B -G`.
    Dirty(DirtyReply),
    /// `grow`.
    Grow(GrowReply),
    /// `map`.
    Map(MapReply),
    /// `protect`.
    Protect(ProtectReply),
    /// `pins`.
    Pins(PinsReply),
    /// `pins --release`: the pin that went.
    PinReleased(PinInfo),
    /// `wait`.
    Wait(WaitReply),
    /// `jobs`.
    Jobs(JobsReply),
    /// `jobs show`.
    Job(Box<JobInfo>),
    /// `jobs cancel`: the job as it ended.
    Cancelled(Box<JobInfo>),
    /// `log`.
    Log(LogReply),
    /// What node this is.
    NodeInfo(NodeInfoReply),
    /// A one-time pairing string.
    PairOpen(PairOpenReply),
    /// Two nodes know each other.
    PairJoin(PairJoinReply),
    /// A round trip.
    Probe(ProbeReply),
    /// `verify`.
    Verify(VerifyReply),
    /// `nbd --stdio`: what follows is NBD, unless this was a dry run.
    Nbd,
    /// `fsck-journal`.
    Check(Box<CheckReply>),
    /// `dump`.
    Dump(DumpReply),
    /// `salvage`.
    Salvage(Box<SalvageReply>),
    /// `dump --log-writes`.
    LogWrites(Box<LogWritesReply>),
    /// `-n`: what would be done, in order.
    Plan(PlanReply),
}

impl Reply {
    /// What the client exits with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Status(status) if !status.healthy() => Code::Unhealthy,
            Self::Map(map) if map.shows_stale() => Code::Unhealthy,
            Self::Verify(verify) if verify.differing_bytes > 0 => Code::Unhealthy,
            Self::Check(check) if !check.is_clean() => Code::Unhealthy,
            Self::Salvage(salvage) if !salvage.is_whole() => Code::Unhealthy,
            _ => Code::Done,
        }
    }
}

/// A snapshot that exists now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReply {
    /// The context, primary id.
    pub context: u32,
    /// Its level.
    pub level: u32,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where it stands.
    pub point: PointInfo,
    /// Whether it was there before (the same point, asked for again).
    pub already: bool,
    /// One for each volume, in the context's order.
    pub volumes: Vec<SnapshotVolume>,
}

/// The devices of a snapshot of one volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotVolume {
    /// The volume.
    pub name: String,
    /// Read-only device: `/dev/backstay/c1/rsn10/testlv`.
    pub snap_device: String,
    /// `MAJOR.MINOR` of the read-only device, `-.-` while it is not attached.
    pub snap_minor: String,
    /// Read-write device: `/dev/backstay/c1/sn10/testlv`.
    pub vdev_device: String,
    /// `MAJOR.MINOR` of the read-write device, `-.-` while it is not attached.
    pub vdev_minor: String,
    /// The view reads undo.
    pub rj: bool,
    /// The view takes writes.
    pub wj: bool,
    /// NBD URI of the read-only export.
    pub snap_uri: String,
    /// NBD URI of the read-write export.
    pub vdev_uri: String,
}

/// The replica stands elsewhere now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreReply {
    /// The context, primary id.
    pub context: u32,
    /// Where the replica stood.
    pub from: PointInfo,
    /// Where it stands.
    pub to: PointInfo,
    /// Whether this took a restore back.
    pub undo: bool,
    /// Whether nothing had to be done.
    pub already: bool,
    /// Records between the two points.
    pub writes: u64,
    /// Bytes written to the replica's volumes.
    pub bytes: u64,
    /// Blocks overwritten, each once.
    pub blocks: u64,
    /// Time taken.
    pub seconds: f64,
}

/// Snapshots that are gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleaseReply {
    /// The context, primary id.
    pub context: u32,
    /// Each with its name; empty: there were none.
    pub released: Vec<ReleasedSnapshot>,
}

/// One released snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReleasedSnapshot {
    /// Its level.
    pub level: u32,
    /// Its name, if it had one.
    pub name: Option<String>,
    /// Where it stood.
    pub point: PointInfo,
    /// Its read-only devices.
    pub devices: Vec<String>,
    /// Until when its point stays pinned.
    pub pinned_until: Option<Moment>,
}

/// The windows, and what is in them. A part that was not asked for is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowsReply {
    /// The context, primary id.
    pub context: u32,
    /// One for each generation, newest first.
    pub windows: Option<Vec<WindowInfo>>,
    /// Newest first.
    pub marks: Option<Vec<MarkInfo>>,
    /// Newest first.
    pub lfcs: Option<Vec<LfcInfo>>,
    /// Rows left out because of `limit`.
    pub omitted: u64,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LfcInfo {
    /// Its (even) id.
    pub id: u64,
    /// Number of the generation.
    pub generation: u32,
    /// Time of its first record.
    pub first: Moment,
    /// Time of its last record.
    pub last: Moment,
    /// Records.
    pub writes: u64,
    /// Bytes those records wrote.
    pub bytes: u64,
    /// `open`, `mark good`, `cut at 8000`, …; empty when there is nothing to say.
    pub note: String,
}

/// An event mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkInfo {
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Number of the generation.
    pub generation: u32,
    /// The container that ends with it.
    pub lfc: u64,
    /// Its record.
    pub seq: u64,
    /// When it was taken.
    pub time: Moment,
}

/// `grow`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowReply {
    /// The context, primary id.
    pub context: u32,
    /// The volume.
    pub volume: String,
    /// Bytes that it had.
    pub bytes_before: u64,
    /// Bytes that it has.
    pub bytes: u64,
    /// The record from which on it has them; none when it had them already.
    pub seq: Option<u64>,
}

/// `rtmark --list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarksReply {
    /// The context, primary id.
    pub context: u32,
    /// Newest first.
    pub marks: Vec<MarkInfo>,
}

/// What `rtmnt` and `rtumnt` found of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// The volume.
    pub volume: String,
    /// The device that was attached.
    pub device: String,
    /// The filesystem; `None` for a raw volume.
    pub filesystem: Option<String>,
    /// Where it is mounted; `None` for a raw volume.
    pub path: Option<String>,
    /// Whether it was so before.
    pub already: bool,
}

/// Filesystems that are mounted now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReply {
    /// The context, primary id.
    pub context: u32,
    /// The snapshot they are of; `None`: the protected volumes themselves.
    pub level: Option<u32>,
    /// Where that snapshot stands.
    pub point: Option<PointInfo>,
    /// One for each volume.
    pub volumes: Vec<MountInfo>,
}

/// Filesystems that are not mounted any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountReply {
    /// The context, primary id.
    pub context: u32,
    /// Those that were mounted.
    pub volumes: Vec<MountInfo>,
    /// Whether all data has reached the recovery server (`-F`).
    pub drained: bool,
}

/// A context that works.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartReply {
    /// The context, primary id.
    pub context: u32,
    /// Whether it ran before.
    pub already: bool,
    /// The volumes served: their devices (production), or none (replica).
    pub devices: Vec<String>,
    /// Configured mount points; `rtstart` does not mount them.
    pub not_mounted: Vec<String>,
}

/// A context that is stopped, durably.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReply {
    /// The context, primary id.
    pub context: u32,
    /// Whether it was stopped before.
    pub already: bool,
    /// Whether the peer has everything.
    pub drained: bool,
    /// Backing files or devices, whole and directly usable now.
    pub backings: Vec<String>,
}

/// What `rtdr` was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleVerb {
    /// `setup`.
    #[default]
    SetUp,
    /// `failover`.
    Failover,
    /// `resync`.
    Resync,
    /// `failback`.
    Failback,
}

/// A host that has another role now, or is about to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoleReply {
    /// The context, primary id.
    pub context: u32,
    /// Its failover id.
    pub failover_id: u32,
    /// What was asked for.
    pub verb: RoleVerb,
    /// Production as of now; after `setup`: the host to fail over to.
    pub host: String,
    /// Whether nothing had to be done.
    pub already: bool,
    /// Highest term durably seen, after it.
    pub term: u64,
    /// The last record that production goes on from (failover), or that both hosts have (resync).
    pub point: Option<PointInfo>,
    /// What the old production had acknowledged and that point lacks.
    pub missing: Option<MissingInfo>,
    /// Whether `missing` could be known: `false` after a failover whose peer did not answer.
    pub missing_known: bool,
    /// What a resync has to copy.
    pub set: Option<ResyncSet>,
    /// Containers that left today's line; they can still be looked at by their generation.
    pub dropped_lfcs: Vec<LfcInfo>,
    /// What was mounted or attached.
    pub volumes: Vec<MountInfo>,
    /// The host whose command comes first; its command is the next step.
    pub waiting_for: Option<String>,
    /// Time taken.
    pub seconds: f64,
}

/// What a resync has to copy, by its reason; a block may have several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncSet {
    /// Behind the common position, touched by this host's records.
    pub own_bytes: u64,
    /// Behind the common position, touched by the peer's records.
    pub peer_bytes: u64,
    /// Stale in either map: what no journal covers.
    pub stale_bytes: u64,
    /// Everything, whatever the parts say: declared, or no map can be trusted.
    pub whole: bool,
}

/// Regions that are stale now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyReply {
    /// The context, primary id.
    pub context: u32,
    /// Bytes that will be copied, those that were stale before among them.
    pub bytes: u64,
    /// Whether that is all there is of every volume.
    pub whole: bool,
    /// Seconds that the copy will take, when a rate is known.
    pub eta_s: Option<u64>,
}

/// State maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReply {
    /// The context, primary id.
    pub context: u32,
    /// The maps as they are now; only `view` fills in their runs.
    pub volumes: Vec<VolumeMapInfo>,
    /// `dump`: the maps as text that `load` takes. A change: where the maps as they were are kept.
    pub text: Option<String>,
}

impl MapReply {
    /// Whether it shows a cell that is not clean.
    #[must_use]
    pub fn shows_stale(&self) -> bool {
        let mut runs = self.volumes.iter().flat_map(|v| &v.runs);
        runs.any(|run| run.cell != 0)
    }
}

/// The state map of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMapInfo {
    /// The volume.
    pub name: String,
    /// Bytes of a region: one cell.
    pub region_size: u64,
    /// How many cells there are.
    pub cells: u64,
    /// Bytes of its stale regions.
    pub stale_bytes: u64,
    /// In rising order, without gaps.
    pub runs: Vec<CellRun>,
}

/// Equal cells in a row: `first..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellRun {
    /// The first.
    pub first: u64,
    /// The one behind the last.
    pub end: u64,
    /// 0 clean, 15 stale.
    pub cell: u8,
}

/// A new context.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProtectReply {
    /// Its primary id.
    pub context: u32,
    /// Its failover id.
    pub failover_id: u32,
    /// Node of production.
    pub production: String,
    /// Node of the replica.
    pub recovery: String,
    /// Its volumes.
    pub volumes: Vec<ProtectedVolume>,
    /// How far the initial sync is; `None`: nothing to copy.
    pub initial_sync: Option<Progress>,
    /// Configuration files that were written.
    pub files: Vec<String>,
}

/// One volume of a new context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectedVolume {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// What applications open.
    pub device: String,
    /// What it stands on at production.
    pub backing: String,
    /// What it stands on at recovery.
    pub recovery_backing: String,
    /// Whether the backing was created.
    pub created: bool,
    /// The filesystem; `None` for a raw volume.
    pub filesystem: Option<String>,
    /// The configured mount point.
    pub mount: Option<String>,
    /// Whether it is mounted now.
    pub mounted: bool,
}

/// `pins`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinsReply {
    /// Oldest point first: what holds the journal back most.
    pub pins: Vec<PinInfo>,
}

/// What keeps a point reachable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinInfo {
    /// Its number on this host.
    pub id: u64,
    /// The context, primary id.
    pub context: u32,
    /// `snapshot 10`, `released snapshot 10`, `mark good`, `restore`, `reader 10.0.0.7`, …
    pub holder: String,
    /// Who made it.
    pub owner: String,
    /// The point it keeps.
    pub point: PointInfo,
    /// When it was made.
    pub created: Moment,
    /// When it goes by itself, by the time of the newest received write; `None`: never.
    pub expires: Option<Moment>,
    /// Bytes of history that would be freed if it went.
    #[serde(default)]
    pub holds_bytes: u64,
    /// Whether its point is gone: space was short.
    #[serde(default)]
    pub broken: bool,
}

/// What was waited for is so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitReply {
    /// The context, primary id.
    pub context: u32,
    /// What for.
    pub until: WaitFor,
    /// How long.
    pub seconds: f64,
}

/// What node this is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfoReply {
    /// Its name.
    pub name: String,
    /// Program version.
    pub program: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Since when it runs.
    pub since: Moment,
    /// Its state directory.
    pub state_dir: String,
    /// Identity that peers pin (hex).
    pub identity: String,
    /// Address for peers, if it listens.
    pub peer_listen: Option<String>,
    /// Address of the NBD server, if it listens.
    pub nbd_listen: Option<String>,
    /// Names of the nodes it knows.
    pub peers: Vec<String>,
    /// Primary ids of its contexts.
    pub contexts: Vec<u32>,
}

/// A one-time pairing string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairOpenReply {
    /// What to type on the other host: `rec1:7400#4T9K-…`.
    pub string: String,
    /// Until when it works.
    pub expires: Moment,
}

/// Two nodes know each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairJoinReply {
    /// The other node's name.
    pub peer: String,
    /// Its identity (hex).
    pub identity: String,
}

/// A round trip through the whole path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReply {
    /// The context, primary id.
    pub context: u32,
    /// The record that was sent.
    pub seq: u64,
    /// Until it was durable here, in microseconds.
    pub local_us: u64,
    /// Until the peer had it durably.
    pub received_us: u64,
    /// Until the peer had applied it, when it did so in time.
    pub applied_us: Option<u64>,
}

/// Both hosts' volumes were compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReply {
    /// The context, primary id.
    pub context: u32,
    /// The host that was compared with.
    pub peer: String,
    /// Bytes of each host that were compared.
    pub compared_bytes: u64,
    /// Bytes of all volumes.
    pub total_bytes: u64,
    /// How many regions were chosen, when not all was compared.
    pub sample: Option<u64>,
    /// Whether what differed was to be copied again.
    pub repair: bool,
    /// Bytes that differed and are equal now, because they were copied again.
    pub repaired_bytes: u64,
    /// Bytes that differ still, in whole blocks of 4 KiB.
    pub differing_bytes: u64,
    /// Where, in the order of volumes and rising.
    pub differing: Vec<DifferingRange>,
    /// Those of them that the other host cannot read, as far as they are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<UnreadableRange>,
    /// Bytes of those that are not listed.
    pub unlisted_bytes: u64,
    /// Where it was repaired.
    pub repaired: Vec<DifferingRange>,
    /// Time taken.
    pub seconds: f64,
}

/// Bytes of a volume that differ on the two hosts: `first..end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingRange {
    /// The volume.
    pub volume: String,
    /// First byte.
    pub first: u64,
    /// The one behind the last.
    pub end: u64,
}

/// Bytes of a volume that the other host cannot read: `first..end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableRange {
    /// The volume.
    pub volume: String,
    /// First byte.
    pub first: u64,
    /// The one behind the last.
    pub end: u64,
    /// What it says of the first of them.
    pub error: String,
}

/// `-n`: what would be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReply {
    /// The point it would be done to.
    pub point: Option<PointInfo>,
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Questions that would be asked.
    pub questions: Vec<String>,
    /// Regions whose bytes only this host has, and would give up.
    #[serde(default)]
    pub lost: Vec<LostInfo>,
}

/// What a host that gives way has of a volume and the other one has not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostInfo {
    /// The volume.
    pub volume: String,
    /// Bytes of the blocks written only here.
    pub bytes: u64,
    /// Bytes of a region.
    pub region_size: u64,
    /// Runs of regions that hold them: first and last, rising.
    pub runs: Vec<(u64, u64)>,
    /// Runs behind those, which are not listed.
    pub more: u64,
}
