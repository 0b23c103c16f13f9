//! Production's side: a stretch of a volume is compared, all of it, whoever writes meanwhile.

use super::{
    COMPARE,
    question::{Answer, Question},
    run::Halt,
};
use crate::{
    context::Context,
    peer::{Caller, PeerError},
    roles::Standing,
};
use journal::{
    Digest,
    tap::{Look, Tap, digest},
};
use model::{BLOCK_SIZE, ByteRange, Payload, VolumeIndex, WriteSeq};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of a piece at the first look.
const PIECE: u64 = 32 << 10;
/// How long it waits before it looks again whether what it waits for is so; the bells ring before that.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the peer may take for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A connection that rested longer is made anew.
const REST_MAX: Duration = Duration::from_secs(5);

/// What compares.
pub(super) struct Comparer<'a> {
    pub context: &'a Arc<Context>,
    pub tap: &'a Tap,
    /// Why it is to stop, if it is.
    pub halt: &'a dyn Fn() -> Option<Halt>,
    /// Says what it waits for.
    pub waits: &'a dyn Fn(Option<String>),
    caller: Option<(Caller, Instant)>,
    zeroes: BTreeMap<u64, Digest>,
}

impl<'a> Comparer<'a> {
    pub fn new(
        context: &'a Arc<Context>,
        tap: &'a Tap,
        halt: &'a dyn Fn() -> Option<Halt>,
        waits: &'a dyn Fn(Option<String>),
    ) -> Self {
        Self {
            context,
            tap,
            halt,
            waits,
            caller: None,
            zeroes: BTreeMap::new(),
        }
    }

    /// Looks at a stretch, which begins at a multiple of [`PIECE`], until every part of it was seen as of some record.
    /// Nothing is asked yet: what the peer has yet to receive does not keep the next stretch from being looked at.
    pub fn look(&mut self, volume: VolumeIndex, range: ByteRange) -> Result<Looked, Halt> {
        self.ready()?;
        self.looked(volume, vec![range], PIECE)
    }

    /// Compares a range of a stretch's length at most, which begins at a block, block by block.
    pub fn blocks(&mut self, volume: VolumeIndex, range: ByteRange) -> Result<Found, Halt> {
        self.ready()?;
        let looked = self.looked(volume, vec![range], BLOCK_SIZE)?;
        self.finish(looked)
    }

    fn looked(
        &mut self,
        volume: VolumeIndex,
        mut todo: Vec<ByteRange>,
        mut piece: u64,
    ) -> Result<Looked, Halt> {
        let mut seen = Vec::new();
        while !todo.is_empty() {
            if let Some(halt) = (self.halt)() {
                return Err(halt);
            }
            let look = self.tap.look(volume, &todo, piece).map_err(Halt::failed)?;
            if look.generation.is_none() {
                self.rest(Some("there is no record yet".into()))?;
                continue;
            }
            seen.extend(Seen::of(self.context, &look, volume, piece, &mut self.zeroes));
            // Smaller pieces are read sooner: sooner or later every one is read between two writes to it.
            todo = joined(touched(&look, &todo, piece));
            piece = BLOCK_SIZE;
        }
        Ok(Looked { volume, seen })
    }

    /// Whether the peer has what a stretch's looks are about.
    pub fn is_received(&self, looked: &Looked) -> bool {
        let received = self.context.journal.cursors().received_by_peer;
        looked.seen.iter().all(|seen| seen.question.seq <= received)
    }

    /// Compares what was looked at; the blocks that differ.
    pub fn finish(&mut self, looked: Looked) -> Result<Found, Halt> {
        let volume = looked.volume;
        let (mut found, mut seen) = (Found::default(), looked.seen);
        while !seen.is_empty() {
            let mut again = Vec::new();
            for part in seen {
                self.until_received(part.question.seq)?;
                let (places, unreadable) = match self.ask(&part.question)? {
                    Answer::Differ(places) => (places, Vec::new()),
                    Answer::Partly { differ, unreadable } => (differ, unreadable),
                    Answer::NotNow(why) => {
                        self.rest(Some(why))?;
                        again.extend(part.pieces);
                        continue;
                    }
                    Answer::Unreadable(why) => {
                        return Err(Halt::Failed(format!(
                            "volume {volume} cannot be compared where record {} was looked at: {why}",
                            part.question.seq
                        )));
                    }
                };
                let piece = |n: u32| part.pieces.get(n as usize).copied();
                let ranges = places.iter().filter_map(|n| piece(*n));
                let runs = unreadable.iter().map(|run| {
                    let pieces = joined(run.pieces().filter_map(piece).collect());
                    (pieces, &run.why)
                });
                if u64::from(part.question.piece) == BLOCK_SIZE {
                    found.differ.extend(ranges);
                    for (range, why) in runs.flat_map(|(all, why)| all.into_iter().map(move |r| (r, why))) {
                        found.differ.push(range);
                        found.unreadable.push((range, why.clone()));
                    }
                } else {
                    again.extend(ranges);
                    again.extend(runs.flat_map(|(all, _)| all));
                }
            }
            if !again.is_empty() {
                self.ready()?;
            }
            seen = self.looked(volume, joined(again), BLOCK_SIZE)?.seen;
        }
        found.differ = joined(found.differ);
        Ok(found)
    }

