//! The attach helper: devices and mounts of daemons that run as a user without any privilege.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LONG, PROD, Pair, REC, Setup, program, root_for};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::{MetadataExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
};
use testkit::proc::{Process, Signal, run};

/// Two unprivileged nodes, each with its helper.
struct World {
    pair: Pair,
    /// What production mounts.
    data: PathBuf,
}

fn socket(pair: &Pair, node: &str) -> PathBuf {
    pair.scratch.join(format!("run/{node}.sock"))
}

/// Below which `node` mounts.
fn mount_root(pair: &Pair, node: &str) -> PathBuf {
    match node {
        PROD => pair.scratch.join("data"),
        _ => pair.scratch.join("mnt"),
    }
}

fn helper(pair: &Pair, node: &str) -> Process {
    // What the example unit leaves it, and no more.
    let caps = "-all,+sys_admin,+dac_override,+dac_read_search,+fowner,+chown,+kill,+sys_ptrace";
    let mut command = Command::new("setpriv");
    command
        .args(["--no-new-privs", "--inh-caps", "-all", "--bounding-set", caps])
        .arg(program())
        .args(["attach-helper", "--user", "daemon", "--socket"])
        .arg(socket(pair, node))
        .arg("--exports")
        .arg(pair.socket(node))
        .arg("--state-dir")
        .arg(pair.scratch.join(format!("helper/{node}")))
        .arg("--mount-root")
        .arg(mount_root(pair, node))
        .args([
            "--may-end",
            if node == REC { "root" } else { "daemon" },
            "--dev-root",
        ])
        .arg(pair.scratch.join(format!("dev/{node}")));
    let process = pair.scratch.start(&format!("helper-{node}"), &mut command);
    process.wait_for_line("serving", LONG);
    process
}

impl World {
    fn new(name: &str) -> Self {
        let setup = Setup {
            attach: "auto",
            ..Setup::default()
        };
        let pair = Pair::stopped(name, &setup);
        for node in [PROD, REC] {
            let path = pair.scratch.join(format!("etc/{node}.toml"));
            let text = fs::read_to_string(&path).unwrap();
            let line = format!("[attach]\nhelper = \"{}\"\n", socket(&pair, node).display());
            fs::write(&path, text.replacen("[attach]\n", &line, 1)).unwrap();
        }
        pair.give_away();
        // What the helpers use is root's, and all above it.
        rustix::fs::chown(pair.scratch.path(), Some(rustix::fs::Uid::ROOT), None).unwrap();
        for folder in ["run", "helper", "data", "mnt", "dev"] {
            let _ = fs::remove_dir_all(pair.scratch.join(folder));
            fs::create_dir(pair.scratch.join(folder)).unwrap();
        }
        let data = mount_root(&pair, PROD).join("volume");
        Self { pair, data }
    }

    fn protect(&self) {
        for node in [PROD, REC] {
            self.pair.start_unprivileged(node);
        }
        let mount = format!("data={}", self.data.display());
        let args = [
            "protect", "-C", "1", "data=64M", "--fs", "ext4", "--mount", &mount,
        ];
        self.pair.cli(PROD, &args).ok();
        self.pair.waits(PROD, "consistent");
    }

    /// Where recovery mounts what production mounts.
    fn past(&self) -> PathBuf {
        let data = self.data.strip_prefix("/").unwrap();
        mount_root(&self.pair, REC).join(data)
    }
}

fn options_of(at: &Path) -> Option<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = text.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    let line = lines.find(|l| Path::new(l[1]) == at)?;
    Some(line[3].to_owned())
}

