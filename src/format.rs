//! The number of the format of a folder, in a file of its own that is looked at before anything else in it.
//!
//! `state_dir/format` is about the node's whole state, `state_dir/cN/format` about one context's folder; both hold a number
//! and a newline. Every file below has a version of its own besides; this one is raised when a build must not even try.
//! A context's file is also the memory that there was a journal: a folder without one that says so has lost it.

use control::status::StatusReply;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The newest format that this build reads, and the one it writes.
pub const FORMAT: u32 = 1;

const FILE: &str = "format";

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A newer build made it.
    #[error("{path}: format {found} was found, this build reads up to {FORMAT}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its number.
        found: u32,
    },
    /// It holds no number.
    #[error("{path}: it holds no number of a format, this build reads up to {FORMAT}")]
    NoNumber {
        /// The file.
        path: PathBuf,
    },
    /// It could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
}

/// The file of a folder.
#[must_use]
pub fn file(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Whether the folder has a number, which is then one that this build reads.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn check(folder: &Path) -> Result<bool, FormatError> {
    let path = file(folder);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(FormatError::Io { path, source }),
    };
    let number = std::str::from_utf8(&text)
        .ok()
        .and_then(|t| t.trim().parse().ok());
    match number {
        Some(1..=FORMAT) => Ok(true),
        Some(found) => Err(FormatError::Newer { path, found }),
        None => Err(FormatError::NoNumber { path }),
    }
}

/// Gives the folder the number of what this build writes.
///
/// # Errors
/// When it cannot be written.
pub fn mark(folder: &Path) -> Result<(), FormatError> {
    let path = file(folder);
    media::replace_file(&path, format!("{FORMAT}\n").as_bytes(), 0o600)
        .map_err(|source| FormatError::Io { path, source })
}

/// What is looked at first in `status.json`.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// `status.json`: the last status of a node, for the time when its daemon is dead.
#[derive(Serialize)]
struct Kept<'a> {
    format: u32,
    #[serde(flatten)]
    status: &'a StatusReply,
}

/// Writes the status of a node.
///
/// # Errors
/// When it cannot be written.
pub fn keep_status(path: &Path, status: &StatusReply) -> Result<(), FormatError> {
    let kept = Kept {
        format: FORMAT,
        status,
    };
    serde_json::to_vec(&kept)
        .map_err(io::Error::from)
        .and_then(|text| media::replace_file(path, &text, 0o600))
        .map_err(|source| FormatError::Io {
            path: path.to_owned(),
            source,
        })
}

/// The status that a node kept; `None` when it kept none that can be read.
///
/// # Errors
/// When it is of another version.
pub fn status_from(path: &Path) -> Result<Option<StatusReply>, FormatError> {
    let text = std::fs::read(path).unwrap_or_default();
    match serde_json::from_slice(&text) {
        Ok(Versioned { format: 1..=FORMAT }) => Ok(serde_json::from_slice(&text).ok()),
        Ok(Versioned { format: found }) => Err(FormatError::Newer {
            path: path.to_owned(),
            found,
        }),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_was_kept_and_only_in_its_version() {
        let folder = testkit::proc::Scratch::new("status");
        let path = folder.join("status.json");
        assert!(status_from(&path).unwrap().is_none());
        let status = StatusReply {
            host: "prod".into(),
            taken: model::Timestamp(7).into(),
            old: false,
            contexts: Vec::new(),
        };
        keep_status(&path, &status).unwrap();
        assert_eq!(status_from(&path).unwrap(), Some(status));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"format\":1", "\"format\":9")).unwrap();
        let refused = status_from(&path).unwrap_err().to_string();
        assert!(
            refused.contains("format 9 was found, this build reads up to 1"),
            "{refused}"
        );
    }

    #[test]
    fn only_known_numbers_are_taken() {
        let folder = testkit::proc::Scratch::new("format");
        assert!(!check(folder.path()).unwrap());
        mark(folder.path()).unwrap();
        assert!(check(folder.path()).unwrap());
        for (text, says) in [
            ("9\n", "format 9 was found, this build reads up to 1"),
            ("0", "format 0 was found"),
            ("one", "no number"),
            ("", "no number"),
            ("-1", "no number"),
        ] {
            std::fs::write(file(folder.path()), text).unwrap();
            let refused = check(folder.path()).unwrap_err().to_string();
            assert!(
                refused.contains(says) && refused.contains("this build reads up to 1"),
                "{refused}"
            );
        }
    }
}
