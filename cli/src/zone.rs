//! Time zones: of this host, or by name.

use chrono::{DateTime, FixedOffset, Local, LocalResult, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;
use control::Moment;
use std::{env, fs};

/// Format of dates in tables and of `-D`.
pub const DATE_FORMAT: &str = "%m/%d/%y %H:%M:%S";

/// A time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// `/etc/localtime`, when no name is known for it.
    Host,
    /// A zone of the IANA database.
    Named(Tz),
}

impl Zone {
    /// The zone of this host, by name where one can be found: only names come with abbreviations (`CET`).
    #[must_use]
    pub fn host() -> Self {
        // TZ stands above /etc/localtime for every program, `date` included.
        if let Some(tz) = env::var("TZ").ok().filter(|t| !t.is_empty()) {
            return tz.trim_start_matches(':').parse().map_or(Self::Host, Self::Named);
        }
        fs::canonicalize("/etc/localtime")
            .ok()
            .and_then(|p| p.to_str()?.split_once("/zoneinfo/")?.1.parse().ok())
            .map_or(Self::Host, Self::Named)
    }

    /// The zone of this name (`Europe/Berlin`), if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        name.parse().ok().map(Self::Named)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "this host's zone",
            Self::Named(tz) => tz.name(),
        }
    }

    /// `MM/DD/YY HH:MM:SS`.
    #[must_use]
    pub fn date(self, at: Moment) -> String {
        self.format(at, DATE_FORMAT)
    }

    /// `MM/DD/YY HH:MM:SS CET`.
    #[must_use]
    pub fn date_zone(self, at: Moment) -> String {
        format!("{} {}", self.date(at), self.abbreviation(at))
    }

    /// `2026-11-20T03:11:52+01:00`: names one instant wherever it is read.
    #[must_use]
    pub fn iso(self, at: Moment) -> String {
        self.format(at, "%FT%T%:z")
    }

    /// `HH:MM:SS` on the day of `now`, else the whole date.
    #[must_use]
    pub fn time_or_date(self, at: Moment, now: Moment) -> String {
        if self.format(at, "%F") == self.format(now, "%F") {
            self.format(at, "%H:%M:%S")
        } else {
            self.date(at)
        }
    }

    /// `CET`, or `+01:00` for a zone without names.
    #[must_use]
    pub fn abbreviation(self, at: Moment) -> String {
        self.format(at, "%Z")
    }

    fn format(self, at: Moment, format: &str) -> String {
        let utc = utc(at);
        match self {
            Self::Host => utc.with_timezone(&Local).format(format).to_string(),
            Self::Named(tz) => utc.with_timezone(&tz).format(format).to_string(),
        }
    }

    /// The instants that clocks of this zone showed so: none, one or two.
    #[must_use]
    pub fn instants(self, clock: &NaiveDateTime) -> LocalResult<DateTime<FixedOffset>> {
        match self {
            Self::Host => Local.from_local_datetime(clock).map(|t| t.fixed_offset()),
            Self::Named(tz) => tz.from_local_datetime(clock).map(|t| t.fixed_offset()),
        }
    }
}

fn utc(at: Moment) -> DateTime<Utc> {
    let nanos = u32::try_from(at.0 % model::Timestamp::SECOND_NS).unwrap_or(0);
    i64::try_from(at.seconds())
        .ok()
        .and_then(|s| DateTime::from_timestamp(s, nanos))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_zone_has_abbreviations_for_both_halves_of_the_year() {
        let berlin = Zone::named("Europe/Berlin").unwrap();
        assert_eq!(
            berlin.date_zone(Moment(1_169_584_788_000_000_000)),
            "01/23/07 21:39:48 CET"
        );
        assert_eq!(
            berlin.date_zone(Moment(1_242_372_820_000_000_000)),
            "05/15/09 09:33:40 CEST"
        );
        assert_eq!(Zone::named("Europe/Nowhere"), None);
        let noon = Moment(1_169_584_788_000_000_000);
        assert_eq!(berlin.time_or_date(noon, noon), "21:39:48");
        assert_eq!(berlin.time_or_date(noon, Moment(0)), "01/23/07 21:39:48");
    }
}
