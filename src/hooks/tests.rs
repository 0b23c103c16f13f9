use super::{files::judge, files::judge_above, process::LINE_BYTES_MAX, process::LINES_MAX, *};
use crate::config::{Age, HooksConfig};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};
use testkit::proc::until;

const LONG: Duration = Duration::from_secs(60);

/// A node's hooks in a folder of their own.
struct Bench {
    dir: tempfile::TempDir,
    config: NodeConfig,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = "name = \"prod1\"\nstate_dir = \"/x\"\n";
        let path = dir.path().join("prod1.toml");
        fs::write(&path, text).unwrap();
        let config = NodeConfig::load(&path).unwrap();
        let bench = Self { dir, config };
        bench.folder("");
        bench.folder("..");
        bench
    }

    fn required(mut self, events: &[HookEvent]) -> Self {
        self.config.hooks.required = events.to_vec();
        self
    }

    fn timeout(mut self, timeout: Duration) -> Self {
        self.config.hooks.timeout = Age(timeout);
        self
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("hooks/prod1").join(name)
    }

    /// A folder of hooks, whatever the umask.
    fn folder(&self, name: &str) {
        fs::create_dir_all(self.at(name)).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A script; written by another process, because a program that someone has open for writing cannot be started.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        self.file(name, &format!("#!/bin/sh\n{text}\n"), 0o755)
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.at(name);
        if let Some((folder, _)) = name.split_once('/') {
            self.folder(folder);
        }
        let wrote = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$2\"", "sh", text])
            .arg(&path)
            .status();
        assert!(wrote.unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn hooks(&self) -> Hooks {
        Hooks::of(&self.config, &self.dir.path().join("prod1.toml"))
    }

    /// Runs an event's hooks: what came of it, and what the operator saw.
    fn run(&self, event: HookEvent) -> (Result<Vec<Ran>, HookError>, Vec<String>) {
        let mut lines = Vec::new();
        let result = self.hooks().run(event, &facts(), &mut |line| lines.push(line));
        (result, lines)
    }
}

fn facts() -> Facts {
    Facts {
        context: 1,
        failover_id: 1001,
        host: "prod1".into(),
        peer: "rec1".into(),
        role: Role::Recovery,
        state: ContextState::Enabled,
        term: Term(4),
        point: None,
        mounts: vec!["/data".into(), "/my log".into()],
    }
}

/// Lines without the time that a hook took.
fn timeless(lines: &[String]) -> Vec<String> {
    let cut = |l: &String| {
        let Some((before, after)) = l.split_once(" after ") else {
            return l.clone();
        };
        format!("{before}{}", after.split_once('s').unwrap().1)
    };
    lines.iter().map(cut).collect()
}

#[test]
fn nothing_there_is_nothing_run() {
    let bench = Bench::new();
    for event in HookEvent::ALL {
        let (result, lines) = bench.run(event);
        assert!(result.unwrap().is_empty() && lines.is_empty(), "{event}");
    }
    fs::remove_dir_all(bench.dir.path().join("hooks")).unwrap();
    assert!(bench.run(HookEvent::PreFailover).0.unwrap().is_empty());
}

#[test]
fn a_hook_knows_the_facts_and_nothing_else() {
    let bench = Bench::new();
    bench.script("post-failover", "env | sort");
    let (result, lines) = bench.run(HookEvent::PostFailover);
    assert!(result.unwrap()[0].outcome.is_success());
    let config = bench.dir.path().join("prod1.toml");
    let config = format!("BACKSTAY_CONFIG={}", config.display());
    let expected = [
        "/my log",
        &config,
        "BACKSTAY_CONTEXT=1",
        "BACKSTAY_EVENT=post-failover",
        "BACKSTAY_FAILOVER_ID=1001",
        "BACKSTAY_HOST=prod1",
        "BACKSTAY_MOUNTS=/data",
        "BACKSTAY_PEER=rec1",
        "BACKSTAY_ROLE=REPLICA",
        "BACKSTAY_STATE=ENABLED",
        "BACKSTAY_TERM=4",
        "LC_ALL=C.UTF-8",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/",
    ];
    let (last, env) = lines.split_last().unwrap();
    let of_shell = ["_=", "OLDPWD=", "SHLVL="];
    let env: Vec<&str> = env
        .iter()
        .map(|l| l.strip_prefix("post-failover: ").unwrap())
        .filter(|l| !of_shell.iter().any(|s| l.starts_with(s)))
        .collect();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    let mut sorted = env.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(
        timeless(std::slice::from_ref(last)),
        ["hook post-failover: exit 0"]
    );

    bench.script(
        "pre-failover",
        "echo \"$BACKSTAY_POINT\"; read -r line || echo no input",
    );
    let mut lines = Vec::new();
    let with_point = facts().at("g1:81234");
    bench
        .hooks()
        .run(HookEvent::PreFailover, &with_point, &mut |l| lines.push(l))
        .unwrap();
    assert_eq!(lines[..2], ["pre-failover: g1:81234", "pre-failover: no input"]);
}

