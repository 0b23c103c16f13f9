//! Typed rows of the store and their bytes (`docs/formats/journal.md`, "Rows").
//!
//! Every value starts with a version byte; a row of a version that this build does not know is refused.

mod catalog;
mod state;

pub use catalog::{Generation, LfcRow, OrdinalRow, Parent};
pub(crate) use catalog::{
    decode_mark, decode_step, decode_touched, encode_mark, encode_step, encode_touched,
};
pub use state::{Consistent, ContextRow, Floors, PinKind, PinRow, Promotion, RestorePhase, RestoreRow};

use crate::{
    codec::{Malformed, Read, Reader, Writer},
    error::{Damage, JournalError, Position},
};
use model::{GenNo, LfcId, Ordinal, Point, RedoSpan, Timestamp, WriteSeq};

/// Version byte of every value.
const VERSION: u8 = 1;

pub(crate) fn begin() -> Writer {
    let mut w = Writer::default();
    w.u8(VERSION);
    w
}

pub(crate) fn open(bytes: &[u8]) -> Read<Reader<'_>> {
    let mut r = Reader(bytes);
    r.version(VERSION)?;
    Ok(r)
}

/// Turns a malformed value into located damage.
pub(crate) fn checked<T>(family: &'static str, key: &[u8], value: Read<T>) -> Result<T, JournalError> {
    value.map_err(|fault| match fault {
        Malformed::Version { found, known } => JournalError::Version {
            what: format!("{family} row {}", hex(key)),
            found,
            known,
        },
        fault @ Malformed::What(_) => Damage::Row {
            family,
            key: hex(key),
            what: fault.to_string(),
        }
        .into(),
    })
}

/// A key that does not have its form.
pub(crate) fn bad_key(family: &'static str, key: &[u8]) -> JournalError {
    Damage::Row {
        family,
        key: hex(key),
        what: "the key has another form".into(),
    }
    .into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn put_position(w: &mut Writer, p: Position) {
    w.u32(p.generation.0).u64(p.seq.0);
}

fn position(r: &mut Reader<'_>) -> Read<Position> {
    Ok(Position {
        generation: GenNo(r.u32()?),
        seq: WriteSeq(r.u64()?),
    })
}

fn put_spans(w: &mut Writer, spans: &[RedoSpan]) {
    w.u16(u16::try_from(spans.len()).expect("a line has few generations"));
    for s in spans {
        w.u32(s.generation.0).u64(s.after.0).u64(s.upto.0);
    }
}

fn spans(r: &mut Reader<'_>) -> Read<Vec<RedoSpan>> {
    let n = r.u16()?;
    (0..n)
        .map(|_| {
            Ok(RedoSpan {
                generation: GenNo(r.u32()?),
                after: WriteSeq(r.u64()?),
                upto: WriteSeq(r.u64()?),
            })
        })
        .collect()
}

fn put_point(w: &mut Writer, p: &Point) {
    w.u32(p.generation.0)
        .u64(p.seq.0)
        .u64(p.lfc.0)
        .u64(p.time.0)
        .u64(p.base.0);
    put_spans(w, &p.redo);
}

fn point(r: &mut Reader<'_>) -> Read<Point> {
    Ok(Point {
        generation: GenNo(r.u32()?),
        seq: WriteSeq(r.u64()?),
        lfc: LfcId(r.u64()?),
        time: Timestamp(r.u64()?),
        base: Ordinal(r.u64()?),
        redo: spans(r)?,
    })
}

fn put_option(w: &mut Writer, v: Option<u64>) {
    w.u8(u8::from(v.is_some())).u64(v.unwrap_or(0));
}

fn option(r: &mut Reader<'_>) -> Read<Option<u64>> {
    match (r.u8()?, r.u64()?) {
        (0, _) => Ok(None),
        (1, v) => Ok(Some(v)),
        _ => Err(Malformed::What("a flag is neither 0 nor 1")),
    }
}
