//! The compose file, the configurations it mounts and the Dockerfile fit together.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use letta_gateway::config;
use serde_json::{Map, Value};

#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
#[path = "support/redis.rs"]
mod redis;

const REPLICAS: [&str; 2] = ["letta-1", "letta-2"];
/// Where the image looks for its configuration.
const CONFIG: &str = "/etc/letta-gateway/gateway.yaml";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: impl AsRef<Path>) -> Value {
    serde_saphyr::from_str(&read(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn services() -> Map<String, Value> {
    yaml("docker-compose.yml")["services"].as_object().unwrap().clone()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|values| values.iter().map(|value| value.as_str().unwrap()).collect()).unwrap_or_default()
}

/// Host path and container path of each file or folder a service mounts from here.
fn mounts(service: &Value) -> Vec<(String, String)> {
    let volumes = texts(&service["volumes"]);
    let here = volumes.into_iter().filter_map(|volume| volume.strip_prefix("./"));
    here.map(|volume| {
        let (host, rest) = volume.split_once(':').unwrap();
        assert!(rest.ends_with(":ro"), "{volume} may be written to");
        (host.to_owned(), rest.trim_end_matches(":ro").to_owned())
    })
    .collect()
}

/// `http://name:port/…` and the like.
fn host_and_port(url: &str) -> (String, u16) {
    let rest = url.split_once("://").unwrap().1;
    let authority = rest.split('/').next().unwrap().rsplit('@').next().unwrap();
    let (host, port) = authority.rsplit_once(':').unwrap();
    (host.to_owned(), port.parse().unwrap())
}

/// The gateway's configuration, read as the gateway reads it, with what the compose file gives it.
fn gateway_settings() -> config::Settings {
    let gateway = &services()["gateway"];
    let (file, _) = mounts(gateway).into_iter().find(|(_, inside)| inside == CONFIG).expect("the gateway has a config");
    let environment = gateway["environment"].as_object().unwrap().clone();
    let given = move |name: &str| {
        environment.contains_key(name).then(|| match name {
            "LETTA_GATEWAY_KEY_HASH" => format!("sha256:{}", "ab".repeat(32)),
            _ => format!("value-of-{name}"),
        })
    };
    match config::parse(&read(&file), &root().join(file), &given) {
        Ok(settings) => settings,
        Err(problems) => panic!("{problems}"),
    }
}

/// Whether containers of the two services see one another.
fn reach(services: &Map<String, Value>, one: &str, other: &str) -> bool {
    let networks =
        |name: &str| texts(&services[name]["networks"]).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    !networks(one).is_disjoint(&networks(other))
}

#[test]
fn every_file_a_service_mounts_is_here() {
    for (name, service) in services() {
        for (host, _) in mounts(&service) {
            assert!(root().join(&host).exists(), "{name} mounts {host}, which is not here");
        }
    }
}

#[test]
fn the_gateway_accepts_its_configuration_and_finds_what_it_names() {
    let (services, settings) = (services(), gateway_settings());
    assert!(settings.warnings.is_empty(), "{}", settings.warnings[0]);
    let replicas: Vec<_> = settings.balance.servers.iter().map(|server| server.authority.as_str()).collect();
    assert_eq!(replicas, REPLICAS.map(|name| format!("{name}:8283")));
    let (redis, port) = host_and_port(&settings.redis.expect("a store for all gateways").url);
    assert_eq!((redis.as_str(), port), ("gateway-redis", 6379));
    for name in REPLICAS.into_iter().chain(["gateway-redis"]) {
        assert!(reach(&services, "gateway", name), "the gateway cannot reach {name}");
    }
    assert_eq!(settings.upstream.password.as_deref(), Some("value-of-LETTA_SERVER_PASSWORD"));
    let grace =
        services["gateway"]["stop_grace_period"].as_str().unwrap().strip_suffix('s').unwrap().parse::<u64>().unwrap();
    assert!(grace > settings.drain.as_secs(), "docker kills before the drain is over");
}

#[test]
fn only_the_gateway_is_published_and_its_admin_listener_is_not() {
    let settings = gateway_settings();
    let listeners: Vec<_> = settings.listeners.iter().map(|listener| listener.address.port()).collect();
    for (name, service) in services() {
        for port in texts(&service["ports"]) {
            match (name.as_str(), port.starts_with("127.0.0.1:")) {
                ("gateway", _) => {
                    let inside = port.rsplit(':').next().unwrap().parse().unwrap();
                    assert!(listeners.contains(&inside), "no listener on the published port {inside}");
                }
                (_, loopback) => assert!(loopback, "{name} is published to everybody: {port}"),
            }
            assert!(!name.starts_with("letta") && name != "gateway-redis", "{name} is published");
        }
    }
    assert!(listeners.iter().all(|port| *port != settings.admin.as_ref().unwrap().address.port()));
}

#[test]
fn the_replicas_share_everything_and_start_one_after_the_other() {
    let services = services();
    let [first, second] = REPLICAS.map(|name| services[name].clone());
    assert_eq!((&first["image"], &first["environment"]), (&second["image"], &second["environment"]));
    let environment = first["environment"].as_object().unwrap();
    for name in ["LETTA_PG_URI", "LETTA_REDIS_HOST", "LETTA_SERVER_PASSWORD", "LETTA_ENCRYPTION_KEY"] {
        assert!(environment.contains_key(name), "{name} would differ between the replicas");
    }
    assert_eq!(environment["SECURE"], "true", "the password would not be asked for");
    assert_eq!(second["depends_on"]["letta-1"]["condition"], "service_healthy");
    assert_eq!(host_and_port(environment["LETTA_PG_URI"].as_str().unwrap()).0, "letta-postgres");
    assert_eq!(environment["LETTA_REDIS_HOST"], "letta-redis");
    assert!(reach(&services, "letta-1", "letta-redis") && reach(&services, "letta-1", "letta-postgres"));
    // Letta runs code that agents wrote
    assert!(!reach(&services, "letta-1", "gateway-redis"));
    let redis = |name: &str| texts(&services[name]["command"]).join(" ");
    assert!(redis("letta-redis").contains("noeviction"), "Letta's locks and streams could be evicted");
    assert!(redis("gateway-redis").contains("--maxmemory 512mb --maxmemory-policy noeviction"));
}

/// Otherwise a revoked key opens again after `docker compose down` and `up`.
#[test]
fn the_redis_of_the_gateway_keeps_what_it_was_told() {
    let services = services();
    let (volume, inside) = texts(&services["gateway-redis"]["volumes"])[0].split_once(':').unwrap();
    assert_eq!(inside, "/data", "where its image has redis-server write");
    let volumes = yaml("docker-compose.yml")["volumes"].as_object().unwrap().clone();
    assert!(volumes.contains_key(volume), "{volume} is no named volume and would go with its container");

    let command = texts(&services["gateway-redis"]["command"]);
    let mut redis = redis::RedisServer::start_with(command.strip_prefix(&["redis-server"]).unwrap());
    assert_eq!(redis.ask(&["SADD", "lgw:revoked", "digest"]).trim(), "1");
    redis.kill();
    redis.restart();
    // it listens before it has read all
    let told = (0..500).map(|_| redis.ask(&["SMEMBERS", "lgw:revoked"])).find(|told| {
        std::thread::sleep(Duration::from_millis(10));
        !told.starts_with("LOADING")
    });
    assert_eq!(told.unwrap().trim(), "digest");
    let health = texts(&services["gateway-redis"]["healthcheck"]["test"]);
    assert_eq!(
        health,
        ["CMD", "redis-cli", "-e", "ping"],
        "without -e, one that still reads its data passes for ready"
    );
}

#[test]
fn every_service_says_how_it_does_and_waits_for_those_that_do() {
    let services = services();
    for (name, service) in &services {
        // the gateway's is in its image
        assert!(name == "gateway" || service["healthcheck"]["test"].is_array(), "{name} has no health check");
        for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(needed), "{name} waits for {needed}, which is no service");
            assert_eq!(how["condition"], "service_healthy", "{name} on {needed}");
        }
    }
}

