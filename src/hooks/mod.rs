//! Hooks: programs of the operator that run at role changes, for addresses, DNS and cluster managers.
//!
//! **Overview.** Each node has a folder of hooks. An event is a file in it, or a folder whose files run in the order of their
//! names. [`Hooks::run`] runs what there is for an event, one after the other, and hands each line they print to the log and
//! to the operator. `docs/HOOKS.md` is the page for those who write them.
//!
//! **Rules.**
//! - A hook is a program and gets no shell: it starts with a clean environment (the [`Facts`], `PATH`, nothing of the
//!   daemon's), no input, in `/`, in a process group of its own. At the timeout that group ends, not only its first process.
//! - What runs as the daemon's user is nobody else's to change: a hook, or a folder on the way to it, that another user owns
//!   or may write is not run.
//! - An event that is `required` must have hooks and all must succeed, or [`Hooks::run`] fails and its caller refuses the
//!   command before it has changed anything. Everything else that goes wrong is a warning, and the command goes on: an
//!   address that did not move must not keep a database down.
//!
//! **What it does not do.** It keeps no record of what ran: a command that is typed again after a crash runs its hooks again,
//! so they must bear it. It does not look for the processes that a hook leaves behind when it ends in time.

mod files;
mod process;
#[cfg(test)]
mod tests;

pub use files::HookFault;

use crate::{attach::mount, config::NodeConfig, context::Context};
use files::Hook;
use model::{ContextState, Role, Term};
use process::End;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookEvent {
    /// Before the recovery host takes over.
    PreFailover,
    /// It has taken over.
    PostFailover,
    /// Before a host takes its configured role again.
    PreFailback,
    /// It has it again.
    PostFailback,
    /// Before this host is made ready for a resync, or begins one.
    PreResync,
    /// It was made ready, or has begun.
    PostResync,
    /// A context's role or state is another one now.
    StateChanged,
}

impl HookEvent {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PreFailover,
        Self::PostFailover,
        Self::PreFailback,
        Self::PostFailback,
        Self::PreResync,
        Self::PostResync,
        Self::StateChanged,
    ];

    /// Its name, also of its file or folder.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreFailover => "pre-failover",
            Self::PostFailover => "post-failover",
            Self::PreFailback => "pre-failback",
            Self::PostFailback => "post-failback",
            Self::PreResync => "pre-resync",
            Self::PostResync => "post-resync",
            Self::StateChanged => "state-changed",
        }
    }

    /// Whether it comes before anything changes, so that a hook can still prevent it.
    #[must_use]
    pub const fn is_before(self) -> bool {
        matches!(self, Self::PreFailover | Self::PreFailback | Self::PreResync)
    }
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HookEvent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|e| e.name() == text).ok_or_else(|| {
            let likeness = |e: &Self| strsim::jaro_winkler(text, e.name());
            let nearest = Self::ALL
                .into_iter()
                .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
                .unwrap_or(Self::StateChanged);
            format!("'{text}' is no event of hooks; did you mean '{nearest}'?")
        })
    }
}

impl Serialize for HookEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HookEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// What hooks are told of the context, as it stands when they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The primary id.
    pub context: u32,
    /// The failover id.
    pub failover_id: u32,
    /// This node.
    pub host: String,
    /// The other one.
    pub peer: String,
    /// What this node is for the context.
    pub role: Role,
    /// The context's state here.
    pub state: ContextState,
    /// Its term.
    pub term: Term,
    /// The point that the command is about, where there is one.
    pub point: Option<String>,
    /// Where the context's file systems are mounted on this node, when they are.
    pub mounts: Vec<PathBuf>,
}

impl Facts {
    /// The facts of a context as it is now.
    #[must_use]
    pub fn of(context: &Context) -> Self {
        let root = context.node().config().mount_root;
        let mounts = context.config.volumes.iter().filter_map(|v| v.mount.as_ref());
        Self {
            context: context.config.id,
            failover_id: context.failover_id(),
            host: context.node_name().to_owned(),
            peer: context.peer_name().to_owned(),
            role: context.role(),
            state: context.state(),
            term: context.term(),
            point: None,
            mounts: mounts.map(|m| mount::under(&root, m)).collect(),
        }
    }

