//! The node's key, made on its first start and never changed by this program.
//!
//! Two files in one folder, both mode 0600: `identity.key` (PKCS #8, Ed25519) and `identity.crt` (a certificate that the key
//! signed itself, for TLS needs one). Whoever knows this node knows the key's [`Fingerprint`], so the key is everything:
//!
//! - A key file that others can read is refused, with the command that mends it. It is not mended here: someone may have
//!   read it already, and that is the operator's to judge.
//! - A certificate without its key is refused: making a new key would silently make another node of this one.
//! - A key without its certificate is what a crash between the two files leaves; the certificate is made again, and the
//!   fingerprint stays.
//!
//! Files appear whole: written under another name, synced, renamed, folder synced. No lock is taken; the daemon's own lock
//! on its folder keeps two of them apart.

use crate::fingerprint::Fingerprint;
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    fmt, fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

const KEY_FILE: &str = "identity.key";
const CERTIFICATE_FILE: &str = "identity.crt";
/// Longer files are no keys of ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file or folder failed.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// To what.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Others can read the key.
    #[error("{path} has mode {mode:04o}, so others may read this node's key: chmod 600 {path}")]
    Mode {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The certificate is there, its key is not.
    #[error(
        "{key} is missing, but {certificate} is there: restore the key, or remove both to become a new node"
    )]
    KeyMissing {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// A file that is not what its name says.
    #[error("{path} is not usable: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No key could be made.
    #[error("making a key: {why}")]
    Make {
        /// What failed.
        why: String,
    },
}

/// This node's key and certificate.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Loads the identity in `folder`, or makes one when there is none. The folder must exist.
    ///
    /// # Errors
    /// When the key can be read by others, the files are damaged, or the folder fails.
    pub fn load_or_make(folder: &Path) -> Result<Self, IdentityError> {
        let key_path = folder.join(KEY_FILE);
        let certificate_path = folder.join(CERTIFICATE_FILE);
        let certificate_pem = read_if_there(&certificate_path)?;
        let pair = match load_key(&key_path)? {
            Some(pair) => pair,
            None if certificate_pem.is_some() => {
                return Err(IdentityError::KeyMissing {
                    key: key_path,
                    certificate: certificate_path,
                });
            }
            None => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(make)?;
                write_whole(folder, KEY_FILE, pair.serialize_pem().as_bytes())?;
                pair
            }
        };
        let pem = match certificate_pem {
            Some(pem) => pem,
            None => {
                let pem = self_signed(&pair)?;
                write_whole(folder, CERTIFICATE_FILE, pem.as_bytes())?;
                pem.into_bytes()
            }
        };
        Self::from_parts(&pair, &pem, &certificate_path)
    }

    /// An identity in memory only, for tests and for tools that connect once.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(make)?;
        let pem = self_signed(&pair)?;
        Self::from_parts(&pair, pem.as_bytes(), Path::new("(memory)"))
    }

    fn from_parts(pair: &KeyPair, certificate_pem: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let content = |why: String| IdentityError::Content {
            path: path.to_owned(),
            why,
        };
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem).map_err(|e| content(e.to_string()))?;
        let fingerprint = fingerprint_of(&certificate).map_err(|e| content(e.to_string()))?;
        if fingerprint != Fingerprint::of_key(&pair.subject_public_key_info()) {
            return Err(content(
                "it belongs to another key; remove it to have it made again".to_owned(),
            ));
        }
        let key = PrivateKeyDer::try_from(pair.serialize_der()).map_err(|e| content(e.to_owned()))?;
        Ok(Self {
            certificate,
            key,
            fingerprint,
        })
    }

    /// What other nodes know this one by.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// The fingerprint of a certificate's key.
pub(crate) fn fingerprint_of(certificate: &CertificateDer<'_>) -> Result<Fingerprint, rustls::Error> {
    let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
    Ok(Fingerprint::of_key(&parsed.subject_public_key_info()))
}

fn make(e: rcgen::Error) -> IdentityError {
    IdentityError::Make { why: e.to_string() }
}

