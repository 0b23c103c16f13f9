//! Bounded reading of hand-encoded bytes: every read checks what is left, nothing panics on foreign bytes.

/// Reads little-endian fields off the front of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

/// The bytes ended, or held a value that the format does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// They are not what they should be.
    #[error("{0}")]
    What(&'static str),
    /// They are of a version that this build does not read.
    #[error("its version is {found}, this build reads up to {known}")]
    Version {
        /// Theirs.
        found: u8,
        /// The newest that is read.
        known: u8,
    },
}

/// What is wrong with bytes whose checksum fits and whose magic does not: the last byte of a magic is a version.
pub(crate) fn other_magic(bytes: &[u8], magic: &[u8], what: &'static str) -> Malformed {
    match (
        bytes.get(..magic.len()).and_then(<[u8]>::split_last),
        magic.split_last(),
    ) {
        (Some((found, theirs)), Some((known, ours))) if theirs == ours => Malformed::Version {
            found: *found,
            known: *known,
        },
        _ => Malformed::What(what),
    }
}

pub(crate) type Read<T> = Result<T, Malformed>;

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, rest) = self
            .0
            .split_at_checked(n)
            .ok_or(Malformed::What("it is too short"))?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed::What("it is too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Read<u8> {
        self.array::<1>().map(|b| b[0])
    }

    /// The version byte at the front of a value.
    pub(crate) fn version(&mut self, known: u8) -> Read<()> {
        match self.u8()? {
            found if found == known => Ok(()),
            found => Err(Malformed::Version { found, known }),
        }
    }

    /// As [`Reader::version`], where several are read.
    pub(crate) fn version_upto(&mut self, known: u8) -> Read<u8> {
        match self.u8()? {
            found if (1..=known).contains(&found) => Ok(found),
            found => Err(Malformed::Version { found, known }),
        }
    }

    pub(crate) fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text with a `u32` length before it.
    pub(crate) fn text(&mut self) -> Read<String> {
        let n = self.u32()? as usize;
        let bytes = self.take(n)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::What("a text is not UTF-8"))
    }

    /// Ends a value: trailing bytes are a fault.
    pub(crate) fn end(self) -> Read<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::What("it is too long"))
        }
    }
}

/// Writes little-endian fields.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }

    pub(crate) fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    pub(crate) fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend_from_slice(v);
        self
    }

    pub(crate) fn text(&mut self, v: &str) -> &mut Self {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX))
            .bytes(v.as_bytes())
    }

    pub(crate) fn done(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// A byte count or index of something that is in memory, as the formats write it.
pub(crate) fn len32(n: usize) -> u32 {
    u32::try_from(n).expect("frames and tables are bounded far below 4 GiB")
}

/// An offset of a file that was mapped into memory.
pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).expect("64-bit machines only")
}
