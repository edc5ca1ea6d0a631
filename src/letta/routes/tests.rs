use std::collections::HashSet;

use super::*;

/// A path of the route, with something in place of each parameter.
fn example(template: &str) -> String {
    let mut path = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').unwrap();
        path.push_str(before);
        path.push_str(if name.starts_with('*') { "some/where" } else { "some-1" });
        rest = after;
    }
    path + rest
}

#[test]
fn every_route_is_found_in_both_slash_forms() {
    for route in ROUTES.iter() {
        let path = example(route.template);
        let other = match path.strip_suffix('/') {
            Some("") => path.clone(),
            Some(short) => short.to_owned(),
            None => format!("{path}/"),
        };
        for path in [path, other] {
            let found = find(&route.method, &path).unwrap();
            assert_eq!(found.route.template, route.template, "{} {path}", route.method);
        }
    }
}

#[test]
fn a_route_is_in_the_table_once() {
    let mut seen = HashSet::new();
    for route in ROUTES.iter() {
        assert!(seen.insert((route.method.clone(), route.template)), "{} {}", route.method, route.template);
    }
    assert_eq!(ROUTES.len(), 273);
}

#[test]
fn one_path_has_one_slash_form_whatever_the_method() {
    for one in ROUTES.iter() {
        for other in ROUTES.iter() {
            if unslashed(one.template) == unslashed(other.template) {
                assert_eq!(one.template, other.template);
            }
        }
    }
}

/// A path that both templates take, if there is one.
fn meet(one: &str, other: &str) -> Option<String> {
    let (one, other) = (unslashed(one), unslashed(other));
    if one.contains('*') || other.contains('*') {
        let (all, path) = if one.contains('*') { (one, other) } else { (other, one) };
        let mut alone = Tree::new();
        alone.insert(all, &ROUTES[0]).unwrap();
        let path = example(path);
        return alone.at(&path).is_ok().then_some(path);
    }
    if one.split('/').count() != other.split('/').count() {
        return None;
    }
    let segments: Option<Vec<_>> = (one.split('/').zip(other.split('/')))
        .map(|(one, other)| match (one.starts_with('{'), other.starts_with('{')) {
            (true, true) => Some("some-1"),
            (true, false) => Some(other),
            (false, true) => Some(one),
            (false, false) => (one == other).then_some(one),
        })
        .collect();
    segments.map(|segments| segments.join("/"))
}

/// Letta takes the first of its declarations that matches, the gateway the most literal one: where they differ, the
/// key must need no less than Letta's choice does.
#[test]
fn where_two_templates_meet_the_scope_is_that_of_lettas_choice() {
    let mut met = 0;
    for (place, route) in ROUTES.iter().enumerate() {
        for earlier in ROUTES.iter().take(place).filter(|earlier| earlier.method == route.method) {
            let Some(path) = meet(earlier.template, route.template) else { continue };
            met += 1;
            let chosen = find(&route.method, &path).unwrap().route;
            assert_eq!(earlier.scope, chosen.scope, "{path}: {} or {}", earlier.template, chosen.template);
        }
    }
    assert!(met > 20, "{met} pairs meet");
}

#[test]
fn a_route_that_sends_is_for_keys_that_may_message_and_may_take_long() {
    for route in ROUTES.iter().filter(|route| route.sends.is_some()) {
        assert_eq!((route.scope, route.pace), (Scope::Message, Pace::Long), "{}", route.template);
    }
}

#[test]
fn only_health_and_the_oauth_callback_are_open() {
    let open: Vec<_> = ROUTES.iter().filter(|route| route.scope == Scope::Open).map(|route| route.template).collect();
    assert_eq!(open, ["/v1/tools/mcp/oauth/callback", "/v1/health/", "/v1/ready/"]);
}

#[test]
fn nothing_that_writes_is_for_keys_that_may_read() {
    // searches, previews and resumed streams are asked for by POST and write nothing
    let reading = ["search", "preview-raw-payload", "export", "stream"];
    for route in ROUTES.iter().filter(|route| route.scope == Scope::Read && route.method != Method::GET) {
        let last = route.template.rsplit('/').next().unwrap();
        assert!(route.method == Method::POST && reading.contains(&last), "{} {}", route.method, route.template);
    }
}

