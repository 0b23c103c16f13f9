//! A context's file, `<state_dir>/contexts/<ID>.toml`, the same on both hosts.

use super::{
    Age, ConfigError, Mode, OnLinkLoss, RollbackWindow, Size, node::name_is_plain, parse, read, write,
};
use journal::tap::PeerRule;
use model::{ContextId, VolumeIndex};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    time::Duration,
};

/// One replication group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextConfig {
    /// Its id (`-C`).
    pub id: u32,
    /// Id of the failover context derived from it.
    pub failover_id: u32,
    /// Node that produces.
    pub production: String,
    /// Nodes that keep replicas, nearest first. This version ships to the first.
    pub recovery: Vec<String>,
    /// When production answers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// In mode `async`: answered bytes that the peer may lack before writers wait for it; none: as much as the journal holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_water_mark: Option<Size>,
    /// In the other modes: what a lost peer does to writers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_link_loss: OnLinkLoss,
    /// Bytes of a container; 2 MiB to 1 GiB.
    #[serde(default = "default_lfc_size")]
    pub lfc_size: Size,
    /// A container with records is sealed at this age.
    #[serde(default = "default_lfc_max_age")]
    pub lfc_max_age: Age,
    /// What is promised of the past.
    #[serde(default)]
    pub rollback_window: RollbackWindow,
    /// Bytes of journal that a host keeps; none: all that the file system has but a reserve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_limit: Option<Size>,
    /// The same for the recovery host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_journal_limit: Option<Size>,
    /// Bytes of frames that may wait for write-back before writers wait.
    #[serde(default = "default_overlay_bytes")]
    pub write_back_limit: Size,
    /// Bytes of one vdev's overlay.
    #[serde(default = "default_vdev_limit")]
    pub overlay_limit: Size,
    /// Region of the state map; a power of two from 4 KiB to 1 MiB.
    #[serde(default = "default_region_size")]
    pub region_size: Size,
    /// Whether a production that starts after a boot serves before it has heard its peer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_start_alone: OnStartAlone,
    /// A daemon that is back within this time of the same boot serves at once.
    #[serde(
        default = "default_restart_grace",
        skip_serializing_if = "is_default_restart_grace"
    )]
    pub restart_grace: Age,
    /// What becomes of a production's earlier points that its peer holds too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub history_on_production: HistoryOnProduction,
    /// Bytes a second that a verify compares at most.
    #[serde(
        default = "default_verify_rate",
        skip_serializing_if = "is_default_verify_rate"
    )]
    pub verify_rate: Size,
    /// Everything is verified so long after the last time; none: only when somebody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_every: Option<Age>,
    /// Regions that are verified after a catch-up, chosen at random; 0: none.
    #[serde(
        default = "default_verify_after_catch_up",
        skip_serializing_if = "is_default_verify_after_catch_up"
    )]
    pub verify_after_catch_up: u64,
    /// The protected volumes.
    #[serde(rename = "volume")]
    pub volumes: Vec<VolumeConfig>,
}

/// One protected volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Its name, unique in the context.
    pub name: String,
    /// Its size.
    pub size: Size,
    /// Its file system; none: a raw volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// Where it is mounted, under `mount_root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// File or block device on each host; default `<state_dir>/c<ID>/volumes/<name>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backing: BTreeMap<String, PathBuf>,
}

/// What a production does that starts after a boot and does not hear its peer, which may have taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStartAlone {
    /// It serves nothing until the peer has answered or an operator insists.
    #[default]
    Refuse,
    /// It serves.
    Serve,
}

/// What a production does with the points before it became one, which its peer holds too (`rules.md` L8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryOnProduction {
    /// It lets go of them, and builds undo no longer.
    #[default]
    Drop,
    /// It keeps them.
    Keep,
}

/// File systems that can be checked and mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
    /// btrfs, of one device.
    Btrfs,
}

impl Filesystem {
    /// Its name, as `mount -t` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs, Self::Btrfs]
            .into_iter()
            .find(|f| f.name() == name)
    }
}

fn default_lfc_size() -> Size {
    Size(64 << 20)
}

fn default_lfc_max_age() -> Age {
    Age(Duration::from_secs(30))
}

fn default_overlay_bytes() -> Size {
    Size(256 << 20)
}

fn default_vdev_limit() -> Size {
    Size(4 << 30)
}

fn default_region_size() -> Size {
    Size(32 << 10)
}

fn default_restart_grace() -> Age {
    Age(Duration::from_secs(600))
}

fn default_verify_rate() -> Size {
    Size(64 << 20)
}

fn is_default_verify_rate(value: &Size) -> bool {
    *value == default_verify_rate()
}

fn default_verify_after_catch_up() -> u64 {
    64
}

fn is_default_verify_after_catch_up(value: &u64) -> bool {
    *value == default_verify_after_catch_up()
}

/// Keys that came after the first version are left out at their default: the text, and so the digest that the two hosts
/// compare, stays what it was.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_default_restart_grace(value: &Age) -> bool {
    *value == default_restart_grace()
}

