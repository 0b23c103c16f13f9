//! One host: volumes, history, and an oracle that keeps every state there ever was.

use crate::history::MemHistory;
use bytes::Bytes;
use model::{
    ByteRange, GenNo, LfcId, Ordinal, Point, Record, RecordBody, RedoSpan, Timestamp, VolumeIndex, WriteSeq,
    ports::{History, Medium},
};
use rand::{Rng, RngCore, rngs::StdRng};
use snapshot::{
    Applied, ChangeSet, Checkpoint, Lfc, Restore, RestorePlan, Restored, Result, View, Volumes, Watch, apply,
};
use std::{collections::VecDeque, sync::Arc};
use testkit::{SimMedium, SimPower};

/// The bytes of every volume.
pub type State = Vec<Vec<u8>>;

/// A progress callback that does not care.
pub fn quiet(_: u64) {}

pub struct World {
    pub power: SimPower,
    pub sizes: Vec<u64>,
    pub media: Vec<SimMedium>,
    pub volumes: Volumes,
    pub history: Arc<MemHistory>,
    /// The durable applied cursor.
    pub applied: Ordinal,
    /// Where the line's applied part ends, as an ordinal and a record.
    pub boundary: (Ordinal, WriteSeq),
    pub generation: GenNo,
    pub seq: WriteSeq,
    next_lfc: LfcId,
    /// Received and not applied.
    pub waiting: VecDeque<(Lfc, Vec<Record>)>,
    /// At the line's head.
    pub head: State,
    /// Every point and what the volumes are there; several points may mean the same moment.
    pub points: Vec<(Point, Arc<State>)>,
}

impl World {
    pub fn new(sizes: &[u64]) -> Self {
        let power = SimPower::new();
        let history = Arc::new(MemHistory::new(&power));
        let head: State = sizes.iter().map(|s| vec![0; *s as usize]).collect();
        let mut world = Self {
            power,
            sizes: sizes.to_vec(),
            media: Vec::new(),
            volumes: Volumes::new(),
            history,
            applied: Ordinal(0),
            boundary: (Ordinal(0), WriteSeq(0)),
            generation: GenNo(1),
            seq: WriteSeq(0),
            next_lfc: LfcId::FIRST,
            waiting: VecDeque::new(),
            head,
            points: Vec::new(),
        };
        world.open();
        world.note(Ordinal(0), Vec::new(), LfcId(0), Arc::new(world.head.clone()));
        world
    }

    fn open(&mut self) {
        self.media.clear();
        for (i, size) in self.sizes.iter().enumerate() {
            // Every second backing is longer than its volume.
            let backing = size + (i as u64 % 2) * 5000;
            let medium = self.power.medium(&format!("v{i}"), backing);
            self.media.push(medium.clone());
            let index = VolumeIndex(i as u16);
            self.volumes
                .insert(index, format!("v{i}"), Arc::new(medium), *size)
                .unwrap();
        }
    }

    fn note(&mut self, base: Ordinal, redo: Vec<RedoSpan>, lfc: LfcId, state: Arc<State>) {
        let point = Point {
            generation: self.generation,
            seq: self.seq,
            lfc,
            time: Timestamp(self.seq.0),
            base,
            redo,
        };
        self.points.push((point, state));
    }

    pub fn span(&self, after: WriteSeq, upto: WriteSeq) -> Vec<RedoSpan> {
        let generation = self.generation;
        vec![RedoSpan {
            generation,
            after,
            upto,
        }]
    }

    /// Receives one container; each record becomes a point, ahead of what is applied.
    pub fn receive(&mut self, bodies: Vec<(u16, RecordBody)>) -> LfcId {
        let lfc = self.next_lfc;
        self.next_lfc = lfc.next();
        let mut records = Vec::new();
        for (volume, body) in bodies {
            self.seq = self.seq.next();
            let record = Record {
                seq: self.seq,
                time: Timestamp(self.seq.0),
                volume: VolumeIndex(volume),
                body,
            };
            if let (Some(range), Some(payload)) = (record.changed(), record.payload()) {
                let bytes = &mut self.head[volume as usize];
                payload.copy_to(0, &mut bytes[range.start as usize..range.end as usize]);
            }
            self.history.add(self.generation, &record);
            records.push(record);
            let (base, after) = self.boundary;
            self.note(base, self.span(after, self.seq), lfc, Arc::new(self.head.clone()));
        }
        let row = Lfc {
            generation: self.generation,
            lfc,
            last_seq: self.seq,
        };
        self.waiting.push_back((row, records));
        lfc
    }

