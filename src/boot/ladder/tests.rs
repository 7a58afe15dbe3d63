//! Claims about the ladders: power-ons as DISCOVERs, and what was heard in
//! between, each with its time.

use dhcp::Arch;

use super::*;

const EDK2: &str = "PXEClient:Arch:00007:UNDI:003000";

/// A PC, a server, and a clock.
struct Lab {
    ladders: Ladders,
    learned: Learned,
    client: Client,
    styles: Vec<Style>,
    loaders: Vec<Rung>,
    secure: Option<Rung>,
    start: Instant,
    seconds: f64,
}

impl Lab {
    fn new() -> Lab {
        Lab {
            ladders: Ladders::default(),
            learned: Learned::default(),
            client: Client {
                mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
                uuid: None,
                firmware: Firmware::UefiPxe(Arch::X64),
                vendor_class: Some(EDK2.into()),
                host_name: None,
                xid: 1,
            },
            styles: vec![Style::Binl, Style::Direct, Style::Menu],
            loaders: vec![Rung::file("snponly.efi"), Rung::file("ipxe.efi")],
            secure: None,
            start: Instant::now(),
            seconds: 0.0,
        }
    }

    /// A DISCOVER, so many seconds after the last.
    fn discover(&mut self, later: f64) -> Vec<Step> {
        self.seconds += later;
        let now = self.start + Duration::from_secs_f64(self.seconds);
        let secure = self.secure.clone();
        let secure = || secure.clone();
        let rungs = || Rungs {
            styles: &self.styles,
            loaders: self.loaders.clone(),
            secure: &secure,
        };
        self.ladders.asked(&self.client, rungs, &self.learned, now)
    }

    fn hear(&mut self, sign: Sign<'_>) -> Vec<Step> {
        self.ladders.heard(self.client.mac, sign)
    }

    /// A power-on that ends after the offer.
    fn silent(&mut self) -> Vec<Step> {
        let steps = self.discover(120.0);
        self.hear(Sign::Offered);
        steps
    }

    /// A power-on that ends after the loader.
    fn stuck(&mut self) -> Vec<Step> {
        let steps = self.discover(120.0);
        self.hear(Sign::Offered);
        let file = self.loader();
        self.hear(Sign::Taken(&file));
        steps
    }

    /// A power-on that reaches its script.
    fn boots(&mut self) -> Vec<Step> {
        self.stuck();
        self.hear(Sign::Alive)
    }

    fn style(&self) -> Style {
        self.ladders.style(&self.client).unwrap()
    }

    fn loader(&self) -> String {
        self.ladders.loader(&self.client).unwrap()
    }

    /// Styles or loaders of the next so many power-ons.
    fn climb<T>(
        &mut self,
        times: usize,
        power_on: fn(&mut Lab) -> Vec<Step>,
        of: fn(&Lab) -> T,
    ) -> Vec<T> {
        let one = |_| {
            power_on(self);
            of(self)
        };
        (0..times).map(one).collect()
    }
}

#[test]
fn a_firmware_that_never_came_gets_the_next_style_at_its_next_power_on() {
    let mut lab = Lab::new();
    assert_eq!(lab.silent(), []);
    assert_eq!(lab.style(), Style::Binl);
    let moved = Step::Style {
        from: Style::Binl,
        to: Style::Direct,
        boot_server: false,
    };
    assert_eq!(lab.silent(), [moved]);
    assert_eq!(lab.style(), Style::Direct);
}

#[test]
fn the_repetitions_of_one_power_on_are_no_power_ons() {
    let mut lab = Lab::new();
    lab.discover(0.0);
    for pause in [4.7, 11.0, 19.7] {
        lab.hear(Sign::Offered);
        assert_eq!(lab.discover(pause), [], "EDK2's");
    }
    lab.hear(Sign::Offered);
    assert_eq!(lab.discover(32.0), [], "a ROM's longest, xid kept");
    assert_eq!(lab.style(), Style::Binl);
}

#[test]
fn another_xid_after_a_pause_no_firmware_makes_is_a_power_on() {
    let mut lab = Lab::new();
    lab.silent();
    lab.client.xid = 2;
    assert_eq!(lab.discover(16.0), [], "a ROM that changes it each time");
    lab.hear(Sign::Offered);
    lab.client.xid = 3;
    assert_eq!(lab.discover(50.0).len(), 1, "switched off and on again");
}

