//! Metadata contexts: which of an export's a client sees and selects, and block status in them.
//!
//! `base:allocation` is every export's own; others are what [`Export::contexts`] lists and [`Export::context`] opens. A
//! selection gives each an id, from 1 on in the order in which the client asks; the ids mean nothing to anybody else.

use crate::{
    Errno, Export, Extent, MetaContext, Status,
    chunk::{Form, Style},
    option::Refused,
    proto::{STRING_BYTES_MAX, rep, status},
};
use std::{fmt, ops::Range, sync::Arc};

/// What is a hole, what is zero: the context that every export has.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// Most contexts that can be selected at a time.
const SELECTED_MAX: usize = 32;
/// Most descriptors of one context in one reply: 64 KiB of them, or 128 KiB with extended headers.
const DESCRIPTORS_MAX: usize = 8192;
/// The longest descriptor without extended headers, a multiple of every block size.
const COMPACT_LONGEST: u64 = u32::MAX as u64 - 0xffff;

/// The contexts that queries of LIST_META_CONTEXT find. No query at all asks for everything; one that ends in a colon for
/// everything that begins so; a whole name also for one that stands in no list, because it is one of endlessly many.
pub(crate) fn list(export: &dyn Export, queries: &[&str], style: Style) -> Result<Vec<String>, Refused> {
    let mut found = vec![BASE_ALLOCATION.to_owned()];
    found.extend(export.contexts());
    found.retain(|name| {
        let asked_for = |q: &&str| *q == name || (is_wildcard(q) && name.starts_with(q));
        name.len() <= STRING_BYTES_MAX && (queries.is_empty() || queries.iter().any(asked_for))
    });
    for query in queries.iter().filter(|q| !is_wildcard(q)) {
        if !found.iter().any(|f| f == query) && open(export, query, style)?.is_some() {
            found.push((*query).to_owned());
        }
    }
    Ok(found)
}

fn is_wildcard(query: &str) -> bool {
    query.ends_with(':')
}

/// Where the status of a context comes from.
#[derive(Clone)]
enum Source {
    Extents,
    Context(Arc<dyn MetaContext>),
}

/// Opens a context by its whole name; `None` when there is none, or none for this style.
fn open(export: &dyn Export, name: &str, style: Style) -> Result<Option<Source>, Refused> {
    if name == BASE_ALLOCATION {
        return Ok(Some(Source::Extents));
    }
    let context = export
        .context(name)
        .map_err(|text| Refused::new(rep::ERR_INVALID, text))?;
    let fits = |c: &Arc<dyn MetaContext>| style == Style::Extended || !c.is_wide();
    Ok(context.filter(fits).map(Source::Context))
}

/// The contexts that a client has selected for one export.
#[derive(Clone, Default)]
pub(crate) struct Contexts(Vec<Selected>);

#[derive(Clone)]
struct Selected {
    id: u32,
    name: String,
    source: Source,
}

impl Contexts {
    /// What queries of SET_META_CONTEXT select: whole names only; what is not known is not selected.
    pub(crate) fn select(export: &dyn Export, queries: &[&str], style: Style) -> Result<Self, Refused> {
        let mut selected: Vec<Selected> = Vec::new();
        for query in queries.iter().filter(|q| !is_wildcard(q)) {
            if selected.iter().any(|s| s.name == **query) {
                continue;
            }
            let Some(source) = open(export, query, style)? else {
                continue;
            };
            if selected.len() == SELECTED_MAX {
                return Err(Refused::new(
                    rep::ERR_TOO_BIG,
                    format!("more than {SELECTED_MAX} contexts"),
                ));
            }
            selected.push(Selected {
                id: u32::try_from(selected.len() + 1).expect("they are few"),
                name: (*query).to_owned(),
                source,
            });
        }
        Ok(Self(selected))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn has(&self, id: u32) -> bool {
        self.0.iter().any(|s| s.id == id)
    }

    /// Id and name of each.
    pub(crate) fn named(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|s| (s.id, s.name.as_str()))
    }

    /// The reply to a block status request in all contexts, or in those of some ids: a chunk each, or one error.
    pub(crate) fn reply(&self, ask: &Ask<'_>, only: &[u32], form: Form, out: &mut Vec<u8>) {
        let wanted: Vec<&Selected> = self
            .0
            .iter()
            .filter(|s| only.is_empty() || only.contains(&s.id))
            .collect();
        let start = out.len();
        for (i, context) in wanted.iter().enumerate() {
            match context.source.descriptors(ask, form.style) {
                Ok(found) => form.block_status(out, i + 1 == wanted.len(), context.id, &found),
                Err(e) => {
                    out.truncate(start);
                    return form.failure(out, e, &format!("{}: {e}", context.name));
                }
            }
        }
    }
}

