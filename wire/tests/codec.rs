//! The message format: golden bytes, round trips, and hostile input.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bytes::{Bytes, BytesMut};
use model::{ByteRange, ContextId, GenId, LfcId, Payload, Role, Term, VolumeIndex, WriteSeq};
use proptest::prelude::*;
use std::{fmt::Write as _, fs, path::Path};
use wire::{
    Ack, CodecError, Copy, Decoder, Frame, Hello, Jump, JumpCause, Kind, Lacks, Message, NodeCard, Offer,
    Position, Refuse, RefuseCode, Request, Response, Seal, Version, Welcome,
    codec::{self, COPY_ACKS_MAX, HEADER_BYTES, REQUEST_BYTES_MAX, TEXT_BYTES_MAX},
};

fn position(n: u64) -> Position {
    Position {
        generation: GenId(0x0123_4567_89ab_cdef),
        seq: WriteSeq(n),
        digest: [n as u8; 32],
    }
}

fn card() -> NodeCard {
    NodeCard {
        name: "rec1".into(),
        endpoints: vec!["rec1:7400".into(), "[::1]:7400".into()],
    }
}

fn copy(payload: Payload) -> Copy {
    Copy {
        seq: WriteSeq(102),
        volume: VolumeIndex(3),
        range: ByteRange::at(32768, 4),
        payload,
    }
}

/// One of each kind, and each variant that is laid out differently.
fn samples() -> Vec<Message> {
    [of_version_1(), of_version_2()].concat()
}

/// What version 2 has beside version 1.
fn of_version_2() -> Vec<Message> {
    let offer = |piece, pieces| {
        Message::Offer(Offer {
            seq: WriteSeq(103),
            volume: VolumeIndex(3),
            range: ByteRange::at(32768, 10_000),
            piece,
            pieces,
        })
    };
    vec![
        offer(4096, vec![0x0102_0304_0506_0708, 2, u64::MAX]),
        offer(0, Vec::new()),
        Message::Lacks(Lacks {
            seq: WriteSeq(103),
            ranges: vec![ByteRange::at(32768, 4096), ByteRange::at(40960, 1808)],
        }),
    ]
}

fn of_version_1() -> Vec<Message> {
    vec![
        Message::Hello(Hello {
            oldest: 1,
            newest: 1,
            context: ContextId(7),
            node: "prod1".into(),
            role: Role::Production,
            term: Term(3),
            durable: position(104),
            config: [0xcc; 32],
            instance: 0x1122_3344_5566_7788,
        }),
        Message::Welcome(Welcome {
            version: Version::V1,
            node: "rec1".into(),
            role: Role::Recovery,
            term: Term(3),
            received: position(100),
            open_lfc: LfcId(4),
            applied: WriteSeq(90),
            copying: true,
            gives_way: false,
            config: [0xcc; 32],
            instance: 0x8877_6655_4433_2211,
        }),
        Message::Refuse(Refuse {
            code: RefuseCode::LowerTerm,
            term: Term(4),
            text: "term 3 is lower than 4".into(),
        }),
        Message::Bye {
            text: "stopping".into(),
        },
        Message::Ping { nonce: 5 },
        Message::Pong { nonce: 5 },
        Message::Pair {
            secret: *b"0123456789",
            card: card(),
        },
        Message::Paired { card: card() },
        Message::Frame(Frame {
            generation: GenId(0x0123_4567_89ab_cdef),
            lfc: LfcId(4),
            after: WriteSeq(100),
            first: WriteSeq(101),
            last: WriteSeq(104),
            durable: WriteSeq(104),
            digest: [0xdd; 32],
            bytes: Bytes::from_static(b"frame"),
        }),
        Message::Seal(Seal {
            lfc: LfcId(4),
            last: WriteSeq(104),
            digest: [0xdd; 32],
            flags: 1,
        }),
        Message::Jump(Jump {
            to: position(200),
            lfc: LfcId(16),
            cause: JumpCause::Dropped,
            parent: None,
        }),
        Message::Copy(copy(Payload::Data(Bytes::from_static(b"copy")))),
        Message::Copy(copy(Payload::Zero)),
        Message::CopiesComplete { seq: WriteSeq(104) },
        Message::Durable { seq: WriteSeq(104) },
        Message::Ack(Ack {
            received_durable: WriteSeq(104),
            applied: WriteSeq(100),
        }),
        Message::CopyAck {
            seqs: vec![WriteSeq(101), WriteSeq(102)],
        },
        Message::Request(Request {
            id: 9,
            kind: 2,
            body: Bytes::from_static(b"question"),
        }),
        Message::Response(Response {
            id: 9,
            code: 0,
            body: Bytes::from_static(b"answer"),
        }),
    ]
}

