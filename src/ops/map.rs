//! `map`, `scconfig -M` and `-B -G`: state maps as an operator sees and changes them (R15, R18, R25, R26).
//!
//! Looking is always possible. Dirty is always safe and only asks: more is copied than had to be. What may make stale regions
//! clean (`clean`, `load`) could leave the two hosts different without a word, so it is refused while the peer is here, asks
//! with what would be lost, and touches no map that has changed since the question. Every change saves the maps first.

use super::{Answer, Op, next, part_way, refused, status::copy_rate};
use crate::{context::Context, maps, roles::Standing};
use control::{
    Code, Failure, MapVerb, Question, Reply,
    reply::{CellRun, DirtyReply, MapReply, VolumeMapInfo},
};
use journal::{JournalError, MapText, SavedMaps, map_text};
use model::VolumeIndex;
use std::{ops::Range, path::PathBuf};

/// Most bytes of a dump: what `map load` takes.
const DUMP_BYTES_MAX: usize = 6 << 20;
/// Most runs that `view` shows: what one line of the control socket holds.
const VIEW_RUNS_MAX: usize = 200_000;

/// `backstay map`.
pub fn map(op: &mut Op<'_>, id: u32, verb: &MapVerb) -> Answer {
    match verb {
        MapVerb::View { volume } => view(op, id, volume.as_deref()),
        MapVerb::Dump { volume } => dump(op, id, volume.as_deref()),
        MapVerb::Load { text } => load(op, id, text),
        MapVerb::Clean { volume } => clean(op, id, volume.as_deref()),
        MapVerb::Unify { master } => unify(op, id, master),
    }
}

/// `scconfig -M`, `-B -G`.
pub fn dirty(op: &mut Op<'_>, id: u32, names: &[String], full: bool) -> Answer {
    let context = op.context(id)?;
    production(op, &context, if full { "scconfig -B -G" } else { "scconfig -M" })?;
    if full && !names.is_empty() {
        return Err(Failure::new(
            Code::Usage,
            "a full resync is of all volumes: leave -L out",
        ));
    }
    let volumes = names.iter().map(|name| volume_of(&context, name));
    let mut volumes = volumes.collect::<Result<Vec<_>, _>>()?;
    if volumes.is_empty() {
        volumes = context.config.indexed().map(|(index, _)| index).collect();
    }
    let journal = &context.journal;
    let bytes: u64 = context
        .config
        .indexed()
        .map(|(index, _)| match volumes.contains(&index) {
            true => context.extent(index),
            false => journal.stale_bytes(index),
        })
        .sum();
    let rate = copy_rate(&context, context.stale_bytes());
    let eta_s = rate.map(|rate| (bytes as f64 / rate).ceil() as u64);
    op.ask_unless_dry(dirty_question(&context, &volumes, bytes, eta_s))?;
    if op.options.dry_run {
        let mut steps = vec![
            "save the state maps".to_owned(),
            format!(
                "make every region of {} stale, durably",
                names_of(&context, &volumes)
            ),
        ];
        steps.push(format!("copy {} from {}", amount(bytes), direction(&context)));
        return super::planned(None, steps);
    }
    keep(&context, &journal.save_maps(), "dirty")?;
    journal.stale_all(&volumes).map_err(|e| part_way(&e))?;
    // At the next greeting a peer that takes itself for consistent is told that it may not be; what a failover host has goes
    // with its resync.
    if context.standing() == Standing::Producing {
        context.relink();
    }
    let reply = DirtyReply {
        context: context.id().0,
        bytes,
        whole: bytes == context.all_bytes(),
        eta_s,
    };
    let command = match context.standing() {
        _ if !context.is_running() => format!("rtstart -C {id}"),
        Standing::Producing => format!("backstay wait -C {id} --until resynced"),
        _ => format!("backstay status -C {id}"),
    };
    Ok((Reply::Dirty(reply), next(command, op.node.name())))
}

/// `rtstart -M`.
pub fn start_dirty(op: &mut Op<'_>, id: u32) -> Answer {
    let (first, _) = dirty(op, id, &[], false)?;
    let (then, next) = super::lifecycle::start(op, id)?;
    match (first, then) {
        (Reply::Plan(mut first), Reply::Plan(then)) => {
            first.steps.extend(then.steps);
            Ok((Reply::Plan(first), next))
        }
        (_, then) => Ok((then, next)),
    }
}

