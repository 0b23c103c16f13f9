//! Instants as the journal records them.

use std::fmt;

/// An instant: nanoseconds since 1970-01-01 00:00 UTC.
///
/// Within one line timestamps never fall (`rules.md` L5: small steps back are slewed, larger ones journaled).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Nanoseconds in a second.
    pub const SECOND_NS: u64 = 1_000_000_000;

    /// The present instant of the system clock.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / Self::SECOND_NS
    }

    /// RFC 3339 in UTC with nanoseconds.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let secs = i64::try_from(self.seconds()).unwrap_or(i64::MAX);
        let nanos = u32::try_from(self.0 % Self::SECOND_NS).unwrap_or(0);
        chrono::DateTime::from_timestamp(secs, nanos).map_or_else(
            || format!("epoch:{}", self.seconds()),
            |t| t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}
