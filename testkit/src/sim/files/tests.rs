//! Through the mount, as any program uses it.

use super::super::{SimPower, Tear};
use crate::{
    proc::{need_tool, root_for, run},
    with_seeds,
};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file with these bytes, durable, and so is its name.
fn durable(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    sync(path).unwrap();
    sync(path.parent().unwrap()).unwrap();
}

/// Everything in a folder: `None` for folders.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(folder.join(&at)).unwrap() {
            let entry = entry.unwrap();
            let path = at.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                found.insert(path.clone(), None);
                folders.push(path);
            } else {
                found.insert(path.clone(), Some(fs::read(folder.join(&path)).unwrap()));
            }
        }
    }
    found
}

/// What an operation answers, without what differs between file systems.
fn told<T>(result: io::Result<T>) -> Result<(), io::ErrorKind> {
    result.map(drop).map_err(|e| e.kind())
}

/// One random operation, the same in both folders.
fn operation(rng: &mut StdRng) -> impl Fn(&Path) -> Result<(), io::ErrorKind> + use<> {
    let name = |rng: &mut StdRng| {
        let folder = ["", "x", "y"][rng.random_range(0..3)];
        Path::new(folder).join(["a", "b", "c"][rng.random_range(0..3)])
    };
    let (what, one, other) = (rng.random_range(0..12), name(rng), name(rng));
    let (at, len, byte) = (
        rng.random_range(0..20_000),
        rng.random_range(1..9000),
        rng.random::<u8>(),
    );
    move |folder: &Path| {
        let (one, other) = (folder.join(&one), folder.join(&other));
        let open = || OpenOptions::new().write(true).open(&one);
        match what {
            0 | 1 => told(fs::write(&one, vec![byte; len])),
            2 | 3 => told(open().and_then(|f| f.write_all_at(&vec![byte; len], at))),
            4 => told(open().and_then(|f| f.set_len(at))),
            5 => told(fs::remove_file(&one)),
            // From one folder to another is refused, which the other file system does not do.
            6 if one.parent() == other.parent() => told(fs::rename(&one, &other)),
            7 => told(fs::hard_link(&one, &other)),
            8 => told(fs::create_dir(one.parent().unwrap())),
            9 => told(fs::remove_dir(one.parent().unwrap())),
            10 => {
                let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                told(open().and_then(|f| Ok(rustix::fs::fallocate(f, punch, at, len as u64)?)))
            }
            _ => told(sync(&one)),
        }
    }
}

#[test]
fn it_behaves_as_the_file_system_beside_it() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    with_seeds("files: beside", 10, |rng| {
        let (power, beside) = (SimPower::new(), tempfile::tempdir().unwrap());
        let files = power.files("files");
        // A mount point cannot be removed; what is in it can.
        let mut folder = files.folder().join("inner");
        fs::create_dir(&folder).unwrap();
        for folder in [folder.as_path(), beside.path()] {
            fs::write(folder.join("keep"), "so that neither is ever empty").unwrap();
        }
        for _ in 0..3 {
            for n in 0..80 {
                let operation = operation(rng);
                assert_eq!(operation(&folder), operation(beside.path()), "operation {n}");
            }
            assert_eq!(everything(&folder), everything(beside.path()));
            // A killed process leaves everything as it is, and the next one has a mount of its own.
            power.kill(rng);
            let old = std::mem::replace(&mut folder, files.folder().join("inner"));
            assert!(old != folder && fs::write(old.join("a"), "x").is_err());
        }
    });
}

