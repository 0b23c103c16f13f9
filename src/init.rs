//! `backstay init`: a node's file and identity, its daemon, and the pairing of two nodes.

use crate::{
    config::{AccessConfig, HostConfig, ListenConfig, NodeConfig},
    node::host_name,
};
use cli::{InitArgs, InitReport};
use control::{
    Code, Command, Event, Failure, NextStep, Options, Question, Reply, Request,
    client::{self, Listener},
};
use std::{
    fs::OpenOptions,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

/// Port of the first node on a host.
const PORT: u16 = 7400;

type Done<T> = Result<T, Box<Failure>>;

fn refused(text: impl Into<String>) -> Box<Failure> {
    Box::new(Failure::new(Code::Refused, text))
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> Box<Failure> + '_ {
    move |e| refused(format!("{what}: {e}"))
}

/// Runs `backstay init`.
///
/// # Errors
/// When a file is in the way or a step fails; running it again goes on from what is there.
pub fn init(args: &InitArgs) -> Done<InitReport> {
    if let [production, recovery] = args.local.as_slice() {
        return local(args, production, recovery);
    }
    let name = args.name.clone().unwrap_or_else(host_name);
    let listen = args.listen.clone().unwrap_or_else(|| format!("0.0.0.0:{PORT}"));
    let config = node_config(args, &name, listen);
    let path = file_of(args, &name);
    if args.dry_run {
        let lines = vec![
            format!("would write {}", path.display()),
            format!("would start the daemon of {name}"),
        ];
        return Ok(InitReport { lines, next: None });
    }
    let mut lines = Vec::new();
    write_new(&path, &config, &mut lines)?;
    start(&path, &mut lines)?;
    // A file that was there may say otherwise than the one that would have been written.
    let kept = NodeConfig::load(&path).map_err(|e| Box::new(Failure::from_error(Code::Refused, &e)))?;
    let socket = kept.control_socket();
    let command = match &args.peer {
        Some(string) => Command::PairJoin {
            string: string.clone(),
        },
        None => Command::PairOpen,
    };
    match call(&socket, command)? {
        (Reply::PairOpen(open), _) => {
            lines.push(format!(
                "pairing string, for one use within 10 minutes: {}",
                open.string
            ));
            let command = format!("backstay init --peer '{}'", open.string);
            Ok(InitReport {
                lines,
                next: Some(NextStep {
                    command,
                    host: "the other host".into(),
                }),
            })
        }
        (Reply::PairJoin(join), next) => {
            lines.push(format!("paired with {} ({})", join.peer, join.identity));
            Ok(InitReport { lines, next })
        }
        _ => Err(refused("the daemon answered something else")),
    }
}

/// Two nodes on one machine, paired on loopback.
fn local(args: &InitArgs, production: &str, recovery: &str) -> Done<InitReport> {
    if production == recovery {
        return Err(Box::new(Failure::new(Code::Usage, "two nodes need two names")));
    }
    let mut configs = Vec::new();
    for (name, port) in [(production, PORT), (recovery, PORT + 1)] {
        let port = free_port(port);
        configs.push(node_config(args, name, format!("127.0.0.1:{port}")));
    }
    if args.dry_run {
        let lines = [production, recovery]
            .map(|n| format!("would write {} and start its daemon", file_of(args, n).display()));
        return Ok(InitReport {
            lines: lines.to_vec(),
            next: None,
        });
    }
    let mut lines = Vec::new();
    let mut keys = Vec::new();
    for config in &configs {
        let folder = config.state_dir.join("identity");
        std::fs::create_dir_all(&folder).map_err(failed(&folder.display().to_string()))?;
        let identity = wire::Identity::load_or_make(&folder)
            .map_err(|e| Box::new(Failure::from_error(Code::Refused, &e)))?;
        keys.push(identity.fingerprint().to_string());
    }
    for (mine, other) in [(0, 1), (1, 0)] {
        let host = HostConfig {
            name: configs[other].name.clone(),
            endpoints: configs[other].listen.peer.iter().cloned().collect(),
            identity: keys[other].clone(),
            backings: Vec::new(),
        };
        configs[mine].hosts.push(host);
    }
    for config in &configs {
        write_new(&file_of(args, &config.name), config, &mut lines)?;
    }
    for config in &configs {
        start(&file_of(args, &config.name), &mut lines)?;
    }
    let command = format!("backstay protect -C 1 data=1G --fs ext4 --mount /data --node {production}");
    Ok(InitReport {
        lines,
        next: Some(NextStep {
            command,
            host: production.to_owned(),
        }),
    })
}

fn file_of(args: &InitArgs, name: &str) -> PathBuf {
    args.config
        .clone()
        .unwrap_or_else(|| args.config_dir.join(format!("{name}.toml")))
}

fn node_config(args: &InitArgs, name: &str, listen: String) -> NodeConfig {
    let root = args
        .state_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from("/var/lib/backstay"));
    let local = !args.local.is_empty();
    NodeConfig {
        name: name.to_owned(),
        state_dir: root.join(name),
        control: None,
        access: AccessConfig::default(),
        // Two nodes on one machine would mount over each other; the production one keeps the real places.
        mount_root: if local && args.local.first().is_some_and(|p| p != name) {
            root.join(name).join("mnt")
        } else {
            PathBuf::from("/")
        },
        listen: ListenConfig {
            peer: Some(listen),
            nbd: None,
            nbd_tcp: None,
        },
        nbd: crate::config::NbdConfig::default(),
        attach: crate::config::AttachConfig::default(),
        hooks: crate::config::HooksConfig::default(),
        hosts: Vec::new(),
    }
}

