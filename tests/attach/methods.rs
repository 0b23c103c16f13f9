//! Both ways to make a device, by the same tests: `nbdfuse` with a loop device as it is, and the kernel's nbd played by a
//! recorder, for these machines have none.

use crate::common::{LONG, program, root_for};
use backstay::attach::{AttachError, Fuse, Keepers, Kernel, Line, Method, Place};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use testkit::proc::{Process, Scratch, leftovers, need_tool, run, until};

/// Plays `nbd-client` and the kernel behind it: writes down what it was asked for, and holds a connection as the kernel would.
const RECORDER: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/calls"
[ ! -e "$here/broken" ] || { echo "nbd-client: told to fail" >&2; exit 1; }
if [ "$1" = -d ]; then
  name=$(basename "$2")
  echo 0 >"$here/sys/$name/size"
  kill "$(cat "$here/sys/$name/holder")"
  exit 0
fi
name=$(basename "$3")
perl -e '
  use IO::Socket::UNIX;
  my ($socket, $sys) = @ARGV;
  my $s = IO::Socket::UNIX->new(Peer => $socket) or die "$socket: $!";
  my $b;
  sub take { my $n = shift; my $got = ""; while (length $got < $n) { sysread($s, $b, $n - length $got) or exit; $got .= $b } $got }
  take(18);
  syswrite($s, pack("N", 3) . "IHAVEOPT" . pack("NN", 1, 0));
  my ($high, $low) = unpack("NN", take(10));
  open(my $f, ">", "$sys/holder"); print $f $$; close $f;
  open($f, ">", "$sys/new"); print $f $low / 512, "\n"; close $f; rename("$sys/new", "$sys/size");
  sysread($s, $b, 1);
' "$2" "$here/sys/$name" &
"#;

struct World {
    scratch: Scratch,
    keepers: Keepers,
    /// A server of somebody else's.
    _nbdkit: Process,
}

impl World {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let socket = scratch.join("server");
        let mut nbdkit = Command::new(need_tool("nbdkit"));
        nbdkit
            .args(["--foreground", "--unix"])
            .arg(&socket)
            .args(["memory", "64M"]);
        let nbdkit = scratch.start("nbdkit", &mut nbdkit);
        nbdkit.wait_for_socket(&socket, LONG);
        let program = program();
        fs::create_dir(scratch.join("attach")).unwrap();
        Self {
            keepers: Keepers {
                program,
                socket,
                server: None,
            },
            scratch,
            _nbdkit: nbdkit,
        }
    }

    fn place(&self, name: &str) -> Place {
        Place::new(self.scratch.join("attach").join(name))
    }

    fn line(&self) -> Line<'_> {
        Line {
            keepers: &self.keepers,
            export: "c1/data".into(),
            patience: Duration::from_secs(60),
            read_only: false,
        }
    }

    #[track_caller]
    fn nothing_left(&self) {
        let folder = self.scratch.join("attach");
        assert_eq!(leftovers(&folder), Vec::<String>::new());
        let files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(files.is_empty(), "{files:?}");
    }

    fn kernel(&self) -> Kernel {
        for name in ["nbd0", "nbd1"] {
            let sys = self.scratch.folder(&format!("sys/{name}"));
            fs::write(sys.join("size"), "0\n").unwrap();
            fs::write(self.scratch.folder("dev").join(name), "").unwrap();
        }
        let client = self.scratch.join("nbd-client");
        fs::write(&client, RECORDER).unwrap();
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
        Kernel {
            client,
            sys: self.scratch.join("sys"),
            dev: self.scratch.join("dev"),
        }
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.scratch.join("calls")).unwrap();
        let dev = format!("{}/", self.scratch.join("dev").display());
        text.lines().map(|l| l.replace(&dev, "")).collect()
    }
}

