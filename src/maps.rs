//! A context's state maps outside its journal: seen to when it is opened, saved to files before an operator changes them.
//!
//! The maps themselves are rows of the journal (`journal/src/map.rs`). What they were before a command changed them lies in
//! `cN/maps/<UTC time>-<what>.map`, in the format that `map load` takes (`docs/formats/state-map.md`), so that every change
//! can be taken back (R26). Nothing removes these files: each is one command of an operator.

use crate::{config::ContextConfig, context::extent_of};
use journal::{Cell, Journal, JournalError};
use model::{Timestamp, VolumeIndex};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Writes maps to a file of the context's folder; it is durable when this returns. `what` names the change that follows.
///
/// # Errors
/// With the path in the message, when it cannot be made durable.
pub fn save(context_folder: &Path, text: &str, what: &str) -> io::Result<PathBuf> {
    let folder = context_folder.join("maps");
    let at = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    media::make_folders(context_folder, &folder).map_err(|e| at(&folder, e))?;
    let time = Timestamp::now().rfc3339().replace(['-', ':'], "");
    let path = (0u32..)
        .map(|n| match n {
            0 => folder.join(format!("{time}-{what}.map")),
            n => folder.join(format!("{time}-{what}.{n}.map")),
        })
        .find(|path| !path.exists())
        .ok_or_else(|| io::Error::other("no name is left for a saved map"))?;
    media::replace_file(&path, text.as_bytes(), 0o600).map_err(|e| at(&path, e))?;
    Ok(path)
}

/// Production, before anything is served or dropped: sees that every volume has a map. One whose map is not there or could
/// not be read needs a full sync: all of it is stale, durably, when this returns (R15).
///
/// # Errors
/// When the journal fails.
pub fn require(journal: &Journal, config: &ContextConfig) -> Result<(), JournalError> {
    for (index, volume) in config.indexed() {
        let extent = extent_of(journal, index, volume.size.0);
        if let Some(why) = journal.require_map(index, extent, config.region_size.0)? {
            tracing::warn!(
                context = config.id,
                volume = volume.name,
                "the state map is lost ({why}): the volume needs a full sync"
            );
        }
    }
    Ok(())
}

/// Bytes of a volume that may differ from the peer whatever it has received. All of them: it needs a full sync.
#[must_use]
pub fn suspect_bytes(journal: &Journal, volume: VolumeIndex) -> u64 {
    if !journal.is_suspect() {
        return 0;
    }
    let runs = journal.map_runs(volume).into_iter();
    runs.filter(|(_, cell)| matches!(cell, Cell::Suspect(_)))
        .map(|(range, _)| range.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r26_saved_maps_replace_none_before() {
        let dir = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..20).map(|n| format!("map {n}\n")).collect();
        let saved = texts.iter().map(|text| save(dir.path(), text, "clean").unwrap());
        let paths: Vec<PathBuf> = saved.collect();
        for (path, text) in paths.iter().zip(&texts) {
            assert_eq!(&std::fs::read_to_string(path).unwrap(), text);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                name.contains("Z-clean.") && name.ends_with(".map") && !name.contains(':'),
                "{name}"
            );
        }
        assert_eq!(std::fs::read_dir(dir.path().join("maps")).unwrap().count(), 20);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let e = save(&file, "", "clean").unwrap_err().to_string();
        assert!(e.contains("file"), "{e}");
    }
}
