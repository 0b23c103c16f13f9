//! What is said about a run: questions, progress, steps, failures, the next command.

use super::{View, point, ra, role};
use crate::size::{bytes, count, duration, seconds_between};
use control::{Failure, NextStep, Progress, Question, RestoreQuestion, Side, Step, Unit};
use std::fmt::Write as _;

/// Steps whose words scripts look for.
pub(crate) fn step(step: &Step) -> String {
    match step {
        Step::DeterminingMounts => "Determining Filesystems to mount...".into(),
        Step::Checking { command } => command.clone(),
        Step::Mounting { path } => format!("Mounting {path}..."),
        Step::DeterminingUnmounts => "Determining Filesystems to unmount...".into(),
        Step::Unmounting { device, path } => format!("Unmounting {device} from {path}..."),
        Step::NoMounted => "No mounted filesystems".into(),
        Step::SyncCurrent => "Sync: transferring current LFC to Recovery Server".into(),
        Step::SyncAny => "Sync: transferring any current LFC data to Recovery Server".into(),
        Step::SyncWaiting => "Waiting for synchronization of data to complete.".into(),
        Step::SyncDone => "All data has been synchronized to the Recovery Server.".into(),
        Step::Starting { agent } => format!("Starting {agent}"),
        Step::Stopping { agent } => format!("Stopping {agent}"),
        Step::DriversLoaded { production, context } => {
            let role = if *production { "Production" } else { "Recovery" };
            format!("... {role} Server Drivers are already loaded for Context ID {context}.")
        }
        Step::UnloadingDrivers => "Unloading Production Server Drivers".into(),
        Step::FailoverDone { failover_id, host } => {
            format!("--- Failover Context ID <{failover_id}> is production on {host}. ---")
        }
        Step::ReadyForResync { failover_id } => {
            format!("-- Failover Context ID <{failover_id}> is enabled and ready for re-sync. ---")
        }
        Step::ResyncActivated => "--- System re-sync is activated. ---".into(),
        Step::PrimaryEnabled { context } => format!("--- Primary Context ID <{context}> is enabled. ---"),
        Step::WaitingFor { host, command } => format!("Waiting for {host}: run {command} there"),
        // A step of a newer daemon cannot come: the version would differ.
        other => format!("{other:?}"),
    }
}

/// `Next: rtmnt -C 1   on rec1`
pub(crate) fn next(next: &NextStep) -> String {
    format!("Next: {}   on {}", next.command, next.host)
}

/// What stands above a question, and the question.
pub(crate) fn question(question: &Question, view: &View) -> (Vec<String>, String) {
    match question {
        Question::Restore(r) => restore_question(r, view),
        Question::Failover(f) => role::failover_question(f, view),
        Question::Fixed(f) => role::fixed_question(*f),
        Question::Text { lines, question } => (lines.clone(), question.clone()),
        _ => (Vec::new(), "Do you wish to continue?".into()),
    }
}

fn restore_question(r: &RestoreQuestion, view: &View) -> (Vec<String>, String) {
    let (earlier, later) = (r.from.time.min(r.to.time), r.from.time.max(r.to.time));
    let way = if r.to.time <= r.from.time {
        "back"
    } else {
        "forward"
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown only"
    )]
    let span = seconds_between(earlier.0, later.0) as u64;
    let marks = if r.marks.is_empty() {
        "none".to_owned()
    } else {
        r.marks.join(", ")
    };
    let validated = r.validated.map_or_else(
        || "never".to_owned(),
        |at| format!("passed {}", view.zone.date_zone(at)),
    );
    let what = match (&r.volume, r.undo) {
        (Some(volume), false) => format!("Failover restore of volume {volume} alone"),
        (Some(volume), true) => format!("Undo of the failover restore of volume {volume}"),
        (None, false) => "Failover restore of the replica".to_owned(),
        (None, true) => "Undo of the failover restore".to_owned(),
    };
    let mut lines = vec![
        what,
        format!("  from       {}", point::point(&r.from, view)),
        format!("  to         {}", point::point(&r.to, view)),
        format!(
            "  {way:<10} {}, {}, {}",
            duration(span),
            count(r.writes, "write"),
            bytes(r.bytes)
        ),
        format!("  marks      {marks}"),
        format!("  validated  {validated}"),
    ];
    if r.volume.is_some() {
        lines.push("  Warning: one volume alone breaks the consistency of the group.".into());
    }
    lines.extend(r.warnings.iter().map(|w| format!("  Warning: {w}")));
    (lines, "Do you wish to continue?".into())
}

/// `initial sync: 12.0 MiB of 1.0 GiB (1 %), 8.2 MiB/s, 2m03s left`
pub(crate) fn progress(p: &Progress) -> String {
    let amount = |n: u64| match p.unit {
        Unit::Bytes => bytes(n),
        Unit::Writes => count(n, "write"),
        Unit::Blocks => count(n, "block"),
    };
    let mut text = format!("{}: {}", p.what, amount(p.done));
    if let Some(total) = p.total {
        let percent = u128::from(p.done) * 100 / u128::from(total.max(1));
        let _ = write!(text, " of {} ({percent} %)", amount(total));
    }
    if let Some(rate) = p.rate.filter(|r| r.is_finite() && *r >= 0.0) {
        let _ = write!(text, ", {}/s", amount(whole(rate)));
    }
    if let Some(eta) = p.eta_s {
        let _ = write!(text, ", {} left", duration(eta));
    }
    if let Some(job) = p.job {
        let _ = write!(text, ", job {job}");
    }
    text
}

/// `9.5 MiB/s`
pub(crate) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(whole(bytes_per_second)))
}

/// Whole units, for the eye.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "negative and huge values are clamped; shown only"
)]
const fn whole(number: f64) -> u64 {
    number as u64
}

/// The bar of a terminal.
pub(crate) fn bar_style() -> indicatif::ProgressStyle {
    indicatif::ProgressStyle::with_template("{bar:24} {msg}")
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// `Error:`, `Caused by:`, what is near, and `Hint:`.
pub(crate) fn failure(f: &Failure, view: &View) -> String {
    let mut text = format!("Error: {}\n", f.error);
    for cause in &f.caused_by {
        let _ = writeln!(text, "Caused by: {cause}");
    }
    for holder in &f.holders {
        let _ = writeln!(text, "Held by: {holder}");
    }
    for near in &f.nearest {
        let side = match near.side {
            Side::Before => "before",
            Side::After => "after",
        };
        let _ = writeln!(
            text,
            "Nearest {side}: {}   {}",
            near.target,
            point::short(&near.point, view)
        );
    }
    if let Some(window) = &f.window {
        text.push_str(&ra::window(window, view));
    }
    if let Some(hint) = &f.hint {
        let _ = writeln!(text, "Hint: {hint}");
    }
    if let Some(command) = &f.hint_command {
        let on = f
            .hint_host
            .as_ref()
            .map(|h| format!("   on {h}"))
            .unwrap_or_default();
        let _ = writeln!(text, "Hint: {command}{on}");
    }
    text
}
