//! Event marks: named positions that the application sets.

use crate::{GenNo, LfcId, Timestamp, WriteSeq};

/// A named, described position; always also the end of an LFC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventMark {
    /// What the operator called it, 1 to [`EventMark::NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Free text, up to [`EventMark::DESCRIPTION_BYTES_MAX`] bytes.
    pub description: String,
    /// Generation of the mark's record.
    pub generation: GenNo,
    /// The mark's record.
    pub seq: WriteSeq,
    /// The container that ends with the mark.
    pub lfc: LfcId,
    /// When the mark was taken.
    pub time: Timestamp,
    /// Nanoseconds for which its point stays pinned, window or not.
    pub keep_ns: Option<u64>,
}

impl EventMark {
    /// Longest name in bytes.
    pub const NAME_BYTES_MAX: usize = 255;
    /// Longest description in bytes.
    pub const DESCRIPTION_BYTES_MAX: usize = 4096;

    /// Why `name` cannot name a mark, if it cannot.
    ///
    /// Names stand in export names and on command lines, so white space, `@`, `+`, `/` and control characters are out.
    #[must_use]
    pub fn name_fault(name: &str) -> Option<&'static str> {
        if name.is_empty() {
            Some("it is empty")
        } else if name.len() > Self::NAME_BYTES_MAX {
            Some("it is longer than 255 bytes")
        } else if name
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || "@+/\\\"'".contains(c))
        {
            Some("it holds white space, a control character, a quote, a slash, '@' or '+'")
        } else {
            None
        }
    }
}
