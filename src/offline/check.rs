//! `fsck-journal`: what is damaged, what it means, and what to do (`docs/DAMAGE.md` in the words of a command).

use super::{Done, Stopped, failed, progress};
use crate::{
    context::OverlayFolder,
    format::{self, FormatError},
};
use control::{
    Reply,
    client::Listener,
    event::Unit,
    offline::{CheckReply, FindingInfo, ReadInfo},
};
use journal::{
    Journal, PinKind, ShadowMedium,
    check::{Checked, Counts, Finding, FindingKind, Findings, Place, Stage},
};
use media::FileMedium;
use model::ports::Medium;
use std::{path::Path, sync::Arc};

pub(super) fn check(node: &Stopped, listener: &mut dyn Listener) -> Done {
    let dir = node.journal_dir();
    let mut reply = CheckReply {
        context: node.id,
        folder: dir.display().to_string(),
        ..CheckReply::default()
    };
    if let Some(finding) = formats(node)? {
        // What a newer release wrote is not ours to judge.
        reply.findings.push(finding);
        return Ok(Reply::Check(Box::new(reply)));
    }
    let mut told = |stage, done, total| {
        let (what, unit) = match stage {
            // It is over before anyone has read of it.
            Stage::Opening => return,
            Stage::Redo => ("redo", Unit::Bytes),
            Stage::Undo => ("undo", Unit::Blocks),
        };
        progress(listener, what, done, total, unit);
    };
    let checked = journal::check::check(&dir, &node.options(), &mut told);
    let Checked {
        findings,
        counts,
        journal,
    } = checked.map_err(|e| failed("the journal cannot be read")(std::io::Error::other(e)))?;
    reply.read = read(&counts);
    if let Some(journal) = journal {
        reply.read.overlays = overlays(node, &journal, &mut reply.findings);
    }
    reply.more = findings.more;
    for finding in &findings.all {
        let list = if finding.kind.is_damage() {
            &mut reply.findings
        } else {
            &mut reply.notes
        };
        list.push(info(finding));
    }
    Ok(Reply::Check(Box::new(reply)))
}

fn read(c: &Counts) -> ReadInfo {
    ReadInfo {
        rows: c.rows,
        generations: c.generations,
        containers: c.containers,
        frames: c.frames,
        records: c.records,
        bytes: c.bytes,
        undo_blocks: c.undo_blocks,
        index_entries: c.index_entries,
        overlays: 0,
    }
}

/// The files with the numbers of formats, and whether there is a journal where one was.
fn formats(node: &Stopped) -> Done<Option<FindingInfo>> {
    let found = |kind, path: &Path, what: String| {
        let mut findings = Findings::default();
        let place = Place {
            file: Some(path.display().to_string()),
            ..Place::default()
        };
        findings.all.push(Finding { kind, place, what });
        findings.all.first().map(info)
    };
    for folder in [node.state.clone(), node.folder()] {
        match format::check(&folder) {
            Ok(_) => {}
            Err(e @ (FormatError::Newer { .. } | FormatError::NoNumber { .. })) => {
                return Ok(found(FindingKind::Version, &format::file(&folder), e.to_string()));
            }
            Err(FormatError::Io { path, source }) => return Err(failed(path.display())(source)),
        }
    }
    let dir = node.journal_dir();
    let is_gone = !dir.join("super").exists() && !dir.join("db").exists();
    if is_gone && format::file(&node.folder()).exists() {
        let what = "it is gone, and the format beside it says that there was one".to_owned();
        return Ok(found(FindingKind::Gone, &dir, what));
    }
    Ok(None)
}

