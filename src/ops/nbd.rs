//! `backstay nbd --stdio`: the connection of a command becomes one to an export.

use crate::{exports::NodeExports, node::Node};
use control::{Code, Command, Failure, Outcome, Reply, Request, server::Session};
use nbd::{DefaultExport, Exports as _};
use std::sync::Arc;

/// Opens the export and hands the connection to the NBD server; or says why not.
///
/// The export is opened here, and is what this client gets by the empty name: a point that is asked for by its distance from
/// now is looked up once, and who types a name that leads nowhere is told so as by any command.
pub(crate) fn serve(node: &Arc<Node>, request: &Request, session: Session) {
    let Command::Nbd { export: name } = &request.command else {
        return;
    };
    let exports = NodeExports::new(Arc::downgrade(node));
    let opened = exports
        .open(name)
        .map_err(|e| Failure::new(Code::Refused, e.to_string()).with_hint_command(hint(node), node.name()));
    match opened {
        Err(failure) => drop(session.done(Outcome::failed(failure))),
        Ok(_) if request.options.dry_run => drop(session.done(Outcome::ok(Reply::Nbd))),
        Ok(export) => {
            let default = DefaultExport {
                name: name.clone(),
                export,
            };
            match session.upgrade(Outcome::ok(Reply::Nbd)) {
                Ok(Some(stream)) => node.serve_nbd_client(stream, default),
                Ok(None) => tracing::info!(export = name, "cut: the client did not wait for its answer"),
                Err(e) => tracing::debug!(export = name, error = %e, "the client is gone"),
            }
        }
    }
}

/// Shows what exports there are.
fn hint(node: &Node) -> String {
    format!(
        "nbdinfo --list 'nbd+unix:///?socket={}'",
        node.config().nbd_socket().display()
    )
}
