use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::letta::routes::Scope;
use crate::limits;

mod keys;

/// The issue's own example, with a hash that is one.
const EXAMPLE: &str = r#"
listeners:
  - address: 0.0.0.0:8283
  - address: 0.0.0.0:8443
    tls: { cert_file: certs/cert.pem, key_file: certs/key.pem }
admin: { address: 127.0.0.1:9090 }
upstreams:
  letta:
    servers: [ { url: http://127.0.0.1:8284 }, { url: http://127.0.0.1:8285, weight: 1 } ]
    password: ${LETTA_SERVER_PASSWORD:-}
    balance: agent_affinity
    health_check: { path: /v1/health/, interval: 5s, timeout: 2s, unhealthy_after: 3, healthy_after: 2 }
    timeouts: { connect: 5s, request: 60s, message: 30m, stream_idle: 120s }
keys:
  - { id: team-a, hash: "sha256:1e1b8c0f2ad1d4f3b8a3d3f6a4f2c0b9e8d7c6b5a493827160f1e2d3c4b5a697", plan: standard, scopes: [read, message] }
plans:
  standard: { rate: { requests: 60, per: 1m, burst: 20 }, in_flight: 8 }
store: { redis: { url: redis://127.0.0.1:6379/0 } }      # left out: in this process
cache: { agents: ["agent-…", "*"], ttl: 1h, max_entry: 256KiB, max_total: 64MiB }
cors: { origins: ["https://app.example.com"] }
drain: 30s
"#;

/// The least that is whole.
const LEAST: &str = r#"
listeners: [ { address: "127.0.0.1:0" } ]
upstreams: { letta: { servers: [ { url: "http://127.0.0.1:8284" } ] } }
keys: [ { id: one, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000001", scopes: [read] } ]
"#;

fn no_env(_: &str) -> Option<String> {
    None
}

fn read(text: &str) -> Result<Settings, Problems> {
    parse(text, Path::new("gateway.yaml"), &no_env)
}

/// The problems of `text`, one a line.
fn told(text: &str) -> String {
    told_with(text, &no_env)
}

fn told_with(text: &str, env: Environment<'_>) -> String {
    match parse(text, Path::new("gateway.yaml"), env) {
        Ok(_) => panic!("this was accepted:\n{text}"),
        Err(problems) => problems.to_string(),
    }
}

/// `LEAST` with `more` at its end must be refused with exactly these lines.
#[track_caller]
fn refused(more: &str, lines: &[&str]) {
    assert_eq!(told(&format!("{LEAST}{more}")).lines().collect::<Vec<_>>(), lines, "\n{more}");
}

#[test]
fn a_gateway_is_no_replica_of_its_own() {
    let told = told(&EXAMPLE.replace("http://127.0.0.1:8285", "http://localhost:8283"));
    let its_own: Vec<_> = told.lines().filter(|line| line.contains("servers")).collect();
    let line = "gateway.yaml:9:50: upstreams.letta.servers[1].url: localhost:8283 is listeners[0] of this gateway; write where a \
                replica listens";
    assert_eq!(its_own, [line]);
}

#[test]
fn the_example_of_the_issue_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("certs")).unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.path().join("certs/cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("certs/key.pem"), made.signing_key.serialize_pem()).unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, EXAMPLE).unwrap();
    let settings = parse(EXAMPLE, &path, &no_env).unwrap_or_else(|problems| panic!("{problems}"));
    let listeners: Vec<_> = settings.listeners.iter().map(|one| (one.address.port(), one.tls.is_some())).collect();
    assert_eq!(listeners, [(8283, false), (8443, true)]);
    let servers: Vec<_> = settings.balance.servers.iter().map(|one| one.authority.as_str()).collect();
    assert_eq!(servers, ["127.0.0.1:8284", "127.0.0.1:8285"]);
    assert_eq!(settings.upstream.password, None);
    assert_eq!(settings.upstream.timeouts.message, Duration::from_secs(1800));
    assert_eq!(settings.keys[0].digests[0][..2], [0x1e, 0x1b]);
    assert_eq!(settings.keys[0].scopes, [Scope::Read, Scope::Message]);
    assert_eq!(settings.redis.unwrap().url, "redis://127.0.0.1:6379/0");
    assert_eq!(settings.cache.max_entry, 256 * 1024);
    assert_eq!(settings.plans[0].rates[0].burst, 20);
    let files: Vec<_> = settings.files.iter().map(|file| file.strip_prefix(folder.path()).unwrap()).collect();
    assert_eq!(files, [Path::new("certs/cert.pem"), Path::new("certs/key.pem")]);
    assert_eq!(settings.warnings, []);
}

#[test]
fn what_is_left_out_has_its_default() {
    let settings = read(LEAST).unwrap();
    assert_eq!(settings.admin.unwrap().address.to_string(), "127.0.0.1:9090");
    assert_eq!(settings.upstream.pool.idle_timeout, Duration::from_secs(4));
    assert_eq!(settings.keys[0].plan, "standard");
    assert_eq!(settings.plans[0].in_flight, Some(8));
    assert_eq!((settings.redis.is_none(), settings.workers, settings.cache.agents.len()), (true, None, 0));
}

#[test]
fn an_option_without_a_value_is_left_out() {
    assert!(read(&format!("{LEAST}cache:\nstore:\n  redis:\ndrain:\nplans: {{ standard: }}\n")).is_ok());
}

#[test]
fn every_unknown_key_is_told_with_its_place_and_the_nearest_known_one() {
    let text = LEAST.replace("8284\" } ]", "8284\" } ], health_check: {\n  intervall: 5s }");
    assert_eq!(
        told(&format!("{text}cahce: {{}}\nnonsense_of_mine: 1\n")).lines().collect::<Vec<_>>(),
        [
            "gateway.yaml:4:3: unknown key \"intervall\" under upstreams.letta.health_check; did you mean \"interval\"?",
            "gateway.yaml:6:1: unknown key \"cahce\"; did you mean \"cache\"?",
            "gateway.yaml:7:1: unknown key \"nonsense_of_mine\"; known are listeners, admin, upstreams, keys, keys_file, \
             plans, store, cache, turns, cors, log, drain, workers",
        ]
    );
}

#[test]
fn every_value_of_the_wrong_kind_is_told_at_once() {
    refused(
        "drain: 30\nworkers: many\ncache: { ttl: 5 minutes, max_entry: 64, agents: all }\ncors: { origins: { a: b } }\n\
         log: { access: maybe, level: 3 }\n",
        &[
            "gateway.yaml:5:8: drain: 30 has no unit; write it like 250ms, 30s, 5m or 1h30m",
            "gateway.yaml:6:10: workers: \"many\" is not auto or a number from 1 to 1024",
            "gateway.yaml:7:15: cache.ttl: \"5 minutes\" is not a duration; write it like 250ms, 30s, 5m or 1h30m",
            "gateway.yaml:7:37: cache.max_entry: 64 has no unit; write it like 512B, 256KiB, 64MiB or 1MB",
            "gateway.yaml:7:49: cache.agents: must be a list (lines that start with \"- \"), not text",
            "gateway.yaml:8:18: cors.origins: must be a list (lines that start with \"- \"), not a map",
            "gateway.yaml:9:16: log.access: must be true or false, not text",
            "gateway.yaml:9:30: log.level: must be text, not a number; put it in quotes",
        ],
    );
}

#[test]
fn what_is_wrong_in_itself_does_not_hide_what_contradicts() {
    refused(
        "cache: { ttl: 5, max_entry: 1GiB }\nstore: { redis: { url: 5, prefix: \"a b\" } }\n",
        &[
            "gateway.yaml:5:15: cache.ttl: 5 has no unit; write it like 250ms, 30s, 5m or 1h30m",
            "gateway.yaml:5:18: cache.max_entry: 1GiB is more than cache.max_total (64MiB); lower it",
            "gateway.yaml:6:24: store.redis.url: must be text, not a number; put it in quotes",
            "gateway.yaml:6:27: store.redis.prefix: must be at most 64 characters without spaces",
        ],
    );
}

#[test]
fn what_follows_from_something_told_is_not_told() {
    let text = LEAST.replace("keys: [ {", "keys: [ 5, { plan: gold, ").replace("\"127.0.0.1:0\"", "5");
    assert_eq!(
        told(&format!("{text}plans: {{ gold: none }}\n")).lines().collect::<Vec<_>>(),
        [
            "gateway.yaml:2:25: listeners[0].address: must be text, not a number; put it in quotes",
            "gateway.yaml:4:9: keys[0]: must be a map (lines of \"key: value\"), not a number",
            "gateway.yaml:5:16: plans.gold: must be a map (lines of \"key: value\"), not text",
        ]
    );
    assert_eq!(told(&text.replace("5, {", "{").replace("plan: gold,", "")).lines().count(), 1);
}

#[test]
fn unknown_words_are_told_with_the_nearest_known_one() {
    let text =
        LEAST.replace("scopes: [read]", "scopes: [read, mesage]").replace("letta: {", "letta: { balance: fastest,");
    assert_eq!(
        told(&text).lines().collect::<Vec<_>>(),
        [
            "gateway.yaml:3:32: upstreams.letta.balance: \"fastest\" is not known; known are agent_affinity, least_request, \
             round_robin",
            "gateway.yaml:4:116: keys[0].scopes[1]: \"mesage\" is not known; did you mean \"message\"?",
        ]
    );
}

#[test]
fn a_misspelt_key_is_not_told_to_be_missing_as_well() {
    let text = LEAST.replace("listeners:", "listners:").replace("url:", "ulr:");
    let told = told(&text);
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains("did you mean \"listeners\"?") && told.contains("did you mean \"url\"?"), "{told}");
}

#[test]
fn an_empty_file_is_told_all_it_lacks() {
    assert_eq!(
        told("").lines().collect::<Vec<_>>(),
        [
            "gateway.yaml: listeners: there is none; add e.g. - address: 0.0.0.0:8283",
            "gateway.yaml: upstreams: there is none; add upstreams: { letta: { servers: [ { url: http://127.0.0.1:8284 } ] } }",
            "gateway.yaml: keys: there is none, so nobody could ask anything; make one with: letta-gateway keys create",
        ]
    );
}

#[test]
fn all_that_contradicts_is_told_at_once() {
    let text = r#"
listeners:
  - address: 0.0.0.0:8283
  - address: 127.0.0.1:8283
  - { address: "localhost:1", max_streams: 0, max_header_size: 1KiB }
  - {}
admin: { address: 0.0.0.0:8283 }
upstreams:
  letta:
    servers:
      - { url: http://a:1, weight: 0 }
      - { url: "http://A:1/" }
      - {}
    health_check: { path: health, unhealthy_after: 0 }
    timeouts: { connect: 0s }
keys:
  - { id: one, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000001", scopes: [] }
  - { id: one, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000001", scopes: [read], plan: standrad }
plans:
  standard: { rate: { requests: 0, burst: 0 }, in_flight: 0 }
store: { redis: { url: http://127.0.0.1 } }
cache: { ttl: 0s, max_entry: 2MiB, max_total: 1MiB }
cors: { origins: ["*", "https://app.example.com/"] }
log: { level: inof }
"#;
    assert_eq!(
        told(text).lines().collect::<Vec<_>>(),
        [
            "gateway.yaml:4:5: listeners[1].address: 127.0.0.1:8283 is taken by listeners[0] already; choose another port",
            "gateway.yaml:5:7: listeners[2].address: \"localhost:1\" cannot be listened on; write an IP address and a port, \
             e.g. 0.0.0.0:8283 or [::1]:8283",
            "gateway.yaml:5:31: listeners[2].max_streams: 0 is out of range; write 1 to 10000",
            "gateway.yaml:5:47: listeners[2].max_header_size: 1KiB is out of range; write 8KiB to 1MiB",
            "gateway.yaml:6:5: listeners[3]: \"address\" is missing",
            "gateway.yaml:7:10: admin.address: 0.0.0.0:8283 is a listener's address too; choose another port, for metrics \
             are not for clients",
            "gateway.yaml:11:28: upstreams.letta.servers[0].weight: 0 is out of range; write 1 to 1000",
            "gateway.yaml:12:11: upstreams.letta.servers[1].url: a:1 stands here twice; keep one, and give it a weight",
            "gateway.yaml:13:9: upstreams.letta.servers[2]: \"url\" is missing",
            "gateway.yaml:14:21: upstreams.letta.health_check.path: \"health\" is no path; write e.g. /v1/health/",
            "gateway.yaml:14:35: upstreams.letta.health_check.unhealthy_after: 0 is out of range; write 1 to 1000",
            "gateway.yaml:15:17: upstreams.letta.timeouts.connect: 0s is out of range; write 1ms to 5m",
            "gateway.yaml:17:97: keys[0].scopes: is empty, so the key could do nothing; write e.g. [read, message]",
            "gateway.yaml:18:7: keys[1].id: \"one\" is the id of keys[0] too; each key has its own",
            "gateway.yaml:18:16: keys[1].hash: is the hash of keys[0] too; make another key with: letta-gateway keys create",
            "gateway.yaml:18:113: keys[1].plan: there is no plan \"standrad\"; did you mean \"standard\"?",
            "gateway.yaml:20:23: plans.standard.rate.requests: 0 is out of range; write 1 to 10000000",
            "gateway.yaml:20:36: plans.standard.rate.burst: 0 is out of range; write 1 to 10000000",
            "gateway.yaml:20:48: plans.standard.in_flight: 0 is out of range; write 1 to 1000000",
            "gateway.yaml:21:19: store.redis.url: this is not a Redis URL; write redis://host:port/db, \
             redis+sentinel://host:26379,host:26379/master/db or redis+cluster://host:port,host:port (rediss instead of \
             redis for TLS)",
            "gateway.yaml:22:10: cache.ttl: 0s is out of range; write 1s to 30d",
            "gateway.yaml:22:19: cache.max_entry: 2MiB is more than cache.max_total (1MiB); lower it",
            "gateway.yaml:23:19: cors.origins[0]: \"*\" stands for all origins; let it stand alone or leave it out",
            "gateway.yaml:23:24: cors.origins[1]: \"https://app.example.com/\" is no origin; write scheme://host or \
             scheme://host:port, in lower case and without a path",
            "gateway.yaml:24:8: log.level: \"inof\" is no level; did you mean \"info\"?",
        ]
    );
}

#[test]
fn a_replica_is_http_host_and_port_and_no_more() {
    for (url, why) in [
        ("https://letta:8283", "https to a replica is not served"),
        ("letta:8283", "is no http URL"),
        ("8283", "is no http URL"),
        ("http://letta", "has no port"),
        ("http://letta:99999", "has no port"),
        ("http://letta:8283/v1", "has a path or query"),
        ("http://letta:8283/?a=b", "has a path or query"),
        ("http://user:hunter2@letta:8283", "has a user or password"),
        ("http://:8283", ""),
        ("ftp://letta:8283", "is no http URL"),
    ] {
        let problems = told(&LEAST.replace("http://127.0.0.1:8284", url));
        assert!(problems.contains(why) && !problems.contains("hunter2"), "{url}: {problems}");
    }
    for url in ["http://letta:8283", "http://letta:8283/", "http://[::1]:8283"] {
        assert!(read(&LEAST.replace("http://127.0.0.1:8284", url)).is_ok(), "{url}");
    }
}

#[test]
fn a_key_in_place_of_its_hash_is_told_and_not_shown() {
    let hash = "sha256:0000000000000000000000000000000000000000000000000000000000000001";
    for (text, why) in [
        ("lgw_one_hunter2", "this is the key itself"),
        ("hunter2", "must be sha256: and 64 hex digits"),
        ("sha256:hunter2", "must be sha256: and 64 hex digits"),
        (hash.strip_prefix("sha256:").unwrap(), "write sha256: in front"),
    ] {
        let problems = told(&LEAST.replace(hash, text));
        assert!(problems.contains(why) && !problems.contains("hunter2"), "{problems}");
    }
}

#[test]
fn two_groups_of_replicas_are_refused() {
    let text = LEAST.replace("upstreams: {", "upstreams: { other: { servers: [ { url: \"http://b:1\" } ] },");
    assert!(
        told(&text).starts_with("gateway.yaml:3:1: upstreams: there are 2 groups (letta, other), and one is served")
    );
}

#[test]
fn the_environment_is_put_in_wherever_a_scalar_stands() {
    let env = |name: &str| match name {
        "PORT" => Some("8299".to_owned()),
        "COUNT" => Some("7".to_owned()),
        "EMPTY" => Some(String::new()),
        "YES" => Some("false".to_owned()),
        "PASSWORD" => Some("a: [b".to_owned()),
        _ => None,
    };
    let text = LEAST
        .replace("127.0.0.1:0", "127.0.0.1:${PORT}")
        .replace("letta: {", "letta: { password: \"$${x}${EMPTY:-y}\",");
    let text = format!("{text}workers: ${{COUNT}}\ndrain: ${{NONE:-5m}}\nlog: {{ access: \"${{YES}}\" }}\n");
    let settings = parse(&text, Path::new("gateway.yaml"), &env).unwrap();
    assert_eq!(settings.listeners[0].address.port(), 8299);
    assert_eq!((settings.workers, settings.drain, settings.log.access), (Some(7), Duration::from_secs(300), false));
    assert_eq!(settings.upstream.password.as_deref(), Some("${x}y"));
}

#[test]
fn what_the_environment_lacks_is_told_and_what_it_holds_is_not() {
    let text = format!(
        "{LEAST}drain: ${{NONE}}\nworkers: ${{SECRET}}\ncache: {{ ttl: \"${{SECRET}}\", agents: [\"${{a b}}\"] }}\n"
    );
    let problems = told_with(&text, &|name| (name == "SECRET").then(|| "hunter2".to_owned()));
    assert_eq!(
        problems.lines().collect::<Vec<_>>(),
        [
            "gateway.yaml:5:8: drain: the environment variable NONE is not set; set it, write its value here, or give a default with ${NONE:-…}",
            "gateway.yaml:6:10: workers: what ${…} stands for is not auto or a number from 1 to 1024",
            "gateway.yaml:7:15: cache.ttl: what ${…} stands for is not a duration; write it like 250ms, 30s, 5m or 1h30m",
            "gateway.yaml:7:37: cache.agents[0]: only ${NAME} and ${NAME:-default} can be put in, not one inside another; \
             $${ is a literal ${",
        ]
    );
}

#[test]
fn secrets_come_from_files_beside_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "hunter2\n").unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, LEAST.replace("letta: {", "letta: { password: \"file:password\",")).unwrap();
    let settings = load(&path).unwrap();
    assert_eq!(settings.upstream.password.as_deref(), Some("hunter2"));
    assert_eq!(settings.files, [folder.path().join("password")]);

    std::fs::write(folder.path().join("password"), "two\nlines").unwrap();
    let problems = load(&path).err().unwrap().to_string();
    assert!(
        problems.contains("upstreams.letta.password: must be visible ASCII") && !problems.contains("two"),
        "{problems}"
    );
}

#[test]
fn certificates_that_cannot_be_read_are_told() {
    let problems = told(&LEAST.replace("127.0.0.1:0\"", "127.0.0.1:0\", tls: { cert_file: nowhere.pem }"));
    assert_eq!(
        problems.lines().collect::<Vec<_>>(),
        [
            "gateway.yaml:2:40: listeners[0].tls: \"key_file\" is missing",
            "gateway.yaml:2:47: listeners[0].tls.cert_file: the file nowhere.pem cannot be read: No such file or directory \
             (os error 2)",
        ]
    );
}

#[test]
fn certificates_that_cannot_be_served_are_told_before_anything_binds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    let of = |days: i64| {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let now = std::time::SystemTime::now();
        params.not_after = if days < 0 {
            now - Duration::from_secs(86_400)
        } else {
            now + Duration::from_secs(days as u64 * 86_400 + 60)
        }
        .into();
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let text = LEAST.replace("127.0.0.1:0\"", "127.0.0.1:0\", tls: { cert_file: cert.pem, key_file: key.pem }");
    let with = |cert: &str, key: &str| {
        std::fs::write(folder.path().join("cert.pem"), cert).unwrap();
        std::fs::write(folder.path().join("key.pem"), key).unwrap();
        parse(&text, &path, &no_env)
    };
    let ((cert, key), (other, _)) = (of(100), of(100));
    assert_eq!(with(&cert, &key).unwrap().warnings, []);
    for (cert, key) in [(&key, &cert), (&other, &key), (&"no PEM".to_owned(), &key)] {
        let problems = with(cert, key).err().unwrap().to_string();
        assert!(problems.contains(":2:40: listeners[0].tls: ") && problems.lines().count() == 1, "{problems}");
    }
    for (days, why) in [(-1, "has expired"), (3, "expires in 3 days")] {
        let (cert, key) = of(days);
        let warnings = with(&cert, &key).unwrap().warnings;
        assert!(warnings[0].text.contains(why) && warnings.len() == 1, "{warnings:?}");
    }
}

#[test]
fn no_error_of_syntax_shows_the_lines_around_it() {
    let bad = [
        ("a: b: c\n", "not valid YAML"),
        ("key: [1, 2\nother: hunter2\n", "not valid YAML"),
        ("a:\n\t- hunter2\n", "not valid YAML"),
        ("a: 1\na: hunter2\n", "\"a\" stands here twice; keep one"),
        ("password: \"hunter2\n", "not valid YAML"),
        ("password: *hunter\n", "not valid YAML"),
        ("--- a\n--- b\n", "not valid YAML"),
    ];
    for (text, why) in bad {
        let problems = told(text);
        assert!(problems.contains(why) && !problems.contains("hunter2") && problems.lines().count() == 1, "{problems}");
    }
}

#[test]
fn depth_and_repetition_have_a_bound() {
    let bomb =
        (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| format!("{text}a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
    for text in [&"[".repeat(100_000), &"- ".repeat(100_000), &bomb] {
        assert!(read(text).is_err());
    }
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = LEAST.replace("keys: [ {", "keys: [ &one {").replace(
        "scopes: [read] } ]",
        "scopes: [read] }, { <<: *one, id: two, hash: \"sha256:0000000000000000000000000000000000000000000000000000000000000002\" } ]",
    );
    assert_eq!(read(&text).unwrap().keys[1].id, "two");
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let text = LEAST.replace("letta: {", "letta: { pool: { idle_timeout: 5s }, health_check: { interval: 1s },");
    let warnings = read(&text).unwrap().warnings;
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings[1].to_string().starts_with("gateway.yaml:3:31: upstreams.letta.pool.idle_timeout: 5s: Letta's server"),
        "{}",
        warnings[1]
    );
}

#[test]
fn what_only_a_restart_can_change_is_named() {
    let running = Fixed::of(&read(LEAST).unwrap());
    assert_eq!(running.changes(&running), []);
    let more = "workers: 3\ndrain: 1s\nlog: { level: debug, format: json }\n";
    let new = read(&format!("{}{more}", LEAST.replace("127.0.0.1:0", "127.0.0.1:1"))).unwrap();
    let changes = running.changes(&Fixed::of(&new));
    let told: Vec<_> = changes.iter().map(|change| (change.option, &*change.running, &*change.configured)).collect();
    assert_eq!(
        told,
        [
            ("listeners[].address", "127.0.0.1:0", "127.0.0.1:1"),
            ("log.format", "text", "json"),
            ("workers", "auto", "3")
        ]
    );
}

proptest! {
    /// Whatever an editor, a template or a merge makes of a file: problems with places inside it, never a panic.
    #[test]
    fn a_mangled_file_is_told_about_and_nothing_worse(
        cuts in prop::collection::vec((0..EXAMPLE.len(), 0..20_usize, "[-a-z0-9:{}\\[\\]\"'&*!|> \n\t$,#~.]{0,4}"), 1..6),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (start, length, put) in cuts {
            let start = (0..=start.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            let end = (start + length..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
            text.replace_range(start..end, &put);
        }
        if let Err(problems) = parse(&text, Path::new("gateway.yaml"), &|_| Some("hunter2".to_owned())) {
            prop_assert!(!problems.is_empty());
            let shown = problems.to_string();
            prop_assert!(!shown.contains("hunter2"), "{shown}");
            for problem in problems.iter() {
                let lines = text.lines().count() as u64 + 1;
                prop_assert!(problem.place.is_none_or(|place| (1..=lines).contains(&place.line)), "{problem}");
            }
        }
    }
}

#[test]
fn a_plan_takes_one_rate_or_a_list_of_them_and_budgets() {
    let plans = |plan: &str| read(&format!("{LEAST}plans: {{ standard: {{ {plan} }} }}\n")).unwrap().plans.remove(0);
    assert_eq!(plans("rate: { requests: 5, per: 1s }").rates.len(), 1);
    let plan =
        plans("scope: plan, mode: shadow, rate: [{ requests: 10, per: 1s, burst: 20 }, { requests: 5000, per: 1d }]");
    assert_eq!((plan.scope, plan.mode), (limits::Scope::Plan, limits::Mode::Shadow));
    let rates: Vec<_> = plan.rates.iter().map(|rate| (rate.requests, rate.per.as_secs(), rate.burst)).collect();
    assert_eq!(rates, [(10, 1, 20), (5000, 86_400, 5000)]);
    let plan = plans("budgets: [{ tokens: 2000000, steps: 500 }, { turns: 7, per: 1h }]");
    let budgets: Vec<_> = plan.budgets.iter().map(|budget| (budget.what, budget.most, budget.per.as_secs())).collect();
    let (tokens, steps, turns) = (limits::Measure::Tokens, limits::Measure::Steps, limits::Measure::Turns);
    assert_eq!(budgets, [(tokens, 2_000_000, 86_400), (steps, 500, 86_400), (turns, 7, 3600)]);
    refused(
        "plans:\n  standard:\n    rate: [{ requests: 1, per: 1m }, { requests: 2 }, { requests: 0, per: 1s }]\n    budgets: [{ per: 1d }, { tokens: 0 }, { steps: 1 }, { steps: 2, turns: 3 }]\n",
        &[
            "gateway.yaml:7:38: plans.standard.rate[1].per: is the period of rate[0] too; each rate has its own",
            "gateway.yaml:7:57: plans.standard.rate[2].requests: 0 is out of range; write 1 to 10000000",
            "gateway.yaml:8:15: plans.standard.budgets[0]: limits nothing; write tokens, steps or turns",
            "gateway.yaml:8:30: plans.standard.budgets[1].tokens: 0 is out of range; write 1 to 1000000000000000",
            "gateway.yaml:8:59: plans.standard.budgets[3].steps: has a budget of the same period already; keep one",
        ],
    );
}

#[test]
fn redis_may_be_what_sentinels_name_or_a_cluster_and_what_does_not_fit_it_is_told() {
    let with = |redis: &str| read(&format!("{LEAST}store: {{ redis: {{ {redis} }} }}\n"));
    let settings = with("url: \"redis+sentinel://:sesame@a,b:1/m/2\", sentinel_username: u, sentinel_password: guard");
    let redis = settings.unwrap().redis.unwrap();
    assert_eq!((redis.sentinel.username.as_deref(), redis.sentinel.password.as_deref()), (Some("u"), Some("guard")));
    assert!(with("url: \"rediss+cluster://a:1,b:2\"").is_ok());
    for (redis, line) in [
        ("url: \"redis://a\", sentinel_password: guard", "sentinel_password: is for Sentinels"),
        ("url: \"redis+cluster://a\", sentinel_username: u", "sentinel_username: is for Sentinels"),
        ("url: \"redis+sentinel://a,b\"", "url: names no master; write redis+sentinel://"),
        ("url: \"redis+cluster://a/3\"", "url: a Redis Cluster has database 0 only"),
        ("url: \"redis+cluster://a\", prefix: \"{}\"", "prefix: holds {}"),
    ] {
        let told = with(redis).err().expect(redis).to_string();
        assert!(told.contains(&format!("store.redis.{line}")) && !told.contains("guard"), "{told}");
    }
}
