//! What tells that the file or device behind a volume is not the one that was there before, or holds nothing any more.
//!
//! **Overview.** A state map, an overlay and the cursors of a journal speak of the bytes of one file or device. Where it was
//! lost and another took its place (a disk that was replaced, a volume that was made anew, a file that came out of a backup),
//! all they say is wrong, silently. So [`identity_of`] what a volume stands on is noted in its context's row when it is
//! opened, and [`compare`]d when that matters.
//!
//! **What is looked at.** Of a file the inode number and when it was born: a number alone is given to the next file once the
//! first is gone. Of a device the name that stays with it wherever it is attached (the mapper's uuid, a disk's world-wide id
//! or serial number), else its number. Device numbers change with the order in which disks are found at a boot, so a
//! different one alone proves nothing. Of both the size: it may grow; what became shorter has lost something.
//!
//! **What it does not do.** It reads no data: an older state of the same file or device (a storage snapshot that was rolled
//! back, bytes that were copied over it) is the same to it. A file that was emptied and filled again is the same too.
//!
//! The text of an identity is kept in durable rows: `file ino=7 born=1700000000.000000001 dev=8:1 size=4096 held=4096`,
//! `device dev=8:17 size=1048576 name=wwid:eui.0025`, with what is unknown left out.

use rustix::fs::{AtFlags, CWD, FileType, SeekFrom, Statx, StatxFlags, seek, statx};
use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Bytes of a device's name that are kept.
const NAME_BYTES_MAX: usize = 256;

/// A device number, major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u32, pub u32);

/// What a volume stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeIdentity {
    /// A regular file.
    File {
        /// Its inode.
        ino: u64,
        /// When it was made: seconds and nanoseconds; none where the file system does not know.
        born: Option<(i64, u32)>,
        /// The device of its file system.
        dev: Number,
        /// Its length.
        size: u64,
        /// Bytes that are really stored, beside holes.
        held: u64,
    },
    /// A block device.
    Device {
        /// Its number.
        dev: Number,
        /// Its length.
        size: u64,
        /// The name that it has wherever it is attached, if it has one.
        name: Option<String>,
    },
}

/// What a comparison of two identities says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it was, and may have grown.
    Same,
    /// It is something else, or has become shorter.
    Replaced,
    /// It is the same file, and all that it held is gone. An application that discards a whole volume leaves that too.
    Emptied,
    /// It may be what it was; nothing proves or refutes it.
    Unknown,
}

/// What a volume's path leads to.
///
/// # Errors
/// When it leads to nothing, or to neither a file nor a block device.
pub fn identity_of(path: &Path) -> io::Result<VolumeIdentity> {
    let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let found = statx(CWD, path, AtFlags::empty(), mask).map_err(|e| at(e.into()))?;
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => Ok(of_file(&found)),
        FileType::BlockDevice => {
            let dev = Number(found.stx_rdev_major, found.stx_rdev_minor);
            Ok(VolumeIdentity::Device {
                dev,
                size: device_size(path).map_err(at)?,
                name: device_name(dev),
            })
        }
        _ => Err(at(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a file nor a block device",
        ))),
    }
}

fn of_file(found: &Statx) -> VolumeIdentity {
    let born = &found.stx_btime;
    let knows_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    VolumeIdentity::File {
        ino: found.stx_ino,
        born: knows_birth.then_some((born.tv_sec, born.tv_nsec)),
        dev: Number(found.stx_dev_major, found.stx_dev_minor),
        size: found.stx_size,
        held: found.stx_blocks.saturating_mul(512),
    }
}

fn device_size(path: &Path) -> io::Result<u64> {
    Ok(seek(File::open(path)?, SeekFrom::End(0))?)
}

/// The lasting name of a device as the kernel shows it, with the kind of name in front.
fn device_name(Number(major, minor): Number) -> Option<String> {
    let folder = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    name_in(&folder)
}