fn dirty_question(context: &Context, volumes: &[VolumeIndex], bytes: u64, eta_s: Option<u64>) -> Question {
    let peer = context.peer_name();
    let mut lines = vec![
        format!(
            "Every region of {} becomes stale: {} to be copied, {}.",
            names_of(context, volumes),
            amount(bytes),
            direction(context)
        ),
        format!("Until all is copied {peer} stays at its last consistent point."),
    ];
    match eta_s {
        Some(eta) => lines.push(format!("At the present rate that takes {eta} s.")),
        None if !context.is_running() => lines.push("It begins when the context is started.".into()),
        None if context.standing() == Standing::FailedOver => {
            lines.push(format!("It begins with rtdr resync on {peer} and then here."));
        }
        None if !context.peer().connected => lines.push(format!("It begins when {peer} is reached.")),
        None => {}
    }
    Question::Text {
        lines,
        question: "Do you wish to continue?".into(),
    }
}

fn view(op: &Op<'_>, id: u32, volume: Option<&str>) -> Answer {
    let context = op.context(id)?;
    let texts = texts(op, &context, volume)?;
    let volumes: Vec<_> = texts.iter().map(|text| info(text, true)).collect();
    let runs: usize = volumes.iter().map(|v| v.runs.len()).sum();
    if runs > VIEW_RUNS_MAX {
        return Err(
            refused(format!("{runs} runs of cells are more than can be shown"))
                .with_hint_command(format!("backstay map dump -C {id} -L VOLUME"), op.node.name()),
        );
    }
    let reply = MapReply {
        context: context.id().0,
        volumes,
        text: None,
    };
    Ok((Reply::Map(reply), None))
}

fn dump(op: &Op<'_>, id: u32, volume: Option<&str>) -> Answer {
    let context = op.context(id)?;
    let text = map_text::render(&texts(op, &context, volume)?);
    if text.len() > DUMP_BYTES_MAX {
        return Err(refused(format!(
            "the text has {} bytes, more than load takes ({DUMP_BYTES_MAX})",
            text.len()
        ))
        .with_hint("dump one volume at a time (-L), or look again when less is stale in pieces"));
    }
    let reply = MapReply {
        context: context.id().0,
        volumes: Vec::new(),
        text: Some(text),
    };
    Ok((Reply::Map(reply), None))
}

fn clean(op: &mut Op<'_>, id: u32, volume: Option<&str>) -> Answer {
    let context = op.context(id)?;
    production(op, &context, "map clean")?;
    peer_is_away(op, &context, "map clean")?;
    let saved = context.journal.save_maps();
    let old = maps_of(op, &context, &saved, volume)?;
    let new: Vec<MapText> = old
        .iter()
        .map(|text| MapText {
            stale: Vec::new(),
            ..text.clone()
        })
        .collect();
    let volumes: Vec<VolumeIndex> = old.iter().map(|text| text.volume).collect();
    let change = |saved: &SavedMaps| context.journal.clean_maps(saved, &volumes).map(drop);
    replace(op, &context, "clean", (&saved, &old, &new), change)
}

fn load(op: &mut Op<'_>, id: u32, text: &str) -> Answer {
    let context = op.context(id)?;
    production(op, &context, "map load")?;
    let new = map_text::parse(text).map_err(|e| {
        Failure::new(Code::Usage, format!("this is no state map: {e}"))
            .with_hint_command(format!("backstay map dump -C {id}"), op.node.name())
    })?;
    for text in &new {
        if text.context != context.id()
            || context.config.volume(&text.name).map(|(v, _)| v) != Some(text.volume)
        {
            return Err(refused(format!(
                "the text is about volume {} ({}) of context {}, which context {} does not have",
                text.volume,
                text.name,
                text.context,
                context.id()
            ))
            .with_hint("load what map dump wrote for this context"));
        }
    }
    peer_is_away(op, &context, "map load")?;
    let saved = context.journal.save_maps();
    let old = new.iter().map(|text| old_of(op, &context, &saved, text));
    let old = old.collect::<Result<Vec<_>, _>>()?;
    let change = |saved: &SavedMaps| context.journal.load_maps(saved, &new).map(drop);
    replace(op, &context, "load", (&saved, &old, &new), change)
}

/// The map that a text replaces.
fn old_of(op: &Op<'_>, context: &Context, saved: &SavedMaps, text: &MapText) -> Result<MapText, Failure> {
    let old = saved.map(context.id(), text.volume, &text.name);
    let old = old.ok_or_else(|| no_map(op, context, &text.name))?;
    if (old.size, old.region_size) == (text.size, text.region_size) {
        return Ok(old);
    }
    Err(refused(format!(
        "the text is about {} bytes of {} in regions of {}; the volume has {} in regions of {}",
        text.size, text.name, text.region_size, old.size, old.region_size
    )))
}

