//! Looks at moments, the replica and the window: what the engine answers is what the model has.

use super::{Run, same};
use crate::{engine::NOW, hosts::Fallible, model::Phase};
use journal::ResolveError;
use model::{ByteRange, Target, Timestamp, WriteSeq, target::TargetKind};
use rand::{Rng, RngCore, rngs::StdRng};
use snapshot::View;
use std::{collections::BTreeSet, io};

impl Run {
    /// A moment that can be had, and some name of it.
    pub(super) fn moment(&self, rng: &mut dyn RngCore) -> Option<(WriteSeq, Target)> {
        let m = &self.model;
        let (from, to) = (m.wanted.0, m.durable.0);
        if from > to {
            return None;
        }
        let seq = match rng.random_range(0..5) {
            0 => rng.random_range(from..=to),
            1 => from + rng.random_range(0..=(to - from).min(20)),
            2 => (m.applied.0 + rng.random_range(0..4)).clamp(from, to),
            _ => to - rng.random_range(0..=(to - from).min(60)),
        };
        let seq = WriteSeq(seq);
        let nearest = |ends: &mut dyn Iterator<Item = (TargetKind, WriteSeq)>| {
            ends.filter(|(_, s)| (from..=to).contains(&s.0))
                .min_by_key(|(_, s)| s.0.abs_diff(seq.0))
        };
        let named = match rng.random_range(0..8) {
            0 => Some((TargetKind::Latest, WriteSeq(to))),
            1 => {
                let lfcs = m.oracle.lfcs().iter();
                nearest(&mut lfcs.map(|(lfc, end)| (TargetKind::Lfc(*lfc), *end)))
            }
            2 => {
                let marks = m.oracle.marks().iter();
                nearest(&mut marks.map(|(name, at)| (TargetKind::Mark(name.clone()), *at)))
            }
            3 => {
                let within = rng.random_range(0..20_000_000);
                let time = Timestamp(m.oracle.time_of(seq)?.0 + within);
                let at = m.oracle.at_time(time).min(m.durable);
                // The name of a whole second may mean a mark in it.
                (!time.0.is_multiple_of(Timestamp::SECOND_NS)).then_some((TargetKind::Time(time), at))
            }
            _ => Some((TargetKind::Seq(seq), seq)),
        };
        named.map(|(kind, seq)| (seq, Target::from(kind)))
    }

    pub(super) fn resolve(&self, seq: WriteSeq, target: &Target) -> Fallible<View> {
        let point = match self.e().journal.resolve(target, NOW) {
            Ok(resolved) => resolved.point,
            Err(e @ ResolveError::Journal(_)) => return Err(e.into()),
            Err(e) => panic!("{target}, which is {seq} and wanted: {e}"),
        };
        assert_eq!(point.seq, seq, "{target}");
        self.e().view(point)
    }

    pub(super) fn look(&mut self, rng: &mut StdRng) -> Fallible {
        if rng.random_range(0..12) == 0 {
            return self.look_behind(rng);
        }
        let Some((seq, target)) = self.moment(rng) else {
            return Ok(());
        };
        let view = self.resolve(seq, &target)?;
        self.compare(&view, seq, rng)
    }

    /// A moment that nobody wants any more is refused, or exact.
    fn look_behind(&mut self, rng: &mut StdRng) -> Fallible {
        let seq = WriteSeq(rng.random_range(1..=self.model.wanted.0));
        if seq > self.model.durable {
            return Ok(());
        }
        match self.e().journal.resolve(&TargetKind::Seq(seq).into(), NOW) {
            Ok(resolved) => {
                let view = self.e().view(resolved.point)?;
                self.compare(&view, seq, rng)
            }
            Err(e @ ResolveError::Journal(_)) => Err(e.into()),
            Err(_) => {
                assert!(seq < self.model.wanted, "{seq} is wanted");
                self.counts.gone += 1;
                Ok(())
            }
        }
    }

