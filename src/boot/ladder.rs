//! Two ladders for firmware that got stuck: the form of the reply, and the
//! loader.
//!
//! A server sees every packet, so it can tell how far a machine came. One that
//! was offered a loader and never came for it gets the next [`Style`] at its
//! next power-on; one that took its loader and was not heard again gets the
//! next loader. What worked is remembered for its model, by whoever keeps
//! [`Learned`]; where each machine stands is kept here, in memory.
//!
//! Pure: who asked and what was heard come in with their time, what is tried
//! goes out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dhcp::{Client, Firmware, Mac, Style};

use crate::inventory::{Learned, ModelKey};

#[cfg(test)]
mod tests;

/// Machines whose climb is kept; strangers can invent more.
const MACHINES_MAX: usize = 2048;

/// Firmwares of one machine whose climb is kept: PXE and HTTP Boot, and those
/// of the operator's experiments.
const MODELS_PER_MACHINE: usize = 4;

/// After this silence a firmware that asks has been powered on again, or has
/// given up and begins anew. PXE ROMs pause 32 s at most (PXE 2.1 section 2.2:
/// 4, 8, 16, 32 s), EDK2 20 s.
const POWER_ON_PAUSE: Duration = Duration::from_secs(60);

/// The same for one that asks under another xid: while it repeats itself EDK2
/// keeps its xid, and pauses 4.7, 11 and 19.7 s.
const OTHER_XID_PAUSE: Duration = Duration::from_secs(24);

/// How often what once worked must fail before another is tried: somebody may
/// just have switched the machine off.
const PATIENCE: u8 = 2;

/// The rung of the signed chain, whichever distribution's it is.
pub(crate) const SECURE: &str = "secure";

/// A loader on the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rung {
    /// What is remembered of it.
    pub(crate) name: String,
    /// The file that is served.
    pub(crate) file: String,
}

impl Rung {
    /// A loader that is remembered by its file.
    pub(crate) fn file(file: &str) -> Rung {
        Rung {
            name: file.to_owned(),
            file: file.to_owned(),
        }
    }
}

/// What there is to try for one firmware.
pub(crate) struct Rungs<'a> {
    /// Forms of the reply, best first.
    pub(crate) styles: &'a [Style],
    /// Loaders that are installed, best first.
    pub(crate) loaders: Vec<Rung>,
    /// The signed chain, asked for only where the loaders have failed: to know
    /// it, somebody looks into the machine's disk.
    pub(crate) secure: &'a dyn Fn() -> Option<Rung>,
}

/// What was heard of a machine after its firmware asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign<'a> {
    /// It was offered something to boot.
    Offered,
    /// It came to port 4011.
    BootServer,
    /// It asked for a file, whatever became of that.
    FileAsked,
    /// It fetched this file to its end.
    Taken(&'a str),
    /// What runs on it now is a loader: iPXE asked for an address, a script or
    /// a configuration was fetched.
    Alive,
}

/// What is tried, and what was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another form of the reply.
    Style {
        /// The one that led nowhere.
        from: Style,
        /// What is tried now.
        to: Style,
        /// Whether it came to port 4011 at least.
        boot_server: bool,
    },
    /// Another loader.
    Loader {
        /// Taken, and not heard again.
        from: String,
        /// What is tried now.
        to: String,
    },
    /// Every form was tried; the first one is tried again.
    StylesExhausted,
    /// Every loader was tried; the first one is tried again.
    LoadersExhausted,
    /// This form brought it to its loader.
    StyleWorked(ModelKey, Style),
    /// This loader was heard.
    LoaderWorked(ModelKey, String),
}

/// Where every machine stands.
#[derive(Default)]
pub(crate) struct Ladders {
    machines: HashMap<Mac, Machine>,
}

/// The firmwares of one machine, the one that asked last at the end.
struct Machine {
    attempts: Vec<Attempt>,
}

/// One power-on, as far as it came, and what the earlier ones led to.
struct Attempt {
    model: ModelKey,
    resets: u64,
    xid: u32,
    asked: Instant,
    progress: Progress,
    style: Climb<Style>,
    loader: Climb<Rung>,
}

/// How far a power-on came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Asked,
    Offered,
    BootServer,
    FileAsked,
    LoaderTaken,
    Alive,
}

/// The styles for a firmware, best first. BIOS ROMs and, from the LAN's own
/// DHCP server, UEFI take all from one packet; from a proxy, most UEFIs in the
/// field know the BINL form, which is dnsmasq's and Windows'.
pub(crate) fn styles(firmware: Firmware, is_proxy: bool) -> &'static [Style] {
    match (firmware, is_proxy) {
        (Firmware::UefiPxe(_), true) => {
            &[Style::Binl, Style::Direct, Style::ClassOnly, Style::Menu]
        }
        (Firmware::BiosPxe, true) => &[Style::Direct, Style::Binl, Style::Menu, Style::ClassOnly],
        (Firmware::BiosPxe | Firmware::UefiPxe(_), false) => &[
            Style::Direct,
            Style::Plain,
            Style::Binl,
            Style::Menu,
            Style::ClassOnly,
        ],
        _ => &[Style::Direct],
    }
}

