//! Replies, none of which is trusted.

use super::{
    client::{Client, Completion, Error, Pending, protocol},
    wire::{self, u16_at, u32_at, u64_at},
};
use model::ByteRange;
use std::{collections::HashMap, io::Read, time::Instant};

impl Client {
    /// Reads replies until a request is answered.
    pub(super) fn receive(&mut self) -> Result<Completion, Error> {
        loop {
            let magic = u32::from_be_bytes(self.take()?);
            let cookie = match magic {
                wire::SIMPLE_REPLY => {
                    let head: [u8; 12] = self.take()?;
                    let (errno, cookie) = (u32_at(&head, 0), u64_at(&head, 4));
                    let pending = pending(&mut self.pending, cookie)?;
                    match &mut pending.read {
                        Some(_) if self.structured => return protocol("a simple reply to a read"),
                        Some((range, bytes, there)) if errno == 0 => {
                            self.stream.read_exact(bytes)?;
                            there.push(*range);
                        }
                        _ => {}
                    }
                    if errno != 0 {
                        pending.error = Some(Error::Server {
                            errno,
                            text: String::new(),
                        });
                    }
                    cookie
                }
                wire::STRUCTURED_REPLY if self.structured => match self.chunk()? {
                    Some(cookie) => cookie,
                    None => continue,
                },
                other => return protocol(format!("a reply begins with {other:#010x}")),
            };
            let Pending { sent, read, error } = self.pending.remove(&cookie).expect("looked up above");
            let at = Instant::now();
            let result = match (error, read) {
                (Some(error), _) => Err(error),
                (None, None) => Ok(Vec::new()),
                (None, Some((range, bytes, there))) => {
                    let have: u64 = there.iter().map(|r| r.len()).sum();
                    if have != range.len() {
                        return protocol(format!("{have} bytes of {range:?} were answered"));
                    }
                    Ok(bytes)
                }
            };
            return Ok(Completion {
                cookie,
                at,
                took: at - sent,
                result,
            });
        }
    }

    /// Reads one chunk of a structured reply; its cookie when it is the last one.
    fn chunk(&mut self) -> Result<Option<u64>, Error> {
        let head: [u8; 16] = self.take()?;
        let (flags, kind, cookie, len) = (
            u16_at(&head, 0),
            u16_at(&head, 2),
            u64_at(&head, 4),
            u32_at(&head, 12),
        );
        let pending = pending(&mut self.pending, cookie)?;
        match kind {
            wire::CHUNK_NONE if len == 0 && flags & wire::CHUNK_DONE != 0 => {}
            wire::CHUNK_DATA | wire::CHUNK_HOLE => {
                let Some((range, bytes, there)) = &mut pending.read else {
                    return protocol("data in answer to no read");
                };
                let least = if kind == wire::CHUNK_DATA { 9 } else { 12 };
                if len < least || (kind == wire::CHUNK_HOLE && len != least) {
                    return protocol(format!("a chunk of type {kind} with {len} bytes"));
                }
                let mut at = [0; 8];
                self.stream.read_exact(&mut at)?;
                let count = if kind == wire::CHUNK_DATA {
                    len - 8
                } else {
                    let mut count = [0; 4];
                    self.stream.read_exact(&mut count)?;
                    u32::from_be_bytes(count)
                };
                let start = u64::from_be_bytes(at);
                let part = ByteRange {
                    start,
                    end: start.saturating_add(u64::from(count)),
                };
                if part.start < range.start || part.end > range.end || part.is_empty() {
                    return protocol(format!("a chunk {part:?} outside of its read {range:?}"));
                }
                if there.iter().any(|other| other.intersect(part).is_some()) {
                    return protocol(format!("{part:?} was answered twice"));
                }
                there.push(part);
                if kind == wire::CHUNK_DATA {
                    let from = usize::try_from(part.start - range.start).expect("inside of the buffer");
                    self.stream.read_exact(&mut bytes[from..from + count as usize])?;
                }
            }
            kind if kind & wire::CHUNK_ERROR_BIT != 0 && (6..=wire::OPTION_BYTES_MAX).contains(&len) => {
                let mut data = vec![0; len as usize];
                self.stream.read_exact(&mut data)?;
                let words = data[6..].get(..usize::from(u16_at(&data, 4)));
                let Some(words) = words else {
                    return protocol("an error longer than its chunk");
                };
                let text = String::from_utf8_lossy(words).into_owned();
                pending.error.get_or_insert(Error::Server {
                    errno: u32_at(&data, 0),
                    text,
                });
            }
            _ => {
                return protocol(format!(
                    "a chunk of type {kind:#x} with {len} bytes and flags {flags}"
                ));
            }
        }
        Ok((flags & wire::CHUNK_DONE != 0).then_some(cookie))
    }
}

fn pending(all: &mut HashMap<u64, Pending>, cookie: u64) -> Result<&mut Pending, Error> {
    all.get_mut(&cookie)
        .ok_or_else(|| Error::Protocol(format!("an answer to nothing, cookie {cookie}")))
}
