//! `[nbd]` of a node's file: what its NBD exports say to TLS on TCP.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// NBD on TCP: on the node's own socket (`[listen] nbd_tcp`) and on those that it is handed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdConfig {
    /// Whether a client must speak TLS; default `required`.
    #[serde(default)]
    pub tls: TlsMode,
    /// The certificate that is shown to clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The authorities whose clients are let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Volumes (`c1/data`) that may be had without TLS where it is offered, with all their points.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain: Vec<String>,
}

/// What is said to TLS, in the protocol's terms `NOTLS`, `SELECTIVETLS`, `FORCEDTLS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// There is none: whoever reaches the port may do everything.
    None,
    /// At the client's choice, for the volumes of `plain` only.
    Offered,
    /// Before anything else.
    #[default]
    Required,
}

impl NbdConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Certificate, key and client authority, if all are named; else the key that is missing.
    ///
    /// # Errors
    /// When one is missing.
    pub fn files(&self) -> Result<nbd::TlsFiles, &'static str> {
        let named = |file: &Option<PathBuf>, key| file.clone().ok_or(key);
        Ok(nbd::TlsFiles {
            certificate: named(&self.certificate, "nbd.certificate")?,
            key: named(&self.key, "nbd.key")?,
            client_ca: named(&self.client_ca, "nbd.client_ca")?,
        })
    }

    /// What is wrong, as key, value and what would be right. `tcp` is the address of the node's own socket.
    pub(super) fn fault(&self, tcp: Option<&str>) -> Option<(&'static str, String, &'static str)> {
        if let Some(tcp) = tcp.filter(|a| a.parse::<std::net::SocketAddr>().is_err()) {
            let why = "an address and a port: 0.0.0.0:10809, [::]:10809";
            return Some(("listen.nbd_tcp", tcp.to_owned(), why));
        }
        let said = [&self.certificate, &self.key, &self.client_ca];
        if let Some(path) = said.into_iter().flatten().find(|p| !p.is_absolute()) {
            let key = match () {
                () if said[0].as_ref() == Some(path) => "nbd.certificate",
                () if said[1].as_ref() == Some(path) => "nbd.key",
                () => "nbd.client_ca",
            };
            return Some((key, path.display().to_string(), "it must be absolute"));
        }
        let is_used = tcp.is_some() || said.iter().any(|f| f.is_some());
        if let Err(missing) = self.files()
            && is_used
            && self.tls != TlsMode::None
        {
            let why = "TLS needs it, to serve NBD on TCP; with nbd.tls = \"none\" whoever reaches the port may do everything";
            return Some((missing, "(none)".into(), why));
        }
        let is_volume = |name: &&String| {
            let context = name.strip_prefix('c').and_then(|n| n.split_once('/'));
            context
                .is_some_and(|(id, volume)| id.parse::<u32>().is_ok() && super::node::name_is_plain(volume))
        };
        if let Some(name) = self.plain.iter().find(|n| !is_volume(n)) {
            return Some(("nbd.plain", name.clone(), "volumes, as c1/data"));
        }
        if !self.plain.is_empty() && self.tls != TlsMode::Offered {
            let why = "it has a meaning only with nbd.tls = \"offered\"";
            return Some(("nbd.plain", self.plain.join(", "), why));
        }
        None
    }
}
