//! The wrong command at every state: refused, changed nothing, and what its hint says works.
//!
//! A walk through the role changes keeps the state directories of both nodes at each state, taken behind a `kill -9`. Every row
//! of a state starts from them: the wrong command is typed, must answer as the table says, and the command of its hint is run
//! on the host of its hint. So the table proves at the same time that every state is durable.
//!
//! Raw volumes on loopback: what file systems add is in `seed_procedure`.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup};
use serde_json::Value;
use std::{fmt::Write as _, fs, process::Command};
use testkit::{
    nbd::Client,
    proc::{Finished, run, until},
};

const VOLUMES: [(&str, u64); 2] = [("data", 1 << 20), ("log", 256 << 10)];

/// A command on a node, and its exit code.
type Row = (&'static str, &'static str, i32);

/// A state of both hosts.
struct State {
    name: &'static str,
    /// The state that it is reached from.
    from: &'static str,
    /// What is typed for it, all of which must work.
    steps: &'static [(&'static str, &'static str)],
    /// Whether production is killed for it, behind the steps.
    production_dead: bool,
    /// Writes on this node, behind the steps.
    written_on: Option<&'static str>,
    /// The node that serves the volumes read-write, if any.
    writer: Option<&'static str>,
    /// Commands that are wrong here (1), or already so (0): what either leads to works.
    rows: &'static [Row],
}

