//! Roles: what is asked before they change, and what came of it.

use super::{View, point, ra, run};
use crate::size::{bytes, count, duration};
use control::{
    FailoverQuestion, FixedQuestion, MissingInfo,
    reply::{ResyncSet, RoleReply, RoleVerb},
};
use std::fmt::Write as _;

/// The point, its age, what may be missing, and when production was last heard.
pub(crate) fn failover_question(q: &FailoverQuestion, view: &View) -> (Vec<String>, String) {
    let heard = q.peer_heard.map(|at| view.zone.date_zone(at));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "negative ages are clamped; shown only"
    )]
    let age = q
        .age_s
        .map_or_else(|| "unknown".to_owned(), |s| duration(s as u64));
    let lost = match (&q.missing, &heard) {
        (Some(m), _) => missing(m),
        (None, Some(at)) => format!("unknown: link down since {at}"),
        (None, None) => format!("unknown: {} was never heard", q.peer),
    };
    let heard = heard.map_or_else(|| "never heard".to_owned(), |at| format!("last heard {at}"));
    let mut lines = vec![
        "Failover: this host becomes production".to_owned(),
        format!("  goes on from  {}", point::point(&q.point, view)),
        format!("  age           {age}"),
        format!("  missing       {lost}"),
        format!("  production    {}, {heard}", q.peer),
    ];
    lines.extend(q.warnings.iter().map(|w| format!("  Warning: {w}")));
    (lines, "Do you wish to continue?".into())
}

/// Word for word what the procedures answer.
pub(crate) fn fixed_question(question: FixedQuestion) -> (Vec<String>, String) {
    let (lines, asked): (&[&str], _) = match question {
        FixedQuestion::FailoverProcessing => (
            &["scsetup: You have requested failover processing."],
            "scsetup: Do you wish to continue?",
        ),
        FixedQuestion::LcaReset => (
            &[
                "!!! RESET WARNING !!!",
                "You have requested an LCA reset.",
                "All outstanding sealed LFCs will be dumped.",
            ],
            "Do you wish to do this?",
        ),
    };
    (lines.iter().map(|l| (*l).to_owned()).collect(), asked.to_owned())
}

/// What the steps have not said.
pub(crate) fn changed(r: &RoleReply, view: &View) -> String {
    let again = if r.already { ", already so" } else { "" };
    let mut text = format!("Context {} (failover {}): ", r.context, r.failover_id);
    let _ = match (r.verb, &r.waiting_for) {
        (RoleVerb::SetUp, _) => writeln!(text, "fails over to {}{again}", r.host),
        (RoleVerb::Failback, Some(host)) => {
            writeln!(
                text,
                "given up here, {host} is to take over, term {}{again}",
                r.term
            )
        }
        _ => writeln!(text, "{} is production, term {}{again}", r.host, r.term),
    };
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<10}  {value}");
    };
    if let Some(p) = &r.point {
        let name = if r.verb == RoleVerb::Resync {
            "common"
        } else {
            "last write"
        };
        row(name, &point::short(p, view));
    }
    if r.verb == RoleVerb::Failover && !r.already {
        row("missing", &lost(r));
    }
    if let Some(set) = &r.set {
        row("to copy", &to_copy(set));
    }
    if !r.already && r.verb != RoleVerb::SetUp {
        row("took", &format!("{:.1} s", r.seconds));
    }
    if !r.dropped_lfcs.is_empty() {
        let _ = writeln!(
            text,
            "Dropped {}, which can still be read by generation:",
            count(r.dropped_lfcs.len() as u64, "LFC")
        );
        text.push_str(&ra::lfcs(&r.dropped_lfcs, None, view));
    }
    text.push_str(&run::mounts(&r.volumes));
    text
}

fn lost(r: &RoleReply) -> String {
    match (&r.missing, r.missing_known) {
        (Some(m), true) => missing(m),
        (Some(m), false) => format!("{}, perhaps more: the link was down", missing(m)),
        (None, true) => "nothing".into(),
        (None, false) => "unknown: the link was down".into(),
    }
}

fn missing(m: &MissingInfo) -> String {
    if m.writes == 0 {
        return "nothing".into();
    }
    format!("{}, {}", count(m.writes, "write"), bytes(m.bytes))
}

/// Each part by itself: a block may belong to several.
fn to_copy(set: &ResyncSet) -> String {
    if set.whole {
        return "everything".into();
    }
    format!(
        "{} written here, {} written by the peer, {} stale",
        bytes(set.own_bytes),
        bytes(set.peer_bytes),
        bytes(set.stale_bytes)
    )
}
