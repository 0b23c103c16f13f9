//! The other nodes: our identity, whom we trust, the listener, and small requests between nodes.

use crate::{
    agent::{LinkHandle, aba},
    config::{HostConfig, NodeConfig},
    damage, jobs,
    node::Node,
    roles,
    strangers::{STRANGERS_MAX, Stranger, Strangers},
    verify,
};
use anyhow::Context as _;
use bytes::Bytes;
use model::{ContextId, Timestamp};
use parking_lot::Mutex;
use rustix::net::sockopt;
use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use wire::{
    Connection, ConnectionOptions, Dialer, Expect, Fingerprint, Hello, Identity, Incoming, Message, NodeCard,
    Outgoing, PairingCode, PairingDesk, PairingError, Pins, Purpose, RefuseCode, Request, Response, Tls,
    Welcome,
};

/// Request kind: take this context's configuration (its TOML) and keep its replica.
pub const CONFIGURE: u16 = 1;
/// Response code: done.
const DONE: u16 = 0;
/// Response code: refused, the body says why.
const REFUSED: u16 = 1;
/// What an older node says of a request that it does not know.
pub(crate) const UNKNOWN_HERE: &str = "is not known here";
/// How long a node may take to answer a request.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request to another node failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// No host of that name is known.
    #[error("{0} is not among the hosts of this node")]
    UnknownHost(String),
    /// It cannot be reached.
    #[error("{host} is not reachable: {source}")]
    Unreachable {
        /// The host.
        host: String,
        /// Why.
        source: wire::dial::DialError,
    },
    /// It refused.
    #[error("{host} refused: {text}")]
    Refused {
        /// The host.
        host: String,
        /// Its words.
        text: String,
    },
    /// The connection broke.
    #[error("{host}: {source}")]
    Connection {
        /// The host.
        host: String,
        /// How.
        source: wire::ConnError,
    },
    /// Its identity in the configuration is no fingerprint.
    #[error("identity of {host}: {text}")]
    Identity {
        /// The host.
        host: String,
        /// What is wrong.
        text: String,
    },
    /// It did not answer.
    #[error("{0} did not answer within {limit} s", limit = ANSWER_TIMEOUT.as_secs())]
    Silent(String),
}

/// Who we are and whom we trust.
pub struct Peers {
    tls: Tls,
    pins: Arc<Pins>,
    desk: PairingDesk,
    fingerprint: Fingerprint,
    runtime: tokio::runtime::Handle,
    known: Mutex<Vec<Fingerprint>>,
    strangers: Strangers,
    listener: Mutex<Option<LinkHandle>>,
}

