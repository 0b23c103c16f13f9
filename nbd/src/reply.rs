//! The promise of an answer, which travels with a mutation to whoever carries it out.

use crate::{Errno, chunk::Form, outbox::Outbox};
use std::{fmt, sync::Arc};

/// Where the outcome of a [`Mutation`](crate::Mutation) goes. Answer it once, from any thread; dropped unanswered it
/// answers [`Errno::Io`].
///
/// Answering never waits for the client: what its socket cannot take at once is sent by a thread of the server.
#[must_use = "a reply that is dropped tells the client of an i/o error"]
pub struct Reply(Option<Destination>);

enum Destination {
    Client {
        outbox: Arc<Outbox>,
        form: Form,
        cost: usize,
    },
    Function(Box<dyn FnOnce(Result<(), Errno>) + Send>),
}

impl Reply {
    pub(crate) fn to_client(outbox: Arc<Outbox>, form: Form, cost: usize) -> Self {
        Self(Some(Destination::Client { outbox, form, cost }))
    }

    /// A reply that goes to a function instead of a client, for mutations that do not come from a socket.
    pub fn to_fn(f: impl FnOnce(Result<(), Errno>) + Send + 'static) -> Self {
        Self(Some(Destination::Function(Box::new(f))))
    }

    /// Answers. Several answers at once are cheaper through [`Reply::finish_all`].
    pub fn done(mut self, result: Result<(), Errno>) {
        if let Some(outbox) = self.post(result) {
            outbox.kick();
        }
    }

    /// Answers many at once, with about one system call a client.
    pub fn finish_all(answers: impl IntoIterator<Item = (Self, Result<(), Errno>)>) {
        let mut touched: Vec<Arc<Outbox>> = Vec::new();
        for (mut reply, result) in answers {
            if let Some(outbox) = reply.post(result)
                && !touched.iter().any(|t| Arc::ptr_eq(t, &outbox))
            {
                touched.push(outbox);
            }
        }
        for outbox in touched {
            outbox.kick();
        }
    }

    /// Hands the answer over; the outbox, if any, must be kicked for it to leave.
    fn post(&mut self, result: Result<(), Errno>) -> Option<Arc<Outbox>> {
        match self.0.take()? {
            Destination::Client { outbox, form, cost } => {
                outbox.post(form, cost, result);
                Some(outbox)
            }
            Destination::Function(f) => {
                f(result);
                None
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(outbox) = self.post(Err(Errno::Io)) {
            outbox.kick();
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(Destination::Client { form, .. }) => write!(f, "Reply({:#x})", form.cookie),
            Some(Destination::Function(_)) => write!(f, "Reply(fn)"),
            None => write!(f, "Reply(answered)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_dropped_reply_is_an_io_error_and_an_answered_one_is_answered_once() {
        let (tx, rx) = mpsc::channel();
        let make = || {
            let tx = tx.clone();
            Reply::to_fn(move |r| tx.send(r).unwrap())
        };
        drop(make());
        make().done(Ok(()));
        Reply::finish_all([(make(), Err(Errno::NoSpc)), (make(), Ok(()))]);
        assert_eq!(
            rx.try_iter().collect::<Vec<_>>(),
            [Err(Errno::Io), Ok(()), Err(Errno::NoSpc), Ok(())]
        );
    }
}
