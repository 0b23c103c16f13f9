//! A small volume behind an NBD server, and one client's bytes sent to it.

use nbd::{
    Errno, Export, ExportEntry, ExportInfo, Exports, Extent, Limits, MetaContext, Mutation, Op, OpenError,
    Server, Status,
};
use std::{
    io::{Read, Write},
    net::Shutdown,
    ops::Range,
    os::unix::net::UnixStream,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    thread,
};

const SIZE: u64 = 64 << 10;

struct Volume(Mutex<Vec<u8>>);

impl Volume {
    fn with<T>(&self, offset: u64, len: u64, act: impl FnOnce(&mut [u8]) -> T) -> T {
        let at = usize::try_from(offset).expect("within the volume");
        let len = usize::try_from(len).expect("within the volume");
        // A request that passes the end must never come here.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)[at..at + len])
    }
}

impl Export for Volume {
    fn info(&self) -> ExportInfo {
        ExportInfo::writable(SIZE)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.with(offset, buf.len() as u64, |bytes| buf.copy_from_slice(bytes));
        Ok(())
    }

    fn submit(&self, batch: Vec<Mutation>) {
        for m in batch {
            match &m.op {
                Op::Write { offset, data } => {
                    self.with(*offset, data.len() as u64, |b| b.copy_from_slice(data))
                }
                Op::Zero { offset, len, .. } | Op::Trim { offset, len } => {
                    self.with(*offset, *len, |b| b.fill(0))
                }
                Op::Flush => {}
            }
            m.reply.done(Ok(()));
        }
    }

    fn extents(&self, range: Range<u64>, _: usize) -> Result<Vec<Extent>, Errno> {
        assert!(range.start < range.end && range.end <= SIZE, "{range:?}");
        Ok(vec![Extent {
            len: range.end - range.start,
            hole: false,
            zero: false,
        }])
    }

    fn contexts(&self) -> Vec<String> {
        vec!["x-fuzz:one".into()]
    }

    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        Ok((name == "x-fuzz:one").then(|| Arc::new(One) as _))
    }
}

struct One;

impl MetaContext for One {
    fn status(&self, range: Range<u64>, _: usize) -> Result<Vec<Status>, Errno> {
        Ok(vec![Status {
            len: range.end - range.start,
            bits: 1,
        }])
    }
}

struct Only(Arc<Volume>);

impl Exports for Only {
    fn list(&self) -> Vec<ExportEntry> {
        Vec::new()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError> {
        match name {
            "v" => Ok(self.0.clone()),
            _ => Err(OpenError::Unknown(String::new())),
        }
    }
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let volume = Volume(Mutex::new(vec![0; usize::try_from(SIZE).expect("small")]));
    Server::new(Arc::new(Only(Arc::new(volume))), Limits::default())
});

/// One whole client: sends, ends its side, and hears the server out. That it ends, without a panic, is what is demanded.
pub fn serve(says: &[u8]) {
    let Ok((mut client, server)) = UnixStream::pair() else {
        return;
    };
    let export = Arc::new(Volume(Mutex::new(vec![0; usize::try_from(SIZE).expect("small")])));
    let default = nbd::DefaultExport {
        name: "v".into(),
        export,
    };
    thread::scope(|scope| {
        let serving = scope.spawn(|| SERVER.serve(server, default));
        let mut hears = client.try_clone().expect("a socket can be cloned");
        let hearing = scope.spawn(move || {
            let mut heard = Vec::new();
            // It may hang up at any time.
            let _ = hears.read_to_end(&mut heard);
        });
        let _ = client.write_all(says);
        let _ = client.shutdown(Shutdown::Write);
        hearing.join().expect("the client has no errors");
        serving.join().expect("the server does not panic");
    });
}

/// What leads to a session: plain, with structured replies, or with extended headers and a context.
#[must_use]
pub fn greeting(kind: u8) -> Vec<u8> {
    let mut out = 3u32.to_be_bytes().to_vec();
    let mut option = |number: u32, payload: &[u8]| {
        out.extend(b"IHAVEOPT");
        out.extend(number.to_be_bytes());
        out.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
        out.extend(payload);
    };
    match kind % 3 {
        0 => {}
        1 => option(8, b""),
        _ => {
            option(11, b"");
            option(
                10,
                b"\0\0\0\x01v\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0ax-fuzz:one",
            );
        }
    }
    option(7, b"\0\0\0\x01v\0\0");
    out
}
