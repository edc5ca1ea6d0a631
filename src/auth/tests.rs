use http::{HeaderName, HeaderValue, Method};
use sha2::{Digest, Sha256};

use super::key::Scopes;
use super::*;
use crate::letta::routes::find;

const KEY: &str = "lgw_team-a_0123456789";
const OTHER: &str = "lgw_team-b_0123456789";

fn auth() -> Auth {
    let settings = |id: &str, text: &str, scopes: &[Scope]| {
        key::Settings::new(id, Sha256::digest(text).into(), "standard", scopes)
    };
    let keys = [
        settings("team-a", KEY, &[Scope::Read, Scope::Message]),
        settings("team-b", OTHER, &[Scope::Admin]),
        settings("long", &"k".repeat(1024), &[Scope::Read]),
        settings("too-long", &"k".repeat(1025), &[Scope::Read]),
    ];
    Auth::new(&keys, &LettaUsers::default(), &Revocations::default(), &Metrics::new())
}

/// The id of the key found, or why none was.
fn found(path: &str, headers: &[(&str, &str)]) -> Result<Option<String>, &'static str> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let route = find(&Method::GET, path).unwrap().route;
    auth().key(&map, route).map(|key| key.map(|key| key.id.to_string())).map_err(|error| error.reason())
}

#[test]
fn a_key_is_found_wherever_a_client_of_lettas_puts_it() {
    let key = Ok(Some("team-a".to_owned()));
    for (name, value) in [
        ("authorization", format!("Bearer {KEY}")),
        ("authorization", format!("bearer {KEY}")),
        ("authorization", format!("BEARER   {KEY} ")),
        ("x-api-key", KEY.to_owned()),
        ("x-bare-password", format!("password {KEY}")),
    ] {
        assert_eq!(found("/v1/agents/", &[(name, &value)]), key, "{name}: {value}");
    }
}

#[test]
fn no_key_is_not_the_same_as_an_unknown_one() {
    for headers in [
        [("accept", "*/*")],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", KEY)],
        [("authorization", "Bearerlgw_team-a_0123456789")],
        [("authorization", "Digest username=letta")],
        [("x-api-key", "")],
        [("x-bare-password", KEY)],
        [("x-bare-password", "password ")],
        [("cookie", "authorization=lgw_team-a_0123456789")],
    ] {
        assert_eq!(found("/v1/agents/", &headers), Err("policy_key_missing"), "{headers:?}");
    }
    for value in
        ["Bearer lgw_team-a_012345678", "Bearer lgw_team-a_0123456789x", "Bearer LGW_TEAM-A_0123456789", "Bearer é"]
    {
        assert_eq!(found("/v1/agents/", &[("authorization", value)]), Err("policy_key_unknown"), "{value}");
    }
}

#[test]
fn a_mistyped_key_is_told_from_an_unknown_one() {
    let key = text::written("team_c-1", &[7; 32]);
    let bearer = |key: &str| found("/v1/agents/", &[("authorization", &format!("Bearer {key}"))]);
    assert_eq!(bearer(&key), Err("policy_key_unknown"));
    assert_eq!(bearer(&key.replacen("0707", "0770", 1)), Err("policy_key_mistyped"));
    assert_eq!(bearer(&key[..key.len() - 1]), Err("policy_key_mistyped"));
    assert_eq!(bearer("lgw_team-a_0123456789"), Ok(Some("team-a".to_owned())), "another form is known by its hash");
}

#[test]
fn a_text_longer_than_any_key_is_not_hashed() {
    let key = |length| found("/v1/agents/", &[("x-api-key", &"k".repeat(length))]);
    assert_eq!(key(1024), Ok(Some("long".to_owned())));
    assert_eq!(key(1025), Err("policy_key_unknown"));
}

#[test]
fn two_different_keys_are_refused_and_the_same_one_twice_is_not() {
    let bearer = format!("Bearer {KEY}");
    let twice = [("authorization", bearer.as_str()), ("x-api-key", KEY), ("authorization", &bearer)];
    assert_eq!(found("/v1/agents/", &twice), Ok(Some("team-a".to_owned())));
    for other in [OTHER, "unknown"] {
        let other_bearer = format!("Bearer {other}");
        let password = format!("password {other}");
        for second in [("x-api-key", other), ("authorization", &other_bearer), ("x-bare-password", &password)] {
            assert_eq!(found("/v1/agents/", &[("authorization", &bearer), second]), Err("policy_key_conflict"));
            assert_eq!(found("/v1/agents/", &[second, ("authorization", &bearer)]), Err("policy_key_conflict"));
        }
    }
}

