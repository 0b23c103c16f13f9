//! "Itself with capture off": the server of Backstay over a plain file, without a journal, in a process of its own.
//!
//! The daemon cannot serve a volume without journaling, and is not meant to. This is what is left of it when the journal is taken
//! away: the same protocol crate, threads and buffers, the same [`FileMedium`], a `pwrite` for a write and a `fdatasync` for a
//! flush.

use crate::bench::Bench;
use media::{Create, FileMedium};
use model::ports::Medium;
use nbd::{
    Errno, Export, ExportEntry, ExportInfo, Exports, Extent, Limits, Mutation, Op, OpenError, Reply, Server,
};
use std::{path::Path, process::Command, sync::Arc, time::Duration};
use testkit::proc::Process;

struct Plain(FileMedium);

impl Plain {
    fn apply(&self, op: &Op) -> std::io::Result<()> {
        match op {
            Op::Write { offset, data } => self.0.write_at(*offset, data),
            Op::Zero { offset, len, .. } | Op::Trim { offset, len } => self.0.write_zeroes(*offset, *len),
            Op::Flush => self.0.sync(),
        }
    }
}

impl Export for Plain {
    fn info(&self) -> ExportInfo {
        ExportInfo::writable(self.0.len())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.0.read_at(offset, buf).map_err(|_| Errno::Io)
    }

    fn submit(&self, batch: Vec<Mutation>) {
        let answers = batch.into_iter().map(|m| {
            let done = self
                .apply(&m.op)
                .and_then(|()| if m.fua { self.0.sync() } else { Ok(()) });
            (m.reply, done.map_err(|_| Errno::Io))
        });
        Reply::finish_all(answers);
    }

    fn extents(&self, range: std::ops::Range<u64>, _: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent {
            len: range.end - range.start,
            hole: false,
            zero: false,
        }])
    }
}

struct One(Arc<Plain>);

impl Exports for One {
    fn list(&self) -> Vec<ExportEntry> {
        Vec::new()
    }

    fn open(&self, _: &str) -> Result<Arc<dyn Export>, OpenError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Export>)
    }
}

/// The word by which this program, started again, is the server.
pub const SERVE: &str = "serve-plain";

/// Serves an image at a socket until it is killed.
pub fn serve(image: &Path, socket: &Path) -> anyhow::Result<()> {
    let medium = FileMedium::open(image, Create::Never)?;
    let server = Server::new(Arc::new(One(Arc::new(Plain(medium)))), Limits::default());
    server.listen_unix(socket, 0o600)?;
    loop {
        std::thread::park();
    }
}

/// The server that runs.
pub struct CaptureOff {
    pub uri: String,
    process: Process,
}

impl CaptureOff {
    pub fn start(bench: &Bench, image: &Path) -> Self {
        let socket = bench.scratch.join("plain.sock");
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.arg(SERVE).arg(image).arg(&socket);
        let process = bench.scratch.start("plain", &mut command);
        process.wait_for_socket(&socket, Duration::from_secs(30));
        Self {
            uri: format!("nbd+unix:///?socket={}", socket.display()),
            process,
        }
    }
}

impl Drop for CaptureOff {
    fn drop(&mut self) {
        self.process.end();
    }
}
