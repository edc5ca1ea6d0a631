use http::header::HeaderName;
use http::{HeaderValue, StatusCode, Version};
use proptest::prelude::*;

use super::*;
use crate::letta::routes::ROUTES;

fn request(method: &str, target: &str, version: Version, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method.parse().unwrap();
    *request.uri_mut() = target.parse().unwrap_or_else(|error| panic!("{target}: {error}"));
    *request.version_mut() = version;
    for (name, value) in headers {
        request.headers_mut().append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    request
}

/// What is forwarded for a target, or the reason it is refused.
fn forwarded(method: &str, target: &str) -> Result<String, &'static str> {
    let mut request = request(method, target, Version::HTTP_11, &[("host", "gateway.example:8283")]);
    match read(&mut request) {
        Ok(_) => Ok(request.uri().to_string()),
        Err(error) => {
            assert!(error.status().is_client_error(), "{target}: {error}");
            Err(error.reason())
        }
    }
}

#[test]
fn every_name_of_a_route_is_forwarded_in_lettas_own_form() {
    let names = [
        ("GET", "/v1/agents/", "/v1/agents/"),
        ("GET", "/v1/agents", "/v1/agents/"),
        ("GET", "/agents", "/v1/agents/"),
        ("GET", "/agents/?limit=1&after=a%20b", "/v1/agents/?limit=1&after=a%20b"),
        ("GET", "/api/agents?limit=1", "/v1/agents/?limit=1"),
        ("GET", "/latest/agents?limit=1", "/v1/agents/?limit=1"),
        ("GET", "/api/v1/agents", "/v1/agents/"),
        ("GET", "/api/latest/agents/", "/v1/agents/"),
        ("GET", "/v1/agents/agent-1", "/v1/agents/agent-1"),
        ("GET", "/v1/agents/agent-1/", "/v1/agents/agent-1"),
        ("GET", "/agents/agent-1/?x", "/v1/agents/agent-1?x"),
        ("POST", "/v1/agents/agent-1/messages/", "/v1/agents/agent-1/messages"),
        ("POST", "/agents/agent-1/messages", "/v1/agents/agent-1/messages"),
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("GET", "/health", "/v1/health/"),
        ("GET", "/latest/health", "/v1/health/"),
        ("GET", "/v1/health", "/v1/health/"),
        ("GET", "/latest/admin/users", "/v1/admin/users/"),
        ("GET", "/docs", "/docs"),
        ("GET", "/docs/", "/docs"),
        ("GET", "/", "/"),
        ("GET", "/?x=1", "/?x=1"),
        ("GET", "/openapi.json", "/openapi.json"),
        (
            "GET",
            "/v1/git/agent-1/state.git/info/refs?service=git-upload-pack",
            "/v1/git/agent-1/state.git/info/refs?service=git-upload-pack",
        ),
        ("GET", "/v1/git/agent-1/", "/v1/git/agent-1/"),
        ("OPTIONS", "/v1/git/agent-1", "/v1/git/agent-1"),
        // what stands for itself is written as itself, whoever encoded it
        ("GET", "/v1/%61gents/agent%2D1", "/v1/agents/agent-1"),
        ("GET", "/%76%31/agents/agent-1/messages", "/v1/agents/agent-1/messages"),
        (
            "PATCH",
            "/v1/agents/agent-1/core-memory/blocks/a%20b%c3%a9",
            "/v1/agents/agent-1/core-memory/blocks/a%20b%C3%A9",
        ),
        // the query is the client's own business
        ("GET", "/v1/agents/?name=../..//x%2F%zz", "/v1/agents/?name=../..//x%2F%zz"),
        ("GET", "/v1/agents/?", "/v1/agents/?"),
        ("GET", "/v1/agents?", "/v1/agents/?"),
        // a fragment is not part of a request and never gets further than the parser
        ("GET", "/v1/agents/#/../admin", "/v1/agents/"),
    ];
    for (method, target, canonical) in names {
        assert_eq!(forwarded(method, target).as_deref(), Ok(canonical), "{method} {target}");
    }
}

