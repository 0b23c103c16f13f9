//! `protect`: new contexts.
//!
//! A volume is `NAME=SIZE` (a new sparse file) or `NAME=PATH` (a device or file, adopted in place). `--fs`, `--mount` and
//! `--replica` take a value for all volumes or `NAME=VALUE` for one, and may be repeated:
//!
//! ```text
//! backstay protect -C 1 data=1G --fs ext4 --mount /data
//! backstay protect -C 1 data=1G log=512M --fs ext4 --mount data=/data --mount log=/data/log
//! ```
//!
//! A mount point without a name belongs to the only volume; among several, to the one that is called like its last
//! component (`--mount /data` is for `data`). If none is, the command is refused: nothing is given out by order.

use super::{Given, Verb, mount::absolute};
use crate::{args::ContextArg, error::CliError, size};
use clap::Args;
use control::{
    Command,
    request::{Protect as Request, VolumeSource, VolumeSpec},
};

/// Letters of `protect`.
#[derive(Args, Debug, Default)]
pub(crate) struct Protect {
    #[command(flatten)]
    context: ContextArg,
    /// New sparse file (NAME=1G), or device or file to adopt (NAME=/dev/...)
    #[arg(value_name = "NAME=SIZE|PATH")]
    volumes: Vec<String>,
    /// Filesystem to make or expect (ext4, xfs, btrfs)
    #[arg(long, value_name = "[NAME=]TYPE")]
    fs: Vec<String>,
    /// Where to mount it
    #[arg(long, value_name = "[NAME=]DIR")]
    mount: Vec<String>,
    /// Device or file of the replica on the recovery host (default: a sparse file)
    #[arg(long, value_name = "[NAME=]PATH")]
    replica: Vec<String>,
    /// Node that keeps the replica (default: the only peer)
    #[arg(long, value_name = "NODE")]
    recovery: Option<String>,
    /// Id of the failover context (default: ID + 1000)
    #[arg(long, value_name = "ID")]
    failover_id: Option<u32>,
    /// How writes are acknowledged
    #[arg(long, value_name = "MODE", value_parser = ["async", "mwc", "sync"])]
    mode: Option<String>,
    /// Do not mount now
    #[arg(long)]
    no_mount: bool,
    /// Override a refusal, after a question
    #[arg(short, long)]
    force: bool,
}

impl Verb for Protect {
    fn command(&self, _: &Given<'_>) -> Result<Command, CliError> {
        let context = self.context.required()?;
        if self.failover_id == Some(context) {
            return Err(CliError::usage("--failover-id must differ from -C"));
        }
        let mut volumes = Vec::<VolumeSpec>::new();
        for text in &self.volumes {
            let volume = volume(text)?;
            if volumes.iter().any(|v| v.name == volume.name) {
                return Err(CliError::usage(format!(
                    "two volumes are called '{}'",
                    volume.name
                )));
            }
            volumes.push(volume);
        }
        if volumes.is_empty() {
            return Err(CliError::usage(
                "which volumes? NAME=SIZE or NAME=PATH is missing",
            ));
        }
        // First those for all, so that one with a name stands above them whatever the order.
        let (all, named): (Vec<_>, Vec<_>) = self.fs.iter().partition(|t| !t.contains('='));
        if all.len() > 1 {
            return Err(CliError::usage(
                "two filesystems for all volumes: --fs NAME=TYPE for one",
            ));
        }
        for volume in &mut volumes {
            volume.filesystem = all.first().map(|t| (*t).clone());
        }
        for text in named {
            let (volume, value) = named_value("--fs", text, &mut volumes)?;
            volume.filesystem = Some(value.to_owned());
        }
        if let Some(bad) = volumes
            .iter()
            .filter_map(|v| v.filesystem.as_deref())
            .find(|t| t.is_empty() || !t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
        {
            return Err(CliError::usage(format!("--fs: '{bad}' is no type of filesystem")));
        }
        for text in &self.mount {
            let (volume, path) = for_one("--mount", text, &mut volumes)?;
            if !path.starts_with('/') || path.split('/').any(|c| c == "..") {
                return Err(CliError::usage(format!("--mount: '{path}' is no absolute path")));
            }
            once("--mount", volume.name.clone(), &mut volume.mount, path.to_owned())?;
        }
        for text in &self.replica {
            let (volume, path) = for_one("--replica", text, &mut volumes)?;
            if !path.starts_with('/') {
                return Err(CliError::usage(format!(
                    "--replica: '{path}' is no absolute path"
                )));
            }
            once(
                "--replica",
                volume.name.clone(),
                &mut volume.recovery_path,
                path.to_owned(),
            )?;
        }
        let mut mounts: Vec<_> = volumes.iter().filter_map(|v| v.mount.as_deref()).collect();
        mounts.sort_unstable();
        if let Some(pair) = mounts.windows(2).find(|p| p[0] == p[1]) {
            return Err(CliError::usage(format!(
                "two volumes would be mounted at {}",
                pair[0]
            )));
        }
        Ok(Command::Protect(Request {
            context,
            failover_id: self.failover_id,
            recovery: self.recovery.clone(),
            volumes,
            mode: self.mode.clone(),
            mount: !self.no_mount,
        }))
    }

    fn force(&self) -> bool {
        self.force
    }
}

fn volume(text: &str) -> Result<VolumeSpec, CliError> {
    let (name, what) = text
        .split_once('=')
        .ok_or_else(|| CliError::usage(format!("'{text}' is not NAME=SIZE or NAME=PATH")))?;
    let name_ok = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !name_ok {
        return Err(CliError::usage(format!(
            "'{name}' cannot name a volume (letters, digits, _ - . and at most 64 of them)"
        )));
    }
    let source = if what.contains('/') {
        VolumeSource::Adopt {
            path: absolute(name, what)?,
        }
    } else {
        match size::parse(what) {
            Some(bytes) if bytes > 0 => VolumeSource::Create { bytes },
            _ => {
                return Err(CliError::usage(format!(
                    "{name}: '{what}' is neither a size (512M, 1G) nor a path with a slash"
                )));
            }
        }
    };
    Ok(VolumeSpec {
        name: name.to_owned(),
        source,
        recovery_path: None,
        filesystem: None,
        mount: None,
    })
}

/// `NAME=VALUE`: the volume and the value.
fn named_value<'t, 'v>(
    what: &str,
    text: &'t str,
    volumes: &'v mut [VolumeSpec],
) -> Result<(&'v mut VolumeSpec, &'t str), CliError> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    volumes
        .iter_mut()
        .find(|v| v.name == name)
        .map(|v| (v, value))
        .ok_or_else(|| CliError::usage(format!("{what} {text}: there is no volume '{name}'")))
}

/// `[NAME=]/path`: the volume and the path.
fn for_one<'t, 'v>(
    what: &str,
    text: &'t str,
    volumes: &'v mut [VolumeSpec],
) -> Result<(&'v mut VolumeSpec, &'t str), CliError> {
    if !text.starts_with('/') {
        return named_value(what, text, volumes);
    }
    if let [only] = volumes {
        return Ok((only, text));
    }
    let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    volumes
        .iter_mut()
        .find(|v| v.name == last)
        .map(|v| (v, text))
        .ok_or_else(|| CliError::usage(format!("{what} {text}: for which volume? {what} NAME={text}")))
}

fn once(what: &str, name: String, slot: &mut Option<String>, value: String) -> Result<(), CliError> {
    if slot.replace(value).is_some() {
        return Err(CliError::usage(format!("{what}: two for volume '{name}'")));
    }
    Ok(())
}
