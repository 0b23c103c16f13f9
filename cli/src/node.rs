//! Which node a command is for, and where its daemon listens.

use crate::{args::Common, env::Env, error::CliError};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The keys of a node's file that the command line needs; the daemon knows and checks them all.
#[derive(serde::Deserialize)]
struct Keys {
    name: String,
    state_dir: PathBuf,
    control: Option<PathBuf>,
}

/// A node of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) config: PathBuf,
    pub(crate) socket: PathBuf,
}

/// Where nodes' files are: `$BACKSTAY_ETC`, else `/etc/backstay`.
#[must_use]
pub fn config_dir() -> PathBuf {
    std::env::var_os("BACKSTAY_ETC")
        .filter(|v| !v.is_empty())
        .map_or_else(|| "/etc/backstay".into(), PathBuf::from)
}

/// The file of the chosen node: `--config`, `--node`, `$BACKSTAY_CONFIG`, or the only one there.
pub(crate) fn config_file(common: &Common, env: &Env) -> Result<PathBuf, CliError> {
    if let Some(file) = &common.config {
        return Ok(file.clone());
    }
    if let Some(name) = &common.node {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(CliError::usage(format!("--node: '{name}' is no name of a node")));
        }
        return Ok(env.config_dir.join(format!("{name}.toml")));
    }
    if let Some(file) = &env.config_file {
        return Ok(file.into());
    }
    let dir = &env.config_dir;
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml") && p.is_file())
        .collect();
    files.sort();
    match files.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CliError::NoNode {
            why: format!("there is none in {}", dir.display()),
        }),
        many => {
            let names: Vec<_> = many.iter().filter_map(|p| p.file_stem()?.to_str()).collect();
            Err(CliError::NoNode {
                why: format!("{} holds {}", dir.display(), names.join(", ")),
            })
        }
    }
}

/// Reads a node's file as far as the command line needs it.
pub(crate) fn read(config: &Path) -> Result<Node, CliError> {
    let text = fs::read_to_string(config).map_err(|e| CliError::Config {
        path: config.to_owned(),
        why: e.to_string(),
    })?;
    let keys: Keys = toml::from_str(&text).map_err(|e| CliError::Config {
        path: config.to_owned(),
        why: e.message().to_owned(),
    })?;
    Ok(Node {
        name: keys.name,
        config: config.to_owned(),
        socket: keys
            .control
            .unwrap_or_else(|| keys.state_dir.join("control.sock")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::Zone;

    fn env(dir: &Path) -> Env {
        Env {
            config_dir: dir.to_owned(),
            config_file: None,
            zone: Zone::Host,
            operator: "me@here".into(),
            now: None,
        }
    }

    #[test]
    fn the_node_is_chosen_by_flag_then_variable_then_being_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut env = env(dir.path());
        let mut common = Common::default();
        assert!(matches!(config_file(&common, &env), Err(CliError::NoNode { .. })));
        fs::write(
            dir.path().join("rec.toml"),
            "name = 'rec'\nstate_dir = '/var/lib/x'\n[listen]\npeer='p'\n",
        )
        .unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let only = config_file(&common, &env).unwrap();
        assert_eq!(only, dir.path().join("rec.toml"));
        assert_eq!(read(&only).unwrap().socket, Path::new("/var/lib/x/control.sock"));
        fs::write(
            dir.path().join("prod.toml"),
            "name = 'prod'\nstate_dir = '/s'\ncontrol = '/run/c.sock'\n",
        )
        .unwrap();
        let error = config_file(&common, &env).unwrap_err().to_string();
        assert!(error.contains("prod, rec"), "{error}");
        env.config_file = Some("/from/variable.toml".into());
        assert_eq!(
            config_file(&common, &env).unwrap(),
            Path::new("/from/variable.toml")
        );
        common.node = Some("prod".into());
        let prod = config_file(&common, &env).unwrap();
        assert_eq!(read(&prod).unwrap().socket, Path::new("/run/c.sock"));
        common.node = Some("../prod".into());
        assert!(matches!(config_file(&common, &env), Err(CliError::Usage(_))));
        common.config = Some("/this.toml".into());
        assert_eq!(config_file(&common, &env).unwrap(), Path::new("/this.toml"));
    }

    #[test]
    fn a_file_without_a_state_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bad.toml");
        fs::write(&file, "name = 'x'\n").unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(
            error.contains("bad.toml") && error.contains("state_dir"),
            "{error}"
        );
    }
}
