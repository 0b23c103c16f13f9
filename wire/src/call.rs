//! Small requests from node to node, on connections of their own (context 0).
//!
//! The asking node greets with [`Hello::node`], the other welcomes, then questions and answers alternate. One connection
//! carries one question at a time; that is enough for what nodes ask each other (configuration, state, "stop, I take over"),
//! and no answer can then be taken for another's: each repeats its question's number, and one that comes too late is left.

use crate::{
    conn::{ConnError, Connection, Incoming, Outgoing},
    message::{Hello, Message, RefuseCode, Request, Response, Welcome},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] ConnError),
    /// The peer refused the connection.
    #[error("refused by the peer ({code:?}): {text}")]
    Refused {
        /// Why.
        code: RefuseCode,
        /// The same for people.
        text: String,
    },
    /// The peer took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The peer said something else.
    #[error("unexpected answer of the peer")]
    Unexpected,
}

/// The asking side.
#[derive(Debug)]
pub struct NodeClient<S> {
    incoming: Incoming<S>,
    outgoing: Outgoing,
    peer_name: String,
    next_id: u64,
    wait: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> NodeClient<S> {
    /// Greets the peer as `name`; every answer, the first included, must come within `wait`.
    ///
    /// # Errors
    /// When the peer refuses or the connection fails.
    pub async fn greet(connection: Connection<S>, name: &str, wait: Duration) -> Result<Self, CallError> {
        let (incoming, outgoing) = connection.split();
        let mut client = Self {
            incoming,
            outgoing,
            peer_name: String::new(),
            next_id: 1,
            wait,
        };
        client.outgoing.send(Message::Hello(Hello::node(name))).await?;
        match client.heard().await? {
            Message::Welcome(w) => client.peer_name = w.node,
            _ => return Err(CallError::Unexpected),
        }
        Ok(client)
    }

    /// What the peer calls itself.
    #[must_use]
    pub fn peer_name(&self) -> &str {
        &self.peer_name
    }

    /// Asks, and waits for the answer. After a timeout the connection may still be used.
    ///
    /// # Errors
    /// When there is no answer; whether the peer acted on the question is then unknown.
    pub async fn call(&mut self, kind: u16, body: Bytes) -> Result<Response, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        self.outgoing
            .send(Message::Request(Request { id, kind, body }))
            .await?;
        loop {
            match self.heard().await? {
                Message::Response(r) if r.id == id => return Ok(r),
                // The answer to a question that was given up.
                Message::Response(r) if r.id < id => {}
                _ => return Err(CallError::Unexpected),
            }
        }
    }

    async fn heard(&mut self) -> Result<Message, CallError> {
        let next = timeout(self.wait, self.incoming.next()).await;
        match next.map_err(|_| CallError::Timeout(self.wait))?? {
            Some(Message::Refuse(r)) => Err(CallError::Refused {
                code: r.code,
                text: r.text,
            }),
            Some(Message::Bye { .. }) | None => Err(ConnError::Closed.into()),
            Some(message) => Ok(message),
        }
    }

    /// Ends the connection in order.
    pub async fn close(self) {
        self.outgoing.shutdown("done").await;
    }
}

/// The answering side, once the owner has read a greeting with context 0: welcomes as `name`, then answers each question with
/// what `answer` makes of it, until the peer ends the connection.
///
/// # Errors
/// When the connection fails or the peer sends what is no question.
pub async fn serve_requests<S, F, A>(
    incoming: &mut Incoming<S>,
    outgoing: &Outgoing,
    name: &str,
    mut answer: F,
) -> Result<(), CallError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    F: FnMut(Request) -> A,
    A: Future<Output = Response>,
{
    outgoing.send(Message::Welcome(Welcome::node(name))).await?;
    loop {
        match incoming.next().await? {
            Some(Message::Request(request)) => {
                let id = request.id;
                let response = Response {
                    id,
                    ..answer(request).await
                };
                outgoing.send(Message::Response(response)).await?;
            }
            Some(Message::Bye { .. }) | None => return Ok(()),
            Some(_) => return Err(CallError::Unexpected),
        }
    }
}