/// `0` stands for "already so": it says so and changes nothing.
const STATES: &[State] = &[
    State {
        name: "enabled",
        from: "",
        steps: &[
            (PROD, "rtdr -C 1 -F 2 setup"),
            (REC, "rtdr -C 1 -F 2 setup"),
            (PROD, "rtmark -C 1 --name before"),
        ],
        production_dead: false,
        written_on: Some(PROD),
        writer: Some(PROD),
        rows: &[
            (PROD, "rtdr -C 1 failover", 1),
            (REC, "rtdr -C 1 failover -q", 1),
            (PROD, "rtdr -C 1 resync -q", 1),
            (REC, "rtdr -C 1 resync", 1),
            (PROD, "rtdr -C 1 failback", 0),
            (REC, "rtdr -C 1 failback", 0),
            (PROD, "rtdr -C 1 -F 2 setup", 0),
            (REC, "rtdr -C 1 -F 2 setup", 0),
            (REC, "scconfig -C 1 -M -q", 1),
            (REC, "scconfig -C 1 -B -G -q", 1),
            (PROD, "scconfig -C 1 -B -q", 64),
            (PROD, "scrt_ra -C 1 -X", 1),
            (PROD, "scrt_ra -C 1 --mark before", 1),
            (PROD, "scrt_ra -C 1 -F --mark before -q", 1),
            (REC, "scrt_ra -C 1 -F --mark before -q", 1),
            (REC, "rtmark -C 1 --name x", 1),
        ],
    },
    State {
        name: "production dead",
        from: "enabled",
        steps: &[],
        production_dead: true,
        written_on: None,
        writer: None,
        rows: &[
            (REC, "rtdr -C 1 resync", 1),
            (REC, "rtdr -C 1 failback", 0),
            (REC, "scrt_ra -C 1 --undo -q", 1),
        ],
    },
    State {
        name: "production stopped and drained",
        from: "enabled",
        steps: &[(PROD, "rtstop -FSC 1")],
        production_dead: false,
        written_on: None,
        writer: None,
        rows: &[
            (PROD, "rtdr -C 1 failover", 1),
            (PROD, "rtdr -C 1 resync -q", 1),
            (REC, "rtdr -C 1 resync", 1),
            (PROD, "rtdr -C 1 failback", 0),
            (PROD, "rtmark -C 1 --name x", 1),
            (PROD, "rtstop -FSC 1", 0),
        ],
    },
    State {
        name: "rolled back",
        from: "production stopped and drained",
        steps: &[(REC, "scrt_ra -C 1 -F --mark before -q")],
        production_dead: false,
        written_on: None,
        writer: None,
        rows: &[
            (REC, "scrt_ra -C 1 -F --latest -q", 1),
            (PROD, "rtdr -C 1 failover", 1),
            (PROD, "rtdr -C 1 resync -q", 1),
            (REC, "rtdr -C 1 resync", 1),
            (REC, "rtdr -C 1 failback", 1),
            (REC, "rtmark -C 1 --name x", 1),
        ],
    },
    State {
        name: "failed over to a restored point",
        from: "rolled back",
        steps: &[(REC, "rtdr -C 1 failover -q")],
        production_dead: false,
        written_on: Some(REC),
        writer: Some(REC),
        rows: &[
            (PROD, "rtdr -C 1 failover", 1),
            (PROD, "rtdr -C 1 failback", 1),
            (REC, "rtdr -C 1 resync", 1),
            (REC, "rtdr -C 1 failback", 1),
            (REC, "rtdr -C 1 failover", 0),
            (PROD, "rtstart -C 1", 1),
            (PROD, "rtmark -C 1 --name x", 1),
            (PROD, "scconfig -C 1 -M -q", 1),
            (PROD, "scrt_ra -C 1 -X", 1),
            (REC, "scrt_ra -C 1 -X", 1),
            (REC, "scrt_ra -C 1 --undo -q", 1),
        ],
    },
    State {
        name: "failed over, the old production dead",
        from: "production dead",
        steps: &[(REC, "rtdr -C 1 failover -q")],
        production_dead: true,
        written_on: Some(REC),
        writer: Some(REC),
        rows: &[
            (REC, "rtdr -C 2 failover", 0),
            // Not now: nobody answers.
            (REC, "rtdr -C 1 resync", 75),
        ],
    },
    // A stopped context dials nobody: the old production learns of the failover when its operator types the next command.
    State {
        name: "production stopped and dead",
        from: "enabled",
        steps: &[(PROD, "rtstop -C 1")],
        production_dead: true,
        written_on: None,
        writer: None,
        rows: &[],
    },
    State {
        name: "failed over behind a stopped production",
        from: "production stopped and dead",
        steps: &[(REC, "rtdr -C 1 failover -q")],
        production_dead: true,
        written_on: Some(REC),
        writer: Some(REC),
        rows: &[],
    },
    State {
        name: "a stopped production is back",
        from: "failed over behind a stopped production",
        steps: &[],
        production_dead: false,
        written_on: None,
        writer: Some(REC),
        rows: &[
            (PROD, "rtdr -C 1 failover", 1),
            (PROD, "rtdr -C 1 failback", 1),
            (PROD, "rtstart -C 1", 1),
            (PROD, "rtmark -C 1 --name x", 1),
            (REC, "rtdr -C 1 resync", 1),
        ],
    },
    State {
        name: "ready behind a stop",
        from: "a stopped production is back",
        steps: &[(PROD, "rtdr -C 1 resync -q")],
        production_dead: false,
        written_on: None,
        writer: Some(REC),
        rows: &[(PROD, "rtdr -C 1 failback", 1)],
    },
    State {
        name: "ready for resync",
        from: "failed over to a restored point",
        steps: &[(PROD, "rtdr -C 1 resync -q")],
        production_dead: false,
        written_on: None,
        writer: Some(REC),
        rows: &[
            (PROD, "rtdr -C 1 resync -q", 0),
            (PROD, "rtdr -C 1 failover", 1),
            (PROD, "rtdr -C 1 failback", 1),
            (REC, "rtdr -C 1 failback", 1),
            (REC, "rtdr -C 1 failover", 0),
            (PROD, "rtmark -C 1 --name x", 1),
        ],
    },
    State {
        name: "resynced",
        from: "ready for resync",
        steps: &[
            (REC, "rtdr -C 1 resync"),
            (REC, "backstay wait -C 1 --until resynced --timeout 60"),
        ],
        production_dead: false,
        written_on: Some(REC),
        writer: Some(REC),
        rows: &[
            (REC, "rtdr -C 2 resync", 0),
            (PROD, "rtdr -C 2 resync -q", 0),
            (PROD, "rtdr -C 1 failback", 1),
            (REC, "rtdr -C 1 failback", 1),
            (PROD, "rtdr -C 1 failover -q", 1),
            (REC, "rtdr -C 1 failover", 0),
            (PROD, "rtmark -C 1 --name x", 1),
            (PROD, "scconfig -C 1 -M -q", 1),
            (REC, "scrt_ra -C 1 -X", 1),
            (REC, "scrt_ra -C 1 -F --latest -q", 1),
        ],
    },
    State {
        name: "drained for the failback",
        from: "resynced",
        steps: &[(REC, "rtumnt -FC 2"), (REC, "rtstop -FSC 2")],
        production_dead: false,
        written_on: None,
        writer: None,
        rows: &[
            (REC, "rtdr -C 1 failover", 0),
            (REC, "rtdr -C 1 resync", 1),
            (PROD, "rtdr -C 1 resync -q", 0),
            (REC, "rtmark -C 1 --name x", 1),
            (REC, "rtstop -FSC 2", 0),
            (PROD, "rtmark -C 1 --name x", 1),
        ],
    },
    State {
        name: "given up by the acting production first",
        from: "drained for the failback",
        steps: &[(REC, "rtdr -C 1 failback")],
        production_dead: false,
        written_on: None,
        writer: None,
        rows: &[
            (REC, "rtdr -C 1 failback", 0),
            (REC, "rtdr -C 1 failover", 1),
            (REC, "rtdr -C 1 resync", 1),
            (REC, "rtstart -C 1", 1),
            (REC, "rtmark -C 1 --name x", 1),
            (PROD, "rtmark -C 1 --name x", 1),
            // Nothing is lost and nobody else serves: a failover does as well as a failback.
            (PROD, "rtdr -C 1 failover -q", 0),
        ],
    },
    State {
        name: "half way back",
        from: "drained for the failback",
        steps: &[(PROD, "rtdr -C 1 failback")],
        production_dead: false,
        written_on: None,
        writer: Some(PROD),
        rows: &[
            (PROD, "rtdr -C 1 failback", 0),
            (PROD, "rtdr -C 1 failover", 1),
            (PROD, "rtdr -C 1 resync -q", 1),
            (REC, "rtdr -C 1 failover -q", 1),
            (REC, "rtdr -C 1 resync", 0),
            (REC, "rtmark -C 1 --name x", 1),
        ],
    },
    State {
        name: "enabled again",
        from: "half way back",
        steps: &[
            (REC, "rtdr -C 2 failback"),
            (REC, "backstay wait -C 1 --until enabled --timeout 60"),
        ],
        production_dead: false,
        written_on: Some(PROD),
        writer: Some(PROD),
        rows: &[
            (PROD, "rtdr -C 1 failback", 0),
            (REC, "rtdr -C 2 failback", 0),
            (REC, "rtdr -C 1 failover -q", 1),
            (PROD, "rtdr -C 1 resync -q", 1),
        ],
    },
];

