//! Commands that outlive their terminal, two operators at once, and the log of both hosts, with real nodes.
//!
//! A command is held up by a hook that waits for a file to go: nothing here depends on how long anything takes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt as _, thread};
use testkit::proc::{Finished, Process, Pty, Signal, until};

const VOLUMES: [(&str, u64); 1] = [("data", 1 << 20)];

/// A pair whose `pre-failover` hook on the recovery host waits while the file `hold` is there, and then refuses the failover if
/// the file `refuse` is.
fn pair(name: &str) -> Pair {
    let pair = Pair::stopped(name, &Setup::volumes(&VOLUMES));
    let file = pair.scratch.join("etc/rec.toml");
    let text = fs::read_to_string(&file).unwrap();
    let hooks = "[hooks]\ntimeout = \"300s\"\nrequired = [\"pre-failover\"]\n";
    fs::write(&file, format!("{text}{hooks}")).unwrap();
    let hook = pair.scratch.folder("etc/hooks/rec").join("pre-failover");
    let root = pair.scratch.path().display();
    let script = format!(
        "#!/bin/sh\necho held\nwhile [ -e {root}/hold ]; do sleep 0.05; done\n! [ -e {root}/refuse ]\n"
    );
    fs::write(&hook, script).unwrap();
    for path in [hook.as_path(), hook.parent().unwrap()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    pair
}

const FAILOVER: [&str; 4] = ["rtdr", "-C", "1", "failover"];

fn hold(pair: &Pair) {
    fs::write(pair.scratch.join("hold"), "").unwrap();
}

fn let_go(pair: &Pair) {
    fs::remove_file(pair.scratch.join("hold")).unwrap();
}

fn refuse(pair: &Pair) {
    fs::write(pair.scratch.join("refuse"), "").unwrap();
}

/// A failover on the recovery host that stands in its hook, and the number of its job.
fn held_up(pair: &Pair, more: &[&str]) -> (Process, u64) {
    hold(pair);
    let mut args = FAILOVER.to_vec();
    args.extend(["-q", "-f"]);
    args.extend(more);
    let process = pair.scratch.start("failover", &mut pair.command(REC, &args));
    process.wait_for_line("pre-failover: held", LONG);
    let job = running(pair, REC);
    (process, job)
}

fn jobs(pair: &Pair, node: &str) -> Vec<Value> {
    let all = pair.json(node, &["jobs"]);
    all["reply"]["jobs"]["jobs"].as_array().unwrap().clone()
}

fn in_state(pair: &Pair, node: &str, state: &str) -> Option<u64> {
    let all = jobs(pair, node);
    let found = all.iter().find(|j| j["state"] == state)?;
    Some(number(&found["id"]))
}

fn running(pair: &Pair, node: &str) -> u64 {
    in_state(pair, node, "running").unwrap()
}

#[test]
fn a_command_outlives_its_terminal() {
    let pair = pair("outlives");
    let (typed, job) = held_up(&pair, &[]);
    typed.signal(Signal::INT);
    assert_eq!(typed.wait(LONG), 130, "{}", typed.log());
    let log = typed.log();
    assert!(
        log.contains(&format!("Detached: job {job} goes on on rec.")),
        "{log}"
    );
    assert!(
        log.contains(&format!("Next: backstay jobs attach {job}   on rec")),
        "{log}"
    );
    // Listed, and looked at.
    let all = jobs(&pair, REC);
    let mine = all.iter().find(|j| j["id"] == job).unwrap();
    assert_eq!((&mine["context"], &mine["state"]), (&1.into(), &"running".into()));
    assert_eq!(
        mine["command"],
        "backstay rtdr -C 1 failover -q -f --node rec"
            .replace("backstay", common::program().to_str().unwrap())
    );
    assert!(mine["operator"].as_str().unwrap().contains('@'), "{mine}");
    let shown = pair.cli(REC, &["jobs", "show", &job.to_string()]).ok();
    assert!(
        shown.starts_with(&format!("Job {job} on rec: running\n")),
        "{shown}"
    );
    // A look that ends in time, and one from the beginning to the end.
    let number = job.to_string();
    let attach = ["jobs", "attach", &number];
    let short = pair.cli(REC, &["jobs", "attach", &number, "--timeout", "0"]);
    assert_eq!(short.code, 75, "{short:?}");
    let second = pair.scratch.start("attached", &mut pair.command(REC, &attach));
    second.wait_for_line("Point ", LONG);
    // In the middle of a hook it is not stopped.
    let cancel = pair.cli(REC, &["jobs", "cancel", &number]);
    assert_eq!(cancel.code, 1, "{cancel:?}");
    assert!(cancel.stderr.contains("must come to its end"), "{cancel:?}");
    let_go(&pair);
    assert_eq!(second.wait(LONG), 0, "{}", second.log());
    let line = "--- Failover Context ID <2> is production on rec. ---";
    assert!(second.log().contains(line), "{}", second.log());
    assert!(second.log().contains("pre-failover: held"), "{}", second.log());
    // It can still be heard behind its end, with the same answer.
    let again = pair.cli(REC, &attach).ok();
    assert!(again.contains(line), "{again}");
    let json = pair.json(REC, &attach);
    assert_eq!(json["reply"]["role"]["verb"], "failover", "{json}");
    let unknown = pair.cli(REC, &["jobs", "attach", "99"]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
}

#[test]
fn a_killed_client_and_one_whose_time_is_up_leave_the_work() {
    let pair = pair("leaves");
    let (typed, _) = held_up(&pair, &[]);
    typed.kill9();
    refuse(&pair);
    let_go(&pair);
    until("the end of the job", LONG, || {
        in_state(&pair, REC, "running").is_none().then_some(())
    });
    hold(&pair);
    let late = pair.cli(REC, &["rtdr", "-C", "1", "failover", "-qf", "--timeout", "1"]);
    assert_eq!(late.code, 75, "{late:?}");
    let job = running(&pair, REC);
    assert!(
        late.stderr.contains(&format!("job {job} goes on"))
            && late.stderr.contains(&format!("jobs attach {job}")),
        "{late:?}"
    );
    let_go(&pair);
    let ended = pair.cli(REC, &["jobs", "attach", &job.to_string()]);
    assert_eq!(ended.code, 1, "as the job: {ended:?}");
}

/// 75, with who holds it, since when, which job, and where.
#[track_caller]
fn is_told_who(refused: &Value, job: u64) {
    assert_eq!(refused["code"], 75, "{refused}");
    let error = refused["error"].as_str().unwrap();
    for part in ["rtdr -C 1 failover", "on rec since 20", &format!("(job {job})")] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(
        refused["hint_command"],
        format!("backstay jobs show {job}"),
        "{refused}"
    );
    assert_eq!(refused["hint_host"], REC, "{refused}");
}

#[test]
fn one_command_a_context_over_both_hosts() {
    let pair = pair("both");
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "before"]).ok();
    pair.waits(REC, "mark=before");
    let (typed, job) = held_up(&pair, &[]);
    is_told_who(&pair.json(PROD, &["rtmark", "-C", "1", "--name", "x"]), job);
    is_told_who(&pair.json(PROD, &["rtstop", "-C", "1"]), job);
    is_told_who(
        &pair.json(REC, &["scrt_ra", "-C", "1", "-F", "--mark", "before", "-qf"]),
        job,
    );
    is_told_who(&pair.json(REC, &["rtdr", "-C", "2", "failover", "-qf"]), job);
    // Snapshots, status, plans and lists never wait.
    for (node, args) in [
        (REC, &["scrt_ra", "-C", "1", "--mark", "before"] as &[&str]),
        (REC, &["scrt_ra", "-C", "1", "-pe"]),
        (REC, &["pins", "-C", "1"]),
        (PROD, &["rtmark", "-C", "1", "--name", "x", "-n"]),
        (PROD, &["log", "-C", "1"]),
        (PROD, &["jobs"]),
    ] {
        pair.cli(node, args).ok();
    }
    // The mounts of a snapshot are another matter than the replica itself, but not for what ends it.
    is_told_who(&pair.json(REC, &["scrt_ra", "-C", "1", "-W"]), job);
    pair.status(PROD);
    // One waits and is cancelled, another one waits and has its turn.
    let waits = |name: &str| {
        let args = ["rtmark", "-C", "1", "--name", name, "--wait-lock", "300"];
        let process = pair.scratch.start(name, &mut pair.command(PROD, &args));
        let id = until("the job that waits", LONG, || {
            in_state(&pair, PROD, "waiting_for_lock")
        });
        (process, id.to_string())
    };
    let (waiting, id) = waits("never");
    pair.cli(PROD, &["jobs", "cancel", &id, "-n"]).ok();
    pair.cli(PROD, &["jobs", "cancel", &id]).ok();
    assert_eq!(waiting.wait(LONG), 1, "{}", waiting.log());
    assert!(waiting.log().contains("nothing was done"), "{}", waiting.log());
    let (waiting, _) = waits("after");
    refuse(&pair);
    let_go(&pair);
    assert_eq!(typed.wait(LONG), 1, "{}", typed.log());
    assert_eq!(waiting.wait(LONG), 0, "{}", waiting.log());
    let marks = pair.json(PROD, &["rtmark", "-C", "1", "--list"])["reply"].to_string();
    assert!(marks.contains("after") && !marks.contains("never"), "{marks}");
}