#[test]
fn no_secret_has_a_default_and_each_missing_one_is_asked_for() {
    let compose = read("docker-compose.yml");
    let (mut asked, providers) = (BTreeSet::new(), ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"]);
    for used in
        compose.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(|line| line.split("${").skip(1))
    {
        let inside = used.split('}').next().unwrap();
        match inside.split_once(":?") {
            Some((name, message)) => {
                assert!(message.len() > 10, "{name}: say what to do");
                asked.insert(name);
            }
            None => assert!(inside.strip_suffix(":-").is_some_and(|name| providers.contains(&name)), "{inside}"),
        }
    }
    for name in asked.iter().chain(&providers) {
        assert!(compose.lines().any(|line| line.starts_with('#') && line.contains(name)), "{name} is not explained");
    }
    assert_eq!(asked.len(), 5, "{asked:?}");
}

#[test]
fn prometheus_scrapes_the_admin_listener_and_grafana_asks_prometheus() {
    let (services, settings) = (services(), gateway_settings());
    let prometheus = yaml("config/prometheus.yml");
    let admin = settings.admin.unwrap().address;
    assert!(admin.ip().is_unspecified(), "out of Prometheus' reach");
    let targets = texts(&prometheus["scrape_configs"][0]["static_configs"][0]["targets"]).join(",");
    assert_eq!(targets, format!("gateway:{}", admin.port()));
    let inside = |service: &str| mounts(&services[service]).into_iter().map(|(_, inside)| inside).collect::<Vec<_>>();
    for rules in texts(&prometheus["rule_files"]) {
        assert!(inside("prometheus").iter().any(|path| path == rules), "{rules} is not mounted");
    }
    let source = yaml("config/grafana/datasources/prometheus.yml");
    assert_eq!(host_and_port(source["datasources"][0]["url"].as_str().unwrap()), ("prometheus".to_owned(), 9090));
    let provider = yaml("config/grafana/dashboards/letta-gateway.yml");
    let folder = provider["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(mounts(&services["grafana"]).contains(&("dashboards".to_owned(), folder.to_owned())));
    let home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    assert!(root().join("dashboards").join(home.strip_prefix(folder).unwrap().trim_start_matches('/')).exists());
    assert!(reach(&services, "prometheus", "gateway") && reach(&services, "grafana", "prometheus"));
}

/// The Dockerfile's instructions, each on one line.
fn instructions() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()))
        .collect()
}

