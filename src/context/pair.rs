//! The pair that a context is: its configured production, and its failover id. Both may change while it runs (`rtdr setup`,
//! `rtdr failback --stay`); all else of its file is as it was opened.

use super::Context;
use crate::config::{ConfigError, ContextConfig};

/// What may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    is_home: bool,
    failover_id: u32,
}

impl Pair {
    pub(super) fn of(config: &ContextConfig, node: &str) -> Self {
        Self {
            is_home: config.production == node,
            failover_id: config.failover_id,
        }
    }
}

impl Context {
    /// Whether this host is the configured production.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.pair.lock().is_home
    }

    /// Id of the failover context.
    #[must_use]
    pub fn failover_id(&self) -> u32 {
        self.pair.lock().failover_id
    }

    /// The configured production.
    #[must_use]
    pub fn home(&self) -> &str {
        if self.is_home() {
            &self.node_name
        } else {
            self.peer_name()
        }
    }

    /// The other host's name.
    #[must_use]
    pub fn peer_name(&self) -> &str {
        if self.config.production == self.node_name {
            self.config.recovery_node()
        } else {
            &self.config.production
        }
    }

    /// Makes this the pair, file first; `false`: it is so already.
    ///
    /// # Errors
    /// When the file cannot be written; nothing changed then.
    pub(crate) fn set_pair(&self, production: &str, failover_id: u32) -> Result<bool, ConfigError> {
        let mut pair = self.pair.lock();
        let wanted = Pair {
            is_home: production == self.node_name,
            failover_id,
        };
        if *pair == wanted {
            return Ok(false);
        }
        let mut config = self.config.clone();
        if wanted.is_home != (config.production == self.node_name) {
            let recovery = config.recovery_node().to_owned();
            config.recovery = vec![std::mem::replace(&mut config.production, recovery)];
        }
        config.failover_id = failover_id;
        let folder = self.node().config().contexts_dir();
        config.save(&folder.join(format!("{}.toml", config.id)))?;
        *pair = wanted;
        Ok(true)
    }
}
