//! What docs/SECURITY.md promises, tried by who should not get in: strangers at the peer port, a node that is known and no
//! peer of the context, a production that says more than it may, and other users of the host.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bytes::Bytes;
use common::{LONG, PROD, Pair, REC, Setup};
use model::{ContextId, Term};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream as Stranger},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use testkit::proc::until;
use tokio::net::TcpStream;
use wire::{
    Connection, ConnectionOptions, Dialer, Expect, Fingerprint, Hello, Identity, Incoming, Message, Outgoing,
    Pins, Request, Tls,
};

const VOLUMES: [(&str, u64); 1] = [("data", 1 << 20)];

fn pair(name: &str) -> Pair {
    Pair::new(name, &Setup::volumes(&VOLUMES))
}

/// Where a node listens for peers.
fn port(pair: &Pair, node: &str) -> SocketAddr {
    let text = fs::read_to_string(pair.scratch.join(format!("etc/{node}.toml"))).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("peer = ")).unwrap();
    line.trim_matches('"').parse().unwrap()
}

fn open_files(pair: &Pair, node: &str) -> usize {
    let pid = fs::read_to_string(pair.scratch.join(format!("state/{node}/pid"))).unwrap();
    fs::read_dir(format!("/proc/{}/fd", pid.trim())).unwrap().count()
}

#[test]
fn strangers_take_a_fixed_number_of_sockets_and_lock_no_peer_out() {
    let pair = pair("strangers");
    let at = port(&pair, REC);
    let before = open_files(&pair, REC);
    // Whoever connects and says nothing is waited for; these never say anything.
    let idle: Vec<Stranger> = (0..600).map(|_| Stranger::connect(at).unwrap()).collect();
    // All but a fixed number were hung up on: a read of those ends.
    until("the others are turned out", LONG, || {
        let still = |s: &&Stranger| {
            s.set_nonblocking(true).unwrap();
            matches!(s.peek(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
        };
        (idle.iter().filter(still).count() <= 64).then_some(())
    });
    let more = open_files(&pair, REC) - before;
    assert!(more <= 64 + 8, "{more} descriptors more than before");
    // Even from the same address the peer comes through.
    pair.stop(PROD);
    pair.start(PROD);
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "through"]).ok();
    pair.received();
    drop(idle);
}

/// A node that makes its requests by hand.
struct Mallory {
    runtime: tokio::runtime::Runtime,
    tls: Tls,
    victim: Fingerprint,
    at: SocketAddr,
    name: &'static str,
}

impl Mallory {
    /// With the identity in a folder, against the recovery node.
    fn new(pair: &Pair, name: &'static str, identity: &Path) -> Self {
        let identity = Arc::new(Identity::load_or_make(identity).unwrap());
        let of_rec = Identity::load_or_make(&pair.scratch.join("state/rec/identity")).unwrap();
        Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            tls: Tls::new(identity, Pins::new([])).unwrap(),
            victim: of_rec.fingerprint(),
            at: port(pair, REC),
            name,
        }
    }

    async fn connect(&self) -> Option<(Incoming<TcpStream>, Outgoing)> {
        let dialed = Dialer::new(vec![self.at.to_string()])
            .once(&self.tls, Expect::Key(self.victim))
            .await
            .ok()?;
        Some(Connection::new(dialed.stream, dialed.peer, ConnectionOptions::default()).split())
    }

    /// The first answer to a greeting; `None` when the connection ends without one.
    fn greet(&self, hello: Hello) -> Option<Message> {
        self.runtime.block_on(async {
            let (mut incoming, outgoing) = self.connect().await?;
            outgoing.send(Message::Hello(hello)).await.ok()?;
            incoming.next().await.ok()?
        })
    }

    /// Asks, and gives the words of the refusal.
    fn refused(&self, kind: u16, body: &(impl AsRef<[u8]> + ?Sized)) -> String {
        let body = Bytes::copy_from_slice(body.as_ref());
        self.runtime.block_on(async {
            let (mut incoming, outgoing) = self.connect().await.expect("it is known");
            outgoing
                .send(Message::Hello(Hello::node(self.name)))
                .await
                .unwrap();
            outgoing
                .send(Message::Request(Request { id: 1, kind, body }))
                .await
                .unwrap();
            loop {
                match incoming.next().await.unwrap().expect("an answer") {
                    Message::Response(r) if r.code != 0 => {
                        return String::from_utf8_lossy(&r.body).into_owned();
                    }
                    Message::Response(r) => panic!("request {kind} was granted: {:?}", r.body),
                    _ => {}
                }
            }
        })
    }
}

