//! LCA: ships redo from production to recovery.
//!
//! # Overview
//!
//! One task a context. It dials the recovery host until it is reached, greets, lets the journal judge the peer's position,
//! and then sends frames as they become durable, each container's seal right behind its last frame, each copy right behind
//! the frame with its stub. [`wire::Sender`] is the machine; this file moves messages, journal bytes and bells to and from it.
//!
//! # Invariants
//!
//! - Only durable frames are sent (`sent ≤ durable`, asserted by the machine).
//! - A seal is sent before any frame of the next container, and a completion of the copies only right behind a seal, so that
//!   the first consistent point is a boundary.
//! - Where the journal does not hold what comes next, because it gave way to the state map, the stream says so
//!   ([`wire::Jump`]) and goes on behind it; a completion follows only when nothing is stale.
//!
//! What the peer has is told to the tap, too, whose answers may wait for it ([`journal::tap::PeerRule`]).

use super::{
    Below, DEFECT, LinkError, LinkHandle, blocking, caught, config_digest, copier,
    copier::{Ready, Table},
    meeting,
    meeting::{Acquaintance, PeerSet, end_of, over_the_gap},
    seal_of, stopped,
};
use crate::{
    context::Context,
    peer::{PeerError, UNKNOWN_HERE},
    roles::{self, Standing, row::standing_of},
};
use journal::{Journal, JournalError, tap::Tap};
use model::{ByteRange, GenId, LfcId, RecordBody, Role, Term, Timestamp, VolumeIndex, WriteSeq};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use wire::{
    ConnError, Connection, ConnectionOptions, Dialer, Expect, Hello, Jump, Message, Outgoing, Position,
    RefuseCode, Resume, Sender, SenderAction, SenderOptions, Version,
};

/// Starts the link of a context.
pub fn start(context: &Arc<Context>, tap: &Arc<Tap>) -> LinkHandle {
    let (context, tap) = (Arc::clone(context), Arc::clone(tap));
    tap.expect_peer();
    let runtime = context.node().peers().runtime().clone();
    LinkHandle::spawn(&runtime, |stop| run(context, tap, stop))
}

async fn run(context: Arc<Context>, tap: Arc<Tap>, mut stop: watch::Receiver<bool>) {
    let node = context.node();
    let Some(host) = node.config().host(context.peer_name()).cloned() else {
        context.set_peer(
            false,
            Some(format!(
                "{} is not among the hosts of this node",
                context.peer_name()
            )),
        );
        return;
    };
    let key = match host.identity.parse() {
        Ok(key) => key,
        Err(e) => return context.set_peer(false, Some(format!("identity of {}: {e}", host.name))),
    };
    let mut dialer = Dialer::new(host.endpoints.clone());
    context.set_peer(false, None);
    loop {
        let tls = node.peers().tls();
        let unreached = |e: &wire::dial::DialError| {
            tracing::debug!("{}: {e}", host.name);
            // What it said when it could be reached is not how it is now.
            let peer = context.peer();
            if peer.refused.is_some() || peer.failed.is_some() {
                context.set_peer(false, None);
                context.set_peer_failed(None);
            }
        };
        let dialed = tokio::select! {
            dialed = dialer.until_reached(tls, Expect::Key(key), unreached) => dialed,
            () = stopped(&mut stop) => break,
        };
        let endpoint = dialed.endpoint;
        let connection = Connection::new(dialed.stream, dialed.peer, ConnectionOptions::default());
        let ended = Link::new(&context, &tap).run(connection, &mut stop).await;
        // What fails behind a welcome, here or there, would else be tried again many times a second.
        if context.peer().connected && ended.as_ref().err().is_none_or(LinkError::is_of_path) {
            dialer.welcomed();
        }
        let mut failed = None;
        let refused = match ended {
            Ok(()) => None,
            Err(e) if e.is_of_path() => {
                tracing::info!(
                    context = context.id().0,
                    peer = host.name,
                    "link over {endpoint} ended: {e}"
                );
                if e.blames_path() {
                    dialer.avoid(endpoint);
                }
                None
            }
            Err(LinkError::Refused(text)) => Some(text),
            Err(LinkError::Failed(text)) => {
                failed = Some(text.clone());
                Some(text)
            }
            Err(e) => {
                tracing::warn!(context = context.id().0, peer = host.name, "the link ended: {e}");
                Some(format!("the link to {} ended: {e}", host.name))
            }
        };
        tap.peer_lost();
        context.set_peer(false, refused);
        context.set_peer_failed(failed);
        if *stop.borrow() || context.journal.poisoned().is_some() || context.standing() == Standing::Fenced {
            break;
        }
        tokio::select! {
            () = dialer.pause() => {}
            () = stopped(&mut stop) => break,
        }
    }
}

