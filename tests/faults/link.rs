//! Bad links between two real nodes: every record arrives exactly once and in order, the stream goes on by itself, the
//! application hears nothing of it, and neither host ever says of the other what is not so.

use crate::{
    common::{LONG, PROD, Pair, REC, Setup, number},
    factor,
    world::{VOLUMES, World, look, memory, peer_is},
};
use rand::{Rng, rngs::StdRng};
use std::{thread, time::Duration};
use testkit::{
    proc::until,
    proxy::{BOTH, Done, Proxy, Way, Weather},
    with_seeds,
};

/// A consistent pair whose link goes through proxies: so many to recovery, one to production.
fn world(name: &str, endpoints: u64) -> (World, Vec<Proxy>) {
    let setup = Setup {
        context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nwrite_back_limit = \"8M\"\n",
        ..Setup::volumes(&VOLUMES)
    };
    let pair = Pair::stopped(name, &setup);
    let mut proxies = pair.proxied(REC, endpoints);
    proxies.extend(pair.proxied(PROD, 1));
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    (World::new(pair), proxies)
}

/// Nothing gave way, and nothing was copied again.
fn nothing_stale(pair: &Pair, why: &str) {
    let status = pair.status(PROD);
    assert_eq!(number(&status["stale_bytes"]), 0, "{why}: {status}");
    assert!(status["super_transaction"].is_null(), "{why}: {status}");
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Under load: weather of every kind, one way or both, for a moment each; and connections that are cut, again and again.
#[test]
fn link_every_weather_is_survived() {
    let (mut world, proxies) = world("weather", 1);
    let link = &proxies[0];
    let rounds = 2 * factor();
    with_seeds("weather", 1, |rng: &mut StdRng| {
        let before = memory(&world.pair, PROD).0;
        let mut tried = 0;
        for round in 0..rounds {
            for (name, weather) in Weather::kinds() {
                let ways: &[Way] = match rng.random_range(0..4) {
                    0 => &[Way::There],
                    1 => &[Way::Back],
                    _ => &BOTH,
                };
                let why = format!("round {round}, {name}, {ways:?}");
                let (lasts, flaps) = (rng.random_range(100..600), rng.random_range(0..4));
                world.under_load(&why, rng, |pair, looks| {
                    link.set(ways, weather);
                    for _ in 0..=flaps {
                        thread::sleep(ms(lasts / (flaps + 1)));
                        *looks += 1;
                        look(pair, PROD, &why);
                        if flaps > 0 {
                            link.cut();
                        }
                    }
                    link.calm();
                    peer_is(pair, PROD, "connected", &why, looks);
                });
                tried += 1 + flaps;
                nothing_stale(&world.pair, &why);
            }
            world.load.set_mark(&world.pair);
            world.settle("after a round");
        }
        let done = link.done();
        let Done {
            corrupted,
            doubled,
            swapped,
            ..
        } = done;
        assert!(corrupted > 0 && doubled > 0 && swapped > 0, "{done:?}");
        let after = [PROD, REC].map(|node| memory(&world.pair, node).1 >> 20);
        let views = world.check(rng);
        println!(
            "{tried} faults of the link, {done:?}, {} looks, {} records, {views} views exact; MiB: {} at first, at most {after:?}",
            world.looks,
            world.load.head(),
            before >> 20
        );
    });
}

/// What breaks a link without a word to one or both of its ends: it is found out by silence, and a new connection goes on.
#[test]
fn link_silence_is_found_out() {
    let stall = Weather {
        stalled: true,
        ..Weather::default()
    };
    type Act = fn(&Proxy, Weather);
    let cases: [(&str, Act); 5] = [
        ("cut both ways", |link, stall| link.set(&BOTH, stall)),
        ("nothing reaches recovery", |link, stall| {
            link.set(&[Way::There], stall)
        }),
        ("nothing comes back", |link, stall| link.set(&[Way::Back], stall)),
        ("only production knows", |link, _| link.half_open(false)),
        ("only recovery knows", |link, _| link.half_open(true)),
    ];
    thread::scope(|scope| {
        for (n, (why, act)) in cases.into_iter().enumerate() {
            scope.spawn(move || {
                let (mut world, proxies) = world(&format!("silence{n}"), 1);
                with_seeds(why, 1, |rng| {
                    world.load.rest = ms(20);
                    world.under_load(why, rng, |pair, looks| {
                        act(&proxies[0], stall);
                        peer_is(pair, PROD, "unreachable", why, looks);
                        let look = look(pair, PROD, why);
                        let verdict = look.production["verdict"].as_str().unwrap();
                        assert!(
                            verdict.contains("is not connected") && look.production["healthy"] == false,
                            "{verdict}"
                        );
                        proxies[0].calm();
                        peer_is(pair, PROD, "connected", why, looks);
                    });
                    world.settle(why);
                    nothing_stale(&world.pair, why);
                    world.check(rng);
                });
            });
        }
    });
}

/// What a peer said when it could be reached is not how it is when it cannot be reached any more.
#[test]
fn link_a_refusal_ends_with_the_path_to_who_refused() {
    let (world, _proxies) = world("refusal", 1);
    let (pair, looks, why) = (&world.pair, &mut 0, "a peer that is stopped");
    pair.cli(REC, &["rtstop", "-FSC", "1"]).ok();
    peer_is(pair, PROD, "stopped", why, looks);
    let said = pair.cli(PROD, &["status", "-C", "1"]);
    let said = said.stdout + &said.stderr;
    assert!(said.contains("rtstart -C 1"), "{said}");
    pair.stop(REC);
    peer_is(pair, PROD, "unreachable", why, looks);
    pair.start(REC);
    peer_is(pair, PROD, "stopped", why, looks);
    pair.cli(REC, &["rtstart", "-C", "1"]).ok();
    peer_is(pair, PROD, "connected", why, looks);
}

/// Two endpoints of one peer. One is cut, turns away, or lets only the beginning of every connection through; the stream goes on
/// over the other, and nothing is copied again.
#[test]
fn link_another_endpoint_takes_over() {
    let (mut world, proxies) = world("endpoints", 2);
    with_seeds("endpoints", 1, |rng| {
        world.load.rest = ms(10);
        let fine = Weather::default();
        // A path for small packets: handshakes and greetings pass, and then nothing more.
        let narrow = Weather { passes: 6000, ..fine };
        for (why, bad, good, weather) in [
            ("the first turns away", 0, 1, None),
            ("the second turns away", 1, 0, None),
            (
                "the first stalls",
                0,
                1,
                Some(Weather {
                    stalled: true,
                    ..fine
                }),
            ),
            ("the first is narrow", 0, 1, Some(narrow)),
        ] {
            world.under_load(why, rng, |pair, looks| {
                let head = pair.cursor(PROD, "appended").0;
                match weather {
                    None => {
                        proxies[bad].refuse(true);
                        proxies[bad].cut();
                    }
                    Some(weather) => {
                        proxies[bad].set(&BOTH, weather);
                        // So that the bad one is the next to be tried.
                        proxies[good].cut();
                    }
                }
                // What is written after it broke arrives over the other one.
                let _ = proxies[good].take();
                until(&format!("{why}: records to arrive"), LONG * 2, || {
                    *looks += 1;
                    let look = look(pair, PROD, why);
                    thread::sleep(ms(100));
                    (look.at_replica("received") > head + 50 && proxies[good].take() > 0).then_some(())
                });
                nothing_stale(pair, why);
                proxies[bad].calm();
            });
            world.settle(why);
            nothing_stale(&world.pair, why);
        }
        let done: Vec<u64> = proxies.iter().map(|p| p.done().connections).collect();
        let views = world.check(rng);
        println!(
            "4 changes of endpoint, connections {done:?}, {} looks, {views} views exact",
            world.looks
        );
    });
}
