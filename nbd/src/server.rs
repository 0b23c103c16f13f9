//! Listening sockets, the register of connections, and how all of it stops.

use crate::{
    DefaultExport, Exports, Limits, connection,
    listen::{self, ListenError, Listener},
    readers::Budget,
    tls::Tls,
    transport::{Socket, Transport},
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a stop waits for connections that were cut: their threads may be inside an export.
const CUT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new connection waits for those that were turned out: their threads may be inside an export.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept, which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a socket says to TLS: the three modes of the protocol.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// There is none (`NOTLS`): whoever reaches the socket may do everything.
    #[default]
    Plain,
    /// At the client's choice (`SELECTIVETLS`), but for exports that [may not be plain](Exports::may_be_plain): these are
    /// neither shown nor opened before.
    Offered(Tls),
    /// Before anything else (`FORCEDTLS`).
    Required(Tls),
}

/// How a client is received.
pub(crate) struct Reception {
    pub(crate) default: Option<DefaultExport>,
    pub(crate) security: Security,
}

/// A server of exports. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<(Arc<Listener>, JoinHandle<()>)>>,
}

/// What all threads of a server share.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) limits: Limits,
    pub(crate) stopping: AtomicBool,
    /// Threads for slow reads that connections may still have.
    pub(crate) readers: Arc<Budget>,
    register: Mutex<Register>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Register {
    last_id: u64,
    open: HashMap<u64, Open>,
}

struct Open {
    /// The socket, also of a connection in TLS: to end it is all that is done here.
    transport: Arc<dyn Transport>,
    stage: Stage,
}

/// How far a connection has come.
enum Stage {
    /// It can be turned out for a newer one: nobody knows who it is, or whether it will ever ask for anything.
    Negotiating,
    /// It was turned out, and ends.
    TurnedOut,
    /// It has an export, by this name.
    Serving(String),
}

impl Register {
    /// Makes room for one more; false when there is none. Who was turned out counts no more as a connection, but as a thread
    /// that ends: there are never twice as many of those threads as connections.
    fn make_room(&mut self, limit: usize) -> bool {
        let full = self.open.len() - self.leaving() >= limit;
        self.has_thread(limit) && (!full || self.turn_out_oldest())
    }

    fn has_thread(&self, limit: usize) -> bool {
        self.open.len() < limit.saturating_mul(2)
    }

    /// How many were turned out and have not ended.
    fn leaving(&self) -> usize {
        let turned_out = |o: &&Open| matches!(o.stage, Stage::TurnedOut);
        self.open.values().filter(turned_out).count()
    }

    /// Ends the connection that has negotiated longest.
    fn turn_out_oldest(&mut self) -> bool {
        let negotiating = |(_, o): &(&u64, &mut Open)| matches!(o.stage, Stage::Negotiating);
        let oldest = self
            .open
            .iter_mut()
            .filter(negotiating)
            .min_by_key(|(id, _)| **id);
        let Some((id, open)) = oldest else {
            return false;
        };
        tracing::debug!(connection = id, "too many connections: it negotiates no more");
        open.stage = Stage::TurnedOut;
        open.transport.close();
        true
    }
}

