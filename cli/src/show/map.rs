//! State maps.

use super::table::Table;
use crate::size::{bytes, count, duration};
use control::reply::{CellRun, DirtyReply, MapReply, VolumeMapInfo};
use std::fmt::Write as _;

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
