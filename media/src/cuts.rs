//! What this crate calls durable is there after a power cut, on the worst file system that POSIX allows (`testkit::SimFiles`).

use super::*;
use rand::{Rng, RngCore};
use testkit::{SimPower, proc::root_for, sim::Tear, with_seeds};

/// Does something that may be cut at any of its syncs, for each of them, and looks at what is there: whether it was done, and the
/// folder. Answers how often it was cut.
fn at_every_sync(
    name: &str,
    before: impl Fn(&Path),
    act: impl Fn(&Path) -> io::Result<()>,
    look: impl Fn(bool, &Path),
) -> u64 {
    let mut cuts = 0;
    if !root_for(name) {
        return cuts;
    }
    with_seeds(name, 6, |rng| {
        for n in 1.. {
            let power = SimPower::new();
            power.set_tear([Tear::Sector, Tear::Byte, Tear::Bit][rng.random_range(0..3)]);
            let files = power.files("files");
            before(&files.folder());
            files.sync();
            power.freeze_at(n);
            let done = act(&files.folder()).is_ok();
            assert_eq!(done, !power.is_off());
            let rng: &mut dyn RngCore = rng;
            power.cut(rng);
            look(done, &files.folder());
            if done {
                break;
            }
            cuts += 1;
        }
    });
    cuts
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let cuts = at_every_sync(
        "media: replace",
        |folder| std::fs::write(folder.join("a"), [1; 5000]).unwrap(),
        |folder| replace_file(&folder.join("a"), &[2; 7000], 0o600),
        |done, folder| {
            let found = std::fs::read(folder.join("a")).unwrap();
            assert!(
                found == [2; 7000] || (!done && found == [1; 5000]),
                "done: {done}"
            );
        },
    );
    println!("{cuts} cuts");
}

#[test]
fn a_file_that_was_made_keeps_its_name_and_length() {
    let cuts = at_every_sync(
        "media: make",
        |_| {},
        |folder| FileMedium::open(&folder.join("a"), Create::Preallocated(100_000))?.sync(),
        |done, folder| {
            if done {
                assert_eq!(std::fs::read(folder.join("a")).unwrap(), [0; 100_000]);
            }
            // What a cut left is made whole by the next process.
            let made = FileMedium::open(&folder.join("a"), Create::Preallocated(100_000)).unwrap();
            assert_eq!(made.len(), 100_000);
        },
    );
    println!("{cuts} cuts");
}

/// Folders that are there when a process looks may be there for that process alone.
#[test]
fn folders_that_were_made_keep_their_names() {
    for was_there in [false, true] {
        let cuts = at_every_sync(
            "media: folders",
            |_| {},
            |root| {
                if was_there {
                    std::fs::create_dir(root.join("a"))?;
                }
                make_folders(root, &root.join("a/b/c"))?;
                std::fs::write(root.join("a/b/c/d"), "bytes")?;
                File::open(root.join("a/b/c/d"))?.sync_all()?;
                sync_parent(&root.join("a/b/c/d"))
            },
            |done, root| {
                if done {
                    assert_eq!(std::fs::read(root.join("a/b/c/d")).unwrap(), b"bytes");
                }
            },
        );
        println!("{cuts} cuts");
    }
}
