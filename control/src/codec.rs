//! Lines of JSON, bounded.

use crate::{Request, VERSION};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, BufRead, Read},
    time::Duration,
};

/// Longest line either side accepts or sends, its line end included.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Longest request of a client that may do little or nothing: what it may ask for is said in less.
pub const SMALL_LINE_BYTES_MAX: usize = 64 << 10;

/// Why a line could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The socket failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// The line is too long to be one of ours.
    #[error("control line is longer than {0} bytes")]
    TooLong(usize),
    /// The line did not come in time, however its bytes were spread.
    #[error("no control line came within {} s", .0.as_secs_f64())]
    TooSlow(Duration),
    /// The stream ended inside a line.
    #[error("control stream ended after {0} bytes of an unfinished line")]
    CutOff(usize),
    /// Not JSON, or not what is expected here.
    #[error("control line is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// The other side speaks another version.
    #[error(
        "control version {theirs} is not spoken here, only {ours}: client and daemon are of different releases"
    )]
    Version {
        /// Of the request.
        theirs: u64,
        /// [`VERSION`].
        ours: u32,
    },
}

/// One line, with its end.
///
/// # Errors
/// When the value does not fit in [`LINE_BYTES_MAX`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    // Raw line ends cannot occur inside: JSON strings escape them.
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() > LINE_BYTES_MAX {
        return Err(CodecError::TooLong(LINE_BYTES_MAX));
    }
    Ok(line)
}

/// The value of one line, with or without its end.
///
/// # Errors
/// When it is no such value.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, CodecError> {
    Ok(serde_json::from_slice(line)?)
}

/// A request. The version is looked at before anything else is.
///
/// # Errors
/// When it is of another version, or no request.
pub fn decode_request(line: &[u8]) -> Result<Request, CodecError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u64,
    }
    let Versioned { version } = decode(line)?;
    if version != u64::from(VERSION) {
        return Err(CodecError::Version {
            theirs: version,
            ours: VERSION,
        });
    }
    decode(line)
}

/// Reads one line without its end; `None` at the end of the stream.
///
/// # Errors
/// When the stream fails, ends inside a line, or the line is too long (after which the stream is of no use).
pub fn read_line(from: &mut impl BufRead) -> Result<Option<Vec<u8>>, CodecError> {
    let mut line = Vec::new();
    let read = from
        .by_ref()
        .take(LINE_BYTES_MAX as u64)
        .read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if read == LINE_BYTES_MAX => Err(CodecError::TooLong(LINE_BYTES_MAX)),
        Some(_) => Err(CodecError::CutOff(read)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Options};

    #[test]
    fn another_version_is_refused_with_both_numbers() {
        let mut request = Request::new(Command::NodeInfo, Options::default());
        let line = encode(&request).unwrap();
        assert_eq!(decode_request(&line).unwrap(), request);
        request.version = 2;
        let text = decode_request(&encode(&request).unwrap())
            .unwrap_err()
            .to_string();
        assert!(text.contains("version 2") && text.contains("only 1"), "{text}");
        // Also when nothing else of it is known here.
        assert!(matches!(
            decode_request(br#"{"version":99,"verb":"dance"}"#),
            Err(CodecError::Version { theirs: 99, .. })
        ));
        assert!(matches!(decode_request(b"{}"), Err(CodecError::Json(_))));
    }

    #[test]
    fn lines_are_bounded() {
        let mut long = io::Cursor::new(vec![b'x'; LINE_BYTES_MAX + 1]);
        assert!(matches!(read_line(&mut long), Err(CodecError::TooLong(_))));
        let mut cut = io::Cursor::new(b"{}\n{".to_vec());
        assert_eq!(read_line(&mut cut).unwrap().unwrap(), b"{}");
        assert!(matches!(read_line(&mut cut), Err(CodecError::CutOff(1))));
        assert_eq!(read_line(&mut io::empty()).unwrap(), None);
        assert!(matches!(
            encode(&"x".repeat(LINE_BYTES_MAX)),
            Err(CodecError::TooLong(LINE_BYTES_MAX))
        ));
    }
}
