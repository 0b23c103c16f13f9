//! The table on the terminal, and the page with it.

use crate::{
    outcome::{Outcome, Row},
    peers::Peer,
    work::Line,
};
use std::fmt::Write as _;

/// A line and what came of it: figures, or why there are none.
pub struct Done {
    pub line: Line,
    pub came: Came,
    pub seconds: f64,
    /// Processes that wanted a core when it began.
    pub load: f64,
}

pub enum Came {
    Measured(Outcome),
    /// No figures, and why.
    Without(String),
    Failed(String),
}

impl Done {
    pub fn failed(&self) -> bool {
        matches!(self.came, Came::Failed(_))
    }
}

/// A figure with as many digits as say something.
pub fn number(figure: f64) -> String {
    match figure.abs() {
        _ if figure.is_nan() => "?".into(),
        n if n >= 100.0 => format!("{figure:.0}"),
        n if n >= 10.0 => format!("{figure:.1}"),
        n if n >= 0.095 || n == 0.0 => format!("{figure:.2}"),
        _ => format!("{figure:.4}"),
    }
}

const HEAD: [&str; 7] = ["#", "work", "against", "aim", "median", "spread", "reached"];

fn cells(done: &Done) -> Vec<[String; 7]> {
    let line = &done.line;
    let alone = |text: String| {
        let mut cells = <[String; 7]>::default();
        (cells[0], cells[1], cells[4]) = (line.number.to_string(), line.work.to_owned(), text);
        vec![cells]
    };
    match &done.came {
        Came::Without(why) => alone(why.clone()),
        Came::Failed(_) => alone("FAILED".into()),
        Came::Measured(outcome) => {
            let rows = outcome.rows.iter().enumerate();
            rows.map(|(n, row)| row_cells(line, row, n == 0)).collect()
        }
    }
}

/// The work of a line is said once; its further rows say their part.
fn row_cells(line: &Line, row: &Row, is_first: bool) -> [String; 7] {
    let (median, unit) = (row.samples.median(), row.unit);
    let work = match (row.part.as_str(), is_first) {
        ("", true) => line.work.to_owned(),
        (part, true) => format!("{}: {part}", line.work),
        ("", false) => "″".to_owned(),
        (part, false) => format!("… {part}"),
    };
    let spread = match row.samples.0.len() {
        0 | 1 => "one run".into(),
        n => format!(
            "{} – {} ({n})",
            number(row.samples.lowest()),
            number(row.samples.highest())
        ),
    };
    let reached = row.aim.reached(median).map_or("–", |yes| match yes {
        true => "yes",
        false => "**no**",
    });
    [
        line.number.to_string(),
        work,
        row.against.clone(),
        row.aim.text(unit),
        format!("{}{unit}", number(median)),
        spread,
        reached.to_owned(),
    ]
}

/// The table with aligned columns.
pub fn table(all: &[Done]) -> String {
    let mut rows = vec![HEAD.map(String::from), HEAD.map(|_| "---".into())];
    rows.extend(all.iter().flat_map(cells));
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    }
    text
}

fn count(all: &[Done]) -> (usize, usize) {
    let rows = all.iter().filter_map(|d| match &d.came {
        Came::Measured(outcome) => Some(&outcome.rows),
        _ => None,
    });
    let judged: Vec<bool> = rows
        .flatten()
        .filter_map(|r| r.aim.reached(r.samples.median()))
        .collect();
    (judged.iter().filter(|yes| **yes).count(), judged.len())
}

/// One sentence: how many aims are reached.
pub fn verdict(all: &[Done]) -> String {
    let (reached, of) = count(all);
    let failed = all.iter().filter(|d| d.failed()).count();
    let failed = match failed {
        0 => String::new(),
        n => format!(" {n} lines FAILED to run."),
    };
    format!("{reached} of {of} aims reached.{failed}")
}

/// The figures of a line, for whoever watches the run.
pub fn figures(outcome: &Outcome) -> String {
    let mut text = String::new();
    for row in &outcome.rows {
        let rounds: Vec<String> = row.samples.0.iter().map(|f| number(*f)).collect();
        let (part, aim) = (&row.part, row.aim.text(row.unit));
        let part = if part.is_empty() { "" } else { &format!("{part}, ") };
        let _ = writeln!(
            text,
            "   {part}against {}: {}{} (aim {aim})",
            row.against,
            rounds.join(" "),
            row.unit
        );
    }
    for s in &outcome.series {
        let rounds: Vec<String> = s.samples.0.iter().map(|f| number(*f)).collect();
        let _ = writeln!(text, "   {}: {} {}", s.name, rounds.join(" "), s.unit);
    }
    for remark in &outcome.remarks {
        let _ = writeln!(text, "   {remark}");
    }
    text
}