/// What is said of a peer whose context an operator has stopped.
pub(crate) fn stopped_on(peer: &str) -> String {
    format!("context is stopped on {peer}")
}

/// Time between two words to the peer about the copies.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long the reader of a connection that a send found closed may take to say what became of it.
const WHY_WITHIN: Duration = Duration::from_secs(1);

/// How long a peer that owes us acknowledgements may say nothing before the path to it is doubted; pings are not counted.
const UNANSWERED_FOR: Duration = Duration::from_secs(10);

/// What a connection's reader ended with, if that was a failure.
async fn last_word(messages: &mut mpsc::Receiver<Result<Option<Message>, ConnError>>) -> Option<ConnError> {
    loop {
        match messages.recv().await? {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(e) => return Some(e),
        }
    }
}

/// One connection.
struct Link {
    context: Arc<Context>,
    tap: Arc<Tap>,
    journal: Arc<Journal>,
    table: Arc<Table>,
    /// The container whose frames were sent last and whose seal was not.
    unsealed: Option<(GenId, LfcId)>,
    completing: bool,
    /// The peer may not be told that all is there before it has this record.
    completes_behind: WriteSeq,
    /// When the peer was last told how far the copies are.
    told: Option<Instant>,
    /// When the peer last said anything.
    heard: Instant,
    copier: Option<std::thread::JoinHandle<()>>,
    /// What copies find there.
    peer: copier::Peer,
}

impl Link {
    fn new(context: &Arc<Context>, tap: &Arc<Tap>) -> Self {
        Self {
            context: Arc::clone(context),
            tap: Arc::clone(tap),
            journal: Arc::clone(&context.journal),
            table: Arc::default(),
            unsealed: None,
            completing: false,
            completes_behind: WriteSeq(0),
            told: None,
            heard: Instant::now(),
            copier: None,
            peer: copier::Peer::Old,
        }
    }

    async fn run(
        mut self,
        connection: Connection<tokio::net::TcpStream>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), LinkError> {
        let (mut incoming, outgoing) = connection.split();
        // Acknowledgements are read by a task of their own, so that a full outgoing queue cannot keep us from hearing them.
        let (heard, mut messages) = mpsc::channel(1024);
        let reader = tokio::spawn(async move {
            loop {
                let next = incoming.next().await;
                let last = !matches!(next, Ok(Some(_)));
                if heard.send(next).await.is_err() || last {
                    return;
                }
            }
        });
        let conversation = caught(self.converse(&mut messages, &outgoing, stop)).await;
        let mut result = conversation.unwrap_or_else(|panic| {
            // One of the conversation alone costs the link; what the journal or the tap left half done costs the context.
            if panic.is::<Below>() {
                self.context.broken("link");
            }
            Err(LinkError::Defect)
        });
        if matches!(result, Err(LinkError::Connection(ConnError::Closed))) {
            // The reader knows why.
            let why = tokio::time::timeout(WHY_WITHIN, last_word(&mut messages)).await;
            result = why.ok().flatten().map_or(result, |why| Err(why.into()));
        }
        // The peer may have given up first, a moment before us.
        let is_unanswered = self.is_owed() && self.heard.elapsed() >= UNANSWERED_FOR;
        let result = match result {
            Err(e @ (LinkError::Connection(_) | LinkError::Ended)) if is_unanswered => {
                Err(LinkError::Unanswered(self.heard.elapsed().as_secs(), Box::new(e)))
            }
            result => result,
        };
        self.table.end();
        // It ends after the copy it is at; a context that stops must not leave it at work on closed volumes.
        if let Some(copier) = self.copier.take() {
            let _ = blocking(move || copier.join()).await;
        }
        outgoing.shutdown("the link ends").await;
        reader.abort();
        result
    }

