//! What `docs/NBD.md` says: exports on TCP, in TLS, made and used as it tells; and its table of features, measured.
//!
//! `BACKSTAY_BLESS=1` writes the table anew, with the servers of others that are installed.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use testkit::proc::{Finished, free_port, need_tool, run};

const VOLUMES: [(&str, u64); 2] = [("data", 8 << 20), ("log", 1 << 20)];

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/NBD.md")
}

/// Runs the commands of the document that make certificates, in a folder of their own.
fn certificates(pair: &Pair) -> PathBuf {
    let document = fs::read_to_string(document()).unwrap();
    let block = document.split("```sh\n").nth(1).unwrap();
    let commands = block.split("```").next().unwrap();
    let folder = pair.scratch.folder("certificates");
    let mut shell = Command::new(need_tool("bash"));
    run(shell.args(["-ec", commands]).current_dir(&folder), LONG).ok();
    folder
}

#[track_caller]
fn tool(name: &str, args: &[&str]) -> Finished {
    run(Command::new(need_tool(name)).args(args), LONG)
}

#[test]
fn volumes_and_their_past_are_served_in_tls() {
    let pair = Pair::stopped("tls", &Setup::volumes(&VOLUMES));
    let folder = certificates(&pair);
    let ports = [free_port(), free_port()];
    let dir = folder.display();
    let files = format!(
        "[nbd]\ncertificate = \"{dir}/server-cert.pem\"\nkey = \"{dir}/server-key.pem\"\nclient_ca = \"{dir}/ca-cert.pem\"\n"
    );
    for (node, port, more) in [
        (PROD, ports[0], ""),
        (REC, ports[1], "tls = \"offered\"\nplain = [\"c1/log\"]\n"),
    ] {
        let listen = format!("nbd_tcp = \"127.0.0.1:{port}\"\n");
        pair.configure(node, &listen, &format!("{files}{more}"));
        pair.start(node);
    }
    pair.consistent();
    let secure = |port: u16, export: &str| format!("nbds://127.0.0.1:{port}/{export}?tls-certificates={dir}");
    let (image, back) = (pair.scratch.join("image"), pair.scratch.join("back"));
    fs::write(&image, vec![7; 8 << 20]).unwrap();
    let (image, back) = (image.to_str().unwrap(), back.to_str().unwrap());
    let head = secure(ports[0], "c1/data");
    tool("nbdcopy", &["--flush", "-C", "4", image, &head]).ok();
    pair.received();
    tool("nbdcopy", &[&secure(ports[1], "c1/data@latest"), back]).ok();
    tool("cmp", &[image, back]).ok();
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={dir}");
    let at = format!(
        "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},export=c1/data@latest,tls-creds=t",
        ports[1]
    );
    let from = format!("driver=raw,file.filename={image}");
    tool(
        "qemu-img",
        &["compare", "--object", &object, "--image-opts", &from, &at],
    )
    .ok();
    // In the clear: nothing where it is required, and one volume with its past where it is offered.
    let plain = |port: u16, export: &str| {
        tool(
            "nbdinfo",
            &["--size", &format!("nbd://127.0.0.1:{port}/{export}")],
        )
    };
    for (port, export) in [
        (ports[0], "c1/data"),
        (ports[0], "c1/log"),
        (ports[1], "c1/data@latest"),
    ] {
        let refused = plain(port, export);
        assert!(refused.code != 0, "{export}: {refused:?}");
    }
    assert_eq!(
        plain(ports[1], "c1/log@latest").ok().trim(),
        VOLUMES[1].1.to_string()
    );
}

#[test]
fn a_daemon_that_cannot_secure_its_port_does_not_start() {
    let pair = Pair::stopped("untls", &Setup::volumes(&VOLUMES));
    pair.configure(
        PROD,
        &format!("nbd_tcp = \"127.0.0.1:{}\"\n", free_port()),
        "[nbd]\ncertificate = \"/gone.pem\"\nkey = \"/gone.pem\"\nclient_ca = \"/gone.pem\"\n",
    );
    let mut daemon = Command::new(common::program());
    daemon
        .args(["serve", "--config"])
        .arg(pair.scratch.join("etc/prod.toml"));
    let ended = run(&mut daemon, LONG);
    assert!(ended.code != 0 && ended.stderr.contains("/gone.pem"), "{ended:?}");
}

/// First and last column of a table.
fn outer_columns<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(&'a str, &'a str)> {
    let cells = |line: &'a str| {
        let (first, last) = (line.split('|').nth(1), line.rsplit('|').nth(1));
        (first.unwrap().trim(), last.unwrap().trim())
    };
    lines.map(cells).collect()
}

#[test]
fn the_table_of_features_is_what_a_node_does() {
    const SIZE: u64 = 256 << 20;
    let pair = Pair::stopped("table", &Setup::volumes(&[("data", SIZE)]));
    let (folder, port) = (certificates(&pair), free_port());
    let dir = folder.display();
    let files = format!(
        "[nbd]\ncertificate = \"{dir}/server-cert.pem\"\nkey = \"{dir}/server-key.pem\"\nclient_ca = \"{dir}/ca-cert.pem\"\n"
    );
    pair.configure(PROD, &format!("nbd_tcp = \"127.0.0.1:{port}\"\n"), &files);
    pair.start(PROD);
    pair.start(REC);
    pair.consistent();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "good"]).ok();
    pair.open(PROD, "c1/data")
        .write(1 << 20, &[7; 8192], true)
        .unwrap();
    pair.received();
    let described = json!({
        "name": "Backstay", "socket": pair.socket(PROD), "export": "c1/data",
        "tls_port": port, "certificates": folder,
        "past_socket": pair.socket(REC), "past_export": "c1/data@latest",
        "bitmap": "qemu:dirty-bitmap:since-mark:good",
    });
    let bless = std::env::var_os("BACKSTAY_BLESS").is_some();
    let mut script = Command::new(need_tool("python3"));
    script.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nbd-matrix.py"));
    script.args(bless.then_some("--peers")).arg(described.to_string());
    let measured = run(&mut script, Duration::from_secs(300)).ok();
    let text = fs::read_to_string(document()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.iter().position(|l| l.starts_with("| | ")).unwrap();
    let table = lines[from..].iter().take_while(|l| l.starts_with('|'));
    if bless {
        let rest = &lines[from + table.count()..];
        let new = [&lines[..from], &measured.lines().collect::<Vec<_>>(), rest].concat();
        return fs::write(document(), new.join("\n") + "\n").unwrap();
    }
    let (told, done) = (outer_columns(table.copied()), outer_columns(measured.lines()));
    for (told, done) in told.iter().zip(&done) {
        assert_eq!(told, done, "left: docs/NBD.md; right: this server");
    }
    assert_eq!(told.len(), done.len());
}
