//! When production answers: modes `mwc` and `sync`, the high-water mark of `async`, and what a lost peer does to each (R2, R3, R17).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/load.rs"]
mod load;
#[path = "faults/world.rs"]
mod world;

use common::{LONG, PROD, Pair, REC, Setup, number};
use model::WriteSeq;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};
use testkit::{
    nbd::Error,
    proc::until,
    proxy::{Proxy, Way, Weather},
    with_seeds,
};
use world::{VOLUMES, World};

const BLOCK: usize = 4096;
/// In which what must not happen would have happened.
const A_WHILE: Duration = Duration::from_millis(400);
const STALLED: Weather = Weather {
    delay: Duration::ZERO,
    rate: 0,
    chunk: 0,
    corrupted: 0,
    doubled: 0,
    swapped: 0,
    stalled: true,
    passes: 0,
};

/// How many times as many views a check takes.
fn factor() -> usize {
    1
}

/// A consistent pair with these keys, whose link goes through a proxy.
fn pair(name: &str, keys: &'static str) -> (Pair, Proxy) {
    let setup = Setup {
        context: keys,
        ..Setup::volumes(&VOLUMES)
    };
    let pair = Pair::stopped(name, &setup);
    let proxy = pair.proxied(REC, 1).pop().unwrap();
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    (pair, proxy)
}

/// What `status` says of how production answers now, if that is not what its mode says.
fn mode_now(pair: &Pair) -> Option<String> {
    pair.status(PROD)["mode_now"].as_str().map(str::to_owned)
}

fn in_step(pair: &Pair) {
    until("the peer to be in step", LONG, || {
        mode_now(pair).is_none().then_some(())
    });
}

/// One write by a client of its own; what became of it, once that is known.
fn write(pair: &Pair, block: usize) -> Receiver<Result<(), Error>> {
    let mut client = pair.open(PROD, "c1/data");
    client.set_patience(LONG).unwrap();
    let (told, result) = channel();
    thread::spawn(move || told.send(client.write((block * BLOCK) as u64, &[7; BLOCK], false)));
    result
}

fn waits(result: &Receiver<Result<(), Error>>) {
    assert!(
        matches!(result.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout)),
        "it was answered without the peer"
    );
}

/// The peer's words are held up on their way. In `async` that is nothing to the application; in the other modes it is answered
/// once they are there, and not because the replica has the record.
#[test]
fn r17_sync_and_mwc_wait_for_the_peers_word_and_async_does_not() {
    for (name, keys) in [
        ("async", "lfc_size = \"2M\"\n"),
        (
            "mwc",
            "lfc_size = \"2M\"\nmode = \"mwc\"\non_link_loss = \"block\"\n",
        ),
        (
            "sync",
            "lfc_size = \"2M\"\nmode = \"sync\"\non_link_loss = \"block\"\n",
        ),
    ] {
        let (pair, link) = pair(&format!("r17-{name}"), keys);
        assert_eq!(pair.status(PROD)["mode"], name);
        in_step(&pair);
        write(&pair, 0).recv_timeout(LONG).unwrap().unwrap();
        link.set(&[Way::Back], STALLED);
        let head = pair.cursor(PROD, "appended").next();
        let result = write(&pair, 1);
        until("the replica to have it", LONG, || {
            (pair.cursor(REC, "received") >= head).then_some(())
        });
        if name != "async" {
            waits(&result);
            link.calm();
        }
        result.recv_timeout(LONG).unwrap().unwrap();
        link.calm();
        pair.waits(PROD, "drained");
    }
}

/// Production is killed under load, again and again: what it had answered is at the replica.
#[test]
fn r2_nothing_answered_in_step_is_lost_with_production() {
    for (name, keys) in [
        ("mwc", "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nmode = \"mwc\"\n"),
        (
            "sync",
            "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nmode = \"sync\"\n",
        ),
    ] {
        let (pair, _link) = pair(&format!("r2-{name}"), keys);
        let mut world = World::new(pair);
        with_seeds(name, 1, |rng| {
            for n in 0..6 {
                let why = format!("{name}, kill {n}");
                in_step(&world.pair);
                let lasts = Duration::from_millis(rng.random_range(50..500));
                let (_, wrote) = world.while_writing(rng, |pair, _| {
                    thread::sleep(lasts);
                    pair.kill9(PROD);
                });
                assert!(wrote.is_err(), "{why}: it was killed");
                let answered = world.load.answered();
                let received = world.pair.cursor(REC, "received");
                assert!(
                    received >= answered,
                    "{why}: {answered} was answered, {received} is there"
                );
                world.load.disconnect();
                world.pair.start(PROD);
                let head = world.pair.cursor(PROD, "appended");
                world.load.settle_killed(head, &why);
                world.load.follow(&world.pair, PROD);
                world.settle(&why);
            }
            world.check(rng);
        });
    }
}

