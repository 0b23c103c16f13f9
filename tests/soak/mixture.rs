//! One history: two hosts, and the steps that are drawn.

mod apart;
mod link;

use crate::{
    common::{LONG, PROD, Pair, REC, Setup, number, other, root_for},
    disk::Disk,
    world::{VOLUMES, World, look, peer_is},
};
use link::Link;
use model::{BLOCK_SIZE, Timestamp, WriteSeq};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use std::{
    collections::BTreeMap,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};
use testkit::{
    proc::{Scratch, until},
    proxy::{BOTH, Way, Weather},
};

/// What the window promises; views are taken of the newer half of it.
const WINDOW_S: u64 = 120;
/// Snapshots that stay open at most.
const OPEN_MAX: usize = 3;
/// Rest of the writer after each step: the journal must have room for what it writes while the link is silent.
const REST: Duration = Duration::from_millis(2);

/// A snapshot that is open: its level, its record, and what was written to its vdev.
struct Open {
    level: u64,
    seq: WriteSeq,
    vdev: Option<(u64, Vec<u8>)>,
}

/// Two hosts amid everything.
pub struct Mixture {
    world: World,
    /// What goes to either host goes through these, by host.
    links: [Link; 2],
    disks: Option<[Disk; 2]>,
    open: Vec<Open>,
    /// Records that can be asked for by number lie behind this: the newest change of roles.
    line: WriteSeq,
    counts: BTreeMap<&'static str, usize>,
    steps: usize,
    /// How often a command is met by a kill.
    pub kills: f64,
}