/// Both hosts were written, and one is to win: the other one gives way, as in a resync.
fn unify(op: &mut Op<'_>, id: u32, master: &str) -> Answer {
    let context = op.context(id)?;
    let (here, peer) = (context.node_name(), context.peer_name());
    if master == peer {
        return super::role::unify(op, &context);
    }
    if master != here {
        return Err(Failure::new(
            Code::Usage,
            format!("context {id} is on {here} and {peer}, not on {master}"),
        ));
    }
    // What it would lose is known there, and its questions are asked there.
    Err(refused(format!(
        "map unify is typed on the host whose data gives way, {peer}"
    ))
    .with_hint_command(format!("backstay map unify -C {id} --master {master}"), peer))
}

/// Asks, saves, changes, answers.
fn replace(
    op: &mut Op<'_>,
    context: &Context,
    what: &str,
    (saved, old, new): (&SavedMaps, &[MapText], &[MapText]),
    change: impl FnOnce(&SavedMaps) -> Result<(), JournalError>,
) -> Answer {
    if old == new {
        return changed(context, new, None);
    }
    let lost: u64 = old.iter().zip(new).map(|(old, new)| lost_bytes(old, new)).sum();
    let stale: u64 = new.iter().map(MapText::stale_bytes).sum();
    let names: Vec<&str> = new.iter().map(|text| text.name.as_str()).collect();
    let names = names.join(", ");
    let peer = context.peer_name();
    let mut lines = vec![format!("{} of {names} will be stale, and copied.", amount(stale))];
    if lost > 0 {
        lines.push(format!(
            "{} that may differ on {peer} will count as equal, and are not copied: if they do differ, nothing tells.",
            amount(lost)
        ));
    }
    op.ask_unless_dry(Question::Text {
        lines,
        question: "Do you wish to continue?".into(),
    })?;
    if op.options.dry_run {
        let steps = vec![
            "save the state maps".to_owned(),
            format!("{what} the maps of {names}: {} become clean", amount(lost)),
        ];
        return super::planned(None, steps);
    }
    let path = keep(context, saved, what)?;
    change(saved).map_err(|e| match &e {
        // What became stale after the question is in nobody's answer.
        JournalError::MapChanged(_) => Failure::from_error(Code::NotNow, &e).with_hint(
            "nothing was changed: run the same command again, and answer for the maps as they are now",
        ),
        _ => part_way(&e),
    })?;
    changed(context, new, Some(path))
}

fn changed(context: &Context, new: &[MapText], saved: Option<PathBuf>) -> Answer {
    let reply = MapReply {
        context: context.id().0,
        volumes: new.iter().map(|text| info(text, false)).collect(),
        text: saved.map(|path| path.display().to_string()),
    };
    Ok((Reply::Map(reply), None))
}

/// Writes the maps of all volumes as they are to a file.
pub(super) fn keep(context: &Context, saved: &SavedMaps, what: &str) -> Result<PathBuf, Failure> {
    let volumes = context.config.indexed();
    let text = saved.text(context.id(), volumes.map(|(index, v)| (index, v.name.as_str())));
    maps::save(context.folder(), &text, what).map_err(|e| {
        refused(format!("the state maps could not be saved: {e}")).with_hint("nothing was changed")
    })
}

/// Only what the acting production's maps say is ever copied.
fn production(op: &Op<'_>, context: &Context, what: &str) -> Result<(), Failure> {
    if matches!(context.standing(), Standing::Producing | Standing::FailedOver) {
        return Ok(());
    }
    let id = context.id();
    let command = if what.starts_with("map") {
        format!("backstay {what} -C {id}")
    } else {
        format!("{what} -C {id}")
    };
    Err(refused(format!(
        "context {id} is {} on {}: only the acting production's state maps are copied by",
        context.standing(),
        op.node.name()
    ))
    .with_hint_command(command, context.peer_name()))
}

fn peer_is_away(op: &Op<'_>, context: &Context, what: &str) -> Result<(), Failure> {
    if !context.peer().connected {
        return Ok(());
    }
    Err(refused(format!(
        "{} is connected: {what} could make it differ unseen",
        context.peer_name()
    ))
    .with_hint("stop the context first; making regions stale (scconfig -M) is possible at any time")
    .with_hint_command(format!("rtstop -C {}", context.id()), op.node.name()))
}

