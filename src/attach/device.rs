//! Block devices made of exports.

use super::{
    AttachError,
    command::{must, run},
};
use crate::config::{AttachConfig, AttachMethod};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How many complaints about one device are passed on.
const TOLD_MAX: u64 = 8;

/// Makes block devices of this node's exports.
#[derive(Debug)]
pub struct Attacher {
    method: AttachMethod,
    dev_root: PathBuf,
    records: PathBuf,
    nbd_socket: PathBuf,
}

/// A device, as recorded on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedDevice {
    /// The export behind it.
    pub export: String,
    /// Its name under `dev_root`.
    pub name: PathBuf,
    /// The block device.
    pub device: PathBuf,
    /// Where its file system is mounted, if it is.
    pub mounted: Option<PathBuf>,
    how: How,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Kernel,
    Fuse { folder: PathBuf, pid: u32 },
}

impl Attacher {
    /// An attacher for the exports behind `nbd_socket`, with its records under `state_dir`.
    #[must_use]
    pub fn new(config: &AttachConfig, state_dir: &Path, nbd_socket: PathBuf) -> Self {
        Self {
            method: config.method,
            dev_root: config.dev_root.clone(),
            records: state_dir.join("attach"),
            nbd_socket,
        }
    }

    /// The name that a device gets, `/dev/backstay/c1/testlv`.
    #[must_use]
    pub fn name_of(&self, device: &str) -> PathBuf {
        self.dev_root.join(device)
    }

    fn record_of(&self, name: &Path) -> PathBuf {
        let relative = name.strip_prefix(&self.dev_root).unwrap_or(name);
        self.records.join(format!(
            "{}.json",
            relative.display().to_string().replace('/', ".")
        ))
    }

