//! Pairing two nodes, for `init`.

use super::{Answer, Op, next, refused};
use crate::config::HostConfig;
use control::{
    Code, Failure, Reply,
    reply::{PairJoinReply, PairOpenReply},
};
use model::Timestamp;
use wire::{PairingCode, PairingDesk};

/// Opens a pairing; the string is shown once.
pub fn open(op: &mut Op<'_>) -> Answer {
    let endpoint = op
        .node
        .endpoint()
        .ok_or_else(|| refused("this node does not listen for peers: set [listen] peer in its file"))?;
    let code = op
        .node
        .peers()
        .open_pairing(&endpoint)
        .map_err(|e| Failure::from_error(Code::Refused, &e))?;
    let life = u64::try_from(PairingDesk::LIFE.as_nanos()).unwrap_or(u64::MAX);
    let expires = Timestamp(Timestamp::now().0.saturating_add(life)).into();
    let string = code.to_string();
    let step = next(format!("backstay init --peer '{string}'"), "the other host");
    Ok((Reply::PairOpen(PairOpenReply { string, expires }), step))
}

/// Joins the node that printed the string.
pub fn join(op: &mut Op<'_>, string: &str) -> Answer {
    let code: PairingCode = string
        .parse()
        .map_err(|e: wire::PairingError| Failure::from_error(Code::Usage, &e))?;
    let endpoint = code.endpoint().to_owned();
    let (identity, card) = op
        .node
        .peers()
        .join(&code, op.node.card())
        .map_err(|e| Failure::from_error(Code::Refused, &e))?;
    // The string names where we reached it; what it says of itself may be a name that only it resolves.
    let mut endpoints = vec![endpoint];
    endpoints.extend(
        card.endpoints
            .iter()
            .filter(|e| **e != endpoints[0])
            .cloned()
            .collect::<Vec<_>>(),
    );
    let host = HostConfig {
        name: card.name.clone(),
        endpoints,
        identity: identity.to_string(),
        backings: Vec::new(),
    };
    op.node.learn_host(host).map_err(refused)?;
    let reply = PairJoinReply {
        peer: card.name,
        identity: identity.to_string(),
    };
    Ok((
        Reply::PairJoin(reply),
        next(
            "backstay protect -C 1 NAME=SIZE --fs ext4 --mount DIR",
            op.node.name(),
        ),
    ))
}
