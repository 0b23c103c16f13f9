//! The rows of all containers in the store, found by container or by record.

use crate::rows::LfcRow;
use model::{GenNo, LfcId, WriteSeq};
use std::{collections::BTreeMap, ops::RangeBounds, sync::Arc};

type Key = (GenNo, LfcId);

/// Rows by container, and containers by their last record.
#[derive(Default)]
pub(crate) struct RowTable {
    rows: BTreeMap<Key, Arc<LfcRow>>,
    ends: BTreeMap<(GenNo, WriteSeq), LfcId>,
}

impl RowTable {
    pub(crate) fn insert(&mut self, row: Arc<LfcRow>) {
        self.ends.insert((row.generation, row.last_seq), row.lfc);
        self.rows.insert((row.generation, row.lfc), row);
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        if let Some(row) = self.rows.remove(key) {
            self.ends.remove(&(row.generation, row.last_seq));
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<LfcRow>> {
        self.rows.get(key)
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.rows.contains_key(key)
    }

    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &Arc<LfcRow>> {
        self.rows.values()
    }

    pub(crate) fn range(
        &self,
        range: impl RangeBounds<Key>,
    ) -> impl DoubleEndedIterator<Item = &Arc<LfcRow>> {
        self.rows.range(range).map(|(_, row)| row)
    }

    pub(crate) fn last(&self) -> Option<&Arc<LfcRow>> {
        self.rows.values().next_back()
    }

    /// The rows of a generation with records in `after < seq <= upto`, in order.
    pub(crate) fn overlapping(
        &self,
        generation: GenNo,
        after: WriteSeq,
        upto: WriteSeq,
    ) -> impl Iterator<Item = &Arc<LfcRow>> {
        self.ends
            .range((generation, WriteSeq(after.0.saturating_add(1)))..=(generation, WriteSeq(u64::MAX)))
            .filter_map(move |(_, lfc)| self.rows.get(&(generation, *lfc)))
            .take_while(move |row| row.first_seq <= upto)
    }

    /// The row that holds a record.
    pub(crate) fn holding(&self, generation: GenNo, seq: WriteSeq) -> Option<&Arc<LfcRow>> {
        self.overlapping(generation, WriteSeq(seq.0.saturating_sub(1)), seq)
            .next()
    }
}
