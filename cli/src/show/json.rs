//! `--json`: one object, one line, the same members whatever came of it.
//!
//! ```text
//! {"schema":1,"command":"scrt_ra","code":0,"head":{…}|null,"point":{…}?,"reply":{"snapshot":{…}},"next":{…}|null}
//! {"schema":1,"command":"scrt_ra","code":3,"head":…,"error":"…","caused_by":[…],"hint":…,"hint_command":…,
//!  "hint_host":…,"nearest":[…],"window":…,"holders":[…],"next":…}
//! ```
//! `reply` has one member, named after the kind of answer; its fields are those of `control::reply`.

use control::{NextStep, Outcome, PointInfo, Reply};
use serde_json::{Map, Value, json};

/// Version of the objects; raised when a member changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 1;

pub(crate) fn json(command: &str, outcome: &Outcome, point: Option<&PointInfo>) -> String {
    line(object(command, outcome, point))
}

/// A failure together with what is known from before.
pub(crate) fn json_with_old(command: &str, outcome: &Outcome, old: &Reply) -> String {
    let mut object = object(command, outcome, None);
    object.insert("reply".into(), json!(old));
    line(object)
}

/// The answer of a command that was done here, without a daemon.
pub(crate) fn json_lines(command: &str, lines: &[String], next: Option<&NextStep>) -> String {
    let Value::Object(object) = json!({
        "schema": SCHEMA, "command": command, "code": 0, "lines": lines, "next": next,
    }) else {
        unreachable!("an object was built");
    };
    line(object)
}

fn object(command: &str, outcome: &Outcome, point: Option<&PointInfo>) -> Map<String, Value> {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("schema", json!(SCHEMA));
    put("command", json!(command));
    put("code", json!(outcome.code()));
    put("head", json!(outcome.head));
    if let Some(point) = point {
        put("point", json!(point));
    }
    match &outcome.result {
        Ok(reply) => put("reply", json!(reply)),
        Err(failure) => {
            if let Value::Object(members) = json!(failure) {
                for (key, value) in members {
                    put(&key, value);
                }
            }
        }
    }
    put("next", json!(outcome.next));
    object
}

fn line(object: Map<String, Value>) -> String {
    format!("{}\n", Value::Object(object))
}
