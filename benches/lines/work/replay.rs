//! Lines 14 and 15: redo over a base, a failover restore, and how soon an application goes on.

use super::Line;
use crate::{
    bench::{Bench, each, timed, write_noise},
    common::{LONG, PROD, REC},
    fio::{Amount, Job},
    nodes::{DATA, Plan, done},
    outcome::{Aim::AtLeast, Aim::AtMost, Outcome},
    peers::Peer,
    stats::Samples,
    writer::{Places, history},
};
use bytes::Bytes;
use journal::{Draft, Journal, NewGeneration, Options, Parts, SealFlags};
use media::{Create, FileMedium};
use model::{BLOCK_SIZE, GenId, RecordBody, Timestamp, VolumeIndex, ports::Medium};
use rand::{Rng, SeedableRng, rngs::StdRng};
use snapshot::Volumes;
use std::{fs, path::Path, process::Command, sync::Arc};
use testkit::proc::{need_tool, until};

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            number: 14,
            work: "replaying redo; failover restore",
            does: "Replay: a journal of 4 KiB records at random places, ingested, is laid over a volume by the function that a production \
                   starts with after a crash (`applying::acting::replay`), and the volume synced. Against `nbd-trplay` with the \
                   log that `nbd-server` wrote of the same amount by fio, in blocks of 4 KiB, and a sync; both over the \
                   same image. Restore: the `scrt_ra -F` command, from its start to its end, back over a history of which \
                   many records hit the same blocks, against `dd` of the distinct bytes in block order over a file that has them, with fdatasync.",
            run: replay,
            bound: "Replay: each block is written once, so there is nothing to coalesce, and both end with the same `fdatasync` of the same blocks. Where a disk takes 2 GiB/s (`dd`) \
                nbd-trplay comes to 0.17 GiB/s and ten times that is a plain copy. Of ours a third is spent in pwrite(2), a seventh in BLAKE3 and CRC, and reading and checking goes on beside it. \
                Restore: for 256 MiB that differ, undo and volume are read, undo of the restore itself (the way back) and the volume are written, and each 32 MiB of it is synced before the next; `dd` writes a \
                quarter of that. One core spends 0.55 s on finding what differs, the other 0.7 s on writing (a quarter of it zstd over noise, a seventh fdatasync), of 1.0 s.",
        },
        Line {
            number: 15,
            work: "failover restore, then failover, to the first write accepted",
            does: "A sparse volume of 100 GiB; production is killed; on the recovery node `scrt_ra -F` to a mark before the last \
                   minute of writing, `rtdr failover`, then an NBD client whose first write is answered.",
            run: failover,
            bound: "",
        },
    ]
}

const LFC: u64 = 64 << 20;

/// Fills a journal with so many bytes of records at random blocks.
fn fill(dir: &Path, volume: u64, bytes: u64) -> anyhow::Result<()> {
    let journal = open(dir)?;
    let generation = journal.create_generation(NewGeneration::own(GenId(1), None))?;
    let draft = |body| Draft {
        volume: VolumeIndex(0),
        body,
    };
    journal.append(vec![draft(generation.birth())], Timestamp::now())?;
    let mut rng = StdRng::seed_from_u64(14);
    let mut data = vec![0; 4096];
    rng.fill(&mut data[..]);
    let data = Bytes::from(data);
    for _ in 0..bytes / BLOCK_SIZE / 16 {
        let records = (0..16).map(|_| {
            let offset = rng.random_range(0..volume / BLOCK_SIZE) * BLOCK_SIZE;
            draft(RecordBody::Write {
                offset,
                data: data.clone(),
            })
        });
        let now = Timestamp::now();
        if journal.wants_seal(16 * 4096, now) {
            journal.seal(SealFlags::default())?;
            journal.ingest_sealed()?;
        }
        journal.append(records.collect(), now)?;
    }
    journal.sync()?;
    journal.seal(SealFlags::default())?;
    journal.ingest_sealed()?;
    Ok(())
}

fn open(dir: &Path) -> anyhow::Result<Journal> {
    let options = Options {
        lfc_size: LFC,
        lfc_max_age_ns: None,
        ..Options::default()
    };
    Ok(Journal::open(Parts::open_dir(dir, LFC)?, options)?.0)
}

/// MiB a second of our replay.
fn replayed(dir: &Path, image: &Path, bytes: u64) -> anyhow::Result<f64> {
    let journal = open(dir)?;
    let medium = FileMedium::open(image, Create::Never)?;
    let len = medium.len();
    let mut volumes = Volumes::new();
    volumes.insert(VolumeIndex(0), "data", Arc::new(medium), len)?;
    let (seconds, records) = timed(|| backstay::applying::acting::replay(&journal, &volumes));
    anyhow::ensure!(records? >= bytes / BLOCK_SIZE, "not all was replayed");
    Ok((bytes >> 20) as f64 / seconds)
}

