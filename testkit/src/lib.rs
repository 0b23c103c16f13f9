//! Test kit of Backstay: simulated disks that lose power, an oracle, and helpers for end-to-end tests.
//!
//! # The fault seam
//!
//! Everything that Backstay keeps goes through two ports, [`model::ports::Medium`] and [`model::ports::Store`]. The twins in
//! [`sim`] stand behind these ports in memory and hang on one [`SimPower`], which counts every action that makes something
//! durable (a sync, a commit, an ingest). A crash test is then always the same five steps:
//!
//! 1. **Write.** Build the thing under test on `power.medium(name, len)` and `power.store(name)` and drive it with a
//!    [`workload`]; feed the [`Oracle`] each record as it is acknowledged.
//! 2. **Freeze at N.** `power.freeze_at(n)` lets the n-th durable action, and all after it, fail. A loop over n visits every
//!    state that a crash can leave behind: between two durable actions nothing but unsynced writes differs, and these are
//!    drawn at the cut. `power.syncs()` after a run without a freeze says how far n goes.
//! 3. **Cut.** `power.cut(rng)` draws what the disks hold: of the unsynced writes any subset, some torn; of a struck commit
//!    all or nothing; of dropped ranges some back again. Or `power.kill(rng)`, as `kill -9`: all is still readable, nothing
//!    more is durable, and a later cut may still take it. Handles of the dead process answer errors from now on, so stray
//!    threads cannot change the past.
//! 4. **Reopen.** Open the same names again and recover.
//! 5. **Ask the oracle.** `oracle.prefixes(..)` says at which positions the recovered volumes can stand: there must be one,
//!    and the last of them must not be before what had been flushed. `oracle.compare(seq, ..)` checks a view.
//!
//! ```
//! use model::{Timestamp, VolumeIndex, WriteSeq, ports::Medium};
//! use testkit::{Oracle, SimPower, with_seeds};
//!
//! with_seeds("doc", 20, |rng| {
//!     for n in 1..=3 {
//!         let power = SimPower::new();
//!         let volume = power.medium("volume", 8192);
//!         let mut oracle = Oracle::new(&[8192]);
//!         let mut flushed = WriteSeq(0);
//!         power.freeze_at(n);
//!         for seq in 1..=3 {
//!             let at = (seq - 1) * 512;
//!             oracle.write(WriteSeq(seq), Timestamp(seq), VolumeIndex(0), at, &[seq as u8; 512]);
//!             if volume.write_at(at, &[seq as u8; 512]).and_then(|()| volume.sync()).is_err() {
//!                 break;
//!             }
//!             flushed = WriteSeq(seq);
//!         }
//!         power.cut(rng);
//!         let volume = volume.reopen();
//!         let mut read = |_, at, out: &mut [u8]| volume.read_at(at, out);
//!         let spans = oracle.prefixes(&mut read).expect("a prefix of what was written");
//!         assert!(spans.last().expect("never empty").1 >= flushed);
//!     }
//! });
//! ```
//!
//! Beside the cut: [`SimMedium::fail`] for EIO at the n-th operation, [`SimMedium::lose_at_sync`] for a sync that fails and
//! takes its writes with it, [`SimMedium::flip_bit`] for damage at rest, [`SimStore::lose_commits`] for a write-ahead log
//! that forgets silently, [`SimPower::put_back`] for a machine that is an older one again, and [`SimMedium::hold`] for races: it stops a thread in the middle of a write or sync, so that a
//! test can look in between without sleeping.
//!
//! [`SimStore::set_full`] lets a store have no room for containers. What the twins do not show: slow disks, full volumes, and metadata of file systems (a medium is there once it was opened).
//!
//! [`SimFiles`] is the seam one level down, for what opens files by itself, as RocksDB and whole daemons do: a mounted file system
//! on the same power supply, with the same five steps. Reopening is opening in [`SimFiles::folder`] again.
//!
//! # End to end
//!
//! [`proc`] starts and kills real nodes and cleans up after them, on hosts of namespaces ([`proc::Hosts`]) where a test is about
//! hosts, and types at terminals ([`proc::Pty`]); [`proxy`] is a bad link between them; [`nbd`] writes to them and keeps the ledger of what was
//! promised; [`block`] makes blocks that say what they are, so that histories of gigabytes need no copy. [`golden`] compares
//! formats with files. [`with_seeds`] runs random tests so that a failure can be played again.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod block;
pub mod golden;
pub mod nbd;
pub mod oracle;
pub mod proc;
pub mod proxy;
pub mod seeds;
pub mod sim;
pub mod workload;

pub use oracle::Oracle;
pub use seeds::with_seeds;
pub use sim::{SimFiles, SimMedium, SimPower, SimStore};