    /// Whether anything durable waits for the peer's acknowledgement.
    fn is_owed(&self) -> bool {
        self.journal.cursors().received_by_peer < self.journal.line_cursors().1
    }

    fn hello(&self) -> Result<Hello, JournalError> {
        let row = self.context.row();
        // Its term is that of the host that fenced it: it would take part with it, and both would stop.
        if standing_of(&row) == Standing::Fenced {
            return Err(JournalError::Refused("the context is fenced here".into()));
        }
        Ok(Hello {
            oldest: Version::OLDEST as u16,
            newest: Version::NEWEST as u16,
            context: self.context.id(),
            node: self.context.node_name().to_owned(),
            role: Role::Production,
            term: row.term,
            durable: end_of(&self.journal)?,
            config: config_digest(&self.context.config),
            instance: self.context.instance(),
        })
    }

    async fn converse(
        &mut self,
        messages: &mut mpsc::Receiver<Result<Option<Message>, ConnError>>,
        outgoing: &Outgoing,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), LinkError> {
        let (mut durable, mut sealed) = (self.context.bells.durable.ear(), self.context.bells.sealed.ear());
        let (mut sender, greeting) = Sender::new(SenderOptions::default(), self.hello()?);
        self.act(&mut sender, vec![greeting], outgoing).await?;
        loop {
            self.pump(&mut sender, outgoing).await?;
            tokio::select! {
                message = messages.recv() => {
                    let message = message.ok_or(LinkError::Ended)??.ok_or(LinkError::Ended)?;
                    self.heard = Instant::now();
                    let actions = sender.receive(Timestamp::now(), message)?;
                    self.act(&mut sender, actions, outgoing).await?;
                }
                () = durable.listen() => {
                    if let Some(error) = self.journal.poisoned() {
                        return Err(error.into());
                    }
                }
                () = sealed.listen() => {}
                () = stopped(stop) => return Ok(()),
            }
            let (appended, durable) = self.journal.line_cursors();
            let actions = sender.journal(appended, durable);
            self.act(&mut sender, actions, outgoing).await?;
        }
    }

