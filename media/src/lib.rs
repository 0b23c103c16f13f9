//! Files and block devices as [`Medium`]: the one place that reads, writes, syncs and punches real storage.
//!
//! Volumes, tail files, superblocks and overlays are all a [`FileMedium`]; they differ only in how they are opened.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

#[cfg(test)]
mod cuts;

use model::{BLOCK_SIZE, ByteRange, ports::Medium};
use rustix::{
    fs::{Advice, FallocateFlags, FlockOperation, SeekFrom},
    io::ReadWriteFlags,
};
use std::{
    error::Error,
    fmt,
    fs::{File, OpenOptions, Permissions},
    io,
    num::NonZeroU64,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A regular file or a block device, opened for this process alone.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
    path: PathBuf,
    /// Only ever more.
    len: AtomicU64,
    is_device: bool,
}

/// How a missing or shorter file is made to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// The file must exist; its length is taken as it is.
    Never,
    /// Created with holes at this length; an existing file must have at least it.
    Sparse(u64),
    /// Created with its blocks allocated and written, so that overwriting it in place changes no file system metadata.
    Preallocated(u64),
}

impl FileMedium {
    /// Opens `path` read-write and locks it against a second Backstay process.
    ///
    /// # Errors
    /// With the path in the message: when it cannot be opened, is locked, is too short, or is no file or block device.
    pub fn open(path: &Path, create: Create) -> io::Result<Self> {
        Self::open_inner(path, create)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    fn open_inner(path: &Path, create: Create) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let (file, fresh) = match (options.open(path), create) {
            (Ok(file), _) => (file, false),
            (Err(e), Create::Sparse(_) | Create::Preallocated(_)) if e.kind() == io::ErrorKind::NotFound => {
                (options.create_new(true).open(path)?, true)
            }
            (Err(e), _) => return Err(e),
        };
        lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let is_device = is_device(&file)?;
        let mut len = length(&file, is_device)?;
        let wanted = match create {
            Create::Never => 0,
            Create::Sparse(n) | Create::Preallocated(n) => n,
        };
        // A file that a crash left short of its length was never used: lengths are set and synced before first use.
        if len < wanted {
            if is_device || (len > 0 && !fresh && matches!(create, Create::Sparse(_))) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("has {len} bytes, {wanted} are needed"),
                ));
            }
            if let Create::Preallocated(_) = create {
                let zeroes = vec![0u8; 1 << 20];
                let mut at = 0;
                while at < wanted {
                    let n = (wanted - at).min(zeroes.len() as u64);
                    file.write_all_at(&zeroes[..usize::try_from(n).unwrap_or(zeroes.len())], at)?;
                    at += n;
                }
            }
            file.set_len(wanted)?;
            file.sync_all()?;
            sync_parent(path)?;
            len = wanted;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            len: AtomicU64::new(len),
            is_device,
        })
    }

    /// Opens `path` to be read alone. Others may read it at the same time; whoever has it to write, or wants it, is kept out.
    /// A write through it fails.
    ///
    /// # Errors
    /// As [`FileMedium::open`].
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        let open = || {
            let file = File::open(path)?;
            lock(&file, FlockOperation::NonBlockingLockShared)?;
            let is_device = is_device(&file)?;
            let len = length(&file, is_device)?;
            Ok(Self {
                file,
                path: path.to_owned(),
                len: AtomicU64::new(len),
                is_device,
            })
        };
        open().map_err(|e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    fn check(&self, at: u64, len: u64) -> io::Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{}: {len} bytes at {at} pass the end at {}",
                    self.path.display(),
                    self.len()
                ),
            )),
        }
    }

    /// Fills `buf` if memory has all of it; false when the device must be asked, or something is wrong with it.
    fn read_cached(&self, at: u64, buf: &mut [u8]) -> bool {
        let len = buf.len();
        let mut all = [io::IoSliceMut::new(buf)];
        self.check(at, len as u64).is_ok()
            && rustix::io::preadv2(&self.file, &mut all, at, ReadWriteFlags::NOWAIT) == Ok(len)
    }

    /// A hint that is not taken costs time or memory, nothing else.
    fn advise(&self, at: u64, len: u64, advice: Advice) {
        if let Some(len) = NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, at, Some(len), advice);
        }
    }

    fn name(&self, what: &str, at: u64, e: &io::Error) -> io::Error {
        let place = format!("{}: {what} at {at}", self.path.display());
        let kind = e.kind();
        // The system's word stays to be asked for: whether a block cannot be read is told by it.
        let source = match e.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(kind, e.to_string()),
        };
        io::Error::new(kind, Failed { place, source })
    }
}