/// A file that was appended to, and overwritten; nothing of it synced since.
#[test]
fn every_kind_of_torn_file_is_drawn() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    const OLD: usize = 1000;
    const NEW: usize = 3000;
    let mut kinds = BTreeMap::new();
    let runs = with_seeds("files: torn", 300, |rng| {
        let power = SimPower::new();
        power.set_tear(Tear::Bit);
        let files = power.files("files");
        let path = files.folder().join("log");
        durable(&path, &[0x0F; OLD]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for at in (OLD..NEW).step_by(500) {
            file.write_all_at(&[0x5A; 500], at as u64).unwrap();
        }
        drop(file);
        power.cut(rng);
        let bytes = fs::read(files.folder().join("log")).unwrap();
        assert_eq!(bytes[..OLD.min(bytes.len())], [0x0F; OLD][..OLD.min(bytes.len())]);
        assert!(bytes.len() >= OLD && bytes.len() <= NEW, "{}", bytes.len());
        let added = &bytes[OLD..];
        let whole = added.iter().take_while(|b| **b == 0x5A).count();
        let kind = match added {
            [] => "nothing",
            _ if added.iter().any(|b| *b != 0 && *b != 0x5A) => "bits that nobody wrote",
            _ if whole == NEW - OLD => "everything",
            _ if whole == added.len() && whole % 500 == 0 => "whole writes",
            _ if whole == added.len() => "a write that ends at any byte",
            _ if added.iter().all(|b| *b == 0) => "a length without bytes",
            _ if added[whole..].iter().all(|b| *b == 0) => "bytes, and then zeroes",
            _ => "later bytes without earlier ones",
        };
        *kinds.entry(kind).or_insert(0) += 1;
    });
    assert!(
        runs < 300 || (kinds.len() == 8 && kinds.values().all(|n| *n > 3)),
        "{kinds:?}"
    );
}

/// Names that were made, replaced, renamed and removed; the bytes of each file are durable, their folder is not.
#[test]
fn names_are_lost_without_a_sync_of_their_folder() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    let mut kinds: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
    let runs = with_seeds("files: names", 150, |rng| {
        let power = SimPower::new();
        let files = power.files("files");
        let folder = files.folder();
        for name in ["replaced", "removed", "from"] {
            durable(&folder.join(name), name.as_bytes());
        }
        fs::create_dir(folder.join("folder")).unwrap();
        for name in ["made", "temporary", "folder/inner"] {
            fs::write(folder.join(name), name).unwrap();
            sync(&folder.join(name)).unwrap();
        }
        sync(&folder.join("folder")).unwrap();
        fs::rename(folder.join("temporary"), folder.join("replaced")).unwrap();
        fs::rename(folder.join("from"), folder.join("to")).unwrap();
        fs::hard_link(folder.join("made"), folder.join("linked")).unwrap();
        fs::remove_file(folder.join("removed")).unwrap();
        power.cut(rng);
        let folder = files.folder();
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let mut count = |kind, new: bool| kinds.entry(kind).or_default()[usize::from(new)] += 1;
        count("made", text("made").is_some_and(|t| t == "made"));
        count("linked", text("linked").is_some_and(|t| t == "made"));
        count("removed", text("removed").is_none());
        count(
            "folder",
            text("folder/inner").is_some_and(|t| t == "folder/inner"),
        );
        let renamed = (text("from"), text("to"));
        assert!(
            renamed.0.is_some() != renamed.1.is_some(),
            "one of both: {renamed:?}"
        );
        count("renamed", renamed.1.is_some());
        match text("replaced").as_deref() {
            Some("temporary") => {
                assert_eq!(text("temporary"), None);
                count("replaced", true);
            }
            Some("replaced") => count("replaced", false),
            other => panic!("a name that is replaced is never gone: {other:?}"),
        }
    });
    let both = kinds.values().all(|[old, new]| *old > 10 && *new > 10);
    assert!(runs < 150 || (kinds.len() == 6 && both), "old and new: {kinds:?}");
}