    /// Some bytes of a view, and what it says of zeroes.
    fn compare(&mut self, view: &View, seq: WriteSeq, rng: &mut StdRng) -> Fallible {
        self.counts.looks += 1;
        let (volume, range) = self.range(9_000, rng);
        let expected = self.model.oracle.bytes(volume, range, seq);
        let mut found = vec![0xEE; expected.len()];
        view.read(volume, range.start, &mut found)?;
        same(
            &found,
            &expected,
            &format_args!("{volume:?} {range:?} as of {seq}"),
        );
        if rng.random_range(0..4) == 0 {
            let mut at = range.start;
            for extent in view.extents(volume, range)? {
                assert_eq!(extent.range.start, at, "extents follow each other");
                at = extent.range.end;
                let part = self.model.oracle.bytes(volume, extent.range, seq);
                assert!(
                    !extent.zero || part.iter().all(|b| *b == 0),
                    "{extent:?} as of {seq} is not zero"
                );
            }
            assert_eq!(at, range.end, "extents cover what was asked for");
        }
        Ok(())
    }

    pub(super) fn whole(&mut self, rng: &mut StdRng) -> Fallible {
        let Some((seq, target)) = self.moment(rng) else {
            return Ok(());
        };
        self.counts.views += 1;
        let view = self.resolve(seq, &target)?;
        let mut failed = None;
        let mut read = |v, at, out: &mut [u8]| {
            view.read(v, at, out).map_err(|e| {
                failed = Some(e.to_string());
                io::Error::other("the view")
            })
        };
        let compared = self.model.oracle.compare(seq, &mut read);
        if let Some(e) = failed {
            anyhow::bail!(e);
        }
        compared.unwrap_or_else(|e| panic!("the view at {seq}: {e}"));
        Ok(())
    }

    /// The replica itself, and `restored`, which names it.
    pub(super) fn replica(&mut self, rng: &mut StdRng) -> Fallible {
        let restored = self.e().journal.resolve(&TargetKind::Restored.into(), NOW);
        let (volume, range) = self.range(9_000, rng);
        let expected = |at| self.model.oracle.bytes(volume, range, at);
        let at = self.model.stands[usize::from(volume.0)];
        match restored {
            Ok(resolved) => {
                assert_eq!(self.model.phase(), Some(Phase::Done));
                let mut found = vec![0xEE; usize::try_from(range.len()).unwrap()];
                self.e()
                    .view(resolved.point)?
                    .read(volume, range.start, &mut found)?;
                same(
                    &found,
                    &expected(at),
                    &format_args!("restored {volume:?} {range:?} at {at}"),
                );
            }
            Err(ResolveError::NotRestored) => assert_ne!(self.model.phase(), Some(Phase::Done)),
            Err(e) => return Err(e.into()),
        }
        let between = matches!(self.model.phase(), Some(Phase::Running | Phase::Undoing));
        if !between && self.e().stands() {
            let found = self.e().replica(volume, range)?;
            same(
                &found,
                &expected(at),
                &format_args!("replica {volume:?} {range:?} at {at}"),
            );
        }
        Ok(())
    }

    pub(super) fn compare_replica(&self) {
        let volumes = &self.e().volumes;
        for ((volume, v), at) in volumes.iter().zip(&self.model.stands) {
            let mut read = |_, at, out: &mut [u8]| v.medium().read_at(at, out);
            let whole = ByteRange::at(0, self.model.sizes[usize::from(volume.0)]);
            let same = self.model.oracle.compare_range(*at, volume, whole, &mut read);
            same.unwrap_or_else(|e| panic!("the replica at {at}: {e}"));
        }
    }

    pub(super) fn window(&self) -> Fallible {
        let m = &self.model;
        if m.durable < m.wanted {
            return Ok(());
        }
        let window = match self.e().journal.window(None) {
            Ok(window) => window,
            Err(e @ ResolveError::Journal(_)) => return Err(e.into()),
            Err(e) => panic!("no window, but {}..={} is wanted: {e}", m.wanted, m.durable),
        };
        assert_eq!(window.newest.at.seq, m.durable, "{window:?}");
        assert!(window.oldest.at.seq <= m.wanted, "{window:?}");
        let gaps = |g: &journal::Gap| g.to.at.seq <= m.wanted;
        assert!(
            window.gaps.iter().all(gaps),
            "{window:?} with {} wanted",
            m.wanted
        );
        let marks: BTreeSet<&str> = window.marks.iter().map(|m| m.name.as_str()).collect();
        for (name, at) in m.oracle.marks() {
            let there = marks.contains(name.as_str());
            assert!(
                there || *at < m.wanted || *at > m.durable,
                "{name} is not in {window:?}"
            );
        }
        Ok(())
    }
}