/// Opens the overlay of every snapshot whose vdev was ever opened, over a shadow; answers how many there are.
fn overlays(node: &Stopped, journal: &Journal, findings: &mut Vec<FindingInfo>) -> u64 {
    let shadow = |path: &Path| -> std::io::Result<Arc<dyn Medium>> {
        let below = FileMedium::open_read_only(path)?;
        Ok(Arc::new(ShadowMedium::new(Some(Arc::new(below)), 0)))
    };
    let mut count = 0;
    // Pins that cannot be read were found already.
    for pin in journal.pins().unwrap_or_default() {
        let PinKind::Snapshot { level, .. } = &pin.kind else {
            continue;
        };
        let folder = node.folder().join("overlay").join(format!("sn{level}"));
        let overlay = OverlayFolder::new(node.folder(), folder.clone(), 0, pin.created.0);
        let opened = overlay.open_over(shadow);
        count += u64::from(!matches!(opened, Ok(None)));
        if let Err(what) = opened.map_err(|e| e.to_string()) {
            let place = folder.join("log").display().to_string();
            findings.push(FindingInfo {
                kind: "overlay".into(),
                file: Some(place.clone()),
                place,
                what,
                means: "the snapshot keeps its level and its point; writes to its vdev are lost".into(),
                remedy: "release the snapshot (scrt_ra -W --level N), and take it again at the same point"
                    .into(),
                ..FindingInfo::default()
            });
        }
    }
    count
}

fn info(f: &Finding) -> FindingInfo {
    let (kind, means, remedy) = words(f.kind);
    let place = &f.place;
    FindingInfo {
        kind: kind.into(),
        place: place.to_string(),
        file: place.file.clone(),
        family: place.family.map(str::to_owned),
        container: place.container.map(|(g, lfc)| format!("g{g}:{lfc}")),
        record: place.record.map(|seq| seq.0),
        ordinal: place.ordinal.map(|n| n.0),
        byte: place.byte,
        what: f.what.clone(),
        means: means.into(),
        remedy: remedy.into(),
    }
}

const PUT_BACK: &str = "put the file back as it was, or begin anew (docs/DAMAGE.md)";

/// A kind as a word for scripts, what it means, and what to do.
fn words(kind: FindingKind) -> (&'static str, &'static str, &'static str) {
    match kind {
        FindingKind::TornEnd => (
            "torn_end",
            "nothing is lost: it was not durable, and nobody was told that it was",
            "nothing: a start cuts it off",
        ),
        FindingKind::SpareSlot => (
            "spare_slot",
            "nothing is lost: the other slot holds the bounds",
            "nothing: a start writes both again",
        ),
        FindingKind::Gone => ("gone", "the context does not start", PUT_BACK),
        FindingKind::Version => (
            "version",
            "a newer release wrote it; this one reads nothing of it",
            "use that release",
        ),
        FindingKind::Tail => (
            "tail",
            "the context starts as damaged: it serves nothing and moves nothing",
            "start the daemon and see that the peer's runs: what the peer has received is fetched; what it has not cannot be: then put the file back as it was, or begin anew (docs/DAMAGE.md)",
        ),
        FindingKind::Superblock => (
            "superblock",
            "the context starts as damaged: nobody knows any more what was durable",
            PUT_BACK,
        ),
        FindingKind::Store => (
            "store",
            "the context does not start: no peer can know what these files held",
            PUT_BACK,
        ),
        FindingKind::Metadata => (
            "metadata",
            "the context does not start, or lacks what the row said: no peer can know it",
            PUT_BACK,
        ),
        FindingKind::Chain => (
            "chain",
            "history is missing or is another than the one that was sealed",
            PUT_BACK,
        ),
        FindingKind::Redo => (
            "redo",
            "points inside this container cannot be shown, nor those behind it that no undo leads to; what is not applied of it yet is fetched from production",
            "nothing where it is applied: the ends of containers around it stay; else see that production's daemon runs",
        ),
        FindingKind::RedoIndex => (
            "redo_index",
            "reads of points that need these records fail; the records are there",
            "put the file back as it was; points at the ends of containers stay",
        ),
        FindingKind::Undo => (
            "undo",
            "states before it cannot be shown where redo from an older one does not lead to them",
            "nothing: all other points stay",
        ),
        FindingKind::UndoIndex => (
            "undo_index",
            "reads of earlier states that need these blocks fail; what is served without an entry would be the volume",
            "put the file back as it was; take no point before this ordinal from this host until then",
        ),
        FindingKind::Map => (
            "map",
            "the volume needs a full sync",
            "nothing: a production makes the map anew, wholly stale, when it starts",
        ),
        _ => ("other", "it does not check", PUT_BACK),
    }
}
