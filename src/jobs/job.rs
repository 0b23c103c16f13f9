//! One job: its events, its question, its end.

use control::{
    Code, Event, Failure, JobState, Moment, Outcome, Progress, Question, Reply,
    jobs::{AnswerGiven, JobInfo},
    request::Options,
    server::Session,
};
use model::Timestamp;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Events that are kept for those who attach later; of the rest only their number.
const EVENTS_KEPT: usize = 4096;
/// The first ones stay: who it is, which job, which point.
const FIRST_KEPT: usize = 4;
/// How long `jobs cancel` stays to see the job end.
const CANCEL_STAYS: Duration = Duration::from_secs(60);
/// Why a job cannot be cancelled when nothing more exact is known.
const AT_WORK: &str = "it is at a step that must come to its end";

/// A command under way, or one that has ended.
pub struct Job {
    host: String,
    id: u64,
    context: Option<u32>,
    command: String,
    operator: String,
    quiet: bool,
    since: Timestamp,
    inner: Mutex<Inner>,
    /// Rings at everything new.
    moved: Condvar,
}

struct Inner {
    events: VecDeque<(u64, Event)>,
    /// Number of the newest event.
    newest: u64,
    omitted: u64,
    progress: Option<Progress>,
    waits_for_lock: bool,
    /// The question that waits, by the number of its event, and its answer.
    question: Option<(u64, String, Option<bool>)>,
    answers: Vec<AnswerGiven>,
    /// Whether the client that sent the request is there.
    owner: bool,
    stop: Stop,
    end: Option<(Timestamp, Outcome)>,
}

/// Whether a job may be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stop {
    Not(&'static str),
    May,
    Asked(String),
    /// The command has heard of it, and ends.
    Heard(String),
}

impl Stop {
    const fn is_asked(&self) -> bool {
        matches!(self, Self::Asked(_) | Self::Heard(_))
    }
}

/// Whose eyes watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Of the client that sent the request: it answers questions.
    Owner,
    /// Of another one.
    Guest,
}

/// What a watcher finds next.
enum Next {
    Event(u64, Event),
    /// The question of this event waits for the owner.
    Ask(u64, Question),
    End(Box<Outcome>),
    TimeUp,
}

