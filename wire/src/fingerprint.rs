//! Fingerprints: the name of a node's key, the only name that TLS checks.

use crate::base32::{self, Base32Error};
use std::{fmt, str::FromStr};

/// blake3 of a certificate's SubjectPublicKeyInfo: a certificate may be made anew, the key stays.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Bytes of it that a pairing string carries.
    pub const PREFIX_BYTES: usize = 16;

    /// The fingerprint with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The fingerprint of a SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_key(subject_public_key_info: &[u8]) -> Self {
        Self(*blake3::hash(subject_public_key_info).as_bytes())
    }

    /// All bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first [`Fingerprint::PREFIX_BYTES`] bytes: 128 bits, more than anyone can find a second key for.
    #[must_use]
    pub fn prefix(&self) -> [u8; Self::PREFIX_BYTES] {
        std::array::from_fn(|i| self.0[i])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Why a text is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a fingerprint: {source}")]
pub struct FingerprintError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub source: Base32Error,
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        base32::decode(text).map(Self).map_err(|source| FingerprintError {
            text: text.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let f = Fingerprint::of_key(b"key");
        assert_eq!(f.to_string().parse::<Fingerprint>().unwrap(), f);
        assert_eq!(
            f.to_string()
                .to_lowercase()
                .replace('-', "")
                .parse::<Fingerprint>()
                .unwrap(),
            f
        );
        assert_eq!(f.to_string().len(), 64);
        assert!("4T9K".parse::<Fingerprint>().is_err());
    }
}
