//! SendTargets (RFC 7143 appendix C).

use std::net::{IpAddr, SocketAddr};

use crate::keys::{Answer, Parameters};
use crate::login::PORTAL_GROUP_TAG;
use crate::{Iqn, keys};

/// Who may be told of what.
pub(crate) struct Known<'a> {
    /// The session's own target; `None` in a discovery session.
    pub(crate) own: Option<&'a str>,
    /// All targets the initiator may know of.
    pub(crate) all: &'a dyn Fn() -> Vec<String>,
    /// Where they are reached.
    pub(crate) portals: &'a [SocketAddr],
}

/// The portals of the group that a peer can reach, the one it came to first.
///
/// Of those that listen on every address only the address it came to is sure.
/// Another family, the loopback or a single link may be out of its reach, and
/// an initiator waits long for a portal that does not answer.
pub(crate) fn reachable(listening: &[SocketAddr], came_to: SocketAddr) -> Vec<SocketAddr> {
    // Without the scope of a link-local address, which is our name for it.
    let came_to = SocketAddr::new(came_to.ip(), came_to.port());
    let mut portals = vec![came_to];
    for portal in listening {
        let portal = match portal.ip().is_unspecified() {
            true => SocketAddr::new(came_to.ip(), portal.port()),
            false => *portal,
        };
        let is_of_link = match portal.ip() {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let is_in_reach = portal.is_ipv4() == came_to.is_ipv4()
            && portal.ip().is_loopback() == came_to.ip().is_loopback()
            && (!is_of_link || portal.ip() == came_to.ip());
        if is_in_reach && !portals.contains(&portal) {
            portals.push(portal);
        }
    }
    portals
}

/// Answers the text of one Text Request: SendTargets, and what may be
/// negotiated beside it.
pub(crate) fn answer(
    pairs: &[(&str, &str)],
    known: &Known<'_>,
    parameters: &mut Parameters,
) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in pairs {
        if *key != "SendTargets" {
            if let Answer::Value(answer) = parameters.answer_later(key, value) {
                keys::emit(&mut text, key, &answer);
            }
            continue;
        }
        match send_targets(value, known) {
            Some(names) => {
                for name in names {
                    keys::emit(&mut text, "TargetName", &name);
                    for portal in known.portals {
                        let address = format!("{portal},{PORTAL_GROUP_TAG}");
                        keys::emit(&mut text, "TargetAddress", &address);
                    }
                }
            }
            None => keys::emit(&mut text, "SendTargets", "Reject"),
        }
    }
    text
}

/// The targets one value asks for; `None` when it asks for nothing there is.
fn send_targets(value: &str, known: &Known<'_>) -> Option<Vec<String>> {
    match (value, known.own) {
        ("All" | "", Some(own)) => Some(vec![own.to_owned()]),
        ("All", None) => Some((known.all)()),
        ("", None) => None,
        (name, own) => {
            let name = Iqn::parse(name).ok()?.into_string();
            let names = match own {
                Some(own) => vec![own.to_owned()],
                None => (known.all)(),
            };
            Some(names.into_iter().filter(|known| *known == name).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portals(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ask(value: &str, own: Option<&str>) -> String {
        let all = || {
            vec![
                "iqn.2026-01.lab:a".to_owned(),
                "iqn.2026-01.lab:b".to_owned(),
            ]
        };
        let known = Known {
            own,
            all: &all,
            portals: &portals(&["[::1]:3260"]),
        };
        let text = answer(
            &[("SendTargets", value)],
            &known,
            &mut Parameters::default(),
        );
        String::from_utf8(text).unwrap().replace('\0', " ")
    }

    #[test]
    fn a_discovery_session_hears_of_all_targets_in_order() {
        assert_eq!(
            ask("All", None),
            "TargetName=iqn.2026-01.lab:a TargetAddress=[::1]:3260,1 \
             TargetName=iqn.2026-01.lab:b TargetAddress=[::1]:3260,1 "
        );
    }

    #[test]
    fn a_target_has_an_address_for_every_portal_its_group_has_in_reach() {
        let listening = portals(&[
            "0.0.0.0:3260",
            "192.0.2.1:3261",
            "198.51.100.1:860",
            "127.0.0.1:3262",
            "169.254.7.7:3260",
            "[::]:3260",
            "[2001:db8::1]:3260",
            "[fe80::1]:3260",
        ]);
        let reach = |came_to: &str| reachable(&listening, came_to.parse().unwrap());
        assert_eq!(
            reach("198.51.100.1:860"),
            portals(&["198.51.100.1:860", "198.51.100.1:3260", "192.0.2.1:3261"])
        );
        assert_eq!(
            reach("127.0.0.1:3260"),
            portals(&["127.0.0.1:3260", "127.0.0.1:3262"])
        );
        assert_eq!(
            reach("169.254.7.7:3260"),
            portals(&["169.254.7.7:3260", "192.0.2.1:3261", "198.51.100.1:860"])
        );
        assert_eq!(
            reach("[2001:db8::2]:3260"),
            portals(&["[2001:db8::2]:3260", "[2001:db8::1]:3260"])
        );
        let known = Known {
            own: Some("iqn.2026-01.lab:a"),
            all: &Vec::new,
            portals: &reach("127.0.0.1:3260"),
        };
        assert_eq!(
            answer(&[("SendTargets", "")], &known, &mut Parameters::default()),
            b"TargetName=iqn.2026-01.lab:a\0TargetAddress=127.0.0.1:3260,1\0\
              TargetAddress=127.0.0.1:3262,1\0"
        );
    }

    #[test]
    fn a_normal_session_hears_of_its_own_target_only() {
        let own = "TargetName=iqn.2026-01.lab:a TargetAddress=[::1]:3260,1 ";
        assert_eq!(ask("All", Some("iqn.2026-01.lab:a")), own);
        assert_eq!(ask("", Some("iqn.2026-01.lab:a")), own);
        assert_eq!(ask("iqn.2026-01.lab:b", Some("iqn.2026-01.lab:a")), "");
    }

    #[test]
    fn anything_that_is_no_name_is_rejected() {
        for value in ["Alle", "A", "all"] {
            assert_eq!(ask(value, None), "SendTargets=Reject ", "{value}");
        }
    }
}