    /// Applies the first waiting container; its end, and every record in it, gets the point that stands nearest below.
    pub fn apply(&mut self) -> Result<Applied> {
        let (lfc, records) = self.waiting.front().unwrap().clone();
        let changes: ChangeSet = records.iter().collect();
        let applied = apply(
            &self.volumes,
            &*self.history,
            lfc,
            self.applied,
            &changes,
            &mut quiet,
        )?;
        self.waiting.pop_front();
        let (base, after) = self.boundary;
        for record in &records {
            let state = self.state_at(self.generation, record.seq);
            let redo = self.span(after, record.seq);
            self.note(base, redo, lfc.lfc, state);
        }
        let end = self.state_at(self.generation, lfc.last_seq);
        self.note(applied.ordinal, Vec::new(), lfc.lfc, end);
        self.applied = applied.ordinal;
        self.boundary = (applied.ordinal, lfc.last_seq);
        Ok(applied)
    }

    pub fn receive_and_apply(&mut self, bodies: Vec<(u16, RecordBody)>) {
        self.receive(bodies);
        self.apply().unwrap();
    }

    pub fn state_at(&self, generation: GenNo, seq: WriteSeq) -> Arc<State> {
        let known = |(p, _): &&(Point, _)| p.generation == generation && p.seq == seq;
        Arc::clone(&self.points.iter().find(known).unwrap().1)
    }

    /// The first point made for a record of the present generation.
    pub fn point(&self, seq: u64) -> (Point, Arc<State>) {
        let known = |(p, _): &&(Point, _)| p.generation == self.generation && p.seq.0 == seq;
        self.points.iter().find(known).unwrap().clone()
    }

    pub fn crash(&mut self, rng: &mut StdRng) {
        if rng.random() {
            self.power.cut(rng);
        } else {
            self.power.kill(rng);
        }
        self.open();
        self.history.restart(rng);
    }

    pub fn plan(&self, point: &Point) -> RestorePlan {
        RestorePlan::new(&*self.history, point, self.applied).unwrap()
    }

    pub fn execute(
        &self,
        plan: &RestorePlan,
        checkpoint: Option<Checkpoint>,
        watch: &mut dyn Watch,
    ) -> Result<Restored> {
        let restore = Restore {
            volumes: &self.volumes,
            history: &*self.history,
            plan,
            container_blocks: 3,
        };
        restore.execute(checkpoint, watch)
    }

    /// After a restore or its undo: the applied cursor, and the state as one more point.
    pub fn settle(&mut self, restored: &Restored, state: &Arc<State>) {
        self.applied = restored.last;
        self.note(restored.last, Vec::new(), LfcId(0), Arc::clone(state));
    }

    /// A failover to the restored point: a new generation from it, and nothing of the old line is applied any more.
    pub fn new_line(&mut self, restored: Ordinal, point: &Point, state: &State) {
        self.generation.0 += 1;
        self.seq = self.seq.max(point.seq);
        self.boundary = (restored, self.seq);
        self.waiting.clear();
        self.head = state.clone();
        self.note(restored, Vec::new(), LfcId(0), Arc::new(state.clone()));
    }

    pub fn view(&self, point: &Point) -> View {
        let history = Arc::clone(&self.history) as Arc<dyn History>;
        View::new(point.clone(), self.volumes.sizes(), self.volumes.clone(), history).unwrap()
    }

    /// Compares a view, whole volumes at once.
    pub fn check(&self, point: &Point, state: &State) {
        check(&self.view(point), state);
    }

    pub fn check_all(&self) {
        for (point, state) in &self.points {
            self.check(point, state);
        }
    }

    /// Compares the volumes as they are.
    pub fn check_volumes(&self, state: &State) {
        for (i, bytes) in state.iter().enumerate() {
            let live = self.media[i].live(ByteRange::at(0, bytes.len() as u64));
            assert!(
                live == *bytes,
                "volume {i} differs at {:?}",
                differing(&live, bytes)
            );
        }
    }
}

