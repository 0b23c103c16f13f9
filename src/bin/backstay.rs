//! The one binary: `backstay`, and every operator command through a link to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    backstay::attach::keeper::called(&words).unwrap_or_else(|| cli::run(words, &backstay::Program))
}