#[test]
fn a_host_that_dies_holds_nothing() {
    let pair = pair("dies");
    let (typed, job) = held_up(&pair, &[]);
    is_told_who(&pair.json(PROD, &["rtmark", "-C", "1", "--name", "x"]), job);
    pair.kill9(REC);
    // Hosts that cannot talk have each its own lock.
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "x", "--wait-lock", "60"])
        .ok();
    assert_eq!(typed.wait(LONG), 4, "{}", typed.log());
    let_go(&pair);
    pair.start(REC);
    let attach = pair.cli(REC, &["jobs", "attach", &job.to_string()]);
    assert_eq!(attach.code, 1);
    assert!(attach.stderr.contains("only the log knows it"), "{attach:?}");
    let log = entries(&pair, PROD);
    let cut = log.iter().find(|e| e["host"] == REC && e["job"] == job).unwrap();
    assert_eq!(cut["result"], "interrupted: the daemon ended", "{cut}");
    // No number is given twice.
    refuse(&pair);
    pair.consistent();
    assert_eq!(pair.cli(REC, &["rtdr", "-C", "1", "failover", "-qf"]).code, 1);
    let newest = entries(&pair, REC);
    let newest = newest.iter().rfind(|e| e["host"] == REC && !e["job"].is_null());
    assert!(number(&newest.unwrap()["job"]) > job);
}

