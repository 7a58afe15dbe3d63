//! Text requests of a session (RFC 7143 sections 11.10 and 11.11): SendTargets,
//! over as many PDUs as it takes.

use std::collections::{HashSet, VecDeque};

use super::{Next, Session, reason};
use crate::outbox::Outbox;
use crate::wire::{Bhs, NO_TAG, TextRequest, TextResponse};
use crate::{discovery, keys};

/// Text one Text Request may bring, over all its PDUs.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// Text that takes more than one PDU, either way.
#[derive(Default)]
pub(super) struct TextExchange {
    ttt: u32,
    request: Vec<u8>,
    response: VecDeque<u8>,
}

impl Session<'_> {
    /// Answers one Text Request.
    pub(super) fn text(
        &mut self,
        pdu: &TextRequest,
        bhs: &Bhs,
        data: &[u8],
        out: &mut Outbox<'_>,
    ) -> Next {
        let mut exchange = match (self.text.take(), pdu.ttt) {
            (_, NO_TAG) => TextExchange {
                ttt: pdu.itt & 0x7fff_ffff,
                ..TextExchange::default()
            },
            (Some(exchange), ttt) if exchange.ttt == ttt => exchange,
            _ => {
                self.reject(reason::INVALID_FIELD, bhs, out);
                return Next::Continue;
            }
        };
        exchange.request.extend_from_slice(data);
        if exchange.request.len() > MAX_TEXT_BYTES {
            return Next::Broken("more text than anyone needs");
        }
        if !pdu.continues && !exchange.request.is_empty() {
            let request = std::mem::take(&mut exchange.request);
            // No key comes twice (RFC 7143 section 6.2), or a list of all
            // targets would answer every few bytes.
            let pairs = keys::parse(&request).ok().filter(|pairs| are_unique(pairs));
            let Some(pairs) = pairs else {
                self.reject(reason::PROTOCOL_ERROR, bhs, out);
                return Next::Continue;
            };
            let known = discovery::Known {
                own: self.target.map(|target| target.name.as_str()),
                all: &|| self.targets.discover(self.login),
                portals: &discovery::reachable(self.portals, self.login.portal),
            };
            exchange.response = discovery::answer(&pairs, &known, &mut self.parameters).into();
        }
        let longest = usize::try_from(self.parameters.max_send_data_segment_length);
        let now = exchange.response.len().min(longest.unwrap_or(usize::MAX));
        let text: Vec<u8> = exchange.response.drain(..now).collect();
        let continues = !exchange.response.is_empty();
        let is_final = !continues && !pdu.continues && pdu.is_final;
        let response = TextResponse {
            is_final,
            continues,
            lun: pdu.lun,
            itt: pdu.itt,
            ttt: if is_final { NO_TAG } else { exchange.ttt },
            numbers: self.status_numbers(),
        };
        out.pdu(&response.emit(text.len()), &text);
        if !is_final {
            self.text = Some(exchange);
        }
        Next::Continue
    }
}

fn are_unique(pairs: &[(&str, &str)]) -> bool {
    let mut seen = HashSet::new();
    pairs.iter().all(|(key, _)| seen.insert(*key))
}