    /// Waits until the replica must have what production has.
    pub fn ready(&mut self) -> Result<(), Halt> {
        while let Some(why) = hindrance(self.context)? {
            self.rest(Some(why))?;
        }
        if let Some(halt) = (self.halt)() {
            return Err(halt);
        }
        (self.waits)(None);
        Ok(())
    }

    /// Waits until the peer has a record durably.
    fn until_received(&mut self, seq: WriteSeq) -> Result<(), Halt> {
        while self.context.journal.cursors().received_by_peer < seq {
            let why = hindrance(self.context)?;
            self.rest(why)?;
        }
        Ok(())
    }

    /// Waits a moment, or until something moves on the link.
    fn rest(&self, why: Option<String>) -> Result<(), Halt> {
        if let Some(halt) = (self.halt)() {
            return Err(halt);
        }
        (self.waits)(why);
        let mut ear = self.context.bells.acknowledged.ear();
        ear.wait(Duration::ZERO);
        ear.wait(LOOK_EVERY);
        Ok(())
    }

    /// Asks until the peer has answered.
    fn ask(&mut self, question: &Question) -> Result<Answer, Halt> {
        let body = question.encode();
        loop {
            let node = self.context.node();
            let (context, halt) = (self.context, self.halt);
            let caller = self.caller.take().filter(|(_, used)| used.elapsed() < REST_MAX);
            let asked = node.peers().runtime().block_on(async {
                let exchange = async {
                    let mut caller = match caller {
                        Some((caller, _)) => caller,
                        None => node.peers().caller(&node, context.peer_name()).await?,
                    };
                    let answer = caller.ask(COMPARE, body.clone()).await?;
                    Ok::<_, PeerError>((answer, caller))
                };
                let halted = async {
                    while halt().is_none() {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                };
                tokio::select! {
                    asked = tokio::time::timeout(ANSWER_WITHIN, exchange) => Some(
                        asked.unwrap_or_else(|_| Err(PeerError::Silent(context.peer_name().to_owned()))),
                    ),
                    () = halted => None,
                }
            });
            match asked {
                None => {}
                Some(Ok((body, caller))) => {
                    self.caller = Some((caller, Instant::now()));
                    return Answer::decode(&body, question.digests.len())
                        .ok_or_else(|| Halt::Failed("the peer's answer has another form".into()));
                }
                // An older peer, or one that takes us for somebody else.
                Some(Err(PeerError::Refused { host, text })) => {
                    return Err(Halt::Failed(format!("{host} refused to compare: {text}")));
                }
                Some(Err(e)) => {
                    tracing::debug!(context = self.context.id().0, "verify: {e}");
                    self.rest(Some(e.to_string()))?;
                }
            }
            if let Some(halt) = (self.halt)() {
                return Err(halt);
            }
        }
    }
}

/// What keeps the replica from being what production is, if something does.
pub(super) fn hindrance(context: &Context) -> Result<Option<String>, Halt> {
    if let Some(error) = context.journal.poisoned() {
        return Err(Halt::failed(error));
    }
    let (peer, name) = (context.peer(), context.peer_name());
    // It will not be otherwise before somebody has looked after it.
    if let Some(why) = peer.failed {
        return Err(Halt::Failed(why));
    }
    Ok(if context.standing() != Standing::Producing {
        Some(format!(
            "nothing is shipped: the context is {}",
            context.standing()
        ))
    } else if !peer.connected {
        Some(format!("{name} is not connected"))
    } else if peer.rolled_back {
        Some(format!("the replica on {name} is rolled back"))
    } else if let Some(why) = peer.no_room {
        Some(format!("{name} receives nothing: {why}"))
    } else if !context.peer_has_copies() {
        Some("what is stale is being copied".into())
    } else if !context.peer_is_consistent() {
        Some(format!("{name} has not applied all copies yet"))
    } else {
        None
    })
}

/// What a comparison found.
#[derive(Default)]
pub(super) struct Found {
    /// Blocks that are not equal, also because the other host cannot read them; in order, those that touch as one.
    pub differ: Vec<ByteRange>,
    /// Those that it cannot read, and why.
    pub unreadable: Vec<(ByteRange, String)>,
}

/// A stretch that was looked at.
pub(super) struct Looked {
    volume: VolumeIndex,
    seen: Vec<Seen>,
}

/// Pieces as of one position, and what is to be asked about them.
struct Seen {
    question: Question,
    pieces: Vec<ByteRange>,
}

impl Seen {
    /// The pieces of a look that no record touched; `None`: there are none.
    fn of(
        context: &Context,
        look: &Look,
        volume: VolumeIndex,
        piece: u64,
        zeroes: &mut BTreeMap<u64, Digest>,
    ) -> Option<Self> {
        let (mut pieces, mut digests, mut runs) = (Vec::new(), Vec::new(), Vec::<(u64, u32)>::new());
        for (range, payload) in &look.parts {
            for part in cut(*range, piece) {
                let n = part.start / piece;
                if look.touched.contains(&n) {
                    continue;
                }
                digests.push(match payload {
                    Payload::Zero => *zeroes
                        .entry(part.len())
                        .or_insert_with(|| digest(part, &Payload::Zero)),
                    Payload::Data(data) => {
                        let at = |byte: u64| usize::try_from(byte - range.start).expect("inside the payload");
                        blake3::hash(&data[at(part.start)..at(part.end)]).into()
                    }
                });
                match runs.last_mut() {
                    Some((first, count)) if *first + u64::from(*count) == n => *count += 1,
                    _ => runs.push((n, 1)),
                }
                pieces.push(part);
            }
        }
        let question = Question {
            context: context.id(),
            generation: look.generation?,
            seq: look.seq,
            volume,
            piece: u32::try_from(piece).ok()?,
            runs,
            digests,
        };
        (!pieces.is_empty()).then_some(Self { question, pieces })
    }
}

/// What of these ranges has to be looked at once more.
fn touched(look: &Look, ranges: &[ByteRange], piece: u64) -> Vec<ByteRange> {
    let pieces = ranges.iter().flat_map(|range| cut(*range, piece));
    pieces
        .filter(|part| look.touched.contains(&(part.start / piece)))
        .collect()
}

/// A range in pieces, which are counted from the volume's beginning.
pub(super) fn cut(range: ByteRange, piece: u64) -> impl Iterator<Item = ByteRange> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((start / piece + 1) * piece);
        let part = (start < end).then_some(ByteRange { start, end });
        start = end;
        part
    })
}

