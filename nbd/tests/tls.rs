//! TLS with client certificates: the clients of others in it, who is refused, and what must not survive its beginning.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{Fixture, SIZE, ok, pattern, pki::Pki, raw::counted, run};
use nbd::{Limits, Security, Tls, TlsError, TlsFiles};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;

/// A server with two more sockets: one where TLS is required, one where it is offered.
struct Secured {
    f: Fixture,
    pki: Pki,
    required: u16,
    offered: u16,
}

impl Secured {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let f = Fixture::with(limits, SIZE);
        let pki = Pki::make(f.folder.path());
        let listen = |security| {
            let bound = f.server.listen_tcp("127.0.0.1:0".parse().unwrap(), security);
            bound.unwrap().port()
        };
        Self {
            required: listen(Security::Required(pki.tls())),
            offered: listen(Security::Offered(pki.tls())),
            f,
            pki,
        }
    }

    /// For libnbd, with the certificates of this folder.
    fn uri(&self, port: u16, export: &str, certificates: &str) -> String {
        let dir = self.pki.dir(certificates);
        format!(
            "nbds://127.0.0.1:{port}/{export}?tls-certificates={}",
            dir.display()
        )
    }

    /// The arguments with which tools of qemu know the certificates of this folder.
    fn qemu_object(&self, certificates: &str, more: &str) -> [String; 2] {
        let dir = self.pki.dir(certificates);
        let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}{more}", dir.display());
        ["--object".into(), object]
    }

    fn qemu_image(&self, port: u16, export: &str) -> String {
        format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export={export},tls-creds=t"
        )
    }

    fn opened(&self) -> usize {
        self.f.opened.load(Ordering::SeqCst)
    }

    fn connect(&self, port: u16) -> Talk<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut talk = Talk(stream);
        assert_eq!(talk.take(18)[..16], *b"NBDMAGICIHAVEOPT");
        talk.0.write_all(&[0, 0, 0, 3]).unwrap();
        talk
    }

    /// A client in TLS, right after its handshake.
    fn secure(&self, mut talk: Talk<TcpStream>) -> Talk<StreamOwned<ClientConnection, TcpStream>> {
        assert_eq!(talk.option(STARTTLS, b"")[0].0, ACK);
        let name = "127.0.0.1".try_into().unwrap();
        let session = ClientConnection::new(client_config(&self.pki.dir("good")), name).unwrap();
        Talk(StreamOwned::new(session, talk.0))
    }
}

fn client_config(dir: &Path) -> Arc<ClientConfig> {
    let certificate = |file| CertificateDer::from_pem_file(dir.join(file)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca-cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate("client-cert.pem")], key)
        .unwrap();
    Arc::new(config)
}

/// The options of a client, in the clear or not.
struct Talk<S>(S);