/// The names, for logs.
impl fmt::Debug for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.named()).finish()
    }
}

/// What a block status request asks.
pub(crate) struct Ask<'a> {
    pub(crate) export: &'a dyn Export,
    /// Size of the export.
    pub(crate) size: u64,
    pub(crate) range: Range<u64>,
    /// One descriptor, within the range.
    pub(crate) one: bool,
}

impl Source {
    fn descriptors(&self, ask: &Ask<'_>, style: Style) -> Result<Vec<(u64, u64)>, Errno> {
        let max = if ask.one { 2 } else { DESCRIPTORS_MAX };
        let mut found = match self {
            Self::Extents => {
                let extents = ask.export.extents(ask.range.clone(), max)?;
                extents.into_iter().map(allocation).collect()
            }
            Self::Context(context) => context.status(ask.range.clone(), max)?,
        };
        found.truncate(max);
        let runs = descriptors(&found, ask, style);
        match self {
            // Of what is not known it can always be said that it is data; of another context nothing can be said.
            Self::Extents if runs.is_empty() => Ok(vec![(ask.range.end - ask.range.start, 0)]),
            Self::Context(_) if runs.is_empty() => Err(Errno::Io),
            _ => Ok(runs),
        }
    }
}

/// An extent as `base:allocation` tells it.
fn allocation(e: Extent) -> Status {
    let hole = if e.hole { status::HOLE } else { 0 };
    let zero = if e.zero { status::ZERO } else { 0 };
    Status {
        len: e.len,
        bits: hole | zero,
    }
}

