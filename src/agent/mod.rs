//! The agents at the ends of the link: LCA ships from production, ABA receives on recovery.

pub mod aba;
mod copier;
pub mod lca;
pub mod meeting;
pub mod offers;

use journal::{JournalError, LfcRow, SealFlags};
use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    task::{Context, Poll},
};
use tokio::{sync::watch, task::JoinHandle};

/// A link that runs until it is stopped.
pub struct LinkHandle {
    stop: watch::Sender<bool>,
    task: parking_lot::Mutex<Option<JoinHandle<()>>>,
    runtime: tokio::runtime::Handle,
}

impl LinkHandle {
    /// Starts a task that ends when the given receiver says so.
    pub(crate) fn spawn<F>(
        runtime: &tokio::runtime::Handle,
        run: impl FnOnce(watch::Receiver<bool>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let task = runtime.spawn(run(stopped));
        Self {
            stop,
            task: parking_lot::Mutex::new(Some(task)),
            runtime: runtime.clone(),
        }
    }

    /// Ends the task and waits for its end. Not to be called on a worker of the runtime.
    pub fn stop(&self) {
        self.ask_to_stop();
        if let Some(task) = self.task.lock().take() {
            let _ = self.runtime.block_on(task);
        }
    }

    /// Ends the task soon.
    pub fn ask_to_stop(&self) {
        let _ = self.stop.send(true);
    }
}

/// Waits until the link is to end.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the handle is gone: the same.
    let _ = stop.wait_for(|s| *s).await;
}

/// Digest of a context's configuration: both hosts must have the same.
///
/// Who is the configured production, and the failover id, may change on one host a moment before the other: they are left
/// out.
fn config_digest(config: &crate::config::ContextConfig) -> [u8; 32] {
    let mut config = config.clone();
    config.failover_id = 0;
    if let Some(recovery) = config.recovery.first_mut().filter(|r| **r < config.production) {
        std::mem::swap(recovery, &mut config.production);
    }
    blake3::hash(config.to_text().as_bytes()).into()
}

/// A sealed container's end, as the wire says it.
fn seal_of(row: &LfcRow) -> wire::Seal {
    wire::Seal {
        lfc: row.lfc,
        last: row.last_seq,
        digest: row.end_digest,
        flags: u8::from(row.sealed.mark),
    }
}

/// The same, back.
fn flags_of(seal: &wire::Seal) -> SealFlags {
    SealFlags {
        mark: seal.flags & 1 != 0,
        ..SealFlags::default()
    }
}

/// Runs blocking work of the journal away from the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => {
            // It was told of when it happened. Work that never began, because the runtime ends, left nothing half done.
            drop(e.into_panic());
            resume_unwind(Box::new(Below))
        }
    }
}

/// What is said of work that panicked.
pub(crate) const DEFECT: &str = "a defect of the program; see the log";

/// The panic of who waited for [`blocking`] work that panicked.
pub(crate) struct Below;

/// Runs to the end of the work, also where that is a panic: whoever waits for it would else wait for ever.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> std::thread::Result<T> {
    let mut work = pin!(work);
    let step = |cx: &mut Context<'_>| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(step) => step.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    };
    poll_fn(step).await
}

/// What a link ends with.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Connection(#[from] wire::ConnError),
    #[error(transparent)]
    Protocol(#[from] wire::ProtocolError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Context(#[from] crate::context::ContextError),
    #[error(transparent)]
    Peer(#[from] crate::peer::PeerError),
    #[error("{0}")]
    Refused(String),
    /// The peer's context has failed: nothing is taken there before somebody has looked after it.
    #[error("{0}")]
    Failed(String),
    #[error("the peer ended the connection")]
    Ended,
    #[error("{DEFECT}")]
    Defect,
    #[error("{1}; for {0} s nothing was acknowledged")]
    Unanswered(u64, Box<LinkError>),
}

impl LinkError {
    /// Whether the connection ended by itself, and nothing was wrong at either end of it.
    const fn is_of_path(&self) -> bool {
        matches!(self, Self::Connection(_) | Self::Ended | Self::Unanswered(..))
    }

    /// Whether the path to the peer may be at fault, and not the peer: it went silent, left what was sent unanswered, or brought what no peer says.
    fn blames_path(&self) -> bool {
        use wire::ConnError::{Codec, Io, Silent, Truncated};
        match self {
            Self::Connection(Silent(_) | Codec(_) | Truncated) | Self::Unanswered(..) => true,
            Self::Connection(Io(e)) => e.kind() == std::io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_told_from_work_that_ends() {
        let later = async |fails: bool| {
            tokio::task::yield_now().await;
            assert!(!fails, "as it is to");
            7
        };
        assert_eq!(caught(later(false)).await.unwrap(), 7);
        assert!(!caught(later(true)).await.unwrap_err().is::<Below>());
        let below = blocking(|| -> u32 { panic!("as it is to") });
        assert!(caught(below).await.unwrap_err().is::<Below>());
    }
}
