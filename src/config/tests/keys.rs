use super::*;

/// `LEAST` with these options more of its key.
fn with_key_options(options: &str) -> String {
    LEAST.replace("scopes: [read]", &format!("scopes: [read], {options}"))
}

#[test]
fn a_key_may_have_its_agents_its_user_its_networks_and_its_end() {
    let text = with_key_options(
        "agents: [agent-1, agent-2f*, \"*-7b?1\"], letta_user: user-00000000-0000-4000-8000-000000000000, \
         allowed_ips: [10.0.0.0/8, \"::1\"], expires_at: 2126-01-31T00:00:00Z, disabled: true",
    );
    let key = &read(&text).unwrap().keys[0];
    assert_eq!(key.agents, ["agent-1", "agent-2f*", "*-7b?1"]);
    assert_eq!(key.letta_user.as_deref(), Some("user-00000000-0000-4000-8000-000000000000"));
    let networks: Vec<_> = key.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    assert!(key.disabled && key.expires_at.is_some_and(|end| end > std::time::SystemTime::now()));
    let bare = &read(LEAST).unwrap().keys[0];
    assert_eq!((&*bare.agents, bare.expires_at, bare.disabled), (&["*".to_owned()][..], None, false));
}

#[test]
fn every_mistake_in_a_key_is_told() {
    for (options, told) in [
        ("agents: []", "keys[0].agents: is empty, so the key would reach no agent; write ids, or \"*\" for all"),
        (
            "agents: [\"*\", agent-1]",
            "keys[0].agents[0]: \"*\" stands for all agents; let it stand alone or leave it out",
        ),
        (
            "agents: [\"agent-[0-9]\"]",
            "keys[0].agents[0]: is no agent; write its id, a pattern with * and ? (agent-0f6e*), or \"*\" for all",
        ),
        ("agents: [agent-1, \"agent-**1\"]", "keys[0].agents[1]: two * in a row are no more than one; write one"),
        ("agents: [\"mine*\"]", "keys[0].agents[0]: does not begin with agent- as Letta's agent ids do"),
        ("agents: [mine]", "keys[0].agents[0]: does not begin with agent- as Letta's agent ids do"),
        ("letta_user: bob", "keys[0].letta_user: is no id of a Letta user; write user- and its UUID"),
        ("allowed_ips: [10.1.0.0/8]", "keys[0].allowed_ips[0]: has bits behind its prefix; write 10.0.0.0/8"),
        ("allowed_ips: [host]", "keys[0].allowed_ips[0]: must be an IP address, or a network like 10.0.0.0/8"),
        (
            "expires_at: tomorrow",
            "keys[0].expires_at: \"tomorrow\" is no moment with a time zone; write it like 2027-01-31T00:00:00Z",
        ),
        ("hashes: []", "keys[0].hashes: stands beside hash; put all hashes here and take hash off"),
    ] {
        let problems = told_with(&with_key_options(options), &no_env);
        assert!(problems.lines().count() == 1 && problems.ends_with(told), "{problems}");
    }
    let warnings = read(&with_key_options("expires_at: 1999-01-31T00:00:00Z")).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "an old key stops nothing");
}

#[test]
fn a_key_that_is_being_changed_has_two_hashes_and_never_three() {
    let hashes = |count: u32| (1..=count).map(|hash| format!("\"sha256:{hash:064}\"")).collect::<Vec<_>>().join(", ");
    let text = |count| {
        LEAST
            .replace("hash: \"sha256:", "was: \"")
            .replace("was: ", "hashes: [HASHES], was: ")
            .replace("HASHES", &hashes(count))
    };
    let text = |count| {
        let text = text(count);
        let (front, rest) = text.split_once(", was: ").unwrap();
        format!("{front}, {}", rest.split_once(", ").unwrap().1)
    };
    assert_eq!(read(&text(2)).unwrap().keys[0].digests.len(), 2);
    for count in [0, 3] {
        assert!(
            told(&text(count)).ends_with("keys[0].hashes: must be one hash, or the two of a key that is being changed")
        );
    }
    let twice = text(2).replace(&format!("{:064}", 2), &format!("{:064}", 1));
    assert!(told(&twice).contains("keys[0].hashes[1]: is the hash of keys[0] too"), "{}", told(&twice));
}