/// What every method must do.
fn conforms(world: &World, method: &dyn Method) {
    let place = world.place("c1.data");
    // Made, there, undone.
    let device = method.attach(&place, &world.line()).unwrap();
    assert_eq!(method.device(&place), Some(device.clone()));
    assert_eq!(method.remains(&place), std::slice::from_ref(&device));
    assert!(!leftovers(&world.scratch.join("attach")).is_empty());
    // A second one is another.
    let other = world.place("c1.log");
    let second = method.attach(&other, &world.line()).unwrap();
    assert_ne!(second, device);
    method.detach(&other).unwrap();
    assert_eq!(method.device(&other), None);
    // Somebody has it open: refused with who it is, and nothing is undone.
    let mut reader = Command::new("sh");
    reader
        .args(["-c", "exec <\"$0\"; echo reads; exec sleep 600"])
        .arg(&device);
    let reader = world.scratch.start("reader", &mut reader);
    reader.wait_for_line("reads", LONG);
    match method.detach(&place) {
        Err(AttachError::Busy { holders, .. }) => {
            assert_eq!(holders, [format!("{} sleep", reader.id())]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(method.device(&place), Some(device.clone()));
    reader.end();
    method.detach(&place).unwrap();
    world.nothing_left();
    // Already so.
    method.detach(&place).unwrap();
    method.destroy(&place);
    world.nothing_left();
    // By force, whoever uses it.
    let device = method.attach(&place, &world.line()).unwrap();
    let mut reader = Command::new("sh");
    reader
        .args(["-c", "exec <\"$0\"; echo reads; exec sleep 600"])
        .arg(&device);
    let reader = world.scratch.start("reader", &mut reader);
    reader.wait_for_line("reads", LONG);
    method.destroy(&place);
    reader.end();
    until("nothing to be left", LONG, || {
        leftovers(&world.scratch.join("attach")).is_empty().then_some(())
    });
    assert_eq!(method.device(&place), None);
    world.nothing_left();
    // One that has lost its keeper is not whole, and goes.
    method.attach(&place, &world.line()).unwrap();
    method.cut(&place);
    assert_eq!(method.device(&place), None);
    method.destroy(&place);
    until("nothing to be left", LONG, || {
        leftovers(&world.scratch.join("attach")).is_empty().then_some(())
    });
    world.nothing_left();
    // Nobody serves it: said, and nothing is left.
    let nowhere = Keepers {
        socket: world.scratch.join("nobody"),
        ..world.keepers.clone()
    };
    let line = Line {
        keepers: &nowhere,
        ..world.line()
    };
    let refused = method.attach(&place, &line).unwrap_err().to_string();
    assert!(refused.contains("nobody: No such file or directory"), "{refused}");
    world.nothing_left();
    // No such program.
    let broken = Keepers {
        program: world.scratch.join("no-keeper"),
        ..world.keepers.clone()
    };
    let line = Line {
        keepers: &broken,
        ..world.line()
    };
    let refused = method.attach(&place, &line).unwrap_err().to_string();
    assert!(refused.starts_with("keeper: No such file"), "{refused}");
    world.nothing_left();
}

#[test]
fn nbdfuse_with_a_loop_device_conforms() {
    if !root_for("nbdfuse_with_a_loop_device_conforms") {
        return;
    }
    let world = World::new("fuse");
    conforms(&world, &Fuse);
    let place = world.place("c1.data");
    // What is written is read back from the server.
    let device = Fuse.attach(&place, &world.line()).unwrap();
    let write = |device: &Path| {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=4096", "count=1", "oflag=direct"])
            .arg(format!("of={}", device.display()));
        run(&mut dd, LONG).code
    };
    assert_eq!(write(&device), 0);
    Fuse.detach(&place).unwrap();
    let read_only = Line {
        read_only: true,
        ..world.line()
    };
    let device = Fuse.attach(&place, &read_only).unwrap();
    assert_ne!(write(&device), 0);
    Fuse.detach(&place).unwrap();
    world.nothing_left();
}

#[test]
fn the_kernels_nbd_conforms_as_a_recorder_plays_it() {
    let world = World::new("nbd");
    let kernel = world.kernel();
    conforms(&world, &kernel);
    let calls = world.calls();
    assert_eq!(
        calls[..4],
        [
            "-unix c1.data.sock nbd0 -block-size 512",
            "-unix c1.log.sock nbd1 -block-size 512",
            "-d nbd1",
            "-d nbd0",
        ]
    );
    fs::remove_file(world.scratch.join("calls")).unwrap();
    let place = world.place("c1.rsn10.data");
    let read_only = Line {
        read_only: true,
        ..world.line()
    };
    let device = kernel.attach(&place, &read_only).unwrap();
    assert_eq!(device, world.scratch.join("dev/nbd0"));
    // What the server told is what the kernel got.
    let size = fs::read_to_string(world.scratch.join("sys/nbd0/size")).unwrap();
    assert_eq!(size, format!("{}\n", (64 << 20) / 512));
    kernel.detach(&place).unwrap();
    assert_eq!(
        world.calls(),
        [
            "-unix c1.rsn10.data.sock nbd0 -block-size 512 -readonly",
            "-d nbd0"
        ]
    );
    // It fails: in its own words, and nothing is left.
    fs::write(world.scratch.join("broken"), "").unwrap();
    let failed = kernel.attach(&place, &world.line()).unwrap_err().to_string();
    assert!(failed.contains("nbd-client: told to fail"), "{failed}");
    world.nothing_left();
    // All are taken, by whomever.
    for name in ["nbd0", "nbd1"] {
        fs::write(world.scratch.join("sys").join(name).join("size"), "8\n").unwrap();
    }
    let full = kernel.attach(&place, &world.line()).unwrap_err().to_string();
    assert!(full.contains("no free nbd device"), "{full}");
    world.nothing_left();
}

/// A keeper that comes too late, when its device is not wanted any more, ends; so does one that finds another.
#[test]
fn one_keeper_a_device_and_none_too_late() {
    let world = World::new("late");
    let stem = world.scratch.join("attach/c1.data");
    let keeper = || {
        let mut keeper = Command::new(program());
        keeper
            .arg("keep-device")
            .arg(&stem)
            .arg(&world.keepers.socket)
            .args(["x", "0", "-", "sleep", "600"]);
        keeper.current_dir(world.scratch.join("attach"));
        keeper
    };
    let late = run(&mut keeper(), LONG);
    assert_eq!(
        (late.code, late.stderr.contains("No such file")),
        (1, true),
        "{late:?}"
    );
    let lock: PathBuf = Place::new(stem.clone()).file("lock");
    fs::write(&lock, "").unwrap();
    let first = world.scratch.start("first", &mut keeper());
    let socket = world.scratch.join("attach/c1.data.sock");
    first.wait_for_socket(&socket, LONG);
    let second = run(&mut keeper(), LONG);
    assert_eq!(second.code, 1, "{second:?}");
    assert_eq!(first.ended(), None);
}
