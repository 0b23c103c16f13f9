//! What a server serves: the two traits its owner implements, and the words in them.

use crate::{Errno, Reply};
use bytes::Bytes;
use std::{ops::Range, sync::Arc};

/// Turns names into exports. One for the whole server, asked by many connections at once.
pub trait Exports: Send + Sync {
    /// The exports that a client may see in a list. Others may be openable all the same.
    fn list(&self) -> Vec<ExportEntry>;

    /// Opens the export of this name; the empty name is the default export.
    ///
    /// Also called for clients that only ask about an export and go away.
    ///
    /// # Errors
    /// The text of the error goes to the client.
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, OpenError>;

    /// Whether this name, if it is one, may be listed and opened without TLS where TLS is at the client's choice
    /// ([`Security::Offered`](crate::Security::Offered)). Nothing is opened to answer it.
    fn may_be_plain(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// One line of the list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// The name to open it by; at most 4,096 bytes, or it is not listed.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// What the empty name means on one connection.
pub struct DefaultExport {
    /// The name by which it is known, and counted, if it has none of its own.
    pub name: String,
    /// It.
    pub export: Arc<dyn Export>,
}

/// Why a name was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No export has this name.
    #[error("{0}")]
    Unknown(String),
    /// The export exists but may not be used now.
    #[error("{0}")]
    Refused(String),
    /// The export could not be opened.
    #[error("{0}")]
    Failed(String),
}

/// Something that is read and written in bytes. Shared by all connections that opened it.
pub trait Export: Send + Sync {
    /// What clients are told; asked once a connection, so a later change is seen by new connections only.
    fn info(&self) -> ExportInfo;

    /// Fills `buf` from `offset`. The range lies inside the export.
    ///
    /// # Errors
    /// The client is told the error and nothing of the range.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Fills each buffer from the offset beside it: short reads that one connection had ready, which may be looked up together
    /// and fetched at once.
    ///
    /// # Errors
    /// When any of them fails; what the buffers hold is then not used, and each is read again by itself.
    fn read_each(&self, reads: &mut [(u64, &mut [u8])]) -> Result<(), Errno> {
        reads
            .iter_mut()
            .try_for_each(|(offset, buf)| self.read(*offset, buf))
    }

    /// Takes all mutations that one connection had ready, in the order in which it sent them.
    ///
    /// Every [`Mutation::reply`] must be answered once, in this call or later, from any thread. Ranges lie inside the
    /// export, lengths are not zero, and kinds that [`Export::info`] denies do not appear. The call may block: then this
    /// client waits, and no other.
    fn submit(&self, batch: Vec<Mutation>);

    /// Which parts of the range are holes or zeroes: extents in order from `range.start`, at least one, at most `max`.
    /// They may end before the range does, and the last may reach past it.
    ///
    /// # Errors
    /// The client is told the error.
    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, Errno>;

    /// Metadata contexts that a client may see in a list, beside `base:allocation`, which every export has. Others may be
    /// selectable all the same. Names are a namespace, a colon, and something; at most 4,096 bytes, or they are not listed.
    fn contexts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Opens the metadata context of this name; `None` when there is none.
    ///
    /// Also called for clients that only ask whether there is one.
    ///
    /// # Errors
    /// The text goes to the client.
    fn context(&self, name: &str) -> Result<Option<Arc<dyn MetaContext>>, String> {
        let _ = name;
        Ok(None)
    }
}

/// A metadata context of an export: tells something of every byte of it. Held for as long as the connection lasts that
/// selected it.
pub trait MetaContext: Send + Sync {
    /// The status of the range: runs in order from `range.start`, at least one, at most `max`. They may end before the
    /// range does, and the last may reach past it.
    ///
    /// # Errors
    /// The client is told the error.
    fn status(&self, range: Range<u64>, max: usize) -> Result<Vec<Status>, Errno>;

    /// The status needs more than 32 bits: only clients with extended headers can select the context.
    fn is_wide(&self) -> bool {
        false
    }
}

/// A run of bytes of one status in a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Length in bytes.
    pub len: u64,
    /// What the context says of them; below 2^32 unless the context [is wide](MetaContext::is_wide).
    pub bits: u64,
}

