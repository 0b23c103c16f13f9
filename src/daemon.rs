//! The daemon: a node with its sockets, until a signal ends it.

use crate::{
    access::{self, Level},
    activation,
    node::Node,
    ops,
};
use anyhow::Context as _;
use control::codec::{LINE_BYTES_MAX, SMALL_LINE_BYTES_MAX};
use control::server::{self, Patience, Session};
use control::{Code, Command, Failure, Outcome};
use rustix::fs::Mode;
use std::{
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Most control connections at once.
const CONTROL_CONNECTIONS_MAX: usize = 64;
/// Most of them of users who may only look, or nothing.
const READERS_MAX: usize = 16;
/// How long a client may take to say what it wants, and how much it may say: an operator may load a map.
const OPERATORS: Patience = Patience {
    line_bytes_max: LINE_BYTES_MAX,
    time: Duration::from_secs(10),
};
/// The same for who may only look.
const READERS: Patience = Patience {
    line_bytes_max: SMALL_LINE_BYTES_MAX,
    time: Duration::from_secs(10),
};
/// The same for who may do nothing, and is told so.
const STRANGERS: Patience = Patience {
    line_bytes_max: SMALL_LINE_BYTES_MAX,
    time: Duration::from_secs(3),
};

/// Writes the log to stderr; `BACKSTAY_LOG` says how much of it.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BACKSTAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

/// Serves a node in the foreground.
///
/// # Errors
/// When it cannot start.
pub fn serve(config: &Path) -> anyhow::Result<()> {
    log();
    // What a node writes is its owner's alone; what others must pass through is opened where it is made.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // Before any other thread: it changes the environment.
    let handed_over = activation::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let signals = runtime
        .block_on(async { anyhow::Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)) });
    let (mut term, mut int) = signals.context("listen for signals")?;
    let node = {
        let _inside = runtime.enter();
        Node::open(config)?
    };
    node.peers().listen(&node)?;
    node.serve_nbd(handed_over)?;
    // The control socket comes last: who can ask, can be answered.
    let mode = if node.config().access.is_default() {
        0o600
    } else {
        0o666
    };
    let listener = server::bind(&node.config().control_socket(), mode)
        .with_context(|| format!("listen at {}", node.config().control_socket().display()))?;
    control(&node, listener);
    keep_status(&node);
    tracing::info!(node = node.name(), "serving");
    // SIGTERM comes before a restart too: what waits for the next daemon stays. SIGINT is for good.
    let for_a_while = runtime.block_on(async {
        tokio::select! {
            _ = term.recv() => true,
            _ = int.recv() => false,
        }
    });
    tracing::info!(node = node.name(), "stopping");
    let _ = std::fs::remove_file(node.config().control_socket());
    node.keep_status();
    node.shut_down(for_a_while);
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(())
}

/// Keeps the status on the disk not much older than this.
const STATUS_EVERY: Duration = Duration::from_secs(30);

/// Writes the status now and then, and behind every command that changed something, until the node is gone.
fn keep_status(node: &Arc<Node>) {
    let mut changed = node.status_changed().ear();
    let node = Arc::downgrade(node);
    let work = move || {
        while let Some(node) = node.upgrade() {
            node.keep_status();
            drop(node);
            changed.wait(STATUS_EVERY);
        }
    };
    std::thread::Builder::new()
        .name("status".into())
        .spawn(work)
        .expect("a thread can be started");
}

/// Answers commands, a thread each.
fn control(node: &Arc<Node>, listener: UnixListener) {
    let node = Arc::clone(node);
    let (serving, reading) = (Arc::new(()), Arc::new(()));
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let client = match access::client(&stream, &node.config().access) {
                    Ok(client) => client,
                    Err(e) => {
                        tracing::warn!("a client of the control socket is not known: {e}");
                        continue;
                    }
                };
                let is_operator = client.level == Some(Level::Operator);
                let (count, max) = match is_operator {
                    true => (&serving, CONTROL_CONNECTIONS_MAX),
                    false => (&reading, READERS_MAX),
                };
                if Arc::strong_count(count) > max {
                    continue;
                }
                let (node, token) = (Arc::clone(&node), Arc::clone(count));
                let spawned = std::thread::Builder::new().name("command".into()).spawn(move || {
                    let _token = token;
                    converse(&node, stream, &client);
                });
                if let Err(e) = spawned {
                    tracing::error!("a command could not be answered: {e}");
                }
            }
        })
        .expect("a thread can be started");
}

/// Answers one client.
fn converse(node: &Arc<Node>, stream: UnixStream, client: &access::Client) {
    let patience = match client.level {
        Some(Level::Operator) => OPERATORS,
        Some(Level::Reader) => READERS,
        None => STRANGERS,
    };
    match Session::accept_within(stream, patience) {
        Ok(Some((session, request))) if !client.may(&request.command) => {
            let failure = Failure::new(
                Code::Refused,
                format!("{} may not do that on {}", client.name, node.name()),
            )
            .with_hint("operators and readers are named in [access] of the node's file");
            tracing::warn!(
                user = client.name,
                command = request.options.command_line,
                "refused"
            );
            let _ = session.done(Outcome::failed(failure));
        }
        Ok(Some((mut session, mut request))) => {
            if !client.is_owner {
                request.options.operator = format!("{}@{}", client.name, node.name());
            }
            if matches!(request.command, Command::Nbd { .. }) {
                ops::nbd::serve(node, &request, session);
            // Without one the client went away: what it began goes on.
            } else if let Some(outcome) = ops::answer(node, &request, &mut session) {
                let _ = session.done(outcome);
            }
        }
        Ok(None) => {}
        Err((session, e)) => {
            let failure = Failure::from_error(Code::Usage, &e);
            let _ = session.done(Outcome::failed(failure));
        }
    }
}