#[test]
fn a_target_that_could_be_read_in_two_ways_is_refused() {
    let refused = [
        "/v1//agents/",
        "//v1/agents/",
        "/v1/agents//",
        "/v1/agents//agent-1",
        "/v1/./agents/",
        "/v1/../admin/users/",
        "/v1/agents/..",
        "/v1/agents/.",
        "/v1/agents/../",
        "/v1/agents/%2e%2e/admin/users/",
        "/v1/agents/%2E%2e",
        "/v1/agents/.%2e/tools/run",
        "/v1/%2e/agents/",
        "/v1/agents/agent-1%2Fmessages",
        "/v1/agents/agent-1%2fmessages",
        "/v1/agents%2f",
        "/v1/agents/agent-1%5Cmessages",
        "/v1/agents/a%5c..%5cb",
        "/v1/agents/agent-1%00",
        "/v1/agents/agent-1%0d%0aX:1",
        "/v1/agents/agent-1%7f",
        "/v1/agents/agent-1%",
        "/v1/agents/agent-1%4",
        "/v1/agents/agent-1%zz",
        "/v1/agents/agent-1%+1",
        "/v1/agents/agent-1%u0041",
        "/v1/git/a%252e%252e/x",
        "/v1/git/a%252Fx",
        "/v1/git/a/..%2Fx",
        "/v1/agents/agent-1%ff",
        "/v1/agents/agent-1%c0%af",
        "/v1/agents/é",
        "/v1/agents/a\"b",
        "/v1/agents/{agent_id}",
        "/v1/agents/a|b",
        "/v1/agents/?name=é",
        "/v1/agents/a.b",
        "/v1/agents/a%20b/messages",
        "/v1/agents/a:b",
    ];
    for target in refused {
        assert_eq!(forwarded("GET", target), Err("client_bad_target"), "{target}");
    }
    let long = format!("/v1/agents/{}", "a".repeat(129));
    assert_eq!(forwarded("GET", &long), Err("client_bad_target"));
    assert_eq!(forwarded("OPTIONS", "*"), Err("client_bad_target"));
}

/// A backslash and control characters do not even parse; the listener answers 400 for hyper.
#[test]
fn what_no_uri_holds_does_not_parse() {
    for target in ["/v1/agents\\..", "/v1/agents/a b", "/v1/\u{1}", "/v1/agents/<a>"] {
        assert!(target.parse::<Uri>().is_err() || forwarded("GET", target).is_err(), "{target}");
    }
}

#[test]
fn what_letta_does_not_have_is_not_forwarded() {
    let unknown = [
        "/v2/agents/",
        "/V1/agents/",
        "/v1",
        "/v1/",
        "/api",
        "/api/",
        "/latest",
        "/latest/",
        "/v1/v1/agents/",
        "/latest/v1/agents/",
        "/v1/latest/agents/",
        "/api/api/agents/",
        "/latest/latest/agents/",
        "/v1/Agents/",
        "/v1agents/",
        "/apiv1/agents/",
        "/v1/docs",
        "/v1/auth",
        "/metrics",
        "/v1/agents;x/",
        "/v1/templates/",
    ];
    for target in unknown {
        assert_eq!(forwarded("GET", target), Err("client_no_such_route"), "{target}");
    }
}