/// The lasting name of the device with this folder below `/sys/devices`.
fn name_in(folder: &Path) -> Option<String> {
    if let Some(part) = line(&folder.join("partition")) {
        let disk = name_in(folder.parent()?)?;
        return Some(format!("{disk}/{part}"));
    }
    let kinds = [
        ("dm", "dm/uuid"),
        ("md", "md/uuid"),
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("serial", "serial"),
        ("serial", "device/serial"),
    ];
    let named = kinds
        .iter()
        .find_map(|(kind, file)| Some(format!("{kind}:{}", line(&folder.join(file))?)));
    named.or_else(|| {
        // A loop device is what it stands on, whatever its number.
        let file = PathBuf::from(line(&folder.join("loop/backing_file"))?);
        match identity_of(&file).ok()? {
            VolumeIdentity::File { ino, born, .. } => {
                let (seconds, ns) = born?;
                Some(format!("loop:{ino}@{seconds}.{ns:09}"))
            }
            VolumeIdentity::Device { .. } => None,
        }
    })
}

/// A short file's text without white space around, and nothing that would break the text of an identity.
fn line(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    (!text.is_empty() && text.len() <= NAME_BYTES_MAX).then_some(text)
}

/// What it means that `known` was noted once and `found` is there now.
#[must_use]
pub fn compare(known: &VolumeIdentity, found: &VolumeIdentity) -> Verdict {
    use VolumeIdentity::{Device, File};
    if found.size() < known.size() {
        return Verdict::Replaced;
    }
    let verdict = match (known, found) {
        (File { .. }, Device { .. }) | (Device { .. }, File { .. }) => Verdict::Replaced,
        (
            File { ino, born, dev, .. },
            File {
                ino: ino_now,
                born: born_now,
                dev: dev_now,
                ..
            },
        ) => same_file((*ino, *born, *dev), (*ino_now, *born_now, *dev_now)),
        (
            Device { dev, size, name },
            Device {
                dev: dev_now,
                size: size_now,
                name: name_now,
            },
        ) => match (name, name_now) {
            (Some(name), Some(name_now)) if name == name_now => Verdict::Same,
            (Some(_), Some(_)) => Verdict::Replaced,
            _ if dev == dev_now && size == size_now => Verdict::Same,
            _ => Verdict::Unknown,
        },
    };
    if verdict == Verdict::Same && known.held() > 0 && found.held() == 0 {
        return Verdict::Emptied;
    }
    verdict
}

type FileIs = (u64, Option<(i64, u32)>, Number);

fn same_file((ino, born, dev): FileIs, (ino_now, born_now, dev_now): FileIs) -> Verdict {
    if ino != ino_now {
        return Verdict::Replaced;
    }
    match (born, born_now) {
        (Some(born), Some(born_now)) if born == born_now => Verdict::Same,
        (Some(_), Some(_)) => Verdict::Replaced,
        _ if dev == dev_now => Verdict::Same,
        _ => Verdict::Unknown,
    }
}

impl VolumeIdentity {
    /// Its length.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } | Self::Device { size, .. } => *size,
        }
    }

    /// Bytes that it stores; a device stores all of them.
    const fn held(&self) -> u64 {
        match self {
            Self::File { held, .. } => *held,
            Self::Device { size, .. } => *size,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

impl FromStr for Number {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self(major.parse().map_err(drop)?, minor.parse().map_err(drop)?))
    }
}

impl fmt::Display for VolumeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File {
                ino,
                born,
                dev,
                size,
                held,
            } => {
                write!(f, "file ino={ino}")?;
                if let Some((seconds, ns)) = born {
                    write!(f, " born={seconds}.{ns:09}")?;
                }
                write!(f, " dev={dev} size={size} held={held}")
            }
            Self::Device { dev, size, name } => {
                write!(f, "device dev={dev} size={size}")?;
                name.iter().try_for_each(|name| write!(f, " name={name}"))
            }
        }
    }
}

/// A text is no identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no identity of a volume's file or device")]
pub struct NoIdentity(String);

impl FromStr for VolumeIdentity {
    type Err = NoIdentity;

    fn from_str(text: &str) -> Result<Self, NoIdentity> {
        let parsed = match text.split_once(' ') {
            Some(("file", rest)) => parse_file(rest),
            Some(("device", rest)) => parse_device(rest),
            _ => None,
        };
        parsed.ok_or_else(|| NoIdentity(text.to_owned()))
    }
}

/// The value of a `key=value` word.
fn value<'a>(word: Option<&'a str>, key: &str) -> Option<&'a str> {
    word?.strip_prefix(key)?.strip_prefix('=')
}

