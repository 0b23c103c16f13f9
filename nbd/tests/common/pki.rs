//! Certificates: an authority, a server and clients, good and bad, in the file names that libnbd and qemu look for.

use nbd::{Tls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Folders of certificates below one.
///
/// | folder | its client certificate |
/// | --- | --- |
/// | `good` | of the authority that the server believes |
/// | `none` | there is none |
/// | `other` | of another authority |
/// | `expired` | of the right one, and past its end |
pub struct Pki {
    folder: PathBuf,
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

impl Pki {
    pub fn make(folder: &Path) -> Self {
        let (believed, other) = (authority("believed"), authority("other"));
        let pki = Self {
            folder: folder.to_owned(),
        };
        for (name, issuer, end) in [
            ("good", Some(&believed), 4000),
            ("none", None, 4000),
            ("other", Some(&other), 4000),
            ("expired", Some(&believed), 2001),
        ] {
            let dir = pki.dir(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("ca-cert.pem"), believed.pem()).unwrap();
            if let Some(issuer) = issuer {
                let usage = ExtendedKeyUsagePurpose::ClientAuth;
                signed(&dir, "client", issuer, usage, end);
            }
        }
        signed(
            &pki.dir("good"),
            "server",
            &believed,
            ExtendedKeyUsagePurpose::ServerAuth,
            4000,
        );
        pki
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn files(&self) -> TlsFiles {
        let dir = self.dir("good");
        TlsFiles {
            certificate: dir.join("server-cert.pem"),
            key: dir.join("server-key.pem"),
            client_ca: dir.join("ca-cert.pem"),
        }
    }

    pub fn tls(&self) -> Tls {
        Tls::load(&self.files()).unwrap()
    }
}

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for this machine, and its key.
fn signed(dir: &Path, name: &str, issuer: &Issuer, usage: ExtendedKeyUsagePurpose, end: i32) {
    let mut params = CertificateParams::new(["localhost".into(), "127.0.0.1".into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(end, 1, 1);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![usage];
    let pair = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&pair, issuer).unwrap();
    fs::write(dir.join(format!("{name}-cert.pem")), certificate.pem()).unwrap();
    let key = dir.join(format!("{name}-key.pem"));
    fs::write(&key, pair.serialize_pem()).unwrap();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
}
