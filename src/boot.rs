//! Whether a production that has just started may serve before it has heard its peer (invariant 8).
//!
//! **Overview.** While a host is down its peer may be told to take over. So a production that starts asks its peer first,
//! unless it can have been down only for a moment: the host has not booted since, and the daemon was alive a short time ago.
//! [`may_serve_alone`] decides that from two notes that its caller keeps durably while the context serves: [`boot_id`] and
//! when it was last alive.
//!
//! **What it does not do.** It does not find out what the peer has done; it says when that need not be known. Within
//! `restart_grace` a peer can have been forced to take over too: then the first contact fences the lower term. A clock that
//! was set back while the daemon was down, within one boot, makes that time look shorter than it was.

use crate::config::OnStartAlone;
use model::Timestamp;
use std::{io, time::Duration};

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Says it in its place, so that tests can boot a host without booting one.
const BOOT_ID_VARIABLE: &str = "BACKSTAY_BOOT_ID";

/// The id of this boot of the host: another one after each.
///
/// # Errors
/// When the kernel does not say it.
pub fn boot_id() -> io::Result<String> {
    boot_id_unless(std::env::var(BOOT_ID_VARIABLE).ok())
}

fn boot_id_unless(said: Option<String>) -> io::Result<String> {
    if let Some(id) = said.filter(|id| !id.is_empty()) {
        return Ok(id);
    }
    let text =
        std::fs::read_to_string(BOOT_ID).map_err(|e| io::Error::new(e.kind(), format!("{BOOT_ID}: {e}")))?;
    match text.trim() {
        "" => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{BOOT_ID} is empty"),
        )),
        id => Ok(id.to_owned()),
    }
}

/// What a production that starts does before it has heard its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// It serves.
    Serve,
    /// It serves nothing until the peer has said that it did not take over, or an operator insists.
    AskPeer,
}

/// Decides whether a production may serve before it has heard its peer.
///
/// `known` is the boot in which it last served, `last_alive` when it last did, `clock` the present. What is not known counts
/// as if it had been down for long.
#[must_use]
pub fn may_serve_alone(
    known: Option<&str>,
    now: &str,
    last_alive: Option<Timestamp>,
    clock: Timestamp,
    grace: Duration,
    policy: OnStartAlone,
) -> Alone {
    let same_boot = known == Some(now);
    // A clock that was set back cannot say how long that is ago.
    let away = last_alive.and_then(|alive| clock.0.checked_sub(alive.0));
    let short = away.is_some_and(|ns| u128::from(ns) <= grace.as_nanos());
    match policy {
        OnStartAlone::Serve => Alone::Serve,
        OnStartAlone::Refuse if same_boot && short => Alone::Serve,
        OnStartAlone::Refuse => Alone::AskPeer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * Timestamp::SECOND_NS)
    }

    /// Every policy × boot × time of the last sign of life; what may serve is written out, all else asks.
    #[test]
    fn i8_only_the_same_boot_within_the_grace_serves_alone() {
        let clock = at(10_000);
        let boots = [
            ("unknown", None),
            ("another", Some("b1")),
            ("the same", Some("b2")),
        ];
        let nearly = Timestamp(at(9_400).0 - 1);
        let lives = [
            ("unknown", None),
            ("just now", Some(clock)),
            ("a moment ago", Some(at(9_999))),
            ("the grace ago", Some(at(9_400))),
            ("the grace and a nanosecond ago", Some(nearly)),
            ("long ago", Some(Timestamp(0))),
            ("in the future", Some(at(10_001))),
            ("at the end of time", Some(Timestamp(u64::MAX))),
        ];
        let serves = [
            ("the same", "just now"),
            ("the same", "a moment ago"),
            ("the same", "the grace ago"),
        ];
        let mut served = 0;
        for (boot, known) in boots {
            for (life, last_alive) in lives {
                let decide = |policy| may_serve_alone(known, "b2", last_alive, clock, GRACE, policy);
                assert_eq!(
                    decide(OnStartAlone::Serve),
                    Alone::Serve,
                    "{boot} boot, alive {life}"
                );
                let expected = if serves.contains(&(boot, life)) {
                    served += 1;
                    Alone::Serve
                } else {
                    Alone::AskPeer
                };
                assert_eq!(
                    decide(OnStartAlone::Refuse),
                    expected,
                    "{boot} boot, alive {life}"
                );
            }
        }
        assert_eq!(served, serves.len());
    }

    #[test]
    fn without_a_grace_only_the_very_moment_serves() {
        let decide = |alive, grace| {
            may_serve_alone(
                Some("b"),
                "b",
                Some(at(alive)),
                at(7),
                grace,
                OnStartAlone::Refuse,
            )
        };
        assert_eq!(decide(7, Duration::ZERO), Alone::Serve);
        assert_eq!(decide(6, Duration::ZERO), Alone::AskPeer);
        assert_eq!(decide(0, Duration::MAX), Alone::Serve);
    }

    #[test]
    fn the_kernel_says_which_boot_this_is_unless_a_test_does() {
        let id = boot_id_unless(None).unwrap();
        assert!(!id.is_empty() && !id.contains(char::is_whitespace), "{id:?}");
        assert_eq!(boot_id_unless(Some(String::new())).unwrap(), id);
        assert_eq!(boot_id_unless(Some("another".into())).unwrap(), "another");
    }
}
