//! What a portal of this site opens: machines' disks and plain targets.

use std::sync::Arc;

use iscsi::{
    Attachment, Authentication, ChapSecrets, Login, LoginRefusal, Refused, Sessions, Targets,
};

use super::MachineDisks;
use super::plain::{KeptTargets, PlainTargets};

/// Every target of this site.
pub(crate) struct SiteTargets {
    /// Of machines.
    pub(crate) machines: Arc<MachineDisks>,
    /// Of nobody.
    pub(crate) plain: Arc<PlainTargets>,
    /// The same, as facts.
    pub(crate) kept: Arc<KeptTargets>,
}

impl SiteTargets {
    /// Whether the login is for a plain target; what is nobody's is refused as
    /// a machine's would be.
    fn is_plain(&self, login: &Login) -> bool {
        login.target.as_ref().is_some_and(|iqn| self.plain.has(iqn))
    }
}

impl Targets for SiteTargets {
    fn serving(&self, sessions: Sessions) {
        self.kept.serving(sessions.clone());
        self.machines.serving(sessions);
    }

    fn authentication(&self, login: &Login) -> Authentication {
        // A discovery is plain where a target is for everybody; else it asks for
        // CHAP, as machines do.
        match self.is_plain(login) || login.target.is_none() {
            true => self.plain.authentication(login),
            false => self.machines.authentication(login),
        }
    }

    fn chap_secret(&self, login: &Login, chap_name: &str) -> Option<ChapSecrets> {
        if self.is_plain(login) {
            return self.plain.chap_secret(login, chap_name);
        }
        let machines = self.machines.chap_secret(login, chap_name);
        match login.target {
            Some(_) => machines,
            None => machines.or_else(|| self.plain.chap_secret(login, chap_name)),
        }
    }

    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        match self.is_plain(login) {
            true => self.plain.open(login),
            false => self.machines.open(login),
        }
    }

    fn discover(&self, login: &Login) -> Vec<String> {
        let mut found = self.machines.discover(login);
        found.extend(self.plain.discover(login));
        found
    }

    fn refused(&self, login: &Login, refused: &Refused<'_>) {
        if !self.is_plain(login) {
            self.machines.refused(login, refused);
        }
    }
}
