//! Retention as a part of histories: pins come and go, the floor moves, and everything above it is what it was.

use super::{Fallible, World};
use journal::{Broken, PinKind, PinRow, ResolveError, Space, Wanted};
use model::{Level, Target, Timestamp, WriteSeq, target::TargetKind};
use rand::{Rng, RngCore};
use snapshot::View;
use std::sync::Arc;

/// What the operator pinned and was told.
#[derive(Default)]
pub(super) struct Pins {
    promised: Vec<PinRow>,
    /// Put when the power went: there or not.
    in_doubt: Option<PinRow>,
    /// Space was short when the power went: what was broken for it was not told.
    gave_up: bool,
    made: u64,
}

impl World {
    /// The oldest record that can be asked for.
    pub(super) fn oldest(&self) -> Option<WriteSeq> {
        match self.b().journal.window(None) {
            Ok(window) => Some(window.oldest.at.seq),
            Err(ResolveError::NoHistory | ResolveError::NotConsistent) => None,
            Err(e) => panic!("the window: {e}"),
        }
    }

    /// A target of a record below the window is refused, and never moved.
    pub(super) fn refuses(&self, seq: WriteSeq) {
        let target = Target::from(TargetKind::Seq(seq));
        let resolved = self.b().journal.resolve(&target, Timestamp(u64::MAX));
        assert!(
            matches!(
                resolved,
                Err(ResolveError::Outside(_) | ResolveError::BeforeFirstConsistent(_))
            ),
            "record {seq} is below the window, and {resolved:?}"
        );
    }

    /// Pins a point, or releases a pin.
    pub(super) fn pin(&mut self, rng: &mut dyn RngCore) -> Fallible {
        let journal = Arc::clone(&self.b().journal);
        if self.pins.promised.len() > 3 || (!self.pins.promised.is_empty() && rng.random_bool(0.3)) {
            let one = rng.random_range(0..self.pins.promised.len());
            let pin = self.pins.promised.swap_remove(one);
            return Ok(journal.delete_pin(pin.id, None)?);
        }
        let Some(point) = self.point(rng) else {
            return Ok(());
        };
        self.pins.made += 1;
        let kind = match rng.random_range(0..3) {
            0 => PinKind::Released,
            1 => PinKind::Mark { name: "kept".into() },
            _ => PinKind::Snapshot {
                level: Level(10),
                name: None,
            },
        };
        let pin = PinRow {
            id: self.pins.made,
            kind,
            target: format!("seq:{}", point.seq),
            point,
            owner: "op@b".into(),
            created: Timestamp(1),
            expires: None,
        };
        self.pins.in_doubt = Some(pin.clone());
        journal.put_pin(&pin)?;
        self.pins.in_doubt = None;
        self.pins.promised.push(pin);
        Ok(())
    }

    /// One pass of retention, with or without room.
    pub(super) fn retain(&mut self, rng: &mut dyn RngCore) -> Fallible {
        let journal = Arc::clone(&self.b().journal);
        let held = journal.held_bytes()?;
        let wanted = Wanted {
            bytes: rng.random_bool(0.9).then(|| rng.random_range(0..=held)),
            ..Wanted::default()
        };
        let limit = match rng.random_bool(0.2) {
            true => rng.random_range(0..=held),
            false => u64::MAX,
        };
        let before = (self.oldest(), journal.floors());
        self.pins.gave_up |= limit < held;
        let done = journal.retain(&wanted, Space::Limit(limit), Vec::new())?;
        self.pins.gave_up = false;
        assert!(done.held <= limit || done.stuck, "{done:?} of {limit}");
        assert_eq!(journal.held_bytes()?, done.held, "{done:?}");
        let broken = |pin: &PinRow| done.broken.contains(&Broken::Pin(pin.id));
        let (gone, kept): (Vec<_>, Vec<_>) = self.pins.promised.drain(..).partition(broken);
        self.pins.promised = kept;
        assert!(gone.is_empty() || limit < held, "broken without need: {done:?}");
        for pin in &gone {
            self.is_gone(pin)?;
            journal.delete_pin(pin.id, None)?;
        }
        let after = (self.oldest(), journal.floors());
        // Amid a resync the last consistent point is the window; when it is given up, there is none until the copies are there.
        let resync_gave_up = done.broken.contains(&Broken::Resync);
        assert!(
            before.0 <= after.0 || (resync_gave_up && after.0.is_none()),
            "{before:?}, {after:?}, {done:?}"
        );
        assert!(before.1.undo <= after.1.undo, "{before:?}, {after:?}");
        if after.1 != before.1 {
            self.counts.retained += 1;
            self.look_at_pins(usize::MAX)?;
        }
        Ok(())
    }

    /// A view of what was given up answers an error, and never other bytes.
    fn is_gone(&self, pin: &PinRow) -> Fallible {
        let b = self.b();
        assert!(!b.journal.is_kept(&pin.point), "{pin:?} is not gone");
        let view = View::new(
            pin.point.clone(),
            b.volumes.sizes(),
            b.volumes.clone(),
            Arc::clone(&b.journal) as Arc<dyn model::ports::History>,
        )?;
        for volume in view.volumes() {
            assert!(view.read(volume, 0, &mut [0; 512]).is_err(), "{pin:?} is read");
        }
        Ok(())
    }

    /// Every point that is pinned is what it was.
    fn look_at_pins(&self, some: usize) -> Fallible {
        for (i, pin) in self.pins.promised.iter().enumerate() {
            assert!(self.b().journal.is_kept(&pin.point), "{pin:?} is gone");
            if i < some {
                self.compare_view(pin.point.clone())?;
            }
        }
        Ok(())
    }

    /// After a boot of recovery: what was pinned is there and is what it was.
    pub(super) fn pins_after_boot(&mut self) -> Fallible {
        let journal = Arc::clone(&self.b().journal);
        let there = journal.pins()?;
        if let Some(pin) = self.pins.in_doubt.take()
            && there.contains(&pin)
        {
            self.pins.promised.push(pin);
        }
        if self.pins.gave_up {
            // It may have given up a release pin for good, and others that are still listed.
            self.pins.promised.retain(|pin| journal.is_kept(&pin.point));
        }
        for pin in &self.pins.promised {
            assert!(there.contains(pin), "{pin:?} was promised and is lost");
        }
        // Boots are many.
        self.look_at_pins(1)?;
        for pin in there.iter().filter(|pin| !self.pins.promised.contains(pin)) {
            journal.delete_pin(pin.id, None)?;
        }
        self.pins.gave_up = false;
        Ok(())
    }
}
