//! A node: the daemon with its contexts, its sockets and its identity.

use crate::{
    activation::HandedOver,
    attach::{AttachError, AttachedDevice, Attacher, Epochs},
    bell::Bell,
    clock::HostClock,
    config::{ConfigError, ContextConfig, HostConfig, NbdConfig, NodeConfig, TlsMode, VolumeConfig},
    context::{CommandLock, Context, ContextError, Place},
    damage::{self, Damaged},
    exports::{self, NodeExports},
    format,
    hooks::{Facts, HookEvent, Hooks},
    jobs::Jobs,
    peer::Peers,
};
use anyhow::Context as _;
use journal::JournalError;
use model::Timestamp;
use parking_lot::{Mutex, RwLock};
use rustix::fs::FlockOperation;
use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Weak, mpsc},
    time::Duration,
};

/// How long a helper that cannot be asked is left alone.
const AGAIN_EVERY: Duration = Duration::from_secs(1);

/// Runs the hooks of changes as they come, until the node ends.
fn run_state_hooks(node: Weak<Node>, changes: mpsc::Receiver<Facts>) -> anyhow::Result<()> {
    let run = move || {
        for facts in changes {
            let Some(hooks) = node.upgrade().map(|node| node.hooks()) else {
                return;
            };
            // What comes of them is in the log; this event cannot be required.
            let _ = hooks.run(HookEvent::StateChanged, &facts, &mut |_| {});
        }
    };
    let builder = std::thread::Builder::new().name("state-hooks".into());
    builder.spawn(run).context("start the thread of hooks")?;
    Ok(())
}

/// Does something about devices until the helper has done it, or the node ends.
fn again_and_again(
    node: &Arc<Node>,
    what: &'static str,
    work: impl Fn(&Arc<Node>) -> Result<(), AttachError> + Send + 'static,
) {
    let node = Arc::downgrade(node);
    let run = move || {
        let mut told = String::new();
        while let Some(node) = node.upgrade() {
            let Err(e) = work(&node) else { return };
            if e.to_string() != told {
                tracing::error!("{what}: {e}");
                told = e.to_string();
            }
            drop(node);
            std::thread::sleep(AGAIN_EVERY);
        }
    };
    let _ = std::thread::Builder::new().name("helper".into()).spawn(run);
}

/// Everything a node holds.
pub struct Node {
    config_path: PathBuf,
    config: RwLock<NodeConfig>,
    contexts: RwLock<BTreeMap<u32, Arc<Context>>>,
    /// Contexts whose file is here and that could not be opened, with the reason.
    broken: Mutex<BTreeMap<String, String>>,
    /// Contexts whose journal is damaged.
    damaged: Mutex<BTreeMap<u32, Arc<Damaged>>>,
    clock: Arc<HostClock>,
    attacher: Attacher,
    epochs: Epochs,
    peers: Peers,
    jobs: Jobs,
    protecting: CommandLock,
    /// Held by who takes a context from a peer: of two at once one would delete the file of the other.
    taking: Mutex<()>,
    since: Timestamp,
    last_alive: Option<Timestamp>,
    nbd: Mutex<Option<nbd::Server>>,
    /// Rings when what `status` says has changed by a command.
    status_changed: Bell,
    /// Changes of contexts, for their hooks.
    state_changes: mpsc::Sender<Facts>,
    _lock: File,
}

