//! Two hosts for the procedures of `testdata/procedures`.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use testkit::proc::{Finished, Host, Hosts, Pty, Scratch, need_tool, root, run, until};

/// Time enough for anything that is not broken, on a machine that does other things too.
pub const LONG: Duration = Duration::from_secs(120);

/// Time enough for a whole procedure.
const PROCEDURE: Duration = Duration::from_secs(420);

pub const PROD: &str = "prod1";
pub const REC: &str = "rec1";

/// What makes a namespace a host of the procedures: the program at their path, a place for mounts, and its own `/dev/backstay`.
/// `/usr` is put together anew because `scrt` has to stand in it.
const PREPARE: &str = r#"
printf 'export BACKSTAY_ETC=%s/etc PATH=/usr/scrt/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C\n' "$2" >"$2/environment"
mkdir -p "$2/etc" "$2/state" "$2/usr"
mount -t tmpfs none "$2/usr"
for folder in /usr/*; do
  mkdir "$2/usr/${folder##*/}"
  mount --rbind "$folder" "$2/usr/${folder##*/}"
done
mkdir -p "$2/usr/scrt/bin"
touch "$2/usr/scrt/bin/backstay"
mount --bind "$PROGRAM" "$2/usr/scrt/bin/backstay"
mount --rbind "$2/usr" /usr
mkdir -p /dev/backstay
mount -t tmpfs none /dev/backstay
mount -t tmpfs none /mnt
install -d -o postgres /mnt/run
"#;

/// Two hosts, paired, with a bank on two protected volumes, under load.
pub struct Site {
    pub hosts: Hosts,
    pub scratch: Scratch,
}

/// How questions are answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `yes |`.
    Pipe,
    /// At a terminal.
    Typed,
    /// `-q`.
    Quiet,
}

impl Site {
    /// The hosts and all that `set-up.sh` does.
    pub fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let program = super::program();
        let prepare = format!("PROGRAM='{}'\n{PREPARE}", program.display());
        let hosts = Hosts::new(&scratch, [PROD, REC], &prepare);
        let site = Self { hosts, scratch };
        print!("{}", run(&mut site.script("set-up.sh"), PROCEDURE).ok());
        site
    }

    pub fn host(&self, name: &str) -> &Host {
        self.hosts.host(name)
    }

    fn bash(&self) -> Command {
        let folder = root().join("testdata/procedures");
        let mut bash = Command::new(need_tool("bash"));
        bash.env("SITE", folder.join("site.sh"))
            .env("SITE_DIR", self.scratch.path())
            .current_dir(folder);
        bash
    }

    fn script(&self, name: &str) -> Command {
        let mut bash = self.bash();
        bash.arg(name);
        bash
    }

    /// Runs some of the site's functions.
    #[track_caller]
    pub fn call(&self, text: &str) -> String {
        let mut bash = self.bash();
        bash.args(["-euo", "pipefail", "-c", &format!(". \"$SITE\"; {text}")]);
        let said = run(&mut bash, LONG).ok();
        print!("{said}");
        said
    }

    /// Runs a procedure to its end; `plug` is what is done when production comes online in it.
    #[track_caller]
    pub fn procedure(&self, name: &str, way: Way, environment: &[(&str, &str)], plug: impl Fn() + Sync) {
        let mut script = self.script(name);
        script.envs(environment.iter().copied());
        let wanted = self.scratch.join("production-online.wanted");
        let ended = AtomicBool::new(false);
        let finished = thread::scope(|scope| {
            let plugging = scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    if wanted.exists() {
                        plug();
                        fs::remove_file(&wanted).unwrap();
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let _ending = Ending(&ended);
            let finished = self.answered(script, way);
            ended.store(true, Ordering::Relaxed);
            plugging.join().unwrap();
            finished
        });
        println!("{}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.code, 0, "{name} ended with {}", finished.code);
    }

    fn answered(&self, mut script: Command, way: Way) -> Finished {
        match way {
            Way::Quiet => run(script.env("Q", "-q"), PROCEDURE),
            Way::Typed => {
                let (finished, asked) = Pty::start(&script).converse("[y|n] ", "y", PROCEDURE);
                assert!(
                    asked > 1 || finished.code != 0,
                    "nobody asked:\n{}",
                    finished.stdout
                );
                finished
            }
            Way::Pipe => {
                let mut pipe = Command::new(need_tool("bash"));
                pipe.args(["-c", "yes | exec \"$@\"", "yes"]);
                run(&mut testkit::proc::behind(pipe, &script), PROCEDURE)
            }
        }
    }

    /// Production is switched on again after a crash.
    #[track_caller]
    pub fn boot(&self, name: &str) {
        self.hosts.boot(name);
        let state = self.state(name);
        self.host(name).sh(&format!(
            "backstay links >/dev/null; setsid backstay serve --config $BACKSTAY_ETC/{name}.toml \
             >>{}/log 2>&1 </dev/null &",
            state.display()
        ));
        until(&format!("the daemon of {name}"), LONG, || {
            let status = run(self.host(name).command("backstay").arg("status"), LONG);
            (status.code != 69).then_some(())
        });
    }

    fn state(&self, name: &str) -> PathBuf {
        self.scratch.join(name).join("state").join(name)
    }

    /// The file behind a volume.
    pub fn backing(&self, name: &str, volume: &str) -> PathBuf {
        self.state(name).join("c1/volumes").join(volume)
    }

    /// Closes the bank on production, drains, and asserts that both hosts hold the same.
    #[track_caller]
    pub fn same_in_the_end(&self) {
        self.call("sleep 1; application_stop prod1");
        self.host(PROD).sh("rtumnt -FC 1 && rtstop -FSC 1");
        for volume in ["data", "wal"] {
            let files = [PROD, REC].map(|host| self.backing(host, volume));
            let compared = run(Command::new("cmp").args(&files), LONG);
            assert_eq!(compared.code, 0, "{volume} differs: {compared:?}");
        }
    }
}

/// Tells a thread to end, also when a test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