impl ContextConfig {
    /// A context with defaults for all but its names and volumes.
    #[must_use]
    pub fn new(
        id: u32,
        failover_id: u32,
        production: String,
        recovery: String,
        volumes: Vec<VolumeConfig>,
    ) -> Self {
        Self {
            id,
            failover_id,
            production,
            recovery: vec![recovery],
            mode: Mode::default(),
            high_water_mark: None,
            on_link_loss: OnLinkLoss::default(),
            lfc_size: default_lfc_size(),
            lfc_max_age: default_lfc_max_age(),
            rollback_window: RollbackWindow::default(),
            journal_limit: None,
            recovery_journal_limit: None,
            write_back_limit: default_overlay_bytes(),
            overlay_limit: default_vdev_limit(),
            region_size: default_region_size(),
            on_start_alone: OnStartAlone::default(),
            restart_grace: default_restart_grace(),
            history_on_production: HistoryOnProduction::default(),
            verify_rate: default_verify_rate(),
            verify_every: None,
            verify_after_catch_up: default_verify_after_catch_up(),
            volumes,
        }
    }

    /// Reads and checks a context's file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = read(path)?;
        config.check(path)?;
        Ok(config)
    }

    /// Parses and checks text that came from `origin`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_text(origin: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = parse(origin, text)?;
        config.check(origin)?;
        Ok(config)
    }

    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = toml::to_string(self).expect("a context's configuration is plain TOML");
        format!(
            "# A Backstay context, the same on both hosts; every key is in docs/CONFIGURATION.md.\n{text}"
        )
    }

    /// Writes the file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        self.check(path)?;
        write(path, &self.to_text(), 0o600)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let fault = |key, value: String, why: &str| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key,
                value,
                why: why.to_owned(),
            })
        };
        if self.id == 0 || self.id == self.failover_id || self.failover_id == 0 {
            return fault(
                "failover_id",
                self.failover_id.to_string(),
                "two different ids above 0 are needed",
            );
        }
        if !(2 << 20..=1 << 30).contains(&self.lfc_size.0) {
            return fault("lfc_size", self.lfc_size.to_string(), "2M to 1G");
        }
        for (key, limit) in [
            ("journal_limit", self.journal_limit),
            ("recovery_journal_limit", self.recovery_journal_limit),
        ] {
            if let Some(limit) = limit.filter(|l| l.0 < 4 * self.lfc_size.0) {
                return fault(key, limit.to_string(), "4 x lfc_size or more");
            }
        }
        if let Some(mark) = self.high_water_mark {
            if self.mode != Mode::Async {
                return fault("high_water_mark", mark.to_string(), "mode async alone has one");
            }
            if mark.0 < 64 << 10 {
                return fault("high_water_mark", mark.to_string(), "64K or more");
            }
        }
        if self.on_link_loss != OnLinkLoss::Continue && self.mode == Mode::Async {
            let value = format!("{:?}", self.on_link_loss).to_lowercase();
            return fault(
                "on_link_loss",
                value,
                "mode async goes on without its peer: mode mwc or sync",
            );
        }
        let region = self.region_size.0;
        if !region.is_power_of_two() || !(4 << 10..=1 << 20).contains(&region) {
            return fault(
                "region_size",
                self.region_size.to_string(),
                "a power of two from 4K to 1M",
            );
        }
        for (key, limit) in [
            ("write_back_limit", self.write_back_limit),
            ("overlay_limit", self.overlay_limit),
        ] {
            if limit.0 < 1 << 20 {
                return fault(key, limit.to_string(), "1M or more");
            }
        }
        if self.lfc_max_age.0 < Duration::from_secs(1) {
            return fault("lfc_max_age", self.lfc_max_age.to_string(), "1s or more");
        }
        if self.verify_rate.0 < 64 << 10 {
            return fault("verify_rate", self.verify_rate.to_string(), "64K or more");
        }
        if let Some(every) = self.verify_every.filter(|e| e.0 < Duration::from_secs(1)) {
            return fault("verify_every", every.to_string(), "1s or more");
        }
        if self.recovery.len() != 1 || self.recovery[0] == self.production {
            return fault(
                "recovery",
                format!("{:?}", self.recovery),
                "one other node, in this version",
            );
        }
        if self.volumes.is_empty() {
            return fault("volume", "none".into(), "a context needs at least one");
        }
        for (i, volume) in self.volumes.iter().enumerate() {
            if !name_is_plain(&volume.name) {
                return fault(
                    "volume.name",
                    volume.name.clone(),
                    "letters, digits, '-', '_' and '.' only",
                );
            }
            if self.volumes[..i].iter().any(|v| v.name == volume.name) {
                return fault("volume.name", volume.name.clone(), "two volumes have this name");
            }
            if volume.size.0 == 0 {
                return fault(
                    "volume.size",
                    volume.size.to_string(),
                    "a volume has at least one byte",
                );
            }
            if volume.mount.is_some() && volume.filesystem.is_none() {
                return fault(
                    "volume.mount",
                    volume.name.clone(),
                    "a raw volume is not mounted: give filesystem",
                );
            }
            let is_plain = |mount: &PathBuf| {
                let mut components = mount.components();
                mount.is_absolute()
                    && components.all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
            };
            if !volume.mount.as_ref().is_none_or(is_plain) {
                return fault("volume.mount", volume.name.clone(), "an absolute path without ..");
            }
        }
        Ok(())
    }

    /// Whether production's answers wait for the peer.
    #[must_use]
    pub fn peer_rule(&self) -> PeerRule {
        PeerRule {
            always: self.mode != Mode::Async,
            high_water_mark: self.high_water_mark.map(|mark| mark.0),
            on_link_loss: self.on_link_loss.into(),
        }
    }

    /// Its id.
    #[must_use]
    pub fn context(&self) -> ContextId {
        ContextId(self.id)
    }

    /// The node that keeps the replica.
    #[must_use]
    pub fn recovery_node(&self) -> &str {
        &self.recovery[0]
    }

    /// Volumes with their indexes.
    pub fn indexed(&self) -> impl Iterator<Item = (VolumeIndex, &VolumeConfig)> {
        self.volumes
            .iter()
            .enumerate()
            .map(|(i, v)| (VolumeIndex(u16::try_from(i).unwrap_or(u16::MAX)), v))
    }

    /// A volume by name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<(VolumeIndex, &VolumeConfig)> {
        self.indexed().find(|(_, v)| v.name == name)
    }
}