#[test]
fn two_operators_at_once_never_wait_for_each_other() {
    let pair = pair("at-once");
    let typed = |node: &str, n: usize, wait: &[&str]| {
        let name = format!("m{node}{n}{}", wait.len());
        let mark = ["rtmark", "-C", "1", "--name", &name];
        let set_up = ["rtdr", "-C", "1", "-F", "2", "setup"];
        let args = if node == PROD { &mark[..] } else { &set_up[..] };
        pair.cli(node, &[args, wait].concat())
    };
    let both = |n: usize, wait: &[&str]| -> [Finished; 2] {
        thread::scope(|scope| {
            let there = scope.spawn(|| typed(REC, n, wait));
            [typed(PROD, n, wait), there.join().unwrap()]
        })
    };
    for n in 0..8 {
        let codes = both(n, &[]).map(|f| f.code);
        // Whoever was second was told so; whoever was first was done.
        assert!(
            codes.iter().all(|c| [0, 75].contains(c)) && codes.contains(&0),
            "{codes:?}"
        );
    }
    for n in 0..8 {
        for finished in both(n, &["--wait-lock", "120"]) {
            finished.ok();
        }
    }
}

#[test]
fn a_question_is_for_the_one_who_typed_it() {
    let pair = pair("question");
    let asks = |name: &str| {
        // A terminal that nobody types at.
        let command = pair.command(REC, &["rtdr", "-C", "1", "failover", "-f"]);
        let pty = Pty::start(&command);
        let id = until(name, LONG, || in_state(&pair, REC, "asking"));
        (pty, id.to_string())
    };
    let (mut typed, id) = asks("the first question");
    let look = pair
        .scratch
        .start("looks", &mut pair.command(REC, &["jobs", "attach", &id]));
    look.wait_for_line("is asked)", LONG);
    let shown = pair.cli(REC, &["jobs", "show", &id]).ok();
    assert!(shown.contains("failover at g"), "{shown}");
    pair.cli(REC, &["jobs", "cancel", &id]).ok();
    assert_eq!(look.wait(LONG), 1, "{}", look.log());
    assert!(look.log().contains("cancelled by"), "{}", look.log());
    typed.type_line("y");
    let (finished, _) = typed.converse("never asked", "", LONG);
    assert_eq!(finished.code, 1, "a yes that comes too late: {finished:?}");

    let (mut typed, _) = asks("the second question");
    typed.interrupt();
    let (finished, _) = typed.converse("never asked", "", LONG);
    assert_eq!(finished.code, 130, "{finished:?}");
    assert!(finished.stdout.contains("takes that for a no"), "{finished:?}");
    until("the end of the job", LONG, || {
        in_state(&pair, REC, "asking").is_none().then_some(())
    });
    let log = entries(&pair, REC);
    let last = log.iter().rfind(|e| e["host"] == REC).unwrap();
    assert_eq!(
        (&last["code"], &last["answers"][0]["yes"]),
        (&1.into(), &false.into()),
        "{last}"
    );
    assert_eq!(pair.status(REC)["head"]["context"]["role"], "REPLICA");
}