#[test]
fn git_alone_may_send_its_key_as_a_basic_password() {
    let basic = |pair: &str| {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    };
    let git = "/v1/git/agent-1/state.git/info/refs";
    let header = basic(&format!("letta:{KEY}"));
    assert_eq!(found(git, &[("authorization", &header)]), Ok(Some("team-a".to_owned())));
    assert_eq!(found("/v1/agents/", &[("authorization", &header)]), Err("policy_key_missing"));
    for pair in [format!("other:{KEY}"), KEY.to_owned(), "letta:".to_owned()] {
        assert_eq!(found(git, &[("authorization", &basic(&pair))]), Err("policy_key_missing"), "{pair}");
    }
    assert_eq!(found(git, &[("authorization", "Basic !!!")]), Err("policy_key_missing"));
}

#[test]
fn an_open_route_asks_for_no_key_and_minds_no_wrong_one() {
    for path in ["/v1/health/", "/v1/ready/", "/v1/tools/mcp/oauth/callback"] {
        assert_eq!(found(path, &[]), Ok(None));
        assert_eq!(found(path, &[("authorization", "Bearer wrong"), ("x-api-key", "another")]), Ok(None));
    }
}

#[test]
fn a_scope_brings_no_other_with_it_but_admin_brings_all() {
    let all = [Scope::Read, Scope::Message, Scope::Modify, Scope::Admin];
    for held in all {
        let scopes: Scopes = [held].into_iter().collect();
        for asked in all {
            assert_eq!(scopes.allow(asked), held == asked || held == Scope::Admin, "{held:?} for {asked:?}");
        }
        assert!(scopes.allow(Scope::Open));
    }
    assert!(!Scopes::default().allow(Scope::Read));
    let scopes: Scopes = [Scope::Read, Scope::Message].into_iter().collect();
    assert!(scopes.allow(Scope::Read) && scopes.allow(Scope::Message) && !scopes.allow(Scope::Modify));
}

#[test]
fn a_key_is_good_until_its_end_from_its_networks_and_while_it_is_not_switched_off() {
    let end = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    let settings = key::Settings {
        expires_at: Some(end),
        allowed_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..key::Settings::new("one", [0; 32], "standard", &[Scope::Read])
    };
    let (metrics, users) = (Metrics::new(), LettaUsers::default());
    let check = |settings: &key::Settings, now, address: &str| {
        let checked = Key::new(settings, &users, None, metrics.key("one")).check(|| now, address.parse().unwrap());
        checked.map_err(|error| (error.reason(), error.status().as_u16()))
    };
    let before = end - std::time::Duration::from_nanos(1);
    assert_eq!(check(&settings, before, "::ffff:10.1.2.3"), Ok(()));
    assert_eq!(check(&settings, before, "11.1.2.3"), Err(("policy_client_address", 403)));
    assert_eq!(check(&settings, end, "10.1.2.3"), Err(("policy_key_expired", 401)));
    let disabled = key::Settings { disabled: true, ..settings };
    assert_eq!(check(&disabled, before, "10.1.2.3"), Err(("policy_key_disabled", 401)));
}

#[test]
fn a_key_acts_as_its_user_only_while_letta_is_known_to_know_it() {
    let user = Some("user-00000000-0000-4000-8000-000000000000".to_owned());
    let settings = key::Settings { letta_user: user, ..key::Settings::new("one", [0; 32], "standard", &[]) };
    let users = LettaUsers::new(std::slice::from_ref(&settings), None);
    let metrics = Metrics::new();
    let key = Key::new(&settings, &users, None, metrics.key("one"));
    let check = || {
        let checked = key.check(SystemTime::now, [127, 0, 0, 1].into());
        checked.map_err(|error| (error.reason(), error.status().as_u16()))
    };
    assert_eq!(check(), Err(("gateway_user_unverified", 503)));
    let user = users.iter().next().unwrap();
    assert!(user.found(true) && !user.found(true));
    assert_eq!(check(), Ok(()));
    // what was known stays known over a reload
    assert_eq!(LettaUsers::new(&[settings], Some(&users)).unverified().count(), 0);
    assert!(user.found(false));
    assert_eq!(check(), Err(("policy_user_unknown", 403)));
}

#[test]
fn a_key_says_nothing_of_its_text() {
    let auth = auth();
    let key = auth.keyring.find(KEY.as_bytes()).unwrap();
    assert_eq!(format!("{key:?}"), "Key { id: \"team-a\", scopes: {Read, Message}, .. }");
    let settings = key::Settings::new("one", [7; 32], "standard", &[Scope::Read]);
    assert_eq!(format!("{settings:?}"), "Settings { id: \"one\", scopes: [Read], .. }");
}