/// Listens at an address that no interface needs to have yet: a node starts, and is looked at, with its network down (R37).
fn listen_at(address: &str) -> std::io::Result<TcpListener> {
    const BACKLOG: u32 = 1024;
    let address = address.to_socket_addrs()?.next();
    let address = address.ok_or(std::io::ErrorKind::AddrNotAvailable)?;
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Peers {
    /// Loads or makes the node's identity and pins the hosts of its configuration. Must be called within a runtime.
    pub(crate) fn open(config: &NodeConfig) -> anyhow::Result<Self> {
        let folder = config.state_dir.join("identity");
        media::make_folders(&config.state_dir, &folder)
            .with_context(|| format!("create {}", folder.display()))?;
        let identity = Arc::new(Identity::load_or_make(&folder)?);
        let fingerprint = identity.fingerprint();
        let pins = Pins::new([]);
        let peers = Self {
            tls: Tls::new(identity, Arc::clone(&pins))?,
            desk: PairingDesk::new(Arc::clone(&pins)),
            pins,
            fingerprint,
            runtime: tokio::runtime::Handle::current(),
            known: Mutex::default(),
            strangers: Strangers::default(),
            listener: Mutex::default(),
        };
        peers.set_pins(config);
        Ok(peers)
    }

    /// Trusts exactly the hosts of a configuration.
    pub(crate) fn set_pins(&self, config: &NodeConfig) {
        let wanted: Vec<Fingerprint> = config
            .hosts
            .iter()
            .filter_map(|h| h.identity.parse().ok())
            .collect();
        let mut known = self.known.lock();
        known
            .iter()
            .filter(|k| !wanted.contains(k))
            .for_each(|k| self.pins.remove(k));
        wanted.iter().for_each(|k| self.pins.add(*k));
        *known = wanted;
    }

    /// TLS with our identity and pins.
    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// The runtime of all connections.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Our own fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Starts listening for peers, if the node does.
    pub(crate) fn listen(&self, node: &Arc<Node>) -> anyhow::Result<()> {
        let Some(address) = node.config().listen.peer else {
            return Ok(());
        };
        let _inside = self.runtime.enter();
        let listener = listen_at(&address).with_context(|| format!("listen at {address} for peers"))?;
        let strangers = self.strangers.clone();
        let node = Arc::downgrade(node);
        *self.listener.lock() = Some(LinkHandle::spawn(&self.runtime, |mut stop| async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((tcp, from)) => {
                            let mut stranger = strangers.admit(from.ip());
                            let node = node.clone();
                            tokio::spawn(async move {
                                let from = from.to_string();
                                let Some(known) = let_in(&node, tcp, &from, &mut stranger).await else {
                                    return;
                                };
                                drop(stranger);
                                serve(node, known, from).await;
                            });
                        }
                        Err(e) => {
                            tracing::warn!("accepting a peer: {e}");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                    () = crate::agent::stopped(&mut stop) => return,
                }
            }
        }));
        Ok(())
    }

    /// Stops listening.
    pub(crate) fn shut_down(&self) {
        if let Some(listener) = self.listener.lock().take() {
            listener.stop();
        }
    }

    /// Opens a pairing and answers the one-time string.
    pub(crate) fn open_pairing(&self, endpoint: &str) -> Result<PairingCode, PairingError> {
        self.desk.open(Timestamp::now(), &self.fingerprint, endpoint)
    }

    /// Joins the node that printed a pairing string.
    pub(crate) fn join(
        &self,
        code: &PairingCode,
        own: NodeCard,
    ) -> Result<(Fingerprint, NodeCard), PairingError> {
        let endpoint = code.endpoint().to_owned();
        self.runtime.block_on(async {
            let tcp = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(&endpoint))
                .await
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))
                .flatten()
                .map_err(|e| PairingError::Refused(format!("{endpoint}: {e}")))?;
            wire::pairing::join(&self.tls, code, tcp, own).await
        })
    }

    /// Asks another node for something and waits for its answer.
    pub(crate) fn request(
        &self,
        node: &Node,
        host: &str,
        kind: u16,
        body: Bytes,
    ) -> Result<Bytes, PeerError> {
        let config = node.config();
        let found = config
            .host(host)
            .ok_or_else(|| PeerError::UnknownHost(host.to_owned()))?
            .clone();
        let name = config.name;
        self.runtime.block_on(async {
            tokio::time::timeout(ANSWER_TIMEOUT, self.ask(&found, name, kind, body))
                .await
                .unwrap_or_else(|_| Err(PeerError::Silent(host.to_owned())))
        })
    }

    /// As [`Peers::request`], within so long, and the connection stays: what the answer gives may be bound to it.
    pub(crate) fn line(
        &self,
        node: &Node,
        host: &str,
        kind: u16,
        body: Bytes,
        within: Duration,
    ) -> Result<(Bytes, Line), PeerError> {
        let config = node.config();
        let found = config
            .host(host)
            .ok_or_else(|| PeerError::UnknownHost(host.to_owned()))?
            .clone();
        let (answer, mut incoming, outgoing) = self.runtime.block_on(async {
            let asked = async {
                let (mut incoming, outgoing) = self.greet(&found, config.name).await?;
                let answer = exchange(&found.name, &mut incoming, &outgoing, 1, kind, body).await?;
                Ok((answer, incoming, outgoing))
            };
            tokio::time::timeout(within, asked)
                .await
                .unwrap_or_else(|_| Err(PeerError::Silent(host.to_owned())))
        })?;
        let (end, ended) = oneshot::channel::<(u16, Duration)>();
        let task = self.runtime.spawn(async move {
            // Reading answers the pings of the other side.
            let heard = async { while let Ok(Some(_)) = incoming.next().await {} };
            let end = tokio::select! {
                () = heard => return,
                end = ended => end,
            };
            if let Ok((kind, within)) = end {
                let last = exchange(&found.name, &mut incoming, &outgoing, 2, kind, Bytes::new());
                let _ = tokio::time::timeout(within, last).await;
                let _ = tokio::time::timeout(within, outgoing.shutdown("done")).await;
            }
        });
        let line = Line {
            end,
            task,
            runtime: self.runtime.clone(),
        };
        Ok((answer, line))
    }

    /// A connection to another node for many requests, one after the other.
    pub(crate) async fn caller(&self, node: &Node, host: &str) -> Result<Caller, PeerError> {
        let config = node.config();
        let found = config
            .host(host)
            .ok_or_else(|| PeerError::UnknownHost(host.to_owned()))?;
        let (incoming, outgoing) = self.greet(found, config.name.clone()).await?;
        Ok(Caller {
            host: host.to_owned(),
            incoming,
            outgoing,
            asked: 0,
        })
    }

    async fn ask(&self, host: &HostConfig, name: String, kind: u16, body: Bytes) -> Result<Bytes, PeerError> {
        let (mut incoming, outgoing) = self.greet(host, name).await?;
        let answer = exchange(&host.name, &mut incoming, &outgoing, 1, kind, body).await?;
        outgoing.shutdown("done").await;
        Ok(answer)
    }

    /// Dials a host and greets it.
    async fn greet(
        &self,
        host: &HostConfig,
        name: String,
    ) -> Result<(Incoming<TcpStream>, Outgoing), PeerError> {
        let key: Fingerprint = host
            .identity
            .parse()
            .map_err(|e: wire::fingerprint::FingerprintError| PeerError::Identity {
                host: host.name.clone(),
                text: e.to_string(),
            })?;
        let dialed = Dialer::new(host.endpoints.clone())
            .once(&self.tls, Expect::Key(key))
            .await
            .map_err(|source| PeerError::Unreachable {
                host: host.name.clone(),
                source,
            })?;
        let (incoming, outgoing) =
            Connection::new(dialed.stream, dialed.peer, ConnectionOptions::default()).split();
        let greeted = outgoing.send(Message::Hello(Hello::node(name))).await;
        greeted.map_err(|source| PeerError::Connection {
            host: host.name.clone(),
            source,
        })?;
        Ok((incoming, outgoing))
    }
}

