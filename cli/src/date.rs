//! Dates as operators type them (`-D`, `--from`, `--to`).
//!
//! A date without an offset is a reading of a clock on the wall of some zone. In the hour that is shown twice it names two
//! instants, in the hour that is skipped none; both are refused, because the wrong guess restores the wrong data.

use crate::zone::Zone;
use chrono::{
    DateTime, Datelike as _, LocalResult, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone as _,
    Timelike as _,
};
use control::Moment;

/// Why a text is no instant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DateError {
    /// None of the known forms.
    #[error(
        "'{0}' is no date (\"MM/DD/YY HH:MM:SS\", or ISO: 2009-05-15T09:33:40, with or without Z or +02:00)"
    )]
    Form(String),
    /// Clocks showed it twice.
    #[error("'{text}' was shown twice by clocks of {zone}: give {first} or {second}")]
    Ambiguous {
        /// As typed.
        text: String,
        /// The zone.
        zone: &'static str,
        /// The earlier reading.
        first: String,
        /// The later reading.
        second: String,
    },
    /// Clocks never showed it.
    #[error(
        "'{text}' was never shown by clocks of {zone}, which were set forward over it: give {first} or {second}"
    )]
    NonExistent {
        /// As typed.
        text: String,
        /// The zone.
        zone: &'static str,
        /// What a clock that was set forward too early would have meant.
        first: String,
        /// What a clock that was not set forward would have meant.
        second: String,
    },
    /// Not yet.
    #[error("'{text}' is in the future: it is {now} now")]
    Future {
        /// As typed.
        text: String,
        /// The present instant.
        now: String,
    },
    /// Before 1970.
    #[error("'{0}' is before 1970")]
    TooOld(String),
}

/// The instant that `text` names in `zone`; an offset of its own wins. Years 69 to 99 are 19YY.
///
/// # Errors
/// When it names none, or two, or one that is yet to come.
pub fn parse(text: &str, zone: Zone, now: Moment) -> Result<Moment, DateError> {
    let text = text.trim();
    let at = match offset_date(text) {
        Some(at) => at,
        None => {
            let clock = clock_date(text).ok_or_else(|| DateError::Form(text.to_owned()))?;
            match zone.instants(&clock) {
                LocalResult::Single(at) => at,
                LocalResult::Ambiguous(a, b) => {
                    let (first, second) = if a <= b { (a, b) } else { (b, a) };
                    let reading = |t: DateTime<_>| t.to_rfc3339_opts(SecondsFormat::AutoSi, false);
                    return Err(DateError::Ambiguous {
                        text: text.to_owned(),
                        zone: zone.name(),
                        first: reading(first),
                        second: reading(second),
                    });
                }
                LocalResult::None => {
                    let [first, second] = around(zone, &clock);
                    return Err(DateError::NonExistent {
                        text: text.to_owned(),
                        zone: zone.name(),
                        first,
                        second,
                    });
                }
            }
        }
    };
    let at = at
        .timestamp_nanos_opt()
        .and_then(|n| u64::try_from(n).ok())
        .map(Moment)
        .ok_or_else(|| DateError::TooOld(text.to_owned()))?;
    if at > now {
        return Err(DateError::Future {
            text: text.to_owned(),
            now: zone.date_zone(now),
        });
    }
    Ok(at)
}

/// The two instants that a reading which was skipped may mean, as clocks of the zone showed them: by the offset behind the step, and
/// by the one before it.
fn around(zone: Zone, clock: &NaiveDateTime) -> [String; 2] {
    // No zone was set twice within two days.
    let day = TimeDelta::days(1);
    let offsets =
        [*clock + day, *clock - day].map(|near| zone.instants(&near).earliest().map(|t| *t.offset()));
    offsets.map(|offset| {
        let at = offset.and_then(|o| o.from_local_datetime(clock).earliest());
        let at = at.and_then(|t| u64::try_from(t.timestamp()).ok());
        at.map_or_else(
            || "another date".to_owned(),
            |seconds| zone.iso(Moment(seconds * model::Timestamp::SECOND_NS)),
        )
    })
}

fn offset_date(text: &str) -> Option<DateTime<chrono::FixedOffset>> {
    ["%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f%:z"]
        .into_iter()
        .find_map(|f| DateTime::parse_from_str(text, f).ok())
        .or_else(|| DateTime::parse_from_rfc3339(text).ok())
        .filter(|t| t.nanosecond() < 1_000_000_000)
}

