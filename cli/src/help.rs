//! `--help`, `-m`, and what is said of a line that cannot be parsed.

use crate::names::{self, Job, Name};
use control::{Code, Failure};
use std::fmt::Write as _;

/// `backstay --help`: all commands by the job they serve.
pub(crate) fn all() -> String {
    let mut text = String::from(
        "Backstay: journaled point-in-time replicas of block volumes.\n\nUsage: backstay COMMAND [OPTIONS]      (or through a link: scrt_ra, rtmnt, ...; see 'backstay links')\n",
    );
    for job in Job::ALL {
        let _ = writeln!(text, "\n{}:", job.title());
        for name in names::ALL.iter().filter(|n| n.job == job && n.built) {
            let called = match name.link {
                Some(link) => format!("{}, {link}", name.short),
                None => name.short.to_owned(),
            };
            let _ = writeln!(text, "  {called:<18} {}", name.about);
        }
    }
    // A heading with nothing under it would promise something.
    for job in Job::ALL {
        if !names::ALL.iter().any(|n| n.job == job && n.built) {
            text = text.replace(&format!("\n{}:\n", job.title()), "");
        }
    }
    let later: Vec<_> = names::ALL
        .iter()
        .filter(|n| !n.built)
        .map(Name::display)
        .collect();
    let _ = writeln!(text, "\nNot part of this version: {}.", later.join(", "));
    text.push_str("\nCOMMAND -h: its options. COMMAND -m: its manual page.\n");
    text
}

/// `-m`: a manual page made of the options themselves and a few words of its own.
pub(crate) fn man(name: &Name, command: &mut clap::Command) -> String {
    let page = page(name.short);
    let mut text = format!(
        "NAME\n    {} - {}\n\nSYNOPSIS\n    {}\n",
        name.display(),
        name.about,
        command.render_usage().to_string().trim_start_matches("Usage: "),
    );
    let mut section = |title: &str, lines: &mut dyn Iterator<Item = String>| {
        let _ = write!(text, "\n{title}\n");
        for line in lines {
            let _ = writeln!(text, "{}", format!("    {line}").trim_end());
        }
    };
    section("DESCRIPTION", &mut page.about.lines().map(str::to_owned));
    section(
        "OPTIONS",
        &mut command
            .render_help()
            .to_string()
            .lines()
            .skip_while(|l| !l.ends_with(':'))
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .into_iter(),
    );
    section("EXAMPLES", &mut page.examples.iter().map(|e| (*e).to_owned()));
    section(
        "EXIT STATUS",
        &mut Code::ALL
            .into_iter()
            .map(|c| format!("{:>3}  {}", c.number(), c.meaning())),
    );
    text
}

/// clap's complaint in our words, with code 64.
pub(crate) fn usage_failure(error: &clap::Error, called: &str) -> Failure {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let (what, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let what = what.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let tip = rest
        .lines()
        .find_map(|l| l.trim().strip_prefix("tip: "))
        .map_or_else(|| format!("{called} -h"), |t| format!("{t}; {called} -h"));
    Failure::new(Code::Usage, what).with_hint(tip)
}

struct Page {
    about: &'static str,
    examples: &'static [&'static str],
}

