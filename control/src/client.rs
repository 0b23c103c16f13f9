//! The blocking client of the command line.

use crate::{Answer, Event, Outcome, Question, Request, codec, codec::CodecError};
use std::{
    io::{self, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

/// Who listens while a request runs.
pub trait Listener {
    /// Something happened; never [`Event::Ask`] or [`Event::Done`].
    fn event(&mut self, event: Event);

    /// The daemon asks; nothing goes on before the answer.
    fn ask(&mut self, question: &Question) -> bool;
}

/// Why there is no [`Outcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there; nothing was asked.
    #[error("no daemon answers at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request was sent and the answer did not come to its end: the daemon may or may not go on with it.
    #[error("the daemon at {} went away before its answer was complete", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// Why, when it did not just close.
        source: Option<CodecError>,
    },
    /// The request itself cannot be sent.
    #[error("the request cannot be sent")]
    Request(#[source] CodecError),
}

/// Sends a request and stays until its end.
///
/// # Errors
/// When the daemon cannot be reached, or goes away.
pub fn call(path: &Path, request: &Request, listener: &mut dyn Listener) -> Result<Outcome, ClientError> {
    talk(path, request, listener).map(|(outcome, _)| outcome)
}

/// A connection that goes on in another protocol.
#[derive(Debug)]
pub struct Upgraded {
    /// The connection.
    pub stream: UnixStream,
    /// What has been received of that protocol already.
    pub received: Vec<u8>,
}

/// As [`call`], for a request after which the connection goes on in another protocol if the outcome is a success.
///
/// # Errors
/// As [`call`].
pub fn upgrade(
    path: &Path,
    request: &Request,
    listener: &mut dyn Listener,
) -> Result<(Outcome, Upgraded), ClientError> {
    let (outcome, stream) = talk(path, request, listener)?;
    let received = stream.buffer().to_vec();
    let stream = stream.into_inner();
    Ok((outcome, Upgraded { stream, received }))
}

fn talk(
    path: &Path,
    request: &Request,
    listener: &mut dyn Listener,
) -> Result<(Outcome, BufReader<UnixStream>), ClientError> {
    let line = codec::encode(request).map_err(ClientError::Request)?;
    let stream = UnixStream::connect(path).map_err(|source| ClientError::Unreachable {
        path: path.to_owned(),
        source,
    })?;
    let lost = |source: Option<CodecError>| ClientError::Lost {
        path: path.to_owned(),
        source,
    };
    let mut stream = BufReader::new(stream);
    stream
        .get_mut()
        .write_all(&line)
        .map_err(|e| lost(Some(e.into())))?;
    loop {
        let line = codec::read_line(&mut stream)
            .map_err(|e| lost(Some(e)))?
            .ok_or_else(|| lost(None))?;
        match codec::decode(&line).map_err(|e| lost(Some(e)))? {
            Event::Done(outcome) => return Ok((*outcome, stream)),
            Event::Ask { question } => {
                let yes = listener.ask(&question);
                let line = codec::encode(&Answer { yes }).map_err(ClientError::Request)?;
                stream
                    .get_mut()
                    .write_all(&line)
                    .map_err(|e| lost(Some(e.into())))?;
            }
            event => listener.event(event),
        }
    }
}
