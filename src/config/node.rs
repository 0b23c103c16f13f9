//! A node's own file, `/etc/backstay/NAME.toml`.

use super::{Age, ConfigError, NbdConfig, parse, read, write};
use crate::hooks::HookEvent;
use serde::{Deserialize, Serialize};
use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

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
    /// Who besides root and the daemon's user may use the control socket.
    #[serde(default, skip_serializing_if = "AccessConfig::is_default")]
    pub access: AccessConfig,
    /// Folder under which file systems are mounted; default `/`.
    #[serde(default = "default_mount_root")]
    pub mount_root: PathBuf,
    /// Where the node listens.
    #[serde(default)]
    pub listen: ListenConfig,
    /// NBD on TCP.
    #[serde(default, skip_serializing_if = "NbdConfig::is_default")]
    pub nbd: NbdConfig,
    /// How volumes are attached as block devices.
    #[serde(default)]
    pub attach: AttachConfig,
    /// What is run at role changes.
    #[serde(default, skip_serializing_if = "HooksConfig::is_default")]
    pub hooks: HooksConfig,
    /// The other nodes.
    #[serde(default, rename = "host", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostConfig>,
}

/// Who may use the control socket: names or numbers of users, and of groups with a `%` before them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessConfig {
    /// Who may give every command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<String>,
    /// Who may look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<String>,
}

impl AccessConfig {
    /// Whether nobody is named.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Address of the NBD exports on TCP (`0.0.0.0:10809`), secured as `[nbd]` says; none: there is no such socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_tcp: Option<String>,
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
    /// How long a device waits for a daemon that is away, before what is asked of it fails.
    #[serde(default = "default_patience")]
    pub patience: Age,
    /// Socket of the attach helper that makes devices and mounts; default: this daemon does, and needs root for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper: Option<PathBuf>,
}

impl Default for AttachConfig {
    fn default() -> Self {
        Self {
            method: AttachMethod::default(),
            dev_root: default_dev_root(),
            patience: default_patience(),
            helper: None,
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

/// Programs that are run at role changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HooksConfig {
    /// Their folder; default `hooks/NAME` beside the node's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// How long one may take.
    #[serde(default = "default_hook_timeout")]
    pub timeout: Age,
    /// Events whose hooks must be there and succeed, or the command is refused; only those before a change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<HookEvent>,
}

impl Default for HooksConfig {
    fn default() -> Self {
        Self {
            dir: None,
            timeout: default_hook_timeout(),
            required: Vec::new(),
        }
    }
}

impl HooksConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong, as key, value and what would be right.
    fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        if let Some(dir) = self.dir.as_ref().filter(|d| !d.is_absolute()) {
            return Some(("hooks.dir", dir.display().to_string(), "it must be absolute"));
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.timeout.0) {
            return Some(("hooks.timeout", self.timeout.to_string(), "1s to 1h"));
        }
        let late = self.required.iter().find(|e| !e.is_before());
        late.map(|event| {
            let why = "only hooks of a pre- event can be required: the others run when the change is made";
            ("hooks.required", event.to_string(), why)
        })
    }
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
    /// Folders besides the state folder in which it may have the replicas of its volumes here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backings: Vec<PathBuf>,
}

impl HostConfig {
    /// Whether this host may have a replica at `path` here: it names the path, and who names a path of another host's root
    /// can make it write there what it likes. Looked at by its text: what links stand in an allowed folder is its owner's.
    #[must_use]
    pub fn may_place(&self, path: &Path) -> bool {
        let is_plain = path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        is_plain
            && self
                .backings
                .iter()
                .any(|folder| path != folder && path.starts_with(folder))
    }
}

fn default_dev_root() -> PathBuf {
    PathBuf::from("/dev/backstay")
}

fn default_patience() -> Age {
    Age(Duration::from_secs(120))
}

