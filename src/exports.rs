//! The exports of a node: protected volumes, snapshots, vdevs, and any point by name (N16).
//!
//! | name | what |
//! | --- | --- |
//! | `c1/data` | the protected volume, on production |
//! | `c1/rsn10/data`, `c1/sn10/data` | snapshot and vdev of level 10 |
//! | `c1/data@TARGET`, `c1/data@TARGET+rw` | the volume at a point, on recovery, for as long as the connection lasts |
//! | `c1/data#IDENTITY`, `c1/rsn10/data#IDENTITY` | the same as without, if it still is what it was: what an attached device opens |

mod contexts;
mod head;
mod past;

use crate::{
    context::{Context, Lifeline, Running, Snapshot, SnapshotError, Views},
    node::Node,
};
use head::HeadExport;
use model::{EventMark, Level, LfcId, Role, Target, Timestamp, VolumeIndex, WriteSeq};
use nbd::{Export, ExportEntry, Exports, OpenError};
use past::{Past, PastExport};
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// Resolves export names on a node.
pub struct NodeExports {
    node: Weak<Node>,
}

impl NodeExports {
    /// The exports of `node`.
    #[must_use]
    pub fn new(node: Weak<Node>) -> Self {
        Self { node }
    }
}

/// A name taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Name<'a> {
    Head {
        context: u32,
        volume: &'a str,
    },
    Level {
        context: u32,
        level: Level,
        writable: bool,
        volume: &'a str,
    },
    At {
        context: u32,
        volume: &'a str,
        target: &'a str,
        writable: bool,
    },
}

impl Name<'_> {
    /// What it is a state of.
    fn volume(&self) -> (u32, &str) {
        match self {
            Self::Head { context, volume }
            | Self::Level { context, volume, .. }
            | Self::At { context, volume, .. } => (*context, volume),
        }
    }
}

fn parse(name: &str) -> Option<Name<'_>> {
    let (context, rest) = name.strip_prefix('c')?.split_once('/')?;
    let context = context.parse().ok()?;
    if let Some((volume, target)) = rest.split_once('@') {
        let (target, writable) = target.strip_suffix("+rw").map_or((target, false), |t| (t, true));
        return Some(Name::At {
            context,
            volume,
            target,
            writable,
        });
    }
    let Some((level, volume)) = rest.split_once('/') else {
        return Some(Name::Head {
            context,
            volume: rest,
        });
    };
    let (digits, writable) = match level.strip_prefix("rsn") {
        Some(digits) => (digits, false),
        None => (level.strip_prefix("sn")?, true),
    };
    Some(Name::Level {
        context,
        level: Level(digits.parse().ok()?),
        writable,
        volume,
    })
}

impl NodeExports {
    fn find(&self, context: u32) -> Result<(Arc<Context>, Arc<Running>), OpenError> {
        let context = self
            .node
            .upgrade()
            .and_then(|n| n.context(context))
            .ok_or_else(|| OpenError::Unknown(format!("context {context} is not on this node")))?;
        let running = context.running().ok_or_else(|| {
            let id = context.id();
            OpenError::Refused(match (context.fenced_why(), context.held_back()) {
                (Some(why), _) => format!("context {id} is fenced: {why}"),
                (None, Some(why)) => format!("context {id} is not started: {why}"),
                (None, None) => format!("context {id} is stopped: rtstart -C {id}"),
            })
        })?;
        Ok((context, running))
    }
}

/// An export's name without the identity that was asked for with it, and that. A name of a point has none: marks may have the
/// sign in their names.
pub(crate) fn plain(name: &str) -> (&str, Option<&str>) {
    match name.split_once('#') {
        Some((plain, identity)) if !plain.contains('@') => (plain, Some(identity)),
        _ => (name, None),
    }
}

impl NodeExports {
    /// What an export is now, as a word: another one means that it changed hands or stands for something else. `None` for what
    /// does not survive the daemon: a vdev's writes are durable once they are flushed, and the rest goes with it; after a failed
    /// sync the next daemon may not find what this one has answered.
    #[must_use]
    pub fn identity(&self, name: &str) -> Option<String> {
        let row = |context: &Context| context.row().notes.get("instance").cloned();
        match parse(name)? {
            Name::Head { context, .. } => {
                let (context, running) = self.find(context).ok()?;
                if context.journal.poisoned().is_some() {
                    return None;
                }
                let instance = row(&context)?;
                // Another epoch, if an earlier daemon's could not be told that it failed.
                let epoch = match self.node.upgrade()?.epochs().of(context.id().0) {
                    0 => String::new(),
                    epoch => format!("-e{epoch}"),
                };
                matches!(*running, Running::Production(_))
                    .then(|| format!("t{}-{instance}{epoch}", context.term()))
            }
            Name::Level {
                context,
                level,
                writable: false,
                ..
            } => {
                let (context, running) = self.find(context).ok()?;
                let pin = views(&running)?.get(level)?.pin;
                Some(format!("p{pin}-{}", row(&context)?))
            }
            Name::Level { .. } | Name::At { .. } => None,
        }
    }