/// What a client is told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name that the export should be known by; `None` when it is the one it was opened by.
    pub name: Option<String>,
    /// A line for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Sizes of requests.
    pub block: BlockSizes,
    /// Nothing may be written, zeroed or trimmed.
    pub read_only: bool,
    /// [`Op::Flush`] is taken.
    pub flush: bool,
    /// [`Mutation::fua`] is honoured.
    pub fua: bool,
    /// [`Op::Trim`] is taken.
    pub trim: bool,
    /// [`Op::Zero`] is taken.
    pub zeroes: bool,
    /// [`Op::Zero`] is never slower than a write of the same zeroes, at any size and alignment.
    pub fast_zero: bool,
    /// A flush on one connection covers what was answered on all others.
    pub multi_conn: bool,
    /// The storage prefers sequential access.
    pub rotational: bool,
    /// [`Export::extents`] is cheap enough to be asked before a large read, so that zeroes are not sent.
    pub cheap_extents: bool,
}

impl ExportInfo {
    /// A read-write export of this size with everything but `rotational`.
    pub fn writable(size: u64) -> Self {
        Self {
            name: None,
            description: String::new(),
            size,
            block: BlockSizes::default(),
            read_only: false,
            flush: true,
            fua: true,
            trim: true,
            zeroes: true,
            fast_zero: true,
            multi_conn: true,
            rotational: false,
            cheap_extents: true,
        }
    }

    /// A read-only export of this size.
    pub fn read_only(size: u64) -> Self {
        Self {
            read_only: true,
            trim: false,
            zeroes: false,
            fast_zero: false,
            ..Self::writable(size)
        }
    }
}

/// Sizes of requests, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of it; a power of two, at most 65,536.
    pub min: u32,
    /// What is served best.
    pub preferred: u32,
    /// The longest payload, 1 MiB to [`BlockSizes::PAYLOAD_MAX`].
    pub max: u32,
}

impl BlockSizes {
    /// The longest payload that the protocol lets every client use: 32 MiB.
    pub const PAYLOAD_MAX: u32 = 32 << 20;

    /// The nearest sizes that the protocol allows.
    pub(crate) fn legal(self) -> Self {
        let min = self.min.clamp(1, 1 << 16).next_power_of_two();
        let preferred = self
            .preferred
            .clamp(min.max(512), Self::PAYLOAD_MAX)
            .next_power_of_two();
        let max = self.max.clamp(preferred.max(1 << 20), Self::PAYLOAD_MAX);
        Self {
            min,
            preferred,
            max: max - max % min,
        }
    }
}

impl Default for BlockSizes {
    /// Any byte range, best in 4 KiB, at most 32 MiB.
    fn default() -> Self {
        Self {
            min: 1,
            preferred: 4096,
            max: Self::PAYLOAD_MAX,
        }
    }
}

/// One request that changes the export or makes changes durable.
#[derive(Debug)]
pub struct Mutation {
    /// What to do.
    pub op: Op,
    /// The answer must wait until this change is durable. Always false for [`Op::Flush`].
    pub fua: bool,
    /// Where the outcome goes.
    pub reply: Reply,
}

/// What a mutation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write these bytes.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes, in an allocation of their own.
        data: Bytes,
    },
    /// Make a range read as zeroes.
    Zero {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The space may be freed.
        may_trim: bool,
    },
    /// The content of a range is no longer needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Make durable everything that was answered, on any connection, before this request arrived.
    Flush,
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// No space is allocated for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_made_legal() {
        assert_eq!(BlockSizes::default().legal(), BlockSizes::default());
        let odd = BlockSizes {
            min: 3000,
            preferred: 1,
            max: u32::MAX,
        }
        .legal();
        assert_eq!(
            odd,
            BlockSizes {
                min: 4096,
                preferred: 4096,
                max: BlockSizes::PAYLOAD_MAX
            }
        );
        let low = BlockSizes {
            min: 0,
            preferred: 0,
            max: 0,
        }
        .legal();
        assert_eq!(
            low,
            BlockSizes {
                min: 1,
                preferred: 512,
                max: 1 << 20
            }
        );
    }
}
