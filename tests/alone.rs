//! A production that is started without hearing its peer (invariant 8, `on_start_alone`), with two real nodes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup};
use std::fs;
use testkit::proc::until;

fn setup() -> Setup {
    Setup {
        volumes: vec![("data", 8 << 20)],
        context: "on_start_alone = \"refuse\"\nlfc_size = \"2M\"\n",
        ..Setup::default()
    }
}

fn verdict(pair: &Pair) -> String {
    pair.status(PROD)["verdict"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn serves(pair: &Pair) -> bool {
    testkit::nbd::Client::connect(&pair.socket(PROD), "c1/data").is_ok()
}

/// What a boot of the host looks like to the daemon: another boot than the noted one.
fn boot(pair: &Pair) {
    // The note names the boot in which production last served; the kernel's is another from here on.
    pair.start_with(PROD, &[("BACKSTAY_BOOT_ID", "another-boot")]);
}

#[test]
fn invariant_8_a_booted_production_hears_its_peer_before_it_serves() {
    let pair = Pair::new("boot", &setup());
    pair.consistent();
    // A daemon that was only restarted serves at once, peer or no peer.
    pair.stop(REC);
    pair.kill9(PROD);
    pair.start(PROD);
    assert!(serves(&pair), "{}", verdict(&pair));

    pair.kill9(PROD);
    boot(&pair);
    assert!(!serves(&pair));
    assert!(
        verdict(&pair).contains("has not been heard"),
        "{}",
        verdict(&pair)
    );
    let refused = pair.cli(PROD, &["rtstart", "-C", "1"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("-f serves all the same"), "{refused:?}");
    // Whoever knows better says so.
    pair.cli(PROD, &["rtstart", "-qfC", "1"]).ok();
    assert!(serves(&pair));

    pair.kill9(PROD);
    pair.start_with(PROD, &[("BACKSTAY_BOOT_ID", "a-third-boot")]);
    assert!(!serves(&pair));
    pair.start(REC);
    until("production to have heard its peer", LONG, || {
        serves(&pair).then_some(())
    });
}

#[test]
fn invariant_8_a_booted_production_whose_peer_took_over_is_fenced() {
    let pair = Pair::new("late", &setup());
    pair.consistent();
    pair.kill9(PROD);
    pair.cli(REC, &["rtdr", "-qC", "1", "failover"]).ok();
    pair.stop(REC);
    boot(&pair);
    assert!(!serves(&pair));
    pair.start(REC);
    until("production to be fenced", LONG, || {
        let state = pair.status(PROD)["head"]["context"]["state"].clone();
        (state == "FENCED").then_some(())
    });
    assert!(!serves(&pair));
    // Restarted in the same boot it is fenced still.
    pair.kill9(PROD);
    pair.start(PROD);
    assert!(!serves(&pair));
    let refused = pair.cli(PROD, &["rtstart", "-qfC", "1"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("rtdr -C 1 resync"), "{refused:?}");
    fs::metadata(pair.backing(PROD, "data")).unwrap();
}