    /// Whether this is what an export is now.
    pub(crate) fn is(&self, name: &str, identity: &str) -> bool {
        self.identity(name).as_deref() == Some(identity)
    }
}

fn volume_of(context: &Context, name: &str) -> Result<VolumeIndex, OpenError> {
    context
        .config
        .volume(name)
        .map(|(index, _)| index)
        .ok_or_else(|| {
            let known: Vec<&str> = context.config.volumes.iter().map(|v| v.name.as_str()).collect();
            OpenError::Unknown(format!(
                "context {} has no volume '{name}', it has {}",
                context.id(),
                known.join(", ")
            ))
        })
}

fn views(running: &Running) -> Option<&Views> {
    match running {
        Running::Recovery(r) => Some(&r.views),
        Running::Production(_) => None,
    }
}

impl Exports for NodeExports {
    fn list(&self) -> Vec<ExportEntry> {
        let Some(node) = self.node.upgrade() else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for context in node.contexts() {
            let Some(running) = context.running() else {
                continue;
            };
            let id = context.id();
            match &*running {
                Running::Production(_) => {
                    out.extend(context.config.volumes.iter().map(|v| ExportEntry {
                        name: format!("c{id}/{}", v.name),
                        description: format!("protected volume of context {id}"),
                    }));
                }
                Running::Recovery(r) => {
                    for snapshot in r.views.all() {
                        for volume in &context.config.volumes {
                            for (kind, word) in [("rsn", "snapshot"), ("sn", "vdev")] {
                                out.push(ExportEntry {
                                    name: format!("c{id}/{kind}{}/{}", snapshot.level, volume.name),
                                    description: describe_point(&context, word, snapshot.point()),
                                });
                            }
                        }
                    }
                    for mark in context.journal.marks() {
                        out.extend(context.config.volumes.iter().map(|v| ExportEntry {
                            name: format!("c{id}/{}@mark:{}", v.name, mark.name),
                            description: describe_mark(&context, &mark),
                        }));
                    }
                }
            }
        }
        out
    }

    fn may_be_plain(&self, name: &str) -> bool {
        let (Some(name), Some(node)) = (parse(name), self.node.upgrade()) else {
            return false;
        };
        let (context, volume) = name.volume();
        node.config().nbd.plain.contains(&format!("c{context}/{volume}"))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        let (name, wanted) = plain(name);
        let export = self.open_plain(name)?;
        // Asked behind the opening: a change of hands in between leaves an export that fails.
        if wanted.is_some_and(|identity| !self.is(name, identity)) {
            return Err(OpenError::Refused(format!(
                "{name} is not any more what it was when it was attached"
            )));
        }
        Ok(export)
    }
}

impl NodeExports {
    fn open_plain(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        let parsed = parse(name).ok_or_else(|| {
            OpenError::Unknown(format!(
                "'{name}' is no export name: c1/volume, c1/sn10/volume or c1/volume@TARGET"
            ))
        })?;
        match parsed {
            Name::Head { context, volume } => {
                let (context, running) = self.find(context)?;
                let index = volume_of(&context, volume)?;
                match &*running {
                    Running::Production(p) => Ok(Arc::new(HeadExport::new(
                        &running,
                        Arc::clone(&p.tap),
                        (index, context.volume_size(index)),
                        format!("protected volume {volume} of context {}", context.id()),
                    ))),
                    Running::Recovery(_) => Err(OpenError::Refused(format!(
                        "context {} is a replica on this node; ask for a point: c{}/{volume}@latest",
                        context.id(),
                        context.id()
                    ))),
                }
            }
            Name::Level {
                context,
                level,
                writable,
                volume,
            } => {
                let (context, running) = self.find(context)?;
                let index = volume_of(&context, volume)?;
                let views = views(&running);
                let snapshot = views.as_ref().and_then(|v| Some((v.get(level)?, v.lifeline())));
                let (snapshot, lifeline) = snapshot.ok_or_else(|| {
                    OpenError::Unknown(format!("context {} has no snapshot {level}", context.id()))
                })?;
                open_snapshot(&context, &running, &snapshot, lifeline, index, writable)
            }
            Name::At {
                context,
                volume,
                target,
                writable,
            } => {
                let (context, running) = self.find(context)?;
                let index = volume_of(&context, volume)?;
                if context.role() == Role::Production {
                    return Err(OpenError::Refused(format!(
                        "the past of context {} is shown on {}",
                        context.id(),
                        context.peer_name()
                    )));
                }
                let target: Target = target
                    .parse()
                    .map_err(|e: model::target::TargetError| OpenError::Unknown(e.to_string()))?;
                let views = views(&running).ok_or_else(|| OpenError::Failed("no views here".into()))?;
                let reader = views.reader(&target, writable).map_err(|e| match e {
                    SnapshotError::Target(e) => OpenError::Unknown(e.to_string()),
                    e @ SnapshotError::NotConsistent => OpenError::Refused(e.to_string()),
                    e => OpenError::Failed(e.to_string()),
                })?;
                let description = describe_point(&context, word(writable), reader.view.point());
                let past = Past::read_by_name(&context, &running, reader, views.lifeline(), index);
                Ok(Arc::new(PastExport::new(past, description)))
            }
        }
    }
}

