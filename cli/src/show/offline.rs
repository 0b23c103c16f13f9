//! Answers of the tools for a stopped node.

use crate::size::{bytes, count};
use control::offline::{CheckReply, DumpLine, DumpReply, FindingInfo, LogWritesReply, SalvageReply};
use std::fmt::Write as _;

/// Most lines of ranges that are shown of a volume; `--json` has all.
const RANGES_SHOWN: usize = 50;

pub(crate) fn check(r: &CheckReply) -> String {
    let mut text = String::new();
    for finding in &r.findings {
        one(&mut text, "damaged", finding);
    }
    for note in &r.notes {
        one(&mut text, "note", note);
    }
    if r.more > 0 {
        let _ = writeln!(text, "and {} more of kinds of which there are very many", r.more);
    }
    let read = &r.read;
    let _ = writeln!(
        text,
        "Read {} of {}, {} of {}, {}, {}, {}, {} of the indexes, {}.",
        count(read.containers, "container"),
        count(read.generations, "generation"),
        count(read.frames, "frame"),
        bytes(read.bytes),
        count(read.records, "record"),
        count(read.undo_blocks, "block") + " of undo",
        count(read.rows, "row"),
        match read.index_entries {
            1 => "1 entry".to_owned(),
            n => format!("{n} entries"),
        },
        count(read.overlays, "overlay"),
    );
    let verdict = if r.is_clean() { "CLEAN" } else { "DAMAGED" };
    let _ = writeln!(
        text,
        "{verdict}: context {}, {}: {}",
        r.context,
        r.folder,
        count(r.findings.len() as u64 + r.more, "finding")
    );
    text
}

fn one(text: &mut String, word: &str, f: &FindingInfo) {
    let _ = writeln!(text, "{word}: {}: {}", f.place, f.what);
    let _ = writeln!(text, "    means: {}", f.means);
    let _ = writeln!(text, "    do:    {}", f.remedy);
}

/// A line of `dump`, as it is written for people.
#[must_use]
pub fn dump_line(line: &DumpLine) -> String {
    let mut text = format!("{:<7} {}: {}", line.kind, line.at, line.text);
    if let Some(hex) = &line.hex {
        let _ = write!(text, " hex={hex}");
    }
    text
}

pub(crate) fn dump(r: &DumpReply) -> String {
    r.lines.iter().map(|line| dump_line(line) + "\n").collect()
}

pub(crate) fn salvage(r: &SalvageReply) -> String {
    let mut text = String::new();
    for warning in &r.warnings {
        let _ = writeln!(text, "not to be trusted: {warning}");
    }
    for v in &r.volumes {
        let _ = writeln!(
            text,
            "{}: wrote {}, {} ({} of data)",
            v.name,
            v.file,
            bytes(v.bytes),
            bytes(v.data_bytes)
        );
        for lost in v.lost.iter().take(RANGES_SHOWN) {
            let _ = writeln!(
                text,
                "    lost: {} bytes at {}: {}",
                lost.bytes, lost.offset, lost.why
            );
        }
        if v.lost.len() > RANGES_SHOWN {
            let _ = writeln!(
                text,
                "    and {} ranges more (--json has all)",
                v.lost.len() - RANGES_SHOWN
            );
        }
    }
    text
}

pub(crate) fn log_writes(r: &LogWritesReply) -> String {
    format!(
        "{}: wrote {}, {} entries, {}, {}\nReplay it over the volume as of seq:{} (backstay salvage -C {} --at g{}:seq:{} -L {} -o BASE); \
         its end is seq:{}.\n",
        r.volume,
        r.file,
        r.entries,
        count(r.marks, "mark"),
        bytes(r.bytes),
        r.from.seq,
        r.context,
        r.from.generation,
        r.from.seq,
        r.volume,
        r.to.seq
    )
}