    /// What is attached under `device` now.
    #[must_use]
    pub fn find(&self, device: &str) -> Option<AttachedDevice> {
        let text = fs::read(self.record_of(&self.name_of(device))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn record(&self, attached: &AttachedDevice) -> Result<(), AttachError> {
        fs::create_dir_all(&self.records).map_err(AttachError::io(self.records.display()))?;
        let path = self.record_of(&attached.name);
        let text = serde_json::to_vec_pretty(attached).expect("a record is plain JSON");
        media::replace_file(&path, &text, 0o600).map_err(AttachError::io(path.display()))
    }

    /// Whether devices can be made at all.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.method != AttachMethod::None
    }

    /// Makes the device `device` of `export`; already so: answers it.
    ///
    /// # Errors
    /// When a step fails; the steps before it are undone.
    pub fn attach(&self, device: &str, export: &str, read_only: bool) -> Result<AttachedDevice, AttachError> {
        if let Some(attached) = self.find(device) {
            return Ok(attached);
        }
        let name = self.name_of(device);
        let kernel = Path::new("/sys/module/nbd").exists();
        let attached = match self.method {
            AttachMethod::None => return Err(AttachError::Disabled),
            AttachMethod::Nbd => self.attach_kernel(name, export, read_only)?,
            AttachMethod::Auto if kernel => self.attach_kernel(name, export, read_only)?,
            AttachMethod::Auto | AttachMethod::Fuse => self.attach_fuse(name, export, read_only)?,
        };
        let named = self
            .record(&attached)
            .and_then(|()| link(&attached.device, &attached.name));
        if let Err(e) = named {
            let _ = self.detach(&attached);
            return Err(e);
        }
        Ok(attached)
    }

    fn attach_fuse(
        &self,
        name: PathBuf,
        export: &str,
        read_only: bool,
    ) -> Result<AttachedDevice, AttachError> {
        let folder = self.record_of(&name).with_extension("fuse");
        fs::create_dir_all(&folder).map_err(AttachError::io(folder.display()))?;
        let disk = folder.join("disk");
        let uri = nbd_uri(&self.nbd_socket, export);
        let mut args = vec![
            "-P".to_owned(),
            folder.with_extension("pid").display().to_string(),
        ];
        if read_only {
            args.push("-r".into());
        }
        args.extend([disk.display().to_string(), uri]);
        let mut child = Command::new("nbdfuse")
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| super::CommandError::Start {
                program: "nbdfuse".into(),
                source,
            })?;
        let pid = child.id();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !disk.exists() {
            if let Ok(Some(status)) = child.try_wait() {
                let mut output = String::new();
                if let Some(mut err) = child.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut err, &mut output);
                }
                return Err(super::CommandError::Failed {
                    line: format!("nbdfuse {}", args.join(" ")),
                    code: status.code().unwrap_or(-1),
                    output: output.trim().to_owned(),
                }
                .into());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(super::CommandError::Failed {
                    line: format!("nbdfuse {}", args.join(" ")),
                    code: -1,
                    output: "no file after 20 s".into(),
                }
                .into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let device = name.display().to_string();
        std::thread::spawn(move || attend(child, &device));
        let how = How::Fuse { folder, pid };
        let text = disk.display().to_string();
        let mut losetup = vec!["--find", "--show"];
        if read_only {
            losetup.push("--read-only");
        }
        losetup.push(&text);
        match must("losetup", &losetup) {
            Ok(device) => Ok(AttachedDevice {
                export: export.to_owned(),
                name,
                device: PathBuf::from(device.trim()),
                mounted: None,
                how,
            }),
            Err(e) => {
                let _ = drop_fuse(&how);
                Err(e.into())
            }
        }
    }

    fn attach_kernel(
        &self,
        name: PathBuf,
        export: &str,
        read_only: bool,
    ) -> Result<AttachedDevice, AttachError> {
        let free = (0..256).map(|n| format!("nbd{n}")).find(|n| {
            let size = fs::read_to_string(format!("/sys/block/{n}/size"));
            size.is_ok_and(|s| s.trim() == "0")
        });
        let device = PathBuf::from(format!(
            "/dev/{}",
            free.ok_or_else(|| AttachError::Io {
                what: "/sys/block/nbd*".into(),
                source: std::io::Error::new(
                    std::io::ErrorKind::ResourceBusy,
                    "no free nbd device (nbds_max)"
                ),
            })?
        ));
        let (socket, path) = (
            self.nbd_socket.display().to_string(),
            device.display().to_string(),
        );
        let mut args = vec![
            "-unix",
            socket.as_str(),
            path.as_str(),
            "-N",
            export,
            "-timeout",
            "0",
            "-persist",
        ];
        if read_only {
            args.push("-readonly");
        }
        must("nbd-client", &args)?;
        Ok(AttachedDevice {
            export: export.to_owned(),
            name,
            device,
            mounted: None,
            how: How::Kernel,
        })
    }

    /// Remembers where the device's file system is mounted.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn set_mounted(&self, attached: &mut AttachedDevice, at: Option<PathBuf>) -> Result<(), AttachError> {
        attached.mounted = at;
        self.record(attached)
    }

    /// Undoes [`Attacher::attach`].
    ///
    /// # Errors
    /// When a step fails; the record then stays, so the same call goes on.
    pub fn detach(&self, attached: &AttachedDevice) -> Result<(), AttachError> {
        let device = attached.device.display().to_string();
        match &attached.how {
            How::Kernel => {
                must("nbd-client", &["-d", &device])?;
            }
            How::Fuse { .. } => {
                if loop_is_ours(attached) {
                    must("losetup", &["--detach", &device])?;
                }
                drop_fuse(&attached.how)?;
            }
        }
        let _ = fs::remove_file(&attached.name);
        let mut parent = attached.name.parent();
        while let Some(folder) = parent.filter(|p| *p != self.dev_root && fs::remove_dir(p).is_ok()) {
            parent = folder.parent();
        }
        let record = self.record_of(&attached.name);
        fs::remove_file(&record).map_err(AttachError::io(record.display()))
    }