fn word(writable: bool) -> &'static str {
    if writable { "vdev" } else { "snapshot" }
}

/// What a point is, when it was, and how far it lies behind the newest write that was received.
fn describe(context: &Context, word: &str, (time, lfc, seq): (Timestamp, LfcId, WriteSeq)) -> String {
    let newest = context.journal.newest_clock();
    let behind = match newest.0.saturating_sub(time.0) / 1_000_000_000 {
        0 => "less than a second".into(),
        seconds => format!("{seconds} s"),
    };
    format!("{word} at {time} (LFC {lfc}, record {seq}), {behind} behind the newest write")
}

fn describe_point(context: &Context, word: &str, point: &model::Point) -> String {
    describe(context, word, (point.time, point.lfc, point.seq))
}

fn describe_mark(context: &Context, mark: &EventMark) -> String {
    let text = describe(context, "event mark", (mark.time, mark.lfc, mark.seq));
    match mark.description.as_str() {
        "" => text,
        said => format!("{text}: {said}"),
    }
}

fn open_snapshot(
    context: &Arc<Context>,
    running: &Arc<Running>,
    snapshot: &Snapshot,
    lifeline: Lifeline,
    index: VolumeIndex,
    writable: bool,
) -> Result<Arc<dyn Export>, OpenError> {
    let (id, level) = (context.id(), snapshot.level);
    let vdev = writable.then(|| snapshot.vdev()).transpose().map_err(|why| {
        OpenError::Refused(format!(
            "the overlay of snapshot {level} cannot be used: {why}; read c{id}/rsn{level}, or release it: \
             scrt_ra -C {id} -W --level {level}"
        ))
    })?;
    let description = describe_point(context, word(writable), snapshot.point());
    let past = Past::snapshot(
        context,
        running,
        Arc::clone(&snapshot.view),
        vdev,
        lifeline,
        index,
    );
    Ok(Arc::new(PastExport::new(past, description)))
}

/// Failures of one client's requests: a client may repeat them without end, and the log must not grow with it.
#[derive(Default)]
struct Faults(AtomicU64);

impl Faults {
    /// Logs the 1st, 2nd, 4th, 8th, … of them.
    fn log(&self, what: fmt::Arguments<'_>) {
        let n = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_power_of_two() {
            tracing::error!("{what} (failure {n} of this client)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_a_volume_is_of_that_volume() {
        for name in [
            "c1/data",
            "c1/rsn10/data",
            "c1/sn10/data",
            "c1/data@latest",
            "c1/data@mark:c2/log+rw",
        ] {
            assert_eq!(parse(name).unwrap().volume(), (1, "data"), "{name}");
        }
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(
            parse("c1/data"),
            Some(Name::Head {
                context: 1,
                volume: "data"
            })
        );
        let level = Name::Level {
            context: 12,
            level: Level(10),
            writable: true,
            volume: "data",
        };
        assert_eq!(parse("c12/sn10/data"), Some(level));
        let at = Name::At {
            context: 1,
            volume: "data",
            target: "mark:end-of-day",
            writable: true,
        };
        assert_eq!(parse("c1/data@mark:end-of-day+rw"), Some(at));
        let at = Name::At {
            context: 1,
            volume: "d",
            target: "2026-11-20T10:00:00+01:00",
            writable: false,
        };
        assert_eq!(parse("c1/d@2026-11-20T10:00:00+01:00"), Some(at));
        assert_eq!(plain("c1/data#t3-0a"), ("c1/data", Some("t3-0a")));
        assert_eq!(plain("c1/data@mark:a#b"), ("c1/data@mark:a#b", None));
        for bad in [
            "",
            "data",
            "1/data",
            "cx/data",
            "c1",
            "c1/xn10/data",
            "c1/snx/data",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
