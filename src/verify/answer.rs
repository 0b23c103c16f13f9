//! The recovery host's side: it looks through a view at the position that production names.

use super::question::{Answer, Question, Unreadable};
use crate::{
    context::{Context, Running},
    node::Node,
    roles::Standing,
};
use bytes::Bytes;
use journal::Digest;
use model::{ByteRange, ContextState, Target, ports::HistoryError, target::TargetKind};
use snapshot::{SnapshotError, View};
use std::sync::Arc;

/// Answers a question of production. Nothing is changed, and nothing waits for it: the point is at the end of the line, and if
/// retention gives it up meanwhile the view says so.
///
/// # Errors
/// When the asker has no right to ask, or asks what makes no sense.
pub(crate) fn answer(node: &Node, asker: &str, body: &[u8]) -> Result<Bytes, String> {
    let question = Question::decode(body).ok_or("the question has another form")?;
    let id = question.context;
    let context = node
        .context(id.0)
        .filter(|c| c.id() == id && c.peer_name() == asker)
        .ok_or_else(|| format!("context {id} is not one of {asker} here"))?;
    Ok(compared(&context, &question)?.encode())
}

fn compared(context: &Arc<Context>, question: &Question) -> Result<Answer, String> {
    let here = context.node_name();
    let not_now = |why: String| Ok(Answer::NotNow(format!("{here}: {why}")));
    if context.standing() != Standing::Replica {
        return not_now(format!("the context is {}", context.standing()));
    }
    if context.state() != ContextState::Enabled {
        return not_now(format!("the context is {}", context.state()));
    }
    let running = context.running();
    let Some(Running::Recovery(recovery)) = running.as_deref() else {
        return not_now("the context does not run".into());
    };
    let generation = context.journal.generation_by_id(question.generation);
    let target = Target::from(TargetKind::Seq(question.seq));
    let view = match recovery.views.at(&target) {
        Ok(view) if generation.is_some_and(|g| g.no == view.point().generation) => view,
        Ok(_) => return not_now(format!("record {} is of another history", question.seq)),
        Err(e) => return not_now(e.to_string()),
    };
    let Ok(size) = view.size(question.volume) else {
        return Err(format!("there is no volume {}", question.volume));
    };
    let (mut differ, mut unreadable, mut n) = (Vec::new(), Vec::<Unreadable>::new(), 0);
    for range in question.ranges(size) {
        if range.is_empty() {
            return Err(format!("volume {} has {size} bytes", question.volume));
        }
        let theirs = match pieces(&view, question, range) {
            Ok(digests) => digests,
            Err(SnapshotError::History(HistoryError::Gone(why))) => return not_now(why),
            Err(e) => return Ok(Answer::Unreadable(format!("{here}: {e}"))),
        };
        for digest in theirs {
            let ours = question.digests.get(n).ok_or("a run passes the volume's end")?;
            let place = u32::try_from(n).unwrap_or(u32::MAX);
            match (digest, unreadable.last_mut()) {
                (Ok(digest), _) if digest == *ours => {}
                (Ok(_), _) => differ.push(place),
                (Err(_), Some(last)) if last.pieces().end == place => last.count += 1,
                (Err(why), _) => unreadable.push(Unreadable {
                    first: place,
                    count: 1,
                    why,
                }),
            }
            n += 1;
        }
    }
    if n != question.digests.len() {
        return Err("a run passes the volume's end".into());
    }
    Ok(match unreadable.is_empty() {
        true => Answer::Differ(differ),
        // An older production does not know this answer, and ends as it did when a piece could not be read.
        false => Answer::Partly { differ, unreadable },
    })
}

/// Digests of a run's pieces, or why the volume cannot give one.
fn pieces(
    view: &View,
    question: &Question,
    range: ByteRange,
) -> Result<Vec<Result<Digest, String>>, SnapshotError> {
    let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(usize::MAX)];
    let piece = usize::try_from(question.piece).unwrap_or(usize::MAX);
    let digest = |piece: &[u8]| Ok(blake3::hash(piece).into());
    match view.read(question.volume, range.start, &mut bytes) {
        Ok(()) => return Ok(bytes.chunks(piece).map(digest).collect()),
        Err(e) if e.is_unreadable() => {}
        Err(e) => return Err(e),
    }
    let mut at = range.start;
    let mut each = Vec::new();
    for part in bytes.chunks_mut(piece) {
        each.push(match view.read(question.volume, at, part) {
            Ok(()) => digest(part),
            Err(e) if e.is_unreadable() => Err(e.to_string()),
            Err(e) => return Err(e),
        });
        at += part.len() as u64;
    }
    Ok(each)
}
