//! Metadata contexts: which a client may select, and block status in them.

use crate::{Extent, chunk, proto::status};
use std::ops::Range;

/// The one context of now: what is a hole, what is zero.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// Its id on every connection.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;
/// Most descriptors of one reply: 64 KiB of them.
pub(crate) const DESCRIPTORS_MAX: usize = 8192;

/// Whether queries of LIST_META_CONTEXT find `base:allocation`. None at all ask for everything; `base:` is a wildcard.
pub(crate) fn listed(queries: &[&str]) -> bool {
    queries.is_empty() || queries.iter().any(|q| *q == BASE_ALLOCATION || *q == "base:")
}

/// Whether queries of SET_META_CONTEXT select `base:allocation`: by its whole name only.
pub(crate) fn selected(queries: &[&str]) -> bool {
    queries.contains(&BASE_ALLOCATION)
}

/// Descriptors of a range of an export: runs of equal status joined, nothing empty, nothing past the end of the export
/// or, when only one is wanted, past the range.
///
/// Extents that an export leaves out count as data, which is always a true answer.
pub(crate) fn descriptors(extents: &[Extent], range: Range<u64>, size: u64, one: bool) -> Vec<(u32, u32)> {
    let end = if one { range.end } else { size };
    let mut runs: Vec<(u64, u32)> = Vec::new();
    let mut at = range.start;
    for e in extents {
        let len = e.len.min(end - at);
        let bits = if e.hole { status::HOLE } else { 0 } | if e.zero { status::ZERO } else { 0 };
        at += len;
        match runs.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.1 == bits => last.0 += len,
            Some(_) if one => break,
            _ => runs.push((len, bits)),
        }
    }
    if runs.is_empty() {
        runs.push((range.end - range.start, 0));
    }
    let mut out = Vec::with_capacity(runs.len());
    for (len, bits) in runs {
        match u32::try_from(len) {
            Ok(len) => out.push((len, bits)),
            // What does not fit in 32 bits ends the reply: the client asks again from there.
            Err(_) => {
                out.push((LONGEST, bits));
                break;
            }
        }
    }
    out
}

/// The longest descriptor, a multiple of every block size.
const LONGEST: u32 = u32::MAX - 0xffff;

/// The reply to a block status request.
pub(crate) fn reply(out: &mut Vec<u8>, cookie: u64, descriptors: &[(u32, u32)]) {
    chunk::block_status(out, cookie, BASE_ALLOCATION_ID, descriptors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATA: u32 = 0;
    const HOLE: u32 = status::HOLE | status::ZERO;

    fn ext(len: u64, bits: u32) -> Extent {
        Extent {
            len,
            hole: bits & status::HOLE != 0,
            zero: bits & status::ZERO != 0,
        }
    }

    #[test]
    fn the_wildcard_is_for_lists_only() {
        assert!(listed(&[]) && listed(&["base:"]) && listed(&["x:y", "base:allocation"]));
        assert!(!listed(&["base:alloc"]) && !listed(&["base"]));
        assert!(!selected(&[]) && !selected(&["base:"]) && selected(&["q:", "base:allocation"]));
    }

    #[test]
    fn runs_join_and_only_the_last_may_pass_the_range() {
        let e = [ext(10, DATA), ext(0, HOLE), ext(5, DATA), ext(100, HOLE)];
        assert_eq!(descriptors(&e, 0..20, 1000, false), [(15, DATA), (100, HOLE)]);
        assert_eq!(descriptors(&e, 0..20, 50, false), [(15, DATA), (35, HOLE)]);
        assert_eq!(descriptors(&e, 0..20, 1000, true), [(15, DATA)]);
        assert_eq!(descriptors(&[ext(100, HOLE)], 5..9, 1000, true), [(4, HOLE)]);
        assert_eq!(descriptors(&[], 5..9, 1000, false), [(4, DATA)]);
    }

    #[test]
    fn an_extent_past_32_bits_ends_the_reply() {
        let e = [ext(1 << 33, HOLE), ext(10, DATA)];
        assert_eq!(descriptors(&e, 0..10, 1 << 40, false), [(LONGEST, HOLE)]);
    }

    proptest! {
        #[test]
        fn descriptors_are_never_empty_and_stay_inside(
            lens in prop::collection::vec((0u64..1 << 34, 0u32..4), 0..20),
            start in 0u64..1000, len in 1u64..1 << 32, past in 0u64..1000, one: bool,
        ) {
            let e: Vec<_> = lens.iter().map(|&(l, b)| ext(l, b)).collect();
            let d = descriptors(&e, start..start + len, start + len + past, one);
            prop_assert!(!d.is_empty() && d.iter().all(|x| x.0 > 0));
            let total: u64 = d.iter().map(|x| u64::from(x.0)).sum();
            prop_assert!(total <= len + past);
            if one { prop_assert!(d.len() == 1 && total <= len) }
        }
    }
}