/// A failure and its place.
#[derive(Debug)]
struct Failed {
    place: String,
    source: io::Error,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.source)
    }
}

impl Error for Failed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Bytes that are free for us on the file system of a path.
///
/// # Errors
/// When it does not say.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether it is a block device; all else but a file is refused.
fn is_device(file: &File) -> io::Result<bool> {
    let meta = file.metadata()?;
    let is_device = meta.file_type().is_block_device();
    if !is_device && !meta.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a file nor a block device",
        ));
    }
    Ok(is_device)
}

fn length(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device {
        return Ok(rustix::fs::seek(file, SeekFrom::End(0))?);
    }
    Ok(file.metadata()?.len())
}

/// How long a lock that is held may be let go of.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_EVERY: Duration = Duration::from_millis(10);

/// Locks a file. Where a context changes its role within one process, a reader of the volume that was closed may be just
/// leaving it, and a child process that is being made has it until it runs its program: neither is another user of it.
fn lock(file: &File, how: FlockOperation) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(file, how) {
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_EVERY)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "in use by another process",
                ));
            }
            done => return Ok(done?),
        }
    }
}

impl Medium for FileMedium {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(at, buf.len() as u64)?;
        self.file
            .read_exact_at(buf, at)
            .map_err(|e| self.name("read", at, &e))
    }

    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        let is_one = reads.len() == 1;
        let mut absent: Vec<_> = reads
            .iter_mut()
            .filter_map(|(at, buf)| (is_one || !self.read_cached(*at, buf)).then_some((*at, buf)))
            .collect();
        if absent.len() > 1 {
            for (at, buf) in &absent {
                self.advise(*at, buf.len() as u64, Advice::WillNeed);
            }
        }
        absent.iter_mut().try_for_each(|(at, buf)| self.read_at(*at, buf))
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check(at, data.len() as u64)?;
        self.file
            .write_all_at(data, at)
            .map_err(|e| self.name("write", at, &e))
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        self.check(at, len)?;
        if len == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // The file's last block is a short one: to its end, or the file system has to read it to keep what is not there.
        let whole = match at + len == self.len() && !self.is_device {
            true => (at + len).next_multiple_of(BLOCK_SIZE) - at,
            false => len,
        };
        if rustix::fs::fallocate(&self.file, punch, at, whole).is_ok() {
            return Ok(());
        }
        let zeroes = vec![0u8; usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20)];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeroes.len() as u64);
            let part = &zeroes[..usize::try_from(n).unwrap_or(zeroes.len())];
            self.file
                .write_all_at(part, at + done)
                .map_err(|e| self.name("zero", at + done, &e))?;
            done += n;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| self.name("sync", 0, &e))
    }

    fn extend(&self, len: u64) -> io::Result<()> {
        let there = length(&self.file, self.is_device).map_err(|e| self.name("length", 0, &e))?;
        if there < len {
            if self.is_device {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "{}: the device has {there} bytes, {len} are needed: make it larger first",
                        self.path.display()
                    ),
                ));
            }
            let longer = self.file.set_len(len).and_then(|()| self.file.sync_all());
            longer.map_err(|e| self.name("extend", there, &e))?;
        }
        self.len.fetch_max(there.max(len), Ordering::AcqRel);
        Ok(())
    }

    fn forget(&self, at: u64, len: u64) {
        self.advise(at, len, Advice::DontNeed);
    }

    fn next_data(&self, at: u64) -> io::Result<Option<ByteRange>> {
        let len = self.len();
        if at >= len {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some(ByteRange { start: at, end: len }));
        }
        // The descriptor's own offset is used by nothing else, so concurrent seeks cannot disturb reads and writes.
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(_) => {
                return Ok(Some(ByteRange { start: at, end: len }));
            }
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(len);
        Ok((start < len).then_some(ByteRange {
            start,
            end: end.min(len),
        }))
    }
}

