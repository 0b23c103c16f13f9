//! The one binary: `backstay`, and every operator command through a link to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(std::env::args_os().collect(), &backstay::Program)
}