fn replay(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let image = bench.image(volume);
    let datalog = bench.scratch.join("replay.datalog");
    let serving = Peer::Datalog.start(bench, &image);
    Job::new("randwrite", 4096, 16, volume, Amount::Bytes(volume)).run(&bench.scratch, &serving.uri);
    serving.end_keeping_log(&datalog);
    let journal = bench.scratch.folder("replay.journal");
    let runs = bench.rounds(bench.scale.rounds, 2, |who, _| {
        if who == 0 {
            // A replay moves the journal's cursor: each has its own.
            let _ = fs::remove_dir_all(&journal);
            fill(&journal, volume, volume).expect("a journal can be filled");
            bench.quiet();
            return replayed(&journal, &image, volume).expect("it can be replayed");
        }
        let mut trplay = Command::new(need_tool("nbd-trplay"));
        trplay
            .args(["-b", "4096", "-i"])
            .arg(&image)
            .arg("-l")
            .arg(&datalog);
        let (seconds, said) = timed(|| {
            let said = trplay.output().expect("nbd-trplay runs");
            let file = fs::File::open(&image).expect("it is there");
            file.sync_data().expect("it can be synced");
            String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned()
        });
        assert!(
            said.contains(&format!("total {} blocks", volume / BLOCK_SIZE)),
            "{said}"
        );
        (volume >> 20) as f64 / seconds
    });
    let rate = |who: usize| each(&runs[who], |r| *r);
    let mut out = Outcome::default();
    out.ratio("replay", "nbd-trplay", AtLeast(10.0), rate(0).over(&rate(1)));
    out.series("replay", "MiB/s", rate(0));
    out.series("nbd-trplay", "MiB/s", rate(1));
    let _ = (fs::remove_dir_all(&journal), fs::remove_file(&datalog));
    restore(bench, &mut out);
    out
}

fn restore(bench: &Bench, out: &mut Outcome) {
    let [bytes, distinct] = bench.scale.restore;
    let keys = format!(
        "rollback_window = \"24h\"\njournal_limit = \"{}\"\n",
        6 * bytes + (4 << 30)
    );
    let nodes = Plan {
        keys: &keys,
        ..Plan::new("restore", bench.scale.volume)
    }
    .full();
    let first = nodes.head();
    // As few of each ten blocks as will do, so that they lie apart.
    let tenths = (10 * distinct).div_ceil(bench.scale.volume);
    let places = Places {
        blocks: 10 * distinct / tenths / BLOCK_SIZE,
        tenths,
    };
    history(&mut nodes.client(), places, bytes, 1);
    nodes.rest();
    nodes.pair.drain();
    let over = bench.scratch.join("dd");
    write_noise(&over, distinct, 15);
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    let target = format!("seq:{first}");
    for _ in 0..bench.scale.few_rounds {
        bench.quiet();
        let (seconds, _) = timed(|| nodes.on_recovery(&["scrt_ra", "-qC", "1", "-F", "--at", &target]));
        ours.0.push(seconds);
        nodes.pair.cli(REC, &["scrt_ra", "-qC", "1", "--undo"]).ok();
        bench.quiet();
        let from = bench.image(bench.scale.volume);
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", from.display()))
            .arg(format!("of={}", over.display()));
        dd.args(["bs=1M", "conv=fdatasync,notrunc", "iflag=count_bytes"])
            .arg(format!("count={distinct}"));
        theirs.0.push(timed(|| done(&mut dd)).0);
    }
    out.ratio(
        &format!(
            "restore over {} MiB of history, {} MiB distinct: time",
            bytes >> 20,
            distinct >> 20
        ),
        "dd of the distinct bytes",
        AtMost(2.0),
        ours.over(&theirs),
    );
    out.series("restore", "s", ours);
    out.series("dd", "s", theirs);
}

fn failover(bench: &Bench) -> Outcome {
    const SPARSE: u64 = 100 << 30;
    let image = bench.scratch.image("sparse", SPARSE);
    let bytes = bench.scale.restore[0];
    let mut times = Samples::default();
    // Most of each is the hour of journal before it.
    for round in 0..bench.scale.few_rounds.min(2) {
        let nodes = Plan {
            image: Some(&image),
            ..Plan::new("failover", SPARSE)
        }
        .full_of_nothing();
        let places = Places {
            blocks: SPARSE / BLOCK_SIZE,
            tenths: 10,
        };
        history(&mut nodes.client(), places, bytes - bytes / 60, 1 + round as u64);
        nodes.rest();
        let seq = nodes.head();
        history(&mut nodes.client(), places, bytes / 60, 100 + round as u64);
        nodes.rest();
        bench.quiet();
        nodes.pair.kill9(PROD);
        let target = format!("seq:{seq}");
        let (seconds, ()) = timed(|| {
            // Refused for the moment in which the end of production is not known there.
            until("the restore", LONG, || {
                let restore = ["scrt_ra", "-qC", "1", "-F", "--at", &target];
                (nodes.pair.cli(REC, &restore).code == 0).then_some(())
            });
            nodes.on_recovery(&["rtdr", "-qC", "1", "failover"]);
            let mut client = nodes.pair.open(REC, DATA);
            client
                .write(0, &[1; 4096], true)
                .expect("the first write is answered");
        });
        times.0.push(seconds);
    }
    let mut out = Outcome::default();
    out.figure("", "–", AtMost(2.0), " s", times);
    out.remark(format!(
        "the hour of journal is {} MiB of 4 KiB writes all over the volume, written as fast as it goes; the last sixtieth is taken back",
        bytes >> 20
    ));
    out
}
