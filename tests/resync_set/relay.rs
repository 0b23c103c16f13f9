//! A relay on loopback that counts what goes through it: the bytes of a link as they are on the wire, encrypted, with every
//! greeting, question and acknowledgement.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Connections to its port go to another one. It ends with the process.
pub struct Relay {
    pub port: u16,
    passed: Arc<AtomicU64>,
}

impl Relay {
    /// A relay to a port that something may listen at, now or later.
    pub fn new(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let passed = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&passed);
        thread::spawn(move || {
            for here in listener.incoming().flatten() {
                // Nobody there: the caller is told by its end.
                if let Ok(there) = TcpStream::connect(("127.0.0.1", to)) {
                    both_ways(&here, &there, &counted);
                }
            }
        });
        Self { port, passed }
    }

    /// Bytes since the last call, both ways.
    pub fn take(&self) -> u64 {
        self.passed.swap(0, Ordering::Relaxed)
    }
}

fn both_ways(here: &TcpStream, there: &TcpStream, passed: &Arc<AtomicU64>) {
    for (from, to) in [(here, there), (there, here)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let passed = Arc::clone(passed);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                passed.fetch_add(n as u64, Ordering::Relaxed);
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}