fn bytes_of(message: &Message) -> Vec<u8> {
    let (head, payload) = codec::encode(message).unwrap().into_parts();
    [head, payload].concat()
}

fn decode(bytes: &[u8], decoder: Decoder) -> Result<Option<Message>, CodecError> {
    decoder.decode(&mut BytesMut::from(bytes))
}

fn decode_any(bytes: &[u8]) -> Result<Option<Message>, CodecError> {
    match decode(bytes, Decoder::peer()) {
        Err(CodecError::Forbidden(_)) => decode(bytes, Decoder::pairing()),
        other => other,
    }
}

/// The bytes with their checksum made right again.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = u32::try_from(bytes.len() - HEADER_BYTES).unwrap();
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[4..6]), &bytes[HEADER_BYTES..]);
    bytes[6..10].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testdata/wire")
        .join(name)
}

#[test]
fn the_bytes_of_version_1_stay() {
    the_bytes_stay(&of_version_1(), "v1.txt");
}

#[test]
fn the_bytes_of_version_2_stay() {
    the_bytes_stay(&of_version_2(), "v2.txt");
}

fn the_bytes_stay(samples: &[Message], name: &str) {
    let text: String = samples.iter().fold(String::new(), |mut s, m| {
        let _ = writeln!(s, "{:?} {}", m.kind(), hex(&bytes_of(m)));
        s
    });
    let path = golden(name);
    if std::env::var("BACKSTAY_BLESS").is_ok_and(|v| v == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    for (ours, golden) in text.lines().zip(expected.lines()) {
        assert_eq!(ours, golden);
    }
    assert_eq!(text.lines().count(), expected.lines().count());
    for (line, message) in expected.lines().zip(samples) {
        let bytes = unhex(line.split_once(' ').unwrap().1);
        assert_eq!(decode_any(&bytes).unwrap().as_ref(), Some(message));
    }
}

/// The pieces of an offer are as many as its range has, and what lacks is some of it, in order.
#[test]
fn offers_that_make_no_sense_are_neither_sent_nor_read() {
    let at = |start, len| ByteRange::at(start, len);
    let offer = |range, piece, pieces| {
        Message::Offer(Offer {
            seq: WriteSeq(1),
            volume: VolumeIndex(0),
            range,
            piece,
            pieces,
        })
    };
    let lacks = |ranges| {
        Message::Lacks(Lacks {
            seq: WriteSeq(1),
            ranges,
        })
    };
    for (bad, why) in [
        (offer(at(0, 8192), 4096, vec![1]), "too few"),
        (offer(at(0, 8192), 4096, vec![1; 3]), "too many"),
        (offer(at(0, 8192), 0, vec![1]), "none are told of"),
        (
            offer(at(0, 4 << 20), 1, vec![1; 4 << 20]),
            "more than there may be",
        ),
        (lacks(Vec::new()), "nothing lacks"),
        (lacks(vec![at(8192, 1), at(0, 1)]), "they fall"),
        (lacks(vec![at(0, 8), at(8, 1)]), "they touch"),
        (
            lacks((0..1025).map(|n| at(n * 2, 1)).collect()),
            "too many ranges",
        ),
    ] {
        assert!(codec::encode(&bad).is_err(), "{why}");
    }
    // The same of the bytes: a range that is empty, and a piece that makes too many.
    let good = bytes_of(&offer(at(0, 8192), 4096, vec![1; 2]));
    let length_at = HEADER_BYTES + 18;
    for (at, value) in [(length_at, 0_u64), (length_at, 8193), (length_at, u64::MAX)] {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
        assert!(decode_any(&with_crc(bad)).is_err(), "{value}");
    }
}

/// Kept apart from `v1.txt`: another zstd may pack otherwise, but every one must read this.
#[test]
fn a_compressed_message_of_version_1_is_read() {
    let frame = Frame {
        generation: GenId(1),
        lfc: LfcId(2),
        after: WriteSeq(0),
        first: WriteSeq(1),
        last: WriteSeq(1),
        durable: WriteSeq(1),
        digest: [1; 32],
        bytes: Bytes::from(vec![b'x'; 20_000]),
    };
    let path = golden("v1-compressed.txt");
    if std::env::var("BACKSTAY_BLESS").is_ok_and(|v| v == "1") {
        let packed = codec::encode(&Message::Frame(frame.clone()))
            .unwrap()
            .compress(1)
            .unwrap();
        fs::write(&path, format!("Frame {}\n", hex(&packed.into_parts().0))).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let bytes = unhex(text.trim().split_once(' ').unwrap().1);
    assert!(bytes.len() < 300);
    assert_eq!(decode_any(&bytes).unwrap(), Some(Message::Frame(frame)));
}

#[test]
fn every_kind_has_a_sample() {
    let have: Vec<_> = samples().iter().map(Message::kind).collect();
    assert!(Kind::ALL.iter().all(|k| have.contains(k)));
}

#[test]
fn messages_in_one_buffer_come_one_by_one() {
    let all: Vec<_> = samples()
        .into_iter()
        .filter(|m| !matches!(m.kind(), Kind::Pair | Kind::Paired))
        .collect();
    let stream: Vec<u8> = all.iter().flat_map(bytes_of).collect();
    let (mut buf, mut got) = (BytesMut::new(), Vec::new());
    for byte in stream {
        buf.extend_from_slice(&[byte]);
        got.extend(Decoder::peer().decode(&mut buf).unwrap());
    }
    assert_eq!(got, all);
    assert!(buf.is_empty());
}

#[test]
fn every_damaged_byte_is_noticed() {
    for message in samples() {
        let good = bytes_of(&message);
        for at in 4..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(
                    decode_any(&bad).is_err(),
                    "{:?} byte {at} bit {bit}",
                    message.kind()
                );
            }
        }
    }
}

