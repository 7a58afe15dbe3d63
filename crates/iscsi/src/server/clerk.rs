//! A login thread: answers login PDUs, opens the target, and serves the session
//! that came of it to its end.

use std::io;
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::connection::LoggedIn;
use super::half_open::{HalfOpen, Place, Whole};
use super::reception::Wake;
use super::registry::{EnterError, Entered};
use super::staff::{Duty, Staff};
use super::{Shared, count};
use crate::login::{Entrance, LoginStatus, Progress, Refusal, Site};
use crate::wire::{BHS_BYTES, Lengths, Request};
use crate::{Attachment, Login, LoginRefusal, Refused};

/// How long a login waits while as many of its target are under way as may be,
/// and how often it looks again: a hundred machines may boot from one target.
const CROWD_WAIT: Duration = Duration::from_secs(2);
const CROWD_PAUSE: Duration = Duration::from_millis(1);
/// How long a login thread waits for a PDU before it gives the connection
/// back: a few round trips of a local network, and so little that a flood of
/// connections that say nothing delays no login noticeably.
const PATIENCE: Duration = Duration::from_micros(500);

/// What waits for a login thread.
pub(super) enum Turn {
    /// A login, or its next PDU.
    Step(Box<HalfOpen>),
    /// One that has agreed on everything, when its target was crowded.
    Enter(Entering),
}

/// A login that has agreed on everything.
pub(super) struct Entering {
    stream: TcpStream,
    entrance: Box<Entrance>,
    /// It may wait for its target until then.
    deadline: Instant,
    /// Kept while it waits.
    place: Option<Place>,
}

/// A login thread.
#[derive(Clone)]
pub(super) struct Clerk {
    pub(super) shared: Arc<Shared>,
    pub(super) wake: Arc<Wake>,
    pub(super) staff: Arc<Staff<Turn>>,
    pub(super) returned: Arc<Mutex<Vec<HalfOpen>>>,
}

/// What one login PDU has led to: an answer, with the login going on, or its
/// end, which may be a session.
type Step = ControlFlow<Option<LoggedIn>, HalfOpen>;

impl Clerk {
    /// Another like this one.
    pub(super) fn hire(&self) -> io::Result<()> {
        let clerk = self.clone();
        thread::Builder::new()
            .name("iscsi-session".into())
            .spawn(move || clerk.run())
            .map(drop)
    }

    fn run(&self) {
        while let Some((turn, mut duty)) = self.staff.next() {
            // A site that panics costs its login, not the pool.
            let login = || match turn {
                Turn::Step(half_open) => self.attend(*half_open, &mut duty),
                Turn::Enter(entering) => {
                    thread::sleep(CROWD_PAUSE);
                    self.enter(entering, &mut duty)
                }
            };
            match catch_unwind(AssertUnwindSafe(login)) {
                Ok(None) => {}
                Ok(Some(session)) => {
                    if catch_unwind(AssertUnwindSafe(|| session.serve())).is_err() {
                        tracing::error!("a session panicked");
                    }
                }
                Err(_) => tracing::error!("a login panicked"),
            }
            if !duty.end() {
                return;
            }
        }
    }

    /// Takes a login as far as its initiator goes at once; the session, when
    /// that is all the way.
    fn attend(&self, mut half_open: HalfOpen, duty: &mut Duty<'_, Turn>) -> Option<LoggedIn> {
        loop {
            match half_open.read_until(Instant::now() + PATIENCE) {
                Ok(Whole::Yes) => {}
                Ok(Whole::No) => {
                    self.give_back(half_open);
                    return None;
                }
                Err(error) => {
                    half_open.drop_for(error, &self.shared);
                    return None;
                }
            }
            match self.step(half_open, duty) {
                Step::Continue(next) => half_open = next,
                Step::Break(session) => return session,
            }
        }
    }

    /// Has reception watch a connection again.
    fn give_back(&self, half_open: HalfOpen) {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        returned.push(half_open);
        drop(returned);
        self.wake.wake();
    }

    /// Answers one login PDU.
    fn step(&self, half_open: HalfOpen, duty: &mut Duty<'_, Turn>) -> Step {
        let HalfOpen {
            stream,
            peer,
            deadline,
            negotiation,
            buffer,
            closed,
            place,
        } = half_open;
        let request = buffer.first_chunk().map(Request::parse);
        let Some(Ok(Request::Login(request))) = request else {
            count(&self.shared.counters.malformed_pdus);
            return Step::Break(None);
        };
        let text = &buffer[BHS_BYTES..BHS_BYTES + lengths(&buffer)];
        let shared = &self.shared;
        let site = Site {
            targets: &*shared.targets,
            challenges: &shared.challenges,
            rejoin: &|login, tsih, cid| shared.sessions.rejoin(login, tsih, cid),
            random: &|| {
                let mut bytes = [0; 17];
                getrandom::fill(&mut bytes).ok().map(|()| bytes)
            },
        };
        let who = negotiation.login().map(|login| login.initiator.clone());
        let (negotiation, progress) = negotiation.receive(&request, text, &site);
        match progress {
            Progress::Reply(answer) => match negotiation {
                Some(negotiation) if send_answer(&stream, &answer) => Step::Continue(HalfOpen {
                    stream,
                    peer,
                    deadline,
                    negotiation,
                    buffer: Vec::new(),
                    closed,
                    place,
                }),
                _ => Step::Break(None),
            },
            Progress::Refuse(answer, refusal) => {
                tracing::debug!(%peer, initiator = ?who, status = %refusal.status,
                    reason = refusal.reason, "login refused");
                count(&shared.counters.logins_refused);
                send_answer(&stream, &answer);
                Step::Break(None)
            }
            Progress::Enter(entrance) => {
                let entering = Entering {
                    stream,
                    entrance,
                    deadline: Instant::now() + CROWD_WAIT,
                    place,
                };
                Step::Break(self.enter(entering, duty))
            }
        }
    }