#[test]
fn what_runs_code_or_touches_the_server_is_for_admins() {
    let admin = [
        ("POST", "/v1/tools/run"),
        ("POST", "/v1/tools/"),
        ("PUT", "/v1/tools/"),
        ("PATCH", "/v1/tools/tool-1"),
        ("POST", "/v1/tools/generate-tool"),
        ("POST", "/v1/tools/generate-schema"),
        ("POST", "/v1/agents/agent-1/tools/name/run"),
        ("POST", "/v1/agents/import"),
        ("GET", "/v1/mcp-servers/"),
        ("PUT", "/v1/tools/mcp/servers"),
        ("GET", "/v1/sandbox-config/"),
        ("GET", "/v1/providers/"),
        ("GET", "/v1/admin/users/"),
        ("GET", "/v1/_internal_runs/"),
        ("POST", "/v1/anthropic/v1/messages"),
        ("GET", "/v1/anthropic/v1/models"),
        ("POST", "/v1/zai/v1/messages"),
        ("GET", "/v1/git/agent-1/state.git/info/refs"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/"),
    ];
    for (method, path) in admin {
        let found = find(&method.parse().unwrap(), path).unwrap();
        assert_eq!(found.route.scope, Scope::Admin, "{method} {path}");
    }
}

#[test]
fn the_first_parameter_is_the_subject() {
    let subjects = [
        ("GET", "/v1/agents/agent-1/messages", Subject::Agent, Some("agent-1")),
        ("PATCH", "/v1/agents/agent-1/core-memory/blocks/human", Subject::Agent, Some("agent-1")),
        ("POST", "/v1/conversations/default/messages", Subject::Conversation, Some("default")),
        ("GET", "/v1/runs/run-1/usage", Subject::Run, Some("run-1")),
        ("GET", "/v1/blocks/block-1", Subject::Other, Some("block-1")),
        ("GET", "/v1/agents/", Subject::None, None),
        ("GET", "/v1/agents/count", Subject::None, None),
        ("GET", "/v1/git/agent-1/state.git", Subject::None, None),
    ];
    for (method, path, kind, id) in subjects {
        let found = find(&method.parse().unwrap(), path).unwrap();
        assert_eq!((found.route.subject, found.subject), (kind, id), "{method} {path}");
    }
}

#[test]
fn a_literal_of_another_method_hides_nothing() {
    let found = find(&Method::PATCH, "/v1/tools/mcp/servers/test").unwrap();
    assert_eq!(found.route.template, "/v1/tools/mcp/servers/{mcp_server_name}");
    let found = find(&Method::POST, "/v1/tools/mcp/servers/test").unwrap();
    assert_eq!(found.route.template, "/v1/tools/mcp/servers/test");
}

#[test]
fn an_unknown_path_has_no_route_and_a_known_one_tells_its_methods() {
    for path in ["/v1/metrics", "/v1", "/v1/agents/a/b/c/d", "/v1/auth", "/v1/git", "/v2/agents/", ""] {
        assert_eq!(find(&Method::GET, path).unwrap_err(), NotFound::Path, "{path}");
    }
    let wrong = find(&Method::PUT, "/v1/agents/agent-1").unwrap_err();
    assert_eq!(wrong, NotFound::Method { allow: "GET, PATCH, DELETE".to_owned() });
    let wrong = find(&Method::OPTIONS, "/v1/health/").unwrap_err();
    assert_eq!(wrong, NotFound::Method { allow: "GET".to_owned() });
}

#[test]
fn head_goes_where_get_goes() {
    assert_eq!(find(&Method::HEAD, "/v1/agents/").unwrap().route.method, Method::GET);
    assert_eq!(find(&Method::HEAD, "/v1/git/a").unwrap().route.method, Method::HEAD);
    let wrong = find(&Method::HEAD, "/v1/chat/completions").unwrap_err();
    assert_eq!(wrong, NotFound::Method { allow: "POST".to_owned() });
}
