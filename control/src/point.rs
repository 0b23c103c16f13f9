//! Moments, points and windows as commands see them.

use model::{LfcId, Timestamp, WriteSeq};
use serde::{Deserialize, Serialize};

/// An instant, on the socket and in `--json` as `{"utc": RFC 3339, "epoch_ns": N}`; only `epoch_ns` is read back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "MomentJson", from = "MomentJson")]
pub struct Moment(pub u64);

#[derive(Serialize, Deserialize)]
struct MomentJson {
    #[serde(default)]
    utc: String,
    epoch_ns: u64,
}

impl From<Moment> for MomentJson {
    fn from(at: Moment) -> Self {
        Self {
            utc: at.timestamp().rfc3339(),
            epoch_ns: at.0,
        }
    }
}

impl From<MomentJson> for Moment {
    fn from(json: MomentJson) -> Self {
        Self(json.epoch_ns)
    }
}

impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Self {
        Self(at.0)
    }
}

impl Moment {
    /// The same instant in the model's words.
    #[must_use]
    pub const fn timestamp(self) -> Timestamp {
        Timestamp(self.0)
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.timestamp().seconds()
    }
}

/// A resolved point: one exact position, and what is known about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// Number of the generation as people see it: `3` is `g3`.
    pub generation: u32,
    /// Last record in the view.
    pub seq: u64,
    /// The redo container that holds that record, or ends with it.
    pub lfc: u64,
    /// Time of that record.
    pub time: Moment,
    /// The target as it was asked for, if this answers one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The event mark that stands exactly here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// What the operator should know: `event mark 'end-of-day' taken, 0.4 s after that second`, `cut at 8000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Zone of the production host (`production_tz`), to show the time in as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub production_tz: Option<String>,
}

impl PointInfo {
    /// A bare position.
    #[must_use]
    pub fn new(generation: u32, seq: WriteSeq, lfc: LfcId, time: Timestamp) -> Self {
        Self {
            generation,
            seq: seq.0,
            lfc: lfc.0,
            time: time.into(),
            ..Self::default()
        }
    }
}

/// Records that one host has and a point lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingInfo {
    /// Records.
    pub writes: u64,
    /// Bytes those records wrote.
    pub bytes: u64,
}

/// Which side of a missed target a point lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The nearest reachable point before it.
    Before,
    /// The nearest reachable point after it.
    After,
}

/// A reachable point next to a target that is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearPoint {
    /// Which side.
    pub side: Side,
    /// What to type to get it (`lfc:70250`, `g1:epoch:1169584788`).
    pub target: String,
    /// The point.
    pub point: PointInfo,
}

/// A stretch of a window in which no point can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Last reachable moment before it.
    pub from: Moment,
    /// First reachable moment after it.
    pub to: Moment,
    /// Why.
    pub why: String,
}

/// The reachable points of one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowInfo {
    /// Number of the generation as people see it.
    pub generation: u32,
    /// Whether this is the line that leads to today's production.
    pub current: bool,
    /// Oldest reachable point.
    pub oldest: PointInfo,
    /// Newest reachable point.
    pub newest: PointInfo,
    /// What lies between and cannot be reached, in rising order.
    pub gaps: Vec<Gap>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_both_forms_and_read_from_nanoseconds() {
        let at = Moment(1_169_584_788_250_000_000);
        let text = serde_json::to_string(&at).unwrap();
        assert_eq!(
            text,
            r#"{"utc":"2007-01-23T20:39:48.250Z","epoch_ns":1169584788250000000}"#
        );
        assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), at);
        assert_eq!(
            serde_json::from_str::<Moment>(r#"{"epoch_ns":7}"#).unwrap(),
            Moment(7)
        );
    }
}
