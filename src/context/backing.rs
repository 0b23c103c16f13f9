//! What the volumes of a context stand on, from one start to the next.
//!
//! At each start the identity of every volume's file or device is noted durably in the context's row, as `volume.NAME`. A file
//! that was there once is never made anew by itself: an empty file under a clean state map would be a replica, or a
//! production, of nothing. Whether one that is there is another than the one that was noted is said, and is not decided here:
//! the note stays until whoever made the map stale says [`Context::declare_lost`].

use super::{Context, ContextError};
use crate::{
    volume_identity::{Verdict, VolumeIdentity, compare, identity_of},
    withheld::Withholding,
};
use journal::JournalError;
use media::{Create, FileMedium};
use model::ports::Medium;
use snapshot::Volumes;
use std::{io, path::Path, sync::Arc};

/// The note of a volume whose data on this host was declared lost.
const LOST: &str = "lost";

fn note(volume: &str) -> String {
    format!("volume.{volume}")
}

/// Whether a volume's file was there before and must not be made anew. A context of a version that kept no note opened its
/// volumes before they held any record.
fn was_opened(note: Option<&str>, volumes_hold_records: bool) -> bool {
    note.map_or(volumes_hold_records, |note| note != LOST)
}

/// What a note and what is there now say. A note that cannot be read was written by a version that knew more.
fn judge(note: &str, found: &VolumeIdentity) -> Verdict {
    if note == LOST {
        return Verdict::Replaced;
    }
    note.parse()
        .map_or(Verdict::Unknown, |known| compare(&known, found))
}

impl Context {
    /// Opens the volumes, each on what it stood on before.
    pub(crate) fn open_volumes(&self) -> Result<Volumes, ContextError> {
        let state_dir = self.node().config().state_dir;
        let mut volumes = Volumes::new();
        for (index, volume) in self.config.indexed() {
            let path = volume.backing_on(&self.node_name, &state_dir, self.config.id);
            if let Some(parent) = path.parent() {
                let made = match parent.starts_with(&state_dir) {
                    true => media::make_folders(&state_dir, parent),
                    false => std::fs::create_dir_all(parent),
                };
                made.map_err(|source| ContextError::Io {
                    what: parent.display().to_string(),
                    source,
                })?;
            }
            let extent = self.extent(index);
            let create = if volume.backing.contains_key(&self.node_name) {
                Create::Never
            } else {
                Create::Sparse(extent)
            };
            let medium = self.open_backing(&volume.name, &path, create)?;
            if medium.len() < extent {
                return Err(ContextError::Io {
                    what: format!("volume {}", volume.name),
                    source: std::io::Error::new(
                        std::io::ErrorKind::InvalidInput,
                        format!(
                            "{} has {} bytes, {extent} are needed",
                            path.display(),
                            medium.len()
                        ),
                    ),
                });
            }
            let medium = Withholding::new(Arc::new(medium), index, &volume.name, &self.journal);
            volumes.insert(index, volume.name.clone(), Arc::new(medium), volume.size.0)?;
        }
        self.note_backings()?;
        Ok(volumes)
    }

    /// Opens what a volume stands on, and makes it only for a volume that never had anything.
    fn open_backing(&self, volume: &str, path: &Path, create: Create) -> Result<FileMedium, ContextError> {
        let cursors = self.journal.cursors();
        let holds_records = cursors.checkpointed.max(cursors.applied).0 > 0;
        let known = was_opened(
            self.row().notes.get(&note(volume)).map(String::as_str),
            holds_records,
        );
        let is_lost = self
            .row()
            .notes
            .get(&note(volume))
            .is_some_and(|note| note == LOST);
        let open = || match create {
            _ if known => FileMedium::open(path, Create::Never),
            // What was put back from before it grew is stale wholly, and gets its length.
            Create::Sparse(bytes) if is_lost && path.exists() => {
                let medium = FileMedium::open(path, Create::Never)?;
                medium.extend(bytes).map(|()| medium)
            }
            create => FileMedium::open(path, create),
        };
        open().map_err(|source| {
            if known && source.kind() == io::ErrorKind::NotFound {
                return ContextError::VolumeGone {
                    context: self.config.id,
                    volume: volume.to_owned(),
                    path: path.to_owned(),
                };
            }
            ContextError::Io {
                what: format!("volume {volume}"),
                source,
            }
        })
    }

    /// Notes what the volumes stand on now that all of them are open.
    fn note_backings(&self) -> Result<(), ContextError> {
        let notes = self.row().notes;
        let mut changed = Vec::new();
        for (volume, found) in self.backings() {
            let found = found.map_err(|source| ContextError::Io {
                what: format!("volume {volume}"),
                source,
            })?;
            let (key, text) = (note(volume), found.to_string());
            let known = notes.get(&key);
            if known != Some(&text) && self.is_noted(volume, known, &found) {
                changed.push((key, text));
            }
        }
        if !changed.is_empty() {
            self.change_row(|row| row.notes.extend(changed))?;
        }
        Ok(())
    }

