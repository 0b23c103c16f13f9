//! `status`: a screen of 24 lines, and of 80 columns or as many as there are.
//!
//! Every context has a fixed part of at most fourteen lines; volumes, snapshots and warnings share what is left and say
//! how many rows they left out (`-v` shows all). Lines are cut at its edge on a terminal only.

use super::{View, about, point, ra, table::Table};
use crate::size::{bytes, count, duration, seconds_between, short_seconds};
use control::{
    PointInfo,
    status::{ContextStatus, ResyncStatus, Rpo, StatusReply},
};
use model::{ContextState, Role};
use std::fmt::Write as _;

/// One line less than the screen has: the prompt's; another for `Next:`.
const LINES: usize = 22;

pub(crate) fn screen(r: &StatusReply, view: &View) -> String {
    let mut text = String::new();
    if r.old {
        let _ = writeln!(
            text,
            "OLD: the daemon does not answer; this is what the disk says, as of {}",
            view.zone.date_zone(r.taken)
        );
    }
    match r.contexts.as_slice() {
        [] => {
            let _ = writeln!(text, "{} · no contexts", r.host);
        }
        [one] => context(&mut text, one, r, view),
        many => summary(&mut text, many, r, view),
    }
    let Some(columns) = view.columns else {
        return text;
    };
    text.lines().map(|l| format!("{}\n", cut(l, columns))).collect()
}

/// One line a context: a word to look for, and the verdict.
pub(crate) fn monitor(r: &StatusReply) -> String {
    if r.contexts.is_empty() {
        return format!(
            "{} {}: no contexts\n",
            if r.old { "UNKNOWN" } else { "OK" },
            r.host
        );
    }
    r.contexts
        .iter()
        .map(|c| {
            let id = c.head.context.as_ref().map_or(0, |h| h.id);
            let word = match (r.old, c.healthy) {
                (true, _) => "UNKNOWN",
                (false, true) => "OK",
                (false, false) => "WARNING",
            };
            let warnings: String = c.warnings.iter().map(|w| format!("; {w}")).collect();
            format!("{word} {} context {id}: {}{warnings}\n", r.host, c.verdict)
        })
        .collect()
}

fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    line.chars()
        .take(columns.saturating_sub(1))
        .chain(['…'])
        .collect()
}

const fn health(healthy: bool) -> &'static str {
    if healthy { "HEALTHY" } else { "NOT HEALTHY" }
}

fn context(text: &mut String, c: &ContextStatus, r: &StatusReply, view: &View) {
    let _ = writeln!(
        text,
        "{} · {}",
        health(c.healthy && !r.old),
        point::head(&c.head, view)
    );
    let _ = writeln!(text, "{}", c.verdict);
    let mut pair = |a: &str, av: &str, b: &str, bv: &str| {
        let _ = writeln!(text, "{}", format!("{a:<9} {av:<36} {b:<8} {bv}").trim_end());
    };
    let mode = c
        .mode_now
        .as_ref()
        .map_or_else(|| c.mode.clone(), |now| format!("{} ({now})", c.mode));
    pair("Mode", &mode, "Node", &c.node_status.to_string());
    let ack = c.last_ack.map_or_else(
        || "never".into(),
        |at| format!("{} ago", short_seconds(seconds_between(at.0, r.taken.0))),
    );
    pair("Loss now", &rpo(&c.rpo), "Last ack", &ack);
    pair("Backlog", &bytes(c.backlog_bytes), "Stale", &bytes(c.stale_bytes));
    let peer = c.head.context.as_ref().and_then(|h| h.peer.as_ref()).map_or_else(
        || "none".into(),
        |p| format!("{} {}", p.name, point::peer_state(p.state, p.since, view)),
    );
    pair(
        "Peer",
        &peer,
        "Replica",
        if c.consistent {
            "consistent"
        } else {
            "NOT CONSISTENT"
        },
    );
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<9} {value}");
    };
    row("Window", window(c, view));
    row("Journal", journal(c));
    row("Position", position(c));
    if let Some(p) = &c.restored {
        row("Restored", point::short(p, view));
    }
    if let Some(copy) = &c.resync {
        row("Copy", resync(copy));
    }
    if c.acting {
        row("Acting", acting(c));
    }
    if let Some(by) = &c.fenced_by {
        let why = c.fenced_reason.as_ref().map(|why| format!(": {why}"));
        row("Fenced", format!("by {by}{}", why.unwrap_or_default()));
    }
    if let Some(s) = &c.stopped {
        row("Stopped", format!("by {} {}", s.by, view.zone.date_zone(s.at)));
    }
    let good = c
        .proven_good
        .as_ref()
        .map_or_else(|| "never".into(), |p: &PointInfo| point::short(p, view));
    row("Proven", good);
    row("Verified", verified(c, view));
    rest(text, c, view);
}