/// Without its peer production goes on in the modes that wait for it, counts what that lacks, and says so; and waits again when it
/// is there.
#[test]
fn r2_a_lost_peer_is_counted_and_waited_for_again() {
    let (pair, link) = pair("away", "lfc_size = \"2M\"\nmode = \"sync\"\n");
    in_step(&pair);
    link.refuse(true);
    link.cut();
    until("production to say so", LONG, || {
        (mode_now(&pair)? == "async, rec is away").then_some(())
    });
    for block in 0..5 {
        write(&pair, block).recv_timeout(LONG).unwrap().unwrap();
    }
    assert_eq!(number(&pair.status(PROD)["rpo"]["writes"]), 5);
    link.refuse(false);
    in_step(&pair);
    link.set(&[Way::Back], STALLED);
    let result = write(&pair, 9);
    waits(&result);
    // The silence is found out in the end.
    result.recv_timeout(LONG).unwrap().unwrap();
}

/// `block` holds changes up until the peer is there, and lets them go with an error when another host takes the role; `fail` answers them with
/// an error at once. Reads go on in both.
#[test]
fn r2_changes_without_a_peer_are_blocked_or_fail_where_that_is_wanted() {
    let (blocking, link) = pair(
        "block",
        "lfc_size = \"2M\"\nmode = \"mwc\"\non_link_loss = \"block\"\n",
    );
    let is_away = |pair: &Pair| {
        link.refuse(true);
        link.cut();
        until("production to say so", LONG, || {
            mode_now(pair)?.starts_with("blocked, rec is away").then_some(())
        });
    };
    in_step(&blocking);
    is_away(&blocking);
    let result = write(&blocking, 0);
    waits(&result);
    assert_eq!(
        blocking.open(PROD, "c1/data").read(0, 1).unwrap(),
        [7],
        "it is ordered"
    );
    link.refuse(false);
    result.recv_timeout(LONG).unwrap().unwrap();
    is_away(&blocking);
    let result = write(&blocking, 1);
    waits(&result);
    // Another host takes the role: production gives it up, and does not answer for what only it has.
    let taken = blocking.cli(REC, &["rtdr", "-qfC", "1", "failover"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    assert!(
        result.recv_timeout(LONG).unwrap().is_err(),
        "nobody has it but production"
    );

    let (failing, link) = pair(
        "fail",
        "lfc_size = \"2M\"\nmode = \"mwc\"\non_link_loss = \"fail\"\n",
    );
    in_step(&failing);
    link.refuse(true);
    link.cut();
    until("production to say so", LONG, || {
        mode_now(&failing)?
            .starts_with("failing, rec is away")
            .then_some(())
    });
    let head = failing.cursor(PROD, "appended");
    assert!(write(&failing, 0).recv_timeout(LONG).unwrap().is_err());
    assert_eq!(
        failing.cursor(PROD, "appended"),
        head,
        "it is not journaled either"
    );
    assert_eq!(failing.open(PROD, "c1/data").read(0, 1).unwrap(), [0]);
    link.refuse(false);
    in_step(&failing);
    write(&failing, 0).recv_timeout(LONG).unwrap().unwrap();
}

/// A slow link and a writer that does not care: of what it was answered the replica never lacks more than the mark.
#[test]
fn r3_no_more_than_the_mark_is_on_its_way() {
    const MARK: u64 = 256 << 10;
    let (pair, link) = pair("mark", "lfc_size = \"2M\"\nhigh_water_mark = \"256K\"\n");
    link.set(
        &[Way::There],
        Weather {
            rate: 600_000,
            ..Weather::default()
        },
    );
    let mut client = pair.open(PROD, "c1/data");
    let (mut rng, mut data) = (StdRng::seed_from_u64(3), [0; BLOCK]);
    let before = pair.cursor(PROD, "appended");
    let is_written = AtomicBool::new(false);
    let was_above = thread::scope(|scope| {
        // While the application waits, by somebody else.
        let above = scope.spawn(|| {
            let is_above = || mode_now(&pair).is_some_and(|now| now == "mwc above the high-water mark");
            std::iter::from_fn(|| (!is_written.load(Ordering::Acquire)).then(is_above)).any(|above| above)
        });
        for n in 1..=512_u64 {
            rng.fill_bytes(&mut data);
            client
                .write((n * BLOCK as u64) % VOLUMES[0].1, &data, false)
                .unwrap();
            if n % 16 == 0 {
                let received = pair.cursor(REC, "received");
                let lacks = (before.0 + n).saturating_sub(received.0);
                assert!(
                    lacks * BLOCK as u64 <= MARK,
                    "{lacks} writes of {n} are not there"
                );
            }
        }
        is_written.store(true, Ordering::Release);
        above.join().unwrap()
    });
    assert!(was_above, "the link was never too slow");
    link.calm();
    pair.waits(PROD, "drained");
    until("the mark to be left", LONG, || {
        mode_now(&pair).is_none().then_some(())
    });
    assert_eq!(pair.cursor(REC, "received"), WriteSeq(before.0 + 512));
}
