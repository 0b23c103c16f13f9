//! Crockford's base32: digits and capitals without I, L, O and U, so that a person can read it out loud.
//!
//! Written in groups of four joined by `-`. When read, case and hyphens do not matter, `I` and `L` are 1, `O` is 0.

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Why a text is not base32 of the expected length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Base32Error {
    /// A character outside the alphabet.
    #[error("'{0}' is not a base32 character")]
    Character(char),
    /// Too few or too many characters.
    #[error("{got} characters instead of {expected}")]
    Length {
        /// Characters given, without hyphens.
        got: usize,
        /// Characters needed.
        expected: usize,
    },
    /// The spare bits of the last character are not zero.
    #[error("the last character is not possible there")]
    Spare,
}

/// Writes `bytes` in groups of four characters.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let chars = (bytes.len() * 8).div_ceil(5);
    let mut out = String::with_capacity(chars + chars / 4);
    let (mut acc, mut bits, mut written) = (0u32, 0u32, 0usize);
    let mut put = |out: &mut String, five: u32| {
        if written > 0 && written.is_multiple_of(4) {
            out.push('-');
        }
        out.push(char::from(ALPHABET[(five & 31) as usize]));
        written += 1;
    };
    for &b in bytes {
        acc = (acc << 8) | u32::from(b);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            put(&mut out, acc >> bits);
        }
        acc &= (1 << bits) - 1;
    }
    if bits > 0 {
        put(&mut out, acc << (5 - bits));
    }
    out
}

/// Reads exactly `N` bytes.
///
/// # Errors
/// When a character is foreign, or there are more or fewer than `N` bytes need.
pub fn decode<const N: usize>(text: &str) -> Result<[u8; N], Base32Error> {
    let expected = (N * 8).div_ceil(5);
    let got = text.chars().filter(|c| *c != '-').count();
    if got != expected {
        return Err(Base32Error::Length { got, expected });
    }
    let mut out = [0u8; N];
    let (mut acc, mut bits, mut at) = (0u32, 0u32, 0usize);
    for c in text.chars().filter(|c| *c != '-') {
        acc = (acc << 5) | value(c).ok_or(Base32Error::Character(c))?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out[at] = (acc >> bits) as u8;
            at += 1;
        }
        acc &= (1 << bits) - 1;
    }
    if acc != 0 {
        return Err(Base32Error::Spare);
    }
    Ok(out)
}

fn value(c: char) -> Option<u32> {
    let c = match c.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        c => c,
    };
    (0u32..)
        .zip(ALPHABET)
        .find(|(_, a)| char::from(**a) == c)
        .map(|(v, _)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts() {
        assert_eq!(encode(&[0xff; 5]), "ZZZZ-ZZZZ");
        assert_eq!(encode(&[0]), "00");
        assert_eq!(decode::<5>("zzzz-ZZZZ"), Ok([0xff; 5]));
        assert_eq!(decode::<1>("Oo"), Ok([0]));
        assert_eq!(decode::<1>("01"), Err(Base32Error::Spare));
        assert_eq!(decode::<1>("0u"), Err(Base32Error::Character('u')));
        assert_eq!(
            decode::<1>("000"),
            Err(Base32Error::Length { got: 3, expected: 2 })
        );
        assert!(decode::<5>("ééééeeee").is_err());
    }

    proptest::proptest! {
        #[test]
        fn reads_what_it_wrote(bytes: [u8; 27]) {
            proptest::prop_assert_eq!(decode::<27>(&encode(&bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = decode::<7>(&text);
        }
    }
}
