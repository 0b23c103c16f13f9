//! What a client asks for.

use crate::JobVerb;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The one line that a client sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`crate::VERSION`] of the client.
    pub version: u32,
    /// What to do.
    pub command: Command,
    /// How.
    #[serde(default)]
    pub options: Options,
}

impl Request {
    /// A request of this version.
    #[must_use]
    pub const fn new(command: Command, options: Options) -> Self {
        Self {
            version: crate::VERSION,
            command,
            options,
        }
    }
}

/// What all commands share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-q`: the client answers every question with yes. For the log; the daemon asks all the same.
    pub quiet: bool,
    /// `-f`: refusals (never limits) become questions.
    pub force: bool,
    /// `-n`: run every check, answer with [`crate::Reply::Plan`], change nothing.
    pub dry_run: bool,
    /// `-v`.
    pub verbose: bool,
    /// `--wait-lock S`: wait so long for another operator's command before answering 75.
    pub wait_lock_s: Option<u64>,
    /// `--expect-term N`: do nothing at any other term.
    pub expect_term: Option<u64>,
    /// `--timeout S`: answer 75 after so long; what was begun goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// `--wait`: answer only when what the command sets going is complete too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// Who asks: `user@host`, for the log.
    pub operator: String,
    /// The command line as typed, for the log.
    pub command_line: String,
}

