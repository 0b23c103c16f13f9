//! Plots as SVG, written by hand: bars and curves that can be read on a light page and on a dark one.

use crate::{
    outcome::{Curve, Series},
    page::{Came, Done, number},
};
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 130.0;
const BAR: f64 = 24.0;
const STYLE: &str = "<style>\
text{font:13px sans-serif;fill:#24292f}.t{font-weight:bold}.b{fill:#8c959f}.o{fill:#0969da}\
.s{stroke:#24292f;stroke-width:1.5}.a{stroke:#8c959f;fill:none}.c{stroke:#0969da;fill:none;stroke-width:1.5}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{stroke:#e6edf3}.o{fill:#4493f8}.c{stroke:#4493f8}}\
</style>";

/// File, what it shows, and its text.
pub fn plots(all: &[Done]) -> Vec<(String, String, String)> {
    let mut plots = Vec::new();
    for done in all {
        let Came::Measured(outcome) = &done.came else {
            continue;
        };
        let line = &done.line;
        let title = format!("{}. {}", line.number, line.work);
        if [1, 2, 4, 5].contains(&line.number) {
            let file = format!("bench-line-{}.svg", line.number);
            plots.push((file, title.clone(), bars(&title, &outcome.series)));
        }
        for (n, curve) in outcome.curves.iter().enumerate() {
            let file = format!("bench-line-{}-curve-{}.svg", line.number, n + 1);
            plots.push((file, curve.title.clone(), curve_svg(curve)));
        }
    }
    plots
}

/// Escapes what XML reads as its own.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn opened(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">{STYLE}\n\
         <text class=\"t\" x=\"8\" y=\"20\">{}</text>\n",
        escaped(title)
    )
}

/// A bar each: the median, with the spread as a line over it. Ours comes first and has another colour.
fn bars(title: &str, series: &[Series]) -> String {
    let top = series
        .iter()
        .map(|s| s.samples.highest())
        .fold(f64::MIN, f64::max);
    let unit = (WIDTH - LEFT - RIGHT) / top;
    let mut svg = opened(40.0 + BAR * series.len() as f64, title);
    for (n, s) in series.iter().enumerate() {
        let y = 34.0 + BAR * n as f64;
        let ours = s.name.starts_with("capture") && s.name != "capture off" || s.name == "full path";
        let class = if ours { "o" } else { "b" };
        let (name, shown) = (escaped(&s.name), number(s.samples.median()));
        let (low, median, high) = (
            s.samples.lowest() * unit,
            s.samples.median() * unit,
            s.samples.highest() * unit,
        );
        let middle = y + 8.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.0}\" width=\"{median:.1}\" height=\"16\"/>\
             <path class=\"s\" d=\"M{:.1} {middle}H{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{shown} {}</text>",
            LEFT - 8.0,
            y + 13.0,
            LEFT + low,
            LEFT + high,
            LEFT + high + 8.0,
            y + 13.0,
            s.unit,
        );
    }
    svg + "</svg>\n"
}

/// A figure over time, from zero.
fn curve_svg(curve: &Curve) -> String {
    let (height, bottom, top) = (240.0, 210.0, 40.0);
    let (left, right) = (110.0, WIDTH - 16.0);
    let high = curve.points.iter().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max);
    let end = curve.points.last().map_or(1.0, |p| p.0).max(f64::MIN_POSITIVE);
    let mut path = String::new();
    for (n, (at, figure)) in curve.points.iter().enumerate() {
        let x = left + at / end * (right - left);
        let y = bottom - figure / high * (bottom - top);
        let _ = write!(path, "{}{x:.1} {y:.1}", if n == 0 { 'M' } else { 'L' });
    }
    let mut svg = opened(height, &curve.title);
    let _ = write!(
        svg,
        "<path class=\"a\" d=\"M{left} {top}V{bottom}H{right}\"/><path class=\"c\" d=\"{path}\"/>\n\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{} {}</text><text x=\"{:.0}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\
         <text x=\"{right}\" y=\"{:.0}\" text-anchor=\"end\">{} s</text>\n</svg>\n",
        left - 6.0,
        top + 8.0,
        number(high),
        curve.unit,
        left - 6.0,
        bottom + 20.0,
        number(end),
    );
    svg
}