fn context(id: u32, production: &str, backing: &str) -> String {
    format!(
        "id = {id}\nfailover_id = {}\nproduction = \"{production}\"\nrecovery = [\"{REC}\"]\n[[volume]]\nname = \"v\"\nsize = \"1M\"\n{backing}",
        id + 1000
    )
}

#[test]
fn a_known_node_speaks_only_for_contexts_that_name_it() {
    let pair = pair("eve");
    let folder = pair.scratch.folder("eve");
    let stranger = Mallory::new(&pair, "prod", &folder);
    assert!(
        stranger.greet(Hello::node(PROD)).is_none(),
        "a stranger got an answer"
    );

    let key = Identity::load_or_make(&folder).unwrap().fingerprint();
    pair.stop(REC);
    pair.configure(
        REC,
        "",
        &format!("[[host]]\nname = \"eve\"\nidentity = \"{key}\"\n"),
    );
    pair.start(REC);
    pair.consistent();
    let before = pair.status(REC);

    // By whatever name it calls itself: its key says who it is.
    for name in ["eve", PROD] {
        let eve = Mallory::new(&pair, name, &folder);
        let mut hello = Hello::node(name);
        (hello.context, hello.term) = (ContextId(1), Term(1000));
        let answer = eve.greet(hello);
        assert!(matches!(&answer, Some(Message::Refuse(_))), "{answer:?}");
        let of_eve = "context 1 is not one of eve here";
        let frames = String::from_utf8([[1, 0, 0, 0].as_slice(), &[0; 64]].concat()).unwrap();
        for (kind, body) in [
            (20, "1"),
            (21, r#"{"context":1,"volume":0,"from":0}"#),
            (22, r#"{"context":1,"term":1000,"force":true}"#),
            (23, r#"{"context":1}"#),
            (24, r#"{"context":1,"production":"eve","failover_id":7}"#),
            (
                25,
                r#"{"context":1,"holder":{"command":"x","who":"y","host":"z"}}"#,
            ),
            (27, r#"{"context":1,"limit":10}"#),
        ] {
            let words = eve.refused(kind, body);
            assert!(
                words.contains(of_eve) || words.contains("another form"),
                "{kind}: {words}"
            );
            assert_eq!(words.contains("another form"), kind == 25, "{kind}: {words}");
        }
        // Whatever the form of a question for frames is, there is no answer.
        eve.refused(16, &frames);
        // What a verify asks, as the golden file has it: about context 1.
        let hex = include_str!("../testdata/wire/compare.txt")
            .lines()
            .next()
            .unwrap();
        let hex = hex.strip_prefix("question ").unwrap();
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let question: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
        let words = eve.refused(28, &question);
        assert!(words.contains("context 1 is not one of"), "{words}");
        // A context of others, and its own id again.
        let others = eve.refused(1, &context(7, PROD, ""));
        assert!(others.contains("eve cannot bring it"), "{others}");
        let again = eve.refused(1, &context(1, "eve", ""));
        assert!(again.contains("has another context 1"), "{again}");
    }
    let after = pair.status(REC);
    for what in ["role", "term", "peer", "cursors"] {
        assert_eq!(before[what], after[what], "{what}");
    }
}

#[test]
fn a_production_places_replicas_only_where_the_recovery_host_allows() {
    let pair = pair("places");
    let allowed = pair.scratch.folder("allowed");
    // Empty disks: what holds data is not taken anyway.
    let [evil, good] = ["somebody's-disk", "allowed/data"].map(|name| {
        let path = pair.scratch.join(name);
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    });
    let protect = |path: &Path| {
        let replica = format!("--replica=data={}", path.display());
        pair.cli(PROD, &["protect", "-C", "5", "data=1M", "--no-mount", &replica])
    };
    let refused = protect(&evil);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("[[host]] backings of prod"),
        "{refused:?}"
    );
    // Also over the folder of another context, and with a detour.
    for path in [
        "state/rec/c1/volumes/data",
        "state/rec/contexts/9.toml",
        "allowed/../x",
    ] {
        assert_ne!(protect(&pair.scratch.join(path)).code, 0, "{path}");
    }
    assert!(!pair.scratch.join("state/rec/contexts/5.toml").exists());
    assert!(
        !pair.scratch.join("state/prod/contexts/5.toml").exists(),
        "nothing is left here"
    );

    pair.stop(REC);
    let path = pair.scratch.join("etc/rec.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}backings = [\"{}\"]\n", allowed.display())).unwrap();
    pair.start(REC);
    assert_ne!(protect(&evil).code, 0);
    protect(&good).ok();
    let volume = &pair.json(REC, &["status", "-C", "5"])["reply"]["status"]["contexts"][0];
    assert!(volume.is_object(), "{volume}");
}

/// Everything below a folder.
fn below(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            below(&path, out);
        }
        out.push(path);
    }
}

#[test]
fn what_a_node_writes_is_its_owners_alone() {
    let pair = pair("modes");
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "m"]).ok();
    pair.received();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--mark", "m"]).ok();
    let vdev = pair.open(REC, "c1/sn10/data");
    drop(vdev);
    for node in [PROD, REC] {
        let state = pair.scratch.join(format!("state/{node}"));
        assert_eq!(
            fs::metadata(&state).unwrap().mode() & 0o077,
            0,
            "{}",
            state.display()
        );
        let mut all = Vec::new();
        below(&state, &mut all);
        assert!(all.len() > 20);
        for path in all {
            // Made by this test.
            let is_given = ["identity", "contexts", "contexts/1.toml"]
                .map(|n| state.join(n))
                .contains(&path);
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
            assert!(
                is_given || path.is_symlink() || mode & 0o077 == 0,
                "{}: {mode:o}",
                path.display()
            );
        }
    }
}