fn parse_file(text: &str) -> Option<VolumeIdentity> {
    let mut words = text.split(' ').peekable();
    let ino = value(words.next(), "ino")?.parse().ok()?;
    let mut born = None;
    if let Some(at) = value(words.peek().copied(), "born") {
        let (seconds, ns) = at.split_once('.')?;
        born = Some((seconds.parse().ok()?, ns.parse().ok()?));
        words.next();
    }
    let found = VolumeIdentity::File {
        ino,
        born,
        dev: value(words.next(), "dev")?.parse().ok()?,
        size: value(words.next(), "size")?.parse().ok()?,
        held: value(words.next(), "held")?.parse().ok()?,
    };
    words.next().is_none().then_some(found)
}

fn parse_device(text: &str) -> Option<VolumeIdentity> {
    // The name comes last and may hold spaces.
    let mut words = text.splitn(3, ' ');
    let dev = value(words.next(), "dev")?.parse().ok()?;
    let size = value(words.next(), "size")?.parse().ok()?;
    let name = match words.next() {
        Some(word) => Some(value(Some(word), "name")?.to_owned()),
        None => None,
    };
    Some(VolumeIdentity::Device { dev, size, name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Emptied, Replaced, Same, Unknown};
    use std::{fs, os::unix::fs::FileExt};

    fn file(ino: u64, born: Option<(i64, u32)>, minor: u32) -> VolumeIdentity {
        VolumeIdentity::File {
            ino,
            born,
            dev: Number(8, minor),
            size: 4096,
            held: 4096,
        }
    }

    fn device(minor: u32, size: u64, name: Option<&str>) -> VolumeIdentity {
        VolumeIdentity::Device {
            dev: Number(254, minor),
            size,
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn i9_every_pair_of_identities_has_its_verdict() {
        let (b1, b2) = (Some((1_700_000_000, 1)), Some((1_700_000_000, 2)));
        let empty = VolumeIdentity::File {
            ino: 7,
            born: b1,
            dev: Number(8, 1),
            size: 4096,
            held: 0,
        };
        let longer = VolumeIdentity::File {
            ino: 7,
            born: b1,
            dev: Number(8, 1),
            size: 8192,
            held: 4096,
        };
        for (known, found, expected) in [
            (file(7, b1, 1), file(7, b1, 1), Same),
            // The number of a file system's device is another after some boots.
            (file(7, b1, 1), file(7, b1, 2), Same),
            // The inode of a file that is gone is given to the next.
            (file(7, b1, 1), file(7, b2, 1), Replaced),
            (file(7, b1, 1), file(8, b1, 1), Replaced),
            (file(7, None, 1), file(7, None, 1), Same),
            (file(7, None, 1), file(7, b1, 1), Same),
            (file(7, None, 1), file(8, None, 1), Replaced),
            (file(7, None, 1), file(7, None, 2), Unknown),
            (file(7, b1, 1), longer.clone(), Same),
            (longer, file(7, b1, 1), Replaced),
            (file(7, b1, 1), empty.clone(), Emptied),
            (empty.clone(), file(7, b1, 1), Same),
            (empty.clone(), empty, Same),
            (file(7, b1, 1), device(1, 4096, None), Replaced),
            (device(1, 4096, None), file(7, b1, 1), Replaced),
            (device(1, 4096, Some("dm:a")), device(1, 4096, Some("dm:a")), Same),
            (device(1, 4096, Some("dm:a")), device(2, 8192, Some("dm:a")), Same),
            (
                device(1, 4096, Some("dm:a")),
                device(1, 4096, Some("dm:b")),
                Replaced,
            ),
            (
                device(1, 8192, Some("dm:a")),
                device(1, 4096, Some("dm:a")),
                Replaced,
            ),
            (device(1, 4096, None), device(1, 4096, None), Same),
            (device(1, 4096, None), device(1, 4096, Some("dm:a")), Same),
            (device(1, 4096, None), device(2, 4096, None), Unknown),
            (device(1, 4096, Some("dm:a")), device(2, 4096, None), Unknown),
            (device(1, 4096, None), device(1, 8192, None), Unknown),
        ] {
            assert_eq!(compare(&known, &found), expected, "{known} -> {found}");
        }
    }

    #[test]
    fn texts_are_pinned_and_read_back() {
        for (text, identity) in [
            (
                "file ino=7 born=1700000000.000000001 dev=8:1 size=4096 held=4096",
                file(7, Some((1_700_000_000, 1)), 1),
            ),
            ("file ino=7 dev=8:1 size=4096 held=4096", file(7, None, 1)),
            ("device dev=254:3 size=9", device(3, 9, None)),
            (
                "device dev=254:3 size=9 name=serial:A B=1",
                device(3, 9, Some("serial:A B=1")),
            ),
        ] {
            assert_eq!(identity.to_string(), text);
            assert_eq!(text.parse(), Ok(identity));
        }
        for bad in [
            "",
            "file",
            "file ino=7",
            "file ino=x dev=8:1 size=1 held=1",
            "file ino=7 born=1 dev=8:1 size=1 held=1",
            "file ino=7 dev=8 size=1 held=1",
            "file ino=7 dev=8:1 size=1 held=1 more",
            "device dev=1:1",
            "device dev=1:1 size=1 serial=a",
            "socket ino=7",
        ] {
            assert_eq!(bad.parse::<VolumeIdentity>(), Err(NoIdentity(bad.to_owned())));
        }
    }

    #[test]
    fn i9_a_real_file_is_told_from_its_successors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let make = |bytes: &[u8]| {
            let file = fs::File::create(&path).unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(bytes, 4096).unwrap();
            file.sync_all().unwrap();
        };
        make(&[7; 8192]);
        let known = identity_of(&path).unwrap();
        let now = || compare(&known, &identity_of(&path).unwrap());
        assert_eq!(now(), Same);
        // Written to, and moved to another name and back.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[9; 4096], 65_536).unwrap();
        file.sync_all().unwrap();
        fs::rename(&path, dir.path().join("aside")).unwrap();
        fs::rename(dir.path().join("aside"), &path).unwrap();
        assert_eq!(now(), Same);
        // The name is a link now: the file is the same.
        fs::rename(&path, dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), &path).unwrap();
        assert_eq!(now(), Same);
        fs::remove_file(&path).unwrap();
        fs::rename(dir.path().join("real"), &path).unwrap();

        file.set_len(4096).unwrap();
        assert_eq!(now(), Replaced, "shorter");
        file.set_len(0).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(now(), Emptied);

        fs::remove_file(&path).unwrap();
        let gone = identity_of(&path).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert!(gone.to_string().contains("data"), "{gone}");
        make(&[7; 8192]);
        assert_eq!(now(), Replaced, "made anew with the same bytes");
        assert_eq!(
            identity_of(dir.path()).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn devices_are_named_by_what_stays_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("sda");
        let partition = disk.join("sda2");
        fs::create_dir_all(&partition).unwrap();
        fs::write(partition.join("partition"), "2\n").unwrap();
        assert_eq!(name_in(&disk), None);
        assert_eq!(name_in(&partition), None);
        fs::write(disk.join("serial"), "  \n").unwrap();
        assert_eq!(name_in(&disk), None, "an empty serial number names nothing");
        fs::write(disk.join("serial"), "WD 12\u{1}\n").unwrap();
        assert_eq!(name_in(&disk).unwrap(), "serial:WD 12 ");
        fs::write(disk.join("wwid"), "eui.0025\n").unwrap();
        assert_eq!(name_in(&disk).unwrap(), "wwid:eui.0025");
        assert_eq!(name_in(&partition).unwrap(), "wwid:eui.0025/2");
        fs::create_dir(disk.join("dm")).unwrap();
        fs::write(disk.join("dm/uuid"), "LVM-abc\n").unwrap();
        assert_eq!(name_in(&disk).unwrap(), "dm:LVM-abc");

        let looped = dir.path().join("loop0");
        fs::create_dir_all(looped.join("loop")).unwrap();
        let file = dir.path().join("image");
        fs::write(&file, "x").unwrap();
        fs::write(looped.join("loop/backing_file"), file.to_str().unwrap()).unwrap();
        let first = name_in(&looped);
        if let VolumeIdentity::File { born: Some(_), .. } = identity_of(&file).unwrap() {
            assert!(first.as_ref().unwrap().starts_with("loop:"));
            fs::remove_file(&file).unwrap();
            fs::write(&file, "x").unwrap();
            assert_ne!(name_in(&looped), first);
        } else {
            assert_eq!(first, None);
        }
    }
}
