//! `scrt_ra -F`, `--undo`: the failover restore of the replica.
//!
//! Plan, ask, make the plan durable (RESTORING), execute, make the end durable (ROLLED_BACK or, after an undo, ENABLED).
//! A run that ends anywhere in between is gone on with by the same command, or turned round by `--undo` (rule R-2).

use super::{
    Answer, Op, next, part_way, refused,
    snapshot::{failure, outside, parse, point_info, recovery, side},
};
use crate::context::{Context, Recovery};
use control::{
    Code, Failure, PointInfo, Progress, Question, Reply, RestoreQuestion, Unit,
    reply::{PlanReply, RestoreReply},
    request::RestoreTo,
};
use journal::{RestorePhase, RestoreRow};
use model::{
    BlockNo, ContextState, Point, Target, VolumeIndex,
    ports::{History, HistoryError},
};
use snapshot::{Checkpoint, Restore, RestorePlan, Restored, SnapshotError, Watch};
use std::{ops::ControlFlow, sync::Arc, time::Instant};

/// `scrt_ra -F`.
pub fn failover_restore(op: &mut Op<'_>, id: u32, to: &RestoreTo, volume: Option<&str>) -> Answer {
    let context = op.context(id)?;
    let running = recovery(op, &context, &format!("scrt_ra -C {id} -F"))?;
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
                return run(op, &context, recovery, Work::GoOn(row), way);
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
    let row = RestoreRow {
        target: point.clone(),
        text: target,
        from: history.published(),
        cursor: (VolumeIndex(0), BlockNo(0)),
        phase: RestorePhase::Running,
        undo_from: None,
        only,
    };
    let way = Way::between(&context, applied_info(&context), to_info.clone(), false);
    op.ask_unless_dry(way.question(volume, warnings))?;
    if op.options.dry_run {
        let count = plan_of(history, &row).and_then(|plan| plan.count(history));
        return Ok((planned(to_info, count.map_err(|e| part_way(&e))?), None));
    }
    run(op, &context, recovery, Work::Begin(row), way)
}

/// `scrt_ra --undo`.
pub fn undo(op: &mut Op<'_>, id: u32) -> Answer {
    let context = op.context(id)?;
    let running = recovery(op, &context, &format!("scrt_ra -C {id} --undo"))?;
    let recovery = side(&running)?;
    let (Some(row), ContextState::Restoring | ContextState::RolledBack) =
        (context.restore(), context.state())
    else {
        return Err(refused(
            "the replica is not rolled back: there is no restore to undo",
        ));
    };
    let history: &dyn History = &*context.journal;
    let from = point_info(&context, &row.target, Some(&row.text));
    let mut planned_row = row.clone();
    planned_row.undo_from.get_or_insert(history.published());
    if op.options.dry_run {
        let count = plan_of(history, &planned_row).and_then(|plan| plan.count(history));
        return Ok((planned(from, count.map_err(|e| part_way(&e))?), None));
    }
    let way = Way::between(&context, from, applied_info(&context), true);
    if row.undo_from.is_some() {
        return run(op, &context, recovery, Work::GoOn(row), way);
    }
    let back = "what was received since is applied again".to_owned();
    op.ask(way.question(None, vec![back]))?;
    run(op, &context, recovery, Work::TurnRound(row), way)
}

/// What a run of a restore starts from.
enum Work {
    /// Nothing: the plan is made, and made durable, when the replica is ours.
    Begin(RestoreRow),
    /// A durable plan whose execution was interrupted.
    GoOn(RestoreRow),
    /// A restore, complete or not, that is to be taken back.
    TurnRound(RestoreRow),
}

impl Work {
    /// The plan, settled: called while the replica is ours.
    fn settle(
        self,
        context: &Context,
        recovery: &Recovery,
    ) -> Result<(RestoreRow, RestorePlan), SnapshotError> {
        let history: &dyn History = &*context.journal;
        let row = match self {
            Self::Begin(mut row) => {
                let applied = context.journal.cursors().applied_ordinal;
                row.from = RestorePlan::new(history, &row.target, applied)?.start();
                row
            }
            Self::GoOn(row) => row,
            Self::TurnRound(mut row) => {
                // The container that an interrupted restore was writing must be whole before it is turned round.
                finish_container(context, recovery, &row)?;
                row.undo_from = Some(history.published());
                row.cursor = (VolumeIndex(0), BlockNo(0));
                row.phase = RestorePhase::Running;
                row
            }
        };
        let plan = plan_of(history, &row)?;
        Ok((row, plan))
    }
}

/// The plan that a durable row describes.
fn plan_of(history: &dyn History, row: &RestoreRow) -> Result<RestorePlan, SnapshotError> {
    let mut plan = RestorePlan::resumed(history, &row.target, row.from)?;
    if let Some(only) = row.only {
        plan = plan.only(only);
    }
    Ok(match row.undo_from {
        Some(start) => plan.undo_resumed(start),
        None => plan,
    })
}