/// Makes the creation or renaming of `path` durable by syncing its folder.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Makes `folder` and those above it, down from `root`, that are missing. The names of all of them are durable when this returns,
/// also of those that were there: whoever made them may have been killed before it came so far.
///
/// # Errors
/// When one cannot be made, opened or synced.
pub fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let made = folder.ancestors().take_while(|above| *above != root);
    made.take_while(|above| above.starts_with(root))
        .try_for_each(sync_parent)
}

/// Replaces `path` by `bytes` so that after a crash either the old or the new file is there, whole.
///
/// # Errors
/// When a step fails; the old file is then still there.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let _ = std::fs::remove_file(&partial);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)?;
    // Whatever the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    sync_parent(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_file_reads_back_and_knows_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let m = FileMedium::open(&dir.path().join("v"), Create::Sparse(1 << 20)).unwrap();
        assert_eq!(m.next_data(0).unwrap(), None);
        m.write_at(65_536, b"abc").unwrap();
        let data = m.next_data(0).unwrap().unwrap();
        assert!(data.start <= 65_536 && data.end > 65_538);
        let mut buf = [9u8; 5];
        m.read_at(65_535, &mut buf).unwrap();
        assert_eq!(&buf, b"\0abc\0");
        m.write_zeroes(65_536, 2).unwrap();
        m.read_at(65_535, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0c\0");
        m.sync().unwrap();
    }

    /// What memory has, what only the disk has, and what lies in a hole, one over the other.
    #[test]
    fn many_reads_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let size = 1 << 20;
        let m = FileMedium::open(&dir.path().join("v"), Create::Sparse(size)).unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
        m.write_at(1000, &bytes).unwrap();
        m.sync().unwrap();
        m.forget(0, 150_000);
        let mut whole = vec![0; size as usize];
        whole[1000..301_000].copy_from_slice(&bytes);
        let mut buffers: Vec<_> = (0..100u64)
            .map(|n| {
                (
                    n * 9_973 % (size - 5_000),
                    vec![9; 1 + (n * 131 % 5_000) as usize],
                )
            })
            .collect();
        let mut reads: Vec<_> = buffers.iter_mut().map(|(at, buf)| (*at, &mut buf[..])).collect();
        m.read_each(&mut reads).unwrap();
        for (at, buf) in &buffers {
            assert!(*buf == whole[*at as usize..][..buf.len()], "{at}");
        }
        m.read_each(&mut []).unwrap();
        let (mut a, mut b) = ([0; 10], [0; 10]);
        let e = m.read_each(&mut [(0, &mut a), (size - 9, &mut b)]).unwrap_err();
        assert!(e.to_string().contains("pass the end"), "{e}");
    }

    #[test]
    fn a_file_that_is_just_being_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        let first = FileMedium::open(&path, Create::Sparse(4096)).unwrap();
        let (began, begun) = std::sync::mpsc::channel();
        let second = std::thread::spawn(move || {
            began.send(()).unwrap();
            FileMedium::open(&path, Create::Never).map(|_| ())
        });
        begun.recv().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn refuses_past_the_end_a_second_opener_and_a_short_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let m = FileMedium::open(&path, Create::Sparse(4096)).unwrap();
        assert!(
            m.write_at(4095, b"ab")
                .unwrap_err()
                .to_string()
                .contains("pass the end")
        );
        assert!(m.read_at(u64::MAX, &mut [0]).is_err());
        assert!(
            FileMedium::open(&path, Create::Never)
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
        drop(m);
        assert!(
            FileMedium::open(&path, Create::Sparse(8192))
                .unwrap_err()
                .to_string()
                .contains("are needed")
        );
    }
}
