use crate::{
    block::{self, Fault},
    nbd::{Broken, Client, Error, Promise, Request, Session, State, Step},
    oracle::Oracle,
    proc::{Process, Scratch, need_tool},
    seeds::with_seeds,
    workload::{Operation, Shape, Workload, noise},
};
use model::{BlockNo, ByteRange, VolumeIndex};
use rand::Rng;
use std::{io, path::PathBuf, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(20);
const VOLUME: VolumeIndex = VolumeIndex(3);

fn nbdkit(scratch: &Scratch, more: &[&str]) -> (PathBuf, Process) {
    let socket = scratch.join("socket");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new(need_tool("nbdkit"));
    let server = scratch.start("nbdkit", command.args(["-f", "-U"]).arg(&socket).args(more));
    server.wait_for_socket(&socket, SOON);
    (socket, server)
}

fn random_requests_match(client: &mut Client, seed: &str) {
    let size = client.size();
    with_seeds(seed, 3, |rng| {
        client.write_zeroes(ByteRange::at(0, size)).unwrap();
        let mut bytes = vec![0; size as usize];
        let shape = Shape {
            unit: 512,
            len_max: 100_000,
            zero_len_max: 200_000,
            ..Shape::default()
        };
        let mut workload = Workload::new(&[size], shape);
        let mut reads = Vec::new();
        for operation in workload.take(200, rng) {
            match operation {
                Operation::Write { offset, len, fua, .. } => {
                    let data = noise(len, rng);
                    client.write(offset, &data, fua).unwrap();
                    bytes[offset as usize..][..data.len()].copy_from_slice(&data);
                }
                Operation::Zero { range, .. } => {
                    client
                        .call(&Request::Zero {
                            range,
                            fua: true,
                            no_hole: rng.random(),
                        })
                        .unwrap();
                    bytes[range.start as usize..range.end as usize].fill(0);
                }
                Operation::Flush => client.flush().unwrap(),
                _ => {
                    let start = rng.random_range(0..size / 512) * 512;
                    reads.push(ByteRange { start, end: size });
                }
            }
        }
        // All reads at once.
        let cookies: Vec<u64> = reads
            .iter()
            .map(|r| client.submit(&Request::Read(*r)).unwrap())
            .collect();
        while let Some(done) = client.complete().unwrap() {
            let range = reads[cookies.iter().position(|c| *c == done.cookie).unwrap()];
            assert!(done.result.unwrap() == bytes[range.start as usize..range.end as usize]);
        }
        assert_eq!(client.in_flight(), 0);
    });
}

#[test]
fn speaks_with_nbdkit() {
    let scratch = Scratch::new("nbdkit");
    let (socket, _server) = nbdkit(&scratch, &["memory", "1000448"]);
    for structured in [true, false] {
        let mut client = Client::connect_as(&socket, "", structured).unwrap();
        assert_eq!((client.size(), client.is_structured()), (1_000_448, structured));
        random_requests_match(&mut client, "nbdkit");
        let past = client.read(1_000_000, 4096).unwrap_err();
        assert_eq!(past.errno(), Some(22), "{past}");
        assert!(
            client
                .write(1_000_000, &[0; 4096], false)
                .unwrap_err()
                .errno()
                .is_some()
        );
        assert_eq!(client.read(0, 512).unwrap().len(), 512, "the connection goes on");
        client.disconnect().unwrap();
    }
}

#[test]
fn speaks_with_qemu() {
    let scratch = Scratch::new("qemu");
    let (image, socket) = (scratch.image("image", 3 << 20), scratch.join("socket"));
    let mut command = Command::new(need_tool("qemu-nbd"));
    command
        .args(["-t", "-f", "raw", "-x", "a name", "--discard=unmap", "-k"])
        .arg(&socket)
        .arg(&image);
    let server = scratch.start("qemu-nbd", &mut command);
    server.wait_for_socket(&socket, SOON);
    assert!(matches!(
        Client::connect(&socket, "another"),
        Err(Error::Refused { .. })
    ));
    for structured in [true, false] {
        let mut client = Client::connect_as(&socket, "a name", structured).unwrap();
        assert_eq!(client.size(), 3 << 20);
        assert!(
            client
                .block_sizes()
                .is_some_and(|(least, preferred, _)| least <= preferred)
        );
        random_requests_match(&mut client, "qemu");
        client.trim(ByteRange::at(0, 4096)).unwrap();
        client.flush().unwrap();
        client.disconnect().unwrap();
    }
}

fn reader(client: &mut Client) -> impl FnMut(VolumeIndex, u64, &mut [u8]) -> io::Result<()> + '_ {
    |_, at, out| {
        out.copy_from_slice(&client.read(at, out.len() as u64).map_err(io::Error::other)?);
        Ok(())
    }
}