/// A connection to another node for requests. Pings are only answered while one of them waits: it is not to be left alone
/// for long.
pub(crate) struct Caller {
    host: String,
    incoming: Incoming<TcpStream>,
    outgoing: Outgoing,
    asked: u64,
}

impl Caller {
    /// Asks, and waits for the answer.
    pub(crate) async fn ask(&mut self, kind: u16, body: Bytes) -> Result<Bytes, PeerError> {
        self.asked += 1;
        exchange(
            &self.host,
            &mut self.incoming,
            &self.outgoing,
            self.asked,
            kind,
            body,
        )
        .await
    }
}

/// A connection to another node that stays after its first answer.
pub(crate) struct Line {
    end: oneshot::Sender<(u16, Duration)>,
    task: JoinHandle<()>,
    runtime: tokio::runtime::Handle,
}

impl Line {
    /// Sends a last request, waits so long for its answer, and ends the connection. Not to be called on a worker of the
    /// runtime.
    pub(crate) fn end(self, kind: u16, within: Duration) {
        // An error means that the connection is gone already.
        if self.end.send((kind, within)).is_ok() {
            let _ = self.runtime.block_on(self.task);
        }
    }
}

/// One question and its answer.
async fn exchange(
    host: &str,
    incoming: &mut Incoming<TcpStream>,
    outgoing: &Outgoing,
    id: u64,
    kind: u16,
    body: Bytes,
) -> Result<Bytes, PeerError> {
    let broken = |source| PeerError::Connection {
        host: host.to_owned(),
        source,
    };
    let refused = |text: String| PeerError::Refused {
        host: host.to_owned(),
        text,
    };
    let request = Message::Request(Request { id, kind, body });
    outgoing.send(request).await.map_err(broken)?;
    loop {
        match incoming.next().await.map_err(broken)? {
            Some(Message::Response(r)) if r.id != id => {}
            Some(Message::Response(Response { code, body, .. })) => {
                return match code {
                    DONE => Ok(body),
                    _ => Err(refused(String::from_utf8_lossy(&body).into_owned())),
                };
            }
            Some(Message::Refuse(r)) => return Err(refused(r.text)),
            Some(_) => {}
            None => return Err(broken(wire::ConnError::Closed)),
        }
    }
}

/// Finds out who has connected; a node that comes to pair is served here.
async fn let_in(
    node: &Weak<Node>,
    tcp: TcpStream,
    from: &str,
    stranger: &mut Stranger,
) -> Option<wire::Accepted<TcpStream>> {
    let node = node.upgrade()?;
    if let Err(e) = wire::conn::prepare(&tcp) {
        tracing::debug!("{from}: {e}");
        return None;
    }
    let known = async {
        match node.peers().tls.accept(tcp).await {
            Ok(accepted) if accepted.purpose == Purpose::Pairing => {
                pair(&node, accepted).await;
                None
            }
            Ok(accepted) => Some(accepted),
            Err(e) => {
                tracing::warn!("{from}: not let in: {e}");
                None
            }
        }
    };
    tokio::select! {
        known = known => known,
        () = stranger.turned_out() => {
            tracing::warn!("{from}: turned out: {STRANGERS_MAX} others wait to be let in");
            None
        }
    }
}

