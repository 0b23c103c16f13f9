use super::*;
use crate::{
    BlockSizes, ExportInfo,
    context::Contexts,
    golden::FakeExport,
    proto::{Put, export},
};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

fn terms(info: ExportInfo) -> Terms {
    let contexts = ["base:allocation", "qemu:dirty-bitmap:since-seq:7"];
    Terms {
        info,
        style: Style::Structured,
        contexts: Contexts::select(&FakeExport { past: true }, &contexts, Style::Structured).unwrap(),
    }
}

fn extended(info: ExportInfo) -> Terms {
    Terms {
        style: Style::Extended,
        ..terms(info)
    }
}

fn header(command: u16, flags: u16, offset: u64, len: u64) -> Header {
    Header {
        style: Style::Structured,
        flags,
        command,
        cookie: 1,
        offset,
        len,
    }
}

/// What a request is answered with: an error, or `Ok`.
fn errno(t: &Terms, command: u16, flags: u16, offset: u64, len: u64) -> Result<(), Errno> {
    let h = Header {
        style: t.style,
        ..header(command, flags, offset, len)
    };
    judge(&h, t).map(drop).map_err(|r| r.errno)
}

#[test]
fn past_the_end_is_no_space_for_writes_and_invalid_for_the_rest() {
    let t = terms(ExportInfo::writable(SIZE));
    for (command, expected) in [
        (cmd::WRITE, Errno::NoSpc),
        (cmd::WRITE_ZEROES, Errno::NoSpc),
        (cmd::READ, Errno::Inval),
        (cmd::TRIM, Errno::Inval),
        (cmd::CACHE, Errno::Inval),
        (cmd::BLOCK_STATUS, Errno::Inval),
    ] {
        assert_eq!(errno(&t, command, 0, SIZE - 1, 1), Ok(()));
        for (offset, len) in [(SIZE - 1, 2), (SIZE, 1), (u64::MAX, 1), (u64::MAX - 4, 4)] {
            assert_eq!(
                errno(&t, command, 0, offset, len),
                Err(expected),
                "{command} {offset} {len}"
            );
        }
    }
}

#[test]
fn a_read_only_export_permits_no_change() {
    let t = terms(ExportInfo::read_only(SIZE));
    for command in [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM] {
        assert_eq!(errno(&t, command, 0, 0, 512), Err(Errno::Perm));
        assert_eq!(errno(&t, command, 0, SIZE, 512), Err(Errno::Perm));
    }
    for command in [cmd::READ, cmd::CACHE, cmd::BLOCK_STATUS] {
        assert_eq!(errno(&t, command, 0, 0, 512), Ok(()));
    }
    assert_eq!(judge(&header(cmd::FLUSH, 0, 0, 0), &t), Ok(Request::Flush));
}

#[test]
fn flags_are_taken_only_where_they_mean_something() {
    let full = terms(ExportInfo::writable(SIZE));
    let allowed = |command| match command {
        cmd::READ => flag::DF,
        cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
        cmd::BLOCK_STATUS => flag::REQ_ONE,
        _ => 0,
    };
    for command in [
        cmd::READ,
        cmd::WRITE,
        cmd::TRIM,
        cmd::CACHE,
        cmd::WRITE_ZEROES,
        cmd::BLOCK_STATUS,
    ] {
        for bit in 0..16 {
            let ok = (allowed(command) | flag::FUA) & 1 << bit != 0;
            let expected = if ok { Ok(()) } else { Err(Errno::Inval) };
            assert_eq!(
                errno(&full, command, 1 << bit, 0, 512),
                expected,
                "{command} bit {bit}"
            );
        }
    }
    assert_eq!(errno(&full, cmd::FLUSH, flag::FUA, 0, 0), Ok(()));
    let mut bare = ExportInfo::writable(SIZE);
    (bare.fua, bare.fast_zero) = (false, false);
    let bare = Terms {
        style: Style::Simple,
        ..terms(bare)
    };
    assert_eq!(errno(&bare, cmd::WRITE, flag::FUA, 0, 512), Err(Errno::Inval));
    assert_eq!(errno(&bare, cmd::READ, flag::DF, 0, 512), Err(Errno::Inval));
    assert_eq!(
        errno(&bare, cmd::WRITE_ZEROES, flag::FAST_ZERO, 0, 512),
        Err(Errno::Inval)
    );
}