/// Overwrites again what the last container of an interrupted restore holds undo for.
fn finish_container(context: &Context, recovery: &Recovery, row: &RestoreRow) -> Result<(), SnapshotError> {
    struct StopAtOnce<'a>(&'a Context);
    impl Watch for StopAtOnce<'_> {
        fn progress(&mut self, _: &snapshot::Progress) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
        fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), HistoryError> {
            Ok(self.0.journal.set_applied_local(checkpoint.done)?)
        }
    }
    let history: &dyn History = &*context.journal;
    if context.journal.cursors().applied_ordinal >= history.published() {
        return Ok(());
    }
    let plan = plan_of(history, row)?;
    match restore_of(recovery, history, &plan).execute(None, &mut StopAtOnce(context)) {
        Ok(_) | Err(SnapshotError::Stopped(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

fn restore_of<'a>(recovery: &'a Recovery, history: &'a dyn History, plan: &'a RestorePlan) -> Restore<'a> {
    Restore {
        volumes: &recovery.volumes,
        history,
        plan,
        container_blocks: Restore::CONTAINER_BLOCKS,
    }
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
        RestoreTo::LastSnapshot => from_snapshot(
            recovery.views.all().into_iter().max_by_key(|s| s.created),
            "snapshot; --last-snapshot means one that is not released".into(),
        ),
    }
}

/// The last record that the replica holds, restores left aside.
fn applied_info(context: &Context) -> PointInfo {
    let applied = context.journal.cursors().applied;
    let rows = context.journal.lfc_rows(..);
    rows.iter()
        .rev()
        .find(|r| r.last_seq <= applied)
        .map_or_else(PointInfo::default, |r| {
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
        let (low, high) = (from.seq.min(to.seq), from.seq.max(to.seq));
        let rows = context.journal.lfc_rows(..);
        let passed = || {
            rows.iter()
                .filter(|r| r.first_seq.0 <= high && r.last_seq.0 > low)
        };
        let marks = context.journal.marks().into_iter().rev();
        Self {
            writes: passed().map(|r| r.writes).sum(),
            bytes: passed().map(|r| r.bytes).sum(),
            marks: marks
                .filter(|m| m.seq.0 > low && m.seq.0 <= high && m.seq.0 != to.seq)
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

fn planned(point: PointInfo, blocks: u64) -> Reply {
    Reply::Plan(PlanReply {
        point: Some(point),
        steps: vec![
            "make the plan durable: RESTORING".into(),
            format!("compare {blocks} blocks with the point, keep undo of those that differ, overwrite them"),
            "make the end durable".into(),
        ],
        questions: vec!["the restore itself, unless -q".into()],
    })
}

/// Executes a restore.
fn run(op: &mut Op<'_>, context: &Arc<Context>, recovery: &Recovery, work: Work, way: Way) -> Answer {
    let started = Instant::now();
    let journal = &context.journal;
    // The apply thread finishes its container first, and finds RESTORING when we let go.
    let writer = recovery.writer();
    let (mut row, plan) = work.settle(context, recovery).map_err(|e| match e {
        // After a restart the interrupted container is finished first; nothing has changed yet.
        SnapshotError::Unsettled { .. } => Failure::from_error(Code::NotNow, &e),
        e => part_way(&e),
    })?;
    context
        .set_restore(Some(row.clone()), ContextState::Restoring)
        .map_err(|e| part_way(&e))?;
    context.bells.applied.ring();
    let history: &dyn History = &**journal;
    let done = journal.cursors().applied_ordinal;
    let settled = done == history.published() && done > plan.start();
    let checkpoint = settled.then_some(Checkpoint {
        done,
        next: row.cursor,
    });
    let restored = {
        let mut watch = Watcher {
            op,
            context,
            row: &mut row,
            started,
        };
        restore_of(recovery, history, &plan).execute(checkpoint, &mut watch)
    };
    let restored = restored
        .map_err(|e| part_way(&e).with_hint("run the same command again to go on, or --undo to go back"))?;
    journal
        .set_applied_local(restored.last)
        .map_err(|e| part_way(&e))?;
    let undo = row.undo_from.is_some();
    row.phase = RestorePhase::Done;
    let end = if undo {
        context.set_restore(None, ContextState::Enabled)
    } else {
        context.set_restore(Some(row), ContextState::RolledBack)
    };
    end.map_err(|e| part_way(&e))?;
    drop(writer);
    context.bells.sealed.ring();
    context.bells.applied.ring();
    let id = context.id().0;
    Ok((
        way.reply(context, Some((&restored, started))),
        after(op, id, undo),
    ))
}

fn after(op: &Op<'_>, id: u32, undo: bool) -> Option<control::NextStep> {
    let command = if undo {
        format!("backstay status -C {id}")
    } else {
        format!("scrt_ra -C {id} --at restored")
    };
    next(command, op.node.name())
}

struct Watcher<'a, 'b> {
    op: &'a mut Op<'b>,
    context: &'a Context,
    row: &'a mut RestoreRow,
    started: Instant,
}

impl Watch for Watcher<'_, '_> {
    fn progress(&mut self, progress: &snapshot::Progress) -> ControlFlow<()> {
        self.op.progress(Progress {
            what: if self.row.undo_from.is_some() {
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

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), HistoryError> {
        self.context.journal.set_applied_local(checkpoint.done)?;
        self.row.cursor = checkpoint.next;
        Ok(self.context.keep_restore(self.row.clone())?)
    }
}
