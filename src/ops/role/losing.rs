//! What a host gives up when it gives way to the other one: counted, listed, and shown by `-n` before anybody says yes.

use super::part_way;
use crate::{agent::meeting, context::Context, roles::peer::PeerStanding};
use control::{
    Failure, Reply,
    reply::{LfcInfo, LostInfo, PlanReply, ResyncSet},
};
use model::{BLOCK_SIZE, ByteRange, VolumeIndex};
use std::collections::BTreeSet;

/// Runs of regions that a plan lists for a volume; the rest is counted. A line of the control socket holds that of any context.
const RUNS_MAX: usize = 10_000;

/// What is given up.
pub(super) struct Losing {
    /// This host's part of the set to be copied, and what is stale.
    pub set: ResyncSet,
    /// Containers past the common position: they stay readable as a line of their own.
    pub dropped: Vec<LfcInfo>,
    /// Where the blocks are that only this host has.
    pub lost: Vec<LostInfo>,
}

impl Losing {
    /// Finds it out.
    pub fn of(context: &Context, peer: &PeerStanding) -> Result<Self, Failure> {
        let own = meeting::own_part(&context.journal, &peer.line()).map_err(|e| part_way(&e))?;
        let lost = own
            .as_deref()
            .map_or_else(Vec::new, |own| lost_regions(context, own));
        Ok(Self {
            set: ResyncSet {
                own_bytes: lost.iter().map(|l| l.bytes).sum(),
                peer_bytes: 0,
                stale_bytes: context.stale_bytes() + peer.stale_bytes,
                whole: own.is_none() || !context.changed_backings().is_empty() || is_whole(context, peer),
            },
            dropped: dropped(context, peer)?,
            lost,
        })
    }

    /// One sentence of what is lost here.
    pub fn sentence(&self, context: &Context) -> String {
        let peer = context.peer_name();
        if self.set.whole {
            return format!(
                "All of this host's data is replaced by that of {peer}: what differs is not known."
            );
        }
        let runs: u64 = self.lost.iter().map(|l| l.runs.len() as u64 + l.more).sum();
        match self.set.own_bytes {
            0 => format!("{peer} has all that was written here."),
            bytes => format!(
                "{bytes} bytes in {runs} runs of regions, of {} LFCs that {peer} does not have, are replaced by its data; \
                 they stay readable here by their generation.",
                self.dropped.len()
            ),
        }
    }

    /// `-n`
    pub fn planned(self, context: &Context, first: Option<String>, questions: &[&str]) -> Reply {
        let mut steps = Vec::from_iter(first);
        steps.push("write everything of this host's journal to its volumes".into());
        if !self.dropped.is_empty() {
            steps.push(format!(
                "give way with {} containers that {} does not have ({} bytes of their blocks), kept as undo",
                self.dropped.len(),
                context.peer_name(),
                self.set.own_bytes
            ));
        }
        steps.push("become the replica and wait for the resync".into());
        Reply::Plan(PlanReply {
            point: None,
            steps,
            questions: questions.iter().map(|q| (*q).to_owned()).collect(),
            lost: self.lost,
        })
    }
}

/// Whether one of the two maps says that everything differs.
pub(super) fn is_whole(context: &Context, peer: &PeerStanding) -> bool {
    let all = context.all_bytes();
    context.stale_bytes() >= all || peer.stale_bytes >= all
}

/// Bytes of the blocks that ranges touch, each once.
pub(super) fn bytes(ranges: &[(VolumeIndex, ByteRange)]) -> u64 {
    let blocks: BTreeSet<_> = ranges
        .iter()
        .flat_map(|(volume, range)| range.blocks().map(move |block| (*volume, block)))
        .collect();
    blocks.len() as u64 * BLOCK_SIZE
}

fn lost_regions(context: &Context, own: &[(VolumeIndex, ByteRange)]) -> Vec<LostInfo> {
    let region_size = context.config.region_size.0;
    let volumes = context.config.indexed().map(|(index, volume)| {
        let of = own.iter().filter(|(v, _)| *v == index).copied();
        let of: Vec<_> = of.collect();
        let regions: BTreeSet<u64> = of
            .iter()
            .filter(|(_, range)| !range.is_empty())
            .flat_map(|(_, range)| range.start / region_size..range.end.div_ceil(region_size))
            .collect();
        let mut runs = runs(regions);
        let more = runs.len().saturating_sub(RUNS_MAX) as u64;
        runs.truncate(RUNS_MAX);
        LostInfo {
            volume: volume.name.clone(),
            bytes: bytes(&of),
            region_size,
            runs,
            more,
        }
    });
    volumes.filter(|lost| !lost.runs.is_empty()).collect()
}

/// First and last of each run of numbers that follow one another.
fn runs(numbers: BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    runs
}

/// Containers past the common position: they stay readable as a line of their own.
fn dropped(context: &Context, peer: &PeerStanding) -> Result<Vec<LfcInfo>, Failure> {
    let place = context.journal.common(&peer.line()).map_err(|e| part_way(&e))?;
    let open = context.journal.open_row();
    let rows = context.journal.lfc_rows(..);
    let all = rows.iter().map(|r| &**r).chain(open.as_ref());
    let past = all.filter(|r| place.is_none_or(|p| (r.generation, r.last_seq) > (p.generation, p.seq)));
    Ok(past.map(super::super::windows::lfc_info).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_that_touch_are_one_run() {
        assert_eq!(runs(BTreeSet::new()), []);
        assert_eq!(runs(BTreeSet::from([0, 1, 2, 5, 7, 8])), [(0, 2), (5, 5), (7, 8)]);
    }
}
