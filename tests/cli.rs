//! The command line as somebody meets it: the built binary, its exit codes, what it prints and what it never prints.

#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const LEAST: &str = r#"
listeners: [ { address: "127.0.0.1:0" } ]
upstreams: { letta: { servers: [ { url: "http://127.0.0.1:8284" } ] } }
keys: [ { id: one, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000001", scopes: [read] } ]
"#;

fn gateway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_letta-gateway"));
    for name in ["LETTA_GATEWAY_CONFIG", "LETTA_GATEWAY_KEY_HASH", "LETTA_SERVER_PASSWORD", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error.
fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    outcome(gateway(arguments).output().unwrap())
}

fn run_with_input(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child =
        gateway(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    outcome(child.wait_with_output().unwrap())
}

struct File {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        fs::write(&path, text).unwrap();
        Self { folder, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

fn check(text: &str) -> (i32, String, String) {
    let file = File::new(text);
    let (code, out, told) = run(&["check", "--config", file.path()]);
    (code, out, told.replace(file.path(), "gateway.yaml"))
}

#[test]
fn a_good_configuration_is_summed_up() {
    assert_eq!(
        check(LEAST),
        (0, "ok: 1 listener, 1 replica, 1 key, store in this process\n".to_owned(), String::new())
    );
}

#[test]
fn every_problem_is_told_with_its_place_and_exit_code_78() {
    let text = format!("{}cahce: {{ ttl: 1h }}\ndrain: 30\n", LEAST.replace("scopes: [read]", "scopes: [raed]"));
    assert_eq!(
        check(&text),
        (
            78,
            String::new(),
            "error: gateway.yaml:4:110: keys[0].scopes[0]: \"raed\" is not known; did you mean \"read\"?\n\
             error: gateway.yaml:5:1: unknown key \"cahce\"; did you mean \"cache\"?\n\
             error: gateway.yaml:6:8: drain: 30 has no unit; write it like 250ms, 30s, 5m or 1h30m\n\
             3 problems in the configuration\n"
                .to_owned()
        )
    );
}

#[test]
fn what_a_configuration_names_is_looked_at_too() {
    let file = File::new(&format!("{LEAST}store: {{ redis: {{ url: \"rediss://127.0.0.1\", ca_file: ca.pem }} }}\n"));
    for (ca, why) in [
        ("no PEM", ":5:46: store.redis.ca_file: holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "cannot use this Redis"),
    ] {
        fs::write(file.folder.path().join("ca.pem"), ca).unwrap();
        let (code, out, told) = run(&["check", "--config", file.path()]);
        assert!(code == 78 && out.is_empty() && told.contains(why), "{told}");
    }
}

#[test]
fn a_warning_is_told_and_stops_nothing() {
    let (code, out, told) = check(&LEAST.replace("letta: {", "letta: { pool: { idle_timeout: 1m },"));
    assert_eq!((code, out.starts_with("ok: ")), (0, true));
    assert!(told.starts_with("warning: gateway.yaml:3:31: upstreams.letta.pool.idle_timeout: 1m"), "{told}");
}

#[test]
fn no_secret_is_ever_printed() {
    let file = File::new(
        &LEAST
            .replace("letta: {", "letta: { password: \"${PASSWORD}\", max_body: \"${PASSWORD}\",")
            .replace("sha256:0000000000000000000000000000000000000000000000000000000000000001", "lgw_one_hunter2")
            .replace("http://127", "http://me:hunter2@127"),
    );
    fs::write(file.folder.path().join("redis"), "http://me:hunter2@redis\n").unwrap();
    fs::write(&file.path, fs::read_to_string(&file.path).unwrap() + "store: { redis: { url: \"file:redis\" } }\n")
        .unwrap();
    let output = gateway(&["check", "--config", file.path()]).env("PASSWORD", "hunter2 hunter2").output().unwrap();
    let (code, out, told) = outcome(output);
    assert_eq!((code, out.as_str(), told.lines().count()), (78, "", 6), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn a_configuration_that_is_not_there_is_told_with_how_to_get_one() {
    let (code, _, told) = run(&["check", "--config", "/nowhere/gateway.yaml"]);
    assert_eq!(code, 78);
    assert!(told.starts_with("error: /nowhere/gateway.yaml: there is no such file; name one with --config"), "{told}");
    let output = gateway(&["check"]).env("LETTA_GATEWAY_CONFIG", "/nowhere/else.yaml").output().unwrap();
    assert!(outcome(output).2.contains("/nowhere/else.yaml"));
}

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_not_wrong() {
    for arguments in [&["runn"][..], &["check", "--confg", "x"], &[], &["keys", "create", "--scopes", "everything"]] {
        let (code, out, told) = run(arguments);
        assert_eq!((code, out.as_str(), told.is_empty()), (2, "", false), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["keys", "create", "--help"]] {
        let (code, out, told) = run(arguments);
        assert_eq!((code, out.is_empty(), told.as_str()), (0, false, ""), "{arguments:?}");
    }
    assert!(run(&["--version"]).1.starts_with(concat!("letta-gateway ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_new_key_is_shown_once_and_what_is_printed_with_it_can_be_pasted() {
    let (code, out, told) = run(&["keys", "create", "--id", "1.5", "--scopes", "read, message,modify , admin"]);
    assert_eq!((code, told.as_str()), (0, ""));
    let key = out.lines().find(|line| line.starts_with("lgw_")).unwrap();
    assert_eq!(out.matches(key).count(), 1);
    assert_eq!(key.len(), "lgw_1.5_".len() + 64 + "_".len() + 8);

    let pasted = out.lines().last().unwrap();
    let (start, _) = LEAST.split_once("keys:").unwrap();
    let (code, _, told) = check(&format!("{start}keys:\n{pasted}\n"));
    assert_eq!(code, 0, "{told}");

    // whoever has the key finds its hash in that line
    let (code, hash, _) = run_with_input(&["keys", "hash"], &format!("{key}\n"));
    assert_eq!(code, 0);
    assert!(pasted.contains(&format!("\"{}\"", hash.trim_end())), "{pasted} {hash}");
}

#[test]
fn no_two_keys_are_alike() {
    let keys: Vec<_> = (0..3)
        .map(|_| serde_json::from_str::<serde_json::Value>(&run(&["keys", "create", "--json"]).1).unwrap())
        .collect();
    for part in ["id", "key", "hash"] {
        assert!(keys[0][part] != keys[1][part] && keys[1][part] != keys[2][part], "{part}");
    }
    assert_eq!(keys[0]["scopes"], serde_json::json!(["read", "message"]));
    let (_, hash, _) = run_with_input(&["keys", "hash"], keys[0]["key"].as_str().unwrap());
    assert_eq!(keys[0]["hash"], hash.trim_end());
}

#[test]
fn a_hash_as_json_is_the_same_hash() {
    let (_, hash, _) = run_with_input(&["keys", "hash"], "a-key-of-my-own");
    let (code, json, _) = run_with_input(&["keys", "hash", "--json"], "a-key-of-my-own\n");
    assert_eq!((code, json), (0, format!("{{\"hash\":\"{}\"}}\n", hash.trim_end())));
}

#[test]
fn a_new_key_with_all_it_may_have_can_be_pasted() {
    let user = "user-00000000-0000-4000-8000-000000000000";
    let options = [
        "keys",
        "create",
        "--id",
        "null",
        "--agents",
        "agent-1,agent-2f*",
        "--letta-user",
        user,
        "--allowed-ips",
        "10.0.0.0/8,::1",
        "--expires-at",
        "2126-01-31T00:00:00Z",
    ];
    let (code, out, told) = run(&options);
    assert_eq!((code, told.as_str()), (0, ""));
    let (start, _) = LEAST.split_once("keys:").unwrap();
    let file = File::new(&format!("{start}keys:\n{}\n", out.lines().last().unwrap()));
    let (code, out, told) = run(&["keys", "list", "--json", "--config", file.path()]);
    let keys: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{told}"));
    assert_eq!((code, keys[0]["id"].as_str(), keys[0]["state"].as_str()), (0, Some("null"), Some("active")));
    assert_eq!(keys[0]["agents"], serde_json::json!(["agent-1", "agent-2f*"]));
    assert_eq!(keys[0]["allowed_ips"], serde_json::json!(["10.0.0.0/8", "::1/128"]));
    assert_eq!(keys[0]["letta_user"], user);
    let (_, out, _) = run(&["keys", "list", "--config", file.path()]);
    let table =
        "ID    STATE   PLAN      SCOPES        AGENTS\nnull  active  standard  read,message  agent-1,agent-2f*\n";
    assert_eq!(out, table);
}

#[test]
fn no_key_is_shown_that_the_configuration_would_refuse() {
    for (option, value, word) in [
        ("--letta-user", "bob", "letta_user"),
        ("--expires-at", "tomorrow", "expires_at"),
        ("--agents", "b*a", "agents"),
        ("--allowed-ips", "10.0.0.0/99", "allowed_ips"),
    ] {
        let (code, out, told) = run(&["keys", "create", option, value]);
        assert_eq!((code, out.as_str()), (1, ""), "{option} {value}");
        assert!(told.contains("no key was made") && told.contains(word), "{told}");
    }
}

#[test]
fn a_key_that_is_changed_keeps_its_old_hash_beside_the_new_one_and_is_changed_once_at_a_time() {
    let file = File::new(LEAST);
    let old = format!("sha256:{:064}", 1);
    let (code, out, told) = run(&["keys", "rotate", "one", "--json", "--config", file.path()]);
    let made: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{told}"));
    assert_eq!((code, &made["hashes"][1]), (0, &serde_json::json!(old)));
    let (_, hash, _) = run_with_input(&["keys", "hash"], made["key"].as_str().unwrap());
    assert_eq!(made["hashes"][0], hash.trim_end());

    let (_, out, _) = run(&["keys", "rotate", "one", "--config", file.path()]);
    let pasted = LEAST.replace(&format!("hash: \"{old}\""), out.lines().last().unwrap());
    let file = File::new(&pasted);
    assert_eq!(run(&["check", "--config", file.path()]).0, 0);
    let (code, out, told) = run(&["keys", "rotate", "one", "--config", file.path()]);
    assert!(code == 1 && out.is_empty() && told.contains("take its older hash off first"), "{told}");
    assert_eq!(run(&["keys", "rotate", "two", "--config", file.path()]).0, 1);
}

#[test]
fn nothing_is_hashed_that_is_no_key() {
    let mistyped = format!("lgw_team-a_{}_00000000\n", "ab".repeat(32));
    for input in ["", "\n", "two words\n", &mistyped] {
        let (code, out, told) = run_with_input(&["keys", "hash"], input);
        assert_eq!((code, out.as_str()), (1, ""), "{input:?}");
        assert!(told.starts_with("error: standard input: ") && !told.contains("abab"), "{told}");
    }
}

#[test]
fn the_default_configuration_needs_a_key_alone() {
    let (code, text, _) = run(&["config", "default"]);
    assert_eq!(code, 0);
    let file = File::new(&text);
    let arguments = ["check", "--config", file.path()];
    let (code, _, told) = run(&arguments);
    assert_eq!((code, told.lines().count()), (78, 2), "{told}");
    assert!(told.contains("the environment variable LETTA_GATEWAY_KEY_HASH is not set"), "{told}");
    let output =
        gateway(&arguments).env("LETTA_GATEWAY_KEY_HASH", format!("sha256:{}", "ab".repeat(32))).output().unwrap();
    assert_eq!(outcome(output).0, 0);
}

#[test]
fn the_schema_is_json() {
    let (code, text, _) = run(&["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &schema["additionalProperties"]), (0, &serde_json::json!(false)));
}

#[test]
fn who_reads_only_the_start_of_an_output_gets_no_error() {
    let mut child = gateway(&["config", "default"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let (code, _, told) = outcome(child.wait_with_output().unwrap());
    assert_eq!((code, told.as_str()), (0, ""));
}

/// Answers one request with `answer`; gives what was asked.
fn admin(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (address, asked)
}

const ALIVE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

#[test]
fn a_gateway_that_is_alive_is_healthy() {
    let (address, asked) = admin(ALIVE);
    assert_eq!(run(&["healthcheck", "--address", &format!("http://{address}")]), (0, "ok\n".to_owned(), String::new()));
    let asked = asked.join().unwrap();
    assert!(asked.starts_with(&format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n")), "{asked}");
}

#[test]
fn the_health_check_finds_the_admin_listener_of_a_configuration_with_other_problems() {
    let (address, asked) = admin(ALIVE);
    let port = address.rsplit_once(':').unwrap().1;
    let file = File::new(&format!("admin: {{ address: 0.0.0.0:{port} }}\ndrain: 30\nlisteners: ${{NONE}}\n"));
    assert_eq!(run(&["healthcheck", "--config", file.path()]).0, 0);
    asked.join().unwrap();
}

#[test]
fn a_gateway_that_is_not_alive_is_exit_code_1() {
    let (address, asked) = admin("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let (code, _, told) = run(&["healthcheck", "--address", &format!("http://{address}/readyz")]);
    assert!(code == 1 && told.ends_with("/readyz answered: HTTP/1.1 503 Service Unavailable\n"), "{told}");
    assert!(asked.join().unwrap().starts_with("GET /readyz "));

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(run(&["healthcheck", "--address", &format!("http://{closed}")]).0, 1);
    for address in ["https://127.0.0.1:1", "127.0.0.1", "http://127.0.0.1"] {
        let (code, _, told) = run(&["healthcheck", "--address", address]);
        assert!(code == 1 && told.contains("write http://host:port"), "{told}");
    }
    assert_eq!(run(&["healthcheck", "--config", "/nowhere"]).0, 1);
}