#[test]
fn after_the_last_style_the_first_is_tried_again_and_that_is_said() {
    let mut lab = Lab::new();
    let styles = lab.climb(3, Lab::silent, Lab::style);
    assert_eq!(styles, [Style::Binl, Style::Direct, Style::Menu]);
    assert_eq!(lab.silent()[0], Step::StylesExhausted);
    assert_eq!(lab.style(), Style::Binl);
}

#[test]
fn a_firmware_that_was_offered_nothing_is_not_judged() {
    let mut lab = Lab::new();
    for _ in 0..3 {
        assert_eq!(lab.discover(120.0), []);
    }
    assert_eq!(lab.style(), Style::Binl);
}

#[test]
fn a_file_that_was_asked_for_clears_the_style_and_the_loader() {
    let mut lab = Lab::new();
    for _ in 0..3 {
        lab.silent();
        lab.hear(Sign::FileAsked);
    }
    assert_eq!(
        (lab.style(), lab.loader()),
        (Style::Binl, "snponly.efi".into()),
        "TFTP broke off"
    );
}

#[test]
fn one_that_came_to_port_4011_and_no_further_moves_on_too() {
    let mut lab = Lab::new();
    lab.silent();
    lab.hear(Sign::BootServer);
    let steps = lab.silent();
    assert!(matches!(
        steps[..],
        [Step::Style {
            boot_server: true,
            ..
        }]
    ));
}

#[test]
fn a_loader_that_was_taken_and_not_heard_again_is_followed_by_the_next() {
    let mut lab = Lab::new();
    lab.stuck();
    let moved = Step::Loader {
        from: "snponly.efi".into(),
        to: "ipxe.efi".into(),
    };
    assert_eq!(lab.stuck(), [moved]);
    assert_eq!(
        (lab.style(), lab.loader()),
        (Style::Binl, "ipxe.efi".into())
    );
}

#[test]
fn a_second_question_right_after_the_loader_counts_at_once() {
    let mut lab = Lab::new();
    lab.stuck();
    assert_eq!(
        lab.discover(3.0).len(),
        1,
        "the firmware refused it and begins anew"
    );
}

#[test]
fn what_worked_is_told_with_its_model() {
    let mut lab = Lab::new();
    lab.discover(0.0);
    lab.hear(Sign::Offered);
    let model = model(&lab.client).unwrap();
    let worked = Step::StyleWorked(model.clone(), Style::Binl);
    assert_eq!(lab.hear(Sign::Taken("snponly.efi")), [worked]);
    let worked = Step::LoaderWorked(model, "snponly.efi".into());
    assert_eq!(lab.hear(Sign::Alive), [worked]);
    assert_eq!(lab.hear(Sign::Alive), [], "once");
}

#[test]
fn a_loader_that_spoke_before_its_last_ack_was_given_up_has_worked_too() {
    let mut lab = Lab::new();
    lab.silent();
    lab.hear(Sign::FileAsked);
    assert_eq!(lab.hear(Sign::Alive), []);
    assert_eq!(lab.hear(Sign::Taken("snponly.efi")).len(), 2);
}

#[test]
fn a_new_machine_of_a_known_model_begins_with_what_worked() {
    let mut lab = Lab::new();
    lab.learned.style = Some(Style::Menu);
    lab.learned.loader = Some("ipxe.efi".into());
    lab.silent();
    assert_eq!(
        (lab.style(), lab.loader()),
        (Style::Menu, "ipxe.efi".into())
    );
}

#[test]
fn what_once_worked_may_fail_once() {
    let mut lab = Lab::new();
    lab.boots();
    assert_eq!(lab.climb(3, Lab::silent, Lab::style)[2], Style::Direct);
    let mut lab = Lab::new();
    lab.boots();
    lab.silent();
    lab.boots();
    lab.silent();
    lab.boots();
    assert_eq!(lab.style(), Style::Binl, "a success in between");
}

#[test]
fn a_machine_that_climbs_tries_first_what_another_of_its_model_found() {
    let mut lab = Lab::new();
    lab.silent();
    lab.learned.style = Some(Style::Menu);
    lab.silent();
    assert_eq!(lab.style(), Style::Menu);
    let rest = lab.climb(2, Lab::silent, Lab::style);
    assert_eq!(
        rest,
        [Style::Menu, Style::Direct],
        "known: twice; then what is left"
    );
}