/// Descriptors of a range of an export: runs of equal status joined, nothing empty, nothing past the end of the export
/// or, when only one is wanted, past the range.
fn descriptors(found: &[Status], ask: &Ask<'_>, style: Style) -> Vec<(u64, u64)> {
    let end = if ask.one { ask.range.end } else { ask.size };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = ask.range.start;
    for s in found {
        let len = s.len.min(end - at);
        at += len;
        match runs.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.1 == s.bits => last.0 += len,
            Some(_) if ask.one => break,
            _ => runs.push((len, s.bits)),
        }
    }
    // What does not fit in 32 bits ends a compact reply: the client asks again from there.
    if style != Style::Extended
        && let Some(i) = runs.iter().position(|run| run.0 > u32::MAX.into())
    {
        runs.truncate(i + 1);
        runs[i].0 = COMPACT_LONGEST;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exports;
    use crate::golden::{Fake, FakeExport};
    use proptest::prelude::*;

    const DATA: u64 = 0;
    const HOLE: u64 = status::HOLE | status::ZERO;

    fn run(len: u64, bits: u64) -> Status {
        Status { len, bits }
    }

    fn of(found: &[Status], range: Range<u64>, size: u64, one: bool, style: Style) -> Vec<(u64, u64)> {
        let ask = Ask {
            export: &FakeExport { past: true },
            size,
            range,
            one,
        };
        descriptors(found, &ask, style)
    }

    fn compact(found: &[Status], range: Range<u64>, size: u64, one: bool) -> Vec<(u64, u64)> {
        of(found, range, size, one, Style::Structured)
    }

    #[test]
    fn wildcards_list_and_whole_names_select() {
        let export = Fake.open("c1/vol@mark:eod").unwrap();
        let listed = |queries: &[&str]| list(&*export, queries, Style::Structured).unwrap();
        let (base, bitmap) = ("base:allocation", "qemu:dirty-bitmap:since-mark:noon");
        assert_eq!(listed(&[]), [base, bitmap]);
        assert_eq!(listed(&["base:"]), [base]);
        assert_eq!(listed(&["qemu:"]), [bitmap]);
        assert_eq!(listed(&["qemu:dirty-bitmap:", base, "x:y"]), [base, bitmap]);
        assert_eq!(listed(&["base:alloc", "base", "qemu"]), [""; 0]);
        // One of endlessly many.
        assert_eq!(
            listed(&["qemu:dirty-bitmap:since-seq:7"]),
            ["qemu:dirty-bitmap:since-seq:7"]
        );
        let selected = |queries: &[&str], style| -> Vec<(u32, String)> {
            let contexts = Contexts::select(&*export, queries, style).unwrap();
            contexts.named().map(|(id, n)| (id, n.to_owned())).collect()
        };
        assert_eq!(selected(&[], Style::Structured), []);
        assert_eq!(selected(&["base:", "qemu:", "x:y"], Style::Structured), []);
        assert_eq!(
            selected(&[bitmap, "q:", base, bitmap], Style::Structured),
            [(1, bitmap.to_owned()), (2, base.to_owned())]
        );
        // What has 64 bits is only for those who can read them.
        assert_eq!(selected(&["x-backstay:seq"], Style::Structured), []);
        assert_eq!(
            selected(&["x-backstay:seq"], Style::Extended),
            [(1, "x-backstay:seq".to_owned())]
        );
    }

    #[test]
    fn what_cannot_be_selected_is_refused_with_its_text() {
        let export = Fake.open("c1/vol@mark:eod").unwrap();
        let refused =
            Contexts::select(&*export, &["qemu:dirty-bitmap:since-typo"], Style::Structured).unwrap_err();
        assert_eq!(
            (refused.kind, &*refused.text),
            (rep::ERR_INVALID, "no point 'typo'")
        );
        let names: Vec<String> = (0..33)
            .map(|i| format!("qemu:dirty-bitmap:since-seq:{i}"))
            .collect();
        let many: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(
            Contexts::select(&*export, &many, Style::Structured)
                .unwrap_err()
                .kind,
            rep::ERR_TOO_BIG
        );
        assert_eq!(
            Contexts::select(&*export, &many[1..], Style::Structured)
                .unwrap()
                .count(),
            32
        );
    }

    #[test]
    fn runs_join_and_only_the_last_may_pass_the_range() {
        let e = [run(10, DATA), run(0, HOLE), run(5, DATA), run(100, HOLE)];
        assert_eq!(compact(&e, 0..20, 1000, false), [(15, DATA), (100, HOLE)]);
        assert_eq!(compact(&e, 0..20, 50, false), [(15, DATA), (35, HOLE)]);
        assert_eq!(compact(&e, 0..20, 1000, true), [(15, DATA)]);
        assert_eq!(compact(&[run(100, HOLE)], 5..9, 1000, true), [(4, HOLE)]);
    }

    #[test]
    fn a_run_past_32_bits_ends_a_compact_reply() {
        let e = [run(1 << 33, HOLE), run(10, DATA)];
        assert_eq!(compact(&e, 0..10, 1 << 40, false), [(COMPACT_LONGEST, HOLE)]);
        assert_eq!(
            of(&e, 0..10, 1 << 40, false, Style::Extended),
            [(1 << 33, HOLE), (10, DATA)]
        );
    }

    #[test]
    fn what_is_not_known_is_data_and_in_no_other_context_anything() {
        struct Silent;
        impl MetaContext for Silent {
            fn status(&self, _: Range<u64>, _: usize) -> Result<Vec<Status>, Errno> {
                Ok(Vec::new())
            }
        }
        struct Empty;
        impl Export for Empty {
            fn info(&self) -> crate::ExportInfo {
                crate::ExportInfo::read_only(100)
            }
            fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
                Err(Errno::Io)
            }
            fn submit(&self, _: Vec<crate::Mutation>) {}
            fn extents(&self, _: Range<u64>, _: usize) -> Result<Vec<Extent>, Errno> {
                Ok(Vec::new())
            }
        }
        let ask = Ask {
            export: &Empty,
            size: 100,
            range: 5..9,
            one: false,
        };
        assert_eq!(
            Source::Extents.descriptors(&ask, Style::Structured),
            Ok(vec![(4, 0)])
        );
        let silent = Source::Context(Arc::new(Silent));
        assert_eq!(silent.descriptors(&ask, Style::Structured), Err(Errno::Io));
    }

    proptest! {
        #[test]
        fn descriptors_are_never_empty_and_stay_inside(
            lens in prop::collection::vec((1u64..1 << 34, 0u64..4), 1..20),
            start in 0u64..1000, len in 1u64..1 << 32, past in 0u64..1000, one: bool, extended: bool,
        ) {
            let e: Vec<_> = lens.iter().map(|&(l, b)| run(l, b)).collect();
            let style = if extended { Style::Extended } else { Style::Structured };
            let d = of(&e, start..start + len, start + len + past, one, style);
            prop_assert!(!d.is_empty() && d.iter().all(|x| x.0 > 0));
            let total: u64 = d.iter().map(|x| x.0).sum();
            prop_assert!(total <= len + past);
            if one { prop_assert!(d.len() == 1 && total <= len) }
            if !extended { prop_assert!(d.iter().all(|x| x.0 <= u32::MAX.into())) }
        }
    }
}