/// How far a refusal may lead: a host may send to the other one without knowing that there is something in the way there, and
/// that one says what.
const HOPS: usize = 2;

/// A command for a host, as a hint has it.
#[derive(Debug, PartialEq, Eq)]
struct Hint {
    command: String,
    host: String,
}

/// The command that an answer names: its hint, else its next step.
fn hint_of(finished: &Finished) -> Option<Hint> {
    let lines = || finished.stderr.lines().chain(finished.stdout.lines());
    ["Hint: ", "Next: "].iter().find_map(|head| {
        lines().find_map(|line| {
            let (command, host) = line.strip_prefix(head)?.rsplit_once("   on ")?;
            Some(Hint {
                command: command.to_owned(),
                host: host.to_owned(),
            })
        })
    })
}

/// Two nodes that can be put back to a state that they were in.
struct Walk {
    pair: Pair,
    up: [bool; 2],
}

const NODES: [&str; 2] = [PROD, REC];

impl Walk {
    /// Kills what runs.
    fn kill(&mut self) {
        for (node, up) in NODES.iter().zip(&mut self.up) {
            if std::mem::take(up) {
                self.pair.kill9(node);
            }
        }
    }

    fn start(&mut self, dead: bool) {
        for (n, node) in NODES.iter().enumerate() {
            if !(dead && *node == PROD) {
                self.pair.start(node);
                self.up[n] = true;
            }
        }
    }

    /// Starts production where it was dead and is not to be.
    fn revive(&mut self, state: &State) {
        if !self.up[0] && !state.production_dead {
            self.pair.start(PROD);
            self.up[0] = true;
        }
    }

    /// Keeps the state directories of both as `name`.
    fn keep(&self, name: &str) {
        let (state, kept) = (self.pair.scratch.join("state"), self.pair.scratch.folder("kept"));
        let mut copy = Command::new("cp");
        copy.args(["-a", "--sparse=always"])
            .arg(state)
            .arg(kept.join(name));
        run(&mut copy, LONG).ok();
    }