impl Node {
    /// Opens the node's state and starts its contexts; serves nothing yet.
    ///
    /// # Errors
    /// When the state cannot be used; a context that cannot be opened does not keep the others from starting.
    pub fn open(config_path: &Path) -> anyhow::Result<Arc<Self>> {
        let config = NodeConfig::load(config_path)?;
        let state = &config.state_dir;
        let is_marked = format::check(state)?;
        // The folder above is another's, and may be closed to us: it is synced only when the state itself is made here.
        let root = state.parent().filter(|_| !state.is_dir()).unwrap_or(state);
        media::make_folders(root, &config.contexts_dir())
            .with_context(|| format!("create {}", state.display()))?;
        std::fs::set_permissions(state, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .with_context(|| format!("set the mode of {}", state.display()))?;
        let lock =
            File::create(state.join("lock")).with_context(|| format!("create {}/lock", state.display()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("another daemon runs on {}", state.display()))?;
        if !is_marked {
            format::mark(state)?;
        }
        let pid = std::process::id().to_string();
        std::fs::write(state.join("pid"), pid).with_context(|| format!("write {}/pid", state.display()))?;
        let last_alive = last_alive(state);
        let clock = Arc::new(HostClock::open(state));
        let attacher = Attacher::new(&config.attach, state, config.nbd_socket());
        let epochs = Epochs::open(state).with_context(|| format!("read {}/epochs.json", state.display()))?;
        let peers = Peers::open(&config)?;
        let (state_changes, changes) = mpsc::channel();
        let jobs = Jobs::open(&config.name, state)?;
        let node = Arc::new(Self {
            config_path: config_path.to_owned(),
            config: RwLock::new(config),
            contexts: RwLock::default(),
            broken: Mutex::default(),
            damaged: Mutex::default(),
            clock,
            attacher,
            epochs,
            peers,
            jobs,
            protecting: CommandLock::default(),
            taking: Mutex::default(),
            since: Timestamp::now(),
            last_alive,
            nbd: Mutex::default(),
            status_changed: Bell::default(),
            state_changes,
            _lock: lock,
        });
        run_state_hooks(Arc::downgrade(&node), changes)?;
        node.open_contexts()?;
        // Before anything is served: what an earlier daemon attached sees only what it was attached to.
        let exports = node.exports();
        let settle = move |node: &Arc<Self>| {
            node.attacher
                .settle(|export, identity| exports.is(export, identity))
        };
        match node.attacher.has_helper() {
            // It may be away, or busy; protection begins without. What is served under an identity is what had it.
            true => again_and_again(&node, "what an earlier daemon left attached", settle),
            false => settle(&node)?,
        }
        Ok(node)
    }

    fn open_contexts(self: &Arc<Self>) -> anyhow::Result<()> {
        let folder = self.config().contexts_dir();
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
            .with_context(|| format!("read {}", folder.display()))?
            .filter_map(|e| Some(e.ok()?.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")))
            .collect();
        paths.sort();
        for path in paths {
            let opened = ContextConfig::load(&path)
                .map_err(ContextError::from)
                .and_then(|config| self.open_context(config));
            if let Err(e) = opened {
                tracing::error!("{}: not started: {e}", path.display());
                let name = path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                self.broken.lock().insert(name, e.to_string());
            }
        }
        Ok(())
    }

    /// As [`Node::add_context`]; one that is damaged is kept as that.
    fn open_context(self: &Arc<Self>, config: ContextConfig) -> Result<(), ContextError> {
        let id = config.id;
        let place = Place::open(config, self)?;
        match Context::open(&place, self, false) {
            Ok(context) => drop(self.contexts.write().insert(id, context)),
            Err(ContextError::Journal(JournalError::Damaged(found))) => {
                let damaged = Arc::new(Damaged::new(place, &found));
                tracing::error!("{}", damaged.sentence());
                self.damaged.lock().insert(id, Arc::clone(&damaged));
                damage::keep_asking(self, &damaged);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// A damaged context by its primary or failover id.
    #[must_use]
    pub fn damaged_context(&self, id: u32) -> Option<Arc<Damaged>> {
        let damaged = self.damaged.lock();
        let derived = || damaged.values().find(|d| d.config().failover_id == id);
        damaged.get(&id).or_else(derived).cloned()
    }

    /// All damaged contexts.
    #[must_use]
    pub fn damaged(&self) -> Vec<Arc<Damaged>> {
        self.damaged.lock().values().cloned().collect()
    }

    /// Whether this one still waits to be mended.
    pub(crate) fn is_damaged(&self, damaged: &Arc<Damaged>) -> bool {
        let all = self.damaged.lock();
        all.get(&damaged.config().id)
            .is_some_and(|d| Arc::ptr_eq(d, damaged))
    }

    /// A damaged context is whole again.
    pub(crate) fn mended(&self, damaged: &Arc<Damaged>, context: Arc<Context>) {
        let id = damaged.config().id;
        if self.damaged.lock().remove(&id).is_some() {
            self.contexts.write().insert(id, context);
        } else {
            // The node ends meanwhile.
            context.shut_down();
        }
    }

    /// Opens a context whose file is in place and starts it unless the operator stopped it.
    ///
    /// # Errors
    /// When its journal or volumes cannot be opened.
    pub fn add_context(self: &Arc<Self>, config: ContextConfig) -> Result<Arc<Context>, ContextError> {
        let id = config.id;
        let context = Context::open(&Place::open(config, self)?, self, true)?;
        self.contexts.write().insert(id, Arc::clone(&context));
        Ok(context)
    }

    /// Takes a context out of service, for a `protect` that failed half-way.
    pub fn remove_context(&self, id: u32) {
        if let Some(context) = self.contexts.write().remove(&id) {
            context.shut_down();
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.config.read().name.clone()
    }

    /// Its configuration as of now.
    #[must_use]
    pub fn config(&self) -> NodeConfig {
        self.config.read().clone()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// Its hooks, as configured now.
    #[must_use]
    pub fn hooks(&self) -> Hooks {
        Hooks::of(&self.config(), &self.config_path)
    }

    /// A context's role or state is another one now. Its hooks run by themselves, in the order of the changes: a host that is
    /// fenced must not wait for them.
    pub fn tell_state_changed(&self, facts: Facts) {
        // The other end lives as long as the node.
        let _ = self.state_changes.send(facts);
    }

    /// Changes the configuration, file first.
    ///
    /// # Errors
    /// When the file cannot be written; nothing changed then.
    pub fn change_config(&self, change: impl FnOnce(&mut NodeConfig)) -> Result<(), ConfigError> {
        let mut config = self.config.write();
        let mut changed = config.clone();
        change(&mut changed);
        changed.save(&self.config_path)?;
        self.peers.set_pins(&changed);
        *config = changed;
        Ok(())
    }

    /// A context by its primary or failover id.
    #[must_use]
    pub fn context(&self, id: u32) -> Option<Arc<Context>> {
        let contexts = self.contexts.read();
        contexts
            .get(&id)
            .or_else(|| contexts.values().find(|c| c.failover_id() == id))
            .cloned()
    }

    /// Whether this node has or had anything of a context, in working order or not.
    #[must_use]
    pub fn knows_of(&self, id: u32) -> bool {
        let config = self.config();
        self.context(id).is_some()
            || self.damaged_context(id).is_some()
            || config.contexts_dir().join(format!("{id}.toml")).exists()
            || config.state_dir.join(format!("c{id}")).exists()
    }

    /// Contexts that could not be opened: the name of their file, and why.
    #[must_use]
    pub fn broken(&self) -> Vec<(String, String)> {
        self.broken
            .lock()
            .iter()
            .map(|(name, why)| (name.clone(), why.clone()))
            .collect()
    }

    /// All contexts, by id.
    #[must_use]
    pub fn contexts(&self) -> Vec<Arc<Context>> {
        self.contexts.read().values().cloned().collect()
    }

    /// Primary ids.
    #[must_use]
    pub fn context_ids(&self) -> Vec<u32> {
        self.contexts.read().keys().copied().collect()
    }

    fn exports(self: &Arc<Self>) -> NodeExports {
        NodeExports::new(Arc::downgrade(self))
    }

    /// Makes the block device of an export; already so: answers it.
    ///
    /// # Errors
    /// As [`Attacher::attach`].
    pub fn attach(self: &Arc<Self>, export: &str, read_only: bool) -> Result<AttachedDevice, AttachError> {
        let identity = self.exports().identity(export);
        self.attacher.attach(export, identity, read_only)
    }

    /// Devices whose exports are not what they were, or have failed, do not outlive this daemon.
    pub(crate) fn disown(self: &Arc<Self>) {
        let disown = |node: &Arc<Self>| {
            let exports = node.exports();
            node.attacher
                .disown(|export, identity| exports.is(export, identity))
        };
        if !self.attacher.has_helper() {
            // Where it could not be written down the device is cut off at once.
            if let Err(e) = disown(self) {
                tracing::error!("devices of what failed: {e}");
            }
            return;
        }
        let failed = self.contexts().into_iter();
        let failed = failed.filter(|context| context.journal.poisoned().is_some());
        let raised: Vec<_> = failed.map(|context| self.epochs.raise(context.id().0)).collect();
        if let Some(e) = raised.into_iter().find_map(Result::err) {
            tracing::error!("the epoch of what failed is not written down: {e}");
            // It may be this daemon's end: the first time is now.
            if let Err(e) = disown(self) {
                tracing::error!("devices of what failed: {e}");
                again_and_again(self, "devices of what failed", disown);
            }
        }
    }

    /// Which devices of a context are of before a failure.
    #[must_use]
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Makes and undoes block devices.
    #[must_use]
    pub fn attacher(&self) -> &Attacher {
        &self.attacher
    }

    /// The other nodes.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Commands under way, and the log of them.
    #[must_use]
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Held by a command that makes a context.
    pub(crate) fn protecting(&self) -> &CommandLock {
        &self.protecting
    }

    /// When the daemon started.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// This host's clock.
    #[must_use]
    pub fn clock(&self) -> Arc<HostClock> {
        Arc::clone(&self.clock)
    }

    /// When the daemon was last seen alive before this start.
    #[must_use]
    pub fn last_alive(&self) -> Option<Timestamp> {
        self.last_alive
    }

    /// What this node says of itself when it pairs.
    #[must_use]
    pub fn card(&self) -> wire::NodeCard {
        wire::NodeCard {
            name: self.name(),
            endpoints: self.endpoint().into_iter().collect(),
        }
    }

    /// Where peers reach this node: its listen address, with the host's name where that is "any address".
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        let address = self.config().listen.peer?;
        let (host, port) = address.rsplit_once(':')?;
        if host == "0.0.0.0" || host == "[::]" {
            return Some(format!("{}:{port}", host_name()));
        }
        Some(address)
    }

    /// Adds a host that has proven itself, or renews its endpoints. What the node's file allows it stays.
    ///
    /// # Errors
    /// When the name is ours or that of another key, or the file cannot be written. Who was shown a pairing string may
    /// join, and not step into the place of a host that is there.
    pub(crate) fn learn_host(&self, mut host: HostConfig) -> Result<(), String> {
        if host.name == self.name() {
            return Err(format!(
                "both nodes are called {}: name one otherwise (backstay init --name)",
                host.name
            ));
        }
        if let Some(there) = self.config().host(&host.name) {
            if there.identity != host.identity {
                return Err(format!(
                    "{} knows a host {} with another identity: take its [[host]] out of the node's file and start it again, or name the new one \
                     otherwise (backstay init --name)",
                    self.name(),
                    host.name
                ));
            }
            host.backings.clone_from(&there.backings);
        }
        self.change_config(|config| {
            config.hosts.retain(|h| h.name != host.name);
            config.hosts.push(host);
        })
        .map_err(|e| e.to_string())
    }

    /// Takes the configuration of a context from its production and becomes its recovery.
    pub(crate) fn take_context(self: &Arc<Self>, asker: &str, text: &[u8]) -> Result<String, String> {
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        let config =
            ContextConfig::from_text(Path::new("(from the peer)"), text).map_err(|e| e.to_string())?;
        let name = self.name();
        if config.recovery_node() != name {
            return Err(format!(
                "context {} names {} as its recovery, not {name}",
                config.id,
                config.recovery_node()
            ));
        }
        if config.production != asker {
            return Err(format!(
                "context {} names {} as its production: {asker} cannot bring it",
                config.id, config.production
            ));
        }
        self.check_places(asker, &config)?;
        let _taking = self.taking.lock();
        if let Some(there) = self
            .context(config.id)
            .or_else(|| self.context(config.failover_id))
        {
            if there.config == config {
                return Ok(self.backings(&config));
            }
            return Err(format!("{name} has another context {}", there.id()));
        }
        let path = self.config().contexts_dir().join(format!("{}.toml", config.id));
        // One that could not be opened keeps its file and its name.
        if path.exists() || self.damaged_context(config.failover_id).is_some() {
            return Err(format!(
                "{name} has a context {} that could not be opened: see its status",
                config.id
            ));
        }
        for (_, volume) in config.indexed() {
            let backing = volume.backing_on(&name, &self.config().state_dir, config.id);
            if backing.exists() && holds_data(&backing).map_err(|e| format!("{}: {e}", backing.display()))? {
                return Err(format!(
                    "{} exists and holds data; a replica would overwrite it: remove it, or name another file or device",
                    backing.display()
                ));
            }
        }
        config.save(&path).map_err(|e| e.to_string())?;
        let backings = self.backings(&config);
        if let Err(e) = self.add_context(config) {
            let _ = std::fs::remove_file(&path);
            return Err(e.to_string());
        }
        Ok(backings)
    }

    /// Whether a host may have its replicas where its context says.
    fn check_places(&self, asker: &str, config: &ContextConfig) -> Result<(), String> {
        let node = self.config();
        let host = node.host(asker);
        let named = config.volumes.iter().filter_map(|v| v.backing.get(&node.name));
        for path in named {
            if !host.is_some_and(|h| h.may_place(path)) {
                return Err(format!(
                    "{asker} may not place a replica at {}: leave its place to {}, or allow the folder there ([[host]] backings of {asker})",
                    path.display(),
                    node.name
                ));
            }
        }
        Ok(())
    }

    /// Where the volumes of a context are on this node, a line each.
    fn backings(&self, config: &ContextConfig) -> String {
        let node = self.config();
        let path = |v: &VolumeConfig| {
            v.backing_on(&node.name, &node.state_dir, config.id)
                .display()
                .to_string()
        };
        config.volumes.iter().map(path).collect::<Vec<_>>().join("\n")
    }

    /// Starts serving exports: on the node's own socket and on those that were handed over, one of which may be it.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve_nbd(self: &Arc<Self>, handed_over: HandedOver) -> anyhow::Result<()> {
        let path = self.config().nbd_socket();
        let exports = Arc::new(self.exports());
        let server = nbd::Server::new(exports, nbd::Limits::default());
        let mut is_there = false;
        for (socket, at) in handed_over.unix {
            is_there |= at.as_ref() == Some(&path);
            tracing::info!(path = ?at, "NBD on a socket that was handed over");
            server.adopt_unix(socket)?;
        }
        let tcp = self.config().listen.nbd_tcp;
        if tcp.is_some() || !handed_over.tcp.is_empty() {
            let security = nbd_security(&self.config().nbd)?;
            for (socket, at) in handed_over.tcp {
                tracing::info!(%at, ?security, "NBD on a socket that was handed over");
                server.adopt_tcp(socket, security.clone())?;
            }
            if let Some(tcp) = tcp {
                let at = server.listen_tcp(tcp.parse().context("listen.nbd_tcp")?, security.clone())?;
                tracing::info!(%at, ?security, "NBD on TCP");
            }
        }
        if !is_there {
            server
                .listen_unix(&path, 0o600)
                .with_context(|| format!("listen at {}", path.display()))?;
        }
        *self.nbd.lock() = Some(server);
        Ok(())
    }

    /// Serves a client of NBD that is connected already; not when the node is stopping.
    pub(crate) fn serve_nbd_client(&self, client: UnixStream, default: nbd::DefaultExport) {
        if let Some(server) = &*self.nbd.lock() {
            server.serve(client, default);
        }
    }

    /// Connections that have an export open whose name `matches`.
    pub fn readers(&self, matches: impl Fn(&str) -> bool) -> usize {
        let nbd = self.nbd.lock();
        nbd.as_ref().map_or(0, |n| {
            n.open_connections()
                .into_iter()
                .filter(|(name, _)| matches(exports::plain(name).0))
                .map(|(_, n)| n)
                .sum()
        })
    }

    /// Rings when a command has changed something that `status` says.
    #[must_use]
    pub const fn status_changed(&self) -> &Bell {
        &self.status_changed
    }

    /// Writes what `status` says to the disk, for the time when nobody can be asked.
    pub fn keep_status(self: &Arc<Self>) {
        let path = status_file(&self.config().state_dir);
        let status = crate::ops::status::of(self, &self.contexts());
        if let Err(e) = format::keep_status(&path, &status) {
            tracing::warn!("{e}");
        }
    }

    /// Stops everything in order: no new request, then the contexts. With `for_a_while`, devices that wait for the next daemon
    /// stay, with what is mounted on them.
    pub fn shut_down(self: &Arc<Self>, for_a_while: bool) {
        self.peers.shut_down();
        self.damaged.lock().clear();
        // A mounted file system still holds writes that were never handed to us.
        self.disown();
        if let Err(e) = self.attacher.leave(for_a_while) {
            tracing::warn!("left attached: {e}");
        }
        if let Some(server) = self.nbd.lock().take() {
            server.stop();
        }
        for context in self.contexts() {
            context.shut_down();
        }
    }
}

/// What clients on TCP must do.
fn nbd_security(config: &NbdConfig) -> anyhow::Result<nbd::Security> {
    let tls = || {
        let files = config.files().map_err(|missing| {
            anyhow::anyhow!("NBD on TCP needs {missing}, or nbd.tls = \"none\": then whoever reaches the port may do everything")
        })?;
        nbd::Tls::load(&files).context("NBD on TCP")
    };
    Ok(match config.tls {
        TlsMode::None => nbd::Security::Plain,
        TlsMode::Offered => nbd::Security::Offered(tls()?),
        TlsMode::Required => nbd::Security::Required(tls()?),
    })
}

/// Where a node's last known status is.
pub(crate) fn status_file(state_dir: &Path) -> PathBuf {
    state_dir.join("status.json")
}

/// When the status was last kept: a daemon that runs keeps it.
fn last_alive(state_dir: &Path) -> Option<Timestamp> {
    let kept = std::fs::metadata(status_file(state_dir))
        .and_then(|m| m.modified())
        .ok()?;
    let age = kept.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(age.as_nanos()).ok().map(Timestamp)
}

/// The host's own name.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Whether a file or device holds anything but zeroes.
pub(crate) fn holds_data(path: &Path) -> std::io::Result<bool> {
    use model::ports::Medium;
    let medium = media::FileMedium::open(path, media::Create::Never)?;
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while let Some(data) = medium.next_data(at)? {
        at = data.start;
        let n = usize::try_from((data.end - at).min(buf.len() as u64)).unwrap_or(buf.len());
        medium.read_at(at, &mut buf[..n])?;
        if buf[..n].iter().any(|b| *b != 0) {
            return Ok(true);
        }
        at += n as u64;
    }
    Ok(false)
}