/// What is said of the whole run.
pub struct Whole<'a> {
    pub facts: &'a [(&'static str, String)],
    pub command: &'a str,
    pub scale: &'a str,
    pub minutes: f64,
    /// Plots: files beside the page, with what they show.
    pub plots: &'a [(String, String)],
}

/// The page, `docs/BENCHMARKS.md`.
pub fn page(run: &Whole<'_>, all: &[Done]) -> String {
    let mut text = String::from(INTRODUCTION);
    let _ = writeln!(
        text,
        "\n## This run\n\nWritten by `{}` ({} sizes, {:.0} minutes). {}\n\n| | |\n| --- | --- |",
        run.command,
        run.scale,
        run.minutes,
        verdict(all)
    );
    for (name, fact) in run.facts {
        let _ = writeln!(text, "| {name} | {fact} |");
    }
    let loads: Vec<f64> = all.iter().map(|d| d.load).collect();
    let busiest = loads.iter().copied().fold(0.0, f64::max);
    let _ = writeln!(
        text,
        "| load when a line began | at most {busiest:.1} processes that wanted a core; the bench itself leaves up to about 3 |"
    );
    if run.scale != "full" {
        text.push_str(SMALLER);
    }
    let _ = write!(text, "\n| server | as it is started |\n| --- | --- |\n");
    for peer in Peer::ALL {
        let _ = writeln!(text, "| {} | {} |", peer.name(), peer.shown());
    }
    let _ = write!(text, "\n## Aims and figures\n\n{}", table(all));
    for (file, shows) in run.plots {
        let _ = write!(text, "\n![{shows}]({file})\n");
    }
    text.push_str("\n## Line by line\n");
    for done in all {
        let line = &done.line;
        let _ = write!(text, "\n**{}. {}.** {}\n", line.number, line.work, line.does);
        match &done.came {
            Came::Measured(outcome) => {
                details(&mut text, outcome);
                let missed = |row: &Row| row.aim.reached(row.samples.median()) == Some(false);
                if !line.bound.is_empty() && outcome.rows.iter().any(missed) {
                    let _ = write!(text, "\n*What bounds it.* {}\n", line.bound);
                }
            }
            Came::Failed(why) => {
                let _ = write!(text, "\nFAILED: {}\n", why.lines().next().unwrap_or_default());
            }
            Came::Without(why) => {
                let _ = write!(text, "\nNo figures, {why}.\n");
            }
        }
    }
    text
}

fn details(text: &mut String, outcome: &Outcome) {
    let series = |s: &crate::outcome::Series| {
        let spread = match s.samples.0.len() {
            0 | 1 => String::new(),
            _ => format!(
                " ({} – {})",
                number(s.samples.lowest()),
                number(s.samples.highest())
            ),
        };
        format!("{}: {} {}{spread}", s.name, number(s.samples.median()), s.unit)
    };
    let all: Vec<String> = outcome.series.iter().map(series).collect();
    if !all.is_empty() {
        let _ = write!(text, "\n{}.\n", all.join("; "));
    }
    for command in &outcome.commands {
        let _ = write!(text, "\n`{command}`\n");
    }
    for remark in &outcome.remarks {
        let _ = write!(text, "\n- {remark}\n");
    }
}

const SMALLER: &str = "
These sizes are smaller than those that the aims are about: aims that name a size or a time (lines 10 to 12, 14 to 16, 21) are judged by less work, and what a
volume of this size was written with fits into the memory in which writes may wait for write-back (`write_back_limit`, two containers). Only `make bench` judges them.
";

const INTRODUCTION: &str = "\
# Benchmarks

`make bench` (at most an hour) and `make bench-quick` (at most 8 minutes, smaller sizes and fewer rounds) write this page. Each line of the table runs
beside its peer on the same machine: in every round all contestants run once, one right behind the other, and who begins changes. A ratio is
taken within a round; the table has the median of the rounds, and the lowest and highest. Absolute figures belong to the machine they were taken on; only ratios are
compared. Every run that writes ends with a flush inside its measured time, and before each run all that anybody wrote is on the disk. An aim that is missed is printed as missed:
the bench fails only when a run does.

*Capture* is journaling with the peer away. *Full path* is journaling, TLS to a live recovery node on the same machine, and apply with undo there, all on the same cores. *Capture off* is
the same NBD server over a plain file without a journal (`benches/lines/plain.rs`); the daemon itself never serves a volume that way. *Datalog* is `nbd-server` with `transactionlog` and `datalog = true`, which
writes every request with its data into a log that nothing syncs. Volumes are files whose blocks were all written before, on the same file system for everybody. Daemons run with their
defaults but `journal_limit`, so that the bench does not fill the disk. `ONLY=\"1 2 7\" make bench` runs only those.
";