/// A port on loopback that nobody listens at: the wanted one, or the next free one.
fn free_port(wanted: u16) -> u16 {
    (wanted..wanted.saturating_add(200))
        .step_by(2)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap_or(wanted)
}

/// Writes a node's file, or keeps the one that is there.
fn write_new(path: &Path, config: &NodeConfig, lines: &mut Vec<String>) -> Done<()> {
    if path.exists() {
        NodeConfig::load(path).map_err(|e| Box::new(Failure::from_error(Code::Refused, &e)))?;
        lines.push(format!("{} is there already; it stays as it is", path.display()));
        return Ok(());
    }
    for folder in [path.parent(), Some(config.state_dir.as_path())]
        .into_iter()
        .flatten()
    {
        std::fs::create_dir_all(folder).map_err(failed(&folder.display().to_string()))?;
    }
    config
        .save(path)
        .map_err(|e| Box::new(Failure::from_error(Code::Refused, &e)))?;
    lines.push(format!("wrote {}", path.display()));
    Ok(())
}

/// Starts a node's daemon in the background, unless it runs.
fn start(path: &Path, lines: &mut Vec<String>) -> Done<()> {
    let config = NodeConfig::load(path).map_err(|e| Box::new(Failure::from_error(Code::Refused, &e)))?;
    let socket = config.control_socket();
    if call(&socket, Command::NodeInfo).is_ok() {
        lines.push(format!("the daemon of {} runs already", config.name));
        return Ok(());
    }
    let log_path = config.state_dir.join("log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(failed(&log_path.display().to_string()))?;
    let errors = log.try_clone().map_err(failed(&log_path.display().to_string()))?;
    let program = std::env::current_exe().map_err(failed("this program"))?;
    let mut child = std::process::Command::new(program)
        .arg0("backstay")
        .args(["serve", "--config"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(failed("start the daemon"))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while call(&socket, Command::NodeInfo).is_err() {
        let ended = child.try_wait().ok().flatten().is_some();
        if ended || Instant::now() > deadline {
            return Err(refused(format!(
                "the daemon of {} did not start; its log: {}",
                config.name,
                log_path.display()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    lines.push(format!(
        "started the daemon of {} (pid {}, log {})",
        config.name,
        child.id(),
        log_path.display()
    ));
    Ok(())
}

struct Silent;

impl Listener for Silent {
    fn event(&mut self, _: Event) {}

    fn ask(&mut self, _: &Question) -> bool {
        false
    }
}

fn call(socket: &Path, command: Command) -> Done<(Reply, Option<NextStep>)> {
    let request = Request::new(
        command,
        Options {
            command_line: "backstay init".into(),
            ..Options::default()
        },
    );
    let outcome = client::call(socket, &request, &mut Silent)
        .map_err(|e| Box::new(Failure::from_error(Code::Unreachable, &e)))?;
    Ok((outcome.result.map_err(Box::new)?, outcome.next))
}