    /// Opens the target and begins the session; or has it wait in the queue,
    /// and not on this thread, while the target is crowded.
    fn enter(&self, entering: Entering, duty: &mut Duty<'_, Turn>) -> Option<LoggedIn> {
        if has_closed(&entering.stream) {
            return None; // it has given up
        }
        let shared = &self.shared;
        let entered = shared.sessions.enter(&entering.entrance);
        let is_crowded = matches!(entered, Err(EnterError::TooManyLogins));
        if is_crowded && Instant::now() < entering.deadline {
            self.staff.push(Turn::Enter(entering));
            return None;
        }
        let Entering {
            stream,
            entrance,
            place,
            ..
        } = entering;
        drop(place);
        let stream = Arc::new(stream);
        match self.try_enter(&stream, &entrance, entered, duty) {
            Ok(session) => Some(session),
            Err(refusal) => {
                let login = &entrance.login;
                tracing::debug!(peer = %login.peer, initiator = login.initiator,
                    target = login.target, status = %refusal.status,
                    reason = refusal.reason, "login refused");
                count(&shared.counters.logins_refused);
                send_answer(&stream, &entrance.refuse(&refusal));
                None
            }
        }
    }

    fn try_enter(
        &self,
        stream: &Arc<TcpStream>,
        entrance: &Entrance,
        entered: Result<Entered, EnterError>,
        duty: &mut Duty<'_, Turn>,
    ) -> Result<LoggedIn, Refusal> {
        let shared = &self.shared;
        let login = &entrance.login;
        let refuse = |refusal: Refusal| {
            let refused = Refused {
                status: refusal.status,
                claimed_name: login.chap_name.as_deref(),
                reason: refusal.reason,
            };
            shared.targets.refused(login, &refused);
            refusal
        };
        let entered = entered.map_err(|error| refuse(error.into()))?;
        let attachment = match &login.target {
            None => None,
            Some(_) => Some(self.open(login)?),
        };
        let relieved = duty.relieve(|| self.hire());
        let relieved = relieved.map_err(|error| {
            tracing::warn!(%error, "no thread can be started");
            LoginStatus::OUT_OF_RESOURCES
        });
        relieved
            .and_then(|()| LoggedIn::begin(shared, stream, entrance, entered, attachment))
            .map_err(|status| refuse(status.because("its session could not begin")))
    }

    fn open(&self, login: &Login) -> Result<Attachment, Refusal> {
        self.shared.targets.open(login).map_err(|refusal| {
            if let LoginRefusal::TargetError(reason) = &refusal {
                tracing::warn!(peer = %login.peer, initiator = login.initiator,
                    target = login.target, reason, "the target cannot be opened");
            }
            refusal.into()
        })
    }
}

/// What the initiator hears of a login that got no place.
impl From<EnterError> for Refusal {
    fn from(error: EnterError) -> Refusal {
        match error {
            EnterError::Full => {
                LoginStatus::OUT_OF_RESOURCES.because("the limit of sessions is reached")
            }
            EnterError::SessionGone => {
                LoginStatus::NO_SUCH_SESSION.because("the session it comes back to has ended")
            }
            EnterError::OldSessionBusy => {
                LoginStatus::SERVICE_UNAVAILABLE.because("its old session does not end")
            }
            EnterError::Superseded => {
                LoginStatus::SERVICE_UNAVAILABLE.because("it has begun another login since")
            }
            EnterError::TooManyLogins => LoginStatus::SERVICE_UNAVAILABLE
                .because("too many logins of its target are under way"),
            EnterError::ShuttingDown => {
                LoginStatus::SERVICE_UNAVAILABLE.because("the server is going")
            }
        }
    }
}

/// Sends a login answer; whether that worked. It always fits into an empty
/// send buffer.
fn send_answer(stream: &TcpStream, answer: &[u8]) -> bool {
    send(stream, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(answer.len())
}

/// Whether the peer sends no more.
fn has_closed(stream: &TcpStream) -> bool {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    matches!(recv(stream, &mut [0u8; 1][..], flags), Ok((0, _)))
}

/// Data bytes of a whole PDU.
fn lengths(pdu: &[u8]) -> usize {
    pdu.first_chunk()
        .map_or(0, |bhs| Lengths::parse(bhs).data_bytes)
        .min(pdu.len().saturating_sub(BHS_BYTES))
}
