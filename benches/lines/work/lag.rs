//! Line 9: how far the peer is behind.

use super::Line;
use crate::{
    bench::{Bench, timed},
    common::REC,
    fio::{Amount, Job},
    nodes::Plan,
    outcome::{Aim::AtMost, Outcome},
    processors::Processors,
    stats::{Samples, percentile},
    writer::Places,
};
use control::{Command, Event, Options, Outcome as Answer, Question, Reply, Request, client::Listener};
use model::BLOCK_SIZE;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use testkit::nbd::{Client, Request as Write};

pub fn lines() -> Vec<Line> {
    vec![Line {
        number: 9,
        work: "lag: from the answer to a write to durable at the peer",
        does: "A client writes 4 KiB blocks at half the rate that fio reached on the same nodes a moment before (line 2), and notes \
               when each was answered; the recovery node is asked all the time how far it has received durably. \
               The question takes its time, so the figures are upper bounds; `resolution` is the median between two \
               answers. Idle: a single write, then nothing, ten times. Meanwhile somebody writes 64 KiB over a file of its own every 100 ms and \
               syncs it: two such syncs, one behind the other, are the least that the lag can be.",
        run: lag,
        bound: "The processors: 1.9 of two are busy at half of line 2's load, while a sync of somebody else takes half a millisecond, so it is not the disk. A record waits for its turn \
            in five threads one after the other (connection, sync, link, receiver, its sync). With the priority of write-back alone lowered by 10 the median fell from 13 to 8 ms, and \
            the 99th percentile did not; syncs no more often than every 2 ms changed neither.",
    }]
}

/// How far the peer was, and when that was known.
struct Seen(Vec<(Instant, u64)>);

impl Seen {
    /// Milliseconds from a moment until the peer was known to have this position.
    fn lag_ms(&self, answered: Instant, seq: u64) -> f64 {
        let at = self.0.partition_point(|(_, received)| *received < seq);
        let (known, _) = self.0.get(at).expect("the watch ends when all is received");
        known.saturating_duration_since(answered).as_secs_f64() * 1e3
    }

    fn resolution_ms(&self) -> f64 {
        let mut gaps: Vec<f64> = self
            .0
            .windows(2)
            .map(|pair| (pair[1].0 - pair[0].0).as_secs_f64() * 1e3)
            .collect();
        percentile(&mut gaps, 0.5)
    }
}

struct Deaf;

impl Listener for Deaf {
    fn event(&mut self, _: Event) {}
    fn ask(&mut self, _: &Question) -> bool {
        false
    }
}

/// What the recovery node has durably received.
fn received(socket: &Path) -> u64 {
    let status = Request::new(Command::Status { context: Some(1) }, Options::default());
    let answer = control::client::call(socket, &status, &mut Deaf).expect("the node answers");
    match answer {
        Answer {
            result: Ok(Reply::Status(status)),
            ..
        } => status.contexts[0].cursors.received,
        other => panic!("{other:?}"),
    }
}

/// Writes at a rate for so long; when each write was answered, by its number.
fn paced(client: &mut Client, rate: f64, seconds: u64, places: Places) -> Vec<Instant> {
    let mut rng = StdRng::seed_from_u64(rate.to_bits());
    let began = Instant::now();
    let mut answered: Vec<Option<Instant>> = Vec::new();
    let mut first = None;
    let take = |client: &mut Client, first: u64, answered: &mut Vec<Option<Instant>>| {
        let done = client.complete().expect("the server answers").expect("in flight");
        done.result.expect("a write succeeds");
        answered[usize::try_from(done.cookie - first).expect("small")] = Some(done.at);
    };
    while began.elapsed() < Duration::from_secs(seconds) {
        let due = (began.elapsed().as_secs_f64() * rate) as usize;
        while answered.len() < due && client.in_flight() < 16 {
            let offset = places.any(&mut rng) * BLOCK_SIZE;
            let data = vec![answered.len() as u8; 4096];
            let cookie = client
                .submit(&Write::Write {
                    offset,
                    data,
                    fua: false,
                })
                .expect("the server takes writes");
            first.get_or_insert(cookie);
            answered.push(None);
        }
        match client.in_flight() {
            0 => thread::sleep(Duration::from_micros(200)),
            _ => take(client, first.unwrap_or(0), &mut answered),
        }
    }
    while client.in_flight() > 0 {
        take(client, first.unwrap_or(0), &mut answered);
    }
    answered
        .into_iter()
        .map(|at| at.expect("all are answered"))
        .collect()
}

/// Bytes of a write of somebody else.
const OWN_BYTES: usize = 64 << 10;

