//! The lock of a context over both hosts.
//!
//! | kind | question | answer |
//! | --- | --- | --- |
//! | 25 | context, holder | the asked host's lock is lent under a token, or who holds it: `Lent` |
//! | 26 | nothing | what was lent over this connection is given back: nothing |
//!
//! # No deadlock, no lock that nobody holds
//!
//! Every command takes the two locks in the order of the hosts' names, so of two that begin at once on both hosts one gets
//! both. What is lent ends with its connection, which both sides believe dead after 20 s of silence
//! ([`wire::ConnectionOptions`]); work under the lease that has begun is finished first. A host that cannot be asked within
//! a few seconds is left out: then each host has its own lock alone, and a change of role is guarded by terms as ever.

use crate::{
    context::{Context, Lease},
    node::Node,
    peer::{Line, PeerError},
};
use bytes::Bytes;
use control::Holder;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// Request kind: lend me your lock of a context.
pub const LOCK: u16 = 25;
/// Request kind: I give back what you have lent me over this connection.
pub const UNLOCK: u16 = 26;

/// How long the other host may take when the link to it is up, and when it is not.
const ANSWERS: Duration = Duration::from_secs(10);
const MAY_ANSWER: Duration = Duration::from_secs(3);
/// How long it may take to hear that its lock is given back: it would find out.
const HEARS: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    context: u32,
    holder: Holder,
}

/// What the asked host says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Lent {
    To(u64),
    HeldBy(Holder),
}

/// What came of asking for the peer's lock.
pub enum Asked {
    /// This host holds it.
    Held(Borrowed),
    /// A command holds it.
    Busy(Holder),
    /// It cannot be asked, or has no such context: there is nothing to hold.
    Away(PeerError),
}

/// The peer's lock, until dropped.
pub struct Borrowed {
    line: Option<Line>,
    /// Names it in what the peer is asked for under it.
    pub token: u64,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            line.end(UNLOCK, HEARS);
        }
    }
}

/// Asks the peer for its lock.
pub fn borrow(context: &Context, holder: &Holder) -> Asked {
    let question = Question {
        context: context.id().0,
        holder: holder.clone(),
    };
    let body = Bytes::from(serde_json::to_vec(&question).expect("plain values"));
    let node = context.node();
    let peer = context.peer_name();
    let within = if context.peer().connected {
        ANSWERS
    } else {
        MAY_ANSWER
    };
    let (answer, line) = match node.peers().line(&node, peer, LOCK, body, within) {
        Ok(answer) => answer,
        Err(e) => return Asked::Away(e),
    };
    match serde_json::from_slice(&answer) {
        Ok(Lent::To(token)) => Asked::Held(Borrowed {
            line: Some(line),
            token,
        }),
        Ok(Lent::HeldBy(holder)) => Asked::Busy(holder),
        Err(e) => Asked::Away(PeerError::Refused {
            host: peer.to_owned(),
            text: format!("an answer of another form: {e}"),
        }),
    }
}

/// Answers [`LOCK`]; what is lent lives as long as the caller keeps it.
pub(crate) fn lend(
    node: &Arc<Node>,
    asker: &str,
    body: &[u8],
) -> Result<(Bytes, Option<Arc<Lease>>), String> {
    let Question { context: id, holder } =
        serde_json::from_slice(body).map_err(|e| format!("the question has another form: {e}"))?;
    let context = node
        .context(id)
        .filter(|c| c.id().0 == id && c.peer_name() == asker)
        .ok_or_else(|| format!("context {id} is not one of {asker} here"))?;
    let (answer, lease) = match context.lend(&holder) {
        Ok(lease) => (Lent::To(lease.token), Some(lease)),
        Err(other) => (Lent::HeldBy(other), None),
    };
    let answer = serde_json::to_vec(&answer).expect("plain values");
    Ok((answer.into(), lease))
}
