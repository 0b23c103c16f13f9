//! What the daemon answers, one line at a time.

use crate::{Code, MissingInfo, Moment, NearPoint, PointInfo, Reply, WindowInfo};
use model::{ContextState, Role};
use serde::{Deserialize, Serialize};

/// One line from the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Who answers; at most once, before all others.
    Head(HeadLine),
    /// The command is a job: it goes on without the client, under this number.
    Begun {
        /// Its number on this node.
        job: u64,
    },
    /// The exact point that the command is about, before anything is done to it.
    Resolved {
        /// The snapshot level, when it is about one that exists.
        level: Option<u32>,
        /// The point.
        point: PointInfo,
    },
    /// A step with words of its own that scripts look for.
    Step(Step),
    /// A line of output of something that runs (a filesystem checker), in order.
    Line {
        /// Without its line end.
        text: String,
    },
    /// How far a long step is.
    Progress(Progress),
    /// The client must send an [`Answer`]; nothing goes on before.
    Ask {
        /// What is asked.
        question: Question,
    },
    /// Somebody else was asked, the one who sent the request of this job; nothing is to be answered.
    Asked {
        /// Who.
        operator: String,
        /// What is asked.
        question: Question,
    },
    /// The end.
    Done(Box<Outcome>),
}

/// What the client sends after [`Event::Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether to go on.
    pub yes: bool,
}

/// Steps whose words are fixed; the client has the words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// `Determining Filesystems to mount...`
    DeterminingMounts,
    /// The checker's command line, before its output.
    Checking {
        /// As run.
        command: String,
    },
    /// `Mounting <path>...`
    Mounting {
        /// Mount point.
        path: String,
    },
    /// `Determining Filesystems to unmount...`
    DeterminingUnmounts,
    /// `Unmounting <device> from <path>...`
    Unmounting {
        /// What is mounted.
        device: String,
        /// Mount point.
        path: String,
    },
    /// `No mounted filesystems`
    NoMounted,
    /// `Sync: transferring current LFC to Recovery Server` (`rtumnt -F`)
    SyncCurrent,
    /// `Sync: transferring any current LFC data to Recovery Server` (`rtstop -S`)
    SyncAny,
    /// `Waiting for synchronization of data to complete.`
    SyncWaiting,
    /// `All data has been synchronized to the Recovery Server.`
    SyncDone,
    /// `Starting <agent>`
    Starting {
        /// `scrt_lca` on production, `scrt_aba` on recovery.
        agent: String,
    },
    /// `Stopping <agent>`
    Stopping {
        /// `scrt_lca` on production, `scrt_aba` on recovery.
        agent: String,
    },
    /// `... Production Server Drivers are already loaded for Context ID 1.` (`rtdr failback`)
    DriversLoaded {
        /// `Production`, else `Recovery`.
        production: bool,
        /// Primary id.
        context: u32,
    },
    /// `Unloading Production Server Drivers` (`rtstop` on production)
    UnloadingDrivers,
    /// `--- Failover Context ID <2> is production on rec1. ---`
    FailoverDone {
        /// Failover id.
        failover_id: u32,
        /// The new production.
        host: String,
    },
    /// `-- Failover Context ID <2> is enabled and ready for re-sync. ---`
    ReadyForResync {
        /// Failover id.
        failover_id: u32,
    },
    /// `--- System re-sync is activated. ---`
    ResyncActivated,
    /// `--- Primary Context ID <1> is enabled. ---`
    PrimaryEnabled {
        /// Primary id.
        context: u32,
    },
    /// `Waiting for prod1: run rtdr -C 1 failback there`
    WaitingFor {
        /// The other host.
        host: String,
        /// What to type there.
        command: String,
    },
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    #[default]
    Bytes,
    /// Records.
    Writes,
    /// 4 KiB blocks.
    Blocks,
}

/// How far a long step is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The step, a few words.
    pub what: String,
    /// Done so far.
    pub done: u64,
    /// All of it, when known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
    /// Units a second.
    pub rate: Option<f64>,
    /// Seconds to go.
    pub eta_s: Option<u64>,
    /// The job to attach to after Ctrl-C, when the work goes on without a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
}

