//! From the greeting to an open export.

use super::{
    client::{Client, Error, protocol},
    wire::{self, u16_at, u32_at, u64_at},
};
use std::io::Read;

impl Client {
    pub(super) fn greet(&mut self) -> Result<(), Error> {
        let hello: [u8; 18] = self.take()?;
        let flags = u16_at(&hello, 16);
        if u64_at(&hello, 0) != wire::NBDMAGIC || u64_at(&hello, 8) != wire::IHAVEOPT {
            return protocol("the greeting is not newstyle");
        }
        if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
            return protocol("the server is not fixed newstyle");
        }
        let answer = u32::from(flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES));
        self.send(&answer.to_be_bytes())
    }

    /// Sends an option and collects its replies up to the acknowledgement.
    #[expect(clippy::type_complexity, reason = "replies, or the refusal")]
    pub(super) fn option(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> Result<Result<Vec<(u32, Vec<u8>)>, Error>, Error> {
        let mut out = wire::IHAVEOPT.to_be_bytes().to_vec();
        out.extend(option.to_be_bytes());
        out.extend(
            u32::try_from(data.len())
                .expect("options are short")
                .to_be_bytes(),
        );
        out.extend(data);
        self.send(&out)?;
        let mut replies = Vec::new();
        loop {
            let head: [u8; 20] = self.take()?;
            let (kind, len) = (u32_at(&head, 12), u32_at(&head, 16));
            if u64_at(&head, 0) != wire::OPTION_REPLY
                || u32_at(&head, 8) != option
                || len > wire::OPTION_BYTES_MAX
            {
                return protocol(format!("no proper reply to option {option}"));
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            if kind & wire::REP_ERROR != 0 {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Ok(Err(Error::Refused { reply: kind, text }));
            }
            if kind == wire::REP_ACK {
                return Ok(Ok(replies));
            }
            replies.push((kind, data));
        }
    }

    pub(super) fn go(&mut self, export: &str) -> Result<(), Error> {
        let mut data = u32::try_from(export.len())
            .expect("names are short")
            .to_be_bytes()
            .to_vec();
        data.extend(export.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
        let mut told = false;
        for (kind, info) in self.option(wire::OPT_GO, &data)?? {
            if kind != wire::REP_INFO || info.len() < 2 {
                return protocol(format!("reply {kind} to NBD_OPT_GO"));
            }
            match (u16_at(&info, 0), info.len()) {
                (wire::INFO_EXPORT, 12) => {
                    (self.size, self.flags, told) = (u64_at(&info, 2), u16_at(&info, 10), true);
                }
                (wire::INFO_BLOCK_SIZE, 14) => {
                    self.block_sizes = Some((u32_at(&info, 2), u32_at(&info, 6), u32_at(&info, 10)));
                }
                (wire::INFO_EXPORT | wire::INFO_BLOCK_SIZE, len) => {
                    return protocol(format!("{len} bytes of information"));
                }
                _ => {}
            }
        }
        if told {
            Ok(())
        } else {
            protocol("the export's size was not told")
        }
    }
}