#[test]
fn an_unprivileged_node_attaches_and_mounts_through_its_helper() {
    if !root_for("an_unprivileged_node_attaches_and_mounts_through_its_helper") {
        return;
    }
    let world = World::new("helper");
    let pair = &world.pair;
    let [prod, rec] = [PROD, REC].map(|node| helper(pair, node));
    world.protect();
    let options = options_of(&world.data).expect("it is mounted");
    assert!(
        options.contains("nosuid") && options.contains("nodev"),
        "{options}"
    );
    fs::write(world.data.join("file"), "before").unwrap();
    pair.cli(PROD, &["rtmark", "-C", "1", "--name", "before"]).ok();
    fs::write(world.data.join("file"), "behind").unwrap();
    pair.waits(PROD, "drained");

    pair.cli(REC, &["scrt_ra", "-C", "1", "-q", "--mark", "before"])
        .ok();
    let said = pair.cli(REC, &["rtmnt", "-C", "1"]).ok();
    assert!(said.contains("e2fsck -p"), "{said}");
    assert_eq!(fs::read_to_string(world.past().join("file")).unwrap(), "before");
    let again = pair.json(REC, &["rtmnt", "-C", "1"]);
    assert_eq!(again["reply"]["mount"]["volumes"][0]["already"], true, "{again}");
    let status = pair.status(REC);
    let mounts = &status["snapshots"][0]["mounts"];
    assert_eq!(mounts[0], world.past().to_str().unwrap(), "{status}");

    // Who sits in it is found by the helper, and ended by it: the daemon sees no other user's processes.
    let mut sleep = Command::new("sleep");
    let sits = pair
        .scratch
        .start("sits", sleep.arg("600").current_dir(world.past()));
    let busy = pair.cli(REC, &["rtumnt", "-C", "1"]);
    assert!(busy.code == 1 && busy.stderr.contains("sleep"), "{busy:?}");
    pair.cli(REC, &["rtumnt", "-C", "1", "-f", "-q"]).ok();
    assert!(options_of(&world.past()).is_none());
    assert_ne!(sits.wait(LONG), 0);
    pair.cli(REC, &["scrt_ra", "-C", "1", "-W", "-q"]).ok();

    // A mount outlives its daemon, and its helper.
    pair.kill9(PROD);
    prod.kill9();
    let prod = helper(pair, PROD);
    pair.start_unprivileged(PROD);
    fs::write(world.data.join("file"), "later").unwrap();
    run(Command::new("sync").arg("-f").arg(&world.data), LONG).ok();
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    assert!(options_of(&world.data).is_none());
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    assert_eq!(fs::read_to_string(world.data.join("file")).unwrap(), "later");
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    for node in [PROD, REC] {
        pair.stop(node);
        let attach = pair.scratch.join(format!("helper/{node}/attach"));
        let left: Vec<_> = fs::read_dir(attach)
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    drop((prod, rec));
}

#[test]
fn without_its_helper_a_node_protects_and_says_what_it_cannot_know() {
    if !root_for("without_its_helper_a_node_protects_and_says_what_it_cannot_know") {
        return;
    }
    let world = World::new("no-helper");
    let pair = &world.pair;
    let prod = helper(pair, PROD);
    world.protect();
    prod.kill9();
    fs::write(world.data.join("file"), "written").unwrap();
    run(Command::new("sync").arg("-f").arg(&world.data), LONG).ok();
    pair.received();
    let status = pair.cli(PROD, &["status", "-C", "1"]);
    let said = status.stdout + &status.stderr;
    assert!(
        said.contains("what is attached and mounted is not known"),
        "{said}"
    );
    // Nobody knows whether a volume is mounted: nothing is changed.
    for args in [
        &["rtumnt", "-C", "1"][..],
        &["rtmnt", "-C", "1"],
        &["rtstop", "-C", "1"],
    ] {
        let refused = pair.cli(PROD, args);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("attach helper"), "{refused:?}");
        assert!(refused.stderr.contains("is it started"), "{refused:?}");
    }
    let again = helper(pair, PROD);
    pair.cli(PROD, &["rtumnt", "-FC", "1"]).ok();
    // One that hangs is as good as none.
    again.signal(Signal::STOP);
    let status = pair.cli(PROD, &["status", "-C", "1"]);
    let said = status.stdout + &status.stderr;
    assert!(
        said.contains("what is attached and mounted is not known"),
        "{said}"
    );
    again.signal(Signal::CONT);
    pair.cli(PROD, &["rtmnt", "-C", "1"]).ok();
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
}

/// What the helper says to one line.
fn ask(socket: &Path, line: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).unwrap();
    // One that is refused may be closed before all of it is written.
    let _ = stream.write_all(line.as_bytes());
    let mut said = String::new();
    let _ = BufReader::new(stream).read_line(&mut said);
    serde_json::from_str(&said).ok()
}

