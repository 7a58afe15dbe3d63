//! How a login ends that does not succeed: status, reason, another address
//! (RFC 7143 section 11.13.5).

use std::fmt;

use crate::keys;
use crate::{LoginRefusal, Redirect};

/// What a login was answered: status class and detail (RFC 7143 section
/// 11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginStatus([u8; 2]);

impl LoginStatus {
    /// 0000.
    pub const SUCCESS: LoginStatus = LoginStatus([0, 0]);
    /// 0101.
    pub const MOVED_TEMPORARILY: LoginStatus = LoginStatus([1, 1]);
    /// 0102.
    pub const MOVED_PERMANENTLY: LoginStatus = LoginStatus([1, 2]);
    /// 0200.
    pub const INITIATOR_ERROR: LoginStatus = LoginStatus([2, 0]);
    /// 0201.
    pub const AUTHENTICATION_FAILURE: LoginStatus = LoginStatus([2, 1]);
    /// 0202.
    pub const AUTHORIZATION_FAILURE: LoginStatus = LoginStatus([2, 2]);
    /// 0203.
    pub const NOT_FOUND: LoginStatus = LoginStatus([2, 3]);
    /// 0204.
    pub const REMOVED: LoginStatus = LoginStatus([2, 4]);
    /// 0205.
    pub const UNSUPPORTED_VERSION: LoginStatus = LoginStatus([2, 5]);
    /// 0206.
    pub const TOO_MANY_CONNECTIONS: LoginStatus = LoginStatus([2, 6]);
    /// 0207.
    pub const MISSING_PARAMETER: LoginStatus = LoginStatus([2, 7]);
    /// 0208.
    pub const CANNOT_INCLUDE: LoginStatus = LoginStatus([2, 8]);
    /// 0209.
    pub const SESSION_TYPE: LoginStatus = LoginStatus([2, 9]);
    /// 020A.
    pub const NO_SUCH_SESSION: LoginStatus = LoginStatus([2, 0x0a]);
    /// 020B.
    pub const INVALID_DURING_LOGIN: LoginStatus = LoginStatus([2, 0x0b]);
    /// 0300.
    pub const TARGET_ERROR: LoginStatus = LoginStatus([3, 0]);
    /// 0301.
    pub const SERVICE_UNAVAILABLE: LoginStatus = LoginStatus([3, 1]);
    /// 0302.
    pub const OUT_OF_RESOURCES: LoginStatus = LoginStatus([3, 2]);

    /// Status class, then status detail.
    pub fn bytes(self) -> [u8; 2] {
        self.0
    }

    /// The RFC's name of it.
    fn name(self) -> &'static str {
        match self {
            LoginStatus::SUCCESS => "success",
            LoginStatus::MOVED_TEMPORARILY => "target moved temporarily",
            LoginStatus::MOVED_PERMANENTLY => "target moved permanently",
            LoginStatus::AUTHENTICATION_FAILURE => "authentication failure",
            LoginStatus::AUTHORIZATION_FAILURE => "authorization failure",
            LoginStatus::NOT_FOUND => "target not found",
            LoginStatus::REMOVED => "target removed",
            LoginStatus::UNSUPPORTED_VERSION => "unsupported version",
            LoginStatus::TOO_MANY_CONNECTIONS => "too many connections",
            LoginStatus::MISSING_PARAMETER => "missing parameter",
            LoginStatus::CANNOT_INCLUDE => "cannot include in session",
            LoginStatus::SESSION_TYPE => "session type not supported",
            LoginStatus::NO_SUCH_SESSION => "session does not exist",
            LoginStatus::INVALID_DURING_LOGIN => "invalid during login",
            LoginStatus::TARGET_ERROR => "target error",
            LoginStatus::SERVICE_UNAVAILABLE => "service unavailable",
            LoginStatus::OUT_OF_RESOURCES => "out of resources",
            _ => "initiator error",
        }
    }

    pub(crate) fn because(self, reason: &'static str) -> Refusal {
        Refusal {
            status: self,
            reason,
            redirect: None,
        }
    }
}

impl fmt::Display for LoginStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [class, detail] = self.0;
        write!(f, "{} ({class:02x}{detail:02x})", self.name())
    }
}

/// A refusal that ends the login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: LoginStatus,
    /// Why, for an operator.
    pub(crate) reason: &'static str,
    /// TargetAddress of a target that has moved.
    pub(super) redirect: Option<String>,
}

impl Refusal {
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Some(to) = &self.redirect {
            keys::emit(&mut text, "TargetAddress", to); // without a tag
        }
        text
    }
}

impl From<Redirect> for Refusal {
    fn from(redirect: Redirect) -> Refusal {
        let status = match redirect.permanently {
            true => LoginStatus::MOVED_PERMANENTLY,
            false => LoginStatus::MOVED_TEMPORARILY,
        };
        Refusal {
            redirect: Some(redirect.to),
            ..status.because("it is served elsewhere")
        }
    }
}

/// The site's words, on the wire.
impl From<LoginRefusal> for Refusal {
    fn from(refusal: LoginRefusal) -> Refusal {
        let status = match refusal {
            LoginRefusal::AuthenticationFailure => LoginStatus::AUTHENTICATION_FAILURE,
            LoginRefusal::AuthorizationFailure => LoginStatus::AUTHORIZATION_FAILURE,
            LoginRefusal::NotFound => LoginStatus::NOT_FOUND,
            LoginRefusal::Removed => LoginStatus::REMOVED,
            LoginRefusal::Moved(redirect) => return redirect.into(),
            LoginRefusal::ServiceUnavailable => LoginStatus::SERVICE_UNAVAILABLE,
            LoginRefusal::TargetError(_) => LoginStatus::TARGET_ERROR,
        };
        status.because("the site said so")
    }
}
