//! A node's own file, `/etc/backstay/NAME.toml`.

use super::{ConfigError, read, write};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One node: a daemon with its state, its sockets and the hosts it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the node; contexts name their production and recovery by it.
    pub name: String,
    /// Folder of journals, identities, sockets and, unless said otherwise, replicas.
    pub state_dir: PathBuf,
    /// Control socket; default `<state_dir>/control.sock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Folder under which file systems are mounted; default `/`.
    #[serde(default = "default_mount_root")]
    pub mount_root: PathBuf,
    /// Where the node listens.
    #[serde(default)]
    pub listen: ListenConfig,
    /// How volumes are attached as block devices.
    #[serde(default)]
    pub attach: AttachConfig,
    /// The other nodes.
    #[serde(default, rename = "host", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostConfig>,
}

/// Where a node listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// Address for peers (`0.0.0.0:7400`); none: this node only connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Unix socket of the NBD exports; default `<state_dir>/nbd.sock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<PathBuf>,
}

/// How volumes are attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachConfig {
    /// The method; default `auto`.
    #[serde(default)]
    pub method: AttachMethod,
    /// Folder of the device names; default `/dev/backstay`.
    #[serde(default = "default_dev_root")]
    pub dev_root: PathBuf,
}

impl Default for AttachConfig {
    fn default() -> Self {
        Self {
            method: AttachMethod::default(),
            dev_root: default_dev_root(),
        }
    }
}

/// Ways to make a block device of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMethod {
    /// The kernel's nbd where its module is there, else nbdfuse with a loop device.
    #[default]
    Auto,
    /// The kernel's nbd.
    Nbd,
    /// nbdfuse with a loop device.
    Fuse,
    /// Never; exports only.
    None,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Its name.
    pub name: String,
    /// Where it listens, tried in order; empty: it connects to us.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Fingerprint of its identity.
    pub identity: String,
}

fn default_dev_root() -> PathBuf {
    PathBuf::from("/dev/backstay")
}

fn default_mount_root() -> PathBuf {
    PathBuf::from("/")
}

impl NodeConfig {
    /// Reads and checks a node's file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = read(path)?;
        let fault = |key, value: &str, why: &str| ConfigError::Value {
            path: path.to_owned(),
            key,
            value: value.to_owned(),
            why: why.to_owned(),
        };
        if !name_is_plain(&config.name) {
            return Err(fault(
                "name",
                &config.name,
                "letters, digits, '-', '_' and '.' only",
            ));
        }
        if !config.state_dir.is_absolute() {
            return Err(fault(
                "state_dir",
                &config.state_dir.display().to_string(),
                "it must be absolute",
            ));
        }
        for host in &config.hosts {
            if host.name == config.name {
                return Err(fault("host.name", &host.name, "that is this node itself"));
            }
            if host.identity.parse::<wire::Fingerprint>().is_err() {
                return Err(fault(
                    "host.identity",
                    &host.identity,
                    "that is no fingerprint of a node",
                ));
            }
        }
        Ok(config)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        let text = toml::to_string(self).expect("a node's configuration is plain TOML");
        write(
            path,
            &format!("# A Backstay node; every key is in docs/CONFIGURATION.md.\n{text}"),
        )
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.control
            .clone()
            .unwrap_or_else(|| self.state_dir.join("control.sock"))
    }

    /// The socket of the NBD exports.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.listen
            .nbd
            .clone()
            .unwrap_or_else(|| self.state_dir.join("nbd.sock"))
    }

    /// The folder of the contexts' files.
    #[must_use]
    pub fn contexts_dir(&self) -> PathBuf {
        self.state_dir.join("contexts")
    }

    /// A host by name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&HostConfig> {
        self.hosts.iter().find(|h| h.name == name)
    }
}

/// Whether a text can name a node, a volume or a file.
#[must_use]
pub(super) fn name_is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}