impl<S: Read + Write> Talk<S> {
    fn take(&mut self, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        self.0.read_exact(&mut b).unwrap();
        b
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    /// Sends an option and returns all its answers: kinds and payloads.
    fn option(&mut self, option: u32, payload: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.0.write_all(&option_bytes(option, payload)).unwrap();
        let mut answers = Vec::new();
        loop {
            self.take(12);
            let (kind, len) = (self.number(), self.number());
            answers.push((kind, self.take(len as usize)));
            if kind == ACK || kind >> 31 == 1 {
                return answers;
            }
        }
    }

    fn go(&mut self, option: u32, name: &str) -> u32 {
        self.option(option, &[&counted(name)[..], &[0, 0]].concat())
            .pop()
            .unwrap()
            .0
    }

    /// The names that are listed, or the error.
    fn list(&mut self) -> Result<Vec<String>, u32> {
        let answers = self.option(LIST, b"");
        let (last, names) = answers.split_last().unwrap();
        let name = |(kind, p): &(u32, Vec<u8>)| {
            assert_eq!(*kind, SERVER);
            let len = u32::from_be_bytes(p[..4].try_into().unwrap()) as usize;
            String::from_utf8(p[4..4 + len].to_vec()).unwrap()
        };
        match last.0 {
            ACK => Ok(names.iter().map(name).collect()),
            error => Err(error),
        }
    }
}

fn option_bytes(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut p = b"IHAVEOPT".to_vec();
    p.extend(option.to_be_bytes());
    p.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    p.extend(payload);
    p
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn tools_of_libnbd_read_and_write_in_tls() {
    let s = Secured::new();
    let (source, back) = (s.f.path("source"), s.f.path("back"));
    let bytes = pattern(SIZE as usize);
    fs::write(&source, &bytes).unwrap();
    for port in [s.required, s.offered] {
        let uri = s.uri(port, "vol", "good");
        let info = ok("nbdinfo", &["--json", &uri]);
        assert!(
            info.contains("\"TLS\": true") && info.contains("\"structured\": true"),
            "{info}"
        );
        assert_eq!(ok("nbdinfo", &["--is", "tls", &uri]), "");
        s.f.vol.fill(0..SIZE as usize, 0xff);
        ok("nbdcopy", &["--flush", "-C", "4", "-R", "64", &source, &uri]);
        assert!(s.f.vol.bytes() == bytes);
        ok("nbdcopy", &["-C", "4", &uri, &back]);
        assert!(fs::read(&back).unwrap() == bytes);
    }
    let list = ok("nbdinfo", &["--list", &s.uri(s.required, "", "good")]);
    assert!(
        list.contains("export=\"vol\"") && list.contains("export=\"ro\""),
        "{list}"
    );
}

#[test]
fn tools_of_qemu_read_and_write_in_tls_of_both_versions() {
    let s = Secured::new();
    let (source, back) = (s.f.path("source"), s.f.path("back"));
    let bytes = pattern(SIZE as usize);
    fs::write(&source, &bytes).unwrap();
    let vol = s.qemu_image(s.required, "vol");
    for version in ["", ",priority=NORMAL:-VERS-TLS1.3"] {
        let object = s.qemu_object("good", version);
        let with = |command: &str, args: &[&str]| {
            let mut all = vec![command, &object[0], &object[1]];
            all.extend(args);
            ok("qemu-img", &all)
        };
        s.f.vol.fill(0..SIZE as usize, 0xff);
        let from = format!("driver=raw,file.filename={source}");
        with(
            "convert",
            &["-n", "--image-opts", "--target-image-opts", &from, &vol],
        );
        assert!(s.f.vol.bytes() == bytes);
        with("compare", &["--image-opts", &from, &vol]);
        with("convert", &["--image-opts", "-O", "raw", &vol, &back]);
        assert!(fs::read(&back).unwrap() == bytes);
        let said = ok(
            "qemu-io",
            &[
                &object[0],
                &object[1],
                "--image-opts",
                "-c",
                "write -f -P 0xaa 1M 64k",
                "-c",
                "write -z 2M 1M",
                "-c",
                "flush",
                "-c",
                "read -P 0xaa 1M 64k",
                "-c",
                "read -P 0 2M 1M",
                &vol,
            ],
        );
        assert!(!said.contains("failed"), "{said}");
    }
}

#[test]
fn who_shows_no_good_certificate_opens_nothing() {
    let s = Secured::new();
    for certificates in ["none", "other", "expired"] {
        for port in [s.required, s.offered] {
            let refused = run("nbdinfo", &["--size", &s.uri(port, "vol", certificates)]);
            assert!(!refused.status.success(), "{certificates}: {refused:?}");
            let object = s.qemu_object(certificates, "");
            let mut args = vec!["info", "--image-opts"];
            args.extend(strs(&object));
            let image = s.qemu_image(port, "vol");
            args.push(&image);
            let refused = run("qemu-img", &args);
            assert!(!refused.status.success(), "{certificates}: {refused:?}");
        }
    }
    // Nor who asks for none.
    for port in [s.required, s.offered] {
        let refused = run("nbdinfo", &["--size", &format!("nbd://127.0.0.1:{port}/vol")]);
        assert!(!refused.status.success(), "{refused:?}");
        let info = run(
            "qemu-img",
            &["info", "-f", "raw", &format!("nbd://127.0.0.1:{port}/vol")],
        );
        let said = String::from_utf8_lossy(&info.stderr).into_owned();
        assert!(!info.status.success() && said.contains("TLS"), "{said}");
    }
    assert_eq!(s.opened(), 0, "something was opened for who is nobody");
    // A socket without TLS says so.
    let mut plain = s.connect(s.f.port);
    assert_eq!(plain.option(STARTTLS, b"")[0].0, ERR_POLICY);
}

#[test]
fn where_tls_is_required_nothing_is_told_before() {
    let s = Secured::new();
    let mut talk = s.connect(s.required);
    assert_eq!(talk.list(), Err(ERR_TLS_REQD));
    for (option, payload) in [
        (INFO, [&counted("vol")[..], &[0, 0]].concat()),
        (GO, [&counted("none")[..], &[0, 0]].concat()),
        (STRUCTURED_REPLY, vec![]),
        (EXTENDED_HEADERS, vec![]),
        (SET_META_CONTEXT, [&counted("vol")[..], &[0, 0, 0, 0]].concat()),
        (77, vec![]),
    ] {
        assert_eq!(talk.option(option, &payload)[0].0, ERR_TLS_REQD, "{option}");
    }
    assert_eq!(s.opened(), 0);
    let mut talk = s.secure(talk);
    assert_eq!(talk.option(STARTTLS, b"")[0].0, ERR_INVALID);
    assert_eq!(talk.list(), Ok(vec!["vol".into(), "ro".into()]));
    assert_eq!(talk.go(GO, "vol"), ACK);
    // The old way in has no words for a refusal.
    let mut old = s.connect(s.required);
    old.0.write_all(&option_bytes(1, b"vol")).unwrap();
    assert_eq!(old.0.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn where_tls_is_offered_some_exports_may_be_plain() {
    let s = Secured::new();
    let mut talk = s.connect(s.offered);
    assert_eq!(talk.list(), Ok(vec!["ro".into()]));
    assert_eq!(talk.go(INFO, "vol"), ERR_TLS_REQD);
    assert_eq!(
        talk.go(INFO, "none"),
        ERR_TLS_REQD,
        "it is not told that there is none"
    );
    assert_eq!(s.opened(), 0);
    assert_eq!(talk.go(GO, "ro"), ACK);
    let mut talk = s.secure(s.connect(s.offered));
    assert_eq!(talk.list(), Ok(vec!["vol".into(), "ro".into()]));
    assert_eq!(talk.go(GO, "vol"), ACK);
}

/// CVE-2021-3716: whoever sits on the wire may have said it.
#[test]
fn what_was_said_in_the_clear_does_not_hold_in_tls() {
    let s = Secured::new();
    let mut talk = s.connect(s.offered);
    assert_eq!(talk.option(STRUCTURED_REPLY, b"")[0].0, ACK);
    let query = [&counted("ro")[..], &[0, 0, 0, 1], &counted("base:allocation")].concat();
    assert_eq!(talk.option(SET_META_CONTEXT, &query).len(), 2);
    assert_eq!(talk.go(INFO, "ro"), ACK);
    assert_eq!(s.opened(), 1);
    let mut talk = s.secure(talk);
    assert_eq!(talk.option(SET_META_CONTEXT, &query)[0].0, ERR_INVALID);
    assert_eq!(talk.go(GO, "ro"), ACK);
    assert_eq!(s.opened(), 2, "what was opened in the clear is not used in TLS");
    // A block status has no context, and a read is answered in the simple style.
    for command in [7, 0] {
        let mut p = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, command];
        p.extend([0; 16]);
        p.extend([0, 0, 2, 0]);
        talk.0.write_all(&p).unwrap();
        assert_eq!(talk.number(), 0x6744_6698);
        let errno = talk.number();
        assert_eq!(errno, if command == 7 { 22 } else { 0 });
        talk.take(8);
    }
    assert_eq!(talk.take(512), [0; 512]);
}

/// What follows the question for TLS in the clear is never taken for what the client says in TLS.
#[test]
fn plaintext_cannot_be_slipped_in_before_tls() {
    let s = Secured::new();
    let evil = option_bytes(GO, &[&counted("vol")[..], &[0, 0]].concat());
    // With the question, and after its answer.
    let mut talk = s.connect(s.required);
    talk.0
        .write_all(&[option_bytes(STARTTLS, b""), evil.clone()].concat())
        .unwrap();
    let mut said = Vec::new();
    // It may end with a reset: not all that was sent is read.
    let _ = talk.0.read_to_end(&mut said);
    assert!(said.len() <= 20, "{said:x?}");
    let mut talk = s.connect(s.required);
    assert_eq!(talk.option(STARTTLS, b"")[0].0, ACK);
    talk.0.write_all(&evil).unwrap();
    let mut said = Vec::new();
    let _ = talk.0.read_to_end(&mut said);
    assert!(said.len() <= 7, "more than an alert of TLS: {said:x?}");
    assert_eq!(s.opened(), 0);
    ok("nbdinfo", &["--size", &s.uri(s.required, "vol", "good")]);
}

#[test]
fn who_never_ends_the_handshake_of_tls_is_cut() {
    let s = Secured::with(Limits {
        negotiation_timeout: Duration::from_millis(300),
        ..Limits::default()
    });
    let mut talk = s.connect(s.required);
    assert_eq!(talk.option(STARTTLS, b"")[0].0, ACK);
    // A record that never ends.
    talk.0.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    assert_eq!(talk.0.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn a_session_in_tls_outlives_the_time_to_negotiate() {
    let limit = Duration::from_secs(2);
    let s = Secured::with(Limits {
        negotiation_timeout: limit,
        ..Limits::default()
    });
    let mut talk = s.secure(s.connect(s.required));
    assert_eq!(talk.go(GO, "vol"), ACK);
    std::thread::sleep(limit);
    let flush = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3][..], &[0; 20]].concat();
    talk.0.write_all(&flush).unwrap();
    assert_eq!(talk.take(16)[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

#[test]
fn a_stop_ends_a_client_in_tls() {
    let s = Secured::new();
    let mut talk = s.secure(s.connect(s.required));
    assert_eq!(talk.go(GO, "vol"), ACK);
    assert_eq!(s.f.server.stop(), 0);
    assert_eq!(
        talk.0.read(&mut [0; 1]).unwrap(),
        0,
        "the end is said in TLS, not a cut"
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let s = Secured::new();
    let good = s.pki.files();
    let load = |files: &TlsFiles| Tls::load(files).unwrap_err();
    let empty = s.f.folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let gone = s.f.folder.path().join("gone");
    for path in [&empty, &gone] {
        let with = |change: fn(&mut TlsFiles) -> &mut std::path::PathBuf| {
            let mut files = good.clone();
            *change(&mut files) = path.clone();
            fs::set_permissions(&empty, PermissionsExt::from_mode(0o600)).unwrap();
            load(&files)
        };
        for error in [
            with(|f| &mut f.certificate),
            with(|f| &mut f.key),
            with(|f| &mut f.client_ca),
        ] {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
    let foreign = TlsFiles {
        key: s.pki.dir("good").join("client-key.pem"),
        ..good.clone()
    };
    assert!(matches!(load(&foreign), TlsError::Setup { .. }));
    fs::set_permissions(&good.key, PermissionsExt::from_mode(0o640)).unwrap();
    let open = load(&good);
    assert!(
        matches!(open, TlsError::Mode { mode: 0o640, .. }) && open.to_string().contains("chmod 600"),
        "{open}"
    );
}
