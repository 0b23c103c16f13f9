//! Which of a context's devices are of before a failure, written down where no helper is needed for it.
//!
//! What a volume that failed has answered may be missing next time, and whoever was answered must see an error: its devices do not
//! outlive their daemon. With privileges the daemon takes their identity from their records. A helper that has those may be away;
//! so the *epoch* of the context, a part of every identity of its volumes, is raised, and no later daemon serves the earlier ones.

use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The epochs of a node's contexts; a context without one is at 0.
#[derive(Debug)]
pub struct Epochs {
    path: PathBuf,
    epochs: Mutex<State>,
    /// Held while they are written: who only looks does not wait for a disk.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    epochs: BTreeMap<u32, u64>,
    /// Those that are raised in this run.
    raised: Vec<u32>,
}

impl Epochs {
    /// Those of a state directory.
    ///
    /// # Errors
    /// When they are there and cannot be read.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("epochs.json");
        let epochs = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e),
        };
        let raised = Vec::new();
        Ok(Self {
            path,
            epochs: Mutex::new(State { epochs, raised }),
            writing: Mutex::default(),
        })
    }

    /// The epoch of a context: as it was when this daemon began, so that what it attached stays what it is to the end.
    #[must_use]
    pub fn of(&self, context: u32) -> u64 {
        let state = self.epochs.lock();
        let epoch = state.epochs.get(&context).copied().unwrap_or(0);
        epoch - u64::from(state.raised.contains(&context))
    }

    /// Raises the epoch of a context for every later daemon; durable when it returns, and once a run.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn raise(&self, context: u32) -> io::Result<()> {
        let _writing = self.writing.lock();
        let mut epochs = {
            let state = self.epochs.lock();
            if state.raised.contains(&context) {
                return Ok(());
            }
            state.epochs.clone()
        };
        *epochs.entry(context).or_default() += 1;
        media::replace_file(&self.path, &serde_json::to_vec(&epochs)?, 0o600)?;
        let mut state = self.epochs.lock();
        state.epochs = epochs;
        state.raised.push(context);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_raised_for_later_runs_and_once_in_each() {
        let folder = tempfile::tempdir().unwrap();
        for run in 0..3 {
            let epochs = Epochs::open(folder.path()).unwrap();
            assert_eq!((epochs.of(1), epochs.of(2)), (run, 0));
            for _ in 0..2 {
                epochs.raise(1).unwrap();
                assert_eq!((epochs.of(1), epochs.of(2)), (run, 0));
            }
        }
        fs::write(folder.path().join("epochs.json"), "{").unwrap();
        assert!(Epochs::open(folder.path()).is_err());
    }
}