impl VolumeConfig {
    /// Its file or device on a node with this state folder.
    #[must_use]
    pub fn backing_on(&self, node: &str, state_dir: &Path, context: u32) -> PathBuf {
        self.backing.get(node).cloned().unwrap_or_else(|| {
            state_dir
                .join(format!("c{context}"))
                .join("volumes")
                .join(&self.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> VolumeConfig {
        VolumeConfig {
            name: "data".into(),
            size: Size(1 << 20),
            filesystem: None,
            mount: None,
            backing: BTreeMap::new(),
        }
    }

    /// What the first version wrote for a context with defaults, byte for byte: both hosts compare a digest of it, also while
    /// one of them is a version ahead.
    const FIRST_VERSION: &str = "\
# A Backstay context, the same on both hosts; every key is in docs/CONFIGURATION.md.
id = 1
failover_id = 2
production = \"prod\"
recovery = [\"rec\"]
lfc_size = \"64M\"
lfc_max_age = \"30s\"
rollback_window = \"1d\"
write_back_limit = \"256M\"
overlay_limit = \"4G\"
region_size = \"32K\"

[[volume]]
name = \"data\"
size = \"1M\"
";

    fn parsed(keys: &str) -> Result<ContextConfig, ConfigError> {
        let text = FIRST_VERSION.replace("\n[[volume]]", &format!("{keys}\n\n[[volume]]"));
        ContextConfig::from_text(Path::new("1.toml"), &text)
    }

    #[test]
    fn a_context_with_defaults_has_the_text_of_the_first_version() {
        let config = ContextConfig::new(1, 2, "prod".into(), "rec".into(), vec![data()]);
        assert_eq!(config.to_text(), FIRST_VERSION);
        // Written down or left out: the same text, and so the same digest.
        let said = "on_start_alone = \"refuse\"\nrestart_grace = \"600s\"\nhistory_on_production = \"drop\"";
        assert_eq!(parsed(said).unwrap().to_text(), FIRST_VERSION);
    }

    #[test]
    fn keys_of_role_changes_round_trip() {
        let said = "on_start_alone = \"serve\"\nrestart_grace = \"2h\"\nhistory_on_production = \"keep\"";
        let config = parsed(said).unwrap();
        assert_eq!(config.on_start_alone, OnStartAlone::Serve);
        assert_eq!(config.restart_grace, Age(Duration::from_secs(7200)));
        assert_eq!(config.history_on_production, HistoryOnProduction::Keep);
        let text = config.to_text();
        assert!(text.contains(said), "{text}");
        assert_eq!(
            ContextConfig::from_text(Path::new("1.toml"), &text).unwrap(),
            config
        );
    }

    /// The peer names it, and it is taken under `mount_root` there.
    #[test]
    fn a_mount_point_does_not_lead_out_of_its_root() {
        let mount = |at: &str| {
            let keys = format!("filesystem = \"ext4\"\nmount = \"{at}\"\n");
            ContextConfig::from_text(Path::new("1.toml"), &format!("{FIRST_VERSION}{keys}"))
        };
        assert!(mount("/srv/data").is_ok());
        for at in ["/../../etc/cron.d", "/srv/../etc", "srv"] {
            assert!(mount(at).is_err(), "{at}");
        }
    }

    #[test]
    fn keys_of_role_changes_are_refused_when_misspelt() {
        let error = |keys| parsed(keys).unwrap_err().to_string();
        assert_eq!(
            error("on_start_alon = \"serve\""),
            "1.toml: unknown key 'on_start_alon'; did you mean 'on_start_alone'?"
        );
        assert!(error("on_start_alone = \"no\"").contains("`refuse` or `serve`"));
        assert!(error("history_on_production = \"all\"").contains("`drop` or `keep`"));
        assert!(error("restart_grace = \"soon\"").contains("is no length of time"));
    }
}
