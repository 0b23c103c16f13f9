//! Who may say what at the control socket.
//!
//! The kernel says which user connects (`SO_PEERCRED`); nothing that a client says of itself counts. Root and the daemon's own
//! user may do everything, and without `[access]` in the node's file the mode of the socket keeps everybody else away. With it
//! everybody can connect, and is judged here, once, before the request is acted on: an *operator* may do everything that the
//! daemon does, which is as much as root may do to the volumes; a *reader* may look at status, points, jobs and the log, and
//! at nothing of what volumes hold.
//!
//! Readers take only a part of the connections, and a request must come soon: who may only look keeps nobody from acting.

use crate::config::AccessConfig;
use control::Command;
use control::jobs::JobVerb;
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use std::{io, os::unix::net::UnixStream};
use uzers::User;

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Look.
    Reader,
    /// Everything.
    Operator,
}

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// The user's name, or its number if it has none.
    pub(crate) name: String,
    /// What it may do, if anything.
    pub(crate) level: Option<Level>,
    /// Root or the daemon's user, who may say of themselves what they like.
    pub(crate) is_owner: bool,
}

impl Client {
    /// Whether it may give a command.
    pub(crate) fn may(&self, command: &Command) -> bool {
        self.level >= Some(needed(command))
    }
}

/// What a command needs.
fn needed(command: &Command) -> Level {
    match command {
        // What a volume holds; the end of somebody's work.
        Command::Nbd { .. }
        | Command::Job {
            verb: JobVerb::Cancel,
            ..
        } => Level::Operator,
        command if command.changes_state() => Level::Operator,
        _ => Level::Reader,
    }
}

/// Finds out who is at the other end.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn client(stream: &UnixStream, access: &AccessConfig) -> io::Result<Client> {
    let uid = socket_peercred(stream)?.uid;
    let user = uzers::get_user_by_uid(uid.as_raw());
    let name = match &user {
        Some(user) => user.name().to_string_lossy().into_owned(),
        None => uid.as_raw().to_string(),
    };
    let is_owner = uid.is_root() || uid == geteuid();
    let is_named = |names: &[String]| {
        names.iter().any(|entry| match entry.strip_prefix('%') {
            Some(group) => user.as_ref().is_some_and(|user| is_member(user, group)),
            None => *entry == name || *entry == uid.as_raw().to_string(),
        })
    };
    let level = if is_owner || is_named(&access.operators) {
        Some(Level::Operator)
    } else {
        is_named(&access.readers).then_some(Level::Reader)
    };
    Ok(Client {
        name,
        level,
        is_owner,
    })
}

/// Whether a user is in a group, by its name or number; what cannot be found out is no.
fn is_member(user: &User, group: &str) -> bool {
    let is_it = |g: &uzers::Group| *g.name() == *group || group.parse() == Ok(g.gid());
    user.groups().is_some_and(|all| all.iter().any(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::request::MapVerb;

    #[test]
    fn readers_look_and_operators_do() {
        let client = |level| Client {
            name: "alice".into(),
            level,
            is_owner: false,
        };
        let looks = [
            Command::NodeInfo,
            Command::Status { context: None },
            Command::Marks { context: 1 },
            Command::Job {
                job: 1,
                verb: JobVerb::Attach,
            },
        ];
        let acts = [
            Command::Nbd {
                export: "c1/data".into(),
            },
            Command::PairOpen,
            Command::Start {
                context: 1,
                dirty: false,
            },
            Command::Probe { context: 1 },
            Command::Job {
                job: 1,
                verb: JobVerb::Cancel,
            },
            Command::Map {
                context: 1,
                verb: MapVerb::Clean { volume: None },
            },
        ];
        for (commands, reader) in [(&looks[..], true), (&acts[..], false)] {
            for command in commands {
                assert!(client(Some(Level::Operator)).may(command), "{command:?}");
                assert_eq!(client(Some(Level::Reader)).may(command), reader, "{command:?}");
                assert!(!client(None).may(command), "{command:?}");
            }
        }
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        let root = uzers::get_user_by_uid(0).unwrap();
        assert!(is_member(&root, "root") && is_member(&root, "0"));
        assert!(!is_member(&root, "nogroup") && !is_member(&root, "no such group"));
    }
}