fn ms(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

fn index(node: &str) -> usize {
    usize::from(node == REC)
}

impl Mixture {
    /// Two hosts that are consistent.
    pub fn new(rng: &mut StdRng) -> Self {
        let scratch = Scratch::new("soak");
        let disks = root_for("power cuts").then(|| {
            let mut kinds = ["xfs", "ext4"];
            if rng.random() {
                kinds.reverse();
            }
            [(PROD, kinds[0]), (REC, kinds[1])].map(|(node, kind)| Disk::new(&scratch, node, kind))
        });
        let setup = Setup {
            context: "lfc_size = \"2M\"\nlfc_max_age = \"2s\"\nrollback_window = \"120s\"\non_start_alone = \"serve\"\n\
                      journal_limit = \"96M\"\nrecovery_journal_limit = \"1500M\"\n",
            ..Setup::volumes(&VOLUMES)
        };
        let pair = Pair::stopped_in(scratch, &setup);
        let links = [PROD, REC].map(|node| Link(pair.proxied(node, 2)));
        pair.start(PROD);
        pair.start(REC);
        pair.consistent();
        disks.iter().flatten().for_each(Disk::sync);
        Self {
            world: World::new(pair),
            links,
            disks,
            open: Vec::new(),
            line: WriteSeq(0),
            counts: BTreeMap::new(),
            steps: 0,
            kills: 0.4,
        }
    }

    fn production(&self) -> &'static str {
        self.world.load.node
    }

    fn replica(&self) -> &'static str {
        other(self.production())
    }

    /// The link that production's stream goes over.
    fn stream(&self) -> &Link {
        &self.links[index(self.replica())]
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// One thing happens.
    pub fn step(&mut self, rng: &mut StdRng) {
        self.steps += 1;
        let drawn = rng.random_range(0..100);
        let why = format!("step {} ({drawn})", self.steps);
        match drawn {
            0..20 => self.bad_link(&why, rng),
            20..25 => self.silence(&why, rng),
            25..30 => self.endpoint(&why, rng),
            30..44 => self.killed(&why, rng),
            44..53 => self.power_cut(&why, rng),
            53..66 => self.snapshot(&why, rng),
            66..74 => self.restored(&why, rng),
            74..81 => self.roles_change(&why, rng),
            81..87 => self.forced(&why, rng),
            87..91 => self.overflow(&why, rng),
            91..95 => self.full_disk(&why, rng),
            95..98 => self.grown(&why, rng),
            _ => self.write(&why, rng),
        }
        if self.steps.is_multiple_of(6) {
            self.settled(&why, rng);
        }
    }

    /// What production is sent arrives, and the views of a few records are right.
    pub fn settled(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        let status = self.world.pair.status(self.production());
        assert_eq!(number(&status["stale_bytes"]), 0, "{why}: {status}");
        let views = self.world.views(self.recent(), 6, rng);
        *self.counts.entry("views").or_default() += views;
    }

    /// Nothing else.
    pub fn write(&mut self, why: &str, rng: &mut StdRng) {
        let lasts = ms(rng, 100..1000);
        self.world.under_load(why, rng, |_, _| thread::sleep(lasts));
        self.count("writing alone");
    }

    fn bad_link(&mut self, why: &str, rng: &mut StdRng) {
        let kinds = Weather::kinds();
        let (name, weather) = kinds.choose(rng).unwrap();
        let ways: &[Way] = [&[Way::There] as &[Way], &[Way::Back], &BOTH]
            .choose(rng)
            .unwrap();
        let (lasts, cuts) = (ms(rng, 50..1500), rng.random_range(0..3));
        let why = format!("{why}: {name}, {ways:?}");
        let production = self.production();
        let link = &self.links[index(other(production))];
        self.world.under_load(&why, rng, |pair, looks| {
            link.set(ways, *weather);
            for n in 0..=cuts {
                thread::sleep(lasts / (cuts + 1));
                *looks += 1;
                look(pair, production, &why);
                if n < cuts {
                    link.cut();
                }
            }
            link.calm();
        });
        self.count("bad links");
    }

    /// The link is silent for longer or shorter than the hosts wait.
    fn silence(&mut self, why: &str, rng: &mut StdRng) {
        let production = self.production();
        let link = &self.links[index(other(production))];
        let (how, waits) = (rng.random_range(0..4), rng.random_range(0..4) == 0);
        let lasts = ms(rng, 100..4000);
        if waits {
            self.world.load.rest = Duration::from_millis(20);
        }
        self.world.under_load(why, rng, |pair, looks| {
            let stalled = Weather {
                stalled: true,
                ..Weather::default()
            };
            match how {
                0 => link.half_open(true),
                1 => link.half_open(false),
                2 => link.set(&[Way::There], stalled),
                _ => link.set(&[Way::Back], stalled),
            }
            match waits {
                true => peer_is(pair, production, "unreachable", why, looks),
                false => thread::sleep(lasts),
            }
            // A connection of which one end is gone is found out after 20 s, that is, in the steps that follow: the journal would be
            // full by then, and copies would take numbers that the oracle does not know.
            link.cut();
            link.calm();
        });
        self.world.load.rest = REST;
        self.count("silences");
    }

    /// Either daemon, or both, in the middle of everything; perhaps again while it starts.
    pub fn killed(&mut self, why: &str, rng: &mut StdRng) {
        let victims: &[&str] = [&[PROD] as &[&str], &[REC], &[PROD, REC], &[REC, PROD]]
            .choose(rng)
            .unwrap();
        let waits: Vec<Duration> = victims.iter().map(|_| ms(rng, 5..400)).collect();
        let (_, wrote) = self.world.while_writing(rng, |pair, _| {
            for (victim, wait) in victims.iter().zip(&waits) {
                thread::sleep(*wait);
                pair.kill9(victim);
            }
        });
        self.back(
            victims,
            wrote.is_err(),
            false,
            &format!("{why}: killed {victims:?}"),
            rng,
        );
        self.count("kills");
    }

    fn power_cut(&mut self, why: &str, rng: &mut StdRng) {
        let Some(disks) = &self.disks else { return };
        let victims: &[&str] = [&[PROD] as &[&str], &[REC], &[PROD, REC], &[REC, PROD]]
            .choose(rng)
            .unwrap();
        let waits: Vec<Duration> = victims.iter().map(|_| ms(rng, 5..400)).collect();
        let (_, wrote) = self.world.while_writing(rng, |pair, _| {
            for (victim, wait) in victims.iter().zip(&waits) {
                thread::sleep(*wait);
                disks[index(victim)].cut();
                pair.kill9(victim);
            }
        });
        for victim in victims {
            disks[index(victim)].back();
        }
        self.back(
            victims,
            wrote.is_err(),
            true,
            &format!("{why}: power cut of {victims:?}"),
            rng,
        );
        self.count("power cuts");
    }

    /// Somebody else fills the disk of either host for a while. All goes on by itself.
    fn full_disk(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        // The window gives way where there is no room, and with it what stands on it (rule K1).
        while !self.open.is_empty() {
            self.release(0);
        }
        let Some(disks) = &self.disks else { return };
        let node = [PROD, REC][rng.random_range(0..2)];
        let lasts = ms(rng, 300..3000);
        let why = format!("{why}: the disk of {node} is full");
        self.world.under_load(&why, rng, |_, _| {
            disks[index(node)].fill();
            thread::sleep(lasts);
            disks[index(node)].free();
        });
        let production = self.production();
        for node in [PROD, REC] {
            until(&format!("{why}: {node} to go on"), LONG, || {
                let status = self.world.pair.status(node);
                let waits = status["warnings"].to_string();
                let stopped = ["no room", "receiving stopped", "receives nothing"]
                    .iter()
                    .any(|w| waits.contains(w));
                (!stopped && status["node_status"] == 30).then_some(())
            });
        }
        // What gave way at production is copied, and copies have numbers of their own.
        self.world.pair.waits(production, "resynced");
        self.world.load.disconnect();
        self.world.load.follow(&self.world.pair, production);
        self.world.serves(&why);
        self.line = self.world.load.head();
        self.count("full disks");
    }

    /// Starts what is down, and holds production against what was promised.
    fn back(&mut self, victims: &[&str], told: bool, cut: bool, why: &str, rng: &mut StdRng) {
        let production = self.production();
        assert!(
            !told || victims.contains(&production),
            "{why}: the application was told of it"
        );
        let mut order = victims.to_vec();
        if rng.random() {
            order.reverse();
        }
        self.world.load.disconnect();
        for victim in order {
            for _ in 0..rng.random_range(0..3) {
                self.world.pair.start_killed(victim, ms(rng, 0..250));
                self.count("kills amid a start");
            }
            self.world.pair.start(victim);
        }
        if victims.contains(&production) {
            let head = self.world.pair.cursor(production, "appended");
            match cut {
                true => self.world.load.settle(head, why),
                false => self.world.load.settle_killed(head, why),
            }
            self.world.serves(why);
        }
        self.world.load.connect(&self.world.pair);
        if cut {
            // Vdevs may have lost what was not flushed.
            self.open.iter_mut().for_each(|open| open.vdev = None);
        }
    }

    /// The oldest record that the window must hold, and that can be asked for by its number.
    fn recent(&self) -> WriteSeq {
        let oracle = &self.world.load.oracle;
        let newest = oracle
            .time_of(self.world.load.head())
            .unwrap_or_else(Timestamp::now);
        let since = Timestamp(newest.0.saturating_sub(WINDOW_S / 2 * Timestamp::SECOND_NS));
        oracle.at_time(since).max(self.line)
    }

    /// A position of the history behind another, if there is one.
    fn after(&self, recent: WriteSeq, rng: &mut StdRng) -> Option<WriteSeq> {
        let positions = self.world.load.oracle.positions().filter(|seq| *seq > recent);
        positions.collect::<Vec<_>>().choose(rng).copied()
    }

    /// Takes a snapshot, writes to its vdev, looks at one that is open, or lets one go.
    fn snapshot(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        let replica = self.replica();
        if self.open.len() < OPEN_MAX {
            let recent = self.recent();
            let Some(seq) = self.after(recent, rng) else {
                return;
            };
            let made = self.world.pair.json(
                replica,
                &["scrt_ra", "-C", "1", "--at", &format!("seq:{}", seq.0)],
            );
            let level = made["reply"]["snapshot"]["level"].as_u64();
            let level = level
                .unwrap_or_else(|| panic!("{why}: {seq} of {recent} to {}: {made}", self.world.load.head()));
            if self.open.iter().all(|open| open.level != level) {
                self.open.push(Open {
                    level,
                    seq,
                    vdev: None,
                });
            }
            self.count("snapshots");
        }
        let at = rng.random_range(0..self.open.len());
        if rng.random() {
            let block = rng.random_range(0..VOLUMES[0].1 / BLOCK_SIZE) * BLOCK_SIZE;
            let data = vec![rng.random(); BLOCK_SIZE as usize];
            let mut vdev = self
                .world
                .pair
                .open(replica, &format!("c1/sn{}/data", self.open[at].level));
            vdev.write(block, &data, false).unwrap();
            vdev.flush().unwrap();
            self.open[at].vdev = Some((block, data));
            self.count("vdevs");
        }
        self.look_at(at, why);
        if rng.random_range(0..3) == 0 {
            self.release(at);
        }
    }

    fn look_at(&mut self, at: usize, why: &str) {
        let Open { level, seq, vdev } = &self.open[at];
        self.world.shows(&format!("rsn{level}"), *seq);
        if let Some((block, data)) = vdev {
            let mut client = self
                .world
                .pair
                .open(self.replica(), &format!("c1/sn{level}/data"));
            assert!(
                client.read(*block, BLOCK_SIZE).unwrap() == *data,
                "{why}: vdev {level} at {block}"
            );
        }
        self.count("looks at a snapshot");
    }

    fn release(&mut self, at: usize) {
        let level = self.open.remove(at).level.to_string();
        self.world
            .pair
            .cli(self.replica(), &["scrt_ra", "-C", "1", "-W", "--level", &level])
            .ok();
    }

    /// The replica is put back to a record and forward again, while production writes on; perhaps killed in between.
    pub fn restored(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        let recent = self.recent();
        let Some(seq) = self.after(recent, rng) else {
            return;
        };
        let target = format!("seq:{}", seq.0);
        self.insist(
            self.replica(),
            &["scrt_ra", "-qfC", "1", "-F", "--at", &target],
            "ROLLED_BACK",
            why,
            rng,
        );
        let lasts = ms(rng, 50..800);
        let replica = self.replica();
        self.world.under_load(why, rng, |_, _| thread::sleep(lasts));
        self.world.shows("@restored", seq);
        // What was written meanwhile is received and held, once the link is there again: the replica may have been killed.
        self.world.settle(why);
        let views = self.world.views(recent, 2, rng);
        *self.counts.entry("views").or_default() += views;
        self.insist(replica, &["scrt_ra", "-qC", "1", "--undo"], "ENABLED", why, rng);
        self.count("restores and their undo");
    }

    /// A command of the replica, killed with its daemon now and then; the same command goes on then, to this state.
    fn insist(&mut self, node: &str, line: &[&str], state: &str, why: &str, rng: &mut StdRng) {
        let pair = &self.world.pair;
        for _ in 0..2 {
            if !rng.random_bool(self.kills) {
                continue;
            }
            let mut command = pair.command(node, line);
            let mut running = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(ms(rng, 5..200));
            pair.kill9(node);
            running.wait().unwrap();
            pair.start(node);
            *self.counts.entry("kills amid a command").or_default() += 1;
            if pair.status(node)["head"]["context"]["state"] == state {
                return;
            }
        }
        self.does(node, line, why);
        let status = pair.status(node);
        assert_eq!(
            status["head"]["context"]["state"], state,
            "{why}: {line:?}: {status}"
        );
    }

    /// A command that may have to wait for what else goes on, to its end.
    fn does(&self, node: &str, line: &[&str], why: &str) {
        let from = Instant::now();
        loop {
            let done = self.world.pair.cli(node, line);
            match done.code {
                0 => return,
                75 if from.elapsed() < LONG => thread::sleep(Duration::from_millis(200)),
                _ => panic!("{why}: {done:?}\n{}", self.world.pair.log(node)),
            }
        }
    }

    /// A planned change: production stops, the replica takes over, and the old production follows it.
    pub fn roles_change(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        while !self.open.is_empty() {
            self.release(0);
        }
        self.world.load.disconnect();
        let (from, to) = (self.production(), self.replica());
        let is_home = from == PROD;
        if rng.random() {
            self.stream().set(
                &BOTH,
                Weather {
                    delay: Duration::from_millis(5),
                    chunk: 900,
                    ..Weather::default()
                },
            );
        }
        let id = if is_home { "1" } else { "2" };
        self.does(from, &["rtstop", "-FSC", id], why);
        if is_home {
            self.amid_a_kill(to, &["rtdr", "-qC", "1", "failover"], why, rng);
            self.amid_a_kill(from, &["rtdr", "-qC", "1", "resync"], why, rng);
            self.amid_a_kill(to, &["rtdr", "-qC", "1", "resync"], why, rng);
        } else {
            self.amid_a_kill(to, &["rtdr", "-qC", "1", "failback"], why, rng);
            self.amid_a_kill(from, &["rtdr", "-qC", "2", "failback"], why, rng);
        }
        self.links.iter().for_each(Link::calm);
        until(&format!("{why}: {from} to follow"), LONG, || {
            let status = self.world.pair.status(from);
            (status["head"]["context"]["state"] == "ENABLED" && status["consistent"] == true).then_some(())
        });
        self.line = self.world.load.head();
        self.world.serves_on(to, why);
        self.world.load.follow(&self.world.pair, to);
        self.line = self.world.load.head();
        self.count(if is_home { "failovers" } else { "failbacks" });
    }

    /// A volume grows, perhaps with a kill of either host in the middle; the same command goes on.
    pub fn grown(&mut self, why: &str, rng: &mut StdRng) {
        self.world.settle(why);
        let production = self.production();
        let index = rng.random_range(0..VOLUMES.len());
        let (volume, now) = self.world.load.volumes_at(self.world.load.head())[index];
        let bytes = now + rng.random_range(1..=512) * BLOCK_SIZE;
        if bytes > 4 * VOLUMES[index].1 {
            return;
        }
        let why = format!("{why}: {volume} from {now} to {bytes} bytes");
        self.world.load.disconnect();
        let size = format!("{}K", bytes >> 10);
        let line = ["grow", "-qC", "1", "-L", volume, "--size", &size];
        self.amid_a_kill(production, &line, &why, rng);
        self.world.load.resized(&self.world.pair, index, bytes);
        self.world.serves(&why);
        self.count("growths");
    }

    /// As [`Mixture::does`]; now and then one of the daemons is killed in the middle, and the same command goes on.
    fn amid_a_kill(&mut self, node: &str, line: &[&str], why: &str, rng: &mut StdRng) {
        self.amid_a_kill_of(&[PROD, REC], node, line, why, rng);
    }

    /// As [`Mixture::amid_a_kill`], of one of these.
    fn amid_a_kill_of(&mut self, of: &[&str], node: &str, line: &[&str], why: &str, rng: &mut StdRng) {
        if rng.random_bool(self.kills) {
            let pair = &self.world.pair;
            let victim = of.choose(rng).unwrap();
            let mut command = pair.command(node, line);
            let mut running = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            thread::sleep(ms(rng, 5..300));
            pair.kill9(victim);
            running.wait().unwrap();
            pair.start(victim);
            self.count("kills amid a change of roles");
        }
        self.does(node, line, why);
    }

    /// All is held against the oracle; what happened, by kind.
    pub fn end(mut self, rng: &mut StdRng) -> BTreeMap<&'static str, usize> {
        let why = "at the end";
        self.settled(why, rng);
        for at in 0..self.open.len() {
            self.look_at(at, why);
        }
        let views = self.world.views(self.recent(), 20, rng);
        *self.counts.entry("views").or_default() += views;
        self.world.load.disconnect();
        let id = if self.production() == PROD { "1" } else { "2" };
        self.does(self.production(), &["rtstop", "-SC", id], why);
        let volumes = self.world.load.volumes_at(self.world.load.head());
        self.world.pair.same_volumes(&volumes);
        let records = self.world.load.oracle.positions().count();
        for (what, n) in [
            ("records", records),
            ("looks", self.world.looks),
            ("steps", self.steps),
        ] {
            *self.counts.entry(what).or_default() += n;
        }
        self.counts
    }
}