fn default_hook_timeout() -> Age {
    Age(Duration::from_secs(30))
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
        config.checked(path)
    }

    /// Parses and checks text that came from `origin`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_text(origin: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = parse(origin, text)?;
        config.checked(origin)
    }

    fn checked(self, path: &Path) -> Result<Self, ConfigError> {
        let config = self;
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
        if let Some(socket) = config.unreachable_socket() {
            let why = "who is named in [access] cannot pass through state_dir: give the socket a folder of its own, as /run/backstay";
            return Err(fault("control", &socket.display().to_string(), why));
        }
        if config.attach.patience.0 > Duration::from_secs(3600) {
            let patience = config.attach.patience.to_string();
            return Err(fault("attach.patience", &patience, "at most 1h"));
        }
        let of_nbd = || config.nbd.fault(config.listen.nbd_tcp.as_deref());
        if let Some((key, value, why)) = config.hooks.fault().or_else(of_nbd) {
            return Err(fault(key, &value, why));
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
            if let Some(folder) = host.backings.iter().find(|f| !f.is_absolute()) {
                let folder = folder.display().to_string();
                return Err(fault("host.backings", &folder, "it must be absolute"));
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
        // Whoever may use the control socket must find it; there are no secrets in the file.
        let mode = if self.access.is_default() { 0o600 } else { 0o644 };
        write(
            path,
            &format!("# A Backstay node; every key is in docs/CONFIGURATION.md.\n{text}"),
            mode,
        )
    }

    /// The control socket, if others than its owner should use it and cannot.
    fn unreachable_socket(&self) -> Option<PathBuf> {
        let socket = self.control_socket();
        (!self.access.is_default() && socket.starts_with(&self.state_dir)).then_some(socket)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsMode;

    fn load(text: &str) -> Result<NodeConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prod.toml");
        std::fs::write(&path, format!("name = \"prod\"\nstate_dir = \"/x\"\n{text}")).unwrap();
        NodeConfig::load(&path).map_err(|e| e.to_string().split_once(": ").unwrap().1.to_owned())
    }

    #[test]
    fn hooks_are_read_and_written_only_when_said() {
        let plain = load("").unwrap();
        assert_eq!(plain.hooks, HooksConfig::default());
        assert_eq!(plain.hooks.timeout, Age(Duration::from_secs(30)));
        let said = "[hooks]\ndir = \"/h\"\ntimeout = \"2m\"\nrequired = [\"pre-failover\", \"pre-resync\"]\n";
        let config = load(said).unwrap();
        assert_eq!(
            config.hooks.required,
            [HookEvent::PreFailover, HookEvent::PreResync]
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prod.toml");
        config.save(&path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains(said));
        assert_eq!(NodeConfig::load(&path).unwrap(), config);
        plain.save(&path).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("hooks"));
    }

    #[test]
    fn what_cannot_be_meant_of_hooks_is_refused() {
        for (text, expected) in [
            (
                "[hooks]\ntimout = \"3s\"\n",
                "unknown key 'timout'; did you mean 'timeout'?",
            ),
            ("[hooks]\ndir = \"h\"\n", "hooks.dir = h: it must be absolute"),
            ("[hooks]\ntimeout = \"0s\"\n", "hooks.timeout = 0s: 1s to 1h"),
            ("[hooks]\ntimeout = \"2h\"\n", "hooks.timeout = 2h: 1s to 1h"),
        ] {
            assert_eq!(load(text).unwrap_err(), expected);
        }
        let late = load("[hooks]\nrequired = [\"post-failover\"]\n").unwrap_err();
        assert!(
            late.starts_with("hooks.required = post-failover: only hooks of a pre- event"),
            "{late}"
        );
        let unknown = load("[hooks]\nrequired = [\"prefailover\"]\n").unwrap_err();
        assert!(unknown.contains("did you mean 'pre-failover'"), "{unknown}");
    }

    #[test]
    fn a_socket_that_others_use_stands_where_they_can_reach_it() {
        let access = "[access]\nreaders = [\"%nagios\"]\n";
        let inside = load(access).unwrap_err();
        assert!(
            inside.starts_with("control = /x/control.sock: who is named in [access]"),
            "{inside}"
        );
        let outside = load(&format!("control = \"/run/c.sock\"\n{access}")).unwrap();
        assert_eq!(outside.access.readers, ["%nagios"]);
        assert!(load("").unwrap().access.is_default());
    }

    #[test]
    fn a_host_places_replicas_only_in_its_folders() {
        let host = |folders: &[&str]| HostConfig {
            name: "prod".into(),
            endpoints: Vec::new(),
            identity: String::new(),
            backings: folders.iter().map(PathBuf::from).collect(),
        };
        let vg = host(&["/srv/replicas", "/dev/vg1"]);
        for (path, may) in [
            ("/dev/vg1/data", true),
            ("/srv/replicas/a/b", true),
            ("/dev/vg1", false),
            ("/dev/vg10/data", false),
            ("/dev/vg1/../sda", false),
            ("dev/vg1/data", false),
            ("/etc/cron.d/x", false),
        ] {
            assert_eq!(vg.may_place(Path::new(path)), may, "{path}");
            assert!(!host(&[]).may_place(Path::new(path)));
        }
        let relative = "[[host]]\nname = \"rec\"\nidentity = \"J202-6J2A-DWF4-H7EY-CR1E-G7MF-V48N-1C3A-99ND-KFXM-QPRK-7P1F-5JDG\"\nbackings = [\"x\"]\n";
        assert_eq!(
            load(relative).unwrap_err(),
            "host.backings = x: it must be absolute"
        );
    }

    const FILES: &str = "certificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\n";

    #[test]
    fn nbd_on_tcp_needs_tls_unless_it_is_said_that_it_has_none() {
        let with = |tcp: &str, nbd: &str| load(&format!("[listen]\nnbd_tcp = \"{tcp}\"\n[nbd]\n{nbd}"));
        let config = with("0.0.0.0:10809", FILES).unwrap();
        assert_eq!(config.nbd.tls, TlsMode::Required);
        assert!(config.nbd.files().is_ok());
        let offered = format!("{FILES}tls = \"offered\"\nplain = [\"c1/data\"]\n");
        assert_eq!(with("[::]:10809", &offered).unwrap().nbd.plain, ["c1/data"]);
        assert_eq!(
            with("127.0.0.1:1", "tls = \"none\"\n").unwrap().nbd.tls,
            TlsMode::None
        );
        for (tcp, nbd, expected) in [
            ("10809", FILES, "listen.nbd_tcp = 10809: an address and a port"),
            ("0.0.0.0:10809", "", "nbd.certificate = (none): TLS needs it"),
            (
                "0.0.0.0:10809",
                "certificate = \"/c\"\nkey = \"/k\"\n",
                "nbd.client_ca = (none): TLS needs it",
            ),
            (
                "0.0.0.0:10809",
                "certificate = \"c\"\n",
                "nbd.certificate = c: it must be absolute",
            ),
            ("0.0.0.0:10809", "tls = \"maybe\"\n", "TOML parse error"),
            (
                "0.0.0.0:10809",
                &format!("{FILES}plain = [\"c1/data\"]\n"),
                "nbd.plain = c1/data: it has a meaning only with",
            ),
            (
                "0.0.0.0:10809",
                &format!("{FILES}tls = \"offered\"\nplain = [\"data\"]\n"),
                "nbd.plain = data: volumes, as c1/data",
            ),
        ] {
            let said = with(tcp, nbd).unwrap_err();
            assert!(said.starts_with(expected), "{said}");
        }
    }
}
