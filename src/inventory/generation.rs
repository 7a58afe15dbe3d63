//! Boot generations: one boot of a machine, from the script that prepares it to
//! the script that prepares the next.
//!
//! A boot is not a login (there are two to four in one) and not a script fetch
//! (iPXE retries, anyone can ask): the script *prepares* the next generation,
//! and the first login that proves it is of that generation *switches* to it.
//! Preparing therefore harms nothing that runs.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Error, Inventory, Machine, Result, Survives, now};

/// Random bits of a CHAP secret. RFC 7143 section 9.2.1 wants 96 at least.
const SECRET_BYTES: usize = 16;

/// A machine's boot generations.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Generations {
    /// The generation that runs, or ran last; 0 before the first.
    pub(crate) current: u64,
    /// Its CHAP secret; `None` before the first.
    pub(crate) current_secret: Option<String>,
    /// The one a script was made for and nobody has logged in with yet.
    pub(crate) prepared: Option<Prepared>,
}

/// A generation that a script was made for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// Its number.
    pub(crate) number: u64,
    /// Its CHAP secret: 32 hex digits, 128 random bits.
    pub(crate) secret: String,
    /// When it was prepared first.
    pub(crate) at: Timestamp,
}

/// What a switch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// The generation was prepared and is current now.
    Switched,
    /// It was current already.
    Current,
}

impl Inventory {
    /// A machine's generations.
    pub(crate) fn generations(&self, machine: Uuid) -> Result<Generations> {
        self.store.read(|facts| facts.generations(machine))
    }

    /// Prepares the machine's next generation; the same one, number and secret,
    /// until it is switched to.
    pub(crate) fn prepare_generation(&self, machine: Uuid) -> Result<Prepared> {
        // Scripts are fetched at will: only the first of a generation writes.
        if let Some(prepared) = self.generations(machine)?.prepared {
            return Ok(prepared);
        }
        let secret = new_secret()?;
        // Survives the process only: a generation whose script the loss of power
        // took is one whose machine fetches a new script.
        self.store.write(Survives::Process, |facts| {
            if facts.machine(machine)?.is_none() {
                return Err(gone());
            }
            let mut generations = facts.generations(machine)?;
            if let Some(prepared) = generations.prepared {
                return Ok(prepared);
            }
            let prepared = Prepared {
                number: generations.current + 1,
                secret,
                at: now(),
            };
            generations.prepared = Some(prepared.clone());
            facts.put_generations(machine, &generations)?;
            Ok(prepared)
        })
    }

    /// Makes a prepared generation the current one, atomically and durably; the
    /// secret of the one before is void then. Any other number than the
    /// prepared or the current one is refused.
    pub(crate) fn switch_generation(&self, machine: Uuid, number: u64) -> Result<Switch> {
        // Further logins of a boot write nothing.
        if number > 0 && self.generations(machine)?.current == number {
            return Ok(Switch::Current);
        }
        self.store.write(Survives::Power, |facts| {
            let generations = facts.generations(machine)?;
            if number > 0 && generations.current == number {
                return Ok(Switch::Current);
            }
            match generations.prepared {
                Some(prepared) if prepared.number == number => {
                    let switched = Generations {
                        current: prepared.number,
                        current_secret: Some(prepared.secret),
                        prepared: None,
                    };
                    facts.put_generations(machine, &switched)?;
                    Ok(Switch::Switched)
                }
                _ => Err(Error::Conflict(format!(
                    "boot generation {number} is neither prepared nor current (current is {}): \
                     the machine must boot again",
                    generations.current
                ))),
            }
        })
    }
}

/// The CHAP name of a machine's generation: `pc07.12`.
pub(crate) fn chap_name(machine: &Machine, number: u64) -> String {
    format!("{}.{number}", machine.name)
}

/// Machine name and generation of a CHAP name.
pub(crate) fn parse_chap_name(text: &str) -> Option<(&str, u64)> {
    let (name, number) = text.rsplit_once('.')?;
    // One spelling only: no sign, no leading zero.
    let number: u64 = number.parse().ok()?;
    text.ends_with(&format!(".{number}"))
        .then_some((name, number))
}

fn new_secret() -> Result<String> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::Failed(format!("the kernel gives no random bytes: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn gone() -> Error {
    Error::NotFound("this machine has been removed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    /// The CHAP secret of a generation, while it may log in.
    fn secret(generations: &Generations, number: u64) -> Option<&str> {
        match &generations.prepared {
            Some(prepared) if prepared.number == number => Some(&prepared.secret),
            _ if generations.current == number => generations.current_secret.as_deref(),
            _ => None,
        }
    }

    #[test]
    fn preparing_again_gives_the_same_number_and_secret() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        let first = site.prepare_generation(pc.id).unwrap();
        assert_eq!(first.number, 1);
        assert_eq!(first.secret.len(), 32);
        assert!(first.secret.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(site.prepare_generation(pc.id).unwrap() == first);
    }

    #[test]
    fn scripts_fetched_at_once_prepare_one_generation() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        let secrets: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
            let prepare = || site.prepare_generation(pc.id).unwrap().secret;
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(prepare)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(secrets.len(), 1);
    }

    #[test]
    fn preparing_leaves_the_running_generation_its_secret() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        let first = site.prepare_generation(pc.id).unwrap();
        site.switch_generation(pc.id, 1).unwrap();
        let second = site.prepare_generation(pc.id).unwrap();
        let generations = site.generations(pc.id).unwrap();
        assert_eq!(secret(&generations, 1), Some(first.secret.as_str()));
        assert_eq!(secret(&generations, 2), Some(second.secret.as_str()));
        assert_ne!(first.secret, second.secret);
    }

    #[test]
    fn a_switch_voids_the_secret_before_it_and_survives_a_restart() {
        let mut site = Site::new();
        let pc = site.new_machine("pc07", 7);
        site.prepare_generation(pc.id).unwrap();
        assert_eq!(site.switch_generation(pc.id, 1).unwrap(), Switch::Switched);
        let second = site.prepare_generation(pc.id).unwrap();
        assert_eq!(site.switch_generation(pc.id, 2).unwrap(), Switch::Switched);
        assert_eq!(site.switch_generation(pc.id, 2).unwrap(), Switch::Current);
        site.restart();
        let generations = site.generations(pc.id).unwrap();
        assert_eq!(secret(&generations, 1), None);
        assert_eq!(secret(&generations, 2), Some(second.secret.as_str()));
        assert!(generations.prepared.is_none());
    }

    #[test]
    fn a_generation_nobody_prepared_is_refused() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        assert!(site.switch_generation(pc.id, 0).is_err());
        assert!(site.switch_generation(pc.id, 1).is_err());
        site.prepare_generation(pc.id).unwrap();
        assert!(site.switch_generation(pc.id, 2).is_err());
        site.switch_generation(pc.id, 1).unwrap();
        site.prepare_generation(pc.id).unwrap();
        site.switch_generation(pc.id, 2).unwrap();
        assert!(site.switch_generation(pc.id, 1).is_err());
    }

    #[test]
    fn a_chap_name_reads_back_in_one_spelling_only() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        assert_eq!(parse_chap_name(&chap_name(&pc, 12)), Some(("pc07", 12)));
        for bad in ["pc07", "pc07.", "pc07.+1", "pc07.01", "pc07.-1", "pc07.x"] {
            assert_eq!(parse_chap_name(bad), None, "{bad}");
        }
    }
}