/// Ranges in order, those that touch as one.
fn joined(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable_by_key(|r| (r.start, r.end));
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_the_volumes_own_multiples() {
        let parts: Vec<_> = cut(
            ByteRange {
                start: 4096,
                end: 70_000,
            },
            32 << 10,
        )
        .collect();
        let ends: Vec<_> = parts.iter().map(|p| (p.start, p.end)).collect();
        assert_eq!(ends, [(4096, 32_768), (32_768, 65_536), (65_536, 70_000)]);
        let one = |start, end| ByteRange { start, end };
        assert_eq!(
            joined(vec![one(8, 12), one(0, 4), one(4, 6), one(20, 21)]),
            [one(0, 6), one(8, 12), one(20, 21)]
        );
    }

    /// What was written while it was read is looked at again.
    #[test]
    fn what_was_touched_is_looked_at_again() {
        let range = ByteRange::at(0, 5 * BLOCK_SIZE);
        let look = Look {
            generation: None,
            seq: WriteSeq(9),
            parts: vec![(range, Payload::Zero)],
            touched: [1, 3, 9].into(),
        };
        let again = touched(&look, &[range], BLOCK_SIZE);
        let starts: Vec<_> = again.iter().map(|r| r.start / BLOCK_SIZE).collect();
        assert_eq!(starts, [1, 3]);
    }
}
