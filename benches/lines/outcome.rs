//! What a line answers.

use crate::{fio::Job, stats::Samples};

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
    /// Told, not aimed at: it explains another figure.
    Told,
}

impl Aim {
    /// Whether the median is as it must be; `None`: nothing must be.
    pub fn reached(self, median: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(median >= least),
            Self::AtMost(most) => Some(median <= most),
            Self::Told => None,
        }
    }

    pub fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}{unit}"),
            Self::AtMost(most) => format!("≤ {most}{unit}"),
            Self::Told => "–".into(),
        }
    }
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which part of the line's work, if it has several.
    pub part: String,
    pub against: String,
    pub aim: Aim,
    /// Behind the figures; empty for a ratio.
    pub unit: &'static str,
    pub samples: Samples,
}

/// The figures behind the ratios.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub unit: &'static str,
    pub samples: Samples,
}

/// A figure over time, for a plot.
#[derive(Clone, Debug)]
pub struct Curve {
    pub title: String,
    pub unit: &'static str,
    /// (seconds, figure)
    pub points: Vec<(f64, f64)>,
}

/// What came of a line.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub rows: Vec<Row>,
    pub series: Vec<Series>,
    pub curves: Vec<Curve>,
    /// The clients' command lines.
    pub commands: Vec<String>,
    /// What must be known to read the figures.
    pub remarks: Vec<String>,
}

impl Outcome {
    /// A ratio, round by round.
    pub fn ratio(&mut self, part: &str, against: &str, aim: Aim, samples: Samples) {
        self.figure(part, against, aim, "", samples);
    }

    /// A figure with a unit.
    pub fn figure(&mut self, part: &str, against: &str, aim: Aim, unit: &'static str, samples: Samples) {
        self.rows.push(Row {
            part: part.to_owned(),
            against: against.to_owned(),
            aim,
            unit,
            samples,
        });
    }

    pub fn series(&mut self, name: &str, unit: &'static str, samples: Samples) {
        self.series.push(Series {
            name: name.to_owned(),
            unit,
            samples,
        });
    }

    pub fn ran(&mut self, job: &Job) {
        self.commands.push(job.shown());
    }

    pub fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }
}