/// A firmware's model; `None` for what climbs no ladder.
pub(crate) fn model(client: &Client) -> Option<ModelKey> {
    match client.firmware {
        Firmware::BiosPxe | Firmware::UefiPxe(_) | Firmware::UefiHttp(_) => {}
        Firmware::Ipxe(_) | Firmware::RaspberryPi | Firmware::System | Firmware::Other(_) => {
            return None;
        }
    }
    let [a, b, c, ..] = client.mac.0;
    let class = client.vendor_class.as_deref().unwrap_or_default();
    Some(ModelKey::new(client.firmware.to_string(), class, [a, b, c]))
}

impl Ladders {
    /// A firmware asked (DISCOVER): what is tried in its favour, where that
    /// changes. A repeated question changes nothing.
    pub(crate) fn asked<'a>(
        &mut self,
        client: &Client,
        rungs: impl FnOnce() -> Rungs<'a>,
        learned: &Learned,
        now: Instant,
    ) -> Vec<Step> {
        let Some(model) = model(client) else {
            return Vec::new();
        };
        if self.machines.len() >= MACHINES_MAX && !self.machines.contains_key(&client.mac) {
            self.forget_the_quietest();
        }
        let machine = self.machines.entry(client.mac).or_insert(Machine {
            attempts: Vec::new(),
        });
        let attempts = &mut machine.attempts;
        let known = attempts
            .iter()
            .position(|attempt| attempt.model == model && attempt.resets == learned.resets);
        let Some(place) = known else {
            let rungs = rungs();
            attempts.retain(|attempt| attempt.model != model);
            if attempts.len() >= MODELS_PER_MACHINE {
                attempts.remove(0);
            }
            attempts.push(Attempt {
                model,
                resets: learned.resets,
                xid: client.xid,
                asked: now,
                progress: Progress::Asked,
                style: Climb::begin(rungs.styles, learned.style.as_ref()),
                loader: Climb::begin(
                    &rungs.all_for(learned),
                    learned_rung(&rungs, learned).as_ref(),
                ),
            });
            return Vec::new();
        };
        let mut attempt = attempts.remove(place);
        let steps = attempt.asked_again(client.xid, rungs, learned, now);
        attempts.push(attempt);
        steps
    }

    /// Something was heard of a machine.
    pub(crate) fn heard(&mut self, mac: Mac, sign: Sign<'_>) -> Vec<Step> {
        let attempt = (self.machines.get_mut(&mac)).and_then(|machine| machine.attempts.last_mut());
        attempt.map_or_else(Vec::new, |attempt| attempt.heard(sign))
    }

    /// The form of a reply to this client.
    pub(crate) fn style(&self, client: &Client) -> Option<Style> {
        self.attempt(client)?.style.at
    }

    /// The loader file for this client.
    pub(crate) fn loader(&self, client: &Client) -> Option<String> {
        let rung = self.attempt(client)?.loader.at.as_ref()?;
        Some(rung.file.clone())
    }

    /// Where the firmware that speaks now stands. On port 4011 it may call
    /// itself less than in its DISCOVER.
    fn attempt(&self, client: &Client) -> Option<&Attempt> {
        model(client)?;
        let attempts = &self.machines.get(&client.mac)?.attempts;
        let firmware = client.firmware.to_string();
        (attempts.iter().rev()).find(|attempt| attempt.model.firmware() == firmware)
    }

    fn forget_the_quietest(&mut self) {
        let asked = |machine: &Machine| machine.attempts.last().map(|attempt| attempt.asked);
        let quietest = self.machines.iter().min_by_key(|(_, m)| asked(m));
        if let Some(mac) = quietest.map(|(mac, _)| *mac) {
            self.machines.remove(&mac);
        }
    }
}

impl Rungs<'_> {
    /// The loaders, with the signed chain where that is what works.
    fn all_for(&self, learned: &Learned) -> Vec<Rung> {
        let secure = learned.loader.as_deref() == Some(SECURE);
        self.with_secure(secure)
    }

    fn with_secure(&self, secure: bool) -> Vec<Rung> {
        let mut all = self.loaders.clone();
        if secure {
            all.extend((self.secure)());
        }
        all
    }
}

/// What works for the model, as one of this machine's rungs.
fn learned_rung(rungs: &Rungs<'_>, learned: &Learned) -> Option<Rung> {
    let name = learned.loader.as_deref()?;
    let all = rungs.all_for(learned);
    all.into_iter().find(|rung| rung.name == name)
}