fn steps(rng: &mut rand::rngs::StdRng, count: usize, size: u64) -> Vec<Step> {
    let mut workload = Workload::new(
        &[size],
        Shape {
            zeroes: 30,
            zero_len_max: 1 << 16,
            ..Shape::blocks()
        },
    );
    let step = |operation| match operation {
        Operation::Write { offset, len, fua, .. } => Some(Step::Blocks {
            first: BlockNo::of(offset),
            count: len / 4096,
            fua,
        }),
        Operation::Zero { range, .. } => Some(Step::Zero(range)),
        Operation::Flush => Some(Step::Flush),
        _ => None,
    };
    workload.take(count, rng).into_iter().filter_map(step).collect()
}

#[test]
fn a_session_knows_what_was_promised() {
    let scratch = Scratch::new("session");
    let image = scratch.image("image", 8 << 20);
    let file = format!("file={}", image.display());
    let (mut flushed, mut acknowledged) = (0, 0);
    with_seeds("session", 4, |rng| {
        std::fs::write(&image, vec![0; 8 << 20]).unwrap();
        let mut session = Session::new(&scratch.join("socket"), "", VOLUME, rng.random());
        for _ in 0..3 {
            // Slow answers, so that the kill finds requests in flight.
            let (_, server) = nbdkit(&scratch, &["--filter=delay", "file", &file, "delay-write=2ms"]);
            session.connect().unwrap();
            let unknown = session.ledger().count(State::Unknown);
            session.run(16, steps(rng, 100, 8 << 20)).unwrap();
            assert_eq!(
                session.ledger().count(State::Unknown),
                unknown,
                "all were answered"
            );
            let killer = {
                let (server, after) = (server.clone(), Duration::from_millis(rng.random_range(1..40)));
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    server.kill9();
                })
            };
            assert!(session.run(16, steps(rng, 2000, 8 << 20)).is_err());
            killer.join().unwrap();
            assert!(session.run(1, [Step::Flush]).is_err(), "not connected");
            // The file survives the server: what was answered is there.
            let (socket, server) = nbdkit(&scratch, &["file", &file]);
            let mut client = Client::connect(&socket, "").unwrap();
            session
                .ledger()
                .check(Promise::Acknowledged, &mut reader(&mut client))
                .unwrap();
            session
                .ledger()
                .check(Promise::Flushed, &mut reader(&mut client))
                .unwrap();
            server.kill9();
            // From here on all is known again: write over what is not.
            let unknown = session
                .ledger()
                .entries()
                .iter()
                .filter(|e| e.state == State::Unknown)
                .count();
            assert!(unknown <= 3 * 16, "{unknown}");
        }
        flushed += session.ledger().count(State::Flushed);
        acknowledged += session.ledger().count(State::Acknowledged);
        for entry in session.ledger().entries() {
            assert_eq!(entry.answered.is_some(), entry.state != State::Unknown);
        }
    });
    assert!(
        flushed > 0 && acknowledged + flushed > 100,
        "{flushed} {acknowledged}"
    );
}

