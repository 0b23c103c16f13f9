//! Clients that start their server themselves, and daemons whose sockets somebody else has made.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, number, program};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Command, Stdio},
};
use testkit::{
    nbd::Client,
    proc::{Finished, need_tool, run, until},
};

const VOLUMES: [(&str, u64); 2] = [("data", 8 << 20), ("log", 1 << 20)];

/// A pair with a mark `good`, before which `data` held one thing, and behind which it holds another.
fn with_mark(name: &str) -> Pair {
    let pair = Pair::new(name, &Setup::volumes(&VOLUMES));
    let mut client = pair.open(PROD, "c1/data");
    client.write(1 << 20, &[7; 8192], false).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "good"]).ok();
    client.write(1 << 20, &[9; 4096], true).unwrap();
    pair.received();
    pair
}

/// A tool of libnbd whose server, in brackets, is `backstay nbd --stdio EXPORT` on a node.
#[track_caller]
fn bracketed(pair: &Pair, node: &str, tool: &str, before: &[&str], export: &str, after: &[&str]) -> Finished {
    let mut command = Command::new(need_tool(tool));
    command
        .env("BACKSTAY_ETC", pair.scratch.join("etc"))
        .args(before)
        .args(["--", "["])
        .arg(program())
        .args(["nbd", "--stdio", export, "--node", node, "]"])
        .args(after);
    run(&mut command, LONG)
}