#[test]
fn a_body_cut_or_lengthened_with_a_right_checksum_is_refused() {
    for message in samples() {
        let good = bytes_of(&message);
        for len in HEADER_BYTES..good.len() {
            match decode_any(&with_crc(good[..len].to_vec())) {
                // A shorter payload of opaque bytes is another message, not a damaged one.
                Ok(Some(m)) => assert_ne!(m, message),
                other => assert!(other.is_err(), "{:?} cut at {len}", message.kind()),
            }
        }
        let mut long = good.clone();
        long.push(0);
        if !matches!(message.kind(), Kind::Frame | Kind::Request | Kind::Response) {
            assert!(
                decode_any(&with_crc(long)).is_err(),
                "{:?} lengthened",
                message.kind()
            );
        }
    }
}

#[test]
fn lengths_are_refused_before_their_bytes_arrive() {
    for kind in Kind::ALL {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        header[4] = *kind as u8;
        assert!(
            matches!(decode_any(&header), Err(CodecError::Length { .. })),
            "{kind:?}"
        );
    }
    let unknown = [0, 0, 0, 0, 99, 0, 0, 0, 0, 0];
    assert_eq!(decode_any(&unknown), Err(CodecError::Kind(99)));
}

#[test]
fn strangers_may_say_little_and_peers_do_not_pair() {
    for message in samples() {
        let kind = message.kind();
        let stranger = matches!(kind, Kind::Pair | Kind::Paired | Kind::Refuse);
        assert_eq!(
            decode(&bytes_of(&message), Decoder::pairing()).is_ok(),
            stranger,
            "{kind:?}"
        );
        let peer = !matches!(kind, Kind::Pair | Kind::Paired);
        assert_eq!(
            decode(&bytes_of(&message), Decoder::peer()).is_ok(),
            peer,
            "{kind:?}"
        );
    }
}

#[test]
fn a_packed_body_never_unpacks_to_more_than_its_kind_may_be() {
    let mut packed = vec![0; zstd_safe::compress_bound(4 << 20)];
    let len = zstd_safe::compress(&mut packed[..], &vec![0; 4 << 20], 1).unwrap();
    packed.truncate(len);
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[4] = Kind::Request as u8;
    bytes[5] = 1;
    for claimed in [4_u32 << 20, 1 << 20, 0] {
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(&claimed.to_le_bytes());
        bytes.extend_from_slice(&packed);
        assert!(decode_any(&with_crc(bytes.clone())).is_err(), "{claimed}");
    }
    bytes[4] = Kind::Ping as u8;
    let e = decode_any(&with_crc(bytes));
    assert_eq!(
        e,
        Err(CodecError::Flags {
            kind: Kind::Ping,
            flags: 1
        })
    );
}

#[test]
fn a_foreign_version_is_told_apart_from_damage() {
    let mut bytes = bytes_of(&samples()[0]);
    bytes[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&[3, 0, 5, 0]);
    bytes.truncate(HEADER_BYTES + 4);
    assert_eq!(
        decode_any(&with_crc(bytes)),
        Err(CodecError::Version { oldest: 3, newest: 5 })
    );

    // A newer peer that still speaks version 1 may say more in its greeting.
    let mut bytes = bytes_of(&samples()[0]);
    bytes[HEADER_BYTES + 2] = 3;
    bytes.extend_from_slice(b"more");
    assert!(matches!(decode_any(&with_crc(bytes)), Ok(Some(Message::Hello(h))) if h.newest == 3));
}

