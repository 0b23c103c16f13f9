//! Answers of the commands that run things.

use super::{View, about, map, point, table::Table};
use crate::size::bytes;
use control::reply::{
    GrowReply, MarkInfo, MountInfo, MountReply, NodeInfoReply, PairJoinReply, PairOpenReply, PinInfo,
    PinsReply, PlanReply, ProbeReply, ProtectReply, StartReply, StopReply, UnmountReply, WaitReply,
};
use std::fmt::Write as _;

pub(crate) fn mark(m: &MarkInfo, view: &View) -> String {
    format!(
        "Mark '{}': LFC {}  WriteSeq {}  epoch {}  {}\n",
        m.name,
        m.lfc,
        m.seq,
        m.time.seconds(),
        view.zone.date_zone(m.time)
    )
}

pub(crate) fn grow(r: &GrowReply) -> String {
    let (volume, now) = (&r.volume, bytes(r.bytes));
    match r.seq {
        Some(seq) => format!(
            "Volume {volume}: {} -> {now} on both hosts, from record {seq} on.\n\
             A client sees it when it connects again; then its file system can be made larger.\n",
            bytes(r.bytes_before)
        ),
        None => format!("Volume {volume} has {now} already.\n"),
    }
}

pub(crate) fn mount(r: &MountReply) -> String {
    mounts(&r.volumes)
}

/// What the steps have not said: raw volumes, and what was mounted before.
pub(crate) fn mounts(volumes: &[MountInfo]) -> String {
    let mut text = String::new();
    for v in volumes {
        match (&v.path, v.already) {
            (None, _) => {
                let _ = writeln!(text, "{}: raw, {}", v.volume, v.device);
            }
            (Some(path), true) => {
                let _ = writeln!(text, "{}: {} is mounted on {path} already", v.volume, v.device);
            }
            (Some(_), false) => {}
        }
    }
    text
}

pub(crate) fn unmount(r: &UnmountReply) -> String {
    let raw = |v: &&MountInfo| v.path.is_none();
    r.volumes
        .iter()
        .filter(raw)
        .map(|v| format!("{}: raw, {} detached\n", v.volume, v.device))
        .collect()
}

pub(crate) fn start(r: &StartReply) -> String {
    let again = if r.already { " already" } else { "" };
    let mut text = format!("Context {} is enabled{again}.\n", r.context);
    for device in &r.devices {
        let _ = writeln!(text, "  {device}");
    }
    if !r.not_mounted.is_empty() {
        let _ = writeln!(
            text,
            "Not mounted: {} (rtmnt -C {})",
            r.not_mounted.join(", "),
            r.context
        );
    }
    text
}

pub(crate) fn stop(r: &StopReply) -> String {
    let again = if r.already { " already" } else { "" };
    let mut text = format!("Context {} is stopped{again}.\n", r.context);
    for backing in &r.backings {
        let _ = writeln!(text, "  {backing} is whole and directly usable");
    }
    text
}

pub(crate) fn protect(r: &ProtectReply) -> String {
    let mut text = format!(
        "Context {} (failover {}): {} -> {}\n",
        r.context, r.failover_id, r.production, r.recovery
    );
    let mut table = Table::new(["VOLUME", ">SIZE", "FS", "MOUNT", "DEVICE", "BACKING", "REPLICA"]);
    for v in &r.volumes {
        let mount = v.mount.as_ref().map_or_else(
            || "-".to_owned(),
            |m| {
                if v.mounted {
                    m.clone()
                } else {
                    format!("{m} (not mounted)")
                }
            },
        );
        table.row([
            v.name.clone(),
            bytes(v.bytes),
            v.filesystem.clone().unwrap_or_else(|| "raw".into()),
            mount,
            v.device.clone(),
            format!("{}{}", v.backing, if v.created { " (new)" } else { "" }),
            v.recovery_backing.clone(),
        ]);
    }
    text.push_str(&table.text());
    for file in &r.files {
        let _ = writeln!(text, "Wrote {file}");
    }
    if let Some(sync) = &r.initial_sync {
        let _ = writeln!(text, "{}", about::progress(sync));
    }
    text
}

pub(crate) fn pins(r: &PinsReply, view: &View) -> String {
    let mut table = Table::new([
        ">ID", ">CONTEXT", "POINT", ">LFC", ">EPOCH", "DATE", "SINCE", "EXPIRES", ">HOLDS", "HOLDER", "OWNER",
    ]);
    for p in &r.pins {
        table.row([
            p.id.to_string(),
            p.context.to_string(),
            point::exact(&p.point),
            p.point.lfc.to_string(),
            p.point.time.seconds().to_string(),
            view.zone.date(p.point.time),
            view.zone.date(p.created),
            p.expires.map_or_else(|| "never".into(), |at| view.zone.date(at)),
            if p.broken {
                "BROKEN".into()
            } else {
                bytes(p.holds_bytes)
            },
            p.holder.clone(),
            p.owner.clone(),
        ]);
    }
    table.text()
}

pub(crate) fn pin_released(p: &PinInfo) -> String {
    format!(
        "Released pin {} ({}), which held {}\n",
        p.id,
        p.holder,
        bytes(p.holds_bytes)
    )
}

pub(crate) fn wait(r: &WaitReply) -> String {
    format!("{} after {:.1} s\n", r.until, r.seconds)
}

pub(crate) fn node(r: &NodeInfoReply, view: &View) -> String {
    let list = |words: &[String]| {
        if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        }
    };
    let contexts: Vec<_> = r.contexts.iter().map(u32::to_string).collect();
    format!(
        "{}: backstay {}, pid {}, since {}\n  state     {}\n  identity  {}\n  peers     {} (listens at {})\n  nbd       {}\n  contexts  {}\n",
        r.name,
        r.program,
        r.pid,
        view.zone.date_zone(r.since),
        r.state_dir,
        r.identity,
        list(&r.peers),
        r.peer_listen.as_deref().unwrap_or("nothing"),
        r.nbd_listen.as_deref().unwrap_or("not listening"),
        list(&contexts)
    )
}

pub(crate) fn pair_open(r: &PairOpenReply, view: &View) -> String {
    format!(
        "{}\n  works once, until {}\n",
        r.string,
        view.zone.date_zone(r.expires)
    )
}

pub(crate) fn pair_join(r: &PairJoinReply) -> String {
    format!("Paired with {} ({})\n", r.peer, r.identity)
}

pub(crate) fn probe(r: &ProbeReply) -> String {
    let ms = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    format!(
        "Probe {}: durable here {}, at the peer {}, applied {}\n",
        r.seq,
        ms(r.local_us),
        ms(r.received_us),
        r.applied_us.map_or_else(|| "not yet".into(), ms)
    )
}

pub(crate) fn plan(r: &PlanReply, view: &View) -> String {
    let mut text = String::new();
    if let Some(p) = &r.point {
        let _ = writeln!(text, "Point {}", point::point(p, view));
    }
    for question in &r.questions {
        let _ = writeln!(text, "Would ask: {question}");
    }
    for (n, step) in (1..).zip(&r.steps) {
        let _ = writeln!(text, "{n:>2}. {step}");
    }
    text.push_str(&map::lost(&r.lost, view));
    text.push_str("Nothing changed (-n).\n");
    text
}
