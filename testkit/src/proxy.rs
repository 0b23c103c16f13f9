//! A bad link on loopback: a TCP proxy between two nodes that does to bytes and connections what networks do.
//!
//! # Overview
//!
//! Connections to its port go to another one. Each direction has its own [`Weather`], which may change at any time and counts for
//! connections that stand as for those that come. What is dropped at the level of packets shows in TCP as a stall: nothing
//! arrives, and nobody is told ([`Weather::stalled`], [`Weather::passes`]). Bytes that are changed, doubled or swapped are those of
//! TLS, as a broken middlebox would change them.
//!
//! What can happen to whole connections: [`Proxy::cut`], [`Proxy::half_open`], [`Proxy::refuse`].
//!
//! # What it does not do
//!
//! It buffers what the kernel's sockets buffer, and reorders only neighbours. Delays hold the bytes behind them up.

use parking_lot::{Condvar, Mutex};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Bytes that are passed on at once in fine weather.
const CHUNK_BYTES: usize = 64 << 10;
/// How often a rate is looked at: a chunk is no more than passes in this time.
const SLICES_A_SECOND: u64 = 50;

/// A direction of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who dials to who listens.
    There,
    /// From who listens to who dials.
    Back,
}

/// Both directions.
pub const BOTH: [Way; 2] = [Way::There, Way::Back];

/// What happens to the bytes of one direction. Chances are in a thousand chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// So long a chunk is held.
    pub delay: Duration,
    /// Bytes a second at most; 0: as many as come.
    pub rate: u64,
    /// Bytes of a chunk at most; 0: 64 KiB.
    pub chunk: usize,
    /// Chance that one byte of a chunk is another.
    pub corrupted: u32,
    /// Chance that a chunk comes twice.
    pub doubled: u32,
    /// Chance that a chunk comes after the next one.
    pub swapped: u32,
    /// Nothing is passed on.
    pub stalled: bool,
    /// A connection passes so many bytes and stalls then; 0: all.
    pub passes: u64,
}

impl Weather {
    /// Bad weather of every kind, with its name: what a link gets over that has it for a moment.
    #[must_use]
    pub fn kinds() -> Vec<(&'static str, Self)> {
        let (fine, ms) = (Self::default(), Duration::from_millis);
        vec![
            (
                "delay",
                Self {
                    delay: ms(40),
                    ..fine
                },
            ),
            ("throttle", Self { rate: 60_000, ..fine }),
            (
                "slow drip",
                Self {
                    chunk: 7,
                    delay: ms(1),
                    ..fine
                },
            ),
            ("small chunks", Self { chunk: 100, ..fine }),
            (
                "stall",
                Self {
                    stalled: true,
                    ..fine
                },
            ),
            (
                "corrupted bytes",
                Self {
                    corrupted: 200,
                    ..fine
                },
            ),
            (
                "corrupted bytes, seldom",
                Self {
                    corrupted: 10,
                    ..fine
                },
            ),
            ("doubled chunks", Self { doubled: 200, ..fine }),
            (
                "swapped chunks",
                Self {
                    chunk: 1500,
                    swapped: 200,
                    ..fine
                },
            ),
            (
                "everything",
                Self {
                    delay: ms(2),
                    rate: 2 << 20,
                    chunk: 1400,
                    corrupted: 2,
                    doubled: 2,
                    swapped: 2,
                    ..fine
                },
            ),
        ]
    }
}

/// What a proxy has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Connections that were passed on.
    pub connections: u64,
    /// Connections that were ended: cut, left half open, refused.
    pub ended: u64,
    /// Chunks with a changed byte.
    pub corrupted: u64,
    /// Chunks that went twice.
    pub doubled: u64,
    /// Chunks that changed places.
    pub swapped: u64,
}

/// A connection: the sockets to who dialled and to who listens.
struct Pass {
    ends: [TcpStream; 2],
    over: AtomicBool,
}

impl Pass {
    /// Breaks one socket off, or both.
    fn end(&self, which: &[usize]) {
        for end in which {
            // It may be gone already.
            let _ = self.ends[*end].shutdown(Shutdown::Both);
        }
    }
}

#[derive(Default)]
struct State {
    weather: [Weather; 2],
    refuses: bool,
    open: Vec<Weak<Pass>>,
    done: Done,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    passed: AtomicU64,
    seed: u64,
}

