//! What may go wrong besides power: connections that are gone and still bring something, disks that are full.

use super::{Fallible, Side, Step, World};
use crate::host::Runs;
use journal::JournalError;
use std::io;

impl World {
    /// A host is gone, and with it what it would have heard; what it had sent is on its way still.
    pub(super) fn lose_links(&mut self, gone: Side) {
        let (sent, heard) = (gone.index(), gone.other().index());
        if let Some(link) = self.links[sent].take() {
            self.older[sent] = Some(link);
        }
        self.links[heard] = None;
        self.older[heard] = None;
    }

    /// The network is gone; what a host has received it reads still.
    pub(super) fn cut_links(&mut self) {
        for i in 0..2 {
            if let Some(link) = self.links[i].take() {
                self.older[i] = Some(link);
            }
        }
    }

    /// A host reads what a production's older connection has brought.
    pub(super) fn hear_late(&mut self, side: Side, messages: u32) -> Fallible {
        let Some(mut link) = self.older[side.index()].take() else {
            return Ok(());
        };
        let there = self.up(side.other());
        // Nothing runs there that would read.
        if there.recovery().is_none() || there.is_stopped()? {
            return Ok(());
        }
        let mut heard = 0;
        while heard < messages && link.hear_b(there)? {
            heard += 1;
        }
        self.counts.late += heard;
        self.older[side.index()] = Some(link);
        Ok(())
    }

    /// Somebody else takes all room. A host whose writers wait for room, as they do where it owes its past to more than a peer,
    /// would wait for ever in a world with one thread: its disk never fills here.
    pub(super) fn fill_disk(&mut self, side: Side) {
        if !self.waits_for_room(side) {
            self.set_full(side, true);
        }
    }

    /// There is room again, for a host that is down because of that too. Commands take many containers in one step: they find
    /// room.
    pub(super) fn find_room(&mut self, step: &Step) {
        for side in Side::ALL {
            if matches!(step, Step::Command(..)) || *step == Step::Room(side) {
                self.set_full(side, false);
            }
        }
    }

    fn set_full(&mut self, side: Side, full: bool) {
        self.full[side.index()] = full;
        self.hosts[side.index()].set_full(full);
    }

    fn gives_way(&self, side: Side) -> bool {
        matches!(&self.up(side).runs, Runs::Production { undo: false, .. })
    }

    fn waits_for_room(&self, side: Side) -> bool {
        matches!(&self.up(side).runs, Runs::Production { undo: true, .. })
    }

    /// Before a step on hosts without room.
    pub(super) fn make_way(&mut self) -> Fallible {
        for side in Side::ALL {
            if self.waits_for_room(side) {
                self.set_full(side, false);
            }
            self.room_for_one(side)?;
        }
        Ok(())
    }

    /// A container gives way only when the volumes hold it durably; write-back and checkpoint come before a writer waits.
    pub(super) fn room_for_one(&mut self, side: Side) -> Fallible {
        if !self.full[side.index()] || !self.gives_way(side) {
            return Ok(());
        }
        // A mark or a last copy seals, and a step of the clock before it does: twice in one step, and nobody writes back in between
        // in a world with one thread.
        if self.own_records(side, true) > 0 {
            self.set_full(side, false);
            return Ok(());
        }
        self.sync(side)?;
        while self.up(side).write_back(u64::MAX)? {}
        self.up(side).checkpoint()?;
        let gave = self.up(side).journal.take_gave_way().len();
        self.counts.gave_way += u32::try_from(gave)?;
        Ok(())
    }

    /// Whether a step failed only because a disk is full. Its connection is over; nothing is poisoned.
    pub(super) fn is_excused_by_room(&mut self, e: &anyhow::Error) -> bool {
        let is_full = |e: &(dyn std::error::Error + 'static)| {
            e.downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::StorageFull)
                || e.downcast_ref::<JournalError>()
                    .is_some_and(JournalError::is_full)
        };
        if self.full == [false; 2] || !e.chain().any(is_full) {
            return false;
        }
        for side in Side::ALL {
            let up = self.hosts[side.index()].up.as_ref();
            let poisoned = up.and_then(|up| up.journal.poisoned());
            assert!(poisoned.is_none(), "a full disk poisoned {side:?}: {poisoned:?}");
        }
        self.counts.full += 1;
        self.links = [None, None];
        self.older = [None, None];
        true
    }
}