    /// Everything that is attached.
    #[must_use]
    pub fn all(&self) -> Vec<AttachedDevice> {
        let Ok(folder) = fs::read_dir(&self.records) else {
            return Vec::new();
        };
        let mut all: Vec<AttachedDevice> = folder
            .filter_map(|entry| {
                Some(entry.ok()?.path()).filter(|p| p.extension().is_some_and(|e| e == "json"))
            })
            .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Unmounts and detaches everything, as far as nobody has files open there.
    pub fn detach_all(&self) {
        let mut all = self.all();
        all.sort_by_key(|a| std::cmp::Reverse(a.mounted.as_ref().map_or(0, |m| m.components().count())));
        for attached in all {
            let unmounted = attached
                .mounted
                .as_ref()
                .map_or(Ok(()), |at| super::mount::unmount(at));
            if let Err(e) = unmounted.and_then(|()| self.detach(&attached)) {
                tracing::warn!(device = %attached.name.display(), "left attached: {e}");
            }
        }
    }

    /// Undoes what a daemon that died left attached: its exports are gone, so nothing can be read through it any more.
    pub fn clean_leftovers(&self) {
        for attached in self.all() {
            if let Some(at) = &attached.mounted {
                let _ = run("umount", &["--lazy", &at.display().to_string()]);
            }
            if let Err(e) = self.detach(&attached) {
                tracing::warn!(device = %attached.name.display(), "left over from an earlier run, not detached: {e}");
            }
        }
    }
}

/// Reads what `nbdfuse` complains, and waits for its end. It writes a line for every request that fails, and serves nothing any
/// more once nobody reads them: whoever uses the device would hang in the kernel. Unwaited for, it would stay a zombie.
fn attend(mut child: Child, device: &str) {
    let lines = child.stderr.take().map(|err| BufReader::new(err).split(b'\n'));
    let mut told = 0;
    for line in lines.into_iter().flatten().map_while(Result::ok) {
        if told < TOLD_MAX {
            tracing::warn!(device, "{}", String::from_utf8_lossy(&line).trim());
        }
        told += 1;
    }
    if told > TOLD_MAX {
        tracing::warn!(device, "nbdfuse: {} lines more", told - TOLD_MAX);
    }
    let _ = child.wait();
}

/// Whether the loop device still stands on our file; its number may have gone to somebody else after a crash.
fn loop_is_ours(attached: &AttachedDevice) -> bool {
    let How::Fuse { folder, .. } = &attached.how else {
        return false;
    };
    let Some(name) = attached.device.file_name() else {
        return false;
    };
    fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file"))
        .is_ok_and(|file| Path::new(file.trim_end().trim_end_matches(" (deleted)")).starts_with(folder))
}

fn drop_fuse(how: &How) -> Result<(), AttachError> {
    let How::Fuse { folder, pid } = how else {
        return Ok(());
    };
    let path = folder.display().to_string();
    let mounted = || fs::read_to_string("/proc/mounts").is_ok_and(|m| m.contains(&format!(" {path} ")));
    // A loop device lets go of its file a moment after it is detached.
    for attempt in 0..50 {
        if !mounted() || run("umount", &[&path])?.code == 0 {
            break;
        }
        if attempt == 49 {
            must("umount", &["--lazy", &path])?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let gone = || !Path::new(&format!("/proc/{pid}/exe")).exists();
    for _ in 0..250 {
        if gone() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = fs::remove_file(folder.with_extension("pid"));
    fs::remove_dir(folder).map_err(AttachError::io(path))
}

fn link(device: &Path, name: &Path) -> Result<(), AttachError> {
    if let Some(parent) = name.parent() {
        fs::create_dir_all(parent).map_err(AttachError::io(parent.display()))?;
    }
    if name.is_symlink() {
        fs::remove_file(name).map_err(AttachError::io(name.display()))?;
    }
    std::os::unix::fs::symlink(device, name).map_err(AttachError::io(name.display()))
}

/// The URI by which any NBD client reaches an export.
#[must_use]
pub fn nbd_uri(socket: &Path, export: &str) -> String {
    let escape = |text: &str, plain: &str| {
        text.bytes().fold(String::new(), |mut out, b| {
            if b.is_ascii_alphanumeric() || plain.as_bytes().contains(&b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
            out
        })
    };
    format!(
        "nbd+unix:///{}?socket={}",
        escape(export, "-_.~/:@"),
        escape(&socket.display().to_string(), "-_.~/")
    )
}