#[test]
fn what_is_too_long_is_not_encoded() {
    let body = Bytes::from(vec![0; REQUEST_BYTES_MAX + 1]);
    assert!(codec::encode(&Message::Request(Request { id: 1, kind: 1, body })).is_err());
    assert!(
        codec::encode(&Message::CopyAck {
            seqs: vec![WriteSeq(1); COPY_ACKS_MAX + 1]
        })
        .is_err()
    );
    assert!(codec::encode(&Message::Hello(Hello::node("x".repeat(256)))).is_err());
    let endpoints = vec!["a:1".to_owned(); 17];
    assert!(
        codec::encode(&Message::Paired {
            card: NodeCard {
                name: "a".into(),
                endpoints
            }
        })
        .is_err()
    );
    // A reason is cut instead, for it must arrive; in whole characters.
    let bye = bytes_of(&Message::Bye {
        text: "é".repeat(TEXT_BYTES_MAX),
    });
    assert!(matches!(decode_any(&bye), Ok(Some(Message::Bye { text })) if text.len() == TEXT_BYTES_MAX));
}

#[test]
fn the_largest_messages_fit() {
    let seqs: Vec<_> = (0..COPY_ACKS_MAX as u64).map(WriteSeq).collect();
    let card = NodeCard {
        name: "n".repeat(255),
        endpoints: vec!["e".repeat(255); 16],
    };
    let body = Bytes::from(vec![7; REQUEST_BYTES_MAX]);
    for message in [
        Message::CopyAck { seqs },
        Message::Paired { card: card.clone() },
        Message::Pair {
            secret: [1; 10],
            card,
        },
        Message::Request(Request { id: 1, kind: 1, body }),
        Message::Hello(Hello::node("n".repeat(255))),
        Message::Welcome(Welcome::node("n".repeat(255))),
    ] {
        assert_eq!(decode_any(&bytes_of(&message)).unwrap(), Some(message));
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_any(&bytes);
    }

    #[test]
    fn hostile_bodies_with_right_checksums_never_panic(
        kind in proptest::sample::select(Kind::ALL),
        packed: bool,
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4] = kind as u8;
        bytes[5] = u8::from(packed && kind.compressible());
        bytes.extend_from_slice(&body);
        // What is taken for a message is one: it encodes to bytes that decode to it.
        if let Ok(Some(m)) = decode_any(&with_crc(bytes)) {
            prop_assert_eq!(decode_any(&bytes_of(&m)).unwrap(), Some(m));
        }
    }

    #[test]
    fn changed_fields_never_panic(which in 0..19_usize, at: proptest::sample::Index, value: u8) {
        let mut bytes = bytes_of(&samples()[which]);
        let body = bytes.len() - HEADER_BYTES;
        bytes[HEADER_BYTES + at.index(body)] = value;
        if let Ok(Some(m)) = decode_any(&with_crc(bytes)) {
            prop_assert_eq!(decode_any(&bytes_of(&m)).unwrap(), Some(m));
        }
    }

    #[test]
    fn frames_round_trip_packed_and_not(
        n in proptest::array::uniform3(1_u64..1 << 60),
        digest: [u8; 32],
        bytes in proptest::collection::vec(any::<u8>(), 1..5000),
        repeat in 1_usize..20,
    ) {
        let frame = Message::Frame(Frame {
            generation: GenId(n[0]),
            lfc: LfcId(n[1] * 2),
            after: WriteSeq(n[2]),
            first: WriteSeq(n[2] + 1),
            last: WriteSeq(n[2] + n[0]),
            durable: WriteSeq(n[1]),
            digest,
            bytes: bytes.repeat(repeat).into(),
        });
        prop_assert_eq!(decode_any(&bytes_of(&frame)).unwrap(), Some(frame.clone()));
        if let Some(packed) = codec::encode(&frame).unwrap().compress(1) {
            let (head, payload) = packed.into_parts();
            prop_assert_eq!(decode_any(&[head, payload].concat()).unwrap(), Some(frame));
        }
    }
}

#[test]
fn the_format_page_has_the_kinds_and_bounds_of_the_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats/wire.md");
    let page = fs::read_to_string(page).unwrap();
    for kind in Kind::ALL {
        let row = format!("| {} | {kind:?} | ", *kind as u8);
        let row = page
            .lines()
            .find(|l| l.starts_with(&row))
            .unwrap_or_else(|| panic!("no row {row}"));
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(
            cells[4].replace(',', ""),
            kind.body_bytes_max().to_string(),
            "{row}"
        );
        assert_eq!(cells[5] == "z", kind.compressible(), "{row}");
    }
    for code in RefuseCode::ALL {
        assert!(page.contains(&format!("\n| {} | ", *code as u16)), "{code:?}");
    }
}
