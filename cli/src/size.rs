//! Sizes, counts and durations, typed and printed.

use model::Timestamp;

const UNITS: [(&str, u64); 5] = [
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("P", 1 << 50),
];

/// `512`, `512M`, `1.5G`? No: whole numbers only, with K M G T P (powers of 1024), `KiB` and the like too.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let factor = match unit {
        "" => 1,
        _ => UNITS.iter().find(|(u, _)| u.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `0 B`, `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    match UNITS.iter().rev().find(|(_, f)| n >= *f) {
        None => format!("{n} B"),
        #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
        Some((u, f)) => format!("{:.1} {u}iB", n as f64 / *f as f64),
    }
}

/// `52s`, `12m34s`, `24h01m`, `12d04h`.
pub(crate) fn duration(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{m}m{:02}s", seconds % 60),
        3600..360_000 => format!("{h}h{:02}m", m % 60),
        _ => format!("{d}d{:02}h", h % 24),
    }
}

/// `0.4 s` below ten seconds, else as [`duration`].
pub(crate) fn short_seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{:.1} s", seconds.max(0.0))
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped; shown only"
        )]
        duration(seconds.min(1e15) as u64)
    }
}

/// Seconds between two instants in nanoseconds; 0 when they are the wrong way round.
#[expect(clippy::cast_precision_loss, reason = "shown only")]
pub(crate) fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / Timestamp::SECOND_NS as f64
}

/// `1 write`, `2 writes`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, size) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse(text), Some(size), "{text}");
        }
        for text in ["", "G", "1.5G", "-1", "1GB", "1 G", "99999999P", "1GiBiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(duration(86_510), "24h01m");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(754), "12m34s");
        assert_eq!(duration(12 * 86_400 + 4 * 3600), "12d04h");
        assert_eq!(short_seconds(0.41), "0.4 s");
        assert_eq!(count(1, "write"), "1 write");
    }
}
