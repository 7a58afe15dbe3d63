//! SendTargets (RFC 7143 appendix C).

use std::net::SocketAddr;

use crate::login::PORTAL_GROUP_TAG;
use crate::{Iqn, keys};

/// Who may be told of what.
pub(crate) struct Known<'a> {
    /// The session's own target; `None` in a discovery session.
    pub(crate) own: Option<&'a str>,
    /// All targets the initiator may know of.
    pub(crate) all: &'a dyn Fn() -> Vec<String>,
    /// Where they are reached: the portal the initiator came to.
    pub(crate) portal: SocketAddr,
}

/// Answers the text of one Text Request.
pub(crate) fn answer(pairs: &[(&str, &str)], known: &Known<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in pairs {
        if *key != "SendTargets" {
            keys::emit(&mut text, key, "NotUnderstood");
            continue;
        }
        match send_targets(value, known) {
            Some(names) => {
                let address = format!("{},{PORTAL_GROUP_TAG}", known.portal);
                for name in names {
                    keys::emit(&mut text, "TargetName", &name);
                    keys::emit(&mut text, "TargetAddress", &address);
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
            portal: "[::1]:3260".parse().unwrap(),
        };
        let text = answer(&[("SendTargets", value)], &known);
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