#[test]
fn a_folder_runs_in_the_order_of_names_and_both_outputs_in_theirs() {
    let bench = Bench::new();
    bench.script("post-failback/20-dns", "echo out; echo err >&2; printf 'no end'");
    bench.script("post-failback/10-address", "echo first; exit 3");
    bench.script("post-failback/.hidden", "echo hidden");
    bench.script("post-failback/20-dns~", "echo backup");
    let (result, lines) = bench.run(HookEvent::PostFailback);
    let hooks: Vec<String> = result.unwrap().into_iter().map(|r| r.hook).collect();
    assert_eq!(hooks, ["post-failback/10-address", "post-failback/20-dns"]);
    let expected = [
        "post-failback/10-address: first",
        "Warning: hook post-failback/10-address: exit 3; going on",
        "post-failback/20-dns: out",
        "post-failback/20-dns: err",
        "post-failback/20-dns: no end",
        "hook post-failback/20-dns: exit 0",
    ];
    assert_eq!(timeless(&lines), expected);
    let planned = bench.hooks().planned(HookEvent::PostFailback).unwrap();
    assert_eq!(planned, hooks);
}

#[test]
fn a_required_hook_that_fails_fails_the_event_and_runs_no_other() {
    let bench = Bench::new().required(&[HookEvent::PreFailover]);
    // Required and not there: nobody would know that the fence is gone.
    let missing = bench.run(HookEvent::PreFailover).0.unwrap_err();
    assert!(matches!(missing, HookError::Missing { .. }), "{missing}");
    assert!(bench.hooks().planned(HookEvent::PreFailover).is_err());

    let ran = bench.dir.path().join("ran");
    bench.script("pre-failover/10-fence", "echo no; exit 7");
    bench.script("pre-failover/20-next", &format!("touch {}", ran.display()));
    let (result, lines) = bench.run(HookEvent::PreFailover);
    let failed = result.unwrap_err();
    let text = timeless(&[failed.to_string()]).remove(0);
    assert_eq!(
        text,
        "hook pre-failover/10-fence: exit 7; pre-failover is required"
    );
    assert_eq!(lines, ["pre-failover/10-fence: no"]);
    assert!(!ran.exists());

    // The last one cannot run: the first is not started either.
    bench.script("pre-failover/10-fence", &format!("touch {}", ran.display()));
    bench.file("pre-failover/20-next", "#!/bin/sh\n", 0o644);
    for result in [
        bench.run(HookEvent::PreFailover).0.map(drop),
        bench.hooks().planned(HookEvent::PreFailover).map(drop),
    ] {
        let e = result.unwrap_err().to_string();
        assert!(e.contains("20-next is not executable: chmod +x"), "{e}");
    }
    assert!(!ran.exists());
    bench.script("pre-failover/20-next", "exit 0");
    assert_eq!(bench.run(HookEvent::PreFailover).0.unwrap().len(), 2);
    assert!(ran.exists());
    // The same for an event that is not required: a warning each, and the command goes on.
    bench.file("pre-resync", "#!/bin/sh\n", 0o644);
    let (result, lines) = bench.run(HookEvent::PreResync);
    assert!(matches!(
        result.unwrap()[0].outcome,
        Outcome::Failed(HookFault::NotExecutable(_))
    ));
    assert!(lines[0].starts_with("Warning: hook pre-resync: "), "{lines:?}");
}