/// Reads `LEAST` with a file of keys beside it.
fn with_keys_file(keys: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys.yaml"), keys).unwrap();
    let text = format!("{LEAST}keys_file: keys.yaml\n");
    let strip = |problems: Problems| problems.to_string().replace(&format!("{}/", folder.path().display()), "");
    parse(&text, &folder.path().join("gateway.yaml"), &no_env).map_err(strip)
}

#[test]
fn keys_of_a_file_of_their_own_are_keys_like_any_other() {
    let settings = with_keys_file(&format!(
        "# of team b\n- {{ id: two, hash: \"sha256:{:064}\", scopes: [read] }}\n- id: three\n  hash: sha256:{:064}\n  scopes: [admin]\n",
        2, 3
    ))
    .unwrap();
    let ids: Vec<_> = settings.keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, ["one", "two", "three"]);
    assert!(settings.files.iter().any(|file| file.ends_with("keys.yaml")), "it is watched: {:?}", settings.files);
    assert_eq!(with_keys_file("[]").unwrap().keys.len(), 1);
}

#[test]
fn a_problem_of_the_keys_file_is_told_with_that_files_name_and_place() {
    let first = format!("{:064}", 1);
    let told = with_keys_file(&format!(
        "- {{ id: one, hash: \"sha256:{first}\", scopes: [read], agnets: [] }}\n- id: two\n  hash: lgw_two_hunter2\n  plan: gold\n  scopes: [raed]\n"
    ));
    assert_eq!(
        told.err().unwrap().lines().collect::<Vec<_>>(),
        [
            "keys.yaml:1:5: keys[0].id: \"one\" is the id of keys[0] of gateway.yaml too; each key has its own",
            "keys.yaml:1:14: keys[0].hash: is the hash of keys[0] of gateway.yaml too; make another key with: letta-gateway keys create",
            "keys.yaml:1:111: unknown key \"agnets\" under keys[0]; did you mean \"agents\"?",
            "keys.yaml:3:3: keys[1].hash: this is the key itself, and it belongs in no file; put its hash here, from: letta-gateway keys hash",
            "keys.yaml:4:3: keys[1].plan: there is no plan \"gold\"; known are standard",
            "keys.yaml:5:12: keys[1].scopes[0]: \"raed\" is not known; did you mean \"read\"?",
        ]
    );
    assert_eq!(with_keys_file("- [").err().unwrap().lines().count(), 1);
    assert_eq!(
        with_keys_file("keys: []").err().unwrap(),
        "keys.yaml:1:1: keys: must be a list (lines that start with \"- \"), not a map"
    );
    let missing = told_with(&format!("{LEAST}keys_file: nowhere.yaml\n"), &no_env);
    assert!(missing.starts_with("gateway.yaml:5:1: keys_file: the file nowhere.yaml cannot be read"), "{missing}");
}

/// Reading it anew for every mistake would take hours.
#[test]
fn a_mistake_in_each_of_many_thousands_of_keys_is_told_in_one_go() {
    let line = |key: u32| format!("- {{ id: k{key}, hash: sha256:{key:064}, scopes: [raed], agnets: [] }}\n");
    let told = with_keys_file(&(2..10_002).map(line).collect::<String>()).err().unwrap();
    assert_eq!(told.lines().count(), 20_000);
    let last = "keys.yaml:10000:105: keys[9999].scopes[0]: \"raed\" is not known; did you mean \"read\"?";
    assert!(told.lines().any(|line| line == last), "{:?}", told.lines().last());
}

#[test]
fn a_file_may_hold_many_thousands_of_keys() {
    let line = |key: u32| format!("- {{ id: k{key}, hash: sha256:{key:064}, scopes: [read, message, modify] }}\n");
    let settings = with_keys_file(&(2..30_002).map(line).collect::<String>()).unwrap_or_else(|told| panic!("{told}"));
    assert_eq!(settings.keys.len(), 30_001);
}