/// A daemon that somebody has taken over.
#[test]
fn the_helper_does_nothing_that_it_was_not_set_up_for() {
    if !root_for("the_helper_does_nothing_that_it_was_not_set_up_for") {
        return;
    }
    let world = World::new("hostile");
    let pair = &world.pair;
    let [_prod, _rec] = [PROD, REC].map(|node| helper(pair, node));
    world.protect();
    pair.cli(PROD, &["rtumnt", "-C", "1"]).ok();
    let socket = socket(pair, PROD);
    let of_socket = fs::metadata(&socket).unwrap();
    let daemon = fs::metadata(pair.scratch.join("backstay")).unwrap().uid();
    assert_eq!((of_socket.mode() & 0o777, of_socket.uid()), (0o600, daemon));

    let attach = json!({"attach": {"export": "c1/data", "identity": null, "read_only": false}});
    let device = ask(&socket, &format!("{attach}\n")).unwrap();
    assert!(device["answer"]["device"]["device"].is_string(), "{device}");
    let root = mount_root(pair, PROD);
    symlink("/tmp", root.join("link")).unwrap();
    fs::create_dir(root.join("theirs")).unwrap();
    let daemon_is = rustix::fs::Uid::from_raw(daemon);
    rustix::fs::chown(root.join("theirs"), Some(daemon_is), None).unwrap();
    let mount = |at: &Path| {
        json!({"mount": {"export": "c1/data", "how": {
            "filesystem": "ext4", "at": at, "read_only": false, "full_check": false, "new_uuid": false, "backing": "/none",
        }}})
    };
    let last = |line: &Value| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let said = BufReader::new(stream).lines().last().unwrap().unwrap();
        serde_json::from_str::<Value>(&said).unwrap()
    };
    for at in [
        Path::new("/etc"),
        &root.join("theirs/below"),
        &root,
        &root.join("../elsewhere"),
        &root.join("link/below"),
        &root.join("link"),
        Path::new("data/volume"),
        Path::new("/"),
    ] {
        let said = last(&mount(at));
        let why = said["failed"]["at"]["error"]["refused"].as_str();
        assert!(why.is_some_and(|why| why.contains("mount point")), "{said}");
    }
    for export in [
        "../../etc/passwd",
        "c1/../../x",
        "/etc/passwd",
        "c1",
        "",
        "data",
        "c1/a/b/c",
        "c1/a\u{0}b",
        "cx/data",
        "c1/.",
    ] {
        for ask_of in ["detach", "probe", "sync", "unmount", "make", "attach"] {
            let line = match ask_of {
                "unmount" => json!({ask_of: {"export": export, "undo": true}}),
                "make" => json!({ask_of: {"export": export, "filesystem": "ext4"}}),
                "attach" => json!({ask_of: {"export": export, "identity": "x", "read_only": false}}),
                _ => json!({ask_of: {"export": export}}),
            };
            let said = ask(&socket, &format!("{line}\n")).unwrap();
            assert!(said["failed"]["refused"].is_string(), "{line}: {said}");
        }
    }
    // No volume is mounted in another, nor over the folders of another: its bytes are whose the daemon is.
    pair.cli(PROD, &["protect", "-C", "2", "other=16M"]).ok();
    let other = |ask: &str| json!({ask: {"export": "c2/other", "identity": null, "read_only": false}});
    ask(&socket, &format!("{}\n", other("attach"))).unwrap();
    let make = json!({"make": {"export": "c2/other", "filesystem": "ext4"}});
    assert_eq!(ask(&socket, &format!("{make}\n")).unwrap()["answer"], "done");
    let of_other = |at: &Path| {
        let mut line = mount(at);
        line["mount"]["export"] = json!("c2/other");
        line
    };
    let said = last(&mount(&root.join("a/b")));
    assert!(said["answer"]["mounted"].is_object(), "{said}");
    for at in ["a", "a/b", "a/b/c"] {
        let said = last(&of_other(&root.join(at)));
        assert!(said["failed"].is_object(), "{at}: {said}");
    }
    assert!(!root.join("a/b/c").exists());
    let said = last(&of_other(&root.join("a/c")));
    assert!(said["answer"]["mounted"].is_object(), "{said}");
    let unmount = |export: &str| json!({"unmount": {"export": export, "undo": true}});
    for export in ["c2/other", "c1/data"] {
        let said = last(&unmount(export));
        assert!(said["answer"]["unmounted"].is_object(), "{said}");
    }
    assert!(!root.join("a").exists());
    assert!(ask(&socket, &format!("{attach}\n")).unwrap()["answer"].is_object());
    // Nobody is ended who does not use what is asked about.
    let mut sleep = Command::new("sleep");
    let other = pair.scratch.start("other", sleep.arg("600"));
    let end = json!({"end": {"exports": ["c1/data"], "users": [format!("{} sleep", other.id())]}});
    assert_eq!(ask(&socket, &format!("{end}\n")).unwrap()["answer"], "done");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(other.ended(), None);
    // Nor whose user is not named, whatever he uses.
    assert!(last(&mount(&root.join("held")))["answer"].is_object());
    let mut sleep = Command::new("sleep");
    let holder = pair
        .scratch
        .start("holder", sleep.arg("600").current_dir(root.join("held")));
    let users = json!({"users": {"exports": ["c1/data"]}});
    let said = ask(&socket, &format!("{users}\n")).unwrap();
    let named = format!("{} sleep", holder.id());
    assert_eq!(said["answer"]["users"], json!([named]), "{said}");
    let end = json!({"end": {"exports": ["c1/data"], "users": [named]}});
    assert_eq!(ask(&socket, &format!("{end}\n")).unwrap()["answer"], "done");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(holder.ended(), None);
    let said = last(&unmount("c1/data"));
    assert!(said["failed"]["busy"].is_object(), "{said}");
    holder.kill9();
    other.kill9();
    assert!(last(&unmount("c1/data"))["answer"].is_object());
    assert!(ask(&socket, &format!("{attach}\n")).unwrap()["answer"].is_object());
    // A btrfs is not mounted.
    let mut btrfs = mount(&root.join("btrfs"));
    btrfs["mount"]["how"]["filesystem"] = json!("btrfs");
    let said = last(&btrfs);
    let why = said["failed"]["at"]["error"]["refused"].as_str();
    assert!(why.is_some_and(|why| why.contains("btrfs")), "{said}");
    // No answer to what is no question.
    for line in [
        "{",
        "{\"all\": 1}\n",
        "\"alle\"\n",
        "{\"run\": {\"line\": \"id\"}}\n",
    ] {
        let said = UnixStream::connect(&socket).map(|mut stream| {
            stream.write_all(line.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut said = String::new();
            let _ = BufReader::new(stream).read_line(&mut said);
            said
        });
        let said: Value = serde_json::from_str(&said.unwrap()).unwrap();
        let why = said["failed"]["refused"].as_str();
        assert!(
            why.is_some_and(|why| why.contains("no question")),
            "{line}: {said}"
        );
    }
    let long = ask(&socket, &format!("{}\n", "x".repeat(100_000)));
    assert!(long.is_none_or(|said| said["failed"]["refused"].is_string()));
    let said = ask(&socket, "\"all\"\n").unwrap();
    assert_eq!(said["answer"]["devices"][0]["export"], "c1/data", "{said}");
    // Somebody else listens where the daemon did: nothing is attached.
    let detach = json!({"detach": {"export": "c1/data"}});
    assert_eq!(ask(&socket, &format!("{detach}\n")).unwrap()["answer"], "done");
    let exports = pair.socket(PROD);
    fs::rename(&exports, exports.with_extension("old")).unwrap();
    symlink(pair.scratch.join("other.sock"), &exports).unwrap();
    let other = UnixListener::bind(pair.scratch.join("other.sock")).unwrap();
    let said = ask(&socket, &format!("{attach}\n")).unwrap();
    assert!(said.to_string().contains("listens there"), "{said}");
    drop(other);
    fs::rename(exports.with_extension("old"), &exports).unwrap();
    ask(&socket, &format!("{attach}\n")).unwrap();
    let detach = json!({"detach": {"export": "c1/data"}});
    assert_eq!(ask(&socket, &format!("{detach}\n")).unwrap()["answer"], "done");
}