/// Every command. `context` is always an id as typed: primary or failover, the daemon resolves either.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Command {
    /// `status`; all contexts without one.
    Status {
        /// Only this context.
        context: Option<u32>,
    },
    /// `scrt_ra -X` (`target` = `latest`) or with a target alone: a snapshot at that point.
    Snapshot {
        /// The context.
        context: u32,
        /// Text in the grammar of [`model::Target`].
        target: String,
        /// `--name`.
        name: Option<String>,
    },
    /// `scrt_ra -F`: the replica itself goes to a point.
    FailoverRestore {
        /// The context.
        context: u32,
        /// Where to.
        to: RestoreTo,
        /// `-L`: only this volume.
        volume: Option<String>,
    },
    /// `scrt_ra --undo`: back to where the replica stood before the restore.
    UndoRestore {
        /// The context.
        context: u32,
    },
    /// `scrt_ra -W`.
    Release {
        /// The context.
        context: u32,
        /// Which snapshots; all of them or none go.
        which: Which,
    },
    /// `scrt_ra -p -e -v`.
    Windows {
        /// The context.
        context: u32,
        /// `-p`: the windows.
        windows: bool,
        /// `-e`: the marks.
        marks: bool,
        /// `-v`: every LFC.
        lfcs: bool,
        /// Nothing older than this target.
        from: Option<String>,
        /// Nothing newer than this target.
        to: Option<String>,
        /// At most so many rows of each table, newest first.
        limit: Option<u32>,
    },
    /// `rtmark`: sets an event mark.
    Mark {
        /// The context.
        context: u32,
        /// Its name.
        name: String,
        /// Free text.
        description: String,
        /// Whether to sync the mounted protected filesystems first.
        sync: bool,
        /// `--keep`: seconds for which its point stays pinned, window or not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_s: Option<u64>,
    },
    /// `rtmark --list`.
    Marks {
        /// The context.
        context: u32,
    },
    /// `rtmnt`.
    Mount {
        /// The context.
        context: u32,
        /// `--level`: this snapshot; else the one unnamed operator snapshot (replica side).
        level: Option<u32>,
        /// `--at-dir`: mount under this directory instead of `mount_root`.
        at_dir: Option<String>,
        /// `--read-only`: the snap device instead of the vdev.
        read_only: bool,
        /// `-f`: a full check.
        full_check: bool,
        /// `--new-uuid`: a file system whose id another device shows too gets one of its own.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        new_uuid: bool,
    },
    /// `rtumnt`.
    Unmount {
        /// The context.
        context: u32,
        /// `-F` on production: also wait for a resync, unmount and drain.
        drain: bool,
        /// `-R`: snapshot filesystems whatever the role.
        replica_side: bool,
        /// `-f`: end the holders (after a question).
        force: bool,
    },
    /// `rtstart`.
    Start {
        /// The context.
        context: u32,
        /// `-M`: all regions of all volumes stale first, as [`Command::Dirty`] does.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dirty: bool,
    },
    /// `rtstop`.
    Stop {
        /// The context.
        context: u32,
        /// `-F`: unmount first.
        unmount: bool,
        /// `-S`: drain first.
        drain: bool,
    },
    /// `rtdr -F ID setup`: the pair of context ids, on both hosts.
    SetUpFailover {
        /// The context, by its primary id.
        context: u32,
        /// The id that the context has after a failover.
        failover_id: u32,
        /// `-s`: the host to fail over to; the first hop without one.
        host: Option<String>,
    },
    /// `rtdr failover`: this host, configured or not, becomes production.
    Failover {
        /// The context.
        context: u32,
        /// Whether to check and mount afterwards (`--no-mount` says no).
        mount: bool,
        /// `--inconsistent`: to the newest received state, although copies that belong to it are missing.
        inconsistent: bool,
    },
    /// `rtdr resync`: on the old production its data gives way, on the acting one what differs begins to flow.
    Resync {
        /// The context.
        context: u32,
        /// `--both`: both halves, from whichever host this is.
        both: bool,
    },
    /// `rtdr failback`: back to the configured roles, original production first.
    Failback {
        /// The context.
        context: u32,
        /// Whether to check and mount afterwards (`--no-mount` says no).
        mount: bool,
        /// `--stay`: the present roles become the configured ones instead.
        stay: bool,
    },
    /// `scconfig -M`, `-B -G`: regions become stale, so that they are copied whatever the journals say.
    Dirty {
        /// The context.
        context: u32,
        /// `-L`: only these volumes; all of them when empty.
        volumes: Vec<String>,
        /// `-B -G`: all volumes, and the full resync begins now.
        full: bool,
    },
    /// `grow`: a volume gets larger on both hosts.
    Grow {
        /// The context.
        context: u32,
        /// `-L`: the volume.
        volume: String,
        /// `--size`: its new size; else that of what it stands on.
        bytes: Option<u64>,
    },
    /// `map`.
    Map {
        /// The context.
        context: u32,
        /// What to do with its state maps.
        verb: MapVerb,
    },
    /// `protect`.
    Protect(Protect),
    /// `pins`; all contexts without one.
    Pins {
        /// Only this context.
        context: Option<u32>,
    },
    /// `pins --release`: a release pin goes before its time.
    ReleasePin {
        /// The context.
        context: u32,
        /// Its number.
        pin: u64,
    },
    /// `wait`.
    Wait {
        /// The context.
        context: u32,
        /// For what.
        until: WaitFor,
    },
    /// `jobs`; those of all contexts without one.
    Jobs {
        /// Only those of this context.
        context: Option<u32>,
    },
    /// `jobs show|attach|cancel N`.
    Job {
        /// Its number on this node.
        job: u64,
        /// What to do with it.
        verb: JobVerb,
    },
    /// `log`; without a context, that of this node alone.
    Log {
        /// Only this context, from both hosts.
        context: Option<u32>,
        /// At most so many entries, the newest.
        limit: Option<u32>,
    },
    /// What node this is.
    NodeInfo,
    /// Opens pairing and answers with a one-time string.
    PairOpen,
    /// Joins the node that printed this string.
    PairJoin {
        /// The string.
        string: String,
    },
    /// A mark sent, waited for at the peer, read back.
    Probe {
        /// The context.
        context: u32,
    },
    /// `verify`: both hosts' volumes are compared while everything goes on.
    Verify {
        /// The context.
        context: u32,
        /// `--repair`: what differs is copied again.
        repair: bool,
        /// `--sample`: only so many regions, chosen at random.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sample: Option<u64>,
    },
    /// `nbd --stdio`: when it succeeds, this connection is one of NBD from there on.
    Nbd {
        /// What the client gets that names no export.
        export: String,
    },
}

