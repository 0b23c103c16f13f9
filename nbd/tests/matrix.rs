//! The clients of others, each on a unix socket, on TCP and in TLS: a test a client, a run a way in.
//!
//! libnbd's clients speak structured replies and qemu's extended headers; `nbdsh` speaks simple ones too. What a client is
//! asked here it must do on every way, and no byte may be lost on any.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Fixture, ok, pattern, pki::Pki, run};
use nbd::{Limits, Security};
use std::{fs, path::Path};

const SIZE: u64 = 32 << 20;

/// A server, and the three ways to it.
struct Ground {
    f: Fixture,
    pki: Pki,
    tls_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Unix,
    Tcp,
    Tls,
}

const WAYS: [Way; 3] = [Way::Unix, Way::Tcp, Way::Tls];

impl Ground {
    fn new(size: u64) -> Self {
        let f = Fixture::with(Limits::default(), size);
        let pki = Pki::make(f.folder.path());
        let security = Security::Required(pki.tls());
        let bound = f.server.listen_tcp("127.0.0.1:0".parse().unwrap(), security);
        Self {
            tls_port: bound.unwrap().port(),
            f,
            pki,
        }
    }

    fn certificates(&self) -> String {
        self.pki.dir("good").display().to_string()
    }

    /// The export for libnbd.
    fn uri(&self, way: Way, export: &str) -> String {
        match way {
            Way::Unix => self.f.uri(export),
            Way::Tcp => self.f.tcp_uri(export),
            Way::Tls => format!(
                "nbds://127.0.0.1:{}/{export}?tls-certificates={}",
                self.tls_port,
                self.certificates()
            ),
        }
    }

    /// The volume for nbdkit's `nbd` plugin, which takes what other clients of libnbd only take from their users' folders:
    /// the place of certificates.
    fn plugin(&self, way: Way) -> Vec<String> {
        let mut said: Vec<String> = vec!["nbd".into(), "export=vol".into()];
        said.extend(match way {
            Way::Unix => vec![format!("socket={}", self.f.socket().display())],
            Way::Tcp => vec!["hostname=127.0.0.1".into(), format!("port={}", self.f.port)],
            Way::Tls => vec![
                "hostname=127.0.0.1".into(),
                format!("port={}", self.tls_port),
                "tls=require".into(),
                format!("tls-certificates={}", self.certificates()),
            ],
        });
        said
    }

    /// The export for qemu, after the object that it may need.
    fn image(&self, way: Way, export: &str) -> String {
        let tcp = |port| format!("server.type=inet,server.host=127.0.0.1,server.port={port}");
        let server = match way {
            Way::Unix => format!("server.type=unix,server.path={}", self.f.socket().display()),
            Way::Tcp => tcp(self.f.port),
            Way::Tls => format!("{},tls-creds=t", tcp(self.tls_port)),
        };
        format!("driver=nbd,export={export},discard=unmap,{server}")
    }

    fn object(&self) -> String {
        format!("tls-creds-x509,id=t,endpoint=client,dir={}", self.certificates())
    }

    /// Runs a command as a client of nbdkit, which is our client.
    fn nbdkit_args<'a>(
        before: &[&'a str],
        plugin: &'a [String],
        after: &[&'a str],
        command: &'a str,
    ) -> Vec<&'a str> {
        let mut args = vec!["-U", "-"];
        args.extend(before);
        args.extend(plugin.iter().map(String::as_str));
        args.extend(after);
        args.extend(["--run", command]);
        args
    }

    fn nbdkit(&self, before: &[&str], way: Way, after: &[&str], command: &str) -> String {
        let plugin = self.plugin(way);
        ok("nbdkit", &Self::nbdkit_args(before, &plugin, after, command))
    }

    /// Runs a tool of qemu.
    fn qemu(&self, tool: &str, command: &[&str], args: &[&str]) -> String {
        let object = self.object();
        let mut all = command.to_vec();
        all.extend(["--object", &object, "--image-opts"]);
        all.extend(args);
        ok(tool, &all)
    }

