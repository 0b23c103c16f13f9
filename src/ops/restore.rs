//! `scrt_ra -F`, `--undo`: the failover restore of the replica.
//!
//! Plan, ask, make the plan durable (RESTORING), execute, make the end durable (ROLLED_BACK or, after an undo, ENABLED).
//! A run that ends anywhere in between is gone on with by the same command, or turned round by `--undo` (rule R-2).

use super::{
    Answer, Op, next, part_way, refused,
    snapshot::{failure, outside, parse, point_info, recovery, side},
};
use crate::{
    context::{Context, Recovery},
    restoring::{Owner, Replica, RestoreError, Work, plan_of},
};
use control::{
    Code, Failure, PointInfo, Progress, Question, Reply, RestoreQuestion, Unit,
    reply::{PlanReply, RestoreReply},
    request::RestoreTo,
};
use journal::{JournalError, LfcRow, LineSpan, PinKind, Position, RestoreRow};
use model::{ContextState, GenNo, Point, Target, VolumeIndex, WriteSeq, ports::History};
use snapshot::{Restore, Restored, SnapshotError};
use std::{io, ops::ControlFlow, sync::Arc, time::Instant};

/// `scrt_ra -F`.
pub fn failover_restore(op: &mut Op<'_>, id: u32, to: &RestoreTo, volume: Option<&str>) -> Answer {
    let context = op.context(id)?;
    let running = recovery(op, &context, &typed(id, to, volume))?;
    let recovery = side(&running)?;
    let only = volume.map(|name| volume_of(&context, name)).transpose()?;
    let (point, target) = target_of(&context, recovery, to)?;
    let to_info = point_info(&context, &point, Some(&target));
    op.resolved(None, to_info.clone());
    let state = context.state();
    let history: &dyn History = &*context.journal;
    if let Some(row) = context.restore() {
        // By place and not by the whole point: the restore itself has given it another base.
        let place = |p: &Point| (p.generation, p.seq);
        let same = place(&row.target) == place(&point) && row.only == only;
        match (state, row.undo_from.is_some()) {
            (ContextState::RolledBack, false) if same => {
                let way = Way::between(&context, to_info.clone(), to_info, false);
                return Ok((way.reply(&context, None), after(op, id, false)));
            }
            // The same words mean the same restore, even if `latest` or `-10m` would be another point by now.
            (ContextState::Restoring, false) if same || (row.text == target && row.only == only) => {
                let to_info = point_info(&context, &row.target, Some(&row.text));
                let way = Way::between(&context, applied_info(&context), to_info, false);
                return run(op, &context, recovery, (Work::GoOn(row), Stop::Possible), way);
            }
            (ContextState::Restoring, _) => {
                let hint = if row.undo_from.is_some() {
                    "--undo"
                } else {
                    "the same scrt_ra -F"
                };
                return Err(refused(format!(
                    "a restore to {} is under way: only {hint} goes on from here",
                    row.text
                ))
                .with_hint_command(format!("scrt_ra -C {id} --undo"), op.node.name()));
            }
            (ContextState::RolledBack, _) => {
                return Err(
                    refused(format!("the replica is rolled back to {} already", row.text))
                        .with_hint("undo that restore first, then restore to the other point")
                        .with_hint_command(format!("scrt_ra -C {id} --undo"), op.node.name()),
                );
            }
            _ => {}
        }
    }
    let peer = context.peer();
    let mut warnings = Vec::new();
    if peer.connected {
        let text = format!("production {} is connected and running", context.peer_name());
        if !op.options.force {
            return Err(refused(text).with_hint_command(format!("rtstop -FSC {id}"), context.peer_name()));
        }
        warnings.push(format!(
            "{text}: what it writes from now on is received and held, not applied"
        ));
    }
    let way = Way::between(&context, applied_info(&context), to_info.clone(), false);
    op.ask_unless_dry(way.question(volume, warnings))?;
    let row = RestoreRow::begun(point, target, only, history.published());
    if op.options.dry_run {
        return planned(&context, to_info, &row);
    }
    run(op, &context, recovery, (Work::Begin(row), Stop::Possible), way)
}

