//! Jobs, and the log of what operators did.

use super::{View, about, table::Table};
use control::{
    JobState, Moment,
    jobs::{JobInfo, JobsReply, LogEntry, LogReply},
};
use std::fmt::Write as _;

pub(crate) fn jobs(r: &JobsReply, view: &View) -> String {
    if r.jobs.is_empty() {
        return "No jobs\n".into();
    }
    let mut table = Table::new([
        ">JOB", ">CONTEXT", "STATE", "SINCE", "OPERATOR", "COMMAND", "PROGRESS",
    ]);
    for job in &r.jobs {
        table.row([
            job.id.to_string(),
            context(job.context),
            state(job),
            view.zone.date(job.since),
            job.operator.clone(),
            job.command.clone(),
            progress(job),
        ]);
    }
    table.text()
}

pub(crate) fn job(job: &JobInfo, view: &View) -> String {
    let mut text = format!("Job {} on {}: {}\n", job.id, job.host, state(job));
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<9} {value}");
    };
    line("command", &job.command);
    line("operator", &job.operator);
    line("context", &context(job.context));
    line("since", &view.zone.date_zone(job.since));
    if let Some(ended) = job.ended {
        line("ended", &view.zone.date_zone(ended));
    }
    if let Some(error) = &job.error {
        line("error", error);
    }
    if let Some(question) = &job.question {
        line("asks", &format!("{}: {question}", job.operator));
    }
    if job.progress.is_some() {
        line("progress", &progress(job));
    }
    if job.ended.is_none() {
        let cancel = match &job.keeps_on {
            None => "possible".to_owned(),
            Some(why) => format!("not now: {why}"),
        };
        line("cancel", &cancel);
    }
    text
}

pub(crate) fn cancelled(job: &JobInfo) -> String {
    format!("Job {} is cancelled ({})\n", job.id, job.command)
}

/// What an operator is shown of a question that somebody else was asked.
pub(crate) fn asked(operator: &str, question: &str) -> String {
    format!("{question} [y|n] ({operator} is asked)")
}

pub(crate) fn log(r: &LogReply, view: &View) -> String {
    let mut text = String::new();
    if r.omitted {
        text.push_str("(there are older entries: --limit)\n");
    }
    let mut table = Table::new([
        "WHEN", "HOST", ">JOB", ">CONTEXT", "OPERATOR", "COMMAND", "ANSWERS", "RESULT",
    ]);
    for entry in &r.entries {
        table.row([
            view.zone.date(entry.begun),
            entry.host.clone(),
            entry.job.map_or_else(|| "-".into(), |job| job.to_string()),
            context(entry.context),
            entry.operator.clone(),
            entry.command.clone(),
            answers(entry),
            result(entry),
        ]);
    }
    text.push_str(&table.text());
    for unheard in &r.unheard {
        let _ = writeln!(text, "Not here: what {} has ({})", unheard.host, unheard.why);
    }
    text
}

fn answers(entry: &LogEntry) -> String {
    let one = |a: &control::jobs::AnswerGiven| match (a.yes, a.quiet) {
        (true, true) => "y (-q)",
        (true, false) => "y",
        (false, _) => "n",
    };
    if entry.answers.is_empty() {
        return "-".into();
    }
    entry.answers.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn result(entry: &LogEntry) -> String {
    match (entry.code, entry.ended) {
        (Some(code), Some(ended)) => {
            let seconds = crate::size::seconds_between(entry.begun.0, ended.0);
            let after = crate::size::short_seconds(seconds);
            format!("{}: {} after {after}", code.number(), entry.result)
        }
        _ => entry.result.clone(),
    }
}

fn context(id: Option<u32>) -> String {
    id.map_or_else(|| "-".into(), |id| id.to_string())
}

fn state(job: &JobInfo) -> String {
    match (job.state, job.code) {
        (JobState::WaitingForLock, _) => "waits for another command".into(),
        (JobState::Running, _) => "running".into(),
        (JobState::Asking, _) => "asks its operator".into(),
        (JobState::Cancelling, _) => "is being cancelled".into(),
        (JobState::Ended, Some(code)) => format!("ended with {}", code.number()),
        (JobState::Ended, None) => "ended".into(),
    }
}

fn progress(job: &JobInfo) -> String {
    let mut progress = job.progress.clone();
    if let Some(progress) = &mut progress {
        progress.job = None;
    }
    match (progress, job.ended) {
        (Some(progress), _) => about::progress(&progress),
        (None, Some(ended)) => took(job.since, ended),
        (None, None) => "-".into(),
    }
}

fn took(from: Moment, to: Moment) -> String {
    let seconds = crate::size::seconds_between(from.0, to.0);
    format!("took {}", crate::size::short_seconds(seconds))
}
