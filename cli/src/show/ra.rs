//! Answers of `scrt_ra`. The heads and `Making SNAP` are what scripts look for.

use super::{View, point, table::Table};
use crate::size::{bytes, count, duration, seconds_between};
use control::{
    WindowInfo,
    reply::{LfcInfo, MarkInfo, ReleaseReply, RestoreReply, SnapshotReply, WindowsReply},
};
use std::fmt::Write as _;

const SNAP_HEAD: &str = "Snap Devs (read only, raw)";

/// `Making SNAP …` for each volume (unless it was there before), then the table.
pub(crate) fn snapshot(r: &SnapshotReply, view: &View) -> String {
    let mut text = String::new();
    if !r.already {
        for v in &r.volumes {
            let _ = writeln!(text, "Making SNAP {}, {}", v.snap_device, v.snap_minor);
        }
    }
    // At least as wide as the head with its blanks, so that short names stand where they always stood.
    let width = r
        .volumes
        .iter()
        .map(|v| v.snap_device.chars().count())
        .max()
        .unwrap_or(0)
        .max(33);
    let _ = writeln!(
        text,
        "{SNAP_HEAD:<width$} Minor rj wj Snap level Vdev level Vdevs (read/write, block)"
    );
    let on = |flag| if flag { "ON" } else { "--" };
    for v in &r.volumes {
        let minor = v.snap_minor.rsplit('.').next().unwrap_or("-");
        let _ = writeln!(
            text,
            "{:<width$} {minor:<5} {} {} {:<10} {:<10} {}",
            v.snap_device,
            on(v.rj),
            on(v.wj),
            r.level,
            r.level,
            v.vdev_device
        );
    }
    // Devices that are not attached are reached by their export.
    for v in &r.volumes {
        if view.verbose || v.snap_minor.starts_with('-') {
            let _ = writeln!(
                text,
                "{}: {} (read only), {} (read/write)",
                v.name, v.snap_uri, v.vdev_uri
            );
        }
    }
    if r.already {
        let _ = writeln!(text, "Level {} stands at this point already.", r.level);
    }
    text
}

pub(crate) fn restore(r: &RestoreReply, view: &View) -> String {
    let what = if r.undo {
        "Restore undone"
    } else {
        "Replica restored"
    };
    if r.already {
        return format!("{what} already: it stands at {}.\n", point::short(&r.to, view));
    }
    format!(
        "{what}: context {}\n  from  {}\n  to    {}\n  {}, {} in {}, {:.1} s\n",
        r.context,
        point::short(&r.from, view),
        point::short(&r.to, view),
        count(r.writes, "write"),
        bytes(r.bytes),
        count(r.blocks, "block"),
        r.seconds
    )
}

pub(crate) fn release(r: &ReleaseReply, view: &View) -> String {
    if r.released.is_empty() {
        return "No snapshots\n".into();
    }
    let mut text = String::new();
    for s in &r.released {
        let name = s.name.as_ref().map(|n| format!(" '{n}'")).unwrap_or_default();
        let _ = write!(
            text,
            "Released level {}{name}, {}",
            s.level,
            point::short(&s.point, view)
        );
        if let Some(until) = s.pinned_until {
            let _ = write!(text, ", point kept until {}", view.zone.date_zone(until));
        }
        text.push('\n');
        for device in &s.devices {
            let _ = writeln!(text, "  {device}");
        }
    }
    text
}

pub(crate) fn windows(r: &WindowsReply, view: &View) -> String {
    let mut parts = Vec::new();
    if let Some(windows) = &r.windows {
        parts.push(if windows.is_empty() {
            "No rollback window\n".to_owned()
        } else {
            windows.iter().map(|w| window(w, view)).collect()
        });
    }
    if let Some(list) = &r.marks {
        parts.push(marks(list, view));
    }
    if let Some(list) = &r.lfcs {
        let newest = list.iter().map(|l| l.generation).max();
        parts.push(lfcs(list, newest, view));
    }
    let mut text = parts.join("\n");
    if r.omitted > 0 {
        let _ = writeln!(text, "({} more: --limit)", r.omitted);
    }
    text
}

/// `Rollback window  g3  11/19/26 03:10:02 .. 11/20/26 03:11:52 CET  (24h01m, no gaps)`, and a line for each gap.
pub(crate) fn window(w: &WindowInfo, view: &View) -> String {
    let gaps = if w.gaps.is_empty() {
        "no gaps".to_owned()
    } else {
        count(w.gaps.len() as u64, "gap")
    };
    let line = if w.current { "" } else { ", another line" };
    let mut text = format!(
        "Rollback window  g{}  {}  ({}, {gaps}{line})\n",
        w.generation,
        span(w, view),
        length(w)
    );
    for gap in &w.gaps {
        let _ = writeln!(
            text,
            "  gap  {} .. {}  {}",
            view.zone.date(gap.from),
            view.zone.date_zone(gap.to),
            gap.why
        );
    }
    text
}

/// Both ends; the zone once, unless it changed between them.
pub(crate) fn span(w: &WindowInfo, view: &View) -> String {
    let (from, to) = (w.oldest.time, w.newest.time);
    let from = if view.zone.abbreviation(from) == view.zone.abbreviation(to) {
        view.zone.date(from)
    } else {
        view.zone.date_zone(from)
    };
    format!("{from} .. {}", view.zone.date_zone(to))
}

/// From end to end.
pub(crate) fn length(w: &WindowInfo) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown only"
    )]
    duration(seconds_between(w.oldest.time.0, w.newest.time.0) as u64)
}

/// `--at g1:…` is needed for any line but `today`'s, so the generation stands with the id.
pub(crate) fn lfcs(list: &[LfcInfo], today: Option<u32>, view: &View) -> String {
    let mut table = Table::new([
        ">LFC",
        ">FIRST-EPOCH",
        ">LAST-EPOCH",
        "LAST (MM/DD/YY HH:MM:SS)",
        ">WRITES",
        ">BYTES",
        "NOTE",
    ]);
    for l in list {
        let mut note = l.note.clone();
        if Some(l.generation) != today {
            note = format!("g{} {note}", l.generation).trim_end().to_owned();
        }
        table.row([
            l.id.to_string(),
            l.first.seconds().to_string(),
            l.last.seconds().to_string(),
            view.zone.date(l.last),
            l.writes.to_string(),
            l.bytes.to_string(),
            note,
        ]);
    }
    table.text()
}

pub(crate) fn marks(list: &[MarkInfo], view: &View) -> String {
    let mut table = Table::new([">EPOCH", "DATE", ">LFC", ">SEQ", "NAME", "DESCRIPTION"]);
    for m in list {
        table.row([
            m.time.seconds().to_string(),
            view.zone.date(m.time),
            m.lfc.to_string(),
            m.seq.to_string(),
            m.name.clone(),
            // A description may have line ends; a row may not.
            m.description.split_whitespace().collect::<Vec<_>>().join(" "),
        ]);
    }
    table.text()
}