impl Server {
    /// A server that listens nowhere yet.
    pub fn new(exports: Arc<dyn Exports>, limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared::new(exports, limits)),
            listeners: Mutex::default(),
        }
    }

    /// Listens on a unix socket that only those may connect to whom `mode` lets write. A socket that a dead server left
    /// is replaced; that of a living one is not. The file is removed when the server stops.
    ///
    /// # Errors
    /// When the socket cannot be made, or somebody listens there.
    pub fn listen_unix(&self, path: &Path, mode: u32) -> Result<(), ListenError> {
        self.listen(listen::unix(path, mode)?, Security::Plain)
    }

    /// Listens on TCP and tells where: port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen_tcp(&self, addr: SocketAddr, security: Security) -> Result<SocketAddr, ListenError> {
        let (listener, bound) = listen::tcp(addr)?;
        self.listen(listener, security)?;
        Ok(bound)
    }

    /// Listens on a unix socket that somebody else made (socket activation). Its file and the socket itself stay when the
    /// server stops: who connects later waits for the next server.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn adopt_unix(&self, listener: UnixListener) -> Result<(), ListenError> {
        self.listen(listen::adopted_unix(listener)?, Security::Plain)
    }

    /// Listens on a TCP socket that somebody else made, as [`Server::adopt_unix`].
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn adopt_tcp(&self, listener: TcpListener, security: Security) -> Result<(), ListenError> {
        self.listen(listen::adopted_tcp(listener)?, security)
    }

    /// Serves one client that is connected already. The empty name, by which it may ask for whatever is the default, means
    /// this export.
    pub fn serve(&self, client: UnixStream, default: DefaultExport) {
        let transport = Arc::new(Socket::unix(client.into()));
        let reception = Reception {
            default: Some(default),
            security: Security::Plain,
        };
        self.shared.admit(transport, reception);
    }

    fn listen(&self, listener: Listener, security: Security) -> Result<(), ListenError> {
        let listener = Arc::new(listener);
        let mut listeners = self.listeners.lock();
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(ListenError::Stopped);
        }
        let (shared, accepting) = (self.shared.clone(), listener.clone());
        let thread = thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept(&shared, &accepting, &security))
            .map_err(ListenError::Thread)?;
        listeners.push((listener, thread));
        Ok(())
    }

    /// Open connections by the name of their export. A connection that ended has dropped its export before.
    pub fn open_connections(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for open in self.shared.register.lock().open.values() {
            if let Stage::Serving(name) = &open.stage {
                *counts.entry(name.clone()).or_insert(0) += 1;
            }
        }
        counts
    }

    /// Ends the connections of an export: what they have sent is carried out and answered, then they close. Returns how
    /// many there were; they may still be closing.
    pub fn disconnect(&self, export: &str) -> usize {
        let register = self.shared.register.lock();
        let of_it = register
            .open
            .values()
            .filter(|o| matches!(&o.stage, Stage::Serving(name) if name == export));
        of_it.map(|o| o.transport.close_read()).count()
    }

    /// Accepts nobody any more, carries out and answers what has arrived, and ends all connections; those that take longer
    /// than [`Limits::drain_timeout`] are cut. Returns how many connections still had not ended after that, which only an
    /// export that does not return or answer can cause. Does nothing the second time.
    ///
    /// A request that is not carried out gets no answer, not an error: a client that connects again takes an error for final
    /// and sends again what was not answered.
    pub fn stop(&self) -> usize {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for (listener, thread) in self.listeners.lock().drain(..) {
            listener.close();
            // It panics only if it could not report an error, which has been logged.
            let _ = thread.join();
        }
        let left = self
            .shared
            .end_all(self.shared.limits.drain_timeout, |t| t.close_read());
        if left == 0 {
            return 0;
        }
        tracing::warn!(
            connections = left,
            "connections are cut: they did not end in time"
        );
        self.shared.end_all(CUT_TIMEOUT, |t| t.close())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    pub(crate) fn new(exports: Arc<dyn Exports>, limits: Limits) -> Self {
        Self {
            exports,
            readers: Budget::new(limits.readers_max),
            limits,
            stopping: AtomicBool::new(false),
            register: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Does something to all connections, then waits for them to end. Returns how many did not.
    fn end_all(&self, limit: Duration, act: impl Fn(&dyn Transport)) -> usize {
        let deadline = Instant::now() + limit;
        let mut register = self.register.lock();
        register.open.values().for_each(|o| act(&*o.transport));
        while !register.open.is_empty() {
            if self.ended.wait_until(&mut register, deadline).timed_out() {
                break;
            }
        }
        register.open.len()
    }

    /// Starts a connection, unless there are too many.
    fn admit(self: &Arc<Self>, transport: Arc<dyn Transport>, reception: Reception) {
        let id = {
            let mut register = self.register.lock();
            // Those who were turned out go in a moment; whoever comes amid a burst is not the one to suffer for it.
            let until = Instant::now() + LEAVE_TIMEOUT;
            while !register.has_thread(self.limits.connections_max)
                && register.leaving() > 0
                && !self.ended.wait_until(&mut register, until).timed_out()
            {}
            // Read under the lock of the register: a stop either finds the connection in it or is seen here.
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if !register.make_room(self.limits.connections_max) {
                tracing::warn!(
                    limit = self.limits.connections_max,
                    "too many connections: one is turned away"
                );
                return;
            }
            register.last_id += 1;
            let id = register.last_id;
            register.open.insert(
                id,
                Open {
                    transport: transport.clone(),
                    stage: Stage::Negotiating,
                },
            );
            id
        };
        let registered = Registered {
            shared: self.clone(),
            id,
        };
        let spawned = thread::Builder::new()
            .name(format!("nbd-{id}"))
            .spawn(move || registered.serve(transport, reception));
        if let Err(e) = spawned {
            tracing::error!(error = %e, "no thread for a connection: it is turned away");
        }
    }
}

/// A connection in the register; leaves it when dropped, also by a panic of an export.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Registered {
    fn serve(self, transport: Arc<dyn Transport>, reception: Reception) {
        let served = connection::run(transport, &self.shared, reception, |name| {
            tracing::debug!(connection = self.id, export = name, "connected");
            if let Some(open) = self.shared.register.lock().open.get_mut(&self.id)
                && matches!(open.stage, Stage::Negotiating)
            {
                open.stage = Stage::Serving(name.to_owned());
            }
        });
        match served {
            Ok(()) => tracing::debug!(connection = self.id, "ended"),
            Err(e) => tracing::debug!(connection = self.id, error = %e, "ended by an error"),
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let open = self.shared.register.lock().open.remove(&self.id);
        if let Some(open) = open {
            open.transport.close();
        }
        self.shared.ended.notify_all();
    }
}

fn accept(shared: &Arc<Shared>, listener: &Listener, security: &Security) {
    loop {
        match listener.accept() {
            Ok(None) => return,
            Ok(Some(transport)) => {
                let reception = Reception {
                    default: None,
                    security: security.clone(),
                };
                shared.admit(transport, reception);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                // Whoever only waits may be what the descriptors are lacking for.
                shared.register.lock().turn_out_oldest();
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}
