//! The tree as a mounted file system.
//!
//! The kernel sends one request after the other, and caches names and bytes as long as it likes: nobody else changes them.

use super::{
    super::power::WeakPower,
    tree::{Kind, ROOT, Tree},
};
use fuser::{
    FileAttr, FileType, Filesystem, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, consts::FOPEN_KEEP_CACHE,
};
use model::ByteRange;
use parking_lot::Mutex;
use rustix::{
    fs::{self, FallocateFlags, RenameFlags},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long the kernel may believe what it knows.
const FOR_GOOD: Duration = Duration::from_secs(1 << 20);
const BLOCK: u32 = 4096;
/// Blocks that are said to be there and free.
const BLOCKS: u64 = 1 << 24;

/// Answers the kernel.
pub(super) struct Server {
    /// Not kept alive by its own file system.
    power: WeakPower,
    tree: Arc<Mutex<Tree>>,
    /// What was in the folders that are open when they were opened, and the number of the next.
    listings: BTreeMap<u64, Vec<(u64, FileType, OsString)>>,
    next: u64,
}

type Done<T = ()> = Result<T, Errno>;

/// An offset or a length.
fn amount(n: i64) -> Done<u64> {
    u64::try_from(n).map_err(|_| Errno::INVAL)
}

fn attributes(tree: &Tree, number: u64) -> Done<FileAttr> {
    let (node, size) = (tree.node(number)?, tree.len(number)?);
    let kind = kind(&node.kind);
    Ok(FileAttr {
        ino: number,
        size,
        blocks: size.div_ceil(512),
        atime: node.changed,
        mtime: node.changed,
        ctime: node.changed,
        crtime: node.changed,
        kind,
        perm: node.permissions,
        nlink: node.links,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

fn kind(kind: &Kind) -> FileType {
    match kind {
        Kind::Folder(_) => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Socket => FileType::Socket,
    }
}

/// The permissions of what is made.
fn permissions(mode: u32, umask: u32) -> u16 {
    u16::try_from(mode & !umask & 0o7777).unwrap_or_default()
}

/// Whatever happens, there is an answer: who waits for one in vain cannot even be killed.
fn answered<T>(act: impl FnOnce() -> Option<Done<T>>) -> Done<T> {
    let acted = catch_unwind(AssertUnwindSafe(act));
    acted.ok().flatten().unwrap_or(Err(Errno::IO))
}

impl Server {
    pub(super) fn new(power: WeakPower, tree: Arc<Mutex<Tree>>) -> Self {
        Self {
            power,
            tree,
            listings: BTreeMap::new(),
            next: 1,
        }
    }

    /// Reads, while the process that mounted this runs.
    fn look<T>(&self, act: impl FnOnce(&mut Tree) -> Done<T>) -> Done<T> {
        answered(|| self.power.reading(|| act(&mut self.tree.lock())))
    }

    /// Changes something, while there is power.
    fn change<T>(&self, act: impl FnOnce(&mut Tree) -> Done<T>) -> Done<T> {
        answered(|| self.power.writing(|| act(&mut self.tree.lock())))
    }

    fn sync(&self, node: u64) -> Done {
        answered(|| self.power.syncing(|| self.tree.lock().sync(node)))
    }

    fn made(&self, folder: u64, name: &OsStr, kind: Kind, permissions: u16) -> Done<FileAttr> {
        self.change(|tree| {
            let node = tree.make(folder, name, kind, permissions)?;
            attributes(tree, node)
        })
    }
}

/// Answers with what was done, or why it was not.
macro_rules! answer {
    ($reply:ident, $done:expr, |$value:pat_param| $answer:expr) => {
        match $done {
            Ok($value) => $answer,
            Err(why) => $reply.error(why.raw_os_error()),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&mut self, _: &Request<'_>, folder: u64, name: &OsStr, reply: ReplyEntry) {
        let done = self.look(|tree| attributes(tree, tree.find(folder, name)?));
        answer!(reply, done, |found| reply.entry(&FOR_GOOD, &found, 0));
    }

    fn getattr(&mut self, _: &Request<'_>, node: u64, reply: ReplyAttr) {
        let done = self.look(|tree| attributes(tree, node));
        answer!(reply, done, |found| reply.attr(&FOR_GOOD, &found));
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        node: u64,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<u64>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<u32>,
        reply: ReplyAttr,
    ) {
        let done = self.change(|tree| {
            if let Some(mode) = mode {
                tree.node_mut(node)?.permissions = permissions(mode, 0);
            }
            if let Some(size) = size {
                tree.set_len(node, size)?;
            }
            attributes(tree, node)
        });
        answer!(reply, done, |found| reply.attr(&FOR_GOOD, &found));
    }

    fn mknod(
        &mut self,
        _: &Request<'_>,
        folder: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        let done = match fs::FileType::from_raw_mode(mode) {
            fs::FileType::Socket => self.made(folder, name, Kind::Socket, permissions(mode, umask)),
            _ => Err(Errno::PERM),
        };
        answer!(reply, done, |made| reply.entry(&FOR_GOOD, &made, 0));
    }

    fn mkdir(
        &mut self,
        _: &Request<'_>,
        folder: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let kind = Kind::Folder(Default::default());
        let done = self.made(folder, name, kind, permissions(mode, umask));
        answer!(reply, done, |made| reply.entry(&FOR_GOOD, &made, 0));
    }

    fn unlink(&mut self, _: &Request<'_>, folder: u64, name: &OsStr, reply: ReplyEmpty) {
        let done = self.change(|tree| tree.remove(folder, name, false));
        answer!(reply, done, |()| reply.ok());
    }

    fn rmdir(&mut self, _: &Request<'_>, folder: u64, name: &OsStr, reply: ReplyEmpty) {
        let done = self.change(|tree| tree.remove(folder, name, true));
        answer!(reply, done, |()| reply.ok());
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        folder: u64,
        name: &OsStr,
        to_folder: u64,
        to: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        let flags = RenameFlags::from_bits_retain(flags);
        let done = match RenameFlags::NOREPLACE.contains(flags) {
            true => self.change(|tree| tree.rename(folder, name, to_folder, to, flags.is_empty())),
            false => Err(Errno::INVAL),
        };
        answer!(reply, done, |()| reply.ok());
    }

    fn link(&mut self, _: &Request<'_>, file: u64, folder: u64, name: &OsStr, reply: ReplyEntry) {
        let done = self.change(|tree| {
            tree.link(file, folder, name)?;
            attributes(tree, file)
        });
        answer!(reply, done, |found| reply.entry(&FOR_GOOD, &found, 0));
    }

    fn open(&mut self, _: &Request<'_>, file: u64, _flags: i32, reply: ReplyOpen) {
        let done = self.look(|tree| tree.opened(file));
        answer!(reply, done, |()| reply.opened(0, FOPEN_KEEP_CACHE));
    }

    fn create(
        &mut self,
        _: &Request<'_>,
        folder: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let kind = Kind::File(Default::default());
        let done = self.change(|tree| {
            let file = tree.make(folder, name, kind, permissions(mode, umask))?;
            tree.opened(file)?;
            attributes(tree, file)
        });
        answer!(reply, done, |made| reply.created(
            &FOR_GOOD,
            &made,
            0,
            0,
            FOPEN_KEEP_CACHE
        ));
    }

    fn release(
        &mut self,
        _: &Request<'_>,
        file: u64,
        _fh: u64,
        _flags: i32,
        _lock_owner: Option<u64>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // What a process leaves open it closes when it ends, whatever has become of the power; by then it may be the tree of
        // the next boot, in which nothing is open any more.
        let _ = self.look(|tree| {
            tree.closed(file);
            Ok(())
        });
        reply.ok();
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        file: u64,
        _fh: u64,
        at: i64,
        len: u32,
        _flags: i32,
        _lock_owner: Option<u64>,
        reply: ReplyData,
    ) {
        let done = amount(at).and_then(|at| self.look(|tree| tree.read(file, at, len.into())));
        answer!(reply, done, |bytes| reply.data(&bytes));
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        file: u64,
        _fh: u64,
        at: i64,
        data: &[u8],
        _write_flags: u32,
        _flags: i32,
        _lock_owner: Option<u64>,
        reply: ReplyWrite,
    ) {
        let done = amount(at).and_then(|at| self.change(|tree| tree.write(file, at, data)));
        // A request has at most 16 MiB.
        answer!(reply, done, |()| reply
            .written(u32::try_from(data.len()).unwrap_or(u32::MAX)));
    }

    fn fallocate(
        &mut self,
        _: &Request<'_>,
        file: u64,
        _fh: u64,
        at: i64,
        len: i64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        let done = amount(at).and_then(|at| {
            let range = ByteRange::at(at, amount(len)?);
            if !known.contains(mode) {
                return Err(Errno::OPNOTSUPP);
            }
            self.change(|tree| {
                if mode.contains(FallocateFlags::PUNCH_HOLE) {
                    tree.zero(file, range)
                } else if !mode.contains(FallocateFlags::KEEP_SIZE) && range.end > tree.len(file)? {
                    tree.set_len(file, range.end)
                } else {
                    // Room that is kept for later cannot be seen.
                    Ok(())
                }
            })
        });
        answer!(reply, done, |()| reply.ok());
    }

    fn flush(&mut self, _: &Request<'_>, _file: u64, _fh: u64, _lock_owner: u64, reply: ReplyEmpty) {
        // Closing makes nothing durable.
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, file: u64, _fh: u64, _datasync: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(file), |()| reply.ok());
    }

    fn fsyncdir(&mut self, _: &Request<'_>, folder: u64, _fh: u64, _datasync: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(folder), |()| reply.ok());
    }

    fn opendir(&mut self, _: &Request<'_>, folder: u64, _flags: i32, reply: ReplyOpen) {
        let done = self.look(|tree| {
            let listed = tree.list(folder)?.into_iter();
            listed
                .map(|(node, name)| Ok((node, kind(&tree.node(node)?.kind), name)))
                .collect()
        });
        answer!(reply, done, |listing| {
            self.next += 1;
            self.listings.insert(self.next, listing);
            reply.opened(self.next, 0);
        });
    }

    fn readdir(&mut self, _: &Request<'_>, folder: u64, fh: u64, at: i64, mut reply: ReplyDirectory) {
        let Some(listing) = self.listings.get(&fh) else {
            return reply.error(Errno::BADF.raw_os_error());
        };
        let dots = [(folder, "."), (ROOT, "..")].map(|(n, name)| (n, FileType::Directory, OsStr::new(name)));
        let named = listing
            .iter()
            .map(|(node, kind, name)| (*node, *kind, name.as_os_str()));
        let all = dots.into_iter().chain(named).zip(1..);
        for ((node, kind, name), next) in all.skip(usize::try_from(at).unwrap_or(0)) {
            if reply.add(node, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&mut self, _: &Request<'_>, _folder: u64, fh: u64, _flags: i32, reply: ReplyEmpty) {
        self.listings.remove(&fh);
        reply.ok();
    }

    fn statfs(&mut self, _: &Request<'_>, _node: u64, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK, 255, BLOCK);
    }
}