/// Serves one connection from a peer.
async fn serve(node: Weak<Node>, accepted: wire::Accepted<TcpStream>, from: String) {
    let Some(node) = node.upgrade() else { return };
    let peer = accepted.peer;
    let (mut incoming, outgoing) =
        Connection::new(accepted.stream, peer, ConnectionOptions::default()).split();
    let hello = match incoming.next().await {
        Ok(Some(Message::Hello(hello))) => hello,
        Ok(_) => return,
        Err(e) => return tracing::debug!("{from}: {e}"),
    };
    let known = node
        .config()
        .hosts
        .into_iter()
        .find(|h| h.identity.parse().ok() == Some(peer))
        .map(|h| h.name);
    if hello.context == ContextId(0) {
        return answer(&node, &known.unwrap_or_default(), incoming, outgoing).await;
    }
    let context = node.context(hello.context.0).filter(|c| c.id() == hello.context);
    match context {
        // A pinned node may only speak for itself, and only for a context that it is the peer of.
        Some(context) if known.as_deref() == Some(context.peer_name()) => {
            let runtime = node.peers().runtime.clone();
            drop(node);
            let serving = Arc::clone(&context);
            let link = LinkHandle::spawn(&runtime, |stop| {
                aba::serve(serving, Message::Hello(hello), incoming, outgoing, stop)
            });
            context.set_link(link);
        }
        _ => {
            let damaged = node.damaged_context(hello.context.0);
            let (code, text) = match damaged.filter(|d| known.as_deref() == Some(d.peer())) {
                Some(damaged) => {
                    damaged.ring();
                    let text = format!("context {} is damaged on {}", hello.context, node.name());
                    (RefuseCode::Internal, text)
                }
                None => {
                    let text = format!("context {} is not one of {} here", hello.context, hello.node);
                    (RefuseCode::Context, text)
                }
            };
            let refuse = Message::refuse(code, model::Term(0), text);
            let _ = outgoing.send(refuse).await;
            outgoing.shutdown("refused").await;
        }
    }
}

async fn pair(node: &Arc<Node>, accepted: wire::Accepted<TcpStream>) {
    let joining = match node.peers().desk.receive(Timestamp::now(), accepted).await {
        Ok(joining) => joining,
        Err(e) => return tracing::warn!("pairing: {e}"),
    };
    let host = HostConfig {
        name: joining.card().name.clone(),
        endpoints: joining.card().endpoints.clone(),
        identity: joining.fingerprint().to_string(),
        backings: Vec::new(),
    };
    match node.learn_host(host) {
        Ok(()) => {
            let card = node.card();
            if let Err(e) = joining.accept(card).await {
                tracing::warn!("pairing: {e}");
            }
        }
        Err(e) => joining.refuse(&e).await,
    }
}

/// Answers requests of a pinned node.
async fn answer(node: &Arc<Node>, asker: &str, mut incoming: Incoming<TcpStream>, outgoing: Outgoing) {
    if outgoing
        .send(Message::Welcome(Welcome::node(node.name())))
        .await
        .is_err()
    {
        return;
    }
    // What was lent over this connection ends with it.
    let mut lent = Vec::new();
    while let Ok(Some(message)) = incoming.next().await {
        let Message::Request(request) = message else {
            continue;
        };
        let node = Arc::clone(node);
        let (kind, body, asker) = (request.kind, request.body, asker.to_owned());
        let done = match kind {
            roles::lock::LOCK => crate::agent::blocking(move || roles::lock::lend(&node, &asker, &body))
                .await
                .map(|(answer, lease)| {
                    lent.extend(lease);
                    answer
                }),
            roles::lock::UNLOCK => {
                lent.clear();
                Ok(Bytes::new())
            }
            _ => done_for(node, asker, kind, body).await,
        };
        let (code, body) = match done {
            Ok(body) => (DONE, body),
            Err(text) => (REFUSED, Bytes::from(text)),
        };
        if outgoing
            .send(Message::Response(Response {
                id: request.id,
                code,
                body,
            }))
            .await
            .is_err()
        {
            return;
        }
    }
    outgoing.shutdown("done").await;
}

/// Answers one request that leaves nothing behind on its connection.
async fn done_for(node: Arc<Node>, asker: String, kind: u16, body: Bytes) -> Result<Bytes, String> {
    crate::agent::blocking(move || match kind {
        CONFIGURE => node.take_context(&asker, &body).map(Bytes::from),
        damage::FRAMES => damage::answer(&node, &asker, &body),
        roles::peer::STANDING
        | roles::peer::STALE
        | roles::peer::GIVE_UP
        | roles::peer::ACTIVATE
        | roles::peer::EXTEND
        | roles::peer::PAIR => roles::peer::answer(&node, &asker, kind, &body),
        verify::COMPARE => verify::answer(&node, &asker, &body),
        jobs::log::ENTRIES => jobs::log::answer(&node, &asker, &body),
        _ => Err(format!("request {kind} {UNKNOWN_HERE}")),
    })
    .await
}