/// Goes back to the last consistent point of a resync (rule L7), as part of a failover that the operator has confirmed; or goes on
/// with that, where it was interrupted.
pub fn to_last_consistent(op: &mut Op<'_>, context: &Arc<Context>) -> Result<(), Failure> {
    let id = context.id().0;
    let running = recovery(op, context, &format!("rtdr -C {id} failover"))?;
    let recovery = side(&running)?;
    let work = match context.restore() {
        Some(row) => Work::GoOn(row),
        None => Work::Begin(row_to_last_consistent(context, recovery)?),
    };
    let (Work::Begin(row) | Work::GoOn(row) | Work::TurnRound(row)) = &work;
    let to = point_info(context, &row.target, Some(&row.text));
    let way = Way::between(context, applied_info(context), to, false);
    run(op, context, recovery, (work, Stop::Not), way).map(drop)
}

fn row_to_last_consistent(context: &Context, recovery: &Recovery) -> Result<RestoreRow, Failure> {
    let until = context.journal.last_consistent();
    let until = until.ok_or_else(|| refused("the replica has no consistent point to go back to"))?;
    let target = Target {
        generation: Some(until.generation),
        kind: model::target::TargetKind::Seq(until.seq),
    };
    let point = recovery.views.resolve(&target).map_err(|e| match &e {
        crate::context::SnapshotError::Target(e) => outside(context, e),
        e => failure(context, e),
    })?;
    let published = History::published(&*context.journal);
    Ok(RestoreRow::begun(point, target.to_string(), None, published))
}

/// `scrt_ra --undo`.
pub fn undo(op: &mut Op<'_>, id: u32) -> Answer {
    let context = op.context(id)?;
    let running = recovery(op, &context, &format!("scrt_ra -C {id} --undo"))?;
    let recovery = side(&running)?;
    let (Some(row), ContextState::Restoring | ContextState::RolledBack) =
        (context.restore(), context.state())
    else {
        let text = "the replica is not rolled back: there is no restore to undo";
        return Err(refused(text).with_hint_command(format!("backstay status -C {id}"), op.node.name()));
    };
    let history: &dyn History = &*context.journal;
    let from = point_info(&context, &row.target, Some(&row.text));
    if op.options.dry_run {
        let turned = match row.undo_from {
            Some(_) => row,
            None => row.turned_round(history.published()),
        };
        return planned(&context, from, &turned);
    }
    let way = Way::between(&context, from, applied_info(&context), true);
    if row.undo_from.is_some() {
        return run(op, &context, recovery, (Work::GoOn(row), Stop::Possible), way);
    }
    let back = "what was received since is applied again".to_owned();
    let only = row
        .only
        .and_then(|index| context.config.indexed().find(|(i, _)| *i == index));
    let only = only.map(|(_, volume)| volume.name.clone());
    op.ask(way.question(only.as_deref(), vec![back]))?;
    run(
        op,
        &context,
        recovery,
        (Work::TurnRound(row), Stop::Possible),
        way,
    )
}

/// The command as it is typed.
fn typed(id: u32, to: &RestoreTo, volume: Option<&str>) -> String {
    let to = match to {
        RestoreTo::Target(text) => format!("--at {text}"),
        RestoreTo::Level(level) => format!("--level {level}"),
        RestoreTo::LastSnapshot => "--last-snapshot".to_owned(),
    };
    let only = volume.map(|name| format!(" -L {name}")).unwrap_or_default();
    format!("scrt_ra -C {id} -F {to}{only}")
}

fn volume_of(context: &Context, name: &str) -> Result<VolumeIndex, Failure> {
    context
        .config
        .volume(name)
        .map(|(index, _)| index)
        .ok_or_else(|| {
            Failure::new(
                Code::Usage,
                format!("context {} has no volume '{name}'", context.id()),
            )
        })
}

/// The exact point and the words for it.
fn target_of(context: &Context, recovery: &Recovery, to: &RestoreTo) -> Result<(Point, String), Failure> {
    let from_snapshot = |found: Option<Arc<crate::context::Snapshot>>, what: String| {
        found
            .map(|s| (s.point().clone(), s.target.clone()))
            .ok_or_else(|| refused(format!("context {} has no {what}", context.id())))
    };
    match to {
        RestoreTo::Target(text) => {
            let target: Target = parse(text)?;
            let point = recovery.views.resolve(&target).map_err(|e| match &e {
                crate::context::SnapshotError::Target(e) => outside(context, e),
                e => failure(context, e),
            })?;
            Ok((point, text.clone()))
        }
        RestoreTo::Level(level) => from_snapshot(
            recovery.views.get(model::Level(*level)),
            format!("snapshot at level {level}"),
        ),
        RestoreTo::LastSnapshot => match recovery.views.all().into_iter().max_by_key(|s| s.created) {
            Some(snapshot) => Ok((snapshot.point().clone(), snapshot.target.clone())),
            None => last_released(context),
        },
    }
}