#[test]
fn tools_of_libnbd_start_it_in_brackets() {
    let pair = with_mark("brackets");
    let (past, head) = ("c1/data@mark:good", "c1/data");
    let info = bracketed(&pair, REC, "nbdinfo", &["--json"], past, &[]).ok();
    let info: Value = serde_json::from_str(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(number(&export["export-size"]), VOLUMES[0].1);
    assert_eq!(export["is_read_only"], true);
    let map = bracketed(&pair, REC, "nbdinfo", &["--map", "--totals"], past, &[]).ok();
    assert!(map.contains("hole,zero"), "{map}");
    // As it was at the mark, and on production as it is.
    for (node, export, byte) in [(REC, past, 7), (PROD, head, 9)] {
        let image = pair.scratch.join(format!("{node}.img"));
        bracketed(&pair, node, "nbdcopy", &[], export, &[image.to_str().unwrap()]).ok();
        let bytes = fs::read(&image).unwrap();
        assert_eq!(bytes.len() as u64, VOLUMES[0].1);
        assert_eq!((bytes[1 << 20], bytes[(1 << 20) + 4096]), (byte, 7));
    }
    // A name that leads nowhere is said at once, by its reason.
    let wrong = bracketed(&pair, REC, "nbdinfo", &[], "c1/data@mark:bad", &[]);
    assert!(wrong.code != 0 && wrong.stderr.contains("bad"), "{wrong:?}");
    // All are gone, and nothing keeps their points.
    until("readers to be gone", LONG, || {
        let pins = pair.json(REC, &["pins", "-C", "1"]);
        pins["reply"]["pins"]["pins"]
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(())
    });
}

#[test]
fn one_client_at_pipes_is_served_until_it_leaves() {
    let pair = with_mark("pipes");
    let mut child = pair
        .command(PROD, &["nbd", "--stdio", "c1/data"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut greeting = [0; 18];
    from.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    // The export of the command line is what the empty name means.
    to.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    let mut export = [0; 10];
    from.read_exact(&mut export).unwrap();
    assert_eq!(u64::from_be_bytes(export[..8].try_into().unwrap()), VOLUMES[0].1);
    // A write, and goodbye at once: it is carried out and answered.
    let mut p = vec![0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1];
    p.extend([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0]);
    p.extend([0x55; 512]);
    to.write_all(&p).unwrap();
    drop(to);
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).unwrap();
    assert_eq!(
        rest,
        [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..]].concat()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(pair.open(PROD, "c1/data").read(512, 512).unwrap(), [0x55; 512]);
}

#[test]
fn what_makes_no_sense_is_refused_before_a_byte_of_nbd() {
    let pair = Pair::new("nonsense", &Setup::volumes(&VOLUMES));
    for (args, code, why) in [
        (&["nbd", "c1/data"][..], 64, "--stdio is missing"),
        (&["nbd", "--stdio"], 64, "which export?"),
        (&["nbd", "--stdio", "c1/none"], 1, "it has data, log"),
        (&["nbd", "--stdio", "data"], 1, "no export name"),
        (&["nbd", "--stdio", "c1/none", "-n"], 1, "it has data, log"),
    ] {
        let said = pair.cli(PROD, args);
        assert_eq!((said.code, said.stdout.as_str()), (code, ""), "{said:?}");
        assert!(said.stderr.contains(why), "{said:?}");
    }
    let dry = pair.cli(PROD, &["nbd", "--stdio", "c1/data", "-n"]);
    assert_eq!((dry.code, dry.stdout.as_str()), (0, ""), "{dry:?}");
    pair.stop(PROD);
    assert_eq!(pair.cli(PROD, &["nbd", "--stdio", "c1/data"]).code, 69);
}

/// Starts a node's daemon as systemd does: sockets first, the daemon with the first client.
fn activated(pair: &Pair, node: &str, sockets: &[&str], name: &str) -> testkit::proc::Process {
    let mut command = Command::new(need_tool("systemd-socket-activate"));
    for socket in sockets {
        command.args(["--listen", socket]);
    }
    let names = vec![name; sockets.len()].join(":");
    command
        .arg(format!("--fdname={names}"))
        .arg(program())
        .args(["serve", "--config"])
        .arg(pair.scratch.join(format!("etc/{node}.toml")));
    pair.scratch.start(&format!("{node}-activated"), &mut command)
}

#[test]
fn a_daemon_takes_the_sockets_that_it_is_handed() {
    let pair = Pair::stopped("activated", &Setup::volumes(&VOLUMES));
    pair.start(REC);
    // One of them is the node's own.
    let (own, other) = (pair.socket(PROD), pair.scratch.join("other.sock"));
    let daemon = activated(
        &pair,
        PROD,
        &[own.to_str().unwrap(), other.to_str().unwrap()],
        "nbd",
    );
    daemon.wait_for_socket(&other, LONG);
    // The first client starts it, and waits for it.
    let mut client = Client::connect(&other, "c1/data").unwrap();
    client.write(0, &[3; 512], true).unwrap();
    assert_eq!(
        Client::connect(&own, "c1/data").unwrap().read(0, 512).unwrap(),
        [3; 512]
    );
    pair.consistent();
    drop(client);
    assert_eq!(daemon.stop(LONG), 0);
    // Whoever made the sockets removes them.
    for socket in [&own, &other] {
        assert!(socket.exists());
    }
    // Without sockets it makes its own, in place of the one that nobody answers at.
    pair.start(PROD);
    assert_eq!(pair.open(PROD, "c1/data").read(0, 512).unwrap(), [3; 512]);
}

#[test]
fn a_daemon_is_handed_tcp_beside_its_own_socket() {
    let pair = Pair::stopped("tcp", &Setup::volumes(&VOLUMES));
    pair.configure(PROD, "", "[nbd]\ntls = \"none\"\n");
    let port = testkit::proc::free_port();
    let daemon = activated(&pair, PROD, &[&format!("127.0.0.1:{port}")], "nbd");
    let uri = format!("nbd://127.0.0.1:{port}/c1/data");
    let size = until("the first client to be served", LONG, || {
        let asked = run(Command::new(need_tool("nbdinfo")).args(["--size", &uri]), LONG);
        (asked.code == 0).then_some(asked.stdout)
    });
    assert_eq!(size.trim(), VOLUMES[0].1.to_string());
    let mode = fs::metadata(pair.socket(PROD)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(pair.open(PROD, "c1/data").size(), VOLUMES[0].1);
    assert_eq!(daemon.stop(LONG), 0);
}

#[test]
fn a_socket_by_another_name_is_refused() {
    let pair = Pair::stopped("foreign", &Setup::volumes(&VOLUMES));
    let socket = pair.scratch.join("foreign.sock");
    let daemon = activated(&pair, PROD, &[socket.to_str().unwrap()], "http");
    daemon.wait_for_socket(&socket, LONG);
    drop(UnixStream::connect(&socket));
    assert_eq!(daemon.wait(LONG), 1);
    assert!(
        daemon.log().contains("socket 'http' was handed over"),
        "{}",
        daemon.log()
    );
}