fn entries(pair: &Pair, node: &str) -> Vec<Value> {
    let log = pair.json(node, &["log", "-C", "1"]);
    log["reply"]["log"]["entries"].as_array().unwrap().clone()
}

#[test]
fn the_log_is_of_both_hosts_and_durable() {
    let pair = pair("log");
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "one"]).ok();
    assert_eq!(
        pair.cli(PROD, &["rtmark", "-C", "1", "--name", "one two"]).code,
        64
    );
    assert_eq!(pair.cli(REC, &["rtmark", "-C", "1", "--name", "x"]).code, 1);
    let no = pair.cli_with(REC, &["rtdr", "-C", "1", "failover", "-f"], "n\n");
    assert_eq!(no.code, 1, "{no:?}");
    pair.cli(REC, &["rtdr", "-C", "2", "failover", "-qf"]).ok();
    let seen = |node: &str| -> Vec<(String, String, u64, String)> {
        let of = |e: &Value| {
            let command = e["command"]
                .as_str()
                .unwrap()
                .split(' ')
                .skip(1)
                .collect::<Vec<_>>()
                .join(" ");
            let answers: Vec<String> = e["answers"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|a| format!("{}{}", a["yes"], a["quiet"].as_bool().map_or("", |_| " -q")))
                .collect();
            (
                e["host"].as_str().unwrap().to_owned(),
                command,
                number(&e["code"]),
                answers.join(" "),
            )
        };
        entries(&pair, node).iter().map(of).collect()
    };
    let there = seen(PROD);
    let words: Vec<(&str, &str, u64, &str)> =
        there.iter().map(|(h, c, n, a)| (&**h, &**c, *n, &**a)).collect();
    assert_eq!(
        words,
        [
            (PROD, "rtmark -C 1 --name one --node prod", 0, ""),
            (REC, "rtmark -C 1 --name x --node rec", 1, ""),
            (REC, "rtdr -C 1 failover -f --node rec", 1, "false"),
            (REC, "rtdr -C 2 failover -qf --node rec", 0, "true -q"),
            (
                PROD,
                "rtdr -C 2 failover -qf --node rec: prod gives its role up",
                0,
                ""
            ),
        ],
        "{there:?}"
    );
    assert_eq!(seen(REC), there, "the same from either host");
    // It survives the daemons; a host that cannot be asked is named.
    pair.stop(PROD);
    pair.kill9(REC);
    pair.start(REC);
    let alone = pair.json(REC, &["log", "-C", "1"]);
    assert_eq!(alone["reply"]["log"]["unheard"][0]["host"], PROD, "{alone}");
    assert_eq!(alone["reply"]["log"]["entries"].as_array().unwrap().len(), 3);
    let person = pair.cli(REC, &["log", "-C", "1", "--limit", "1"]).ok();
    assert!(
        person.contains("Not here: what prod has") && person.contains("older entries"),
        "{person}"
    );
    pair.start(PROD);
    assert_eq!(seen(PROD), there);
}

#[test]
fn wait_stays_until_what_was_set_going_is_complete() {
    let pair = pair("wait");
    let mark = pair.json(PROD, &["rtmark", "-C", "1", "--name", "there", "--wait"]);
    let seq = number(&mark["reply"]["mark"]["seq"]);
    assert!(pair.cursor(REC, "applied").0 >= seq, "{mark}");
    pair.cli(PROD, &["scconfig", "-C", "1", "-M", "-q", "--wait"])
        .ok();
    assert_eq!(number(&pair.status(PROD)["stale_bytes"]), 0);
    // Nobody is there to copy to: the time is up, the command itself was done.
    pair.stop(REC);
    let late = pair.cli(
        PROD,
        &["scconfig", "-C", "1", "-M", "-q", "--wait", "--timeout", "1"],
    );
    assert_eq!(late.code, 75, "{late:?}");
    until("the end of the job", LONG, || {
        in_state(&pair, PROD, "running").is_none().then_some(())
    });
    let last = jobs(&pair, PROD).pop().unwrap();
    assert_eq!(last["code"], 0, "{last}");
}