/// What was synced is there, whatever came after it.
#[test]
fn what_was_synced_is_there() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    let mut lost = 0;
    let runs = with_seeds("files: synced", 40, |rng| {
        let power = SimPower::new();
        power.set_tear([Tear::Whole, Tear::Sector, Tear::Byte, Tear::Bit][rng.random_range(0..4)]);
        let files = power.files("files");
        let mut expected: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for _ in 0..4 {
            let folder = files.folder();
            for _ in 0..rng.random_range(0..6) {
                let name = PathBuf::from(["a", "b", "c"][rng.random_range(0..3)]);
                let (path, partial) = (folder.join(&name), folder.join("partial"));
                let bytes = vec![rng.random(); rng.random_range(0..9000)];
                fs::write(&partial, &bytes).unwrap();
                match rng.random() {
                    true => File::options()
                        .write(true)
                        .open(&partial)
                        .unwrap()
                        .sync_data()
                        .unwrap(),
                    false => sync(&partial).unwrap(),
                }
                fs::rename(&partial, &path).unwrap();
                sync(&folder).unwrap();
                expected.insert(name, bytes);
            }
            // None of this is promised.
            fs::write(folder.join("unsynced"), [1; 100]).unwrap();
            power.cut(rng);
            let folder = files.folder();
            for (name, bytes) in &expected {
                assert!(
                    fs::read(folder.join(name)).unwrap() == *bytes,
                    "{}",
                    name.display()
                );
            }
            lost += u32::from(!folder.join("unsynced").exists());
        }
    });
    assert!(runs < 40 || lost > 15, "{lost}");
}

#[test]
fn a_freeze_strikes_the_nth_sync_of_files_and_folders() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    for n in 1..=4 {
        with_seeds("files: freeze", 5, |rng| {
            let power = SimPower::new();
            let (files, medium) = (power.files("files"), power.medium("m", 512));
            let folder = files.folder();
            let file = File::create(folder.join("a")).unwrap();
            file.write_all_at(b"bytes", 0).unwrap();
            power.freeze_at(n);
            let done = [
                file.sync_data().is_ok(),
                sync(&folder).is_ok(),
                model::ports::Medium::sync(&medium).is_ok(),
            ];
            assert_eq!(done, [n > 1, n > 2, n > 3]);
            assert_eq!((power.syncs(), power.is_off()), (n.min(3), n < 4));
            if n < 4 {
                let failed = file.write_all_at(b"x", 0).unwrap_err();
                assert_eq!(failed.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                assert!(fs::write(folder.join("b"), "").is_err());
                assert!(fs::rename(folder.join("a"), folder.join("b")).is_err());
                assert!(fs::remove_file(folder.join("a")).is_err() && sync(&folder).is_err());
                assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "bytes");
                assert_eq!(power.syncs(), n.min(3), "what follows the freeze is not counted");
            }
            power.cut(rng);
            if n > 2 {
                assert_eq!(fs::read_to_string(files.folder().join("a")).unwrap(), "bytes");
            }
        });
    }
}

/// A disk image of the past, and mounts that go with their power supply.
#[test]
fn an_image_is_put_back_and_nothing_stays_mounted() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    let power = SimPower::new();
    let files = power.files("files");
    let folder = files.folder();
    durable(&folder.join("a"), b"old");
    fs::write(folder.join("b"), "not durable").unwrap();
    let image = power.image();
    durable(&folder.join("a"), b"newer");
    power.put_back(&image);
    let folder = files.folder();
    assert_eq!(
        everything(&folder),
        BTreeMap::from([("a".into(), Some(b"old".to_vec()))])
    );
    drop((power, files));
    assert!(!folder.exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()));
}

/// Maps of memory are files too; `msync` is a sync.
#[test]
fn a_mapped_file_is_written_and_synced() {
    if !root_for("a file system that loses what was not synced") {
        return;
    }
    const WRITE: &str = "import mmap, os, sys\n\
        f = open(sys.argv[1], 'r+b')\n\
        m = mmap.mmap(f.fileno(), 0)\n\
        assert m[:3] == b'old'\n\
        m[4096:4099] = b'new'\n\
        m.flush()\n";
    with_seeds("files: mapped", 5, |rng| {
        let power = SimPower::new();
        let files = power.files("files");
        let path = files.folder().join("a");
        durable(&path, &b"old".repeat(3000));
        let syncs = power.syncs();
        let mut python = Command::new(need_tool("python3"));
        run(python.args(["-c", WRITE]).arg(&path), Duration::from_secs(60)).ok();
        assert_eq!(power.syncs(), syncs + 1);
        power.cut(rng);
        let bytes = fs::read(files.folder().join("a")).unwrap();
        assert!(bytes.len() == 9000 && bytes.starts_with(b"old") && &bytes[4096..4099] == b"new");
    });
}
