//! The TFTP door: documents, and loaders by name.

use std::sync::Arc;

use tftp::{Content, ErrorCode, Files, Outcome, Request};

use super::Site;
use super::documents::{self, Asker, Document};
use crate::boot::ladder::Sign;
use crate::timeline::Stage;

/// Answers [`tftp::Files`] from the loaders of this site.
pub(crate) struct LoaderFiles(pub(crate) Arc<Site>);

impl Files for LoaderFiles {
    fn open(&self, request: &Request) -> Result<Content, ErrorCode> {
        let asker = Asker::at(&self.0, (*request.client.ip()).into(), *request.local.ip());
        if let Some(mac) = asker.mac {
            self.0.heard(mac, Sign::FileAsked);
        }
        match documents::find(&self.0, &asker, &request.name) {
            Some(Document::Bytes(bytes)) => return Ok(Content::Bytes(bytes)),
            Some(Document::Readable(file)) => return Ok(Content::Readable(file)),
            None => {}
        }
        let file = self.0.loaders.open(&request.name).map_err(|error| {
            tracing::debug!(client = %request.client, name = request.name, %error, "no such loader");
            ErrorCode::NotFound
        })?;
        let size_bytes = file.metadata().map_err(|_| ErrorCode::NotFound)?.len();
        Ok(Content::File {
            file: Arc::new(file),
            size_bytes,
        })
    }

    fn ended(&self, request: &Request, outcome: &Outcome) {
        let Some(mac) = self.0.addresses.mac_of((*request.client.ip()).into()) else {
            return;
        };
        let name = &request.name;
        let (stage, words) = match outcome {
            Outcome::Complete { bytes } => (
                documents::stage_of(name).unwrap_or(Stage::LoaderSent),
                format!("{name}, {bytes} bytes over TFTP"),
            ),
            Outcome::Probed => return,
            Outcome::Refused(ErrorCode::NotFound) if documents::is_tried_only(name) => return,
            Outcome::Refused(ErrorCode::NotFound) => (
                Stage::Refused,
                format!("{name}: there is no such file for TFTP"),
            ),
            Outcome::Refused(code) => (Stage::Refused, format!("{name} over TFTP: {code:?}")),
            Outcome::Aborted {
                code,
                message,
                bytes,
            } => (
                Stage::Problem,
                format!(
                    "{name}: the machine gave up after {bytes} bytes over TFTP (error {code}: {message})"
                ),
            ),
            Outcome::TimedOut { bytes } => (
                Stage::Problem,
                format!("{name}: the machine fell silent after {bytes} bytes over TFTP"),
            ),
            Outcome::Failed { reason, bytes } => (
                Stage::Problem,
                format!("{name} over TFTP, after {bytes} bytes: {reason}"),
            ),
        };
        match stage {
            Stage::LoaderSent => self.0.heard(mac, Sign::Taken(name)),
            Stage::ScriptSent => self.0.heard(mac, Sign::Alive),
            _ => {}
        }
        self.0.timeline.record(mac, stage, words);
    }
}