pub fn differing(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

pub fn check(view: &View, state: &State) {
    for (i, bytes) in state.iter().enumerate() {
        let volume = VolumeIndex(i as u16);
        assert_eq!(view.size(volume).unwrap(), bytes.len() as u64);
        let mut seen = vec![0xEE; bytes.len()];
        view.read(volume, 0, &mut seen).unwrap();
        assert!(
            seen == *bytes,
            "volume {i} of {:?} differs at {:?}",
            view.point(),
            differing(&seen, bytes)
        );
    }
}

/// Compares a view in random pieces, and its extents.
pub fn check_pieces(view: &View, state: &State, rng: &mut dyn RngCore) {
    for (i, bytes) in state.iter().enumerate() {
        let volume = VolumeIndex(i as u16);
        let size = bytes.len() as u64;
        for _ in 0..4 {
            let start = rng.random_range(0..size);
            let len = rng.random_range(0..=(size - start).min(20_000));
            let mut seen = vec![0xEE; len as usize];
            view.read(volume, start, &mut seen).unwrap();
            assert!(seen == bytes[start as usize..][..len as usize]);
            if len == 0 {
                continue;
            }
            let extents = view.extents(volume, ByteRange::at(start, len)).unwrap();
            let mut at = start;
            for extent in extents {
                assert_eq!(extent.range.start, at);
                at = extent.range.end;
                let part = &bytes[extent.range.start as usize..extent.range.end as usize];
                assert!(!extent.zero || part.iter().all(|b| *b == 0));
            }
            assert_eq!(at, start + len);
        }
        // Many at once, which may lie over one another.
        let mut pieces: Vec<(u64, Vec<u8>)> = (0..rng.random_range(1..20))
            .map(|_| {
                let start = rng.random_range(0..size);
                let len = rng.random_range(0..=(size - start).min(9_000));
                (start, vec![0xEE; len as usize])
            })
            .collect();
        let mut reads: Vec<_> = pieces.iter_mut().map(|(at, buf)| (*at, &mut buf[..])).collect();
        view.read_each(volume, &mut reads).unwrap();
        for (start, seen) in pieces {
            assert!(seen == bytes[start as usize..][..seen.len()]);
        }
    }
}

pub fn write(volume: u16, offset: u64, byte: u8, len: usize) -> (u16, RecordBody) {
    let data = Bytes::from(vec![byte; len]);
    (volume, RecordBody::Write { offset, data })
}

pub fn zero(volume: u16, start: u64, len: u64) -> (u16, RecordBody) {
    let range = ByteRange::at(start, len);
    (
        volume,
        RecordBody::Zero {
            range,
            discard: false,
        },
    )
}

/// Random records on volumes of these sizes, clustered so that they meet each other.
pub fn bodies(sizes: &[u64], count: usize, rng: &mut StdRng) -> Vec<(u16, RecordBody)> {
    let mut all = Vec::new();
    for _ in 0..count {
        let volume = rng.random_range(0..sizes.len());
        let size = sizes[volume];
        let len = match rng.random_range(0..4) {
            0 => rng.random_range(1..=3),
            1 => 4096,
            2 => rng.random_range(1..=5000),
            _ => rng.random_range(1..=20_000),
        }
        .min(size);
        let mut offset = rng.random_range(0..=size - len);
        if rng.random_range(0..3) == 0 {
            offset = offset / 4096 * 4096;
        }
        all.push(match rng.random_range(0..10) {
            0 | 1 => zero(volume as u16, offset, len),
            2 => (
                volume as u16,
                RecordBody::Mark {
                    name: "m".into(),
                    description: String::new(),
                    keep_ns: None,
                },
            ),
            _ => {
                let mut data = vec![0; len as usize];
                rng.fill_bytes(&mut data);
                let data = data.into();
                (volume as u16, RecordBody::Write { offset, data })
            }
        });
    }
    all
}

/// Not used by every module.
pub fn full(medium: &dyn Medium) -> Vec<u8> {
    let mut bytes = vec![0; medium.len() as usize];
    medium.read_at(0, &mut bytes).unwrap();
    bytes
}