    /// The same, and the point that the command is about.
    #[must_use]
    pub fn at(mut self, point: impl fmt::Display) -> Self {
        self.point = Some(point.to_string());
        self
    }

    fn variables(&self, event: HookEvent) -> Vec<(&'static str, OsString)> {
        let mut mounts = OsString::new();
        for mount in &self.mounts {
            if !mounts.is_empty() {
                mounts.push("\n");
            }
            mounts.push(mount);
        }
        let mut all: Vec<(&'static str, OsString)> = vec![
            ("BACKSTAY_EVENT", event.name().into()),
            ("BACKSTAY_CONTEXT", self.context.to_string().into()),
            ("BACKSTAY_FAILOVER_ID", self.failover_id.to_string().into()),
            ("BACKSTAY_HOST", self.host.clone().into()),
            ("BACKSTAY_PEER", self.peer.clone().into()),
            ("BACKSTAY_ROLE", self.role.to_string().into()),
            ("BACKSTAY_STATE", self.state.to_string().into()),
            ("BACKSTAY_TERM", self.term.0.to_string().into()),
            ("BACKSTAY_MOUNTS", mounts),
        ];
        all.extend(self.point.clone().map(|p| ("BACKSTAY_POINT", p.into())));
        all
    }
}

/// How a hook ended.
#[derive(Debug)]
pub enum Outcome {
    /// It ran to its end.
    Ran {
        /// Its exit code; 128 and the signal's number when a signal ended it.
        exit: i32,
        /// How long it took.
        took: Duration,
    },
    /// It was ended with all that it had started.
    TimedOut {
        /// After this long.
        after: Duration,
    },
    /// It was not run, or could not be.
    Failed(HookFault),
}

impl Outcome {
    /// Whether it did what it was there for.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Ran { exit: 0, .. })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran { exit, took } => write!(f, "exit {exit} after {:.1}s", took.as_secs_f64()),
            Self::TimedOut { after } => {
                write!(f, "was not done after {}s and was ended", after.as_secs())
            }
            Self::Failed(fault) => fault.fmt(f),
        }
    }
}

/// One hook that was to run.
#[derive(Debug)]
pub struct Ran {
    /// Event and, in a folder, the file: `post-failover/10-address`.
    pub hook: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// Why a command must not go on: its event is required.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// A hook failed.
    #[error("hook {hook}: {outcome}; {event} is required")]
    Failed {
        /// The event.
        event: HookEvent,
        /// The hook.
        hook: String,
        /// What came of it.
        outcome: Outcome,
    },
    /// The hooks could not be looked for.
    #[error("{fault}; {event} is required")]
    Unusable {
        /// The event.
        event: HookEvent,
        /// What is in the way.
        fault: HookFault,
    },
    /// There is none.
    #[error("there is no {}, and {event} is required", path.display())]
    Missing {
        /// The event.
        event: HookEvent,
        /// Where it would be.
        path: PathBuf,
    },
}

/// A node's hooks.
#[derive(Clone, Debug)]
pub struct Hooks {
    dir: PathBuf,
    /// The node's file names the folder, so that it must be there.
    dir_is_named: bool,
    timeout: Duration,
    required: Vec<HookEvent>,
    config_path: PathBuf,
}

impl Hooks {
    /// The hooks of the node with this configuration, which was read from `config_path`.
    #[must_use]
    pub fn of(config: &NodeConfig, config_path: &Path) -> Self {
        let beside = || {
            let folder = config_path.parent().unwrap_or(Path::new("/"));
            folder.join("hooks").join(&config.name)
        };
        Self {
            dir: config.hooks.dir.clone().unwrap_or_else(beside),
            dir_is_named: config.hooks.dir.is_some(),
            timeout: config.hooks.timeout.0,
            required: config.hooks.required.clone(),
            config_path: config_path.to_owned(),
        }
    }