impl Command {
    /// Whether the command may change anything when it is not a dry run. Such commands are jobs, and most of them are
    /// serialised per context. `jobs cancel` is none: it acts on one of them, and holds nothing.
    #[must_use]
    pub const fn changes_state(&self) -> bool {
        !matches!(
            self,
            Self::Status { .. }
                | Self::Windows { .. }
                | Self::Marks { .. }
                | Self::Pins { .. }
                | Self::Wait { .. }
                | Self::Jobs { .. }
                | Self::Job { .. }
                | Self::Log { .. }
                | Self::NodeInfo
                | Self::Nbd { .. }
                | Self::Map {
                    verb: MapVerb::View { .. } | MapVerb::Dump { .. },
                    ..
                }
        )
    }

    /// The context it concerns, if it names one.
    #[must_use]
    pub const fn context(&self) -> Option<u32> {
        match self {
            Self::Status { context }
            | Self::Pins { context }
            | Self::Jobs { context }
            | Self::Log { context, .. } => *context,
            Self::Snapshot { context, .. }
            | Self::FailoverRestore { context, .. }
            | Self::UndoRestore { context }
            | Self::Release { context, .. }
            | Self::Windows { context, .. }
            | Self::Mark { context, .. }
            | Self::Marks { context }
            | Self::Mount { context, .. }
            | Self::Unmount { context, .. }
            | Self::Start { context, .. }
            | Self::SetUpFailover { context, .. }
            | Self::Failover { context, .. }
            | Self::Resync { context, .. }
            | Self::Failback { context, .. }
            | Self::Dirty { context, .. }
            | Self::Grow { context, .. }
            | Self::Map { context, .. }
            | Self::Stop { context, .. }
            | Self::ReleasePin { context, .. }
            | Self::Wait { context, .. }
            | Self::Probe { context }
            | Self::Verify { context, .. } => Some(*context),
            Self::Protect(p) => Some(p.context),
            Self::NodeInfo | Self::Nbd { .. } | Self::PairOpen | Self::PairJoin { .. } | Self::Job { .. } => {
                None
            }
        }
    }
}

/// Where a failover restore goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreTo {
    /// Text in the grammar of [`model::Target`].
    Target(String),
    /// `--level N`: the point of that snapshot, exactly what was looked at.
    Level(u32),
    /// `--last-snapshot`: the point of the operator's newest snapshot, released or not.
    LastSnapshot,
}

/// Which snapshots to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// All unnamed operator snapshots.
    AllUnnamed,
    /// This level, named or not.
    Level(u32),
    /// All operator snapshots, named ones too.
    All,
}

/// What `map` does. Every change saves the maps as they were first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MapVerb {
    /// Shows runs of equal cells.
    View {
        /// Only this volume.
        volume: Option<String>,
    },
    /// Answers the maps as text that `Load` takes.
    Dump {
        /// Only this volume.
        volume: Option<String>,
    },
    /// Replaces maps by those of a dump.
    Load {
        /// The dump.
        text: String,
    },
    /// Declares both hosts equal without looking.
    Clean {
        /// Only this volume.
        volume: Option<String>,
    },
    /// Both hosts were written: the master's data wins, and both maps become its to-do list.
    Unify {
        /// Node whose data stays.
        master: String,
    },
}

/// A new context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protect {
    /// Its primary id.
    pub context: u32,
    /// Its failover id; the daemon's default is `context + 1000`.
    pub failover_id: Option<u32>,
    /// Node that holds the replica; the only peer without one.
    pub recovery: Option<String>,
    /// At least one.
    pub volumes: Vec<VolumeSpec>,
    /// `async`, `mwc` or `sync`; the daemon's default without.
    pub mode: Option<String>,
    /// Whether to mount when ready (`--no-mount` says no).
    pub mount: bool,
}

/// One volume of a new context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Its name: letters, digits, `_`, `-`, `.`.
    pub name: String,
    /// What it stands on at production.
    pub source: VolumeSource,
    /// File or device of the replica; the daemon creates a sparse file without one.
    pub recovery_path: Option<String>,
    /// `ext4`, `xfs`, …: made when the source is new, adopted when it holds one. `None` is a raw volume, or whatever an
    /// adopted source already holds.
    pub filesystem: Option<String>,
    /// Where the filesystem is mounted.
    pub mount: Option<String>,
}