    /// Notes what a volume stands on once more, which `change` makes longer: a device without a lasting name would not be known again.
    ///
    /// # Errors
    /// When the change fails, or the note could not be kept.
    pub(super) fn noted_again<E: From<JournalError>>(
        &self,
        volume: &str,
        change: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let found = || {
            let found = self.backings().find(|(name, _)| *name == volume);
            found.and_then(|(_, found)| found.ok())
        };
        let notes = self.row().notes;
        let known = notes.get(&note(volume)).zip(found());
        let is_known = known.is_some_and(|(known, found)| judge(known, &found) == Verdict::Same);
        change()?;
        if let Some(found) = found().filter(|_| is_known) {
            self.change_row(|row| drop(row.notes.insert(note(volume), found.to_string())))?;
        }
        Ok(())
    }

    /// Whether what is there takes the place of what was noted; else the difference is logged.
    fn is_noted(&self, volume: &str, known: Option<&String>, found: &VolumeIdentity) -> bool {
        let Some(known) = known.filter(|known| *known != LOST) else {
            return true;
        };
        let context = self.config.id;
        match judge(known, found) {
            Verdict::Same => return true,
            Verdict::Unknown => tracing::info!(
                context,
                volume,
                "it may be what was opened before or not: {known} then, {found} now"
            ),
            Verdict::Replaced | Verdict::Emptied => tracing::warn!(
                context,
                volume,
                "it is not what was opened before: {known} then, {found} now"
            ),
        }
        false
    }

    /// What each volume stands on now, as far as it can be looked at.
    fn backings(&self) -> impl Iterator<Item = (&str, io::Result<VolumeIdentity>)> {
        let state_dir = self.node().config().state_dir;
        self.config.volumes.iter().map(move |volume| {
            let path = volume.backing_on(&self.node_name, &state_dir, self.config.id);
            (volume.name.as_str(), identity_of(&path))
        })
    }

    /// Volumes of this host that are not what was opened before, or cannot be told to be: gone, another file or device,
    /// emptied, or declared lost and not opened since. State maps and cursors do not speak of what they hold.
    #[must_use]
    pub fn changed_backings(&self) -> Vec<(String, Verdict)> {
        let notes = self.row().notes;
        let judged = self.backings().filter_map(|(volume, found)| {
            let known = notes.get(&note(volume))?;
            let verdict = match found {
                Ok(found) => judge(known, &found),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Verdict::Replaced,
                Err(_) => Verdict::Unknown,
            };
            Some((volume.to_owned(), verdict))
        });
        judged.filter(|(_, verdict)| *verdict != Verdict::Same).collect()
    }

    /// The same as `status` warns of it.
    #[must_use]
    pub fn backing_warnings(&self) -> Vec<String> {
        let what = |verdict| match verdict {
            Verdict::Emptied => Some("holds nothing any more"),
            Verdict::Replaced => Some("is gone, or not what was opened before"),
            Verdict::Same | Verdict::Unknown => None,
        };
        let changed = self.changed_backings().into_iter();
        changed
            .filter_map(|(volume, verdict)| {
                Some(format!(
                    "what volume {volume} stands on {}: put back what was there, or declare it lost",
                    what(verdict)?
                ))
            })
            .collect()
    }

    /// Declares what a volume holds on this host lost: the next start takes what is there then, or makes it anew. Its whole
    /// state map is durably stale before, or what is missing would be taken for there.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn declare_lost(&self, volume: &str) -> Result<(), JournalError> {
        self.change_row(|row| drop(row.notes.insert(note(volume), LOST.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_was_or_was_declared_lost_is_made_anew() {
        let here = "file ino=7 dev=8:1 size=1 held=1";
        for (note, holds_records, expected) in [
            (None, false, false),
            // A context of the first version, which kept no notes.
            (None, true, true),
            (Some(LOST), false, false),
            (Some(LOST), true, false),
            (Some(here), false, true),
            (Some(here), true, true),
            (Some("written by a later version"), false, true),
        ] {
            assert_eq!(
                was_opened(note, holds_records),
                expected,
                "{note:?} {holds_records}"
            );
        }
    }

    #[test]
    fn a_note_is_judged_by_what_is_there() {
        let here = "file ino=7 dev=8:1 size=1 held=1";
        let found: VolumeIdentity = here.parse().unwrap();
        assert_eq!(judge(here, &found), Verdict::Same);
        assert_eq!(
            judge("file ino=8 dev=8:1 size=1 held=1", &found),
            Verdict::Replaced
        );
        assert_eq!(judge(LOST, &found), Verdict::Replaced);
        assert_eq!(judge("written by a later version", &found), Verdict::Unknown);
    }
}