fn clock_date(text: &str) -> Option<NaiveDateTime> {
    let with = |form: &str| NaiveDateTime::parse_from_str(text, form).ok();
    // %y takes two digits, so a year of four falls to the next form. chrono's century begins at 70, POSIX's at 69.
    with("%m/%d/%y %H:%M:%S")
        .and_then(|t| {
            if t.year() == 2069 {
                t.with_year(1969)
            } else {
                Some(t)
            }
        })
        .or_else(|| with("%m/%d/%Y %H:%M:%S"))
        .or_else(|| with("%Y-%m-%dT%H:%M:%S%.f"))
        .or_else(|| with("%Y-%m-%d %H:%M:%S%.f"))
        // chrono reads :60 as a leap second, which no clock of ours shows.
        .filter(|t| t.nanosecond() < 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20 02:11:52 UTC.
    const NOW: Moment = Moment(1_795_140_712_000_000_000);

    fn at(text: &str, zone: &str) -> Result<u64, DateError> {
        parse(text, Zone::named(zone).unwrap(), NOW).map(|m| m.seconds())
    }

    #[test]
    fn dates_are_readings_of_the_zones_clock() {
        for (text, zone, seconds) in [
            ("05/15/09 09:33:40", "UTC", 1_242_380_020),
            ("05/15/09 09:33:40", "Europe/Berlin", 1_242_372_820),
            ("05/15/09 09:33:40", "America/New_York", 1_242_394_420),
            ("05/15/2009 09:33:40", "UTC", 1_242_380_020),
            ("2009-05-15T09:33:40", "Europe/Berlin", 1_242_372_820),
            ("2009-05-15 09:33:40", "Europe/Berlin", 1_242_372_820),
            ("2009-05-15 09:33:40+02:00", "America/New_York", 1_242_372_820),
            ("2009-05-15T09:33:40Z", "Europe/Berlin", 1_242_380_020),
            // The last second before and the first after the hour that Berlin showed twice in 2026.
            ("10/25/26 01:59:59", "Europe/Berlin", 1_792_886_399),
            ("10/25/26 03:00:00", "Europe/Berlin", 1_792_893_600),
        ] {
            assert_eq!(at(text, zone), Ok(seconds), "{text} {zone}");
        }
        assert_eq!(
            parse("2009-05-15T09:33:40.25Z", Zone::Named(chrono_tz::UTC), NOW),
            Ok(Moment(1_242_380_020_250_000_000))
        );
    }

    #[test]
    fn years_69_to_99_are_of_the_last_century() {
        assert_eq!(at("01/01/70 00:00:00", "UTC"), Ok(0));
        assert_eq!(at("12/31/99 23:59:59", "UTC"), Ok(946_684_799));
        assert_eq!(at("01/01/00 00:00:00", "UTC"), Ok(946_684_800));
        assert!(matches!(
            at("12/31/69 23:59:59", "UTC"),
            Err(DateError::TooOld(_))
        ));
        assert!(matches!(
            at("01/01/68 00:00:00", "UTC"),
            Err(DateError::Future { .. })
        ));
    }

    #[test]
    fn an_hour_shown_twice_is_refused_with_both_readings_and_each_is_accepted() {
        let error = at("10/25/26 02:30:00", "Europe/Berlin").unwrap_err();
        let DateError::Ambiguous { first, second, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(first, "2026-10-25T02:30:00+02:00");
        assert_eq!(second, "2026-10-25T02:30:00+01:00");
        let (a, b) = (
            at(first, "Europe/Berlin").unwrap(),
            at(second, "Europe/Berlin").unwrap(),
        );
        assert_eq!(b - a, 3600);
        assert_eq!(error.to_string().matches("2026-10-25T02:30:00").count(), 2);
    }

    #[test]
    fn an_hour_that_was_skipped_is_refused() {
        assert!(matches!(
            at("03/29/26 02:30:00", "Europe/Berlin"),
            Err(DateError::NonExistent { .. })
        ));
        assert!(at("03/29/26 02:30:00", "UTC").is_ok());
        let refused = |text, zone| match at(text, zone) {
            Err(DateError::NonExistent { first, second, .. }) => {
                // Each of the two is accepted as it is printed.
                assert!(at(&first, zone).is_ok() && at(&second, zone).is_ok());
                (first, second)
            }
            other => panic!("{other:?}"),
        };
        let two = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            refused("03/29/26 02:30:00", "Europe/Berlin"),
            two("2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00")
        );
        // Half an hour; and a whole day, over which the date line went.
        assert_eq!(
            refused("10/04/26 02:10:00", "Australia/Lord_Howe"),
            two("2026-10-04T01:40:00+10:30", "2026-10-04T02:40:00+11:00")
        );
        assert_eq!(
            refused("12/30/11 12:00:00", "Pacific/Apia"),
            two("2011-12-29T12:00:00-10:00", "2011-12-31T12:00:00+14:00")
        );
    }

    /// What a clock showed is read back as that instant, or refused with both it may mean, in zones of every kind: with half and
    /// quarter hours, with steps of half an hour, with winter time in summer, without any.
    #[test]
    fn what_clocks_showed_is_read_back_or_refused_with_both() {
        let zones = [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "America/St_Johns",
            "Asia/Kathmandu",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "Pacific/Apia",
        ];
        let (mut read, mut twice) = (0, 0);
        for zone in zones {
            // From 2009 on, at steps that meet every quarter of an hour.
            for at in (1_230_768_000..1_795_140_000).step_by(11_700) {
                let at = Moment(at * model::Timestamp::SECOND_NS);
                let tz = Zone::named(zone).unwrap();
                let shown = tz.date(at);
                match parse(&shown, tz, NOW) {
                    Ok(found) => {
                        assert_eq!(found, at, "{shown} in {zone}");
                        read += 1;
                    }
                    Err(DateError::Ambiguous { first, second, .. }) => {
                        let found = [first, second].map(|text| parse(&text, tz, NOW).unwrap());
                        assert!(found.contains(&at) && found[0] != found[1], "{shown} in {zone}");
                        twice += 1;
                    }
                    Err(e) => panic!("{shown} in {zone}: {e}"),
                }
                assert_eq!(parse(&tz.iso(at), tz, NOW), Ok(at), "{zone}");
            }
        }
        assert!(read > 380_000 && twice > 20, "{read} {twice}");
    }

    #[test]
    fn what_is_no_date_or_not_yet_is_refused() {
        for text in [
            "",
            "yesterday",
            "05/15/09",
            "15/05/09 09:33:40",
            "02/29/26 00:00:00",
            "05/15/09 24:00:00",
            "05/15/09 09:33:60",
            "05/15/09 09:33:40 CET",
            "1169584788",
        ] {
            assert!(matches!(at(text, "UTC"), Err(DateError::Form(_))), "{text}");
        }
        assert!(matches!(
            at("11/20/26 02:11:53", "UTC"),
            Err(DateError::Future { .. })
        ));
        assert!(at("11/20/26 02:11:52", "UTC").is_ok());
    }
}
