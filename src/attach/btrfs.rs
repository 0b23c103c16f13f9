//! btrfs, which takes two devices with one id for two parts of one file system.
//!
//! Another id is written by `btrfstune -m`, into the superblocks alone. It loses the log of the last syncs if there is one, so
//! that is replayed first, by a mount. A kernel before 6.7 does not mount a twin of what is mounted; then nothing is changed.

use super::{
    AttachError,
    command::must,
    mount::{Options, Stage},
};
use crate::config::Filesystem;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Where the first superblock is, and how much of it is looked at.
const SUPER_AT: u64 = 64 << 10;
const SUPER_BYTES: usize = 0x90;

/// What a superblock says.
#[derive(Debug, PartialEq, Eq)]
struct Super {
    id: [u8; 16],
    has_log: bool,
    devices: u64,
}

fn parse(b: &[u8; SUPER_BYTES]) -> Option<Super> {
    let number = |at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
    (b[0x40..0x48] == *b"_BHRfS_M").then_some(())?;
    Some(Super {
        id: b[0x20..0x30].try_into().ok()?,
        has_log: number(0x60)? != 0,
        devices: number(0x88)?,
    })
}

/// The superblock of a device; `None` where there is no btrfs.
fn look(device: &Path) -> io::Result<Option<Super>> {
    let mut bytes = [0; SUPER_BYTES];
    match File::open(device)?.read_exact_at(&mut bytes, SUPER_AT) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| parse(&bytes)),
    }
}

fn number(device: &Path) -> Option<u64> {
    fs::metadata(device).ok().map(|m| m.rdev())
}

/// Another block device with the same file system id, other than the one with the number of the volume's own backing, which nobody
/// mounts.
pub(super) fn twin_of(device: &Path, backing: Option<u64>) -> Result<Option<PathBuf>, AttachError> {
    let failed = || AttachError::io(device.display());
    let Some(own) = look(device).map_err(failed())? else {
        return Ok(None);
    };
    if own.devices != 1 {
        let many = io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "its btrfs has {} devices; a volume holds one whole file system",
                own.devices
            ),
        );
        return Err(failed()(many));
    }
    let not = [number(device), backing];
    let is_twin = |other: &PathBuf| {
        // One that cannot be read cannot be mounted either.
        !not.contains(&number(other)) && look(other).is_ok_and(|s| s.is_some_and(|s| s.id == own.id))
    };
    Ok(block_devices().into_iter().find(is_twin))
}

/// All block devices with their partitions.
fn block_devices() -> Vec<PathBuf> {
    let named = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for disk in named(Path::new("/sys/block")) {
        let parts = named(&disk).into_iter().filter(|p| p.join("partition").exists());
        for path in parts.chain([disk.clone()]) {
            let is_empty = fs::read_to_string(path.join("size")).is_ok_and(|s| s.trim() == "0");
            if let Some(name) = path.file_name().filter(|_| !is_empty) {
                // Of a slash in a name sysfs makes an exclamation mark.
                all.push(Path::new("/dev").join(name.to_string_lossy().replace('!', "/")));
            }
        }
    }
    all
}

/// Gives the file system on a device an id of its own.
pub(super) fn renew(
    device: &Path,
    stage: &Stage,
    options: Options,
    line: &mut dyn FnMut(String),
) -> Result<(), AttachError> {
    let path = device.display().to_string();
    let found = look(device).map_err(AttachError::io(&path))?;
    if found.is_some_and(|s| s.has_log) {
        stage.replay(Filesystem::Btrfs, device, options)?;
    }
    line(format!("btrfstune -m {path}"));
    must("btrfstune", &["-f", "-m", &path])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_read() {
        let mut b = [0; SUPER_BYTES];
        assert_eq!(parse(&b), None);
        b[0x20..0x30].copy_from_slice(b"sixteen bytes id");
        b[0x40..0x48].copy_from_slice(b"_BHRfS_M");
        b[0x60] = 1;
        b[0x88] = 2;
        let expected = Super {
            id: *b"sixteen bytes id",
            has_log: true,
            devices: 2,
        };
        assert_eq!(parse(&b), Some(expected));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(look(file.path()).unwrap(), None);
        file.as_file().write_all_at(&b, SUPER_AT).unwrap();
        assert!(look(file.path()).unwrap().unwrap().has_log);
        assert!(look(Path::new("/no/such")).is_err());
    }
}
