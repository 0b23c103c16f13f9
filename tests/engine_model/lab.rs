//! A host for the rules by name: few records, each moment of which is known.

use super::{
    engine::{Engine, NOW},
    hosts::Fallible,
};
use backstay::restoring::{RestoreError, Work};
use journal::{Draft, ResolveError, RestoreRow};
use model::{ByteRange, ContextState, Point, RecordBody, Target, VolumeIndex, WriteSeq, target::TargetKind};
use rand::RngCore;
use snapshot::{Restored, View};
use std::io;
use testkit::{Oracle, SimPower};

/// Volumes of a few blocks, the last of each a partial one.
pub const SIZES: [u64; 2] = [6 * 4096 + 777, 3 * 4096 + 1];

pub struct Lab {
    pub power: SimPower,
    sizes: Vec<u64>,
    engine: Option<Engine>,
    pub oracle: Oracle,
}

impl Lab {
    pub fn new(sizes: &[u64]) -> Self {
        let power = SimPower::new();
        let engine = Engine::boot(&power, sizes).unwrap();
        Self {
            power,
            sizes: sizes.to_vec(),
            engine: Some(engine),
            oracle: Oracle::new(sizes),
        }
    }

    pub fn e(&self) -> &Engine {
        self.engine.as_ref().expect("it is up")
    }

    pub fn e_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("it is up")
    }

    /// One record, durable when this returns.
    pub fn record(&mut self, volume: u16, body: RecordBody) -> WriteSeq {
        let volume = VolumeIndex(volume);
        let before = self.e().journal.cursors().appended;
        self.e().append(vec![Draft { volume, body }]).unwrap();
        self.e().journal.sync().unwrap();
        for frame in self.e().journal.frames_after(before, u64::MAX).unwrap() {
            frame.records().iter().for_each(|r| self.oracle.record(r));
        }
        self.oracle.head()
    }

    pub fn write(&mut self, volume: u16, offset: u64, byte: u8, len: usize) -> WriteSeq {
        let data = vec![byte; len].into();
        self.record(volume, RecordBody::Write { offset, data })
    }

    pub fn mark(&mut self, name: &str) -> WriteSeq {
        let (name, description) = (name.to_owned(), String::new());
        self.record(
            0,
            RecordBody::Mark {
                name,
                description,
                keep_ns: None,
            },
        )
    }

    /// Ends the open container.
    pub fn seal(&self) {
        self.e().seal().unwrap();
    }

    /// Applies all that is sealed, or nothing while rolled back.
    pub fn apply(&self) {
        while self.e().apply_next().unwrap() {}
    }

    pub fn seal_and_apply(&self) {
        self.seal();
        self.apply();
    }

    pub fn resolve(&self, target: &str) -> Result<Point, ResolveError> {
        let target: Target = target.parse().unwrap();
        Ok(self.e().journal.resolve(&target, NOW)?.point)
    }

    pub fn point(&self, seq: WriteSeq) -> Point {
        let target = TargetKind::Seq(seq).into();
        self.e().journal.resolve(&target, NOW).unwrap().point
    }

    pub fn view(&self, seq: WriteSeq) -> View {
        self.e().view(self.point(seq)).unwrap()
    }

    /// The view shows every byte of its moment.
    pub fn check(&self, view: &View, at: WriteSeq) {
        let mut read = |v, at, out: &mut [u8]| view.read(v, at, out).map_err(io::Error::other);
        let same = self.oracle.compare(at, &mut read);
        same.unwrap_or_else(|e| panic!("the view at {at}: {e}"));
    }

    /// Every moment there ever was.
    pub fn check_all(&self) {
        for seq in 1..=self.e().journal.cursors().durable.0 {
            self.check(&self.view(WriteSeq(seq)), WriteSeq(seq));
        }
    }

    /// What a target means now.
    pub fn check_target(&self, target: &str, at: WriteSeq) {
        let point = self.resolve(target).unwrap();
        assert_eq!(point.seq, at, "{target}");
        self.check(&self.e().view(point).unwrap(), at);
    }

    /// Each volume of the replica is as of its moment.
    pub fn check_replica(&self, stands: &[WriteSeq]) {
        for ((volume, at), size) in self.oracle.volumes().zip(stands).zip(&self.sizes) {
            let range = ByteRange::at(0, *size);
            let found = self.e().replica(volume, range).unwrap();
            let expected = self.oracle.bytes(volume, range, *at);
            assert!(found == expected, "{volume:?} is not as of {at}");
        }
    }

    pub fn check_all_volumes(&self, at: WriteSeq) {
        self.check_replica(&vec![at; self.sizes.len()]);
    }

    pub fn begun(&self, to: WriteSeq, only: Option<u16>) -> RestoreRow {
        let from = self.e().journal.cursors().applied_ordinal;
        let only = only.map(VolumeIndex);
        RestoreRow::begun(self.point(to), format!("seq:{to}"), only, from)
    }

    pub fn work(&self, work: Work) -> Result<Restored, RestoreError> {
        self.e().restore(work, 2, usize::MAX)
    }

    pub fn restore(&self, to: WriteSeq) -> Restored {
        self.work(Work::Begin(self.begun(to, None))).unwrap()
    }

    pub fn undo(&self) -> Restored {
        let row = self.row().expect("there is a restore");
        self.work(Work::TurnRound(row)).unwrap()
    }

    pub fn row(&self) -> Option<RestoreRow> {
        self.e().journal.restore().unwrap()
    }

    pub fn state(&self) -> ContextState {
        self.e().state().unwrap()
    }

    /// The power is cut, or the process killed, and it starts again.
    pub fn crash(&mut self, rng: &mut dyn RngCore) -> Fallible {
        self.engine = None;
        if rng.next_u32().is_multiple_of(3) {
            self.power.kill(rng);
        } else {
            self.power.cut(rng);
        }
        self.engine = Some(Engine::boot(&self.power, &self.sizes)?);
        Ok(())
    }
}
