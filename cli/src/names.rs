//! The commands: their names, the links they have, and the job they serve.

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// As typed after `backstay`.
    pub short: &'static str,
    /// The link that is this command; typed after `backstay` it works as well.
    pub link: Option<&'static str>,
    /// The job it serves.
    pub job: Job,
    /// One line of help.
    pub about: &'static str,
    /// Whether this version has it.
    pub built: bool,
}

/// What an operator comes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Begin.
    SetUp,
    /// See.
    Look,
    /// Go back.
    Restore,
    /// Use the data.
    Mount,
    /// Start, stop, mark.
    Run,
    /// Roles.
    Recover,
    /// Rarely.
    Maintain,
}

impl Job {
    /// In the order of `backstay --help`.
    pub const ALL: [Self; 7] = [
        Self::SetUp,
        Self::Look,
        Self::Restore,
        Self::Mount,
        Self::Run,
        Self::Recover,
        Self::Maintain,
    ];

    /// Its heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::SetUp => "Set up",
            Self::Look => "Look",
            Self::Restore => "Snapshots and restores",
            Self::Mount => "Filesystems",
            Self::Run => "Run",
            Self::Recover => "Fail over and back",
            Self::Maintain => "Maintain",
        }
    }
}

macro_rules! names {
    ($($short:literal $(= $link:literal)?, $job:ident, $built:literal, $about:literal;)+) => {
        /// All commands, those of later versions too.
        pub const ALL: &[Name] = &[$(Name {
            short: $short,
            link: { let link: &[&str] = &[$($link)?]; if link.is_empty() { None } else { Some(link[0]) } },
            job: Job::$job,
            about: $about,
            built: $built,
        }),+];
    };
}

names! {
    "init", SetUp, true, "make this host a node, and pair it with another";
    "protect", SetUp, true, "put volumes under protection";
    "links", SetUp, true, "make the links scrt_ra, rtmnt, ... to this program";
    "serve", SetUp, true, "run the daemon of a node in the foreground";
    "attach-helper", SetUp, true, "attach and mount for a daemon that does not run as root";
    "setup" = "scsetup", SetUp, false, "create, check and compare contexts";
    "status", Look, true, "roles, lag, window, snapshots, warnings on one screen";
    "pins", Look, true, "what keeps old points reachable";
    "wait", Look, true, "wait until something is so";
    "probe", Look, true, "send a mark to the peer and back, and time it";
    "stats", Look, false, "figures over time";
    "log", Look, true, "who did what, on both hosts";
    "jobs", Look, true, "commands under way: look at them, attach, cancel";
    "ra" = "scrt_ra", Restore, true, "snapshots, restores, rollback windows";
    "rc" = "scrt_rc", Restore, false, "restore production from the recovery server";
    "get", Restore, false, "one file from any point";
    "mnt" = "rtmnt", Mount, true, "check and mount the filesystems of a snapshot, or of production";
    "umnt" = "rtumnt", Mount, true, "unmount them";
    "nbd", Mount, true, "give one NBD client an export on stdin and stdout";
    "start" = "rtstart", Run, true, "start a context";
    "stop" = "rtstop", Run, true, "stop a context";
    "mark" = "rtmark", Run, true, "set an event mark, or list them";
    "pause", Run, false, "stop only shipping or applying";
    "resume", Run, false, "go on after pause";
    "dr" = "rtdr", Recover, true, "fail over, resync, fail back";
    "config" = "scconfig", Maintain, true, "make state maps dirty, so that regions are copied anew";
    "attr" = "rtattr", Maintain, false, "attributes of a context";
    "grow" = "extend_replica_lv", Maintain, true, "make a volume larger, on both hosts";
    "map", Maintain, true, "look at state maps, keep them, change them";
    "verify", Maintain, true, "compare the volumes of both hosts, and repair what differs";
    "size", Maintain, false, "how large a journal should be";
    "fsck-journal", Maintain, true, "check a stopped node's journal from end to end";
    "dump", Maintain, true, "show a stopped node's frames, records and rows as text";
    "salvage", Maintain, true, "rebuild a volume from a state directory alone";
    "doctor", Maintain, false, "check this host";
    "demo", Maintain, false, "the whole product in two minutes";
}

/// The command that is called so, by its short name or its link's.
#[must_use]
pub fn find(name: &str) -> Option<&'static Name> {
    ALL.iter().find(|n| n.short == name || n.link == Some(name))
}

/// The command that has this link.
#[must_use]
pub fn by_link(name: &str) -> Option<&'static Name> {
    ALL.iter().find(|n| n.link == Some(name))
}

/// The name that was probably meant.
pub(crate) fn nearest(typed: &str) -> Option<&'static str> {
    ALL.iter()
        .filter(|n| n.built)
        .flat_map(|n| [Some(n.short), n.link])
        .flatten()
        .map(|n| (strsim::damerau_levenshtein(typed, n), n))
        .min()
        .filter(|(distance, n)| *distance <= n.len() / 3 + 1)
        .map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_links_are_those_of_the_procedures() {
        let mut all: Vec<_> = ALL
            .iter()
            .flat_map(|n| [Some(n.short), n.link])
            .flatten()
            .collect();
        let links: Vec<_> = ALL.iter().filter_map(|n| n.link).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for link in "scrt_ra scrt_rc rtdr rtmnt rtumnt rtstart rtstop rtmark rtattr scconfig scsetup extend_replica_lv"
            .split(' ')
        {
            assert!(links.contains(&link), "{link}");
        }
        assert_eq!(links.len(), 12);
        assert_eq!(nearest("scrt_rs"), Some("scrt_ra"));
        assert_eq!(nearest("staus"), Some("status"));
        assert_eq!(nearest("abracadabra"), None);
    }
}