    async fn act(
        &mut self,
        sender: &mut Sender,
        actions: Vec<SenderAction>,
        outgoing: &Outgoing,
    ) -> Result<(), LinkError> {
        for action in actions {
            match action {
                SenderAction::Send(message) => outgoing.send(message).await?,
                SenderAction::CheckPosition { peer, welcome } => {
                    let (context, tap, met) =
                        (Arc::clone(&self.context), Arc::clone(&self.tap), welcome.clone());
                    let resume = blocking(move || meet(&context, &tap, peer, &met)).await?;
                    // A generation may have begun: the machine must know before it jumps there.
                    let (appended, durable) = self.journal.line_cursors();
                    sender.journal(appended, durable);
                    for action in sender.resume(resume) {
                        if let SenderAction::Send(message) = action {
                            outgoing.send(message).await?;
                        }
                    }
                    let jumped = match resume {
                        Resume::Here => None,
                        Resume::Jump(jump) => Some(jump),
                        Resume::Diverged { .. } => {
                            return Err(LinkError::Refused(format!(
                                "{0} has another history (its record {1}): nothing is overwritten before an operator \
                                 chooses: rtdr -C {2} resync on the host whose data is to give way",
                                self.context.peer_name(),
                                peer.seq,
                                self.context.id()
                            )));
                        }
                    };
                    self.peer = match sender.version() {
                        Version::V1 => copier::Peer::Old,
                        _ if peer.seq == WriteSeq(0) => copier::Peer::Empty,
                        _ => copier::Peer::Holds,
                    };
                    // Before it is said to be there: nobody may take it for consistent in between.
                    self.context.set_peer_copying(welcome.copying || jumped.is_some());
                    self.context.set_peer(true, None);
                    let has = jumped.map_or(peer.seq, |_| WriteSeq(0));
                    self.tap.peer_met(has);
                    if let Some(jump) = jumped {
                        self.jumped(&jump).await?;
                    } else {
                        let open = Some(welcome.open_lfc);
                        let open = open.filter(|l| *l >= LfcId::FIRST && peer.seq.0 > 0);
                        self.unsealed = open.map(|l| (peer.generation, l));
                        let context = Arc::clone(&self.context);
                        blocking(move || forget_covered(&context)).await?;
                        if welcome.copying {
                            self.tell_sizes(false).await?;
                        }
                        self.start_copier(welcome.copying);
                    }
                }
                SenderAction::Acked(ack) => {
                    let applied = self.journal.cursors().applied_by_peer;
                    self.journal.set_peer(ack.received_durable, ack.applied, false)?;
                    self.tap.peer_received(ack.received_durable);
                    if ack.applied > applied {
                        // Redo may be dropped, also when nobody writes.
                        self.context.bells.durable.ring();
                    }
                    if self.context.is_stale() {
                        let context = Arc::clone(&self.context);
                        blocking(move || forget_covered(&context)).await?;
                    }
                    self.context.peer_acknowledged();
                }
                SenderAction::Copied(seqs) => {
                    let (table, tap) = (Arc::clone(&self.table), Arc::clone(&self.tap));
                    blocking(move || table.acknowledged(&tap, &seqs)).await?;
                    self.tell_copies(outgoing).await?;
                }
                SenderAction::Lacks(lacks) => self.table.lacks(lacks.seq, &lacks.ranges),
                SenderAction::Refused { code, text } => {
                    let text = format!("{} refused: {text}", self.context.peer_name());
                    if code == RefuseCode::Stopped {
                        return Err(LinkError::Refused(stopped_on(self.context.peer_name())));
                    }
                    if code == RefuseCode::Internal {
                        return Err(LinkError::Failed(text));
                    }
                    return Err(LinkError::Refused(text));
                }
                SenderAction::Diverged { .. } => {}
                SenderAction::Fenced { term } => {
                    let why = format!("{} is at term {term}", self.context.peer_name());
                    self.context.fence(term, &why);
                }
                SenderAction::Conflict { term } => {
                    self.context.fence(term, &both_production(&self.context, term))
                }
                SenderAction::Deliver(Message::Request(request)) => self.deliver(request),
                SenderAction::Deliver(_) => {}
                SenderAction::Close => return Err(LinkError::Ended),
                other => tracing::warn!("an action that LCA does not know: {other:?}"),
            }
        }
        Ok(())
    }

    /// What the recovery host tells of itself.
    fn deliver(&self, request: wire::Request) {
        if request.kind == super::aba::CONSISTENT
            && let Ok(seq) = <[u8; 8]>::try_from(&request.body[..])
        {
            self.context
                .set_peer_consistent(WriteSeq(u64::from_le_bytes(seq)));
        }
        if request.kind == super::aba::NO_ROOM {
            let why = String::from_utf8_lossy(&request.body).into_owned();
            let why = Some(why).filter(|w| !w.is_empty());
            match (&why, self.context.peer().no_room) {
                (Some(_), _) => self.tap.peer_lost(),
                (None, Some(_)) => self.tap.peer_met(self.journal.cursors().received_by_peer),
                (None, None) => {}
            }
            self.context.set_peer_no_room(why);
        }
        if request.kind == super::aba::ROLLED_BACK {
            // What it says of copies stands in its welcome alone: a map that is not clean is never cleaned because of this.
            self.context
                .set_peer_rolled_back(request.body.first() == Some(&1));
        }
    }

