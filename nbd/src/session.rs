//! What a finished negotiation agreed on.

use crate::{
    Export, ExportInfo,
    chunk::Style,
    context::Contexts,
    proto::{export, flag},
};
use std::{fmt, sync::Arc};

/// The terms of the transmission phase of one connection.
pub(crate) struct Session {
    pub(crate) export: Arc<dyn Export>,
    /// The name under which the connection is counted.
    pub(crate) name: String,
    pub(crate) terms: Terms,
}

/// The part of a session that requests are judged by.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) info: ExportInfo,
    pub(crate) style: Style,
    /// The metadata contexts that were selected for this export.
    pub(crate) contexts: Contexts,
}

impl Terms {
    /// What the client is told that it may do.
    pub(crate) fn export_flags(&self) -> u16 {
        let i = &self.info;
        let may_change = !i.read_only;
        [
            (i.read_only, export::READ_ONLY),
            (i.flush, export::SEND_FLUSH),
            (i.fua, export::SEND_FUA),
            (i.rotational, export::ROTATIONAL),
            (i.trim && may_change, export::SEND_TRIM),
            (i.zeroes && may_change, export::SEND_WRITE_ZEROES),
            (i.zeroes && i.fast_zero && may_change, export::SEND_FAST_ZERO),
            (self.style != Style::Simple, export::SEND_DF),
            (i.multi_conn, export::CAN_MULTI_CONN),
            (self.status_payload(), export::BLOCK_STATUS_PAYLOAD),
        ]
        .iter()
        .filter(|(on, _)| *on)
        .fold(export::HAS_FLAGS | export::SEND_CACHE, |flags, (_, bit)| {
            flags | bit
        })
    }

    /// Block status may name the contexts that it wants.
    pub(crate) fn status_payload(&self) -> bool {
        self.style == Style::Extended && self.contexts.count() > 0
    }

    /// The command flags that any command may carry.
    pub(crate) fn common_flags(&self) -> u16 {
        if self.info.fua { flag::FUA } else { 0 }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}
