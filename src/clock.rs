//! This host's clock, and the steps of it that nothing is freed for yet.
//!
//! # Overview
//!
//! History ages by the newest received write (`rules.md` K2), and the time that a write claims counts only as far as this host's
//! clock confirms it. When one wrong time server sets the clocks of both hosts forward, that confirms everything, and the whole
//! window would be freed with the next write. So a step of this host's clock is doubted for as long as the window is: whoever
//! asks how old things are is answered by a clock that goes on as if it had not been set. Once that time has passed, what was
//! written before the step has outlived the window by any clock, and the step is believed.
//!
//! A step back is doubted as well: taken back, it leaves nothing behind.
//!
//! # How
//!
//! A steady clock begins with the wall clock and goes on with the monotonic one; the wall clock shows it and the sum of the steps.
//! A difference of up to a minute is no step, but the way in which clocks are held right, and the steady clock follows it.
//!
//! # Crash consistency
//!
//! The steps are in `state_dir/clock`, replaced as a whole when one is seen. One that is lost is believed.
//!
//! # What it does not do
//!
//! A clock that is set while the daemon is down is believed: that looks like so much time. A machine that was suspended looks
//! like a step; that keeps more than was promised, for a while.

use model::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What the wall clock may differ from the steady one without having been set.
const SLEW_NS: i64 = 60 * 1_000_000_000;
/// Steps that are told apart; of more the oldest two become one.
const MOST_STEPS: usize = 16;
/// The file of the steps.
const FILE: &str = "clock";
/// Bytes of that file that are read.
const MOST_BYTES: u64 = 64 << 10;

/// The wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    /// When, by the steady clock.
    at: u64,
    /// By how many nanoseconds.
    by_ns: i64,
}

/// The steady clock at one moment, and what the wall clock has been set by.
#[derive(Debug)]
struct Steady {
    time: Timestamp,
    moment: Instant,
    steps: Vec<Step>,
}

/// What the two are apart; a difference of centuries is as good as one of more.
fn apart(later: Timestamp, earlier: Timestamp) -> i64 {
    let ns = i128::from(later.0) - i128::from(earlier.0);
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Steady {
    fn new(wall: Timestamp, moment: Instant, steps: Vec<Step>) -> Self {
        let mut steady = Self {
            time: wall,
            moment,
            steps,
        };
        steady.time = Timestamp(wall.0.saturating_add_signed(steady.sum().saturating_neg()));
        steady
    }

    fn sum(&self) -> i64 {
        self.steps
            .iter()
            .fold(0, |sum, step| sum.saturating_add(step.by_ns))
    }

    /// Goes on to the moment at which the wall clock shows `wall`; whether it was set since.
    fn look(&mut self, wall: Timestamp, moment: Instant) -> bool {
        let passed = nanos(moment.saturating_duration_since(self.moment));
        let time = Timestamp(self.time.0.saturating_add(passed));
        let by_ns = apart(wall, Timestamp(time.0.saturating_add_signed(self.sum())));
        (self.time, self.moment) = (time, moment);
        if by_ns.unsigned_abs() <= SLEW_NS.unsigned_abs() {
            self.time = Timestamp(time.0.saturating_add_signed(by_ns));
            return false;
        }
        self.steps.push(Step { at: time.0, by_ns });
        if self.steps.len() > MOST_STEPS {
            let oldest = self.steps.remove(0);
            self.steps[0].by_ns = self.steps[0].by_ns.saturating_add(oldest.by_ns);
        }
        true
    }

    /// By what the wall clock was set within this time.
    fn doubted(&self, within: Duration) -> i64 {
        let since = self.time.0.saturating_sub(nanos(within));
        self.steps
            .iter()
            .filter(|step| step.at > since)
            .fold(0, |sum, step| sum.saturating_add(step.by_ns))
    }

    /// What the wall clock would show without that.
    fn believed(&self, within: Duration) -> Timestamp {
        let trusted = self.sum().saturating_sub(self.doubted(within));
        Timestamp(self.time.0.saturating_add_signed(trusted))
    }
}

/// The clock of a node.
#[derive(Debug)]
pub struct HostClock {
    path: PathBuf,
    steady: Mutex<Steady>,
}

impl HostClock {
    /// Goes on with the steps that a node's folder remembers. What cannot be read of them is told and believed: the clock must
    /// not keep a node from starting.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let steps = read(&path).unwrap_or_else(|e| {
            tracing::warn!("{}: steps of the clock are not known: {e}", path.display());
            Vec::new()
        });
        Self {
            path,
            steady: Mutex::new(Steady::new(Timestamp::now(), Instant::now(), steps)),
        }
    }

    /// The time by which history may be called old: the wall clock's without what it was set by within this time.
    #[must_use]
    pub fn believed(&self, within: Duration) -> Timestamp {
        self.look().believed(within)
    }

    /// By how many nanoseconds the wall clock was set within this time, forward or back.
    #[must_use]
    pub fn doubted_ns(&self, within: Duration) -> i64 {
        self.look().doubted(within)
    }

    fn look(&self) -> parking_lot::MutexGuard<'_, Steady> {
        let mut steady = self.steady.lock();
        if steady.look(Timestamp::now(), Instant::now()) {
            let seconds = steady.steps.last().map_or(0, |step| step.by_ns / 1_000_000_000);
            tracing::warn!("the clock of this host was set by {seconds} s");
            if let Err(e) = write(&self.path, &steady.steps) {
                tracing::warn!("{}: the step is forgotten by a restart: {e}", self.path.display());
            }
        }
        steady
    }
}