    /// Puts both nodes back to `state`, and waits until they know of each other what they knew then.
    fn back_to(&mut self, state: &State, peers: &[Option<Value>; 2]) {
        self.kill();
        // The files of the volumes stay the files that they are: others in their place would be another disk.
        let now = self.pair.scratch.join("state");
        for node in NODES {
            let journal = now.join(node).join("c1/journal");
            let gone = if journal.exists() {
                fs::remove_dir_all(&journal)
            } else {
                Ok(())
            };
            gone.unwrap();
        }
        let mut copy = Command::new("cp");
        copy.args(["-a", "--sparse=always"])
            .arg(self.pair.scratch.join("kept").join(state.name).join("."))
            .arg(&now);
        run(&mut copy, LONG).ok();
        self.start(state.production_dead);
        until(&format!("the peers at '{}'", state.name), LONG, || {
            (self.peers() == *peers).then_some(())
        });
    }

    /// What each node knows of its peer, and of itself.
    fn peers(&self) -> [Option<Value>; 2] {
        [0, 1].map(|n| {
            self.up[n].then(|| {
                let head = &self.pair.status(NODES[n])["head"]["context"];
                serde_json::json!([head["role"], head["state"], head["term"], head["peer"]["state"]])
            })
        })
    }

    /// What a refused command must leave as it is. A host that learns on the way that it is not production any more is fenced,
    /// as it would be by the next contact: that is no change of the command's.
    fn durable(&self) -> [Option<Value>; 2] {
        [0, 1].map(|n| {
            self.up[n].then(|| {
                let status = self.pair.status(NODES[n]);
                let marks = self.pair.json(NODES[n], &["rtmark", "-C", "1", "--list"])["reply"].clone();
                let head = &status["head"]["context"];
                let fenced = head["state"] == "FENCED";
                let standing = if fenced {
                    Value::Null
                } else {
                    serde_json::json!([head["state"], head["term"]])
                };
                serde_json::json!([
                    head["role"],
                    standing,
                    status["snapshots"],
                    status["restored"],
                    marks
                ])
            })
        })
    }

    /// Runs a line on a node; every question is answered with yes.
    fn type_on(&self, node: &str, line: &str) -> Finished {
        let words: Vec<&str> = line.split_whitespace().collect();
        let words = words.strip_prefix(&["backstay"]).unwrap_or(&words);
        self.pair.cli_with(node, words, "y\ny\ny\n")
    }

    /// A write behind everything, flushed, on the node that serves `data`.
    fn write_on(&self, node: &str, byte: u8) {
        let mut client = self.pair.open(node, "c1/data");
        for n in 0..4 {
            client.write(n * 4096, &[byte; 4096], true).unwrap();
        }
        client.disconnect().unwrap();
        until("the client to be gone", LONG, || {
            (self.pair.status(node)["volumes"][0]["open"] == false).then_some(())
        });
    }

    /// The nodes that let somebody write.
    fn writers(&self) -> Vec<&'static str> {
        let serves = |n: &usize| {
            self.up[*n]
                && Client::connect(&self.pair.socket(NODES[*n]), "c1/data")
                    .is_ok_and(|mut client| client.write(8192, &[7; 512], true).is_ok())
        };
        [0, 1].into_iter().filter(serves).map(|n| NODES[n]).collect()
    }

    /// Goes to a state for the first time.
    fn reach(&mut self, state: &State, byte: u8) {
        for (node, line) in state.steps {
            let done = self.type_on(node, line);
            assert_eq!(
                done.code, 0,
                "on the way to '{}': {line} on {node}: {done:?}",
                state.name
            );
        }
        if let Some(node) = state.written_on {
            self.write_on(node, byte);
        }
    }

    /// One row: what is wrong about it, if anything.
    fn check(&self, (node, line, code): Row) -> Option<String> {
        let before = self.durable();
        let answer = self.type_on(node, line);
        let after = self.durable();
        let moved = |(b, a): (&Option<Value>, &Option<Value>)| {
            let standing = |v: &Option<Value>| v.as_ref().map(|v| v[1].clone());
            b != a && standing(a) != Some(Value::Null)
        };
        if answer.code == 1 && before.iter().zip(&after).any(moved) {
            return Some(format!(
                "refused, and changed {before:?}\nto {after:?}\n{}",
                told(&answer)
            ));
        }
        if answer.code != code {
            return Some(format!(
                "answered {} and not {code}\n{}",
                answer.code,
                told(&answer)
            ));
        }
        if code != 1 && !(code == 0 && line.starts_with("rtdr")) {
            return None;
        }
        let mut all = told(&answer);
        let mut last = answer;
        for _ in 0..HOPS {
            let Some(hint) = hint_of(&last) else {
                if last.code == 0 {
                    return None;
                }
                return Some(format!("names no command to go on with\n{all}"));
            };
            let Some(host) = NODES.iter().find(|n| **n == hint.host) else {
                return Some(format!("{hint:?} names no host\n{all}"));
            };
            if last.code == 0 && !self.up[NODES.iter().position(|n| n == host).unwrap()] {
                return None;
            }
            last = self.type_on(host, &hint.command);
            writeln!(all, "   {host}# {}\n{}", hint.command, told(&last)).unwrap();
            // `status` answers 2 where something is wrong, as it is here.
            if last.code == 0 || (last.code == 2 && hint.command.contains("status")) {
                return None;
            }
            if last.code != 1 {
                break;
            }
        }
        Some(format!("leads to nothing that works\n{all}"))
    }
}