/// The last verify, and the one that is under way.
fn verified(c: &ContextStatus, view: &View) -> String {
    let head = c.head.context.as_ref();
    let replica = head.filter(|h| h.role == Role::Recovery);
    let elsewhere = replica
        .and_then(|h| h.peer.as_ref())
        .map(|peer| format!("see {}", peer.name));
    let last = c.verified.as_ref().map_or_else(
        || elsewhere.unwrap_or_else(|| "never".into()),
        |v| {
            format!(
                "{} at LFC {}, {}",
                view.zone.date_zone(v.at),
                v.lfc,
                count(v.mismatches, "mismatch").replace("mismatchs", "mismatches")
            )
        },
    );
    let Some(now) = &c.verifying else {
        return last;
    };
    let percent = now.done_bytes.saturating_mul(100) / now.total_bytes.max(1);
    let then = match (&now.waits, now.eta_s) {
        (Some(why), _) => format!(", waits: {why}"),
        (None, Some(eta)) => format!(", {eta} s to go"),
        (None, None) => String::new(),
    };
    format!("{last}; now {percent} %{then}")
}

/// Warnings first, then volumes, then snapshots, within what is left of the screen.
fn rest(text: &mut String, c: &ContextStatus, view: &View) {
    let used = text.lines().count();
    let left = if view.verbose {
        usize::MAX
    } else {
        LINES.saturating_sub(used).max(6)
    };
    let warnings = c.warnings.len().min(left / 3);
    for warning in &c.warnings[..warnings] {
        let _ = writeln!(text, "Warning: {warning}");
    }
    more(text, c.warnings.len() - warnings, "warning");
    let left = left.saturating_sub(warnings + usize::from(warnings < c.warnings.len()));
    // Heads and two lines of "more" are paid for first.
    let snapshots = if c.snapshots.is_empty() { 0 } else { 2 };
    let volumes = c.volumes.len().min(left.saturating_sub(2 + snapshots).max(1));
    let mut table = Table::new(["VOLUME", ">SIZE", "FS", "MOUNT", "STATE"]);
    for v in &c.volumes[..volumes] {
        let mut state = Vec::new();
        state.extend(match (v.mounted, v.open) {
            (true, _) => Some("mounted"),
            (false, true) => Some("open"),
            (false, false) => v.device.as_ref().map(|_| "attached"),
        });
        state.extend(v.needs_full_sync().then_some("needs-full-sync"));
        if state.is_empty() {
            state.push("-");
        }
        table.row([
            v.name.clone(),
            bytes(v.bytes),
            v.filesystem.clone().unwrap_or_else(|| "raw".into()),
            v.mount.clone().unwrap_or_else(|| "-".into()),
            state.join(", "),
        ]);
    }
    text.push_str(&table.text());
    more(text, c.volumes.len() - volumes, "volume");
    if c.snapshots.is_empty() {
        return;
    }
    let left = left.saturating_sub(1 + volumes + usize::from(volumes < c.volumes.len()));
    let shown = c.snapshots.len().min(left.saturating_sub(2).max(1));
    let mut table = Table::new([">SNAP", "DATE", ">LFC", "OVERLAY", "NAME", "MOUNTED"]);
    for s in &c.snapshots[..shown] {
        let limit = s
            .overlay_limit_bytes
            .map(|l| format!(" of {}", bytes(l)))
            .unwrap_or_default();
        table.row([
            s.level.to_string(),
            view.zone.date(s.point.time),
            s.point.lfc.to_string(),
            if s.broken {
                "BROKEN".to_owned()
            } else {
                format!("{}{limit}", bytes(s.overlay_bytes))
            },
            s.name.clone().unwrap_or_else(|| "-".into()),
            if s.mounts.is_empty() {
                "-".into()
            } else {
                s.mounts.join(" ")
            },
        ]);
    }
    text.push_str(&table.text());
    more(text, c.snapshots.len() - shown, "snapshot");
}

fn more(text: &mut String, left_out: usize, noun: &str) {
    if left_out > 0 {
        let _ = writeln!(text, "  … {} more: -v", count(left_out as u64, noun));
    }
}

