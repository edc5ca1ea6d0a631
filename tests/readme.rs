//! What the README lists is what there is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use letta_gateway::error::{Cause, Error, Fate, Refusal, Whose, Window};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the README's table that begins with `head`, each as its cells.
fn table(head: &str) -> Vec<Vec<String>> {
    let readme = read("README.md");
    let (_, table) = readme.split_once(head).unwrap_or_else(|| panic!("no table {head}"));
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between backticks.
fn words(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// One of each; that none is missing is held against the source.
fn errors() -> Vec<Error> {
    let cause = || Cause::from("cause");
    let upstream = || "letta:8283".to_owned();
    let limited = |window| {
        let second = Duration::from_secs(1);
        let (name, policy) = ("rate_1s".into(), http::HeaderValue::from_static(""));
        Error::Limited(Box::new(Refusal {
            whose: Whose::Key,
            window,
            name,
            retry_after: second,
            limit: 1,
            remaining: 0,
            reset: second,
            policy,
        }))
    };
    let closed = || Error::UpstreamClosed { upstream: upstream(), sent: true, cause: cause() };
    vec![
        Error::BadTarget(""),
        Error::BadHost(""),
        Error::BadFraming(""),
        Error::PlainHttp,
        Error::BadHeader(""),
        Error::BadBody(""),
        Error::BodyBroken(cause()),
        Error::BodyTooLarge { limit: 1 },
        Error::BodyTimeout,
        Error::ClientLeft,
        Error::NoSuchRoute,
        Error::MethodNotAllowed { allow: "GET".into() },
        Error::KeyMissing,
        Error::KeyUnknown,
        Error::KeyMistyped,
        Error::KeyDisabled,
        Error::KeyExpired,
        Error::KeyRevoked,
        Error::ClientAddressRefused,
        Error::UserUnverified,
        Error::UserUnknown,
        Error::AgentRefused,
        Error::ReachRefused { why: "x" },
        Error::OwnerUnknown,
        Error::KeyConflict,
        Error::OriginRefused,
        Error::ScopeMissing { needed: "read" },
        Error::AddressRefused { field: "callback_url" },
        limited(Window::Rate),
        limited(Window::InFlight),
        limited(Window::Budget),
        Error::LimitsUnknown,
        Error::KeylessFull { most: 1 },
        Error::NotKept,
        Error::NoUpstream,
        Error::UpstreamConnect { upstream: upstream(), cause: cause() },
        Error::UpstreamBusy { upstream: upstream() },
        Error::UpstreamPassword { upstream: upstream() },
        closed(),
        Error::UpstreamTimeout { upstream: upstream(), after: Duration::from_secs(1) },
        Error::TurnLost { run: None, fate: Fate::Unknown, error: Box::new(closed()) },
        Error::LaneFull { waiting: 1 },
        Error::LaneTimeout { waited: Duration::from_secs(1) },
        Error::KeyReused,
        Error::AnswerNotKept { run: None },
        Error::StreamBroken(Box::new(closed())),
        Error::StoreDown,
        Error::Draining,
        Error::CutOff,
        Error::Overloaded { what: "connections" },
        Error::Exhausted { what: "open files", cause: cause() },
        Error::Internal(cause()),
    ]
}

/// The reasons that `Error::reason` can give, by its source.
fn reasons() -> BTreeSet<String> {
    let source = read("src/error.rs");
    let (_, reason) = source.split_once("pub fn reason(").expect("Error::reason");
    let (reason, _) = reason.split_once("\n    }\n").expect("its end");
    let reasons: BTreeSet<_> = reason.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(reasons.len() > 30, "{reasons:?}");
    reasons
}

#[test]
fn every_error_is_in_the_readme_under_its_status() {
    let mut listed = BTreeMap::new();
    for row in table("| status | `error.type` |") {
        let [status, types] = row.as_slice() else { panic!("{row:?}") };
        for reason in words(types) {
            assert!(listed.insert(reason.clone(), status.clone()).is_none(), "{reason} is listed twice");
        }
    }
    let errors = errors();
    let made: BTreeSet<_> = errors.iter().map(|error| error.reason().to_owned()).collect();
    assert_eq!(made, reasons(), "this test knows every error");
    assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), made);
    for error in errors {
        let status = match error {
            // nobody reads these as an answer
            Error::ClientLeft | Error::StreamBroken(_) => "log only".to_owned(),
            _ => error.status().as_u16().to_string(),
        };
        assert_eq!(listed[error.reason()], status, "{}", error.reason());
    }
}

#[test]
fn every_option_of_turns_is_in_the_readme_at_its_default() {
    let file: serde_json::Value = serde_saphyr::from_str(&read("config/gateway.yaml")).unwrap();
    let rows = table("| key | default | what |");
    let rows: Vec<_> = rows.iter().filter(|row| words(&row[0]).any(|name| name.starts_with("turns"))).collect();
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for (name, default) in file["turns"].as_object().unwrap() {
        let name = format!("turns.{name}");
        let row = rows.iter().find(|row| words(&row[0]).any(|word| word == name));
        let row = row.unwrap_or_else(|| panic!("no row {name}"));
        match default.as_object() {
            Some(inner) => {
                for (key, value) in inner {
                    let told = format!("{key}: {}", text(value));
                    assert!(words(&row[2]).any(|word| word == told), "{name}: {told}");
                }
            }
            None => {
                let place = words(&row[0]).position(|word| word == name).unwrap();
                assert_eq!(row[1].split(", ").nth(place), Some(text(default).as_str()), "{name}");
            }
        }
    }
}

#[test]
fn every_option_that_stands_for_a_directive_of_nginx_exists() {
    let file = read("config/gateway.yaml");
    let known: BTreeSet<_> = file
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ', '-']).split_once(':'))
        .map(|(name, _)| name)
        .collect();
    let rows = table("| nginx | here | |");
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        for option in words(&row[1]) {
            for name in option.split('.').filter(|name| *name != "NAME") {
                assert!(known.contains(name.trim_end_matches("[]")), "{option}: no {name} in config/gateway.yaml");
            }
        }
    }
}

#[test]
fn the_unit_of_systemd_waits_for_the_drain_and_knows_a_bad_configuration() {
    let readme = read("README.md");
    let (_, unit) = readme.split_once("```ini\n").expect("a unit");
    let (unit, _) = unit.split_once("```").unwrap();
    let told = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).expect(name);
    let file: serde_json::Value = serde_saphyr::from_str(&read("config/gateway.yaml")).unwrap();
    let drain: u64 = file["drain"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
    assert!(told("TimeoutStopSec").parse::<u64>().unwrap() > drain, "killed before the drain is over");
    assert_eq!(told("RestartPreventExitStatus"), "78");
    assert!(readme.contains("78 bad configuration"));
}
