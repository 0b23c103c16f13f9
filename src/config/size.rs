//! Sizes and ages as people write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, str::FromStr, time::Duration};

/// Bytes, written as a number or with one of the units `K M G T` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A length of time, written with one of the units `s m h d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(pub Duration);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("'{text}' is no size: a number of bytes, or one with K, M, G or T (64M)");
        let trimmed = text
            .strip_suffix("iB")
            .or_else(|| text.strip_suffix('B'))
            .unwrap_or(text)
            .trim();
        let (number, shift) = match trimmed.chars().last().map(|c| c.to_ascii_uppercase()) {
            Some('K') => (&trimmed[..trimmed.len() - 1], 10),
            Some('M') => (&trimmed[..trimmed.len() - 1], 20),
            Some('G') => (&trimmed[..trimmed.len() - 1], 30),
            Some('T') => (&trimmed[..trimmed.len() - 1], 40),
            _ => (trimmed, 0),
        };
        let number: u64 = number.trim().parse().map_err(|_| fault())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(fault)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        model::target::parse_duration(text)
            .map(|ns| Self(Duration::from_nanos(ns)))
            .ok_or_else(|| format!("'{text}' is no length of time: a number and s, m, h or d (30s)"))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        for (n, unit) in [(86_400, "d"), (3600, "h"), (60, "m")] {
            if secs > 0 && secs.is_multiple_of(n) {
                return write!(f, "{}{unit}", secs / n);
            }
        }
        write!(f, "{secs}s")
    }
}

/// A number or a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(n) => Ok(Self(n)),
            Written::Text(t) => t.parse().map_err(D::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Age {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_trip() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("1G", 1 << 30),
            ("4097", 4097),
            ("512K", 512 << 10),
            ("2T", 2 << 40),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, text));
        }
        for bad in ["", "M", "1X", "-1", "99999999T", "1.5G"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("90s".parse::<Age>().unwrap().to_string(), "90s");
        assert_eq!("120s".parse::<Age>().unwrap().to_string(), "2m");
    }
}
