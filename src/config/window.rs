//! The rollback window as people write it.

use super::{Age, Size};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, str::FromStr, time::Duration};

/// How much of the past is promised, written as an age, as a size, or as both (`24h`, `500G`, `24h, 500G`): what either
/// promises is kept. `unlimited`: all that there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollbackWindow {
    /// Back from the newest received write.
    pub age: Option<Age>,
    /// Bytes of redo and undo.
    pub bytes: Option<Size>,
}

impl RollbackWindow {
    const UNLIMITED: &'static str = "unlimited";

    /// As the journal takes it.
    #[must_use]
    pub fn wanted(&self) -> journal::Wanted {
        journal::Wanted {
            age_ns: self
                .age
                .map(|age| u64::try_from(age.0.as_nanos()).unwrap_or(u64::MAX)),
            bytes: self.bytes.map(|b| b.0),
            ..journal::Wanted::default()
        }
    }
}

impl Default for RollbackWindow {
    fn default() -> Self {
        Self {
            age: Some(Age(Duration::from_secs(24 * 3600))),
            bytes: None,
        }
    }
}

impl FromStr for RollbackWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut window = Self {
            age: None,
            bytes: None,
        };
        if text.trim() == Self::UNLIMITED {
            return Ok(window);
        }
        for part in text.split(',').map(str::trim) {
            let twice = if let Ok(age) = part.parse::<Age>() {
                window.age.replace(age).is_some()
            } else if let Ok(bytes) = part.parse::<Size>() {
                window.bytes.replace(bytes).is_some()
            } else {
                return Err(format!(
                    "'{part}' is no window: an age (24h), a size (500G), both (24h, 500G), or unlimited"
                ));
            };
            if twice {
                return Err(format!("'{text}' names two windows of one kind"));
            }
        }
        Ok(window)
    }
}

impl fmt::Display for RollbackWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.age, self.bytes) {
            (Some(age), Some(bytes)) => write!(f, "{age}, {bytes}"),
            (Some(age), None) => age.fmt(f),
            (None, Some(bytes)) => bytes.fmt(f),
            (None, None) => f.write_str(Self::UNLIMITED),
        }
    }
}

impl<'de> Deserialize<'de> for RollbackWindow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Serialize for RollbackWindow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_round_trip() {
        for text in ["24h", "500G", "36h, 2T", "90s", "unlimited"] {
            let window: RollbackWindow = text.parse().unwrap();
            let again: RollbackWindow = window.to_string().parse().unwrap();
            assert_eq!(window, again, "{text}");
        }
        let both: RollbackWindow = "500G,2h".parse().unwrap();
        assert_eq!(both.to_string(), "2h, 500G");
        assert_eq!(both.wanted().bytes, Some(500 << 30));
        assert_eq!(both.wanted().age_ns, Some(7_200_000_000_000));
        for bad in ["", "24", "1h, 2h", "1G, 2G", "1h 2G", "none"] {
            // A number alone is a size in bytes.
            assert_eq!(bad.parse::<RollbackWindow>().is_err(), bad != "24", "{bad}");
        }
    }
}
