//! Requirements that have no test of their own elsewhere, by their numbers: R3 and R37. The others: docs/RELIABILITY.md.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/load.rs"]
mod load;

use common::{LONG, PROD, Pair, REC, Setup, program, root_for};
use load::Load;
use model::{ByteRange, VolumeIndex};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fs, process::Command, time::Duration};
use testkit::{
    proc::{need_tool, run},
    proxy::{Way, Weather},
};

const VOLUMES: [(&str, u64); 2] = [("data", 8 << 20), ("log", 4 << 20)];

/// Production is lost for good under load, over a slow link. What is lost is at most what status had said was on its way, and
/// what was written since; never anything that it had called received.
#[test]
fn r3_what_is_lost_is_at_most_what_was_reported_as_on_its_way() {
    let (mut lost, mut reported) = (0, 0);
    for round in 0..4 {
        let pair = Pair::stopped("r3", &Setup::volumes(&VOLUMES));
        let proxies = pair.proxied(REC, 1);
        pair.start(REC);
        pair.start(PROD);
        pair.consistent();
        let mut load = Load::new(&pair, &VOLUMES);
        let mut rng = StdRng::seed_from_u64(round);
        let slow = Weather {
            rate: 1_000_000,
            ..Weather::default()
        };
        proxies[0].set(&[Way::There], slow);
        for _ in 0..rng.random_range(2..8) {
            load.burst(&mut rng, 40);
        }
        let received = pair.cursor(PROD, "acknowledged");
        let head = load.head();
        load.disconnect();
        pair.kill9(PROD);
        drop(proxies);
        pair.cli(REC, &["rtdr", "-qC", "1", "failover"]).ok();
        // Before the first write on its new line.
        let end = pair.cursor(REC, "appended");
        assert!(
            end >= received,
            "{received} were called received, {end} are there"
        );
        assert!(end <= head, "{end} is there, {head} was sent");
        lost += head.0 - end.0;
        reported += head.0 - received.0;
        for (volume, (name, size)) in (0..).map(VolumeIndex).zip(VOLUMES) {
            let range = ByteRange::at(0, size);
            let wanted = load.oracle.bytes(volume, range, end);
            let got = pair.open(REC, &format!("c1/{name}")).read(0, size).unwrap();
            assert!(got == wanted, "{name} is not what it was at {end}");
        }
    }
    println!(
        "{lost} records of 4 productions were lost, at most {reported} had been reported as on their way"
    );
    assert!(lost <= reported);
    assert!(lost > 0, "nothing was on its way: the link was not slow");
}

/// Not one network interface is up, not even loopback's: everything that is local works, status says what the matter is, and
/// a command that needs the peer says so and fails.
#[test]
fn r37_local_control_works_with_every_interface_down() {
    if !root_for("r37_local_control_works_with_every_interface_down") {
        return;
    }
    let pair = Pair::new("r37", &Setup::volumes(&VOLUMES));
    pair.stop(PROD);
    let config = pair.scratch.join(format!("etc/{PROD}.toml"));
    // An address that no interface has.
    let text = fs::read_to_string(&config).unwrap();
    let listen = text.lines().find(|line| line.starts_with("peer = ")).unwrap();
    fs::write(
        &config,
        text.replacen(listen, "peer = \"10.255.255.254:7400\"", 1),
    )
    .unwrap();
    let mut command = Command::new("unshare");
    command
        .arg("--net")
        .arg(program())
        .args(["serve", "--config"])
        .arg(&config);
    let process = pair.scratch.start("alone", &mut command);
    process.wait_for_line("serving", LONG);
    process.wait_for_socket(&pair.control(PROD), LONG);
    let mut inside = Command::new(need_tool("nsenter"));
    inside.args(["--net", "--target", &process.id().to_string()]);
    inside.arg(need_tool("ip")).args(["-o", "link", "show", "up"]);
    assert_eq!(run(&mut inside, LONG).ok(), "", "an interface is up");

    let mut client = pair.open(PROD, "c1/data");
    client.write(0, &[7; 4096], false).unwrap();
    client.flush().unwrap();
    drop(client);
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "no-network"])
        .ok();
    let status = pair.status(PROD);
    let verdict = status["verdict"].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        status["head"]["context"]["peer"]["state"], "unreachable",
        "{status}"
    );
    assert!(!verdict.contains("every write is at"), "{verdict}");
    println!("{verdict}");
    assert_ne!(
        pair.cli(PROD, &["status", "-C", "1"]).code,
        0,
        "it is not healthy"
    );
    for needs_peer in [
        &["rtdr", "-qC", "1", "resync"][..],
        &[
            "backstay",
            "wait",
            "-C",
            "1",
            "--until",
            "consistent",
            "--timeout",
            "1s",
        ][1..],
        &["rtstop", "-FSqC", "1", "--timeout", "1s"][..],
    ] {
        let finished = pair.cli(PROD, needs_peer);
        assert_ne!(finished.code, 0, "{finished:?}");
        assert!(!finished.stderr.is_empty(), "{finished:?}");
    }
    pair.cli(PROD, &["rtstop", "-fqC", "1"]).ok();
    pair.cli(PROD, &["rtstart", "-fqC", "1"]).ok();
    assert_eq!(process.stop(LONG + Duration::from_secs(30)), 0);
    // Nobody there: that is an error, too.
    let nobody = pair.cli(PROD, &["status"]);
    assert!(nobody.code != 0 && !nobody.stderr.is_empty(), "{nobody:?}");
}