#[test]
fn a_machine_keeps_what_it_found_itself_whatever_others_of_its_model_found() {
    let mut lab = Lab::new();
    lab.boots();
    lab.learned.style = Some(Style::Menu);
    lab.boots();
    assert_eq!(lab.style(), Style::Binl);
}

#[test]
fn the_signed_chain_is_the_last_rung_and_asked_for_only_there() {
    let mut lab = Lab::new();
    lab.secure = Some(Rung {
        name: SECURE.into(),
        file: "secure/debian/shimx64.efi".into(),
    });
    let loaders = lab.climb(3, Lab::stuck, Lab::loader);
    assert_eq!(
        loaders,
        ["snponly.efi", "ipxe.efi", "secure/debian/shimx64.efi"]
    );
    let worked = lab.hear(Sign::Alive);
    assert!(matches!(&worked[..], [Step::LoaderWorked(_, name)] if name == SECURE));
    // Another machine of the model, with another distribution inside.
    lab.client.mac.0[5] = 2;
    lab.learned.loader = Some(SECURE.into());
    lab.secure = Some(Rung {
        name: SECURE.into(),
        file: "secure/ubuntu/shimx64.efi".into(),
    });
    lab.stuck();
    assert_eq!(lab.loader(), "secure/ubuntu/shimx64.efi");
}

#[test]
fn a_loader_that_was_removed_is_left() {
    let mut lab = Lab::new();
    lab.boots();
    lab.loaders.remove(0);
    lab.silent();
    assert_eq!(lab.loader(), "ipxe.efi");
}

#[test]
fn after_a_reset_a_machine_begins_anew() {
    let mut lab = Lab::new();
    lab.climb(2, Lab::silent, Lab::style);
    lab.learned.resets += 1;
    lab.silent();
    assert_eq!(lab.style(), Style::Binl);
}

#[test]
fn pxe_and_http_boot_of_one_machine_climb_apart() {
    let mut lab = Lab::new();
    lab.silent();
    let pxe = lab.client.clone();
    lab.client.firmware = Firmware::UefiHttp(Arch::X64);
    lab.client.vendor_class = Some("HTTPClient:Arch:00016:UNDI:003000".into());
    lab.stuck();
    lab.stuck();
    assert_eq!(lab.loader(), "ipxe.efi");
    lab.client = pxe;
    assert_eq!(lab.silent().len(), 1, "its own silence is judged");
    assert_eq!(lab.loader(), "snponly.efi");
}

#[test]
fn on_port_4011_a_machine_is_known_by_less_than_it_said_before() {
    let mut lab = Lab::new();
    lab.silent();
    lab.client.vendor_class = Some("PXEClient".into());
    assert_eq!(lab.style(), Style::Binl);
}

#[test]
fn ipxe_systems_and_raspberry_pis_climb_nothing() {
    let mut lab = Lab::new();
    for firmware in [
        Firmware::Ipxe(None),
        Firmware::System,
        Firmware::RaspberryPi,
        Firmware::Other(2),
    ] {
        lab.client.firmware = firmware;
        lab.silent();
        assert_eq!(lab.ladders.style(&lab.client), None);
    }
}

#[test]
fn invented_machines_push_out_the_quietest_and_nothing_grows() {
    let mut lab = Lab::new();
    for n in 0..MACHINES_MAX + 10 {
        let [a, b, ..] = n.to_le_bytes();
        lab.client.mac = Mac([2, 0, 0, 0, b, a]);
        lab.discover(1.0);
    }
    assert_eq!(lab.ladders.machines.len(), MACHINES_MAX);
    assert!(lab.ladders.style(&lab.client).is_some());
}

#[test]
fn every_firmware_has_a_style_and_none_twice() {
    for firmware in [
        Firmware::BiosPxe,
        Firmware::UefiPxe(Arch::X64),
        Firmware::UefiHttp(Arch::X64),
    ] {
        for is_proxy in [true, false] {
            let all = styles(firmware, is_proxy);
            assert!(!all.is_empty());
            for (at, style) in all.iter().enumerate() {
                assert!(!all[..at].contains(style), "{firmware} {style:?}");
            }
        }
    }
}