fn self_signed(pair: &KeyPair) -> Result<String, IdentityError> {
    let mut params = CertificateParams::new(vec![crate::tls::SERVER_NAME.to_owned()]).map_err(make)?;
    params
        .distinguished_name
        .push(DnType::CommonName, crate::tls::SERVER_NAME);
    // The dates are never checked: a pinned key is good until its pin is removed, on hosts with any clock.
    Ok(params.self_signed(pair).map_err(make)?.pem())
}

fn load_key(path: &Path) -> Result<Option<KeyPair>, IdentityError> {
    let Some(pem) = read_if_there(path)? else {
        return Ok(None);
    };
    let io = |source| IdentityError::Io {
        op: "reading",
        path: path.to_owned(),
        source,
    };
    let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(IdentityError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let content = |why: String| IdentityError::Content {
        path: path.to_owned(),
        why,
    };
    let text = std::str::from_utf8(&pem).map_err(|e| content(e.to_string()))?;
    KeyPair::from_pem(text)
        .map(Some)
        .map_err(|e| content(e.to_string()))
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let io = |source| IdentityError::Io {
        op: "reading",
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(IdentityError::Content {
            path: path.to_owned(),
            why,
        });
    }
    Ok(Some(bytes))
}

fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = folder.join(name);
    let partial = folder.join(format!("{name}.partial"));
    let io = |op, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::Io { op, path, source }
    };
    // One left by a crash may have been made with another mode: begin with a file of our own.
    match fs::remove_file(&partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("removing", &partial)(e)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(io("creating", &partial))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io("writing", &partial))?;
    fs::rename(&partial, &path).map_err(io("renaming to", &path))?;
    fs::File::open(folder)
        .and_then(|d| d.sync_all())
        .map_err(io("syncing", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_identity_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_make(dir.path()).unwrap().fingerprint();
        assert_eq!(Identity::load_or_make(dir.path()).unwrap().fingerprint(), first);
        for name in [KEY_FILE, CERTIFICATE_FILE] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing partial is left"
        );
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_make(dir.path()).unwrap();
        let key = dir.path().join(KEY_FILE);
        for mode in [0o640, 0o604, 0o644, 0o700] {
            chmod(&key, mode);
            let text = Identity::load_or_make(dir.path()).unwrap_err().to_string();
            assert!(text.contains(&format!("{mode:04o}")), "{text}");
            assert!(text.ends_with(&format!("chmod 600 {}", key.display())), "{text}");
        }
        chmod(&key, 0o400);
        Identity::load_or_make(dir.path()).unwrap();
    }

    #[test]
    fn a_crash_between_the_files_keeps_the_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_make(dir.path()).unwrap().fingerprint();
        fs::remove_file(dir.path().join(CERTIFICATE_FILE)).unwrap();
        fs::write(dir.path().join("identity.crt.partial"), "half").unwrap();
        assert_eq!(Identity::load_or_make(dir.path()).unwrap().fingerprint(), first);
    }

    #[test]
    fn no_new_key_is_made_beside_an_old_certificate() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_make(dir.path()).unwrap();
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        let e = Identity::load_or_make(dir.path()).unwrap_err();
        assert!(matches!(e, IdentityError::KeyMissing { .. }), "{e}");
    }

    #[test]
    fn foreign_or_damaged_files_are_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Identity::load_or_make(a.path()).unwrap();
        Identity::load_or_make(b.path()).unwrap();
        fs::copy(b.path().join(CERTIFICATE_FILE), a.path().join(CERTIFICATE_FILE)).unwrap();
        let e = Identity::load_or_make(a.path()).unwrap_err();
        assert!(e.to_string().contains("another key"), "{e}");
        fs::write(b.path().join(KEY_FILE), "no key").unwrap();
        assert!(matches!(
            Identity::load_or_make(b.path()),
            Err(IdentityError::Content { .. })
        ));
        fs::write(b.path().join(KEY_FILE), vec![b'x'; 70_000]).unwrap();
        assert!(matches!(
            Identity::load_or_make(b.path()),
            Err(IdentityError::Content { .. })
        ));
    }
}
