//! A client's work over many connections.

use super::{
    client::{Client, Completion, Error, Request},
    ledger::{Kind, Ledger},
};
use crate::block::{self, Header};
use model::{BLOCK_SIZE, BlockNo, ByteRange, Timestamp, VolumeIndex};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes self-describing blocks.
    Blocks {
        /// The first one.
        first: BlockNo,
        /// How many.
        count: u64,
        /// Durable when answered.
        fua: bool,
    },
    /// Writes bytes.
    Data {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// Durable when answered.
        fua: bool,
    },
    /// Writes zeroes.
    Zero(ByteRange),
    /// Gives a range up.
    Trim(ByteRange),
    /// Makes all answered writes durable.
    Flush,
}

/// What is in flight.
#[derive(Debug)]
enum Doing {
    Write {
        entry: usize,
        range: ByteRange,
        fua: bool,
    },
    Flush {
        covered: Vec<usize>,
    },
}

/// A client of one export that remembers, over all its connections, what became of each write.
///
/// Requests that overlap are never in flight together: the protocol leaves their order open. A server that lives on after a
/// broken connection may still be at work on what was in flight; a test that breaks only the connection waits for the server
/// to notice before it writes on.
#[derive(Debug)]
pub struct Session {
    socket: PathBuf,
    export: String,
    volume: VolumeIndex,
    seed: u64,
    client: Option<Client>,
    doing: HashMap<u64, Doing>,
    ledger: Ledger,
}

impl Session {
    /// A session that is not yet connected. `volume` and `seed` go into self-describing blocks.
    #[must_use]
    pub fn new(socket: &Path, export: &str, volume: VolumeIndex, seed: u64) -> Self {
        Self {
            socket: socket.to_owned(),
            export: export.to_owned(),
            volume,
            seed,
            client: None,
            doing: HashMap::new(),
            ledger: Ledger::default(),
        }
    }

    /// Connects, or connects again; what was in flight stays unknown.
    ///
    /// # Errors
    /// When the server does not take the connection.
    pub fn connect(&mut self) -> Result<&mut Client, Error> {
        self.drop_connection();
        Ok(self.client.insert(Client::connect(&self.socket, &self.export)?))
    }

    /// The connection, if there is one. What is sent through it directly is not in the ledger.
    pub fn client(&mut self) -> Option<&mut Client> {
        self.client.as_mut()
    }

    /// From now on at this socket: another node, or the same one elsewhere.
    pub fn move_to(&mut self, socket: &Path, export: &str) {
        self.drop_connection();
        (self.socket, self.export) = (socket.to_owned(), export.to_owned());
    }

    /// Breaks the connection, as a crash of the client would.
    pub fn drop_connection(&mut self) {
        self.client = None;
        self.doing.clear();
    }

    /// The server's machine lost its power: the connection is gone, and with it perhaps all that was not flushed.
    pub fn power_lost(&mut self) {
        self.drop_connection();
        self.ledger.power_lost();
    }

    /// What became of each write.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn connected(&mut self) -> Result<&mut Client, Error> {
        self.client
            .as_mut()
            .ok_or_else(|| Error::Io(std::io::ErrorKind::NotConnected.into()))
    }

    /// Takes the steps with up to `depth` requests in flight and waits for all answers. A step that the server refuses is
    /// in the ledger as such and stops nothing.
    ///
    /// # Errors
    /// When the connection is gone: what was in flight is unknown, the steps not yet sent are not in the ledger.
    pub fn run(&mut self, depth: usize, steps: impl IntoIterator<Item = Step>) -> Result<(), Error> {
        let ran = self.run_on(depth.max(1), steps);
        if ran.is_err() {
            self.drop_connection();
        }
        ran
    }

    fn run_on(&mut self, depth: usize, steps: impl IntoIterator<Item = Step>) -> Result<(), Error> {
        for step in steps {
            let range = match &step {
                Step::Blocks { first, count, .. } => ByteRange::at(first.start(), count * BLOCK_SIZE),
                Step::Data { offset, data, .. } => ByteRange::at(*offset, data.len() as u64),
                Step::Zero(range) | Step::Trim(range) => *range,
                Step::Flush => ByteRange::at(0, 0),
            };
            while self.doing.len() >= depth || self.overlaps(range) {
                self.take_answer()?;
            }
            self.send(step, range)?;
        }
        while !self.doing.is_empty() {
            self.take_answer()?;
        }
        Ok(())
    }

    fn overlaps(&self, range: ByteRange) -> bool {
        self.doing.values().any(|doing| match doing {
            Doing::Write { range: other, .. } => other.intersect(range).is_some(),
            Doing::Flush { .. } => false,
        })
    }

    fn send(&mut self, step: Step, range: ByteRange) -> Result<(), Error> {
        self.connected()?;
        let (kind, fua, request) = match step {
            Step::Flush => {
                let covered = self.ledger.covered();
                let cookie = self.connected()?.submit(&Request::Flush)?;
                self.doing.insert(cookie, Doing::Flush { covered });
                return Ok(());
            }
            Step::Blocks { first, count, fua } => {
                let (time, seed) = (Timestamp::now(), self.seed);
                let version = self.ledger.next_version();
                let header = |block| Header {
                    volume: self.volume,
                    block,
                    version,
                    time,
                    seed,
                };
                let data = (first.0..first.0 + count)
                    .flat_map(|n| block::make(&header(BlockNo(n))))
                    .collect();
                (
                    Kind::Blocks { time, seed },
                    fua,
                    Request::Write {
                        offset: range.start,
                        data,
                        fua,
                    },
                )
            }
            Step::Data { offset, data, fua } => (Kind::Data, fua, Request::Write { offset, data, fua }),
            Step::Zero(range) => (
                Kind::Zero,
                false,
                Request::Zero {
                    range,
                    fua: false,
                    no_hole: false,
                },
            ),
            Step::Trim(range) => (Kind::Trim, false, Request::Trim { range, fua: false }),
        };
        // In the ledger before a byte leaves: a write that breaks off may have happened.
        let entry = self.ledger.sent(self.volume, range, kind);
        let cookie = self.connected()?.submit(&request)?;
        self.doing.insert(cookie, Doing::Write { entry, range, fua });
        Ok(())
    }

    fn take_answer(&mut self) -> Result<(), Error> {
        let Some(Completion {
            cookie, at, result, ..
        }) = self.connected()?.complete()?
        else {
            return Err(Error::Protocol(
                "the answers do not match the requests".to_owned(),
            ));
        };
        let refused = match result {
            Ok(_) => None,
            Err(error) => Some(error.errno().ok_or(error)?),
        };
        match self.doing.remove(&cookie) {
            Some(Doing::Write { entry, fua, .. }) => self.ledger.answered(entry, at, refused, fua),
            Some(Doing::Flush { covered }) if refused.is_none() => self.ledger.flushed(&covered),
            _ => {}
        }
        Ok(())
    }
}