/// The point of the snapshot that was released last: its pin keeps exactly what was looked at (rule K2).
fn last_released(context: &Context) -> Result<(Point, String), Failure> {
    let pins = context.journal.pins().map_err(|e| part_way(&e))?;
    let released = pins.into_iter().filter(|pin| pin.kind == PinKind::Released);
    let last = released.max_by_key(|pin| (pin.created, pin.id));
    last.map(|pin| (pin.point, pin.target)).ok_or_else(|| {
        refused(format!(
            "context {} has no snapshot, and none was released whose point is still pinned",
            context.id()
        ))
    })
}

/// The last record that the replica holds, restores left aside.
fn applied_info(context: &Context) -> PointInfo {
    let journal = &context.journal;
    let (cursors, line) = (journal.cursors(), journal.line(None));
    let is_applied = |row: &LfcRow| {
        let end = Position {
            generation: row.generation,
            seq: row.last_seq,
        };
        cursors.has_applied(end) && line.iter().any(|span| span.has(end))
    };
    let rows = journal.lfc_rows(..);
    let newest = rows.iter().rev().find(|row| is_applied(row));
    newest.map_or_else(PointInfo::default, |r| {
        PointInfo::new(r.generation.0, r.last_seq, r.lfc, r.last_time)
    })
}

/// From where to where, and what lies between.
struct Way {
    from: PointInfo,
    to: PointInfo,
    writes: u64,
    bytes: u64,
    marks: Vec<String>,
    undo: bool,
}

impl Way {
    fn between(context: &Context, from: PointInfo, to: PointInfo, undo: bool) -> Self {
        let place = |point: &PointInfo| Position {
            generation: GenNo(point.generation),
            seq: WriteSeq(point.seq),
        };
        let (from_at, to_at) = (place(&from), place(&to));
        let between = context.journal.between(from_at, to_at);
        let rows = context.journal.lfc_rows(..);
        let touches = |row: &LfcRow, span: &LineSpan| {
            span.generation == row.generation && row.first_seq <= span.upto && row.last_seq > span.after
        };
        let is_between = |row: &&Arc<LfcRow>| between.iter().any(|span| touches(row, span));
        let passed = || rows.iter().filter(is_between);
        let is_passed = |at: Position| at != to_at && between.iter().any(|span| span.has(at));
        let marks = context.journal.marks().into_iter().rev();
        Self {
            writes: passed().map(|r| r.writes).sum(),
            bytes: passed().map(|r| r.bytes).sum(),
            marks: marks
                .filter(|m| {
                    is_passed(Position {
                        generation: m.generation,
                        seq: m.seq,
                    })
                })
                .map(|m| m.name)
                .collect(),
            from,
            to,
            undo,
        }
    }

    fn question(&self, volume: Option<&str>, warnings: Vec<String>) -> Question {
        Question::Restore(Box::new(RestoreQuestion {
            from: self.from.clone(),
            to: self.to.clone(),
            undo: self.undo,
            volume: volume.map(str::to_owned),
            writes: self.writes,
            bytes: self.bytes,
            marks: self.marks.clone(),
            validated: None,
            warnings,
        }))
    }

    fn reply(self, context: &Context, done: Option<(&Restored, Instant)>) -> Reply {
        Reply::Restore(RestoreReply {
            context: context.id().0,
            from: self.from,
            to: self.to,
            undo: self.undo,
            already: done.is_none(),
            writes: self.writes,
            bytes: done.map_or(0, |(r, _)| r.bytes_written),
            blocks: done.map_or(0, |(r, _)| r.blocks_changed),
            seconds: done.map_or(0.0, |(_, started)| started.elapsed().as_secs_f64()),
        })
    }
}

