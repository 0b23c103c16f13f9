//! State maps.

use super::{View, table::Table};
use crate::size::{bytes, count, duration};
use control::reply::{CellRun, DirtyReply, LostInfo, MapReply, VolumeMapInfo};
use std::fmt::Write as _;

/// Runs of a plan that are shown without `-v`.
const LOST_RUNS: usize = 20;

/// `Context 1: 1.0 GiB to be copied, everything, in about 2m03s`
pub(crate) fn dirty(r: &DirtyReply) -> String {
    let mut text = format!("Context {}: {} to be copied", r.context, bytes(r.bytes));
    if r.whole {
        text.push_str(", everything");
    }
    if let Some(eta) = r.eta_s {
        let _ = write!(text, ", in about {}", duration(eta));
    }
    text.push('\n');
    text
}

/// A dump as it is; else one paragraph a volume, and where the maps as they were are.
pub(crate) fn maps(r: &MapReply) -> String {
    if r.volumes.is_empty() {
        return r.text.clone().unwrap_or_default();
    }
    let paragraphs: Vec<_> = r.volumes.iter().map(volume).collect();
    let between = if r.volumes.iter().all(|v| v.runs.is_empty()) {
        ""
    } else {
        "\n"
    };
    let mut text = paragraphs.join(between);
    if let Some(saved) = &r.text {
        let _ = writeln!(text, "The maps as they were: {saved}");
    }
    text
}

/// What only the host that gives way has: a line a volume, and where in it.
pub(crate) fn lost(lost: &[LostInfo], view: &View) -> String {
    let mut text = String::new();
    for l in lost {
        let _ = writeln!(
            text,
            "Written only here, {}: {} in regions of {}",
            l.volume,
            bytes(l.bytes),
            bytes(l.region_size)
        );
        let mut table = Table::new([">FIRST", ">LAST", ">FIRST-BYTE"]);
        let shown = if view.verbose { l.runs.len() } else { LOST_RUNS };
        for (first, last) in l.runs.iter().take(shown) {
            let at = first.saturating_mul(l.region_size);
            table.row([first.to_string(), last.to_string(), at.to_string()]);
        }
        text.push_str(&table.text());
        let hidden = l.runs.len().saturating_sub(shown) as u64;
        if hidden > 0 {
            let _ = writeln!(text, "and {} (-v shows them)", count(hidden, "more run"));
        }
        if l.more > 0 {
            let _ = writeln!(text, "and {} that are not listed", count(l.more, "more run"));
        }
    }
    text
}

fn volume(v: &VolumeMapInfo) -> String {
    let state = if v.stale_bytes == 0 {
        "clean".to_owned()
    } else {
        format!("{} stale", bytes(v.stale_bytes))
    };
    let mut text = format!(
        "{}: {} of {}, {state}\n",
        v.name,
        count(v.cells, "region"),
        bytes(v.region_size)
    );
    if v.runs.is_empty() {
        return text;
    }
    let mut table = Table::new([">FIRST", ">LAST", "CELL", "STATE", ">FIRST-BYTE"]);
    for run in &v.runs {
        table.row([
            run.first.to_string(),
            run.end.saturating_sub(1).to_string(),
            format!("{:x}", run.cell),
            word(run).to_owned(),
            run.first.saturating_mul(v.region_size).to_string(),
        ]);
    }
    text.push_str(&table.text());
    text
}

const fn word(run: &CellRun) -> &'static str {
    match run.cell {
        0 => "clean",
        15 => "stale",
        _ => "not clean",
    }
}