#[test]
fn a_peer_port_speaks_tls_1_3_with_known_keys_only() {
    let pair = pair("versions");
    let at = port(&pair, REC);
    assert!(at.ip() == Ipv4Addr::LOCALHOST);
    let said = |args: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        command.args(["s_client", "-connect", &at.to_string()]).args(args);
        command.stdin(std::process::Stdio::null());
        testkit::proc::run(&mut command, LONG)
    };
    let old = said(&["-tls1_2"]);
    assert!(
        old.code != 0 && format!("{old:?}").contains("protocol version"),
        "{old:?}"
    );
    // The newest, with a certificate of its own: the handshake is ended by the alert that it is not known.
    let folder = pair.scratch.folder("stranger");
    let [cert, key] = ["crt", "key"].map(|n| folder.join(n).to_str().unwrap().to_owned());
    let mut make = std::process::Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ed25519",
        "-nodes",
        "-subj",
        "/CN=stranger",
    ]);
    make.args(["-out", &cert, "-keyout", &key]);
    testkit::proc::run(&mut make, LONG).ok();
    let new = said(&[
        "-ign_eof", "-tls1_3", "-alpn", "backstay", "-cert", &cert, "-key", &key,
    ]);
    let text = format!("{new:?}");
    assert!(text.contains("alert"), "{text}");
}