fn planned(context: &Context, point: PointInfo, row: &RestoreRow) -> Answer {
    let history: &dyn History = &*context.journal;
    let counted = plan_of(history, row).and_then(|plan| {
        let undo = plan.undo_bytes_from(history, row.cursor)?;
        Ok((plan.count(history)?, undo))
    });
    let (blocks, undo) = counted.map_err(|e| part_way(&e))?;
    let room = context.room().ok();
    if let Some(free) = room.filter(|free| undo > *free) {
        let no_room = RestoreError::NoRoom { needed: undo, free };
        return Err(Failure::from_error(Code::Refused, &no_room));
    }
    let free = room.map_or("an unknown number of".to_owned(), |room| room.to_string());
    let plan = PlanReply {
        point: Some(point),
        steps: vec![
            format!("see that the journal has room for {undo} bytes of undo: {free} bytes are free"),
            "make the plan durable: RESTORING".into(),
            format!("compare {blocks} blocks with the point, keep undo of those that differ, overwrite them"),
            "make the end durable".into(),
        ],
        questions: vec!["the restore itself, unless -q".into()],
        ..PlanReply::default()
    };
    Ok((Reply::Plan(plan), None))
}

/// Whether a restore may be cancelled: a failover's own may not, for only the failover knows what comes next.
#[derive(Clone, Copy)]
enum Stop {
    Possible,
    Not,
}

/// Executes a restore.
fn run(
    op: &mut Op<'_>,
    context: &Arc<Context>,
    recovery: &Recovery,
    (work, stop): (Work, Stop),
    way: Way,
) -> Answer {
    let started = Instant::now();
    // The apply thread finishes its container first, and finds RESTORING when we let go.
    let writer = recovery.writer();
    let replica = Replica {
        journal: &context.journal,
        volumes: &recovery.volumes,
        container_blocks: Restore::CONTAINER_BLOCKS,
    };
    let stoppable = matches!(stop, Stop::Possible);
    op.may_stop(stoppable);
    let mut owner = Daemon {
        op,
        context,
        started,
        stoppable,
    };
    let restored = replica.run(work, &mut owner);
    owner.op.may_stop(false);
    let restored = restored.map_err(|e| match e {
        // Nothing has changed yet: no room, or the container that a restart interrupted is finished first.
        RestoreError::NoRoom { .. } => Failure::from_error(Code::Refused, &e)
            .with_hint("make room where the journal is, or restore to a nearer point"),
        RestoreError::PointGone(_) => Failure::from_error(Code::OutsideWindow, &e),
        RestoreError::Snapshot(SnapshotError::Unsettled { .. }) => Failure::from_error(Code::NotNow, &e),
        e => part_way(&e).with_hint("run the same command again to go on, or --undo to go back"),
    })?;
    drop(writer);
    context.bells.sealed.ring();
    context.bells.applied.ring();
    let id = context.id().0;
    let next = after(op, id, way.undo);
    Ok((way.reply(context, Some((&restored, started))), next))
}

fn after(op: &Op<'_>, id: u32, undo: bool) -> Option<control::NextStep> {
    let command = if undo {
        format!("backstay status -C {id}")
    } else {
        format!("scrt_ra -C {id} --at restored")
    };
    next(command, op.node.name())
}

/// The daemon as the owner of a context: its durable row, its disk, the operator who watches.
struct Daemon<'a, 'b> {
    op: &'a mut Op<'b>,
    context: &'a Context,
    started: Instant,
    stoppable: bool,
}

impl Owner for Daemon<'_, '_> {
    fn room(&self) -> io::Result<u64> {
        self.context.room().map_err(io::Error::other)
    }

    fn set_restore(&self, row: Option<&RestoreRow>, state: ContextState) -> Result<(), JournalError> {
        self.context.set_restore(row.cloned(), state)?;
        self.context.bells.applied.ring();
        Ok(())
    }

    fn keep_restore(&self, row: &RestoreRow) -> Result<(), JournalError> {
        self.context.keep_restore(row.clone())
    }

    fn progress(&mut self, row: &RestoreRow, progress: &snapshot::Progress) -> ControlFlow<()> {
        // Between two containers, and only of a restore that is a command of its own: the same command goes on, or --undo.
        if self.stoppable && self.op.stopped_by().is_some() {
            return ControlFlow::Break(());
        }
        self.op.progress(Progress {
            what: if row.undo_from.is_some() {
                "undo of the restore".into()
            } else {
                "restore".into()
            },
            done: progress.blocks_done,
            total: Some(progress.blocks_total),
            unit: Unit::Blocks,
            rate: Some(progress.blocks_done as f64 / self.started.elapsed().as_secs_f64().max(0.001)),
            eta_s: None,
            job: None,
        });
        ControlFlow::Continue(())
    }
}