impl Job {
    pub(super) fn new(
        host: &str,
        id: u64,
        context: Option<u32>,
        options: &Options,
        since: Timestamp,
    ) -> Self {
        Self {
            host: host.to_owned(),
            id,
            context,
            command: options.command_line.clone(),
            operator: options.operator.clone(),
            quiet: options.quiet,
            since,
            inner: Mutex::new(Inner {
                events: VecDeque::new(),
                newest: 0,
                omitted: 0,
                progress: None,
                waits_for_lock: false,
                question: None,
                answers: Vec::new(),
                owner: true,
                stop: Stop::Not(AT_WORK),
                end: None,
            }),
            moved: Condvar::new(),
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its context, primary id.
    #[must_use]
    pub fn context(&self) -> Option<u32> {
        self.context
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inner.lock().end.is_some()
    }

    /// Something happened. Of the progress of one step only the newest is kept.
    pub fn tell(&self, event: Event) {
        let mut inner = self.inner.lock();
        inner.push(event);
        self.moved.notify_all();
    }

    /// Asks the client that sent the request; a no when it is gone, or the job is cancelled.
    pub fn ask(&self, question: Question) -> bool {
        let mut inner = self.inner.lock();
        let text = question.in_short();
        inner.push(Event::Asked {
            operator: self.operator.clone(),
            question,
        });
        inner.question = Some((inner.newest, text.clone(), None));
        let stop = std::mem::replace(&mut inner.stop, Stop::May);
        self.moved.notify_all();
        let yes = loop {
            let answered = inner.question.as_ref().and_then(|(_, _, answer)| *answer);
            if let Some(yes) = answered {
                break yes;
            }
            if !inner.owner || inner.stop.is_asked() {
                break false;
            }
            self.moved.wait(&mut inner);
        };
        inner.question = None;
        if inner.stop == Stop::May {
            inner.stop = stop;
        }
        inner.answers.push(AnswerGiven {
            question: text,
            yes,
            quiet: yes && self.quiet,
        });
        self.moved.notify_all();
        yes
    }

    fn answer(&self, number: u64, yes: bool) {
        let mut inner = self.inner.lock();
        if let Some((_, _, answer)) = inner.question.as_mut().filter(|(n, ..)| *n == number) {
            *answer = Some(yes);
        }
        self.moved.notify_all();
    }

    /// The client that sent the request is gone.
    fn owner_left(&self) {
        self.inner.lock().owner = false;
        self.moved.notify_all();
    }

    /// Whether the client that sent the request is there, as far as is known.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.inner.lock().owner
    }

    /// It waits for another command to end, or not any more.
    pub fn waits_for_lock(&self, waits: bool) {
        self.inner.lock().waits_for_lock = waits;
    }

    /// From here on it can be stopped safely, or not any more; [`Job::stopped_by`] is to be looked at meanwhile. A wish that
    /// comes too late is forgotten, and whoever had it is told.
    pub fn may_stop(&self, may: bool) {
        let mut inner = self.inner.lock();
        inner.stop = match (&inner.stop, may) {
            (Stop::Heard(by), _) => Stop::Heard(by.clone()),
            (Stop::Asked(by), true) => Stop::Asked(by.clone()),
            (_, true) => Stop::May,
            (_, false) => Stop::Not(AT_WORK),
        };
        self.moved.notify_all();
    }

    /// Who has cancelled it. Whoever is told so must stop.
    #[must_use]
    pub fn stopped_by(&self) -> Option<String> {
        let mut inner = self.inner.lock();
        let by = match &inner.stop {
            Stop::Asked(by) | Stop::Heard(by) => by.clone(),
            Stop::Not(_) | Stop::May => return None,
        };
        inner.stop = Stop::Heard(by.clone());
        Some(by)
    }

    /// Cancels it and stays until it has ended.
    ///
    /// # Errors
    /// Why it goes on.
    pub fn cancel(&self, by: &str) -> Result<(), String> {
        let deadline = Instant::now() + CANCEL_STAYS;
        let mut inner = self.inner.lock();
        if inner.end.is_some() {
            return Err("it has ended already".into());
        }
        match &inner.stop {
            Stop::Not(why) => return Err((*why).to_owned()),
            Stop::May => inner.stop = Stop::Asked(by.to_owned()),
            Stop::Asked(_) | Stop::Heard(_) => {}
        }
        self.moved.notify_all();
        while inner.end.is_none() {
            if !inner.stop.is_asked() {
                return Err("it was past the point where it could be stopped".into());
            }
            if self.moved.wait_until(&mut inner, deadline).timed_out() {
                return Err("it has heard of it and has not ended yet".into());
            }
        }
        Ok(())
    }

    /// Why it could not be cancelled now.
    #[must_use]
    pub fn keeps_on(&self) -> Option<String> {
        let inner = self.inner.lock();
        match &inner.stop {
            _ if inner.end.is_some() => Some("it has ended already".into()),
            Stop::Not(why) => Some((*why).to_owned()),
            Stop::May | Stop::Asked(_) | Stop::Heard(_) => None,
        }
    }

    /// Its end; what it answered to questions.
    pub fn end(&self, outcome: Outcome) {
        let mut inner = self.inner.lock();
        inner.end = Some((Timestamp::now(), outcome));
        self.moved.notify_all();
    }

    /// Answers given so far.
    #[must_use]
    pub fn answers(&self) -> Vec<AnswerGiven> {
        self.inner.lock().answers.clone()
    }

    /// What is shown of it.
    #[must_use]
    pub fn info(&self) -> JobInfo {
        let keeps_on = self.keeps_on();
        let inner = self.inner.lock();
        let state = match &inner.stop {
            _ if inner.end.is_some() => JobState::Ended,
            stop if stop.is_asked() => JobState::Cancelling,
            _ if inner.question.is_some() => JobState::Asking,
            _ if inner.waits_for_lock => JobState::WaitingForLock,
            _ => JobState::Running,
        };
        let outcome = inner.end.as_ref().map(|(_, outcome)| outcome);
        let failure = outcome.and_then(|o| o.result.as_ref().err());
        JobInfo {
            id: self.id,
            host: self.host.clone(),
            context: self.context,
            command: self.command.clone(),
            operator: self.operator.clone(),
            since: Moment::from(self.since),
            state,
            progress: inner.progress.clone().filter(|_| outcome.is_none()),
            question: inner.question.as_ref().map(|(_, text, _)| text.clone()),
            keeps_on,
            ended: inner.end.as_ref().map(|(at, _)| Moment::from(*at)),
            code: outcome.map(Outcome::code),
            error: failure.map(|f| f.error.clone()),
        }
    }

    /// What comes after event `seen`.
    fn next(&self, seen: u64, seat: Seat, until: Option<Instant>) -> Next {
        let mut inner = self.inner.lock();
        loop {
            if let Some((number, event)) = inner.events.iter().find(|(n, _)| *n > seen).cloned() {
                let waits = inner.question.as_ref().is_some_and(|(n, ..)| *n == number);
                return match event {
                    Event::Asked { question, .. } if waits && seat == Seat::Owner => {
                        Next::Ask(number, question)
                    }
                    event => Next::Event(number, event),
                };
            }
            if let Some((_, outcome)) = &inner.end {
                return Next::End(Box::new(outcome.clone()));
            }
            match until {
                None => self.moved.wait(&mut inner),
                Some(until) => {
                    if self.moved.wait_until(&mut inner, until).timed_out() {
                        return Next::TimeUp;
                    }
                }
            }
        }
    }

    fn omitted(&self) -> u64 {
        self.inner.lock().omitted
    }
}

impl Inner {
    fn push(&mut self, event: Event) {
        if let Event::Progress(progress) = &event {
            self.progress = Some(progress.clone());
            let same =
                |(_, last): &(u64, Event)| matches!(last, Event::Progress(p) if p.what == progress.what);
            if self.events.back().is_some_and(same) {
                self.events.pop_back();
            }
        }
        if self.events.len() >= EVENTS_KEPT {
            self.events.remove(FIRST_KEPT);
            self.omitted += 1;
        }
        self.newest += 1;
        self.events.push_back((self.newest, event));
    }
}

/// Shows a job to a client, from its beginning to its end. Answers what the client is to be told last; `None`: it went away.
pub fn watch(session: &mut Session, job: &Job, seat: Seat, timeout: Option<Duration>) -> Option<Outcome> {
    let until = timeout.map(|timeout| Instant::now() + timeout);
    let heard = follow(session, job, seat, until);
    if seat == Seat::Owner {
        job.owner_left();
    }
    if matches!(heard, Some(None)) {
        let seconds = timeout.unwrap_or_default().as_secs();
        let text = format!("not done after {seconds} s: job {} goes on", job.id);
        let failure = Failure::new(Code::NotNow, text)
            .with_hint_command(format!("backstay jobs attach {}", job.id), &*job.host);
        return Some(Outcome::failed(failure));
    }
    heard.flatten().map(|outcome| match seat {
        Seat::Owner => outcome,
        Seat::Guest => without_secret(outcome),
    })
}

/// What a guest is told of a job's end. A pairing string is for who opened the pairing: it makes a host of whoever has it.
fn without_secret(outcome: Outcome) -> Outcome {
    if !matches!(outcome.result, Ok(Reply::PairOpen(_))) {
        return outcome;
    }
    let text = "a pairing string is shown once, to who opened the pairing";
    Outcome {
        head: outcome.head,
        ..Outcome::failed(Failure::new(Code::Refused, text))
    }
}

/// `None`: the client went away; `Some(None)`: the time is up.
fn follow(session: &mut Session, job: &Job, seat: Seat, until: Option<Instant>) -> Option<Option<Outcome>> {
    let mut seen = 0;
    let mut omitted = job.omitted();
    loop {
        match job.next(seen, seat, until) {
            Next::Event(number, event) => {
                session.send(&event).ok()?;
                seen = number;
                if seen >= FIRST_KEPT as u64 && omitted > 0 {
                    let text = format!("({omitted} lines are not kept)");
                    session.send(&Event::Line { text }).ok()?;
                    omitted = 0;
                }
            }
            Next::Ask(number, question) => {
                let yes = session.ask(question);
                job.answer(number, yes);
                seen = number;
            }
            Next::End(outcome) => return Some(Some(*outcome)),
            Next::TimeUp => return Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::{
        codec,
        reply::{PairOpenReply, PinsReply},
    };
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
        sync::Arc,
        thread,
    };

    fn job() -> Arc<Job> {
        let options = Options {
            operator: "me@a".into(),
            command_line: "rtstop -S".into(),
            ..Options::default()
        };
        Arc::new(Job::new("a", 7, Some(1), &options, Timestamp(0)))
    }

    fn line(text: &str) -> Event {
        Event::Line { text: text.into() }
    }

    fn progress(what: &str, done: u64) -> Event {
        Event::Progress(Progress {
            what: what.into(),
            done,
            ..Progress::default()
        })
    }

    fn done() -> Outcome {
        Outcome::ok(Reply::Pins(PinsReply::default()))
    }

    fn question() -> Question {
        Question::Text {
            lines: vec!["All of it.".into()],
            question: "Go on?".into(),
        }
    }

    /// A session whose request has been read, and its client's end.
    fn session() -> (Session, UnixStream) {
        let (ours, mut client) = UnixStream::pair().unwrap();
        let request = control::Request::new(control::Command::NodeInfo, Options::default());
        client.write_all(&codec::encode(&request).unwrap()).unwrap();
        (Session::accept(ours).unwrap().unwrap().0, client)
    }

    /// What a client hears that attaches now, to the end.
    fn heard(job: &Job, seat: Seat) -> Vec<Event> {
        let (mut session, mut client) = session();
        let text = thread::scope(|scope| {
            let reads = scope.spawn(move || {
                let mut text = String::new();
                client.read_to_string(&mut text).map(|_| text).unwrap()
            });
            let outcome = watch(&mut session, job, seat, None).unwrap();
            session.done(outcome).unwrap();
            reads.join().unwrap()
        });
        text.lines()
            .map(|l| codec::decode(l.as_bytes()).unwrap())
            .collect()
    }

    #[test]
    fn who_attaches_hears_all_from_the_beginning_and_the_newest_progress() {
        let job = job();
        job.tell(line("one"));
        for n in 0..10 {
            job.tell(progress("copy", n));
        }
        job.tell(line("two"));
        let whole = [line("one"), progress("copy", 9), line("two"), line("three")];
        thread::scope(|scope| {
            let attached = scope.spawn(|| heard(&job, Seat::Guest));
            job.tell(line("three"));
            job.end(done());
            let events = attached.join().unwrap();
            assert_eq!(events[..4], whole);
        });
        // And behind its end.
        assert_eq!(heard(&job, Seat::Guest).len(), 5);
        assert_eq!(job.info().state, JobState::Ended);
    }

    #[test]
    fn what_is_not_kept_is_said() {
        let job = job();
        for n in 0..EVENTS_KEPT + 10 {
            job.tell(line(&n.to_string()));
        }
        job.end(done());
        let events = heard(&job, Seat::Guest);
        assert_eq!(events[..4], ["0", "1", "2", "3"].map(line));
        assert_eq!(events[4], line("(10 lines are not kept)"));
        assert_eq!(events[5], line("14"));
    }

    #[test]
    fn only_the_one_who_typed_it_answers() {
        let job = job();
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let yes = job.ask(question());
                job.end(done());
                yes
            });
            let guest = scope.spawn(|| heard(&job, Seat::Guest));
            let (mut session, mut client) = session();
            let job = &job;
            let owner = scope.spawn(move || watch(&mut session, job, Seat::Owner, None).is_some());
            let mut first = [0; 4];
            client.read_exact(&mut first).unwrap();
            client.write_all(b"{\"yes\":true}\n").unwrap();
            assert!(asked.join().unwrap() && owner.join().unwrap());
            let seen = guest.join().unwrap();
            assert!(
                matches!(&seen[0], Event::Asked { operator, .. } if operator == "me@a"),
                "{seen:?}"
            );
        });
        let given = job.answers();
        assert_eq!(given[0].question, "All of it. Go on?");
        assert!(given[0].yes && !given[0].quiet);
    }

    #[test]
    fn a_client_that_goes_away_leaves_the_work_and_has_said_no() {
        let job = job();
        let (mut session, client) = session();
        drop(client);
        job.tell(line("one"));
        assert!(watch(&mut session, &job, Seat::Owner, None).is_none());
        assert!(!job.ask(question()));
        assert!(!job.has_ended());
    }

    #[test]
    fn a_job_is_stopped_only_where_it_may_be() {
        let job = job();
        assert_eq!(job.cancel("you").unwrap_err(), AT_WORK);
        job.may_stop(true);
        assert!(job.keeps_on().is_none());
        thread::scope(|scope| {
            let cancel = scope.spawn(|| job.cancel("you@b"));
            while job.info().state != JobState::Cancelling {
                thread::yield_now();
            }
            // It was past that point: it goes on, and the other one hears it.
            job.may_stop(false);
            assert!(cancel.join().unwrap().unwrap_err().contains("past the point"));
            job.may_stop(true);
            let cancel = scope.spawn(|| job.cancel("you@b"));
            while job.stopped_by().is_none() {
                thread::yield_now();
            }
            // What has heard of it is at its end, whatever comes on the way there.
            job.may_stop(false);
            job.end(done());
            cancel.join().unwrap().unwrap();
        });
        assert!(job.cancel("you").unwrap_err().contains("ended"));
    }

    #[test]
    fn a_cancelled_question_is_a_no() {
        let job = job();
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let yes = job.ask(question());
                job.end(done());
                yes
            });
            while job.info().state != JobState::Asking {
                thread::yield_now();
            }
            job.cancel("you").unwrap();
            assert!(!asked.join().unwrap());
        });
    }

    #[test]
    fn a_pairing_string_is_for_who_opened_the_pairing() {
        let job = job();
        let reply = Reply::PairOpen(PairOpenReply {
            string: "rec:7400#4T9K".into(),
            expires: Moment(0),
        });
        job.end(Outcome::ok(reply).with_next("backstay init --peer 'rec:7400#4T9K'", "the other host"));
        let seen = |seat| format!("{:?}", heard(&job, seat));
        assert!(seen(Seat::Owner).contains("4T9K"));
        assert!(!seen(Seat::Guest).contains("4T9K"));
    }

    #[test]
    fn when_the_time_is_up_the_job_goes_on() {
        let job = job();
        let (mut session, _client) = session();
        let outcome = watch(&mut session, &job, Seat::Owner, Some(Duration::ZERO)).unwrap();
        let failure = outcome.result.unwrap_err();
        assert_eq!(failure.code, Code::NotNow);
        assert!(failure.error.contains("job 7 goes on"), "{failure:?}");
        assert_eq!(failure.hint_command.unwrap(), "backstay jobs attach 7");
        assert!(!job.has_ended());
    }
}