pub(super) fn volume_of(context: &Context, name: &str) -> Result<VolumeIndex, Failure> {
    let found = context.config.volume(name).map(|(index, _)| index);
    found.ok_or_else(|| {
        let names: Vec<_> = context.config.volumes.iter().map(|v| v.name.as_str()).collect();
        Failure::new(
            Code::Usage,
            format!(
                "context {} has no volume {name}, it has {}",
                context.id(),
                names.join(", ")
            ),
        )
    })
}

fn texts(op: &Op<'_>, context: &Context, volume: Option<&str>) -> Result<Vec<MapText>, Failure> {
    maps_of(op, context, &context.journal.save_maps(), volume)
}

fn maps_of(
    op: &Op<'_>,
    context: &Context,
    saved: &SavedMaps,
    volume: Option<&str>,
) -> Result<Vec<MapText>, Failure> {
    let only = volume.map(|name| volume_of(context, name)).transpose()?;
    let volumes = context.config.indexed();
    let wanted = volumes.filter(|(index, _)| only.is_none_or(|only| only == *index));
    wanted
        .map(|(index, v)| {
            let map = saved.map(context.id(), index, &v.name);
            map.ok_or_else(|| no_map(op, context, &v.name))
        })
        .collect()
}

fn no_map(op: &Op<'_>, context: &Context, name: &str) -> Failure {
    refused(format!(
        "{} keeps no state map of {name}: production does",
        op.node.name()
    ))
    .with_hint_command(
        format!("backstay map view -C {}", context.id()),
        context.peer_name(),
    )
}

fn names_of(context: &Context, volumes: &[VolumeIndex]) -> String {
    let named = context
        .config
        .indexed()
        .filter(|(index, _)| volumes.contains(index));
    named.map(|(_, v)| v.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Bytes for people.
pub(super) fn amount(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{} MiB", bytes.div_ceil(1 << 20))
    } else {
        format!("{} KiB", bytes.div_ceil(1 << 10))
    }
}

fn direction(context: &Context) -> String {
    format!("{} -> {}", context.node_name(), context.peer_name())
}

fn info(text: &MapText, with_runs: bool) -> VolumeMapInfo {
    let runs = text.runs().filter(|_| with_runs).map(|(cells, cell)| CellRun {
        first: cells.start,
        end: cells.end,
        cell,
    });
    VolumeMapInfo {
        name: text.name.clone(),
        region_size: text.region_size,
        cells: text.cells(),
        stale_bytes: text.stale_bytes(),
        runs: runs.collect(),
    }
}

/// Bytes that are stale in `old` and not in `new`.
fn lost_bytes(old: &MapText, new: &MapText) -> u64 {
    let stale = without(&old.stale, &new.stale);
    let lost = MapText { stale, ..old.clone() };
    lost.stale_bytes()
}

/// `from` less `less`; both rise, and their ranges do not touch.
fn without(from: &[Range<u64>], less: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let mut less = less.iter().peekable();
    for range in from {
        let mut at = range.start;
        while at < range.end {
            while less.next_if(|cut| cut.end <= at).is_some() {}
            let cut = less.peek().filter(|cut| cut.start < range.end);
            let stop = cut.map_or(range.end, |cut| cut.start.max(at));
            if at < stop {
                out.push(at..stop);
            }
            at = cut.map_or(range.end, |cut| cut.end);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn what_is_lost_is_counted_cell_by_cell() {
        testkit::with_seeds("map lost", 300, |rng| {
            let mut cells = || (0..60).map(|_| rng.random_bool(0.4)).collect::<Vec<bool>>();
            let ranges = |cells: &[bool]| {
                let mut out: Vec<Range<u64>> = Vec::new();
                for (n, _) in (0u64..).zip(cells).filter(|(_, stale)| **stale) {
                    match out.last_mut() {
                        Some(last) if last.end == n => last.end = n + 1,
                        _ => out.push(n..n + 1),
                    }
                }
                out
            };
            let (old, new) = (cells(), cells());
            let lost: Vec<bool> = old.iter().zip(&new).map(|(old, new)| *old && !new).collect();
            let got = without(&ranges(&old), &ranges(&new));
            let cells: Vec<u64> = got.into_iter().flatten().collect();
            assert_eq!(cells, ranges(&lost).into_iter().flatten().collect::<Vec<_>>());
        });
    }
}