    /// Tells the peer how far the copies are, about once a second.
    async fn tell_copies(&mut self, outgoing: &Outgoing) -> Result<(), LinkError> {
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return Ok(());
        }
        self.told = Some(Instant::now());
        let total = self.context.all_bytes();
        let mut body = Vec::with_capacity(16);
        body.extend_from_slice(&self.context.stale_bytes().to_le_bytes());
        body.extend_from_slice(&total.to_le_bytes());
        let request = wire::Request {
            id: 0,
            kind: super::aba::COPIES,
            body: body.into(),
        };
        Ok(outgoing.send(Message::Request(request)).await?)
    }

    /// The stream goes on behind records that the peer lacks: their regions are copied.
    async fn jumped(&mut self, jump: &Jump) -> Result<(), JournalError> {
        tracing::warn!(
            context = self.context.id().0,
            to = jump.to.seq.0,
            stale = self.context.stale_bytes(),
            "{} lacks records that the journal gave up: their regions are copied",
            self.context.peer_name()
        );
        self.unsealed = None;
        self.completing = false;
        self.table.left_out(jump.to.seq);
        self.context.set_peer_copying(true);
        // What was left out may have changed no volume; the sync still needs a container behind the gap to end with.
        let (journal, seq) = (Arc::clone(&self.journal), jump.to.seq);
        let first = [(VolumeIndex(0), ByteRange { start: 0, end: 1 })];
        blocking(move || journal.mark_stale(&first, seq)).await?;
        self.tell_sizes(true).await?;
        self.start_copier(true);
        Ok(())
    }

    /// Starts copying, if anything is stale or the peer still waits for the word that all is there.
    fn start_copier(&mut self, peer_waits: bool) {
        if (!peer_waits && !self.context.is_stale()) || !self.table.wants_copier() {
            return;
        }
        self.context.copying_began();
        let (table, tap, context) = (
            Arc::clone(&self.table),
            Arc::clone(&self.tap),
            Arc::clone(&self.context),
        );
        let peer = self.peer;
        let name = format!("c{}-copy", self.context.id());
        let work = move || {
            let appended = || context.bells.durable.ring();
            let complete = || context.bells.sealed.ring();
            let volumes: Vec<_> = context.config.indexed().map(|(index, _)| index).collect();
            let run = || copier::run(&table, &tap, &volumes, peer, &appended, &complete);
            let failure = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) => return,
                Ok(Err(e)) => e.to_string(),
                Err(_) => {
                    context.broken("copies");
                    DEFECT.to_owned()
                }
            };
            tracing::error!(context = context.id().0, "copies stopped: {failure}");
            table.failed(failure);
            context.bells.durable.ring();
        };
        let copier = std::thread::Builder::new().name(name).spawn(work);
        self.copier = Some(copier.expect("a thread can be started"));
    }

    /// Says again how large the volumes are that have grown: the record that said so may be among those that gave way, or of a
    /// generation that the peer never saw. Before the first copy, and so before the first point behind them.
    async fn tell_sizes(&mut self, behind_gap: bool) -> Result<(), JournalError> {
        let tap = Arc::clone(&self.tap);
        if let Some(last) = blocking(move || tap.tell_sizes(behind_gap)).await? {
            self.completes_behind = last;
            self.context.bells.durable.ring();
        }
        Ok(())
    }

    /// Sends what may be sent now.
    async fn pump(&mut self, sender: &mut Sender, outgoing: &Outgoing) -> Result<(), LinkError> {
        if !sender.is_streaming() {
            return Ok(());
        }
        if let Some(why) = self.table.failure() {
            return Err(LinkError::Refused(format!("copies stopped: {why}")));
        }
        self.completing |= self.table.take_complete();
        loop {
            self.seal(sender, outgoing).await?;
            self.complete(sender, outgoing).await?;
            let Some(want) = sender.want() else { return Ok(()) };
            if let Some(jump) = over_the_gap(&self.journal, want.after) {
                // Sending may have taken long: what is dropped is durable, and the machine must know.
                let (appended, durable) = self.journal.line_cursors();
                for action in sender.journal(appended, durable) {
                    if let SenderAction::Send(message) = action {
                        outgoing.send(message).await?;
                    }
                }
                if let SenderAction::Send(message) = sender.jump(jump) {
                    outgoing.send(message).await?;
                }
                self.jumped(&jump).await?;
                continue;
            }
            let journal = Arc::clone(&self.journal);
            let bytes = want.bytes_max as u64;
            let frames = match blocking(move || journal.frames_after(want.after, bytes)).await {
                // It gave way since we looked.
                Err(JournalError::NotHeld { .. }) if over_the_gap(&self.journal, want.after).is_some() => {
                    continue;
                }
                frames => frames?,
            };
            if frames.is_empty() {
                return Ok(());
            }
            let durable = self.journal.cursors().durable;
            for frame in frames {
                let Some(want) = sender.want() else { break };
                if frame.last_seq() > durable || !(want.alone || frame.len() <= want.bytes_max) {
                    return Ok(());
                }
                let container = (frame.generation(), frame.lfc());
                if self.unsealed.is_some_and(|l| l != container) {
                    self.seal(sender, outgoing).await?;
                    self.complete(sender, outgoing).await?;
                }
                self.unsealed = Some(container);
                let sent = sender.frame(Timestamp::now(), on_wire(&frame, want.after));
                if let SenderAction::Send(message) = sent {
                    outgoing.send(message).await?;
                }
                self.copies_of(sender, &frame, outgoing).await?;
            }
        }
    }

    /// Sends the copies whose stubs stand in a frame that was just sent.
    async fn copies_of(
        &self,
        sender: &mut Sender,
        frame: &journal::Frame,
        outgoing: &Outgoing,
    ) -> Result<(), LinkError> {
        for record in frame.records() {
            if !matches!(record.body, RecordBody::Copy { .. }) {
                continue;
            }
            let (table, seq) = (Arc::clone(&self.table), record.seq);
            let sent = match blocking(move || table.take(seq)).await {
                Some(Ready::Copy(copy)) => sender.copy(copy),
                Some(Ready::Offer(offer)) => sender.offer(offer),
                None => continue,
            };
            if let SenderAction::Send(message) = sent {
                outgoing.send(message).await?;
            }
        }
        Ok(())
    }

    /// Sends the seal of the container whose last frame was sent, if it is sealed and all of it is sent.
    async fn seal(&mut self, sender: &mut Sender, outgoing: &Outgoing) -> Result<(), LinkError> {
        let Some((generation, lfc)) = self.unsealed else {
            return Ok(());
        };
        let generation = self.journal.generation_by_id(generation).map(|g| g.no);
        let Some(row) = generation.and_then(|g| self.journal.lfc_row(g, lfc)) else {
            return Ok(());
        };
        if row.last_seq != sender.cursors().sent {
            return Ok(());
        }
        self.unsealed = None;
        if let SenderAction::Send(message) = sender.seal(seal_of(&row)) {
            outgoing.send(message).await?;
        }
        Ok(())
    }

    /// Says that all copies are there, right behind a seal.
    async fn complete(&mut self, sender: &mut Sender, outgoing: &Outgoing) -> Result<(), LinkError> {
        let lacks_sizes = sender.cursors().sent < self.completes_behind;
        if !self.completing || lacks_sizes || sender.copies_in_flight() > 0 {
            return Ok(());
        }
        if self.context.is_stale() {
            // The journal gave way after the copier's last look.
            self.completing = false;
            self.start_copier(true);
            return Ok(());
        }
        if self.unsealed.is_some() {
            // The container may be open still; sealing it now makes the boundary.
            let tap = Arc::clone(&self.tap);
            blocking(move || tap.seal_now()).await?;
            self.context.bells.durable.ring();
            self.context.bells.sealed.ring();
            self.seal(sender, outgoing).await?;
            if self.unsealed.is_some() {
                return Ok(());
            }
        }
        self.completing = false;
        if let SenderAction::Send(message) = sender.copies_complete() {
            outgoing.send(message).await?;
        }
        let context = Arc::clone(&self.context);
        blocking(move || context.overflow_ended()).await?;
        self.context.set_peer_synced(sender.cursors().sent);
        self.context.verify.caught_up();
        tracing::info!(
            context = self.context.id().0,
            seq = sender.cursors().sent.0,
            "all stale regions are copied"
        );
        Ok(())
    }
}