fn read(path: &Path) -> io::Result<Vec<Step>> {
    use io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn write(path: &Path, steps: &[Step]) -> io::Result<()> {
    media::replace_file(path, &serde_json::to_vec(steps)?, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const HOUR: u64 = 3600 * SECOND;
    const DAY: u64 = 24 * HOUR;
    const WINDOW: Duration = Duration::from_secs(24 * 3600);

    /// A host whose wall clock is a lie that can be set.
    struct Host {
        began: Instant,
        passed: u64,
        ahead: i64,
        steady: Steady,
    }

    const BEGAN: u64 = 1_793_491_200 * SECOND;

    impl Host {
        fn new() -> Self {
            let began = Instant::now();
            Self {
                began,
                passed: 0,
                ahead: 0,
                steady: Steady::new(Timestamp(BEGAN), began, Vec::new()),
            }
        }

        fn wall(&self) -> Timestamp {
            Timestamp((BEGAN + self.passed).saturating_add_signed(self.ahead))
        }

        fn look(&mut self) -> bool {
            let wall = self.wall();
            self.steady
                .look(wall, self.began + Duration::from_nanos(self.passed))
        }

        fn pass(&mut self, ns: u64) {
            self.passed += ns;
            assert!(!self.look(), "time passes");
        }

        fn set(&mut self, by: i64) {
            self.ahead += by;
            assert!(self.look(), "a step of {by}");
        }

        /// What is believed, as nanoseconds since the beginning.
        fn believed(&self) -> u64 {
            self.steady.believed(WINDOW).0 - BEGAN
        }
    }

    #[test]
    fn k2_a_step_is_believed_once_a_window_has_passed() {
        for by in [
            365 * DAY.cast_signed(),
            2 * HOUR.cast_signed(),
            -DAY.cast_signed(),
        ] {
            let mut host = Host::new();
            host.pass(HOUR);
            host.set(by);
            assert_eq!(host.believed(), HOUR);
            assert_eq!(host.steady.doubted(WINDOW), by);
            host.pass(DAY - 1);
            assert_eq!(host.believed(), HOUR + DAY - 1);
            host.pass(1);
            assert_eq!(host.steady.believed(WINDOW), host.wall());
            assert_eq!(host.steady.doubted(WINDOW), 0);
            // Whoever promised more doubts it longer.
            assert_eq!(host.steady.doubted(2 * WINDOW), by);
        }
    }

    #[test]
    fn what_is_taken_back_leaves_nothing() {
        let mut host = Host::new();
        for by in [DAY.cast_signed(), -2 * DAY.cast_signed(), DAY.cast_signed()] {
            host.set(by);
            host.pass(HOUR);
        }
        assert_eq!(host.believed(), 3 * HOUR);
        assert_eq!(host.steady.doubted(WINDOW), 0);
    }

    #[test]
    fn a_clock_that_is_held_right_is_followed() {
        let mut host = Host::new();
        for _ in 0..1000 {
            host.ahead += SLEW_NS;
            host.pass(HOUR);
        }
        assert_eq!(host.steady.believed(WINDOW), host.wall());
    }

    #[test]
    fn steps_outlive_a_restart() {
        let mut host = Host::new();
        host.set(7 * DAY.cast_signed());
        host.pass(HOUR);
        let steps = host.steady.steps.clone();
        // An hour in which nobody looked.
        host.passed += HOUR;
        host.steady = Steady::new(host.wall(), host.began + Duration::from_nanos(host.passed), steps);
        assert_eq!(host.believed(), 2 * HOUR);
        host.pass(22 * HOUR - 1);
        assert_eq!(host.steady.doubted(WINDOW), 7 * DAY.cast_signed());
        host.pass(1);
        assert_eq!(host.steady.believed(WINDOW), host.wall());
    }

    #[test]
    fn the_sum_of_many_steps_is_what_the_clock_shows() {
        let mut host = Host::new();
        for n in 0..100_i64 {
            host.set(if n % 3 == 0 {
                -DAY.cast_signed()
            } else {
                2 * DAY.cast_signed()
            });
            host.pass(HOUR);
            assert!(host.steady.steps.len() <= MOST_STEPS);
            assert_eq!(host.steady.believed(Duration::ZERO), host.wall());
        }
        for extreme in [i64::MIN, i64::MAX] {
            host.steady.steps.push(Step {
                at: u64::MAX,
                by_ns: extreme,
            });
            host.steady.look(Timestamp(0), Instant::now());
            host.steady.look(Timestamp(u64::MAX), Instant::now());
            let _ = host.steady.believed(WINDOW);
        }
    }

    #[test]
    fn the_file_is_read_back_and_nonsense_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let steps = vec![
            Step { at: 5, by_ns: -7 },
            Step {
                at: u64::MAX,
                by_ns: i64::MAX,
            },
        ];
        assert_eq!(read(&path).unwrap(), []);
        write(&path, &steps).unwrap();
        assert_eq!(read(&path).unwrap(), steps);
        for nonsense in ["", "{", "[{\"at\":1}]", "[{\"at\":-1,\"by_ns\":0}]"] {
            std::fs::write(&path, nonsense).unwrap();
            assert!(read(&path).is_err(), "{nonsense}");
            assert_eq!(HostClock::open(dir.path()).doubted_ns(WINDOW), 0);
        }
    }
}
