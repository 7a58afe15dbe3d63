//! What the file, the environment and the flags may say, and what is said back.

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    load_all(text, &[], &[]).map(|loaded| loaded.config)
}

fn load_all(
    text: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, ConfigError> {
    let mut overrides = Overrides::default();
    for (key, value) in flags {
        overrides.set(&format!("--{}", key.replace('.', "-")), key, *value);
    }
    let environment = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    Config::from_sources(
        Some((Path::new("/etc/diskless/diskless.toml"), text)),
        environment,
        &overrides,
    )
}

fn problem(text: &str) -> String {
    let error = load(text).unwrap_err();
    let [problem] = error.problems() else {
        panic!("not one problem: {error}")
    };
    problem.clone()
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(load(""), Ok(Config::default()));
}

#[test]
fn every_section_is_read() {
    let config = load(
        r#"
        data = "/srv/diskless"
        [network]
        interface = "eth1"
        address = "192.168.1.10"
        [dhcp]
        mode = "full"
        pool = ["192.168.1.100-192.168.1.200", "192.168.1.210"]
        lease = "30m"
        router = "192.168.1.1"
        dns = ["192.168.1.1", "9.9.9.9"]
        [tftp]
        enabled = false
        [http]
        port = 8080
        [api]
        socket = ""
        listen = "127.0.0.1:8067"
        "#,
    )
    .unwrap();
    let address = |last| Ipv4Addr::new(192, 168, 1, last);
    assert_eq!(config.data, Path::new("/srv/diskless"));
    assert_eq!(
        config.network,
        Network {
            interfaces: Vec::new(),
            interface: Some("eth1".to_owned()),
            address: Some(address(10))
        }
    );
    assert_eq!(config.dhcp.mode, DhcpMode::Full);
    assert_eq!(
        config.dhcp.pool,
        [(address(100), address(200)), (address(210), address(210))]
    );
    assert_eq!(config.dhcp.lease, Duration::from_secs(1800));
    assert_eq!(config.dhcp.router, Some(address(1)));
    assert_eq!(config.dhcp.dns, [address(1), Ipv4Addr::new(9, 9, 9, 9)]);
    assert!(!config.tftp.enabled);
    assert_eq!(config.http.port, 8080);
    assert_eq!(config.api.socket, None);
    assert_eq!(
        config.api.listen,
        Some(SocketAddr::from(([127, 0, 0, 1], 8067)))
    );
}

#[test]
fn an_unknown_key_is_named_with_line_and_nearest_key() {
    let text = "data = \"/srv\"\n\n[http]\nport = 80\n\n[dhcp]\nmod = \"proxy\"\n";
    assert_eq!(
        problem(text),
        "diskless.toml line 7: unknown key `dhcp.mod`; did you mean `dhcp.mode`?"
    );
}

#[test]
fn a_key_in_the_wrong_place_is_sent_to_the_right_one() {
    assert_eq!(
        problem("mode = \"proxy\""),
        "diskless.toml line 1: unknown key `mode`; did you mean `dhcp.mode`?"
    );
    let text = "[network]\nrouter = \"10.0.0.1\"";
    assert_eq!(
        problem(text),
        "diskless.toml line 2: unknown key `network.router`; did you mean `dhcp.router`?"
    );
}

#[test]
fn a_key_like_none_of_ours_gets_no_guess() {
    assert_eq!(
        problem("[http]\nzebra = 1"),
        "diskless.toml line 2: unknown key `http.zebra`"
    );
}

#[test]
fn an_unknown_section_is_named_once() {
    let text = "[dchp]\nmode = \"full\"\nlease = \"1h\"";
    assert_eq!(
        problem(text),
        "diskless.toml line 1: unknown section [dchp]; did you mean [dhcp]?"
    );
}

#[test]
fn a_section_written_as_a_key_is_explained() {
    assert_eq!(
        problem("dhcp = \"full\""),
        "diskless.toml line 1: `dhcp` is a section; write [dhcp] and its keys below it"
    );
}

#[test]
fn a_bad_value_is_named_with_line_and_what_is_allowed() {
    assert_eq!(
        problem("[dhcp]\n\nmode = \"prxy\""),
        "diskless.toml line 3: `dhcp.mode` cannot be \"prxy\"; allowed is \"observe\", \"proxy\" or \"full\""
    );
    assert_eq!(
        problem("[http]\nport = 70000"),
        "diskless.toml line 2: `http.port` cannot be 70000; allowed is a port from 1 to 65535"
    );
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    let said = problem("[dhcp]\nmode = full\n");
    assert!(said.starts_with("diskless.toml line 2: "), "{said}");
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_file() {
    let error = load("[tftp]\nport = 0\n[dhcp]\nmod = 1\nlease = \"1m\"").unwrap_err();
    let lines: Vec<&str> = error
        .problems()
        .iter()
        .map(|p| p.split(':').next().unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            "diskless.toml line 2",
            "diskless.toml line 4",
            "diskless.toml line 5"
        ]
    );
}

#[test]
fn values_out_of_bounds_are_refused() {
    for line in [
        "data = \"\"",
        "data = 5",
        "dhcp.lease = \"119s\"",
        "dhcp.lease = \"366d\"",
        "dhcp.lease = 7200",
        "dhcp.lease = \"2\"",
        "dhcp.lease = \"h\"",
        "dhcp.lease = \"99999999999999999999h\"",
        "dhcp.lease = \"18446744073709551615d\"",
        "dhcp.pool = [\"10.0.0.9-10.0.0.1\"]",
        "dhcp.pool = [\"10.0.0.1-10.0.0.9\", \"10.0.0.9-10.0.0.12\"]",
        "dhcp.pool = [\"10.0.0.0/24\"]",
        "dhcp.pool = [5]",
        "dhcp.router = \"0.0.0.0\"",
        "dhcp.dns = [\"224.0.0.1\"]",
        "dhcp.domain = \"a..b\"",
        "dhcp.domain = \"not a name\"",
        "dhcp.allow_other_servers = 2",
        "network.interface = \"a-name-that-is-too-long\"",
        "network.interface = \"a b\"",
        "network.address = \"192.168.1\"",
        "tftp.block_bytes = 100",
        "iscsi.port = 1.5",
        "iscsi.port = 99999999999999999999",
        "iscsi.target_prefix = \"diskless\"",
        "iscsi.target_prefix = \"iqn.2026-13.org.example\"",
        "iscsi.target_prefix = \"iqn.2026.org.example\"",
        "iscsi.target_prefix = \"iqn.2026-11\"",
        "iscsi.target_prefix = \"iqn.2026-11.org.Example\"",
        "iscsi.target_prefix = \"iqn.2026-11.org..example\"",
        "iscsi.target_prefix = \"iqn.2026-11.org.example:a b\"",
        "boot.retry = \"0s\"",
        "boot.retry = \"11m\"",
        "machines.pending_limit = -1",
        "machines.pending_limit = 10001",
        "api.listen = \"8067\"",
        "api.listen = \"127.0.0.1:0\"",
        "log.level = \"loud\"",
        "log.level = \"info,=debug\"",
    ] {
        assert!(problem(line).contains("allowed is"), "{line}");
    }
}

#[test]
fn an_api_for_the_whole_lan_is_refused_with_the_reason() {
    let said = problem("api.listen = \"0.0.0.0:8067\"");
    assert!(said.contains("owns every disk"), "{said}");
}

#[test]
fn a_target_prefix_may_have_a_part_of_its_own() {
    let config = load("iscsi.target_prefix = \"iqn.2026-11.org.example:lab.a:\"").unwrap();
    assert_eq!(config.iscsi.target_prefix, "iqn.2026-11.org.example:lab.a");
}

#[test]
fn one_port_for_two_servers_is_refused() {
    assert!(problem("http.port = 3260").contains("both 3260"));
}

#[test]
fn a_server_that_no_command_could_reach_is_refused() {
    assert!(problem("api.socket = \"\"").contains("api.listen"));
}

#[test]
fn https_that_cannot_be_meant_is_refused() {
    assert!(problem("http.tls_port = 80").contains("another door"));
    let half = "http.tls_port = 443\nhttp.tls_key = \"/etc/x.key\"";
    assert!(problem(half).contains("belong together"));
    assert!(problem("http.tls_for = [\"firmware\"]").contains("http.tls_port"));
    assert!(problem("http.tls_for = [\"everybody\"]").contains("firmware"));
}

#[test]
fn variables_go_before_the_file_and_flags_before_both() {
    let text = "[dhcp]\nmode = \"observe\"\nlease = \"1h\"\n[http]\nport = 81";
    let environment = [
        ("DISKLESS_DHCP_MODE", "proxy"),
        ("DISKLESS_HTTP_PORT", "82"),
        ("PATH", "/bin"),
    ];
    let config = load_all(text, &environment, &[("dhcp.mode", "full")])
        .unwrap()
        .config;
    assert_eq!(config.dhcp.mode, DhcpMode::Full);
    assert_eq!(config.http.port, 82);
    assert_eq!(config.dhcp.lease, Duration::from_secs(3600));
}

#[test]
fn variables_hold_lists_with_commas_and_truths_as_words() {
    let environment = [
        ("DISKLESS_DHCP_DNS", "10.0.0.1, 10.0.0.2"),
        ("DISKLESS_TFTP_ENABLED", "no"),
    ];
    let config = load_all("", &environment, &[]).unwrap().config;
    assert_eq!(
        config.dhcp.dns,
        [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]
    );
    assert!(!config.tftp.enabled);
}

#[test]
fn bad_values_of_variables_and_flags_are_named_by_them() {
    let error = load_all("", &[("DISKLESS_DHCP_MODE", "on")], &[("http.port", "x")]).unwrap_err();
    assert!(
        error.problems()[0].starts_with("DISKLESS_DHCP_MODE: `dhcp.mode` cannot be \"on\""),
        "{error}"
    );
    assert!(
        error.problems()[1].starts_with("--http-port: `http.port` cannot be \"x\""),
        "{error}"
    );
}

#[test]
fn a_misspelled_variable_is_noted_and_a_foreign_one_is_not() {
    let environment = [("DISKLESS_DHCP_MOD", "full"), ("DISKLESS_LAB_KEEP", "1")];
    let loaded = load_all("", &environment, &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.notes.len(), 1);
    assert!(
        loaded.notes[0].contains("DISKLESS_DHCP_MODE"),
        "{:?}",
        loaded.notes
    );
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_named() {
    let error = Config::load(
        Some(Path::new("/nonexistent/diskless.toml")),
        &Overrides::default(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("reading /nonexistent/diskless.toml: "),
        "{error}"
    );
}

// ---- the example -----------------------------------------------------------

const EXAMPLE: &str = include_str!("../../diskless.example.toml");

/// The settings of the example: section, line without its `#`, and the
/// comment above it.
fn example_settings() -> Vec<(String, String, String)> {
    let (mut section, mut comment) = (String::new(), String::new());
    let mut settings = Vec::new();
    for line in EXAMPLE.lines() {
        if line.starts_with('[') {
            section = line.to_owned();
            comment.clear();
        } else if let Some(prose) = line.strip_prefix("# ") {
            comment += &format!("{prose} ");
        } else if let Some(setting) = line.strip_prefix('#').filter(|rest| rest.contains(" = ")) {
            settings.push((
                section.clone(),
                setting.to_owned(),
                std::mem::take(&mut comment),
            ));
        }
    }
    settings
}

#[test]
fn the_example_as_it_is_means_the_defaults() {
    assert_eq!(load(EXAMPLE), Ok(Config::default()));
}

#[test]
fn the_example_explains_every_key_once() {
    let mut documented = Vec::new();
    for (section, setting, comment) in example_settings() {
        let section = section.trim_matches(['[', ']']);
        let key = setting.split(" = ").next().unwrap();
        documented.push(if section.is_empty() {
            key.to_owned()
        } else {
            format!("{section}.{key}")
        });
        assert!(!comment.is_empty(), "{key} has no comment");
    }
    let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_example_shows_defaults_where_it_does_not_say_that_there_is_none() {
    for (section, setting, comment) in example_settings() {
        // Alone, `socket` and the like are whole configurations.
        let config = load(&format!("{section}\n{setting}"))
            .unwrap_or_else(|error| panic!("{setting}: {error}"));
        let says_none = comment.contains("No default");
        assert_eq!(
            config == Config::default(),
            !says_none,
            "{section} {setting}: {comment}"
        );
    }
}

#[test]
fn the_example_is_a_whole_configuration_with_every_line_in_use() {
    let text: String = example_settings()
        .iter()
        .fold(
            (String::new(), String::new()),
            |(text, last), (section, setting, _)| {
                let head = if *section == last {
                    String::new()
                } else {
                    format!("{section}\n")
                };
                (text + &head + setting + "\n", section.clone())
            },
        )
        .0;
    let config = load(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(config.network.interface.as_deref(), Some("eth1"));
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let mut variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), KEYS.len());
    assert!(variables.contains(&"DISKLESS_ISCSI_TARGET_PREFIX".to_owned()));
}
