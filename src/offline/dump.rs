//! `dump`: a journal as text.

use super::{Done, Stopped, refused};
use control::{
    Code, Event, Failure, Reply,
    client::Listener,
    offline::{DumpLine, DumpReply},
};
use journal::dump::What;
use model::{GenNo, LfcId, Ordinal, WriteSeq};

pub(super) fn dump(
    node: &Stopped,
    words: &[String],
    hex: bool,
    collect: bool,
    listener: &mut dyn Listener,
) -> Done {
    let all = parse(words).map_err(|why| {
        let hint = "superblock, tails, rows, lfc gN:ID, seq N, undo [ORDINAL], index";
        Box::new(Failure::new(Code::Usage, why).with_hint(hint))
    })?;
    node.check_formats()?;
    let dir = node.journal_dir();
    let mut lines = Vec::new();
    for what in all {
        let shown = journal::dump::dump(&dir, node.options().lfc_size, what, &mut |line| {
            let line = DumpLine {
                kind: line.kind.into(),
                at: line.at,
                text: line.text,
                hex: hex.then(|| line.bytes.iter().map(|b| format!("{b:02x}")).collect()),
            };
            if collect {
                lines.push(line);
            } else {
                listener.event(Event::Line {
                    text: cli::dump_line(&line),
                });
            }
        });
        shown.map_err(|e| refused(format!("{}: {e}", dir.display())))?;
    }
    Ok(Reply::Dump(DumpReply {
        context: node.id,
        folder: dir.display().to_string(),
        lines,
    }))
}

/// What is to be shown, from its words.
fn parse(words: &[String]) -> Result<Vec<What>, String> {
    if words.is_empty() {
        return Ok(vec![What::Superblock, What::Tails, What::Rows]);
    }
    let mut words = words.iter().map(String::as_str).peekable();
    let mut all = Vec::new();
    while let Some(word) = words.next() {
        all.push(match word {
            "superblock" => What::Superblock,
            "tails" => What::Tails,
            "rows" => What::Rows,
            "index" => What::Index,
            "lfc" => {
                let id = words.next().ok_or("which container? lfc gN:ID")?;
                let (generation, lfc) =
                    container(id).ok_or_else(|| format!("'{id}' is no container: g1:70250"))?;
                What::Lfc(generation, lfc)
            }
            "seq" => {
                let seq = words.next().ok_or("which record? seq N")?;
                What::Seq(WriteSeq(
                    seq.parse().map_err(|_| format!("'{seq}' is no record"))?,
                ))
            }
            "undo" => {
                let ordinal = words.peek().and_then(|word| word.parse().ok());
                if ordinal.is_some() {
                    words.next();
                }
                What::Undo(ordinal.map(Ordinal))
            }
            other => return Err(format!("'{other}' is nothing that a journal has")),
        });
    }
    Ok(all)
}

fn container(text: &str) -> Option<(GenNo, LfcId)> {
    let (generation, lfc) = text.strip_prefix('g')?.split_once(':')?;
    Some((GenNo(generation.parse().ok()?), LfcId(lfc.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_to_show() {
        let parse = |text: &str| parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse(""), Ok(vec![What::Superblock, What::Tails, What::Rows]));
        assert_eq!(
            parse("undo lfc g2:18 undo 7 seq 5"),
            Ok(vec![
                What::Undo(None),
                What::Lfc(GenNo(2), LfcId(18)),
                What::Undo(Some(Ordinal(7))),
                What::Seq(WriteSeq(5))
            ])
        );
        for bad in ["lfc", "lfc 18", "lfc g1", "seq", "seq x", "everything"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