#[test]
fn what_is_not_offered_is_invalid() {
    let mut info = ExportInfo::writable(SIZE);
    (info.flush, info.trim, info.zeroes) = (false, false, false);
    let t = Terms {
        contexts: Contexts::default(),
        ..terms(info)
    };
    for command in [
        cmd::FLUSH,
        cmd::TRIM,
        cmd::WRITE_ZEROES,
        cmd::BLOCK_STATUS,
        8,
        0xffff,
    ] {
        assert_eq!(errno(&t, command, 0, 0, 0), Err(Errno::Inval), "{command}");
    }
    assert_eq!(
        errno(&terms(ExportInfo::writable(SIZE)), cmd::FLUSH, 0, 0, 1),
        Err(Errno::Inval)
    );
}

#[test]
fn a_length_of_zero_is_nothing_to_do() {
    let t = terms(ExportInfo::writable(SIZE));
    for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES] {
        let nothing = Ok(Request::Nothing {
            is_read: command == cmd::READ,
        });
        assert_eq!(judge(&header(command, 0, SIZE, 0), &t), nothing);
    }
    assert_eq!(errno(&t, cmd::BLOCK_STATUS, 0, 0, 0), Err(Errno::Inval));
}

#[test]
fn payloads_are_bounded_and_effects_are_not() {
    let t = terms(ExportInfo::writable(1 << 40));
    let over = u64::from(BlockSizes::PAYLOAD_MAX) + 1;
    assert_eq!(errno(&t, cmd::READ, 0, 0, over - 1), Ok(()));
    assert_eq!(errno(&t, cmd::READ, 0, 0, over), Err(Errno::Inval));
    assert_eq!(errno(&t, cmd::WRITE, 0, 0, over), Err(Errno::Inval));
    assert_eq!(errno(&t, cmd::WRITE_ZEROES, 0, 0, u32::MAX.into()), Ok(()));
    assert_eq!(errno(&t, cmd::TRIM, 0, 0, u32::MAX.into()), Ok(()));
}

#[test]
fn requests_keep_to_the_blocks_of_the_export() {
    let mut info = ExportInfo::writable(SIZE);
    info.block.min = 512;
    let t = terms(info);
    assert_eq!(errno(&t, cmd::WRITE, 0, 512, 1024), Ok(()));
    assert_eq!(errno(&t, cmd::WRITE, 0, 1, 512), Err(Errno::Inval));
    assert_eq!(errno(&t, cmd::READ, 0, 0, 511), Err(Errno::Inval));
}

#[test]
fn extended_headers_have_long_lengths_and_say_what_has_a_payload() {
    let t = extended(ExportInfo::writable(1 << 50));
    let long = 1 << 49;
    for command in [cmd::WRITE_ZEROES, cmd::TRIM, cmd::CACHE, cmd::BLOCK_STATUS] {
        assert_eq!(errno(&t, command, 0, 5, long), Ok(()), "{command}");
    }
    assert_eq!(errno(&t, cmd::READ, 0, 0, long), Err(Errno::Inval));
    assert_eq!(errno(&t, cmd::WRITE, flag::PAYLOAD_LEN, 0, 512), Ok(()));
    assert_eq!(errno(&t, cmd::TRIM, 0, u64::MAX, u64::MAX), Err(Errno::Inval));
    assert_eq!(errno(&t, cmd::WRITE_ZEROES, 0, 1 << 50, 1), Err(Errno::NoSpc));
    for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::FLUSH] {
        assert_eq!(
            errno(&t, command, flag::PAYLOAD_LEN, 0, 512),
            Err(Errno::Inval),
            "{command}"
        );
    }
    // It means nothing with compact headers.
    let compact = terms(ExportInfo::writable(SIZE));
    for command in [cmd::WRITE, cmd::BLOCK_STATUS] {
        assert_eq!(
            errno(&compact, command, flag::PAYLOAD_LEN, 0, 512),
            Err(Errno::Inval)
        );
    }
}

#[test]
fn a_payload_is_where_its_header_says() {
    let head = |style, command, flags, len: u64| {
        let mut p = Vec::new();
        if style == Style::Extended {
            p.put_u32(magic::EXTENDED_REQUEST);
        } else {
            p.put_u32(magic::REQUEST);
        }
        p.put_u16(flags);
        p.put_u16(command);
        p.put_u64(1);
        p.put_u64(2);
        if style == Style::Extended {
            p.put_u64(len);
        } else {
            p.put_u32(u32::try_from(len).unwrap());
        }
        let parsed = Header::parse(style, &mut Take(&p));
        parsed.map(|h| h.unwrap().payload_len())
    };
    use Style::{Extended, Structured};
    assert_eq!(head(Structured, cmd::WRITE, 0, 512), Ok(512));
    assert_eq!(head(Structured, cmd::READ, flag::PAYLOAD_LEN, 512), Ok(0));
    assert_eq!(head(Extended, cmd::WRITE, flag::PAYLOAD_LEN, 512), Ok(512));
    assert_eq!(head(Extended, cmd::READ, flag::PAYLOAD_LEN, 1 << 40), Ok(1 << 40));
    assert_eq!(head(Extended, cmd::TRIM, 0, 1 << 40), Ok(0));
    assert_eq!(head(Extended, cmd::WRITE, 0, 512), Ok(512));
    let absurd = |style, len| {
        let t = Terms {
            style,
            ..terms(ExportInfo::writable(SIZE))
        };
        let h = Header {
            style,
            ..header(cmd::WRITE, flag::PAYLOAD_LEN, 0, len)
        };
        h.is_absurd(&t)
    };
    assert!(!absurd(Structured, 64 << 20) && absurd(Structured, (64 << 20) + 1));
    assert!(!absurd(Extended, 32 << 20) && absurd(Extended, (32 << 20) + 1));
}

