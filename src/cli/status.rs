//! `diskless status`.

use super::client::Client;
use super::show::{Answer, length};
use crate::api::status::Status;

pub(super) async fn run(client: &Client) -> anyhow::Result<Answer> {
    let status: Status = client.show("/status").await?;
    Answer::new(text(&status), &status)
}

fn text(status: &Status) -> String {
    let mut text = format!(
        "diskless {} on {}, up {}\n",
        status.version,
        status.interface,
        length(status.uptime_seconds)
    );
    let mut line = |what: &str, value: &str| text.push_str(&format!("{what:<9} {value}\n"));
    line("data", &status.data);
    line("DHCP", &format!("mode {}", status.dhcp_mode));
    if !status.foreign_dhcp_servers.is_empty() {
        let servers: Vec<String> = status
            .foreign_dhcp_servers
            .iter()
            .map(ToString::to_string)
            .collect();
        line("", &format!("also on this LAN: {}", servers.join(", ")));
    }
    for (at, place) in status.listens.iter().enumerate() {
        let what = if at == 0 { "listens" } else { "" };
        line(what, &format!("{:<6} {}", place.service, place.address));
    }
    let running = match status.machines_running.as_slice() {
        [] => "none running".to_owned(),
        names => format!("running: {}", names.join(", ")),
    };
    line(
        "machines",
        &format!(
            "{} known, {} pending; {running}",
            status.machines_known, status.machines_pending
        ),
    );
    let malformed: Vec<String> = status
        .malformed
        .iter()
        .filter(|malformed| malformed.count > 0)
        .map(|malformed| format!("{} {}", malformed.service, malformed.count))
        .collect();
    if !malformed.is_empty() {
        line(
            "dropped",
            &format!("malformed packets: {}", malformed.join(", ")),
        );
    }
    line("images", &status.images.to_string());
    if status.targets > 0 {
        line("targets", &status.targets.to_string());
    }
    line("sessions", &status.sessions.to_string());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::{Listens, Malformed};

    #[test]
    fn a_status_names_every_place_where_it_listens() {
        let place = |service: &str, address: &str| Listens {
            service: service.into(),
            address: address.into(),
        };
        let malformed = |service: &str, count| Malformed {
            service: service.into(),
            count,
        };
        let status = Status {
            version: "0.1.0".into(),
            uptime_seconds: 200,
            data: "/var/lib/diskless".into(),
            interface: "eth1".into(),
            dhcp_mode: "proxy".into(),
            foreign_dhcp_servers: vec![[10, 0, 0, 1].into()],
            listens: vec![
                place("http", "10.0.0.2:80"),
                place("iscsi", "10.0.0.2:3260"),
            ],
            malformed: vec![malformed("dhcp", 3), malformed("tftp", 0)],
            machines_known: 2,
            machines_pending: 1,
            machines_running: vec!["pc07".into()],
            images: 1,
            targets: 2,
            sessions: 1,
        };
        assert_eq!(
            text(&status),
            "diskless 0.1.0 on eth1, up 3 min\n\
             data      /var/lib/diskless\n\
             DHCP      mode proxy\n          \
             also on this LAN: 10.0.0.1\n\
             listens   http   10.0.0.2:80\n          \
             iscsi  10.0.0.2:3260\n\
             machines  2 known, 1 pending; running: pc07\n\
             dropped   malformed packets: dhcp 3\n\
             images    1\n\
             targets   2\n\
             sessions  1\n"
        );
    }
}
