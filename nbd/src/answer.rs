//! Answers to negotiation options, as bytes.

use crate::{
    option::Refused,
    proto::{Put, bounded, magic, rep},
};

/// Answers to one option.
pub(crate) struct Answer<'a> {
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) option: u32,
}

impl Answer<'_> {
    fn part(&mut self, kind: u32, payload: &[u8]) {
        self.out.put_u64(magic::OPTION_REPLY);
        self.out.put_u32(self.option);
        self.out.put_u32(kind);
        self.out
            .put_u32(u32::try_from(payload.len()).expect("answers are made of bounded strings"));
        self.out.put(payload);
    }

    pub(crate) fn ack(&mut self) {
        self.part(rep::ACK, &[]);
    }

    pub(crate) fn error(&mut self, kind: u32, text: &str) {
        self.part(kind, bounded(text).as_bytes());
    }

    pub(crate) fn refuse(&mut self, refused: &Refused) {
        self.error(refused.kind, &refused.text);
    }

    pub(crate) fn server(&mut self, name: &str, description: &str) {
        let mut p = Vec::new();
        p.put_str(name);
        p.put(bounded(description).as_bytes());
        self.part(rep::SERVER, &p);
    }

    pub(crate) fn info(&mut self, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let mut p = Vec::new();
        p.put_u16(kind);
        body(&mut p);
        self.part(rep::INFO, &p);
    }

    pub(crate) fn context(&mut self, id: u32, name: &str) {
        let mut p = Vec::new();
        p.put_u32(id);
        p.put(name.as_bytes());
        self.part(rep::META_CONTEXT, &p);
    }
}
