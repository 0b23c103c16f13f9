//! Points and head lines.

use super::View;
use control::{HeadLine, Moment, PeerState, PointInfo, event::HeadContext};
use model::ContextState;

/// `g3:seq:1812 (lfc 70250) · 11/20/26 03:11:52 CET · production 11/19/26 21:11:52 EST · 2026-11-20T02:11:52.4Z`
///
/// The first words are what to type after `--at` to get exactly this point again.
pub(crate) fn point(p: &PointInfo, view: &View) -> String {
    let mut text = format!("{} (lfc {}) · {}", exact(p), p.lfc, view.zone.date_zone(p.time));
    if let Some(zone) = p.production_tz.as_deref().and_then(crate::zone::Zone::named) {
        let there = zone.date_zone(p.time);
        if there != view.zone.date_zone(p.time) {
            text.push_str(&format!(" · production {there}"));
        }
    }
    text.push_str(&format!(" · {}", p.time.timestamp().rfc3339()));
    if let Some(mark) = &p.mark {
        text.push_str(&format!(" · mark '{mark}'"));
    }
    if let Some(note) = &p.note {
        text.push_str(&format!(" · {note}"));
    }
    text
}

/// The same in one short phrase, for tables and results.
pub(crate) fn short(p: &PointInfo, view: &View) -> String {
    format!("{} (lfc {}) {}", exact(p), p.lfc, view.zone.date_zone(p.time))
}

/// What names the point for good.
pub(crate) fn exact(p: &PointInfo) -> String {
    format!("g{}:seq:{}", p.generation, p.seq)
}

/// The echo before anything is done.
pub(crate) fn resolved(level: Option<u32>, p: &PointInfo, view: &View) -> String {
    match level {
        Some(level) => format!("Level {level}, point {}", point(p, view)),
        None => format!("Point {}", point(p, view)),
    }
}

/// `rec1 · context 1 (failover 2) · REPLICA · term 3 · peer prod1 unreachable since 03:11:52`
pub(crate) fn head(head: &HeadLine, view: &View) -> String {
    let mut text = head.host.clone();
    if let Some(c) = &head.context {
        text.push_str(&format!(" · {}", ids(c)));
        text.push_str(&format!(" · {}", c.role));
        if c.state != ContextState::Enabled {
            text.push_str(&format!(" · {}", c.state));
        }
        text.push_str(&format!(" · term {}", c.term));
        if let Some(peer) = &c.peer {
            text.push_str(&format!(
                " · peer {} {}",
                peer.name,
                peer_state(peer.state, peer.since, view)
            ));
        }
    }
    text
}

fn ids(c: &HeadContext) -> String {
    match c.failover_id {
        Some(f) => format!("context {} (failover {f})", c.id),
        None => format!("context {}", c.id),
    }
}

pub(crate) fn peer_state(state: PeerState, since: Option<Moment>, view: &View) -> String {
    let word = match state {
        // Connected is how it should be: since when is of no interest.
        PeerState::Connected => return "connected".to_owned(),
        PeerState::Unreachable => "unreachable",
        PeerState::Stopped => "stopped",
        PeerState::Refused => "refused",
    };
    since.map_or_else(
        || word.to_owned(),
        |s| format!("{word} since {}", view.zone.time_or_date(s, view.now)),
    )
}
