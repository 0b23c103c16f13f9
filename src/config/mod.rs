//! Configuration: one TOML file a node, one a context, written by `init` and `protect` and edited by anyone.
//!
//! Every key has a default unless it names something. A key that is not known is an error that names the nearest one,
//! because a misspelt limit that is silently ignored is found on the worst night.

mod context;
mod mode;
mod nbd;
mod node;
mod size;
mod window;

pub use context::{ContextConfig, Filesystem, HistoryOnProduction, OnStartAlone, VolumeConfig};
pub use mode::{Mode, OnLinkLoss};
pub use nbd::{NbdConfig, TlsMode};
pub use node::{AccessConfig, AttachConfig, AttachMethod, HooksConfig, HostConfig, ListenConfig, NodeConfig};
pub use size::{Age, Size};
pub use window::RollbackWindow;

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// The text is no TOML or has a wrong type somewhere.
    #[error("{path}: {text}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        text: String,
    },
    /// A key that nobody reads.
    #[error("{path}: unknown key '{key}'{}", nearest.as_ref().map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with the tables around it.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value outside its bounds.
    #[error("{path}: {key} = {value}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        why: String,
    },
}

/// Reads a configuration file of type `T`.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Parses the text of a configuration file; serde's "unknown field" becomes [`ConfigError::UnknownKey`].
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let message = e.message();
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        match quoted.split_first() {
            Some((key, known)) if message.starts_with("unknown field") => ConfigError::UnknownKey {
                path: path.to_owned(),
                key: (*key).to_owned(),
                nearest: known
                    .iter()
                    .max_by(|a, b| strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b)))
                    .map(|n| (*n).to_owned()),
            },
            _ => ConfigError::Syntax {
                path: path.to_owned(),
                text: e.to_string().trim_end().to_owned(),
            },
        }
    })
}

/// Writes a configuration file whole or not at all.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), ConfigError> {
    media::replace_file(path, text.as_bytes(), mode).map_err(|source| ConfigError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = "name = \"prod\"\nstate_dri = \"/x\"\n";
        let e = parse::<NodeConfig>(Path::new("prod.toml"), text)
            .unwrap_err()
            .to_string();
        assert_eq!(e, "prod.toml: unknown key 'state_dri'; did you mean 'state_dir'?");
    }

    #[test]
    fn a_wrong_type_names_line_and_column() {
        let e = parse::<NodeConfig>(Path::new("prod.toml"), "name = 7\n")
            .unwrap_err()
            .to_string();
        assert!(e.contains("line 1"), "{e}");
    }
}