/// A proxy. It ends with the process.
pub struct Proxy {
    /// Where it listens on loopback.
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy to a port of the loopback that something may listen at, now or later.
    ///
    /// # Panics
    /// When the loopback cannot be bound.
    #[must_use]
    pub fn new(to: u16, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("the loopback can be bound");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            passed: AtomicU64::new(0),
            seed,
        });
        let passing = Arc::clone(&shared);
        thread::spawn(move || {
            for here in listener.incoming().flatten() {
                let mut state = passing.state.lock();
                // Nobody there: the caller is told by its end.
                let there = (!state.refuses).then(|| TcpStream::connect(("127.0.0.1", to)));
                let Some(Ok(there)) = there else {
                    state.done.ended += u64::from(state.refuses);
                    continue;
                };
                state.done.connections += 1;
                let number = state.done.connections;
                let pass = Arc::new(Pass {
                    ends: [here, there],
                    over: AtomicBool::new(false),
                });
                state.open.retain(|open| open.strong_count() > 0);
                state.open.push(Arc::downgrade(&pass));
                drop(state);
                for way in BOTH {
                    let (shared, pass) = (Arc::clone(&passing), Arc::clone(&pass));
                    thread::spawn(move || carry(&shared, &pass, way, number));
                }
            }
        });
        Self { port, shared }
    }

    /// Changes the weather of these directions.
    pub fn set(&self, ways: &[Way], weather: Weather) {
        let mut state = self.shared.state.lock();
        for way in ways {
            state.weather[*way as usize] = weather;
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Fine weather both ways; who dials is let in. Connections that stalled go on.
    pub fn calm(&self) {
        self.refuse(false);
        self.set(&BOTH, Weather::default());
    }

    /// Whether who dials is turned away. Connections that stand stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.state.lock().refuses = refuse;
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.each(&[0, 1]);
    }

    /// Ends the connections for one of the two; the other is told nothing, and waits.
    pub fn half_open(&self, for_listener: bool) {
        // What it sends meets a peer that reads nothing, and what it waits for does not come.
        self.set(
            &BOTH,
            Weather {
                stalled: true,
                ..Weather::default()
            },
        );
        self.each(&[usize::from(for_listener)]);
    }

    fn each(&self, which: &[usize]) {
        let mut state = self.shared.state.lock();
        let open: Vec<Arc<Pass>> = state.open.iter().filter_map(Weak::upgrade).collect();
        state.done.ended += open.len() as u64;
        drop(state);
        for pass in open {
            if which.len() == 2 {
                pass.over.store(true, Ordering::Release);
            }
            pass.end(which);
        }
        self.shared.changed.notify_all();
    }

    /// Bytes that came through since the last call, both ways.
    #[must_use]
    pub fn take(&self) -> u64 {
        self.shared.passed.swap(0, Ordering::Relaxed)
    }

    /// What it has done so far.
    #[must_use]
    pub fn done(&self) -> Done {
        self.shared.state.lock().done
    }
}

/// Carries one direction of a connection until it ends, and ends the other with it.
fn carry(shared: &Shared, pass: &Pass, way: Way, number: u64) {
    let mut rng = StdRng::seed_from_u64(shared.seed ^ number << 1 ^ way as u64);
    let (mut from, mut to) = match way {
        Way::There => (&pass.ends[0], &pass.ends[1]),
        Way::Back => (&pass.ends[1], &pass.ends[0]),
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut held: Option<Vec<u8>> = None;
    let mut passed = 0;
    while let Some(most) = wait_for_leave(shared, pass, way, passed) {
        let Ok(n @ 1..) = from.read(&mut buffer[..most]) else {
            break;
        };
        // It may have changed while nothing came.
        if wait_for_leave(shared, pass, way, passed).is_none() {
            break;
        }
        let weather = shared.state.lock().weather[way as usize];
        let pause = match weather.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(n as f64 / rate as f64),
        };
        thread::sleep(weather.delay + pause);
        let chunk = &mut buffer[..n];
        let mut happens = |chance: u32| rng.random_range(0..1000) < chance;
        let (corrupted, doubled, swapped) = (
            happens(weather.corrupted),
            happens(weather.doubled),
            held.is_none() && happens(weather.swapped),
        );
        if corrupted {
            let at = rng.random_range(0..n);
            chunk[at] ^= 1 << rng.random_range(0..8);
        }
        {
            let done = &mut shared.state.lock().done;
            done.corrupted += u64::from(corrupted);
            done.doubled += u64::from(doubled);
            done.swapped += u64::from(swapped);
        }
        passed += n as u64;
        shared.passed.fetch_add(n as u64, Ordering::Relaxed);
        if swapped {
            held = Some(chunk.to_vec());
            continue;
        }
        let before = held.take().unwrap_or_default();
        let parts: [&[u8]; 3] = [chunk, if doubled { chunk } else { &[] }, &before];
        if parts.iter().any(|part| to.write_all(part).is_err()) {
            break;
        }
    }
    // A half-open end is told nothing: it alone knows of its connection now.
    if !shared.state.lock().weather[way as usize].stalled || pass.over.load(Ordering::Acquire) {
        pass.over.store(true, Ordering::Release);
        pass.end(&[0, 1]);
        shared.changed.notify_all();
    }
}

