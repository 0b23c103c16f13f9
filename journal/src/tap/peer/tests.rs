use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

const STEPS: [PeerStep; 4] = [
    PeerStep::Alone,
    PeerStep::Away,
    PeerStep::Behind,
    PeerStep::InStep,
];
const POLICIES: [OnLinkLoss; 3] = [OnLinkLoss::Continue, OnLinkLoss::Block, OnLinkLoss::Fail];
const WAITS: PeerRule = PeerRule {
    always: true,
    high_water_mark: None,
    on_link_loss: OnLinkLoss::Continue,
};

#[test]
fn r17_when_a_change_is_answered_over_every_case() {
    for step in STEPS {
        for always in [false, true] {
            for above in [false, true] {
                for on_link_loss in POLICIES {
                    let rule = PeerRule {
                        always,
                        high_water_mark: None,
                        on_link_loss,
                    };
                    let is_there = step == PeerStep::InStep;
                    let is_missed = always && matches!(step, PeerStep::Away | PeerStep::Behind);
                    let expected = match on_link_loss {
                        _ if is_there && (always || above) => Answer::Waits,
                        OnLinkLoss::Block if is_missed => Answer::Waits,
                        OnLinkLoss::Fail if is_missed => Answer::Fails,
                        _ => Answer::Here,
                    };
                    assert_eq!(answer(rule, step, above), expected, "{step:?} {rule:?} {above}");
                }
            }
        }
    }
}

/// A gate, and what it let through.
struct Lab {
    gate: Gate,
    appended: u64,
}

/// How many are let through: received, here, failed.
fn count(released: &Released) -> [usize; 3] {
    [
        released.received.len(),
        released.here.len(),
        released.failed.len(),
    ]
}

impl Lab {
    fn new(rule: PeerRule) -> Self {
        Self {
            gate: Gate::new(rule),
            appended: 0,
        }
    }

    /// A change of so many bytes is appended.
    fn change(&mut self, bytes: u64) -> [usize; 3] {
        self.appended += 1;
        let answers: Vec<(bool, Done)> = vec![(false, Box::new(drop))];
        count(&self.gate.take(WriteSeq(self.appended), bytes, answers))
    }

    fn met(&self, received: u64) -> [usize; 3] {
        count(&self.gate.met(WriteSeq(received), WriteSeq(self.appended)))
    }

    fn received(&self, upto: u64) -> [usize; 3] {
        count(&self.gate.received(WriteSeq(upto)))
    }

    fn lost(&self) -> [usize; 3] {
        count(&self.gate.lost())
    }

    fn step(&self) -> PeerStep {
        self.gate.state.lock().step
    }
}

const RECEIVED: [usize; 3] = [1, 0, 0];
const HERE: [usize; 3] = [0, 1, 0];
const FAILED: [usize; 3] = [0, 0, 1];
const NOBODY: [usize; 3] = [0, 0, 0];

#[test]
fn r2_who_waits_is_let_through_by_the_peers_word_alone() {
    let mut lab = Lab::new(WAITS);
    assert_eq!(lab.change(1), HERE, "nobody is expected");
    lab.lost();
    assert_eq!(lab.change(1), HERE, "it goes on");
    assert_eq!(lab.met(1), NOBODY);
    assert_eq!(lab.step(), PeerStep::Behind);
    assert_eq!(lab.change(1), HERE, "it lacks what came before");
    assert_eq!(lab.received(2), NOBODY);
    assert_eq!(lab.step(), PeerStep::InStep);
    assert_eq!(lab.change(1), NOBODY);
    assert_eq!(lab.change(1), NOBODY);
    assert_eq!(lab.received(3), NOBODY, "that was answered before");
    assert_eq!(lab.received(4), RECEIVED);
    assert_eq!(lab.received(5), RECEIVED);
    // The peer was faster than the answer.
    assert_eq!(lab.received(6), NOBODY);
    assert_eq!(lab.change(1), RECEIVED);
    assert_eq!(lab.change(1), NOBODY);
    assert_eq!(lab.lost(), HERE);
    assert_eq!(lab.received(7), NOBODY, "a word that comes too late");
    assert_eq!(lab.change(1), HERE);
}

