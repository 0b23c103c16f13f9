//! What `verify` answers.

use crate::size::bytes;
use control::reply::{DifferingRange, VerifyReply};
use std::fmt::Write as _;

/// Ranges that are listed for people; `--json` has all.
const LISTED: usize = 40;

pub(crate) fn verify(r: &VerifyReply) -> String {
    let of = match r.sample {
        Some(n) => format!(
            "{} of {} ({n} regions)",
            bytes(r.compared_bytes),
            bytes(r.total_bytes)
        ),
        None => bytes(r.compared_bytes),
    };
    let mut text = format!(
        "Context {}: {of} compared with {} in {:.1} s: ",
        r.context, r.peer, r.seconds
    );
    match (r.differing_bytes, r.repaired_bytes) {
        (0, 0) => text.push_str("equal\n"),
        (0, repaired) => {
            let _ = writeln!(
                text,
                "{} differed, were copied again and are equal now",
                bytes(repaired)
            );
            list(&mut text, &r.repaired);
        }
        (differ, repaired) => {
            let _ = writeln!(text, "{} DIFFER", bytes(differ));
            list(&mut text, &r.differing);
            if r.unlisted_bytes > 0 {
                let _ = writeln!(text, "  and {} more", bytes(r.unlisted_bytes));
            }
            if !r.unreadable.is_empty() {
                let _ = writeln!(text, "of these, {} cannot read", r.peer);
                each(&mut text, &r.unreadable, |r| {
                    format!("{}: bytes {} to {}: {}", r.volume, r.first, r.end - 1, r.error)
                });
            }
            if repaired > 0 {
                let _ = writeln!(
                    text,
                    "{} more were copied again and are equal now",
                    bytes(repaired)
                );
                list(&mut text, &r.repaired);
            }
        }
    }
    text
}

fn list(text: &mut String, ranges: &[DifferingRange]) {
    each(text, ranges, |r| {
        format!(
            "{}: bytes {} to {} ({})",
            r.volume,
            r.first,
            r.end - 1,
            bytes(r.end - r.first)
        )
    });
}

fn each<T>(text: &mut String, ranges: &[T], line: impl Fn(&T) -> String) {
    for range in ranges.iter().take(LISTED) {
        let _ = writeln!(text, "  {}", line(range));
    }
    if ranges.len() > LISTED {
        let _ = writeln!(
            text,
            "  and {} more ranges (--json lists them)",
            ranges.len() - LISTED
        );
    }
}