/// A yes-or-no question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Question {
    /// `scrt_ra -F` and `--undo`: all that the operator should know first.
    Restore(Box<RestoreQuestion>),
    /// `rtdr failover`: where it goes to, and what may be missing there.
    Failover(Box<FailoverQuestion>),
    /// A question whose words scripts answer; the client has the words.
    Fixed(FixedQuestion),
    /// Anything else, in words.
    Text {
        /// What stands above the question.
        lines: Vec<String>,
        /// The question itself, without `[y|n]`.
        question: String,
    },
}

impl Question {
    /// What is asked, in a few words, for the log and for those who only look on.
    #[must_use]
    pub fn in_short(&self) -> String {
        let place = |p: &PointInfo| format!("g{}:seq:{}", p.generation, p.seq);
        match self {
            Self::Restore(r) if r.undo => format!("undo the restore to {}", place(&r.from)),
            Self::Restore(r) => format!("restore from {} to {}", place(&r.from), place(&r.to)),
            Self::Failover(f) => format!("failover at {}, production now is {}", place(&f.point), f.peer),
            Self::Fixed(FixedQuestion::FailoverProcessing) => "failover processing".into(),
            Self::Fixed(FixedQuestion::LcaReset) => "LCA reset".into(),
            Self::Text { lines, question } => {
                let mut words: Vec<&str> = lines.iter().map(String::as_str).collect();
                words.push(question);
                words.join(" ")
            }
        }
    }
}

/// What a failover restore would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreQuestion {
    /// Where the replica stands.
    pub from: PointInfo,
    /// Where it would stand.
    pub to: PointInfo,
    /// Whether this takes a restore back.
    pub undo: bool,
    /// `-L`: only this volume, which breaks the group's consistency.
    pub volume: Option<String>,
    /// Records between the two.
    pub writes: u64,
    /// Bytes those records wrote.
    pub bytes: u64,
    /// Marks between the two, newest first.
    pub marks: Vec<String>,
    /// When a validation of the target point passed; `None`: never validated.
    pub validated: Option<Moment>,
    /// Anything else worth a line, refusals that `-f` turned into this question among them.
    pub warnings: Vec<String>,
}

/// What a failover would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FailoverQuestion {
    /// Where production would go on from.
    pub point: PointInfo,
    /// Seconds from that point's last record to now, when the clocks allow to say.
    pub age_s: Option<f64>,
    /// What production had acknowledged and this point lacks; `None`: unknown, it cannot be asked.
    pub missing: Option<MissingInfo>,
    /// The host that is production now.
    pub peer: String,
    /// When it was last heard; `None`: never.
    pub peer_heard: Option<Moment>,
    /// Anything else worth a line, refusals that `-f` turned into this question among them.
    pub warnings: Vec<String>,
}

/// The questions of `rtdr resync` on the old production, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FixedQuestion {
    /// `scsetup: You have requested failover processing.`
    FailoverProcessing,
    /// `!!! RESET WARNING !!!`
    LcaReset,
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Who answers, as things stand now.
    pub head: Option<HeadLine>,
    /// What came of it.
    pub result: Result<Reply, Failure>,
    /// What to type next.
    pub next: Option<NextStep>,
}

impl Outcome {
    /// Success.
    #[must_use]
    pub const fn ok(reply: Reply) -> Self {
        Self {
            head: None,
            result: Ok(reply),
            next: None,
        }
    }

    /// Failure.
    #[must_use]
    pub const fn failed(failure: Failure) -> Self {
        Self {
            head: None,
            result: Err(failure),
            next: None,
        }
    }

    /// With the line that stands first.
    #[must_use]
    pub fn with_head(mut self, head: HeadLine) -> Self {
        self.head = Some(head);
        self
    }

    /// With the line that stands last.
    #[must_use]
    pub fn with_next(mut self, command: impl Into<String>, host: impl Into<String>) -> Self {
        self.next = Some(NextStep {
            command: command.into(),
            host: host.into(),
        });
        self
    }

    /// What the client exits with.
    #[must_use]
    pub fn code(&self) -> Code {
        match &self.result {
            Ok(reply) => reply.code(),
            Err(failure) => failure.code,
        }
    }
}

/// What to type next, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextStep {
    /// The command.
    pub command: String,
    /// The host.
    pub host: String,
}