#[test]
fn at_the_timeout_the_whole_group_ends() {
    let bench = Bench::new().timeout(Duration::from_secs(1));
    let pids = bench.dir.path().join("pids");
    // One of them does not hear the polite signal.
    let text = format!(
        "(trap '' TERM; echo $$ > {0}; while :; do sleep 1; done) &\n\
         sleep 1000 & echo $! > {0}.sleep\necho begun\nwait",
        pids.display()
    );
    bench.script("post-resync", &text);
    let (result, lines) = bench.run(HookEvent::PostResync);
    assert!(matches!(result.unwrap()[0].outcome, Outcome::TimedOut { .. }));
    assert_eq!(lines[0], "post-resync: begun");
    assert_eq!(
        lines[1],
        "Warning: hook post-resync: was not done after 1s and was ended; going on"
    );
    let sleeping = fs::read_to_string(format!("{}.sleep", pids.display())).unwrap();
    until("the end of what the hook started", LONG, || {
        gone(&sleeping).then_some(())
    });
    let group = fs::read_to_string(&pids).unwrap();
    until("the end of the group", LONG, || {
        let group = rustix::process::Pid::from_raw(group.trim().parse().unwrap()).unwrap();
        rustix::process::test_kill_process_group(group)
            .is_err()
            .then_some(())
    });
}