    /// Bytes in a file, and its name.
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.f.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// One client on every way.
fn each(size: u64, client: impl Fn(&Ground, Way)) {
    for way in WAYS {
        eprintln!("{way:?}");
        client(&Ground::new(size), way);
    }
}

fn raw(path: &str) -> String {
    format!("driver=raw,file.filename={path}")
}

#[test]
fn nbdinfo() {
    each(SIZE, |g, way| {
        g.f.vol.fill(4096..12288, 1);
        let json = ok("nbdinfo", &["--json", &g.uri(way, "vol")]);
        for expected in [
            &format!("\"TLS\": {}", way == Way::Tls),
            "\"structured\": true",
            "\"base:allocation\"",
            "\"can_cache\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": true",
            "\"can_multi_conn\": true",
            &format!("\"export-size\": {SIZE}"),
        ] {
            assert!(json.contains(expected), "{expected} is not in\n{json}");
        }
        let list = ok("nbdinfo", &["--list", &g.uri(way, "")]);
        assert!(
            list.contains("export=\"vol\"") && list.contains("a volume, as it was"),
            "{list}"
        );
        let map = ok("nbdinfo", &["--map", "--json", &g.uri(way, "vol")]);
        assert!(map.contains("\"length\": 8192"), "{map}");
        let totals = ok("nbdinfo", &["--map", "--totals", &g.uri(way, "vol")]);
        assert!(
            totals.contains("8192") && totals.contains("hole,zero"),
            "{totals}"
        );
        ok("nbdinfo", &["--is", "read-only", &g.uri(way, "ro")]);
    });
}

#[test]
fn nbdcopy_on_one_connection_and_on_four() {
    each(SIZE, |g, way| {
        let (uri, bytes) = (g.uri(way, "vol"), pattern(SIZE as usize));
        let (source, back) = (g.file("source", &bytes), g.f.path("back"));
        for connections in ["1", "4"] {
            // What was there before must be gone, also where the source is zero.
            g.f.vol.fill(0..SIZE as usize, 0xff);
            ok("nbdcopy", &["--flush", "-C", connections, &source, &uri]);
            assert!(g.f.vol.bytes() == bytes);
            ok("nbdcopy", &["-C", connections, &uri, &back]);
            assert!(fs::read(&back).unwrap() == bytes);
            fs::remove_file(&back).unwrap();
        }
        let log = g.f.vol.log.lock().unwrap();
        assert!(log.iter().any(|(op, _)| op == "flush"));
        assert!(
            log.iter().any(|(op, _)| op.starts_with("zero")),
            "zeroes are not sent as data"
        );
    });
}

#[test]
fn nbddump() {
    each(SIZE, |g, way| {
        g.f.vol.fill(0x1230..0x1240, b'U');
        let dump = ok("nbddump", &["--length", "65536", &g.uri(way, "vol")]);
        assert!(
            dump.contains("0000001230") && dump.contains("|UUUUUUUUUUUUUUUU|"),
            "{dump}"
        );
    });
}

/// Requests that a well-behaved client never sends, in simple and in structured replies.
#[test]
fn nbdsh_without_its_strictness() {
    const SCRIPT: &str = r#"
import errno
structured = STRUCTURED
h.set_request_structured_replies(structured)
h.set_strict_mode(0)
if structured: h.add_meta_context("base:allocation")
h.set_uri_allow_local_file(True)
h.connect_uri("URI")
assert h.get_structured_replies_negotiated() == structured
size = h.get_size()
def fails(code, what, *args):
    try:
        what(*args)
    except nbd.Error as e:
        assert e.errnum == code, (what, args, e)
    else:
        raise AssertionError((what, args))
buf = bytearray(512)
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 512, size - 511)
fails(errno.ENOSPC, h.pwrite, buf, size)
fails(errno.ENOSPC, h.pwrite, buf, size - 511)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
fails(errno.EINVAL, h.pread, (32 << 20) + 1, 0)
fails(errno.EINVAL, h.pwrite, buf, 0, 1 << 9)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
if not structured:
    fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
    fails(errno.EINVAL, h.block_status, 512, 0, lambda *a: 0)
else:
    fails(errno.EINVAL, h.block_status, 512, size, lambda *a: 0)
    assert h.pread(1 << 20, 0, nbd.CMD_FLAG_DF) == bytearray(1 << 20)
    h.block_status(size, 0, lambda *a: 0)
# Nothing of length zero is an error, nor the end of the connection.
h.pwrite(bytearray(0), 0)
h.pread(0, 0)
h.trim(0, 0)
h.zero(0, 0)
h.cache(0, 0)
# All that is allowed.
h.pwrite(b"\x55" * 512, 513, nbd.CMD_FLAG_FUA)
assert h.pread(514, 512) == b"\0" + b"\x55" * 512 + b"\0"
h.zero(512, 513, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.cache(size, 0)
h.flush()
assert h.pread(1024, 512) == bytearray(1024)
h.shutdown()
"#;
    each(SIZE, |g, way| {
        for structured in ["False", "True"] {
            let script = SCRIPT
                .replace("STRUCTURED", structured)
                .replace("URI", &g.uri(way, "vol"));
            let path = g.file("script.py", script.as_bytes());
            let command = format!("exec(open({path:?}).read())");
            // Debian's own Python has the module.
            ok("env", &["PATH=/usr/bin:/bin", "nbdsh", "-c", &command]);
        }
    });
}

#[test]
fn qemu_img_converts_compares_maps_and_measures() {
    each(SIZE, |g, way| {
        let (image, bytes) = (g.image(way, "vol"), pattern(SIZE as usize));
        let (source, back) = (g.file("source", &bytes), g.f.path("back"));
        g.f.vol.fill(0..SIZE as usize, 0xff);
        g.qemu(
            "qemu-img",
            &["convert", "-n", "--target-image-opts"],
            &[&raw(&source), &image],
        );
        assert!(g.f.vol.bytes() == bytes);
        g.qemu("qemu-img", &["compare"], &[&raw(&source), &image]);
        let other = g.file("differing", &vec![1; SIZE as usize]);
        let object = g.object();
        let differs = [
            "compare",
            "--object",
            &object,
            "--image-opts",
            &raw(&other),
            &image,
        ];
        assert_eq!(run("qemu-img", &differs).status.code(), Some(1));
        g.qemu("qemu-img", &["convert", "-O", "raw"], &[&image, &back]);
        assert!(fs::read(&back).unwrap() == bytes);
        let map = g.qemu("qemu-img", &["map", "--output=json"], &[&image]);
        assert!(
            map.contains("\"zero\": true") && map.contains("\"data\": true"),
            "{map}"
        );
        // It cannot be given certificates.
        if way != Way::Tls {
            let bench = ["bench", "--image-opts", "-c", "2000", "-d", "16", &image];
            ok("qemu-img", &bench);
            let mut writes = bench.to_vec();
            writes.splice(1..1, ["-w", "--flush-interval", "100"]);
            ok("qemu-img", &writes);
            assert!(g.f.vol.saw("flush"));
        }
    });
}

#[test]
fn qemu_io_patterns() {
    each(SIZE, |g, way| {
        g.f.vol.fill(0..SIZE as usize, 0x11);
        let commands = [
            "write -P 0xaa -f 0 64k",
            "write -P 0xbb 65537 1001",
            "write -z 256k 64k",
            "write -z -u 1M 1M",
            "discard 2M 1M",
            "aio_write -P 0xcc 4M 2M",
            "aio_write -P 0xdd 6M 2M",
            "aio_flush",
            "flush",
            "read -P 0xaa 0 64k",
            "read -P 0xbb 65537 1001",
            "read -P 0x11 65536 1",
            "read -P 0 256k 64k",
            "read -P 0 1M 2M",
            "read -P 0x11 3M 1M",
            "read -P 0xcc 4M 2M",
            "read -P 0xdd 6M 2M",
        ];
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).collect();
        let image = g.image(way, "vol");
        let said = g.qemu("qemu-io", &args, &[&image]);
        assert!(!said.contains("failed"), "{said}");
        assert!(g.f.vol.saw_fua() && g.f.vol.saw("trim 2097152+1048576"));
    });
}