/// What the options do not say by themselves.
fn page(short: &str) -> Page {
    let (about, examples): (_, &'static [&'static str]) = match short {
        "ra" => (
            "Typed on the recovery server. A target alone, or -X, makes a snapshot there and leaves the replica as it is;\n\
             the same point asked for again is the same level. -F restores the replica itself, after a question; the\n\
             context is then ROLLED_BACK: it goes on receiving and applies nothing until --undo or a failover.\n\
             -W releases all unnamed operator snapshots, all or none; one that is in use is refused with its holders.\n\n\
             A target is exact: -t is the end of a redo LFC (even); an instant takes all writes up to it. What cannot\n\
             be reached is refused (3) with the nearest points; nothing is moved. A date that clocks showed twice or\n\
             never is refused with both readings.",
            &[
                "scrt_ra -C 1 -X                           snapshot of now",
                "scrt_ra -C 1 -t 70250                     snapshot at the end of LFC 70250",
                "scrt_ra -C1 -vpe                          windows, marks, every LFC",
                "scrt_ra -C 1 -F -D \"05/15/09 09:33:40\"    restore the replica",
                "scrt_ra -C 1 -F --last-snapshot           restore to what was looked at",
                "scrt_ra -C 1 --undo                       take that back",
                "scrt_ra -C 1 -W                           release",
            ],
        ),
        "mnt" => (
            "On the replica side: attaches, checks and mounts the filesystems of the one unnamed operator snapshot, or\n\
             of --level N. On the acting production: the protected filesystems. Raw volumes are attached and printed.",
            &[
                "rtmnt -C 1",
                "rtmnt -C 1 --level 10 --at-dir /mnt/check --read-only",
            ],
        ),
        "umnt" => (
            "Undoes rtmnt. Filesystems that are in use are refused, with their holders. With -F on production it also\n\
             waits for a running first sync or resync, and drains everything to the recovery server.",
            &["rtumnt -C 1", "rtumnt -FC1"],
        ),
        "nbd" => (
            "For programs that start their NBD server themselves: nbdinfo, nbdcopy and nbdsh with [ ... ], ssh, inetd. The\n\
             client gets EXPORT by the empty name, and whatever it names otherwise. Under socket activation ($LISTEN_FDS) the\n\
             clients of the socket are served until the process is ended. It works on the host of the daemon.",
            &[
                "nbdinfo -- [ backstay nbd --stdio c1/data@mark:end-of-day ]",
                "nbdcopy -- [ ssh rec1 backstay nbd --stdio c1/data@-10m ] image",
            ],
        ),
        "start" => (
            "Starts a stopped context. It does not mount: rtmnt does. -M, on the acting production, makes all regions\n\
             stale first, as scconfig -M does.",
            &["rtstart -C 1", "rtstart -C 1 -M             copy everything anew"],
        ),
        "stop" => (
            "Closes the volumes (refused while they are open) and stops the agents; durable. The backing files are then\n\
             whole and directly usable.",
            &["rtstop -C 1", "rtstop -FSC1                unmount, drain, stop"],
        ),
        "dr" => (
            "setup    both hosts: gives the context the id that it has after a failover.\n\
             failover recovery host: it becomes production, after a question that says where it goes on from and what\n\
             \x20        may be missing: the point of an earlier failover restore, else the newest received write. If the\n\
             \x20        production host answers, it gives up its role first, durably.\n\
             resync   old production first: its data gives way, after two questions. What it wrote and nobody else has is\n\
             \x20        kept as history of its own. Then on the acting production: what differs is copied, while\n\
             \x20        the application runs.\n\
             failback when the resync is complete and all is drained: original production first, then the original\n\
             \x20        recovery host. Typed the other way round, the recovery host gives up its role and waits.\n\n\
             Either context id is accepted. A command that is not possible now names the one that is, and its host.\n\
             Run again after an interruption, the same command goes on.",
            &[
                "rtdr -C 1 -F 2 setup",
                "rtdr -C 1 failover                  on the recovery host",
                "rtdr -C 1 resync                    on the old production, then on the acting one",
                "rtdr -qC 1 resync                   the same, without questions",
                "rtdr -C 1 failback                  on the original production, then on the recovery host",
                "rtdr -nC 1 failover                 checks and plan, nothing changes",
                "rtdr -C 1 failover --expect-term 3  in a script: not if anything changed meanwhile",
            ],
        ),
        "config" => (
            "On the acting production. -M makes all regions of all volumes stale, or those of each -L VOLUME, whether the\n\
             context runs or not: they are copied to the other host whatever the journals say. -B -G does so for all\n\
             volumes and begins the copy now: for a production whose data was lost. Both say how much and in which\n\
             direction, and ask.",
            &[
                "scconfig -C 1 -M",
                "scconfig -C 1 -M -L data",
                "scconfig -B -G -C 2",
            ],
        ),
        "grow" => (
            "Makes a volume larger on both hosts while it is written. The recovery host's storage is made ready first, then this\n\
             host's; only then the volume has the new size. What is new is zero. A file is made longer; a device must be as long\n\
             already, on both hosts. Without --size the volume gets the size of what it stands on here. A client sees it when\n\
             it connects again. Points from before keep the size that they had.",
            &[
                "backstay grow -C 1 -L data --size 2T",
                "extend_replica_lv -C 1 -L data",
            ],
        ),
        "map" => (
            "A state map has one cell for each region of a volume: 0 clean, f stale (it differs from the other host and no\n\
             journal covers it). view exits 2 when a cell is not clean. dump writes what load reads. clean declares\n\
             both hosts equal without looking. unify decides between two hosts that were both written: the master's data\n\
             stays; with -n it shows what would be lost. The maps are saved before any change.",
            &[
                "backstay map view -C 1",
                "backstay map dump -C 1 > maps",
                "backstay map load maps -C 1",
                "backstay map unify -nC 1 --master prod1",
            ],
        ),
        "mark" => (
            "Sets an event mark: a named point that ends its LFC, durable when the command returns.\n\
             FILE has \"name = ...\" and \"description = ...\", one a line.",
            &[
                "rtmark -C 1 --name end-of-day --description \"books closed\"",
                "rtmark -C 1 --list",
            ],
        ),
        "protect" => (
            "Makes a context of one or more volumes, which share one write order. NAME=SIZE makes a sparse file,\n\
             NAME=PATH adopts a device or file in place. --fs, --mount and --replica take a value for one volume as\n\
             NAME=VALUE and may be repeated. --fs TYPE alone is for all volumes. --mount DIR alone is for the only\n\
             volume, or for the one among several that is called like the last component of DIR.",
            &[
                "backstay protect -C 1 data=1G --fs ext4 --mount /data",
                "backstay protect -C 1 data=1G log=512M --fs ext4 --mount data=/data --mount log=/data/log",
                "backstay protect -C 1 data=/dev/vg0/data --mount /data",
            ],
        ),
        "status" => (
            "One screen: role, state, term, peer, what would be lost now, window, journal, snapshots, warnings.\n\
             Exits 2 when not healthy. With a dead daemon it shows what the disk says, marked as old, and exits 69.",
            &[
                "backstay status",
                "backstay status -C 1 --monitor",
                "backstay status --watch=5",
            ],
        ),
        "pins" => (
            "Oldest point first: what holds the journal back most.",
            &["backstay pins -C 1"],
        ),
        "wait" => (
            "Returns when it is so. With --timeout it gives up with 75.",
            &[
                "backstay wait -C 1 --until consistent",
                "backstay wait -C 1 --until mark=good --timeout 60",
            ],
        ),
        "jobs" => (
            "A command that changes something is a job: it goes on when its terminal goes away, or Ctrl-C ends the\n\
             command that typed it (130). attach shows it from the beginning and goes on live, and exits as the job does;\n\
             a question is answered only where the command was typed, so one that is left unanswered is a no. cancel\n\
             stops a job where that is safe (while it waits, asks, drains, or between two steps of a restore);\n\
             elsewhere it is refused with the reason, and the job goes on.",
            &[
                "backstay jobs",
                "backstay jobs attach 7",
                "backstay jobs cancel 7",
            ],
        ),
        "log" => (
            "Oldest first: when, on which host, who, the command as typed, the answers to its questions, the exit code and\n\
             the result. With -C the entries of both hosts; a host that cannot be asked is named at the end. What a host did\n\
             at the request of the other one has no job.",
            &["backstay log -C 1", "backstay log -C 1 --limit 20 --json"],
        ),
        "verify" => (
            "Compares the volumes of both hosts, as of the same records, while the application writes; answers 2 with the\n\
             blocks that differ. --repair copies them again from production, whose data is the truth, and compares once\n\
             more. It is a job, and goes on after kills of either daemon.",
            &[
                "backstay verify -C 1",
                "backstay verify -C 1 --repair",
                "backstay verify -C 1 --sample 100",
            ],
        ),
        "probe" => (
            "Sends a mark through the whole path and prints the times.",
            &["backstay probe -C 1"],
        ),
        "links" => (
            "Makes symbolic links with the names that procedures type. A file that is not ours is never replaced; then\n\
             nothing at all is made.",
            &["backstay links", "backstay links /usr/local/bin"],
        ),
        "init" => (
            "Without arguments: makes this host a node and prints a one-time pairing string. With --peer: makes this\n\
             host a node and joins the one that printed the string. With --local: two nodes on this machine.",
            &[
                "backstay init",
                "backstay init --peer 'rec1:7400#4T9K-...'",
                "backstay init --local prod rec",
            ],
        ),
        "serve" => (
            "Runs until SIGTERM or SIGINT. Commands reach it over its control socket.",
            &["backstay serve --config /etc/backstay/rec.toml"],
        ),
        "attach-helper" => (
            "The one process that needs root where the daemon runs as a user of its own: it makes devices of that node's exports\n\
             and mounts them below --mount-root, nosuid and nodev. Only that user is answered, and what is allowed stands in this\n\
             command line alone (packaging/backstay-attach@.service has a whole one). Runs until SIGTERM; what is mounted stays.",
            &[
                "backstay attach-helper --user backstay --socket /run/a/s --exports /var/lib/b/nbd.sock --state-dir /var/lib/a --mount-root /m",
            ],
        ),
        "fsck-journal" => (
            "Reads the journal of a stopped node from end to end: superblock, tails, every row, frame, before-image and index\n\
             entry, and the chain over all containers. Writes nothing, ever. What is damaged is named with its place, what it\n\
             means and what to do, and the exit code is 2; a torn end that a start cuts off is only a note. While the daemon runs\n\
             it is refused (75).",
            &[
                "backstay fsck-journal -C 1 --node rec",
                "backstay fsck-journal -C 1 --state /mnt/rescued/rec --json",
            ],
        ),
        "dump" => (
            "One line for each slot, header, frame, record and row of a stopped node's journal. WHAT is superblock, tails, rows,\n\
             lfc gN:ID (a container's frames and records), seq N (a record, on every line that has one), undo [ORDINAL], index.\n\n\
             --log-writes writes the records of a volume behind --from and up to --to as a dm-log-writes log, which replay-log\n\
             of xfstests replays over the volume as of --from. The end of each container is a flush and a mark 'lfc:ID', each\n\
             event mark a flush and a mark of its name.",
            &[
                "backstay dump -C 1 superblock tails",
                "backstay dump -C 1 lfc g1:70250 --hex",
                "backstay dump -C 1 --log-writes log -L data --from mark:good",
            ],
        ),
        "salvage" => (
            "Rebuilds a volume from one host's state directory alone, with no daemon and no peer; the node must be stopped, and\n\
             nothing of it changes. On a recovery host: any point of its window. On a production that keeps no earlier points:\n\
             latest, which is its volumes with the journal replayed. What cannot be read is refused, block by block; with\n\
             --best-effort it is zero in the file, listed, and the exit code is 2.",
            &[
                "backstay salvage -C 1 --node rec --at mark:good --volume data -o data.img",
                "backstay salvage -C 1 --state /mnt/rescued/rec --all -o /srv/images",
            ],
        ),
        _ => ("", &[]),
    };
    Page { about, examples }
}