#[test]
fn broken_promises_are_found() {
    let scratch = Scratch::new("promises");
    let (socket, _server) = nbdkit(&scratch, &["memory", "1M"]);
    let mut session = Session::new(&socket, "", VOLUME, 7);
    session.connect().unwrap();
    let write = |first, fua| Step::Blocks {
        first: BlockNo(first),
        count: 1,
        fua,
    };
    session
        .run(
            4,
            [
                write(5, true),
                write(5, false),
                write(6, false),
                write(300, false),
            ],
        )
        .unwrap();
    session
        .run(
            4,
            [Step::Data {
                offset: 9 * 4096 + 1,
                data: vec![1],
                fua: false,
            }],
        )
        .unwrap();
    assert!(
        matches!(session.ledger().entries()[3].state, State::Refused(_)),
        "past the end"
    );
    let ledger = session.ledger().clone();
    let mut client = Client::connect(&socket, "").unwrap();
    let original = client.read(0, 1 << 20).unwrap();
    let check = |promise, at: usize, bytes: &[u8]| {
        let mut image = original.clone();
        image.resize(2 << 20, 0);
        image[at..at + bytes.len()].copy_from_slice(bytes);
        ledger.check(promise, &mut |_, at: u64, out: &mut [u8]| {
            out.copy_from_slice(&image[at as usize..][..out.len()]);
            Ok(())
        })
    };
    let block = |version, number| {
        let entry = &ledger.entries()[version as usize - 1];
        let crate::nbd::Kind::Blocks { time, seed } = entry.kind else {
            panic!("not blocks")
        };
        block::make(&block::Header {
            volume: VOLUME,
            block: BlockNo(number),
            version,
            time,
            seed,
        })
    };
    let at = 5 * 4096;
    assert_eq!(check(Promise::Acknowledged, 0, &[]), Ok(()));
    assert_eq!(check(Promise::Flushed, at, &block(1, 5)), Ok(()));
    let lost = |block, promised, found| {
        Err(Broken::Lost {
            volume: VOLUME,
            block,
            promised,
            found,
        })
    };
    assert_eq!(check(Promise::Acknowledged, at, &block(1, 5)), lost(5, 2, 1));
    assert_eq!(check(Promise::Flushed, at, &[0; 4096]), lost(5, 1, 0));
    assert_eq!(
        check(Promise::Flushed, 6 * 4096, &[0; 4096]),
        Ok(()),
        "never flushed"
    );
    assert_eq!(check(Promise::Acknowledged, 6 * 4096, &[0; 4096]), lost(6, 3, 0));
    session.power_lost();
    session.connect().unwrap();
    session.run(1, [Step::Flush]).unwrap();
    let after = session.ledger();
    assert_eq!(
        [1, 2, 3].map(|version| after.entries()[version - 1].state),
        [State::Flushed, State::Unknown, State::Unknown],
        "a flush after a power loss covers nothing from before it"
    );
    let invented = check(Promise::Flushed, at, &block(3, 5));
    assert_eq!(
        invented,
        Err(Broken::Invented {
            volume: VOLUME,
            block: 5,
            found: 3
        })
    );
    let torn = check(Promise::Flushed, at, &block(1, 5)[..512]);
    assert!(
        matches!(
            torn,
            Err(Broken::Damaged {
                fault: Fault::Torn { at: 512, .. },
                ..
            })
        ),
        "{torn:?}"
    );
    let misplaced = check(Promise::Flushed, at, &block(3, 6));
    assert!(matches!(
        misplaced,
        Err(Broken::Damaged {
            fault: Fault::Misplaced(_),
            ..
        })
    ));
    // The same to the oracle: at depth 1 the versions are the server's order.
    let mut oracle = Oracle::new(&[0, 0, 0, 1 << 20]);
    ledger.tell(&mut oracle);
    assert_eq!(oracle.block(VOLUME, BlockNo(5), model::WriteSeq(2)), block(2, 5));
    assert!(
        oracle
            .prefixes(&mut reader(&mut client))
            .unwrap()
            .last()
            .is_some()
    );
}