/// fio cannot be given certificates: in TLS nbdkit takes it there.
#[test]
fn fio_verifies() {
    each(SIZE, |g, way| {
        let (report, uri) = (g.f.path("fio.json"), g.uri(way, "vol"));
        let fio = format!(
            "fio --name=v --ioengine=nbd --uri=\"$uri\" --rw=randrw --bsrange=4k-64k --iodepth=16 --size=16m \
             --verify=crc32c --fsync=32 --randseed=7 --verify_state_save=0 --output-format=json --output={report}"
        );
        match way {
            Way::Unix | Way::Tcp => ok("sh", &["-c", &format!("uri='{uri}'; {fio}")]),
            Way::Tls => g.nbdkit(&[], way, &[], &fio),
        };
        let report = fs::read_to_string(&report).unwrap();
        assert!(report.contains("\"error\" : 0"), "{report}");
        assert!(g.f.vol.saw("flush"));
    });
}

#[test]
fn nbdkit_in_front() {
    each(SIZE, |g, way| {
        let bytes = pattern(SIZE as usize);
        let copy = format!("nbdcopy --flush -C 4 {} \"$uri\"", g.file("source", &bytes));
        // Small and odd requests become whole blocks, a flush holds for all connections, a lost connection is made anew.
        let filters = ["--filter=multi-conn", "--filter=retry", "--filter=blocksize"];
        let settings = ["multi-conn-mode=emulate", "minblock=4096", "maxdata=65536"];
        g.nbdkit(&filters, way, &settings, &copy);
        assert!(g.f.vol.bytes() == bytes);
        // Every write becomes a comparison.
        g.nbdkit(&["--filter=checkwrite"], way, &[], &copy);
        g.f.vol.fill(12345..12346, !bytes[12345]);
        let plugin = g.plugin(way);
        let checked = run(
            "nbdkit",
            &Ground::nbdkit_args(&["--filter=checkwrite"], &plugin, &[], &copy),
        );
        assert!(!checked.status.success(), "a byte differs");
        g.nbdkit(
            &[],
            way,
            &["shared=true"],
            "nbdinfo \"$uri\" && nbdcopy \"$uri\" null:",
        );
    });
}