fn rpo(rpo: &Rpo) -> String {
    match (rpo.writes, rpo.bytes, rpo.seconds) {
        (Some(0), ..) => "nothing".into(),
        (Some(w), b, s) => {
            let mut text = count(w, "write");
            if let Some(b) = b {
                let _ = write!(text, ", {}", bytes(b));
            }
            if let Some(s) = s {
                let _ = write!(text, ", {}", short_seconds(s));
            }
            text
        }
        (None, ..) => "unknown".into(),
    }
}

/// `rec1 -> prod1, 25 % of 4.0 GiB, 3.0 GiB left, 9.5 MiB/s, 5m00s to go`
fn resync(r: &ResyncStatus) -> String {
    let done = r.bytes_total.saturating_sub(r.bytes_left);
    let mut text = format!(
        "{}, {} % of {}, {} left",
        r.direction,
        u128::from(done) * 100 / u128::from(r.bytes_total.max(1)),
        bytes(r.bytes_total),
        bytes(r.bytes_left),
    );
    if let Some(rate) = r.rate {
        let _ = write!(text, ", {}", about::rate(rate));
    }
    if let Some(eta) = r.eta_s {
        let _ = write!(text, ", {} to go", duration(eta));
    }
    text
}

/// Whose place it has taken.
fn acting(c: &ContextStatus) -> String {
    let peer = c.head.context.as_ref().and_then(|h| h.peer.as_ref());
    match peer {
        Some(peer) => format!("production in place of {}", peer.name),
        None => "production, though not configured so".into(),
    }
}

fn window(c: &ContextStatus, view: &View) -> String {
    let mut text = match &c.window {
        None => "none".to_owned(),
        Some(w) => {
            let gaps = if w.gaps.is_empty() {
                String::new()
            } else {
                format!(", {}", count(w.gaps.len() as u64, "gap"))
            };
            format!("{} ({}{gaps})", ra::span(w, view), ra::length(w))
        }
    };
    if let Some(s) = c.window_wanted.seconds {
        let _ = write!(text, " of {}", duration(s));
    }
    if let Some(b) = c.window_wanted.bytes {
        let _ = write!(text, " of {}", bytes(b));
    }
    text
}

fn journal(c: &ContextStatus) -> String {
    let mut text = fill(c);
    if c.pins > 0 {
        let _ = write!(text, ", {}", count(c.pins, "pin"));
    }
    text
}

fn fill(c: &ContextStatus) -> String {
    match c.journal_limit_bytes {
        None => bytes(c.journal_bytes),
        Some(limit) => format!(
            "{} of {} ({} %)",
            bytes(c.journal_bytes),
            bytes(limit),
            u128::from(c.journal_bytes) * 100 / u128::from(limit.max(1))
        ),
    }
}

fn position(c: &ContextStatus) -> String {
    let at = &c.cursors;
    let production = c.head.context.as_ref().is_none_or(|h| h.role == Role::Production);
    if production {
        format!(
            "written {}, durable {}, acknowledged {}, LFC {}",
            at.appended, at.durable, at.acknowledged, at.lfc
        )
    } else {
        format!(
            "received {}, durable {}, applied {}, LFC {}",
            at.received, at.durable, at.applied, at.lfc
        )
    }
}

fn summary(text: &mut String, many: &[ContextStatus], r: &StatusReply, view: &View) {
    let _ = writeln!(
        text,
        "{} · {} · {}",
        health(r.healthy()),
        r.host,
        count(many.len() as u64, "context")
    );
    let shown = if view.verbose {
        many.len()
    } else {
        many.len().min(LINES - 3)
    };
    let mut table = Table::new([
        ">CONTEXT", "HEALTHY", "ROLE", "STATE", ">TERM", "LOSS NOW", "VERDICT",
    ]);
    for c in &many[..shown] {
        let head = c.head.context.as_ref();
        table.row([
            head.map_or_else(|| "?".into(), |h| h.id.to_string()),
            if c.healthy { "yes".into() } else { "NO".into() },
            head.map_or(Role::Recovery, |h| h.role).to_string(),
            head.map_or(ContextState::Stopped, |h| h.state).to_string(),
            head.map_or(0, |h| h.term).to_string(),
            rpo(&c.rpo),
            c.verdict.clone(),
        ]);
    }
    text.push_str(&table.text());
    more(text, many.len() - shown, "context");
}