/// Name of the note that says which store of the peer our state maps are about.
const PEER_INSTANCE: &str = "peer_instance";

/// What both hosts say of themselves at one term.
pub(crate) fn both_production(context: &Context, term: Term) -> String {
    format!(
        "{} and {} are both production at term {term}: an operator chooses",
        context.node_name(),
        context.peer_name()
    )
}

/// What a context knows of its peer.
struct Known<'a>(&'a Context);

impl Acquaintance for Known<'_> {
    type Error = LinkError;

    fn is_forced(&self) -> bool {
        self.0.forced_resync()
    }

    fn instance(&self) -> Option<String> {
        self.0.row().notes.get(PEER_INSTANCE).cloned()
    }

    fn keep_instance(&self, instance: String) -> Result<(), LinkError> {
        let keep = |row: &mut journal::ContextRow| drop(row.notes.insert(PEER_INSTANCE.to_owned(), instance));
        Ok(self.0.change_row(keep)?)
    }

    fn match_extents(&self) -> Result<(), LinkError> {
        let context = self.0;
        let theirs = match roles::peer::ask_to_extend(context, context.extents()) {
            // An older program, which knows no larger volumes: nor does this host.
            Err(PeerError::Refused { text, .. }) if text.contains(UNKNOWN_HERE) && !context.has_grown() => {
                return Ok(());
            }
            theirs => theirs?,
        };
        for ((index, volume), bytes) in context.config.indexed().zip(theirs) {
            // Bytes that are an application's, for all this host knows: who grows a volume is asked.
            if context.holds_behind(index, bytes) {
                return Err(LinkError::Refused(format!(
                    "volume {0}: {1} is ready for {bytes} bytes, and here are bytes behind the first {2}, which would be zeroed: \
                     backstay grow -C {3} -L {0} --size {bytes} does so",
                    volume.name,
                    context.peer_name(),
                    context.extent(index),
                    context.id()
                )));
            }
            context.extend(index, bytes)?;
        }
        Ok(())
    }

    fn set_of_peer(&self) -> Result<PeerSet, LinkError> {
        Ok(roles::peer::set_of(self.0)?)
    }
}