fn all(word: &str) -> Vec<String> {
    instructions().into_iter().filter(|(found, _)| found == word).map(|(_, rest)| rest).collect()
}

#[test]
fn the_image_is_built_of_what_is_sent_to_it() {
    let ignore = read(".dockerignore");
    let sent: BTreeSet<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignore.lines().any(|line| line == "*"));
    let copies = all("COPY");
    for copied in copies.iter().filter(|copy| !copy.starts_with("--from")) {
        let (sources, _) = copied.rsplit_once(' ').unwrap();
        for source in sources.split_whitespace() {
            assert!(sent.contains(source) && root().join(source).exists(), "COPY {source}");
        }
    }
    let toolchain = &all("FROM")[0];
    let manifest: String = read("Cargo.toml");
    let version = |field: &str| {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{field} = "))).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    assert!(toolchain.starts_with(&format!("rust:{}-", version("rust-version"))), "{toolchain}");
    let labels = all("LABEL").join(" ");
    assert!(labels.contains(&format!("version=\"{}\"", version("version"))), "{labels}");
}

#[test]
fn the_image_runs_the_gateway_without_root_and_asks_it_how_it_does() {
    let last = |word: &str| all(word).pop().unwrap();
    assert!(last("FROM").ends_with(":nonroot"), "{}", last("FROM"));
    assert!(all("USER").is_empty(), "the base image's user is the one that is not root");
    assert_eq!(last("ENTRYPOINT"), r#"["/letta-gateway"]"#);
    assert!(last("COPY").ends_with(" /letta-gateway"));
    for command in ["CMD", "HEALTHCHECK"] {
        assert!(last(command).contains(CONFIG), "{}", last(command));
    }
    let exposed = last("EXPOSE");
    let settings = gateway_settings();
    let used = settings
        .listeners
        .iter()
        .map(|listener| listener.address.port())
        .chain(settings.admin.map(|admin| admin.address.port()));
    for port in used {
        assert!(
            exposed.split_whitespace().any(|exposed| exposed == port.to_string()),
            "{port} is not in EXPOSE {exposed}"
        );
    }
}