/// What a new volume stands on at production.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// A new sparse file of so many bytes, under the node's state directory.
    Create {
        /// Size in bytes.
        bytes: u64,
    },
    /// An existing block device or file, adopted in place with its size and contents.
    Adopt {
        /// Absolute path.
        path: String,
    },
}

/// What `wait --until` waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum WaitFor {
    /// The context works in its role.
    Enabled,
    /// A resync is complete.
    Resynced,
    /// The peer has everything.
    Drained,
    /// The replica is consistent.
    Consistent,
    /// That mark can be reached here.
    Mark(String),
    /// That record is applied here.
    Applied(u64),
}

/// Text that is nothing to wait for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is nothing to wait for (enabled, resynced, drained, consistent, mark=NAME or applied=SEQ)")]
pub struct WaitForError(pub String);

impl FromStr for WaitFor {
    type Err = WaitForError;

    fn from_str(text: &str) -> Result<Self, WaitForError> {
        let err = || WaitForError(text.to_owned());
        match text {
            "enabled" => Ok(Self::Enabled),
            "resynced" => Ok(Self::Resynced),
            "drained" => Ok(Self::Drained),
            "consistent" => Ok(Self::Consistent),
            _ => match text.split_once('=') {
                Some(("mark", name)) if model::EventMark::name_fault(name).is_none() => {
                    Ok(Self::Mark(name.to_owned()))
                }
                Some(("applied", seq)) if seq.bytes().all(|b| b.is_ascii_digit()) => {
                    seq.parse().map(Self::Applied).map_err(|_| err())
                }
                _ => Err(err()),
            },
        }
    }
}

impl fmt::Display for WaitFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enabled => f.write_str("enabled"),
            Self::Resynced => f.write_str("resynced"),
            Self::Drained => f.write_str("drained"),
            Self::Consistent => f.write_str("consistent"),
            Self::Mark(name) => write!(f, "mark={name}"),
            Self::Applied(seq) => write!(f, "applied={seq}"),
        }
    }
}

impl From<WaitFor> for String {
    fn from(until: WaitFor) -> Self {
        until.to_string()
    }
}

impl TryFrom<String> for WaitFor {
    type Error = WaitForError;

    fn try_from(text: String) -> Result<Self, WaitForError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_waited_for_round_trips() {
        for text in [
            "enabled",
            "resynced",
            "drained",
            "consistent",
            "mark=good",
            "applied=17",
        ] {
            assert_eq!(text.parse::<WaitFor>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "mark=",
            "mark=a b",
            "applied=",
            "applied=x",
            "applied=-1",
            "mounted",
        ] {
            assert!(text.parse::<WaitFor>().is_err(), "{text}");
        }
    }

    #[test]
    fn maps_are_looked_at_without_the_lock_and_changed_with_it() {
        let map = |verb| Command::Map { context: 7, verb };
        let volume = None::<String>;
        for (command, changes) in [
            (
                map(MapVerb::View {
                    volume: volume.clone(),
                }),
                false,
            ),
            (
                map(MapVerb::Dump {
                    volume: volume.clone(),
                }),
                false,
            ),
            (map(MapVerb::Clean { volume }), true),
            (map(MapVerb::Load { text: String::new() }), true),
            (map(MapVerb::Unify { master: "a".into() }), true),
        ] {
            assert_eq!(command.changes_state(), changes, "{command:?}");
            assert_eq!(command.context(), Some(7));
        }
    }

    #[test]
    fn unknown_fields_and_commands_are_refused() {
        let good = r#"{"version":1,"command":{"start":{"context":1}},"options":{"quiet":true}}"#;
        assert!(serde_json::from_str::<Request>(good).is_ok());
        for bad in [
            r#"{"version":1,"command":{"start":{"context":1,"halfway":true}}}"#,
            r#"{"version":1,"command":{"explode":{"context":1}}}"#,
            r#"{"version":1,"command":{"start":{"context":1}},"options":{"really":true}}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}