/// Finds out how the stream begins.
fn meet(context: &Context, tap: &Tap, peer: Position, welcome: &wire::Welcome) -> Result<Resume, LinkError> {
    let met = meeting::meet(&context.journal, tap, peer, welcome, &Known(context))?;
    let (id, name) = (context.id().0, context.peer_name());
    if met.is_new {
        tracing::warn!(context = id, "{name} has a new store: everything is copied again");
    }
    if met.went_back {
        tracing::error!(
            context = id,
            "{name} has lost what it had acknowledged (it is at record {}): everything is copied again",
            peer.seq
        );
    }
    Ok(met.resume)
}

/// A consistent peer that has received everything that was dropped lacks nothing.
fn forget_covered(context: &Context) -> Result<(), JournalError> {
    if context.peer().copying || !context.journal.forget_covered()? {
        return Ok(());
    }
    context.overflow_ended()
}

/// A frame as the wire carries it.
fn on_wire(frame: &journal::Frame, after: WriteSeq) -> wire::Frame {
    wire::Frame {
        generation: frame.generation(),
        lfc: frame.lfc(),
        after,
        first: frame.first_seq(),
        last: frame.last_seq(),
        durable: WriteSeq(0),
        digest: frame.digest(),
        bytes: frame.bytes().clone(),
    }
}
