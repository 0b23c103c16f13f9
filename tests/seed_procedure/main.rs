//! The operators' own procedures, in their own command lines, on two hosts with PostgreSQL under load.
//!
//! The scripts are in `testdata/procedures`; here is what happens to the hosts meanwhile, who answers the questions, and what
//! must be true in the end. Each host is a namespace of its own (`testkit::proc::Host`), so that paths, mounts and crashes are
//! those of real ones.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod site;

use common::{program, root_for};
use site::{LONG, PROD, REC, Site, Way};
use std::fs;
use testkit::proc::{run, until};

/// Production dies under load after a deploy has ruined the data, and comes back when the recovery host has taken over.
fn unplanned_with_a_bad_deploy(way: Way, letter: &str) {
    let site = Site::new("unplanned");
    site.call("deploy prod1");
    site.host(PROD).crash();
    let environment = [("LETTER", letter), ("EXACTLY", "1")];
    site.procedure("unplanned-failover.sh", way, &environment, || site.boot(PROD));
    site.same_in_the_end();
}

#[test]
fn the_unplanned_procedure_answered_by_yes() {
    if root_for("the_unplanned_procedure_answered_by_yes") {
        unplanned_with_a_bad_deploy(Way::Pipe, "-t");
    }
}

#[test]
fn the_unplanned_procedure_with_quiet_letters() {
    if root_for("the_unplanned_procedure_with_quiet_letters") {
        unplanned_with_a_bad_deploy(Way::Quiet, "-S");
    }
}

/// The hosts lose each other while the bank is open on production: what it writes from then on is never shipped. When the cable
/// is plugged in again, `back` says what else happens before the operator goes on.
fn unplanned_with_a_cut_cable(back: impl Fn(&Site) + Sync) {
    let site = Site::new("typed");
    site.call("deploy prod1");
    // First nothing is heard from production, then both hear nothing.
    site.hosts.mute(PROD);
    site.call("sleep 1");
    site.hosts.cut();
    site.call("sleep 2; is_running prod1");
    until("the silence to be noticed", LONG, || {
        let mut status = site.host(REC).command("backstay");
        run(status.args(["status", "-C", "1"]), LONG)
            .stdout
            .contains("unreachable")
            .then_some(())
    });
    let environment = [("LETTER", "-D"), ("EXACTLY", "1")];
    site.procedure("unplanned-failover.sh", Way::Typed, &environment, || {
        site.hosts.mend();
        back(&site);
    });
    site.same_in_the_end();
}

/// The operator is quicker than the link: the old production has not heard of the failover when its resync is typed.
#[test]
fn the_unplanned_procedure_typed_at_a_terminal() {
    if root_for("the_unplanned_procedure_typed_at_a_terminal") {
        unplanned_with_a_cut_cable(|_| {});
    }
}

/// The hosts meet while the bank is still open on the old production: it is stopped at the contact, not by the operator.
#[test]
fn the_unplanned_procedure_behind_a_meeting_under_load() {
    if root_for("the_unplanned_procedure_behind_a_meeting_under_load") {
        unplanned_with_a_cut_cable(|site| {
            until("the old production to be fenced", LONG, || {
                let mut status = site.host(PROD).command("backstay");
                run(status.args(["status", "-C", "1"]), LONG)
                    .stdout
                    .contains("FENCED")
                    .then_some(())
            });
        });
    }
}

/// Nothing is wrong with the newest data; production comes back with empty volumes, and all is copied while the bank is open.
#[test]
fn the_unplanned_procedure_with_lost_volumes() {
    if !root_for("the_unplanned_procedure_with_lost_volumes") {
        return;
    }
    let site = Site::new("volumes");
    site.host(PROD).crash();
    fs::write(site.scratch.join("production-data-lost"), "").unwrap();
    site.procedure("unplanned-failover.sh", Way::Pipe, &[], || {
        lose_volumes(&site, Loss::Emptied);
        site.boot(PROD);
    });
    site.same_in_the_end();
}

/// The disks of production are others when it comes back, and nobody says so: it is noticed.
#[test]
fn the_unplanned_procedure_with_replaced_volumes() {
    if !root_for("the_unplanned_procedure_with_replaced_volumes") {
        return;
    }
    let site = Site::new("replaced");
    site.host(PROD).crash();
    site.procedure("unplanned-failover.sh", Way::Quiet, &[], || {
        lose_volumes(&site, Loss::Replaced);
        site.boot(PROD);
    });
    site.same_in_the_end();
}

#[test]
fn the_maps_are_dirtied_when_production_is_lost() {
    if !root_for("the_maps_are_dirtied_when_production_is_lost") {
        return;
    }
    let site = Site::new("lost");
    site.host(PROD).crash();
    site.procedure("production-lost.sh", Way::Pipe, &[], || {
        lose_volumes(&site, Loss::Replaced);
        site.boot(PROD);
    });
    site.same_in_the_end();
}

#[test]
fn the_planned_procedure_loses_and_copies_nothing() {
    if !root_for("the_planned_procedure_loses_and_copies_nothing") {
        return;
    }
    let site = Site::new("planned");
    site.procedure("planned-failover.sh", Way::Typed, &[], || {});
    site.same_in_the_end();
}

/// The host of production loses its power under load and comes back: every transfer that was committed before is there.
#[test]
fn a_production_host_that_crashed_comes_back_with_every_commit() {
    if !root_for("a_production_host_that_crashed_comes_back_with_every_commit") {
        return;
    }
    let site = Site::new("power");
    let transfers = || -> u64 {
        let said = site.call("sql prod1 'SELECT count(*) FROM pgbench_history'");
        said.trim().parse().unwrap()
    };
    site.call("sleep 2");
    let before = transfers();
    site.host(PROD).crash();
    site.boot(PROD);
    site.call(
        "prod1 backstay wait -C 1 --until enabled --timeout 60; prod1 rtmnt -C 1; application_start prod1",
    );
    let after = transfers();
    println!("{before} transfers before the crash, {after} or more behind it");
    assert!(before > 200 && after >= before);
    site.same_in_the_end();
}

/// How the data of production is lost.
#[derive(Clone, Copy)]
enum Loss {
    /// The files are empty: nobody notices before somebody looks into them.
    Emptied,
    /// There are other files in their place.
    Replaced,
}

/// Production's volumes are as long as before, and hold nothing.
fn lose_volumes(site: &Site, loss: Loss) {
    for volume in ["data", "wal"] {
        let path = site.backing(PROD, volume);
        let len = fs::metadata(&path).unwrap().len();
        if let Loss::Replaced = loss {
            fs::remove_file(&path).unwrap();
        }
        let file = fs::File::create(&path).unwrap();
        file.set_len(len).unwrap();
    }
}
