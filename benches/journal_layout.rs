//! The journal's layout, end to end and with real syncs: our tail file ingested at seal (L4) beside every frame as a synced
//! batch through RocksDB's write-ahead log (L2). Prints each round's rates and the ratio's median; asserts nothing.
//!
//! `make bench-layout` runs it; `BENCH_MIB=1024` changes the amount. The design decided for L4 by an earlier figure
//! (`docs/ARCHITECTURE.md`, "Journal layout"); this keeps the decision honest.

use bytes::Bytes;
use journal::{Draft, Journal, NewGeneration, Options, Parts, SealFlags};
use model::{
    GenId, RecordBody, Timestamp, VolumeIndex,
    ports::{Batch, Family, Store},
};
use std::{path::Path, sync::Arc, time::Instant};

const LFC_BYTES: u64 = 64 << 20;
const ROUNDS: usize = 5;

/// One group commit: `writes` writes of `bytes` each.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    writes: usize,
    bytes: usize,
}

fn drafts(load: Load, data: &Bytes, at: u64) -> Vec<Draft> {
    (0..load.writes)
        .map(|i| {
            let offset = (at + i as u64) * load.bytes as u64 % (1 << 30);
            let body = RecordBody::Write {
                offset,
                data: data.clone(),
            };
            Draft {
                volume: VolumeIndex(0),
                body,
            }
        })
        .collect()
}

/// MiB a second of client bytes through the journal as it is.
fn l4(dir: &Path, load: Load, data: &Bytes, groups: u64) -> anyhow::Result<f64> {
    let parts = Parts::open_dir(dir, LFC_BYTES)?;
    let options = Options {
        lfc_size: LFC_BYTES,
        lfc_max_age_ns: None,
        ..Options::default()
    };
    let (journal, _) = Journal::open(parts, options)?;
    let generation = journal.create_generation(NewGeneration::own(GenId(1), None))?;
    journal.append(
        vec![Draft {
            volume: VolumeIndex(0),
            body: generation.birth(),
        }],
        Timestamp::now(),
    )?;
    let bytes = (load.writes * load.bytes) as u64;
    let started = Instant::now();
    for group in 0..groups {
        let now = Timestamp::now();
        if journal.wants_seal(bytes, now) {
            journal.seal(SealFlags::default())?;
        }
        journal.append(drafts(load, data, group * load.writes as u64), now)?;
        journal.sync()?;
    }
    journal.seal(SealFlags::default())?;
    journal.ingest_sealed()?;
    Ok((groups * bytes) as f64 / f64::from(1 << 20) / started.elapsed().as_secs_f64())
}

/// The same bytes as one synced batch a group through the write-ahead log.
fn l2(dir: &Path, load: Load, data: &Bytes, groups: u64) -> anyhow::Result<f64> {
    let store: Arc<dyn Store> = Parts::open_dir(dir, LFC_BYTES)?.store;
    let frame = data.repeat(load.writes);
    let started = Instant::now();
    for group in 0..groups {
        let mut batch = Batch::default();
        batch.put(Family::Redo, group.to_be_bytes(), frame.clone());
        store.commit(batch)?;
    }
    Ok((groups * frame.len() as u64) as f64 / f64::from(1 << 20) / started.elapsed().as_secs_f64())
}

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` passes --test: a bench is not a test.
    if std::env::args().any(|a| a == "--test") {
        return Ok(());
    }
    let mib: u64 = std::env::var("BENCH_MIB")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(256);
    let loads = [
        Load {
            name: "16 x 4 KiB a group",
            writes: 16,
            bytes: 4096,
        },
        Load {
            name: "1 x 1 MiB a group",
            writes: 1,
            bytes: 1 << 20,
        },
    ];
    for load in loads {
        let data = Bytes::from((0..load.bytes).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>());
        let groups = (mib << 20) / (load.writes * load.bytes) as u64;
        let mut ratios = Vec::new();
        for round in 1..=ROUNDS {
            let scratch = tempfile::tempdir()?;
            let (ours, wal) = (
                l4(&scratch.path().join("l4"), load, &data, groups)?,
                l2(&scratch.path().join("l2"), load, &data, groups)?,
            );
            println!(
                "{}: round {round}: L4 {ours:.0} MiB/s, L2 {wal:.0} MiB/s, ratio {:.2}",
                load.name,
                ours / wal
            );
            ratios.push(ours / wal);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{}: {mib} MiB, every group synced: L4/L2 median {:.2} ({:.2} to {:.2})",
            load.name,
            ratios[ROUNDS / 2],
            ratios[0],
            ratios[ROUNDS - 1]
        );
    }
    Ok(())
}