#[test]
fn a_peer_that_has_everything_is_in_step_at_once() {
    let mut lab = Lab::new(WAITS);
    lab.change(1);
    lab.lost();
    lab.met(1);
    assert_eq!(lab.step(), PeerStep::InStep);
    assert_eq!(lab.change(1), NOBODY);
}

#[test]
fn nobody_waits_for_more_than_a_little_that_others_wrote() {
    let mut lab = Lab::new(WAITS);
    lab.lost();
    lab.met(0);
    lab.lost();
    lab.change(1);
    lab.met(0);
    for _ in 0..100 {
        assert_eq!(lab.change(STEP_BYTES / 10), HERE);
    }
    assert_eq!(lab.received(1), NOBODY, "what it was to have then");
    assert_eq!(lab.step(), PeerStep::Behind, "too much has come meanwhile");
    assert_eq!(lab.received(91), NOBODY);
    assert_eq!(lab.step(), PeerStep::Behind);
    assert_eq!(lab.received(101), NOBODY);
    assert_eq!(lab.step(), PeerStep::InStep);
}

#[test]
fn r3_above_the_mark_all_wait_until_nothing_is_on_its_way() {
    let mut lab = Lab::new(PeerRule {
        high_water_mark: Some(10 * CHUNK_BYTES),
        ..PeerRule::default()
    });
    lab.lost();
    lab.met(0);
    for n in 1..=10 {
        assert_eq!(lab.change(CHUNK_BYTES), HERE, "{n}");
    }
    assert_eq!(lab.change(CHUNK_BYTES), NOBODY, "11 x 64 KiB");
    assert_eq!(lab.received(10), NOBODY);
    assert_eq!(lab.change(1), NOBODY, "until it has drained");
    assert_eq!(lab.received(12), [2, 0, 0]);
    assert_eq!(lab.change(CHUNK_BYTES), HERE);
    // Without the peer nobody waits.
    for _ in 0..10 {
        lab.change(CHUNK_BYTES);
    }
    assert_eq!(lab.lost(), HERE);
    for _ in 0..30 {
        assert_eq!(lab.change(CHUNK_BYTES), HERE);
    }
}

#[test]
fn blocked_changes_outlive_the_loss_and_failing_ones_do_not() {
    let rule = |on_link_loss| PeerRule {
        on_link_loss,
        ..WAITS
    };
    let mut lab = Lab::new(rule(OnLinkLoss::Block));
    lab.lost();
    assert_eq!(lab.change(1), NOBODY);
    lab.met(0);
    assert_eq!(lab.change(1), NOBODY);
    assert_eq!(lab.lost(), NOBODY);
    assert_eq!(lab.met(1), RECEIVED);
    assert_eq!(lab.received(2), RECEIVED);
    let mut lab = Lab::new(rule(OnLinkLoss::Fail));
    lab.lost();
    assert_eq!(lab.change(1), FAILED);
    lab.met(1);
    assert_eq!(lab.change(1), NOBODY);
    assert_eq!(lab.lost(), FAILED);
}

#[test]
fn the_end_answers_everybody_with_an_error_and_once() {
    static FAILED_WITH: AtomicUsize = AtomicUsize::new(0);
    let gate = Gate::new(WAITS);
    gate.met(WriteSeq(0), WriteSeq(0));
    let done: Done = Box::new(|result| {
        assert!(result.is_err());
        FAILED_WITH.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(count(&gate.take(WriteSeq(1), 1, vec![(false, done)])), NOBODY);
    gate.end(&Arc::new(JournalError::Refused("over".into())));
    assert_eq!(FAILED_WITH.load(Ordering::Relaxed), 1);
    assert_eq!(count(&gate.received(WriteSeq(1))), NOBODY);
    let later: Vec<(bool, Done)> = vec![(true, Box::new(drop))];
    assert_eq!(count(&gate.take(WriteSeq(2), 1, later)), FAILED);
    assert!(gate.error().to_string().contains("over"));
}
