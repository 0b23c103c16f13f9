//! Programs of the system, run to their end.

use std::{
    io,
    process::{Command, Stdio},
};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It could not be started.
    #[error("{program}: {source}{}", if source.kind() == io::ErrorKind::NotFound { " (is it installed?)" } else { "" })]
    Start {
        /// The program.
        program: String,
        /// The failure.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{line}: exit {code}: {output}")]
    Failed {
        /// The command line.
        line: String,
        /// The exit code; -1 for a signal.
        code: i32,
        /// What it printed.
        output: String,
    },
}

/// What a program printed and how it ended.
pub struct Finished {
    /// The exit code; -1 for a signal.
    pub code: i32,
    /// stdout, then stderr.
    pub output: String,
}

/// Runs a program to its end with no input and in the C locale.
///
/// # Errors
/// When it cannot be started.
pub fn run(program: &str, args: &[&str]) -> Result<Finished, CommandError> {
    let out = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CommandError::Start {
            program: program.to_owned(),
            source,
        })?;
    let mut output = String::from_utf8_lossy(&out.stdout).into_owned();
    output.push_str(&String::from_utf8_lossy(&out.stderr));
    Ok(Finished {
        code: out.status.code().unwrap_or(-1),
        output,
    })
}

/// Runs a program that must succeed; answers what it printed.
///
/// # Errors
/// When it cannot be started or fails.
pub fn must(program: &str, args: &[&str]) -> Result<String, CommandError> {
    let done = run(program, args)?;
    if done.code == 0 {
        return Ok(done.output);
    }
    Err(CommandError::Failed {
        line: format!("{program} {}", args.join(" ")),
        code: done.code,
        output: done.output.trim().to_owned(),
    })
}