#[test]
fn the_control_socket_knows_operators_and_readers() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the_control_socket_knows_operators_and_readers needs root, to be other users");
        return;
    }
    let pair = Pair::stopped("access", &Setup::volumes(&VOLUMES));
    // A folder that everybody can enter, for the socket and the program.
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = open.path().join("control.sock");
    let program = open.path().join("backstay");
    fs::copy(common::program(), &program).unwrap();
    let etc = open.path().join("etc");
    fs::create_dir(&etc).unwrap();

    let path = pair.scratch.join("etc/prod.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = format!("control = \"{}\"\n{text}", socket.display());
    fs::write(&path, &text).unwrap();
    // Without the table nobody else gets anywhere.
    let as_user = |user: &str, args: &[&str]| {
        fs::copy(&path, etc.join("prod.toml")).unwrap();
        fs::set_permissions(etc.join("prod.toml"), fs::Permissions::from_mode(0o644)).unwrap();
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid", user, "--regid", user, "--init-groups"])
            .arg(&program);
        command
            .args(args)
            .args(["--node", PROD])
            .env("BACKSTAY_ETC", &etc)
            .env("USER", "root");
        testkit::proc::run(&mut command, LONG)
    };
    let status = ["status", "-C", "1"];
    let mark = ["rtmark", "-C", "1", "--name", "m"];
    let start = |tables: &str| {
        let config = pair.scratch.join("etc/prod.toml");
        fs::write(&config, format!("{text}{tables}")).unwrap();
        let mut command = std::process::Command::new(common::program());
        command.args(["serve", "--config"]).arg(config);
        let process = pair.scratch.start(PROD, &mut command);
        process.wait_for_line("serving", LONG);
        process
    };
    let process = start("");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    assert_ne!(as_user("daemon", &status).code, 0);
    assert_eq!(process.stop(LONG), 0);

    let process = start("[access]\noperators = [\"%games\"]\nreaders = [\"daemon\", \"2\"]\n");
    for reader in ["daemon", "bin"] {
        let seen = as_user(reader, &status);
        assert!(
            seen.stdout.contains("context 1") || seen.stdout.contains("Context 1"),
            "{seen:?}"
        );
        for args in [
            &mark[..],
            &["jobs", "cancel", "1"],
            &["nbd", "--stdio", "c1/data"],
            &["rtstop", "-C", "1", "-n"],
        ] {
            let refused = as_user(reader, args);
            assert_eq!(refused.code, 1, "{refused:?}");
            let words = format!("{reader} may not do that on prod");
            assert!(refused.stderr.contains(&words), "{refused:?}");
        }
    }
    as_user("games", &mark).ok();
    let stranger = as_user("sys", &status);
    assert!(
        stranger.code != 0 && stranger.stderr.contains("sys may not do that"),
        "{stranger:?}"
    );
    // Whatever name a user gives itself, the log has the true one.
    let log = as_user("daemon", &["log", "-C", "1"]).ok();
    assert!(log.contains("games@prod") && !log.contains("root@"), "{log}");
    // Who may only look cannot keep operators away by saying nothing, nor by saying much.
    let mut crowd = std::process::Command::new("setpriv")
        .args(["--reuid", "daemon", "--regid", "daemon", "--init-groups", "/usr/bin/python3", "-c"])
        .arg("import socket,sys,time\nall=[]\nfor i in range(200):\n s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);all.append(s)\nprint('in',flush=True)\ntime.sleep(60)")
        .arg(&socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 2];
    crowd.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    as_user("games", &["rtmark", "-C", "1", "--name", "n"]).ok();
    crowd.kill().unwrap();
    crowd.wait().unwrap();

    // An operator's connection that is open for long, and says nothing meanwhile.
    let mut held = std::process::Command::new(common::program())
        .args(["nbd", "--stdio", "c1/data", "--node", PROD])
        .env("BACKSTAY_ETC", &etc)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut greeting = [0; 18];
    held.stdout.as_mut().unwrap().read_exact(&mut greeting).unwrap();
    // Whoever drips is ended, who may look and who may do nothing; and neither is read for long.
    let says = |user: &str, how: &str| {
        let mut python = std::process::Command::new("setpriv");
        python
            .args(["--reuid", user, "--regid", user, "--init-groups", "/usr/bin/python3", "-c"])
            .arg(format!(
                "import socket,sys,time\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);s.settimeout(0.1);n=0;got=b''\n\
                 while b'\\n' not in got:\n try:\n  {how}\n except OSError: pass\n try:\n  more=s.recv(4096)\n  \
                 if not more: break\n  got+=more\n except TimeoutError: pass\n except OSError: break\nprint(n,got.decode())"
            ))
            .arg(&socket);
        testkit::proc::run(&mut python, LONG)
    };
    for user in ["sys", "daemon"] {
        let dripped = says(user, "n+=s.send(b' ')").ok();
        assert!(
            dripped.contains("no control line came within"),
            "{user}: {dripped}"
        );
        let long = says(user, "n+=s.send(b' '*30000)").ok();
        assert!(long.contains("is longer than 65536 bytes"), "{user}: {long}");
    }
    let abort = b"\0\0\0\x03IHAVEOPT\0\0\0\x02\0\0\0\0";
    held.stdin.as_mut().unwrap().write_all(abort).unwrap();
    let mut answer = [0; 20];
    held.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(
        answer[8..16],
        [0, 0, 0, 2, 0, 0, 0, 1],
        "the option is acknowledged"
    );
    held.wait().unwrap();
    assert_eq!(process.stop(LONG), 0);
}

#[test]
fn a_daemon_without_any_privilege_does_all_but_attach() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: a_daemon_without_any_privilege_does_all_but_attach needs root, to be another user"
        );
        return;
    }
    let pair = Pair::stopped("unprivileged", &Setup::volumes(&VOLUMES));
    pair.give_away();
    for node in [PROD, REC] {
        pair.start_unprivileged(node);
    }
    pair.consistent();
    let mut volume = pair.open(PROD, "c1/data");
    volume.write(8192, &[7; 4096], true).unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "seven"]).ok();
    volume.write(8192, &[8; 4096], true).unwrap();
    pair.received();
    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--mark", "seven"])
        .ok();
    assert_eq!(
        pair.open(REC, "c1/rsn10/data").read(8192, 4096).unwrap(),
        [7; 4096]
    );
    pair.open(REC, "c1/sn10/data").write(0, &[9; 4096], true).unwrap();
    pair.cli(PROD, &["protect", "-C", "5", "more=1M"]).ok();
    for node in [PROD, REC] {
        pair.stop(node);
    }
}
