//! Where machines stand on the ladders (`boot::ladder`): what every door hears
//! of them, and what the timeline and the models are told.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ::dhcp::{Client, Firmware, Mac, Style};

use super::Site;
use crate::boot::firmware;
use crate::boot::ladder::{self, Ladders, Rung, Rungs, SECURE, Sign, Step};
use crate::config::DhcpMode;
use crate::inventory::{Finding, ServerRole, style_word};
use crate::timeline::Stage;

#[cfg(test)]
mod tests;

/// The ladders, shared by the doors.
#[derive(Default)]
pub(crate) struct Climbs(Mutex<Ladders>);

impl Climbs {
    fn held(&self) -> MutexGuard<'_, Ladders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    fn role(&self) -> ServerRole {
        match self.dhcp_mode {
            DhcpMode::Proxy => ServerRole::Proxy,
            DhcpMode::Full | DhcpMode::Observe => ServerRole::Full,
        }
    }

    /// A firmware asked what it boots.
    pub(super) fn firmware_asked(&self, client: &Client) {
        let Some(model) = ladder::model(client) else {
            return;
        };
        let learned = self.inventory.learned(&model, self.role());
        let secure = || self.secure_rung(client);
        let rungs = || Rungs {
            styles: ladder::styles(client.firmware, self.role() == ServerRole::Proxy),
            loaders: self.loaders_of(client),
            secure: &secure,
        };
        let now = Instant::now();
        let steps = self.climbs.held().asked(client, rungs, &learned, now);
        self.tell(client.mac, steps);
    }

    /// Something was heard of a machine.
    pub(super) fn heard(&self, mac: Mac, sign: Sign<'_>) {
        let steps = self.climbs.held().heard(mac, sign);
        self.tell(mac, steps);
    }

    /// The form of the reply for a client.
    pub(super) fn style(&self, client: &Client) -> Style {
        let is_proxy = self.role() == ServerRole::Proxy;
        let first = || ladder::styles(client.firmware, is_proxy).first().copied();
        let climbing = self.climbs.held().style(client);
        climbing.or_else(first).unwrap_or_default()
    }

    /// The loader file the ladder has for a client.
    pub(super) fn ladder_loader(&self, client: &Client) -> Option<String> {
        self.climbs.held().loader(client)
    }

    /// The loaders for a client; one alone where an operator chose it.
    fn loaders_of(&self, client: &Client) -> Vec<Rung> {
        match self.chosen_loader(client).as_deref() {
            Some(SECURE) => return self.secure_rung(client).into_iter().collect(),
            Some(chosen) => return vec![Rung::file(chosen)],
            None => {}
        }
        firmware::candidates(client.firmware)
            .iter()
            .filter(|file| self.loaders.is_installed(file))
            .map(|file| Rung::file(file))
            .collect()
    }

    fn chosen_loader(&self, client: &Client) -> Option<String> {
        let machine = self.inventory.machine_by_mac(client.mac).ok().flatten();
        machine.and_then(|machine| machine.loader)
    }

    /// The signed chain, where one is installed that this firmware can start.
    fn secure_rung(&self, client: &Client) -> Option<Rung> {
        let machine = self.inventory.machine_by_mac(client.mac).ok()??;
        let file = self.signed_chain(&machine, client.firmware).ok()?;
        let name = SECURE.to_owned();
        Some(Rung { name, file })
    }

    fn tell(&self, mac: Mac, steps: Vec<Step>) {
        for step in steps {
            let (stage, words) = match step {
                Step::Style {
                    to, boot_server, ..
                } => {
                    let came = if boot_server {
                        "it asked on port 4011 and fetched nothing"
                    } else {
                        "it was offered a loader and never came for it"
                    };
                    let words = format!("{came}; this time it is told {}", shown(to));
                    (Stage::WayChanged, words)
                }
                Step::Loader { from, to } => {
                    let words =
                        format!("it took {from} and was not heard again; this time it gets {to}");
                    (Stage::WayChanged, words)
                }
                Step::StylesExhausted => {
                    let advice = match self.role() {
                        ServerRole::Proxy => {
                            "name this server and the loader in the LAN's own DHCP server \
                             (docs/firmware.md)"
                        }
                        ServerRole::Full => "see docs/firmware.md",
                    };
                    let words = format!("no way of telling it about its loader worked: {advice}");
                    (Stage::Problem, words)
                }
                Step::LoadersExhausted => (
                    Stage::Problem,
                    "no loader that is installed was heard again after it was taken: \
                     is Secure Boot on? See docs/firmware.md"
                        .to_owned(),
                ),
                Step::StyleWorked(model, style) => {
                    let finding = Finding::Style(style);
                    if !self.learn(&model, finding) {
                        continue;
                    }
                    let words = format!(
                        "{} found its loader when told {}",
                        model.firmware(),
                        shown(style)
                    );
                    (Stage::WayFound, words)
                }
                Step::LoaderWorked(model, loader) => {
                    let words = format!("{} runs {loader}", model.firmware());
                    if !self.learn(&model, Finding::Loader(loader)) {
                        continue;
                    }
                    (Stage::WayFound, words)
                }
            };
            self.timeline.record(mac, stage, words);
        }
    }

    /// Whether it is news.
    fn learn(&self, model: &crate::inventory::ModelKey, finding: Finding) -> bool {
        let learned = self.inventory.learn(model, self.role(), finding);
        learned.unwrap_or_else(|error| {
            tracing::error!(%error, "what works with a firmware was not kept");
            false
        })
    }
}

/// A style as it is told: in words, then its own.
fn shown(style: Style) -> String {
    let words = match style {
        Style::Direct => "everything in one packet",
        Style::Plain => "a plain file name, without PXE's options",
        Style::Binl => "a file name, to be asked for again on port 4011",
        Style::ClassOnly => "to ask for the file name on port 4011",
        Style::Menu => "a PXE menu of one entry",
    };
    format!("{words} ({})", style_word(style))
}

/// Whether a client's firmware is one that fetches a loader.
pub(super) fn fetches_a_loader(firmware: Firmware) -> bool {
    !matches!(firmware, Firmware::Ipxe(_) | Firmware::System)
}