#[test]
fn a_known_path_tells_what_it_takes() {
    for target in ["/v1/agents/agent-1", "/agents/agent-1/", "/latest/agents/agent-1"] {
        let mut request = request("PUT", target, Version::HTTP_11, &[("host", "a")]);
        match read(&mut request).unwrap_err() {
            Error::MethodNotAllowed { allow } => assert_eq!(allow, "GET, PATCH, DELETE"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(forwarded("DELETE", "/docs"), Err("client_method_not_allowed"));
}

#[test]
fn methods_that_are_no_matter_of_routes_are_refused() {
    for (method, target) in [
        ("CONNECT", "gateway.example:443"),
        ("CONNECT", "/v1/agents/"),
        ("TRACE", "/v1/agents/"),
        ("get", "/v1/agents/"),
        ("PROPFIND", "/v1/agents/"),
    ] {
        assert_eq!(forwarded(method, target), Err("client_method_not_allowed"), "{method} {target}");
    }
}

#[test]
fn every_route_is_reachable_by_every_name_and_forwarded_by_its_own() {
    for route in ROUTES.iter() {
        let (own, method) =
            (route.template.replace("{*path}", "x/y").replace("{*endpoint}", "x/y"), route.method.as_str());
        let own = own
            .split('/')
            .map(|part| if part.starts_with('{') { "some-1" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        let bare = own.strip_prefix("/v1").unwrap_or(&own).to_owned();
        let mut names = vec![own.clone()];
        if own.starts_with("/v1/") {
            names.extend(["/latest", "", "/api", "/api/v1", "/api/latest"].map(|before| format!("{before}{bare}")));
        }
        if route.ends_in_slash().is_some() && own != "/" {
            let other: Vec<_> = names
                .iter()
                .map(|name| name.strip_suffix('/').map_or_else(|| format!("{name}/"), str::to_owned))
                .collect();
            names.extend(other);
        }
        for name in names {
            let mut request = request(method, &name, Version::HTTP_11, &[("host", "a")]);
            let place = read(&mut request).unwrap_or_else(|error| panic!("{method} {name}: {error}"));
            assert_eq!(place.route.index, route.index, "{method} {name}");
            assert_eq!(request.uri(), own.as_str(), "{method} {name}");
        }
    }
}

#[test]
fn an_id_in_the_path_is_the_subject() {
    let mut request = request("POST", "/agents/agent%2D1/messages", Version::HTTP_11, &[("host", "a")]);
    assert_eq!(read(&mut request).unwrap().subject.as_deref(), Some("agent-1"));
    // a tool may be called anything, but nobody is asked to log it
    let mut request = self::request("GET", "/v1/folders/name/my%20folder", Version::HTTP_11, &[("host", "a")]);
    assert_eq!(read(&mut request).unwrap().subject, None);
}

fn host(version: Version, target: &str, hosts: &[&str]) -> Result<Option<String>, &'static str> {
    let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
    let mut request = request("GET", target, version, &headers);
    match read(&mut request) {
        Ok(_) => {
            assert_eq!(request.uri(), "/v1/agents/");
            let mut hosts = request.headers().get_all(HOST).iter();
            let host = hosts.next().map(|host| host.to_str().unwrap().to_owned());
            assert_eq!(hosts.next(), None);
            Ok(host)
        }
        Err(error) => Err(error.reason()),
    }
}

#[test]
fn a_request_names_one_host_once() {
    let origin = "/v1/agents/";
    let good = ["a", "A.example", "a.example:8283", "127.0.0.1:80", "[::1]:8283", "[::ffff:1.2.3.4]", "a_b-c.d"];
    for name in good {
        assert_eq!(host(Version::HTTP_11, origin, &[name]), Ok(Some(name.to_owned())), "{name}");
    }
    let bad = [
        "", " ", "a b", "user@a", "a/b", "a:", "a:x", "a:80:80", "a:123456", "[::1", "[::1]x", "[]", "[g]", ":80",
        "a,b", "a%41", "a?b", "a#b", "a\\b",
    ];
    for name in bad {
        assert_eq!(host(Version::HTTP_11, origin, &[name]), Err("client_bad_host"), "{name}");
    }
    assert_eq!(host(Version::HTTP_11, origin, &[]), Err("client_bad_host"));
    assert_eq!(host(Version::HTTP_11, origin, &["a", "a"]), Err("client_bad_host"));
    assert_eq!(host(Version::HTTP_11, origin, &["a", "b"]), Err("client_bad_host"));
    assert_eq!(host(Version::HTTP_10, origin, &[]), Ok(Some("letta".to_owned())));
    assert_eq!(host(Version::HTTP_10, origin, &["a", "a"]), Err("client_bad_host"));
    assert_eq!(host(Version::HTTP_2, origin, &[]), Err("client_bad_host"));
    assert_eq!(host(Version::HTTP_2, origin, &["a"]), Ok(Some("a".to_owned())));
}

#[test]
fn an_absolute_target_agrees_with_host() {
    let same = [
        ("http://a.example/v1/agents/", "a.example"),
        ("http://a.example:80/v1/agents/", "A.example"),
        ("https://a.example/v1/agents/", "a.example:443"),
        ("http://a.example:8283/v1/agents", "a.example:8283"),
        ("http://[::1]:8283/latest/agents", "[::1]:8283"),
    ];
    for (target, name) in same {
        assert_eq!(host(Version::HTTP_11, target, &[name]), Ok(Some(name.to_owned())), "{target}");
        assert_eq!(host(Version::HTTP_2, target, &[name]), Ok(Some(name.to_owned())), "{target}");
    }
    let different = [
        ("http://a.example/v1/agents/", "b.example"),
        ("http://a.example/v1/agents/", "a.example:8283"),
        ("http://a.example:443/v1/agents/", "a.example"),
        ("http://user@a.example/v1/agents/", "a.example"),
        ("http://user:word@a.example/v1/agents/", "a.example"),
    ];
    for (target, name) in different {
        assert_eq!(host(Version::HTTP_11, target, &[name]), Err("client_bad_host"), "{target}");
        assert_eq!(host(Version::HTTP_2, target, &[name]), Err("client_bad_host"), "{target}");
    }
    // Host is needed beside an absolute target on HTTP/1.1; HTTP/2 has `:authority` in its place
    let target = "http://a.example:1/v1/agents/";
    assert_eq!(host(Version::HTTP_11, target, &[]), Err("client_bad_host"));
    assert_eq!(host(Version::HTTP_2, target, &[]), Ok(Some("a.example:1".to_owned())));
    assert_eq!(host(Version::HTTP_10, target, &[]), Ok(Some("a.example:1".to_owned())));
    assert_eq!(host(Version::HTTP_11, "ftp://a/v1/agents/", &["a"]), Err("client_bad_target"));
}

#[test]
fn framing_is_chunked_or_a_length() {
    let framed = |headers: &[(&str, &str)]| {
        let mut headers = headers.to_vec();
        headers.push(("host", "a"));
        let mut request = request("POST", "/v1/agents/", Version::HTTP_11, &headers);
        read(&mut request).map(|_| ()).map_err(|error| (error.status(), error.reason()))
    };
    assert_eq!(framed(&[("transfer-encoding", "chunked")]), Ok(()));
    assert_eq!(framed(&[("transfer-encoding", "Chunked")]), Ok(()));
    assert_eq!(framed(&[("te", "trailers")]), Ok(()));
    for value in ["gzip, chunked", "chunked, chunked", "chunked;q=1", "identity", "", "xchunked"] {
        let refused = Err((StatusCode::BAD_REQUEST, "client_bad_framing"));
        assert_eq!(framed(&[("transfer-encoding", value)]), refused, "{value}");
    }
    for value in ["0", "5", "007", "18446744073709551615"] {
        assert_eq!(framed(&[("content-length", value)]), Ok(()), "{value}");
    }
    let refused = Err((StatusCode::BAD_REQUEST, "client_bad_framing"));
    for value in ["", " ", "+5", "-5", "5x", "0x5", "5, 5", "5,", "five", "5 5"] {
        assert_eq!(framed(&[("content-length", value)]), refused, "{value}");
    }
    assert_eq!(framed(&[("content-length", "5"), ("content-length", "5")]), refused);
    assert_eq!(framed(&[("content-length", "5"), ("content-length", "x")]), refused);
    let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
    assert_eq!(framed(&twice), Err((StatusCode::BAD_REQUEST, "client_bad_framing")));
    assert_eq!(framed(&[("expect", "100-Continue")]), Ok(()));
    assert_eq!(framed(&[("expect", "200-ok")]), Err((StatusCode::BAD_REQUEST, "client_bad_header")));
}

/// How Letta reads a path: decoded once, then met with a template, segment by segment.
fn letta_meets(path: &str, template: &str) -> bool {
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let digits =
            |bytes: &mut std::str::Bytes<'_>| [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap()));
        decoded.push(match byte {
            b'%' => u8::from_str_radix(&digits(&mut bytes).iter().collect::<String>(), 16).unwrap(),
            other => other,
        });
    }
    let decoded = String::from_utf8(decoded).unwrap();
    if let Some((before, _)) = template.split_once("{*") {
        return decoded.len() > before.len() && decoded.starts_with(before);
    }
    let meets = |(part, of): (&str, &str)| part == of || (of.starts_with('{') && !part.is_empty());
    decoded.split('/').count() == template.split('/').count() && decoded.split('/').zip(template.split('/')).all(meets)
}

/// Paths that have a route, in some spelling, and paths that are near to one.
fn targets() -> impl Strategy<Value = (String, String)> {
    let pieces = vec![
        "v1",
        "latest",
        "api",
        "agents",
        "agent-1",
        "messages",
        "tools",
        "run",
        "admin",
        "users",
        "git",
        "health",
        "docs",
        "",
        ".",
        "..",
        "%2e%2e",
        "%2E",
        "%2F",
        "a%2fb",
        "%5c",
        "%61gents",
        "%7e",
        "%25",
        "%252e",
        "%e2%82%ac",
        "%ff",
        "a;b",
        "a=b",
        "...",
        "%",
        "%20",
        "%C3%A9",
    ];
    let near = prop::collection::vec(prop::sample::select(pieces.clone()), 0..8)
        .prop_map(|parts| format!("/{}", parts.join("/")));
    let near = (near, prop::sample::select(vec!["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"]));
    let spelled = (
        prop::sample::select(ROUTES.iter().collect::<Vec<_>>()),
        prop::sample::select(vec!["/v1", "/latest", "", "/api", "/api/v1", "/api/latest"]),
        prop::collection::vec(prop::sample::select(pieces), 4),
        prop::collection::vec(any::<u8>(), 16),
    );
    let spelled = spelled.prop_map(|(route, before, parameters, dice)| {
        let mut parameters = parameters.into_iter();
        let own =
            route.template.split('/').map(|part| if part.starts_with('{') { parameters.next().unwrap() } else { part });
        let own = own.collect::<Vec<_>>().join("/");
        let named = own.strip_prefix("/v1").map_or(own.clone(), |rest| format!("{before}{rest}"));
        let mut dice = dice.into_iter().cycle();
        let mut encoded = String::new();
        for letter in named.chars() {
            if letter.is_ascii_alphanumeric() && !named.contains('%') && dice.next().unwrap() < 16 {
                encoded.push_str(&format!("%{:02x}", letter as u32));
            } else {
                encoded.push(letter);
            }
        }
        if dice.next().unwrap() < 64 {
            encoded.push('/');
        }
        (encoded, route.method.to_string())
    });
    prop_oneof![
        1 => near.prop_map(|(target, method)| (target, method.to_owned())),
        2 => spelled,
    ]
}

proptest! {
    /// Whatever the client's spelling: what goes out meets the very template whose rules were asked, in Letta's eyes,
    /// and the gateway itself would read it the same way again.
    #[test]
    fn what_is_forwarded_is_what_was_judged((target, method) in targets()) {
        let method = method.as_str();
        let read = |target: &str| {
            let mut request = request(method, target, Version::HTTP_11, &[("host", "a")]);
            let place = super::read(&mut request)?;
            Ok::<_, Error>((place.route, place.subject, request.uri().to_string()))
        };
        if let Ok((route, subject, forwarded)) = read(&target) {
            prop_assert!(letta_meets(&forwarded, route.template), "{target}: {forwarded} for {}", route.template);
            prop_assert!(forwarded.split('/').all(|part| part != ".."));
            let (again, same_subject, same) = read(&forwarded).unwrap();
            prop_assert_eq!((again.index, same_subject, same), (route.index, subject, forwarded));
        }
    }

    #[test]
    fn no_path_makes_it_panic(path in "/[ -~é]{0,40}") {
        if let Ok(uri) = path.parse::<Uri>() {
            let mut request = Request::new(());
            *request.uri_mut() = uri;
            let _ = super::read(&mut request);
        }
    }
}
