//! What a run knows of its surroundings; a value, so that tests can choose it.

use crate::{node, zone::Zone};
use control::Moment;
use model::Timestamp;
use std::{env, ffi::OsString, fs, os::unix::fs::MetadataExt as _, path::PathBuf};

pub(crate) struct Env {
    /// Where the nodes' files are.
    pub config_dir: PathBuf,
    /// `$BACKSTAY_CONFIG`.
    pub config_file: Option<OsString>,
    /// Zone of this host.
    pub zone: Zone,
    /// `user@host`, for the log.
    pub operator: String,
    /// A fixed clock; the system's without.
    pub now: Option<Moment>,
}

impl Env {
    pub(crate) fn of_process() -> Self {
        Self {
            config_dir: node::config_dir(),
            config_file: env::var_os("BACKSTAY_CONFIG").filter(|v| !v.is_empty()),
            zone: Zone::host(),
            operator: operator(),
            now: None,
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.now.unwrap_or_else(|| Timestamp::now().into())
    }
}

/// Behind `sudo` the person counts, not root.
fn operator() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|v| env::var(v).ok().filter(|u| !u.is_empty()))
        .or_else(|| fs::metadata("/proc/self").ok().map(|m| format!("uid{}", m.uid())))
        .unwrap_or_else(|| "unknown".into());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}
