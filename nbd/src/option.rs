//! The payloads of negotiation options: parsed, bounded, nothing else.

use crate::{
    OpenError,
    proto::{STRING_BYTES_MAX, Take, rep},
};
use std::borrow::Cow;

/// Longest payload of an option; it holds a name, and queries enough for any client known.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Longest payload that is skipped and refused. A client that announces more is cut off.
pub(crate) const SKIPPED_BYTES_MAX: usize = 1 << 20;

/// Why an option is refused, as it is told to the client: the kind of the error reply, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) kind: u32,
    pub(crate) text: Cow<'static, str>,
}

impl Refused {
    pub(crate) fn new(kind: u32, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    const fn invalid(text: &'static str) -> Self {
        Self {
            kind: rep::ERR_INVALID,
            text: Cow::Borrowed(text),
        }
    }
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        let kind = match error {
            OpenError::Refused(_) => rep::ERR_POLICY,
            // The protocol has no word for an export that exists and fails; the text tells.
            OpenError::Unknown(_) | OpenError::Failed(_) => rep::ERR_UNKNOWN,
        };
        Self::new(kind, error.to_string())
    }
}

const SHORT: Refused = Refused::invalid("the option is shorter than what it announces");
const LONG: Refused = Refused::invalid("the option is longer than what it announces");

/// What INFO and GO ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InfoQuery<'a> {
    pub(crate) name: &'a str,
    pub(crate) kinds: Vec<u16>,
}

/// What LIST_META_CONTEXT and SET_META_CONTEXT ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContextQuery<'a> {
    pub(crate) name: &'a str,
    pub(crate) queries: Vec<&'a str>,
}

/// The name of an export, which is all the payload of EXPORT_NAME.
pub(crate) fn export_name(payload: &[u8]) -> Result<&str, Refused> {
    text(payload)
}

/// An option without payload.
pub(crate) fn empty(payload: &[u8]) -> Result<(), Refused> {
    if payload.is_empty() { Ok(()) } else { Err(LONG) }
}

pub(crate) fn info_query(payload: &[u8]) -> Result<InfoQuery<'_>, Refused> {
    let mut rest = Take(payload);
    let name = text(rest.counted().ok_or(SHORT)?)?;
    let count = rest.u16().ok_or(SHORT)?;
    let kinds = (0..count)
        .map(|_| rest.u16().ok_or(SHORT))
        .collect::<Result<_, _>>()?;
    finished(rest, InfoQuery { name, kinds })
}

pub(crate) fn context_query(payload: &[u8]) -> Result<ContextQuery<'_>, Refused> {
    let mut rest = Take(payload);
    let name = text(rest.counted().ok_or(SHORT)?)?;
    let count = rest.u32().ok_or(SHORT)?;
    // The count is the client's word: the vector grows with what is really there.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(text(rest.counted().ok_or(SHORT)?)?);
    }
    finished(rest, ContextQuery { name, queries })
}

fn finished<T>(rest: Take<'_>, value: T) -> Result<T, Refused> {
    if rest.is_empty() { Ok(value) } else { Err(LONG) }
}

fn text(bytes: &[u8]) -> Result<&str, Refused> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(Refused::new(
            rep::ERR_TOO_BIG,
            "a string is longer than 4096 bytes",
        ));
    }
    match std::str::from_utf8(bytes) {
        Ok(s) if !s.contains('\0') => Ok(s),
        _ => Err(Refused::invalid("a string is not utf-8 or contains a zero byte")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Put;
    use proptest::prelude::*;

    fn go(name: &str, kinds: &[u16]) -> Vec<u8> {
        let mut p = Vec::new();
        p.put_str(name);
        p.put_u16(u16::try_from(kinds.len()).unwrap());
        kinds.iter().for_each(|k| p.put_u16(*k));
        p
    }

    #[test]
    fn an_option_must_be_exactly_as_long_as_it_says() {
        let mut p = go("v", &[1, 3]);
        assert_eq!(
            info_query(&p).unwrap(),
            InfoQuery {
                name: "v",
                kinds: vec![1, 3]
            }
        );
        for cut in 0..p.len() {
            assert!(info_query(&p[..cut]).is_err(), "cut at {cut}");
        }
        p.push(0);
        assert_eq!(info_query(&p), Err(LONG));
        assert_eq!(empty(b"x"), Err(LONG));
    }

    #[test]
    fn strings_are_bounded_and_utf8() {
        let long = "n".repeat(4097);
        assert_eq!(info_query(&go(&long, &[])).unwrap_err().kind, rep::ERR_TOO_BIG);
        assert!(info_query(&go(&long[1..], &[])).is_ok());
        assert_eq!(export_name(&[0xff]).unwrap_err().kind, rep::ERR_INVALID);
        assert_eq!(export_name(b"a\0b").unwrap_err().kind, rep::ERR_INVALID);
    }

    #[test]
    fn a_count_of_queries_allocates_nothing() {
        let mut p = Vec::new();
        p.put_str("v");
        p.put_u32(u32::MAX);
        assert_eq!(context_query(&p), Err(SHORT));
    }

    proptest! {
        #[test]
        fn random_payloads_never_panic(p in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (export_name(&p), info_query(&p), context_query(&p), empty(&p));
        }
    }
}