/// File systems on a file that nbdfuse shows, without a mount of their own.
#[test]
fn file_systems_through_nbdfuse() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: needs root and /dev/fuse");
        return;
    }
    // No smaller one is made as xfs.
    const SIZE: u64 = 304 << 20;
    for way in WAYS {
        let g = Ground::new(SIZE);
        let folder = g.f.path("mnt");
        fs::create_dir(&folder).unwrap();
        let disk = format!("{folder}/disk");
        // It cannot be given certificates: in TLS nbdkit takes it there.
        let from = match way {
            Way::Unix | Way::Tcp => format!("'{}'", g.uri(way, "vol")),
            Way::Tls => format!(
                "--command nbdkit -s --exit-with-parent {}",
                g.plugin(way).join(" ")
            ),
        };
        let script = format!(
            "nbdfuse {disk} {from} & trap 'umount {folder}; wait' EXIT
             for i in $(seq 600); do [ -e {disk} ] && break; sleep 0.1; done
             PATH=$PATH:/usr/sbin:/sbin; set -e
             mkfs.ext4 -q -F -E nodiscard {disk} && e2fsck -fn {disk}
             mkfs.xfs -q -f -K {disk} && xfs_repair -n -f {disk}"
        );
        ok("bash", &["-c", &script]);
        assert!(g.f.vol.saw("flush"), "{way:?}");
        assert_eq!(g.f.vol.bytes()[..4], *b"XFSB");
    }
}
