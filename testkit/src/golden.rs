//! Golden files: formats as bytes in `testdata`, so that a change of a format is seen in review.
//!
//! The files lie in `testdata` of the package whose test runs. `BACKSTAY_BLESS=1` writes them anew.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// The variable that makes golden files be written instead of compared.
pub const BLESS_VARIABLE: &str = "BACKSTAY_BLESS";

/// The path of a golden file of the package whose test runs.
///
/// # Panics
/// Outside of `cargo test`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("golden files are for tests that cargo runs");
    Path::new(&package).join("testdata").join(name)
}

/// Compares bytes with `testdata/NAME`.
///
/// # Panics
/// When they differ, with both sides in hexadecimal around the first difference; when there is no such file.
pub fn check(name: &str, bytes: &[u8]) {
    check_file(&path(name), bytes, |expected| hex_difference(expected, bytes));
}

/// Compares text with `testdata/NAME`.
///
/// # Panics
/// When they differ, with the first lines that do; when there is no such file.
pub fn check_text(name: &str, text: &str) {
    check_file(&path(name), text.as_bytes(), |expected| {
        text_difference(&String::from_utf8_lossy(expected), text)
    });
}

fn check_file(path: &Path, bytes: &[u8], difference: impl Fn(&[u8]) -> String) {
    let shown = path.display();
    if std::env::var(BLESS_VARIABLE).is_ok_and(|v| v == "1") {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        }
        fs::write(path, bytes).unwrap_or_else(|e| panic!("{shown}: {e}"));
        return;
    }
    let expected = fs::read(path).unwrap_or_else(|e| panic!("{shown}: {e} ({BLESS_VARIABLE}=1 writes it)"));
    assert!(
        expected == bytes,
        "{shown} differs ({BLESS_VARIABLE}=1 writes it anew):\n{}",
        difference(&expected)
    );
}

const ROW: usize = 16;
const ROWS_SHOWN: usize = 12;

/// Rows of sixteen bytes that differ, `-` as in the file and `+` as given.
fn hex_difference(expected: &[u8], given: &[u8]) -> String {
    let mut out = format!("{} bytes in the file, {} given\n", expected.len(), given.len());
    let rows = expected.len().max(given.len()).div_ceil(ROW);
    let row = |bytes: &[u8], i: usize| {
        let end = bytes.len().min((i + 1) * ROW);
        bytes.get(i * ROW..end).unwrap_or(&[]).to_vec()
    };
    let differing: Vec<usize> = (0..rows)
        .filter(|i| row(expected, *i) != row(given, *i))
        .collect();
    for i in differing.iter().take(ROWS_SHOWN) {
        for (sign, bytes) in [('-', row(expected, *i)), ('+', row(given, *i))] {
            let hex = bytes.iter().fold(String::new(), |mut hex, b| {
                let _ = write!(hex, " {b:02x}");
                hex
            });
            let text: String = bytes
                .iter()
                .map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' })
                .collect();
            let _ = writeln!(out, "{sign} {:08x} {hex:<48}  {text}", i * ROW);
        }
    }
    if differing.len() > ROWS_SHOWN {
        let _ = writeln!(out, "and {} rows more", differing.len() - ROWS_SHOWN);
    }
    out
}

fn text_difference(expected: &str, given: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (expected.lines().collect(), given.lines().collect());
    let mut out = String::new();
    let differing: Vec<usize> = (0..a.len().max(b.len()))
        .filter(|i| a.get(*i) != b.get(*i))
        .collect();
    for i in differing.iter().take(ROWS_SHOWN) {
        for (sign, lines) in [('-', &a), ('+', &b)] {
            if let Some(line) = lines.get(*i) {
                let _ = writeln!(out, "{sign} {:4} {line}", i + 1);
            }
        }
    }
    if differing.is_empty() {
        out.push_str("only in line ends\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_differs() {
        let expected: Vec<u8> = (0..40).collect();
        let mut given = expected.clone();
        given[17] = b'A';
        given.truncate(39);
        assert_eq!(
            hex_difference(&expected, &given),
            "40 bytes in the file, 39 given\n\
             - 00000010  10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f  ................\n\
             + 00000010  10 41 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f  .A..............\n\
             - 00000020  20 21 22 23 24 25 26 27                          .!\"#$%&'\n\
             + 00000020  20 21 22 23 24 25 26                             .!\"#$%&\n"
        );
        assert_eq!(
            text_difference("a\nb\n", "a\nc\nd\n"),
            "-    2 b\n+    2 c\n+    3 d\n"
        );
    }

    #[test]
    fn the_block_format_stays() {
        let header = crate::block::Header {
            volume: model::VolumeIndex(1),
            block: model::BlockNo(2),
            version: 3,
            time: model::Timestamp(4),
            seed: 5,
        };
        check("block.bin", &crate::block::make(&header));
    }

    #[test]
    fn a_changed_or_missing_file_fails() {
        if std::env::var(BLESS_VARIABLE).is_err() {
            assert!(std::panic::catch_unwind(|| check("block.bin", b"other")).is_err());
            assert!(std::panic::catch_unwind(|| check("no-such-file", b"")).is_err());
        }
    }
}