    /// Whether a command must not go on without the hooks of this event.
    #[must_use]
    pub fn is_required(&self, event: HookEvent) -> bool {
        self.required.contains(&event)
    }

    /// What [`Hooks::run`] would run, for the plan of a dry run; nothing is started.
    ///
    /// # Errors
    /// When the event is required and it is known already that its hooks cannot succeed.
    pub fn planned(&self, event: HookEvent) -> Result<Vec<String>, HookError> {
        let usable = self.usable(event, &mut |_| {})?;
        Ok(usable.into_iter().map(|hook| hook.name).collect())
    }

    /// Runs the hooks of an event. `out` hears what they print and how each ended. Nothing to run: an empty list.
    ///
    /// # Errors
    /// Only when the event is required: the caller refuses its command, and has changed nothing yet.
    pub fn run(
        &self,
        event: HookEvent,
        facts: &Facts,
        out: &mut dyn FnMut(String),
    ) -> Result<Vec<Ran>, HookError> {
        let hooks = self.usable(event, out)?;
        let mut variables = facts.variables(event);
        variables.push(("BACKSTAY_CONFIG", self.config_path.clone().into()));
        let mut all = Vec::new();
        for hook in hooks {
            let outcome = self.run_one(&hook, facts.context, &variables, out);
            let hook = hook.name;
            if !outcome.is_success() && self.is_required(event) {
                tracing::warn!(
                    context = facts.context,
                    hook,
                    "hook failed, and is required: {outcome}"
                );
                return Err(HookError::Failed { event, hook, outcome });
            }
            if outcome.is_success() {
                tracing::info!(context = facts.context, hook, "hook: {outcome}");
                out(format!("hook {hook}: {outcome}"));
            } else {
                tracing::warn!(context = facts.context, hook, "hook failed: {outcome}");
                out(format!("Warning: hook {hook}: {outcome}; going on"));
            }
            all.push(Ran { hook, outcome });
        }
        Ok(all)
    }

    /// The hooks of an event. Where it is required all of them can be run; nothing starts if one cannot.
    fn usable(&self, event: HookEvent, out: &mut dyn FnMut(String)) -> Result<Vec<Hook>, HookError> {
        let required = self.is_required(event);
        let hooks = match files::find(&self.dir, self.dir_is_named, event) {
            Ok(hooks) => hooks,
            Err(fault) if required => return Err(HookError::Unusable { event, fault }),
            Err(fault) => {
                tracing::warn!(%event, "no hooks are run: {fault}");
                out(format!("Warning: no {event} hooks are run: {fault}; going on"));
                return Ok(Vec::new());
            }
        };
        if !required {
            return Ok(hooks);
        }
        if hooks.is_empty() {
            let path = self.dir.join(event.name());
            return Err(HookError::Missing { event, path });
        }
        for hook in &hooks {
            if let Err(fault) = hook.check() {
                return Err(HookError::Failed {
                    event,
                    hook: hook.name.clone(),
                    outcome: Outcome::Failed(fault),
                });
            }
        }
        Ok(hooks)
    }

    fn run_one(
        &self,
        hook: &Hook,
        context: u32,
        variables: &[(&'static str, OsString)],
        out: &mut dyn FnMut(String),
    ) -> Outcome {
        if let Err(fault) = hook.check() {
            return Outcome::Failed(fault);
        }
        let name = &hook.name;
        let mut line = |text: String| {
            tracing::info!(context, hook = name, "{text}");
            out(format!("{name}: {text}"));
        };
        match process::run(&hook.path, variables, self.timeout, &mut line) {
            Ok(End::Ended { exit, took }) => Outcome::Ran { exit, took },
            Ok(End::TimedOut) => Outcome::TimedOut { after: self.timeout },
            Err(source) => Outcome::Failed(HookFault::Start {
                path: hook.path.clone(),
                source,
            }),
        }
    }
}