/// The first line: who answers and what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadLine {
    /// This node.
    pub host: String,
    /// The rest of the line, when the command is about one context.
    pub context: Option<HeadContext>,
}

/// What a context is on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadContext {
    /// Primary id.
    pub id: u32,
    /// Failover id.
    pub failover_id: Option<u32>,
    /// Role on this host.
    #[serde(with = "words::role")]
    pub role: Role,
    /// State on this host.
    #[serde(with = "words::state")]
    pub state: ContextState,
    /// Highest term durably seen.
    pub term: u64,
    /// The peer.
    pub peer: Option<PeerLine>,
}

/// The peer in one phrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLine {
    /// Its node name.
    pub name: String,
    /// How it is.
    pub state: PeerState,
    /// Since when.
    pub since: Option<Moment>,
}

/// How the peer is, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Connected.
    Connected,
    /// Does not answer.
    Unreachable,
    /// Answers, and its context is stopped.
    Stopped,
    /// Answers, and refuses to work with us (the verdict says why).
    Refused,
}

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What the client exits with; never [`Code::Done`].
    pub code: Code,
    /// What is wrong: lower case, no full stop.
    pub error: String,
    /// Causes, outermost first.
    #[serde(default)]
    pub caused_by: Vec<String>,
    /// What would help, in words.
    #[serde(default)]
    pub hint: Option<String>,
    /// What would help, as a command.
    #[serde(default)]
    pub hint_command: Option<String>,
    /// Where to type it.
    #[serde(default)]
    pub hint_host: Option<String>,
    /// For [`Code::OutsideWindow`]: the nearest reachable points.
    #[serde(default)]
    pub nearest: Vec<NearPoint>,
    /// For [`Code::OutsideWindow`]: the window.
    #[serde(default)]
    pub window: Option<WindowInfo>,
    /// Who has the thing open: `psql (pid 311, user postgres)`.
    #[serde(default)]
    pub holders: Vec<String>,
}

impl Failure {
    /// A failure of this kind.
    #[must_use]
    pub fn new(code: Code, error: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
            caused_by: Vec::new(),
            hint: None,
            hint_command: None,
            hint_host: None,
            nearest: Vec::new(),
            window: None,
            holders: Vec::new(),
        }
    }

    /// A failure with the error's own chain of causes.
    #[must_use]
    pub fn from_error(code: Code, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut failure = Self::new(code, error.to_string());
        let mut next = error.source();
        while let Some(cause) = next {
            failure.caused_by.push(cause.to_string());
            next = cause.source();
        }
        failure
    }

    /// With a hint in words.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With a command that would help, and where to type it.
    #[must_use]
    pub fn with_hint_command(mut self, command: impl Into<String>, host: impl Into<String>) -> Self {
        self.hint_command = Some(command.into());
        self.hint_host = Some(host.into());
        self
    }

    /// With those who hold the thing open.
    #[must_use]
    pub fn with_holders(mut self, holders: Vec<String>) -> Self {
        self.holders = holders;
        self
    }
}

pub(crate) mod words {
    //! The model's words as JSON strings, without teaching the model about serde.

    macro_rules! words {
        ($module:ident, $type:ident, $($variant:ident),+) => {
            pub(crate) mod $module {
                use model::$type;
                use serde::{Deserialize, Deserializer, Serializer, de::Error};

                pub(crate) fn serialize<S: Serializer>(v: &$type, s: S) -> Result<S::Ok, S::Error> {
                    // What could not be read back must not be written.
                    match v {
                        $($type::$variant)|+ => s.collect_str(v),
                    }
                }

                pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<$type, D::Error> {
                    let text = String::deserialize(d)?;
                    [$($type::$variant),+]
                        .into_iter()
                        .find(|v| v.to_string() == text)
                        .ok_or_else(|| D::Error::custom(format!("unknown {} '{text}'", stringify!($module))))
                }
            }
        };
    }
    words!(role, Role, Production, Recovery);
    words!(
        state,
        ContextState,
        Stopped,
        Enabled,
        Restoring,
        RolledBack,
        FailingOver,
        FailedOver,
        Fenced,
        ResyncReady
    );
}