/// Waits while this direction stalls; how much may be read at once then, or `None` when the connection is over.
fn wait_for_leave(shared: &Shared, pass: &Pass, way: Way, passed: u64) -> Option<usize> {
    let mut state = shared.state.lock();
    loop {
        if pass.over.load(Ordering::Acquire) {
            return None;
        }
        let weather = state.weather[way as usize];
        let full = weather.passes > 0 && passed >= weather.passes;
        if !weather.stalled && !full {
            let most = match weather.chunk {
                0 => CHUNK_BYTES,
                chunk => chunk.min(CHUNK_BYTES),
            };
            let slice = match weather.rate {
                0 => most,
                rate => usize::try_from((rate / SLICES_A_SECOND).max(1)).unwrap_or(most),
            };
            return Some(most.min(slice));
        }
        shared.changed.wait(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// A listener that answers what it hears, and a proxy before it.
    fn echo() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        Proxy::new(port, 1)
    }

    fn dial(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port)).unwrap()
    }

    fn says(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
        stream.write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        back
    }

    fn hears_nothing(stream: &mut TcpStream) {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let heard = stream.read(&mut [0]).map_err(|e| e.kind());
        assert!(matches!(heard, Err(ErrorKind::WouldBlock)), "{heard:?}");
        stream.set_read_timeout(None).unwrap();
    }

    #[test]
    fn fine_weather_changes_nothing_and_is_counted() {
        let proxy = echo();
        let mut stream = dial(&proxy);
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        for chunk in bytes.chunks(50_000) {
            assert!(says(&mut stream, chunk) == chunk);
        }
        assert_eq!(proxy.take(), 600_000);
        assert_eq!(proxy.take(), 0);
    }

    #[test]
    fn bytes_are_changed_doubled_and_swapped() {
        let proxy = echo();
        let weather = |corrupted, doubled, swapped| Weather {
            chunk: 4,
            corrupted,
            doubled,
            swapped,
            ..Weather::default()
        };
        let mut stream = dial(&proxy);
        proxy.set(&[Way::There], weather(1000, 0, 0));
        let back = says(&mut stream, &[0; 4]);
        assert_eq!(back.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        proxy.set(&[Way::There], weather(0, 1000, 0));
        stream.write_all(b"twice").unwrap();
        let mut back = [0; 10];
        stream.read_exact(&mut back).unwrap();
        assert!(back.windows(2).any(|w| w == b"tw"), "{back:?}");
        proxy.set(&[Way::There], weather(0, 0, 1000));
        assert_eq!(says(&mut stream, b"abcdefgh"), b"efghabcd");
        let done = proxy.done();
        assert!(
            (done.corrupted, done.swapped) == (1, 1) && done.doubled >= 1,
            "{done:?}"
        );
    }

    #[test]
    fn a_stall_is_silent_and_goes_on() {
        let proxy = echo();
        let mut stream = dial(&proxy);
        for stall in [
            Weather {
                stalled: true,
                ..Weather::default()
            },
            Weather {
                passes: 1,
                ..Weather::default()
            },
        ] {
            assert_eq!(says(&mut stream, b"a"), b"a");
            proxy.set(&[Way::Back], stall);
            stream.write_all(b"b").unwrap();
            hears_nothing(&mut stream);
            proxy.calm();
            let mut back = [0];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"b");
        }
    }

    #[test]
    fn one_end_may_know_of_a_cut_that_the_other_does_not() {
        let proxy = echo();
        let mut stream = dial(&proxy);
        assert_eq!(says(&mut stream, b"a"), b"a");
        proxy.half_open(true);
        hears_nothing(&mut stream);
        let mut gone = dial(&proxy);
        proxy.calm();
        assert_eq!(says(&mut gone, b"a"), b"a");
        proxy.half_open(false);
        assert!(matches!(gone.read(&mut [0]), Ok(0) | Err(_)));
    }

    #[test]
    fn connections_are_cut_and_refused() {
        let proxy = echo();
        let mut stream = dial(&proxy);
        assert_eq!(says(&mut stream, b"a"), b"a");
        proxy.refuse(true);
        assert_eq!(says(&mut stream, b"b"), b"b");
        proxy.cut();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        let mut refused = dial(&proxy);
        let _ = refused.write_all(b"c");
        assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
        proxy.calm();
        assert_eq!(says(&mut dial(&proxy), b"d"), b"d");
    }
}
