//! The bench: each line of the table of docs/BENCHMARKS.md beside its peer, in one run.
//!
//! `make bench`, `make bench-quick`; `ONLY="1 2 7"` takes only those, and then the page is not written unless `PAGE` names a
//! file. `MINUTES` is how long lines may begin, else that of the scale. It exits 0 also when aims are missed, and with 1 when a run failed: nothing passes or fails by time.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

mod bench;
#[path = "../../tests/common/mod.rs"]
mod common;
mod fio;
mod machine;
mod nodes;
mod outcome;
mod page;
mod peers;
mod plain;
mod plot;
mod processors;
mod stats;
mod texts;
mod work;
mod writer;

use bench::{Bench, Scale, timed};
use page::{Came, Done, Whole};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};
use work::Line;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` passes --test: a bench is not a test.
    if words.iter().any(|a| a == "--test") {
        return ExitCode::SUCCESS;
    }
    if let [word, image, socket, ..] = &words[..]
        && word == plain::SERVE
    {
        let Err(why) = plain::serve(Path::new(image), Path::new(socket)) else {
            return ExitCode::SUCCESS;
        };
        eprintln!("{why:#}");
        return ExitCode::FAILURE;
    }
    let mut scale = match std::env::var("SCALE").as_deref() {
        Ok("quick") => Scale::quick(),
        Ok("tiny") => Scale::tiny(),
        _ => Scale::full(),
    };
    if let Some(minutes) = std::env::var("MINUTES").ok().and_then(|m| m.parse().ok()) {
        scale.minutes = minutes;
    }
    let wanted = std::env::var("ONLY").unwrap_or_default();
    let wanted: Vec<u32> = wanted
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let lines = work::lines();
    if let Some(none) = wanted
        .iter()
        .find(|n| lines.iter().all(|line| line.number != **n))
    {
        eprintln!("there is no line {none}: ONLY takes numbers of the table in docs/BENCHMARKS.md");
        return ExitCode::from(64);
    }
    let lines = lines
        .into_iter()
        .filter(|line| wanted.is_empty() || wanted.contains(&line.number));
    let (seconds, all) = timed(|| {
        let (bench, began) = (Bench::new(scale.clone()), Instant::now());
        let mut all: Vec<Done> = lines.map(|line| run(line, &bench, began)).collect();
        all.sort_by_key(|done| done.line.number);
        all
    });
    print!("\n{}\n{}\n", page::table(&all), page::verdict(&all));
    let page = match std::env::var_os("PAGE") {
        Some(path) => Some(PathBuf::from(path)),
        None => wanted
            .is_empty()
            .then(|| testkit::proc::root().join("docs/BENCHMARKS.md")),
    };
    if let Some(page) = page
        && let Err(why) = write(&page, &scale, seconds / 60.0, &all)
    {
        eprintln!("{}: {why}", page.display());
        return ExitCode::FAILURE;
    }
    match all.iter().any(Done::failed) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Runs a line. What fails is said, and the others go on.
fn run(line: Line, bench: &Bench, began: Instant) -> Done {
    println!("== {}. {}", line.number, line.work);
    let load = machine::load();
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let (seconds, came) = timed(|| {
        if minutes > bench.scale.minutes {
            return Came::Without(format!("not run: {minutes:.0} minutes had passed"));
        }
        match catch_unwind(AssertUnwindSafe(|| (line.run)(bench))) {
            Ok(outcome) => Came::Measured(outcome),
            Err(why) => {
                let text = why.downcast_ref::<String>().cloned();
                let text = text.or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Came::Failed(text.unwrap_or_default())
            }
        }
    });
    let done = Done {
        line,
        came,
        seconds,
        load,
    };
    match &done.came {
        Came::Measured(outcome) => print!("{}", page::figures(outcome)),
        Came::Without(why) | Came::Failed(why) => println!("   {why}"),
    }
    println!("   ({:.0} s)", done.seconds);
    done
}

/// The page and the plots beside it.
fn write(page: &Path, scale: &Scale, minutes: f64, all: &[Done]) -> std::io::Result<()> {
    let folder = page.parent().unwrap_or(Path::new("."));
    let mut plots = Vec::new();
    for (file, shows, svg) in plot::plots(all) {
        fs::write(folder.join(&file), svg)?;
        plots.push((file, shows));
    }
    let command = match scale.name {
        "full" => "make bench".to_owned(),
        name => format!("make bench-{name}"),
    };
    let text = page::page(
        &Whole {
            facts: &machine::facts(folder),
            command: &command,
            scale: scale.name,
            minutes,
            plots: &plots,
        },
        all,
    );
    fs::write(page, text)
}
