//! `scrt_ra -p -e -v`, `rtmark --list`.

use super::{Answer, Op, next};
use crate::context::Context;
use control::{
    Failure, Gap, PointInfo, Reply, WindowInfo,
    reply::{LfcInfo, MarkInfo, MarksReply, WindowsReply},
};
use journal::{LfcRow, Reached, ResolveError};
use model::{EventMark, GenNo, Role, WriteSeq};

/// Which tables are wanted.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// `-p`.
    pub windows: bool,
    /// `-e`.
    pub marks: bool,
    /// `-v`.
    pub lfcs: bool,
    /// At most so many rows.
    pub limit: Option<u32>,
}

/// The window of today's line, from the one window function; `None` while there is nothing to go back to.
pub fn current(context: &Context) -> Result<Option<WindowInfo>, ResolveError> {
    of_line(context, None)
}

/// The windows of all lines, today's first: those that a failover left are there while the journal holds them.
fn all(context: &Context) -> Result<Vec<WindowInfo>, ResolveError> {
    let mut windows: Vec<WindowInfo> = current(context)?.into_iter().collect();
    for head in context.journal.left_lines().into_iter().rev() {
        windows.extend(of_line(context, Some(head))?);
    }
    Ok(windows)
}

fn of_line(context: &Context, head: Option<GenNo>) -> Result<Option<WindowInfo>, ResolveError> {
    let window = match context.journal.window(head) {
        Ok(window) => window,
        Err(ResolveError::NoHistory | ResolveError::NotConsistent) => return Ok(None),
        Err(e) => return Err(e),
    };
    let info = |r: &Reached| PointInfo::new(r.at.generation.0, r.at.seq, r.lfc, r.time);
    Ok(Some(WindowInfo {
        generation: window.line.0,
        current: head.is_none(),
        oldest: info(&window.oldest),
        newest: info(&window.newest),
        gaps: window
            .gaps
            .iter()
            .map(|g| Gap {
                from: g.from.time.into(),
                to: g.to.time.into(),
                why: g.cause.to_string(),
            })
            .collect(),
    }))
}

/// A mark as commands show it.
pub fn mark_info(mark: &EventMark) -> MarkInfo {
    MarkInfo {
        name: mark.name.clone(),
        description: mark.description.clone(),
        generation: mark.generation.0,
        lfc: mark.lfc.0,
        seq: mark.seq.0,
        time: mark.time.into(),
    }
}

pub(super) fn lfc_info(row: &LfcRow) -> LfcInfo {
    let mut notes = Vec::new();
    if row.sealed.mark {
        notes.push("mark");
    }
    if row.sealed.cut.is_some() {
        notes.push("cut");
    }
    LfcInfo {
        id: row.lfc.0,
        generation: row.generation.0,
        first: row.first_time.into(),
        last: row.last_time.into(),
        writes: row.writes,
        bytes: row.bytes,
        note: notes.join(" "),
    }
}

/// `scrt_ra -vpe`.
pub fn windows(op: &mut Op<'_>, id: u32, wanted: Wanted, from: Option<&str>, to: Option<&str>) -> Answer {
    let context = op.context(id)?;
    let failed = |e: ResolveError| Failure::from_error(control::Code::Refused, &e);
    let bound = |text: Option<&str>| -> Result<Option<WriteSeq>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let target = super::snapshot::parse(text)?;
        let point = context
            .journal
            .resolve(&target, model::Timestamp::now())
            .map_err(|e| super::snapshot::outside(&context, &e))?;
        Ok(Some(point.point.seq))
    };
    let (oldest, newest) = (bound(from)?, bound(to)?);
    let inside = |first: WriteSeq, last: WriteSeq| {
        oldest.is_none_or(|o| last >= o) && newest.is_none_or(|n| first <= n)
    };
    let limit = wanted
        .limit
        .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut omitted = 0;
    let mut reply = WindowsReply {
        context: context.id().0,
        ..WindowsReply::default()
    };
    if wanted.windows {
        reply.windows = Some(all(&context).map_err(failed)?);
    }
    if wanted.marks {
        let mut marks: Vec<MarkInfo> = context
            .journal
            .marks()
            .iter()
            .filter(|m| inside(m.seq, m.seq))
            .map(mark_info)
            .collect();
        marks.sort_by_key(|m| std::cmp::Reverse((m.generation, m.seq)));
        omitted += marks.len().saturating_sub(limit) as u64;
        marks.truncate(limit);
        reply.marks = Some(marks);
    }
    if wanted.lfcs {
        let mut rows = context.journal.lfc_rows(..);
        rows.retain(|r| inside(r.first_seq, r.last_seq));
        rows.reverse();
        omitted += rows.len().saturating_sub(limit) as u64;
        rows.truncate(limit);
        reply.lfcs = Some(rows.iter().map(|r| lfc_info(r)).collect());
    }
    reply.omitted = omitted;
    let next = match context.role() {
        Role::Recovery => next(format!("scrt_ra -C {id} -X"), op.node.name()),
        Role::Production => next(format!("scrt_ra -C {id} -pe"), context.peer_name()),
    };
    Ok((Reply::Windows(reply), next))
}

/// `rtmark --list`.
pub fn marks(op: &mut Op<'_>, id: u32) -> Answer {
    let context = op.context(id)?;
    let mut marks: Vec<MarkInfo> = context.journal.marks().iter().map(mark_info).collect();
    marks.sort_by_key(|m| std::cmp::Reverse((m.generation, m.seq)));
    Ok((
        Reply::Marks(MarksReply {
            context: context.id().0,
            marks,
        }),
        None,
    ))
}