fn told(finished: &Finished) -> String {
    let lines = finished.stdout.lines().chain(finished.stderr.lines());
    lines.fold(String::new(), |mut all, line| {
        writeln!(all, "      {line}").unwrap();
        all
    })
}

#[test]
fn the_wrong_command_is_refused_and_its_hint_works() {
    let mut walk = Walk {
        pair: Pair::new("order", &Setup::volumes(&VOLUMES)),
        up: [true; 2],
    };
    let mut wrong = Vec::new();
    let mut known: Vec<(&str, [Option<Value>; 2])> = Vec::new();
    for (n, state) in STATES.iter().enumerate() {
        if let Some((_, peers)) = known.iter().find(|(name, _)| *name == state.from) {
            let from = STATES.iter().find(|s| s.name == state.from).unwrap();
            walk.back_to(from, &peers.clone());
        }
        walk.revive(state);
        walk.reach(state, u8::try_from(n).unwrap() + 1);
        walk.kill();
        walk.keep(state.name);
        walk.start(state.production_dead);
        // Whatever the hosts find out about each other at their first contact is part of the state.
        let peers = settled(&walk);
        let writers = walk.writers();
        if writers != Vec::from_iter(state.writer) {
            wrong.push(format!(
                "{}: {writers:?} let write, not {:?}",
                state.name, state.writer
            ));
        }
        for row in state.rows {
            walk.back_to(state, &peers);
            let what = walk.check(*row).or_else(|| {
                let writers = walk.writers();
                (writers.len() > 1).then(|| format!("two hosts let write: {writers:?}"))
            });
            if let Some(what) = what {
                wrong.push(format!("{}: {} on {}: {what}", state.name, row.1, row.0));
            }
        }
        println!(
            "{}: {} commands; {}",
            state.name,
            state.rows.len(),
            serde_json::json!(peers)
        );
        known.push((state.name, peers));
    }
    let rows: usize = STATES.iter().map(|s| s.rows.len()).sum();
    println!("{} states, {rows} commands", STATES.len());
    assert!(
        wrong.is_empty(),
        "{} of {rows}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What the hosts know when nothing has changed for a while.
fn settled(walk: &Walk) -> [Option<Value>; 2] {
    let mut last = (walk.peers(), 0);
    until("the hosts to settle", LONG, || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = walk.peers();
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        (last.1 == 20).then(|| last.0.clone())
    })
}

#[test]
fn a_hint_is_read_from_what_a_person_sees() {
    let finished = |stderr: &str| Finished {
        command: String::new(),
        code: 1,
        stdout: String::new(),
        stderr: stderr.to_owned(),
    };
    let hint = hint_of(&finished(
        "Error: e\nHint: words\nHint: rtdr -C 1 resync   on prod\nNext: a   on b\n",
    ))
    .unwrap();
    assert_eq!(
        (hint.command.as_str(), hint.host.as_str()),
        ("rtdr -C 1 resync", "prod")
    );
    let next = hint_of(&finished("Error: e\nHint: words\nNext: a b   on c\n")).unwrap();
    assert_eq!((next.command.as_str(), next.host.as_str()), ("a b", "c"));
    assert_eq!(hint_of(&finished("Error: e\nHint: words\n")), None);
}