fn own_sync(file: &File) {
    file.write_all_at(&[9; OWN_BYTES], 0).expect("it can be written");
    file.sync_data().expect("it can be synced");
}

fn lag(bench: &Bench) -> Outcome {
    let volume = bench.scale.volume;
    let nodes = Plan::new("lag", volume).full();
    let places = Places {
        blocks: volume / BLOCK_SIZE,
        tenths: 10,
    };
    let socket = nodes.pair.control(REC);
    let job = Job::new("randwrite", 4096, 16, volume, Amount::Bytes(volume));
    let [mut p50, mut p99, mut most, mut idle]: [Samples; 4] = Default::default();
    let [mut sync_p50, mut sync_p99]: [Samples; 2] = Default::default();
    let own = bench.scratch.image("own", OWN_BYTES as u64);
    let own = OpenOptions::new().write(true).open(own).expect("it was made");
    // Its blocks are there before any is measured.
    own_sync(&own);
    let (mut rates, mut resolutions) = (Vec::new(), Vec::new());
    let mut busy = Processors::default();
    for round in 0..bench.scale.rounds {
        let rate = job.seeded(round).run(&bench.scratch, &nodes.uri()).iops / 2.0;
        nodes.rest();
        bench.quiet();
        let base = nodes.head();
        let syncs = Mutex::new(Vec::new());
        let mut client = nodes.client();
        let seen = Mutex::new(Vec::new());
        let over = AtomicBool::new(false);
        let (answered, lonely) = thread::scope(|scope| {
            scope.spawn(|| {
                // Until all was received, so that every write has its lag.
                while !over.load(Ordering::Acquire) {
                    let received = received(&socket);
                    seen.lock()
                        .expect("nobody panics with it")
                        .push((Instant::now(), received));
                    thread::sleep(Duration::from_micros(500));
                }
            });
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    let (seconds, ()) = timed(|| own_sync(&own));
                    syncs.lock().expect("nobody panics with it").push(seconds * 1e3);
                    thread::sleep(Duration::from_millis(100));
                }
            });
            let answered = busy.during(&nodes, || paced(&mut client, rate, bench.scale.seconds, places));
            let mut head = base + answered.len() as u64;
            let is_received = |head: u64| {
                let seen = seen.lock().expect("nobody panics with it");
                seen.last().is_some_and(|(_, received)| *received >= head)
            };
            let wait_for = |head: u64| {
                testkit::proc::until("what was written", crate::common::LONG, || {
                    is_received(head).then_some(())
                })
            };
            wait_for(head);
            let mut lonely = Vec::new();
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(50));
                client
                    .write(0, &[round as u8; 4096], false)
                    .expect("a write succeeds");
                head += 1;
                lonely.push((Instant::now(), head));
                wait_for(head);
            }
            over.store(true, Ordering::Release);
            (answered, lonely)
        });
        let mut syncs = syncs.into_inner().expect("nobody panics with it");
        sync_p50.0.push(percentile(&mut syncs, 0.5));
        sync_p99.0.push(percentile(&mut syncs, 0.99));
        let seen = Seen(seen.into_inner().expect("nobody panics with it"));
        let mut lags: Vec<f64> = answered
            .iter()
            .zip(base + 1..)
            .map(|(at, seq)| seen.lag_ms(*at, seq))
            .collect();
        p50.0.push(percentile(&mut lags, 0.5));
        p99.0.push(percentile(&mut lags, 0.99));
        most.0.push(percentile(&mut lags, 1.0));
        let alone = lonely.iter().map(|(at, seq)| seen.lag_ms(*at, *seq));
        idle.0.push(alone.fold(0.0, f64::max));
        rates.push(answered.len() as f64 / bench.scale.seconds as f64);
        resolutions.push(seen.resolution_ms());
        nodes.rest();
    }
    let mut out = Outcome::default();
    out.ran(&job);
    let figures: [(&str, f64, Samples); 3] = [
        ("p50", 5.0, p50),
        ("p99", 50.0, p99),
        ("idle, the longest of ten", 1000.0, idle),
    ];
    for (part, most, samples) in figures {
        out.figure(part, "–", AtMost(most), " ms", samples);
    }
    out.series("the longest under load", "ms", most);
    out.series("rate", "writes a second", Samples(rates));
    out.series("resolution", "ms", Samples(resolutions));
    out.series("a sync of somebody else's 64 KiB, p50", "ms", sync_p50);
    out.series("… p99", "ms", sync_p99);
    busy.tell("full path", &mut out);
    out
}
