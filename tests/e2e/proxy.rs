//! `proxy` mode: another DHCP server gives the addresses and knows nothing of booting.

use anyhow::{Result, bail, ensure};
use lab::{Dhcp, Firmware, Lan, Neighbour, Pc, Server, Settings};

use crate::stage::{
    self, Half, NEIGHBOUR, SERVER, Turn, booted, diskless, with_neighbour,
    with_server_and_neighbour,
};

#[test]
fn a_bios_machine_boots_beside_another_dhcp_server() {
    let turn = Turn::Pair(1, Half::First);
    with_server_and_neighbour(
        turn,
        &Settings::new(Dhcp::Proxy),
        |lan, server, neighbour| boots_beside(lan, server, neighbour, Firmware::Bios),
    );
}

#[test]
fn a_uefi_machine_boots_beside_another_dhcp_server() {
    let turn = Turn::Pair(1, Half::Second);
    with_server_and_neighbour(
        turn,
        &Settings::new(Dhcp::Proxy),
        |lan, server, neighbour| boots_beside(lan, server, neighbour, Firmware::Uefi),
    );
}

#[test]
fn a_machine_boots_by_uefi_http_boot_beside_another_dhcp_server() {
    let turn = Turn::Pair(6, Half::First);
    with_server_and_neighbour(
        turn,
        &Settings::new(Dhcp::Proxy),
        |lan, server, neighbour| boots_beside(lan, server, neighbour, Firmware::UefiHttp),
    );
}

#[test]
fn full_mode_does_not_start_beside_another_dhcp_server() {
    with_neighbour(Turn::Always, |host, _neighbour| {
        let Err(refused) = Server::start(host, diskless(), &Settings::new(Dhcp::Full)) else {
            bail!("two DHCP servers on one LAN");
        };
        let said = format!("{refused:#}");
        ensure!(
            said.contains(&NEIGHBOUR.to_string()),
            "the other server is not named: {said}"
        );
        Ok(())
    });
}

fn boots_beside(
    lan: &Lan<'_>,
    server: &Server<'_>,
    neighbour: &Neighbour,
    firmware: Firmware,
) -> Result<()> {
    let golden = stage::import(server)?;
    let pc = Pc::new(8, firmware);
    stage::add(server, "pc8", &pc, "reset")?;
    let mut power = pc.power_on(lan)?;
    let mut guest = booted(&mut power)?;
    let address = guest.fact("ip").unwrap_or_default();
    ensure!(
        neighbour
            .log()
            .contains(&format!("DHCPACK(eth0) {address} {}", pc.mac)),
        "{address} is not the other server's"
    );
    // klibc's ipconfig notes who gave the address: the proxy is silent about those.
    let given_by = guest.command("sh . /run/net-eth0.conf; echo $ROOTSERVER")?;
    ensure!(
        given_by == NEIGHBOUR.to_string() || given_by != SERVER.to_string(),
        "Linux was answered by the proxy: {given_by}"
    );
    guest.write(1, "PRXY")?;
    guest.verify("PRXY", 1, 1)?;
    golden.is_untouched()
}