impl Attempt {
    /// Judges the last power-on where this is another one.
    fn asked_again<'a>(
        &mut self,
        xid: u32,
        rungs: impl FnOnce() -> Rungs<'a>,
        learned: &Learned,
        now: Instant,
    ) -> Vec<Step> {
        let pause = now.saturating_duration_since(self.asked);
        let is_another = self.progress >= Progress::FileAsked
            || pause > POWER_ON_PAUSE
            || (xid != self.xid && pause > OTHER_XID_PAUSE);
        self.asked = now;
        if !is_another {
            return Vec::new();
        }
        self.xid = xid;
        let rungs = rungs();
        let mut steps = Vec::new();
        let reached = std::mem::replace(&mut self.progress, Progress::Asked);
        match reached {
            Progress::Offered | Progress::BootServer => {
                let moved = self.style.fail(rungs.styles, learned.style.as_ref());
                if let Moved::To { from, to, again } = moved {
                    let boot_server = reached == Progress::BootServer;
                    if again {
                        steps.push(Step::StylesExhausted);
                    }
                    steps.push(Step::Style {
                        from,
                        to,
                        boot_server,
                    });
                }
            }
            Progress::LoaderTaken => {
                let known = learned_rung(&rungs, learned);
                let moved = self.loader.fail(&rungs.with_secure(true), known.as_ref());
                if let Moved::To { from, to, again } = moved {
                    if again {
                        steps.push(Step::LoadersExhausted);
                    }
                    steps.push(Step::Loader {
                        from: from.file,
                        to: to.file,
                    });
                }
            }
            Progress::Asked | Progress::FileAsked | Progress::Alive => {}
        }
        self.style.follow(rungs.styles, learned.style.as_ref());
        let known = learned_rung(&rungs, learned);
        let secure = (self.loader.at.as_ref()).is_some_and(|rung| rung.name == SECURE)
            || learned.loader.as_deref() == Some(SECURE);
        self.loader
            .follow(&rungs.with_secure(secure), known.as_ref());
        steps
    }

    fn heard(&mut self, sign: Sign<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        let reached = match sign {
            Sign::Offered => Progress::Offered,
            Sign::BootServer => Progress::BootServer,
            Sign::FileAsked => Progress::FileAsked,
            Sign::Taken(file) => {
                if let Some(style) = self.style.at {
                    self.style.succeed();
                    steps.push(Step::StyleWorked(self.model.clone(), style));
                }
                match &self.loader.at {
                    Some(rung) if rung.file == file => {
                        // The last ACK was lost: it ran before we knew.
                        if self.progress == Progress::Alive {
                            steps.extend(self.loader_worked());
                        }
                        Progress::LoaderTaken
                    }
                    _ => Progress::FileAsked,
                }
            }
            Sign::Alive => {
                if self.progress == Progress::LoaderTaken {
                    steps.extend(self.loader_worked());
                }
                Progress::Alive
            }
        };
        self.progress = self.progress.max(reached);
        steps
    }

    fn loader_worked(&mut self) -> Option<Step> {
        self.loader.succeed();
        let rung = self.loader.at.as_ref()?;
        Some(Step::LoaderWorked(self.model.clone(), rung.name.clone()))
    }
}

/// A place on a ladder.
struct Climb<T> {
    /// What is tried; `None` where there is nothing.
    at: Option<T>,
    /// What was tried before and led nowhere, since the last success.
    tried: Vec<T>,
    failures: u8,
    /// It worked on this very machine: what others of its model do is nothing
    /// to it.
    proven: bool,
}

/// What a failure leads to.
enum Moved<T> {
    /// The same is tried once more.
    No,
    To {
        from: T,
        to: T,
        /// All were tried: from the beginning.
        again: bool,
    },
}

impl<T: Clone + PartialEq> Climb<T> {
    /// What works for the model, else the first.
    fn begin(rungs: &[T], learned: Option<&T>) -> Climb<T> {
        let known = learned.filter(|known| rungs.contains(known));
        Climb {
            at: known.or(rungs.first()).cloned(),
            tried: Vec::new(),
            failures: 0,
            proven: false,
        }
    }

    /// It led nowhere: what the model is known to take, else the first that
    /// was not tried.
    fn fail(&mut self, rungs: &[T], learned: Option<&T>) -> Moved<T> {
        let Some(from) = self.at.clone() else {
            return Moved::No;
        };
        self.failures = self.failures.saturating_add(1);
        let patience = if self.proven || learned == Some(&from) {
            PATIENCE
        } else {
            1
        };
        if self.failures < patience {
            return Moved::No;
        }
        self.tried.push(from.clone());
        let untried = |rung: &&T| rungs.contains(rung) && !self.tried.contains(rung);
        let next = learned
            .filter(untried)
            .or_else(|| rungs.iter().find(untried))
            .cloned();
        let again = next.is_none();
        match next {
            Some(next) => {
                self.at = Some(next);
                self.failures = 0;
                self.proven = false;
            }
            None => *self = Climb::begin(rungs, learned),
        }
        match self.at.clone() {
            Some(to) if to != from => Moved::To { from, to, again },
            _ => Moved::No,
        }
    }

    /// Follows what the model was found to take meanwhile, unless it climbs or
    /// has found its own; leaves what is there no more.
    fn follow(&mut self, rungs: &[T], learned: Option<&T>) {
        let is_gone = !self.at.as_ref().is_some_and(|at| rungs.contains(at));
        let is_idle = !self.proven && self.failures == 0 && self.tried.is_empty();
        if is_gone || is_idle {
            *self = Climb::begin(rungs, learned);
        }
    }

    fn succeed(&mut self) {
        self.tried.clear();
        self.failures = 0;
        self.proven = true;
    }
}
