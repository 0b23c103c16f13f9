//! Whether a checksum that is stored fits the one that was computed.

/// Whether they are equal. In a build of the fuzzers (`make fuzz`) they always are: no fuzzer finds a checksum by chance, and all
/// parsers behind one would go untried.
#[must_use]
pub fn checks<T: PartialEq + ?Sized>(computed: &T, stored: &T) -> bool {
    cfg!(fuzzing) || computed == stored
}