#[test]
fn block_status_may_name_its_contexts() {
    let t = extended(ExportInfo::writable(SIZE));
    assert!(t.export_flags() & export::BLOCK_STATUS_PAYLOAD != 0);
    let ask = |flags: u16, offset, len: u64, ids: &[u32]| {
        let mut p = Vec::new();
        p.put_u64(len);
        ids.iter().for_each(|id| p.put_u32(*id));
        let h = Header {
            style: Style::Extended,
            ..header(
                cmd::BLOCK_STATUS,
                flag::PAYLOAD_LEN | flags,
                offset,
                p.len() as u64,
            )
        };
        match judge(&h, &t) {
            Ok(Request::BlockStatusIn { payload }) => {
                assert_eq!(payload, p.len());
                judge_status(&h, &p, &t).map_err(|r| r.errno)
            }
            Ok(other) => panic!("{other:?}"),
            Err(r) => Err(r.errno),
        }
    };
    let asked = StatusAsked {
        offset: 512,
        len: 4096,
        one: true,
        only: vec![2, 1],
    };
    assert_eq!(ask(flag::REQ_ONE, 512, 4096, &[2, 1]), Ok(asked));
    for (offset, len, ids) in [
        (0, 512, &[][..]),
        (0, 512, &[3]),
        (0, 512, &[1, 1]),
        (0, 512, &[1, 2, 1]),
        (0, 0, &[1]),
        (0, SIZE + 1, &[1]),
        (SIZE, 1, &[1]),
        (0, u64::MAX, &[1]),
    ] {
        assert_eq!(
            ask(0, offset, len, ids),
            Err(Errno::Inval),
            "{offset} {len} {ids:?}"
        );
    }
    for len in [1, 8, 11, 13, 20, u64::MAX] {
        assert_eq!(
            errno(&t, cmd::BLOCK_STATUS, flag::PAYLOAD_LEN, 0, len),
            Err(Errno::Inval),
            "{len}"
        );
    }
    assert_eq!(
        errno(&t, cmd::BLOCK_STATUS, flag::PAYLOAD_LEN, 0, 0),
        Err(Errno::Inval)
    );
    let none = Terms {
        contexts: Contexts::default(),
        ..extended(ExportInfo::writable(SIZE))
    };
    assert!(none.export_flags() & export::BLOCK_STATUS_PAYLOAD == 0);
    assert_eq!(
        errno(&none, cmd::BLOCK_STATUS, flag::PAYLOAD_LEN, 0, 12),
        Err(Errno::Inval)
    );
}

proptest! {
    #[test]
    fn random_bytes_are_no_request_or_one_that_is_judged(
        bytes in prop::collection::vec(any::<u8>(), 0..80), honest: bool, long: bool,
    ) {
        let (style, magic) = if long { (Style::Extended, magic::EXTENDED_REQUEST) } else { (Style::Structured, magic::REQUEST) };
        let mut p = Vec::new();
        if honest { p.put_u32(magic) }
        p.put(&bytes);
        let mut input = Take(&p);
        let t = Terms { style, ..terms(ExportInfo::writable(SIZE)) };
        match Header::parse(style, &mut input) {
            Ok(Some(h)) => { let _ = judge(&h, &t); }
            Ok(None) => {
                let whole = if long { EXTENDED_BYTES } else { COMPACT_BYTES };
                prop_assert!(p.len() < whole);
            }
            Err(_) => prop_assert!(!honest),
        }
    }

    #[test]
    fn what_is_carried_out_lies_inside(command in 0u16..9, offset in 0u64..2 * SIZE, len in 0u64..1 << 21) {
        let t = terms(ExportInfo::writable(SIZE));
        if let Ok(request) = judge(&header(command, 0, offset, len), &t) {
            let inside = match request {
                Request::Nothing { .. } | Request::Flush | Request::Disconnect => true,
                _ => len > 0 && offset + len <= SIZE,
            };
            prop_assert!(inside);
        }
    }
}