/// Whether a process is gone, or only waits for somebody to ask how it ended.
fn gone(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .map_or(true, |stat| stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

#[test]
fn what_a_hook_leaves_running_holds_nobody_up() {
    let bench = Bench::new().timeout(Duration::from_secs(3600));
    let pid = bench.dir.path().join("pid");
    bench.script(
        "post-failover",
        &format!("sleep 1000 & echo $! > {}; echo done", pid.display()),
    );
    // It holds the hook's output open; the hook counts as ended all the same.
    let (result, lines) = bench.run(HookEvent::PostFailover);
    assert!(result.unwrap()[0].outcome.is_success());
    assert_eq!(lines[0], "post-failover: done");
    let left = fs::read_to_string(&pid).unwrap();
    assert!(!gone(&left));
    let left = rustix::process::Pid::from_raw(left.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn output_is_bounded_and_harmless() {
    let bench = Bench::new();
    let many = LINES_MAX + 23;
    let text = format!(
        "printf '\\033[2Jred\\377\\r\\n'\nhead -c 5000 /dev/zero | tr '\\0' x; echo\n\
         i=2; while [ $i -lt {many} ]; do echo $i; i=$((i+1)); done"
    );
    bench.script("post-failover", &text);
    let (result, lines) = bench.run(HookEvent::PostFailover);
    assert!(result.unwrap()[0].outcome.is_success());
    assert_eq!(lines.len(), LINES_MAX + 2);
    assert_eq!(lines[0], "post-failover:  [2Jred\u{fffd}");
    assert_eq!(
        lines[1],
        format!("post-failover: {} ...", "x".repeat(LINE_BYTES_MAX))
    );
    assert_eq!(lines[LINES_MAX], "post-failover: (23 more lines were left out)");
}

/// However much a hook prints and however slowly that is heard, its time is over at its timeout.
#[test]
fn much_output_does_not_outlast_the_timeout() {
    let bench = Bench::new().timeout(Duration::from_secs(1));
    bench.script(
        "state-changed",
        &format!("i=0; while [ $i -lt {LINES_MAX} ]; do echo $i; i=$((i+1)); done; sleep 2"),
    );
    let mut slow = |_| std::thread::sleep(Duration::from_millis(10));
    let ran = bench
        .hooks()
        .run(HookEvent::StateChanged, &facts(), &mut slow)
        .unwrap();
    assert!(matches!(ran[0].outcome, Outcome::TimedOut { .. }));
}

#[test]
fn a_signal_is_an_exit_above_128() {
    let bench = Bench::new();
    bench.script("post-failover", "kill -9 $$");
    let outcome = bench.run(HookEvent::PostFailover).0.unwrap().remove(0).outcome;
    assert!(matches!(outcome, Outcome::Ran { exit: 137, .. }), "{outcome}");
}

#[test]
fn what_cannot_be_started_says_what_may_be_missing() {
    let bench = Bench::new();
    bench.file("post-failover", "echo no first line\n", 0o755);
    bench.file("post-failback", "#!/no/such/shell\n", 0o755);
    bench.folder("post-resync");
    bench.folder("post-resync/folder");
    symlink("/no/such/file", bench.at("pre-resync")).unwrap();
    for (event, expected) in [
        (
            HookEvent::PostFailover,
            "does it begin with a line like #!/bin/sh?",
        ),
        (HookEvent::PostFailback, "is the program in its #! line there?"),
        (HookEvent::PostResync, "folder is no program"),
        (HookEvent::PreResync, "pre-resync: No such file"),
    ] {
        let (result, lines) = bench.run(event);
        assert!(result.is_ok(), "{event}");
        assert!(lines.iter().any(|l| l.contains(expected)), "{event}: {lines:?}");
    }
}

#[test]
fn what_others_can_change_is_not_run() {
    let bench = Bench::new();
    let ran = bench.dir.path().join("ran");
    let touch = format!("touch {}", ran.display());
    let hook = bench.script("pre-failover/10-fence", &touch);
    let elsewhere = bench.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&hook, elsewhere.join("fence")).unwrap();
    symlink(elsewhere.join("fence"), &hook).unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, safe) in [
        (elsewhere.join("fence"), 0o755),
        // Whoever can write the folder of what the link leads to puts another file in its place.
        (elsewhere.clone(), 0o755),
        // And whoever can write a folder above puts another folder there.
        (bench.dir.path().join("hooks"), 0o755),
        (bench.dir.path().to_owned(), 0o700),
        (bench.at("pre-failover"), 0o755),
        (bench.at(""), 0o700),
    ] {
        for loose in [0o775, 0o757] {
            mode(&path, loose);
            let (result, lines) = bench.run(HookEvent::PreFailover);
            assert!(result.is_ok());
            let shown = path.to_str().unwrap().trim_end_matches('/');
            let expected =
                format!("{shown} (mode 0{loose:o}) can be written by others than its owner: chmod go-w");
            let line = lines[0].replace("prod1/ (", "prod1 (");
            assert!(
                line.starts_with("Warning: ") && line.contains(&expected),
                "{lines:?}"
            );
            assert!(!ran.exists());
        }
        mode(&path, safe);
    }
    assert_eq!(bench.run(HookEvent::PreFailover).0.unwrap().len(), 1);
    assert!(ran.exists());
}

#[test]
fn only_root_and_the_daemons_user_are_trusted() {
    let path = Path::new("/h/pre-failover");
    for (owner, mode, user, expected) in [
        (0, 0o755, 0, None),
        (0, 0o755, 1000, None),
        (1000, 0o700, 1000, None),
        (
            1000,
            0o755,
            0,
            Some(
                "/h/pre-failover belongs to user 1000, not to root or the daemon's user 0: chown 0 /h/pre-failover",
            ),
        ),
        (1001, 0o755, 1000, Some("chown 1000 /h/pre-failover")),
        (0, 0o720, 0, Some("(mode 0720) can be written by others")),
        (1000, 0o702, 1000, Some("(mode 0702) can be written by others")),
    ] {
        let judged = judge(path, owner, mode, user).map_err(|e| e.to_string());
        match expected {
            None => assert_eq!(judged, Ok(())),
            Some(part) => assert!(judged.clone().unwrap_err().contains(part), "{judged:?}"),
        }
    }
}

#[test]
fn above_hooks_a_sticky_folder_is_as_good_as_a_closed_one() {
    let path = Path::new("/tmp");
    for (owner, mode, user, safe) in [
        (0, 0o755, 1000, true),
        (0, 0o1777, 1000, true),
        (0, 0o777, 1000, false),
        (0, 0o775, 0, false),
        (1001, 0o1777, 1000, false),
        (1001, 0o755, 1000, false),
    ] {
        let judged = judge_above(path, owner, mode, user);
        assert_eq!(judged.is_ok(), safe, "{owner} {mode:o} {user}: {judged:?}");
    }
}

#[test]
fn a_folder_that_is_named_must_be_there() {
    let mut bench = Bench::new();
    let dir = bench.dir.path().join("mine");
    bench.config.hooks = HooksConfig {
        dir: Some(dir.clone()),
        ..HooksConfig::default()
    };
    let (result, lines) = bench.run(HookEvent::PreFailover);
    assert!(result.unwrap().is_empty());
    let gone = format!("the folder of hooks {} is gone", dir.display());
    assert_eq!(
        lines,
        [format!(
            "Warning: no pre-failover hooks are run: {gone}; going on"
        )]
    );
    bench.config.hooks.required = vec![HookEvent::PreFailover];
    let refused = bench.run(HookEvent::PreFailover).0.unwrap_err().to_string();
    assert_eq!(refused, format!("{gone}; pre-failover is required"));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    bench.config.hooks.required.clear();
    assert!(bench.run(HookEvent::PreFailover).1.is_empty());
}

#[test]
fn events_are_told_by_their_names() {
    for event in HookEvent::ALL {
        assert_eq!(event.name().parse(), Ok(event));
        assert_eq!(event.is_before(), event.name().starts_with("pre-"));
    }
    let error = "pre-fallback".parse::<HookEvent>().unwrap_err();
    assert_eq!(
        error,
        "'pre-fallback' is no event of hooks; did you mean 'pre-failback'?"
    );
}
