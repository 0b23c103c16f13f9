//! The two negotiations of a relay: as a client of the real server, and as the server of its own client.

use super::broken;
use crate::proto::{Put, STRING_BYTES_MAX, Take, export, hello, info, magic, opt, rep};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// How long either may take: who accepts and says nothing must not hold the other up for ever.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer to an option, and the longest option.
const PAYLOAD_BYTES_MAX: u32 = 64 << 10;
/// Options of one negotiation.
const OPTIONS_MAX: usize = 64;

/// What the server tells of the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    size: u64,
    flags: u16,
    /// Smallest, preferred and largest request.
    blocks: Option<[u32; 3]>,
}

/// Opens an export; `Ok(Err(_))` when the server refuses it, in its words.
pub(super) fn ask(mut stream: &UnixStream, name: &str) -> io::Result<Result<Told, String>> {
    limit(stream, Some(TIMEOUT))?;
    let greeting = read(stream, 18)?;
    let mut t = Take(&greeting);
    if (t.u64(), t.u64()) != (Some(magic::GREETING), Some(magic::OPTION)) {
        return Err(broken("the server does not speak NBD"));
    }
    let offered = t.u16().unwrap_or(0);
    if offered & hello::FIXED_NEWSTYLE == 0 {
        return Err(broken("the server is too old"));
    }
    let mut out = Vec::new();
    out.put_u32(u32::from(offered & (hello::FIXED_NEWSTYLE | hello::NO_ZEROES)));
    out.put_u64(magic::OPTION);
    out.put_u32(opt::GO);
    let mut query = Vec::new();
    query.put_str(name);
    query.put_u16(1);
    query.put_u16(info::BLOCK_SIZE);
    out.put_u32(u32::try_from(query.len()).map_err(|_| broken("the name is too long"))?);
    out.put(&query);
    stream.write_all(&out)?;
    let (mut told, mut blocks) = (None, None);
    loop {
        let head = read(stream, 20)?;
        let mut t = Take(&head);
        if (t.u64(), t.u32()) != (Some(magic::OPTION_REPLY), Some(opt::GO)) {
            return Err(broken("the server answers what it was not asked"));
        }
        let (kind, len) = (t.u32().unwrap_or(0), t.u32().unwrap_or(u32::MAX));
        if len > PAYLOAD_BYTES_MAX {
            return Err(broken("the server answers without end"));
        }
        let payload = read(stream, len as usize)?;
        let mut t = Take(&payload);
        match kind {
            rep::INFO => match t.u16() {
                Some(info::EXPORT) => told = t.u64().zip(t.u16()),
                Some(info::BLOCK_SIZE) => blocks = t.u32().zip(t.u32()).zip(t.u32()),
                _ => {}
            },
            rep::ACK => break,
            // It will be away in a moment.
            rep::ERR_SHUTDOWN => return Err(io::ErrorKind::ConnectionRefused.into()),
            _ if payload.is_empty() => return Ok(Err(format!("the server refuses the export ({kind:#x})"))),
            _ => return Ok(Err(String::from_utf8_lossy(&payload).into_owned())),
        }
    }
    let (size, flags) = told.ok_or_else(|| broken("the server tells no size"))?;
    limit(stream, None)?;
    Ok(Ok(Told {
        size,
        // What needs structured replies cannot be offered on.
        flags: flags & !export::SEND_DF,
        blocks: blocks.map(|((min, preferred), max)| [min, preferred, max]),
    }))
}

/// Answers a client, whatever export it names; `false` when it only asked.
pub(super) fn answer(mut stream: &UnixStream, told: &Told) -> io::Result<bool> {
    limit(stream, Some(TIMEOUT))?;
    let mut out = Vec::new();
    out.put_u64(magic::GREETING);
    out.put_u64(magic::OPTION);
    out.put_u16(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
    stream.write_all(&out)?;
    let flags = read(stream, 4)?;
    let no_zeroes = Take(&flags).u32().unwrap_or(0) & u32::from(hello::NO_ZEROES) != 0;
    for _ in 0..OPTIONS_MAX {
        let head = read(stream, 16)?;
        let mut t = Take(&head);
        if t.u64() != Some(magic::OPTION) {
            return Err(broken("the client sends something else than an option"));
        }
        let (option, len) = (t.u32().unwrap_or(0), t.u32().unwrap_or(u32::MAX));
        if len > PAYLOAD_BYTES_MAX {
            return Err(broken("the client announces an option of absurd length"));
        }
        let payload = read(stream, len as usize)?;
        let mut out = Vec::new();
        match option {
            opt::EXPORT_NAME => {
                out.put_u64(told.size);
                out.put_u16(told.flags);
                if !no_zeroes {
                    out.put(&[0; 124]);
                }
            }
            opt::GO | opt::INFO if is_query(&payload) => {
                reply(&mut out, option, rep::INFO, |p| {
                    p.put_u16(info::EXPORT);
                    p.put_u64(told.size);
                    p.put_u16(told.flags);
                });
                if let Some(blocks) = told.blocks {
                    reply(&mut out, option, rep::INFO, |p| {
                        p.put_u16(info::BLOCK_SIZE);
                        blocks.iter().for_each(|b| p.put_u32(*b));
                    });
                }
                reply(&mut out, option, rep::ACK, |_| {});
            }
            opt::GO | opt::INFO => reply(&mut out, option, rep::ERR_INVALID, |_| {}),
            opt::ABORT => reply(&mut out, option, rep::ACK, |_| {}),
            _ => reply(&mut out, option, rep::ERR_UNSUP, |_| {}),
        }
        stream.write_all(&out)?;
        match option {
            opt::EXPORT_NAME => {}
            opt::GO if is_query(&payload) => {}
            opt::ABORT => return Ok(false),
            _ => continue,
        }
        limit(stream, None)?;
        return Ok(true);
    }
    Err(broken("the client negotiates without end"))
}

/// Whether this is the payload of INFO or GO.
fn is_query(payload: &[u8]) -> bool {
    let mut t = Take(payload);
    let name = t.counted();
    name.is_some_and(|n| n.len() <= STRING_BYTES_MAX)
        && t.u16().is_some_and(|n| t.0.len() == 2 * usize::from(n))
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let mut payload = Vec::new();
    body(&mut payload);
    out.put_u64(magic::OPTION_REPLY);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(payload.len()).expect("it is a few integers"));
    out.put(&payload);
}

fn read(mut stream: &UnixStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn limit(stream: &UnixStream, time: Option<Duration>) -> io::Result<()> {
    stream.set_read_timeout(time)?;
    stream.set_write_timeout(time)
}
