//! A few decoded frames of sealed containers, so that neighbouring reads of the past decode each frame once.

use crate::frame::Frame;
use model::{GenNo, LfcId};
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc};

type Key = (GenNo, LfcId, u32);

/// Most frames in the cache.
const FRAMES_MAX: usize = 64;
/// Most bytes of frames in the cache; the newest frame stays whatever its size.
const BYTES_MAX: usize = 16 << 20;

#[derive(Default)]
pub(crate) struct FrameCache(Mutex<VecDeque<(Key, Arc<Frame>)>>);

impl FrameCache {
    pub(crate) fn get(&self, key: Key) -> Option<Arc<Frame>> {
        let mut frames = self.0.lock();
        let i = frames.iter().position(|(k, _)| *k == key)?;
        let found = frames.remove(i)?;
        let frame = Arc::clone(&found.1);
        frames.push_back(found);
        Some(frame)
    }

    pub(crate) fn put(&self, key: Key, frame: &Arc<Frame>) {
        let mut frames = self.0.lock();
        frames.retain(|(k, _)| *k != key);
        frames.push_back((key, Arc::clone(frame)));
        let mut bytes: usize = frames.iter().map(|(_, f)| f.len()).sum();
        while frames.len() > 1 && (frames.len() > FRAMES_MAX || bytes > BYTES_MAX) {
            if let Some((_, old)) = frames.pop_front() {
                bytes -= old.len();
            }
        }
    }
}
