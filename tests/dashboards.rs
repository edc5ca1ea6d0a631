//! What the dashboard and the alerts ask for is what the gateway tells.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail loudly"
)]

#[path = "dashboards/promql.rs"]
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use letta_gateway::error::Error;
use letta_gateway::letta::routes::ROUTES;
use letta_gateway::telemetry::Metrics;
use letta_gateway::telemetry::metrics::{CacheResult, Decision, RedisLink};
use promql::Query;
use serde_json::Value;

/// Labels a scrape adds.
const SCRAPED: [&str; 2] = ["job", "instance"];
const FUNCTIONS: [&str; 11] = [
    "changes",
    "clamp_min",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "rate",
    "sum",
    "time",
    "topk",
];

/// The names of all samples of a gateway that has met everything once, with their labels.
fn told() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new();
    metrics.route(ROUTES.first());
    metrics.key("key").decided("rate_1m", Decision::Refused).inc();
    metrics.upstream("letta:8283").healthy.set(1);
    metrics.error(Error::KeyMissing.reason());
    metrics.cache(CacheResult::Hit);
    metrics.retry("another_replica");
    metrics.key("key").budget_remaining("tokens_1d", 7);
    metrics.limit_without_store("local");
    metrics.redis_up(RedisLink::Values).set(true);
    metrics.redis_error("timeout");
    metrics.redis_reply(Duration::from_millis(1));
    metrics.listener("0.0.0.0:8283").error("parse");
    metrics.certificate_expiry("0.0.0.0:8443", "localhost", 0);
    metrics.reload("ok");
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    let mut told = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        // no value made above holds a comma or a brace
        let labels = rest.strip_prefix('{').map_or("", |rest| rest.split_once('}').unwrap().0);
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        told.entry(name.to_owned()).or_insert_with(BTreeSet::new).extend(labels);
    }
    // Prometheus' own, of each target
    told.insert("up".to_owned(), BTreeSet::new());
    told
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("dashboards/letta-gateway.json")).unwrap()
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read("config/prometheus-rules.yml")).unwrap();
    file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {value}"))
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

/// Every query of the dashboard with the legend of what it draws.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard).into_iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{} asks for nothing", panel["title"]);
        queries.extend(
            targets.iter().map(|target| (text(target, "expr").to_owned(), text(target, "legendFormat").to_owned())),
        );
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        if let Some(query) = annotation["expr"].as_str() {
            queries.push((query.to_owned(), String::new()));
        }
    }
    queries
}

/// Panics if `text` names a metric, label or function that is not there; the query read, and the labels of its result.
fn check(text: &str, told: &BTreeMap<String, BTreeSet<String>>) -> (Query, BTreeSet<String>) {
    let query = Query::read(text);
    assert!(!query.selectors.is_empty(), "names no metric: {text}");
    for function in &query.functions {
        assert!(FUNCTIONS.contains(&function.as_str()), "no function {function}: {text}");
    }
    let mut known: BTreeSet<String> = SCRAPED.iter().map(|label| (*label).to_owned()).collect();
    for selector in &query.selectors {
        let labels = told.get(&selector.metric).unwrap_or_else(|| panic!("no metric {}: {text}", selector.metric));
        for label in &selector.labels {
            let there = labels.contains(label) || SCRAPED.contains(&label.as_str());
            assert!(there, "{} has no label {label}: {text}", selector.metric);
        }
        let grows = ["_total", "_bucket", "_sum", "_count"].iter().any(|end| selector.metric.ends_with(end));
        assert_eq!(selector.counted, grows, "rate() is for what grows, {} : {text}", selector.metric);
        known.extend(labels.iter().cloned());
    }
    for label in &query.grouped {
        assert!(known.contains(label), "nothing here has a label {label}: {text}");
    }
    let result = if query.grouped.is_empty() { known } else { query.grouped.iter().cloned().collect() };
    (query, result)
}

/// What stands between `before` and `after` in `text`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).map(|rest| rest.split(after).next().unwrap().trim()).collect()
}

#[test]
fn every_query_of_the_dashboard_names_a_metric_that_exists() {
    let (dashboard, told) = (dashboard(), told());
    let queries = queries(&dashboard);
    assert!(queries.len() > 50, "only {} queries were found", queries.len());
    for (text, legend) in queries {
        let (query, labels) = check(&text, &told);
        for label in between(&legend, "{{", "}}") {
            assert!(labels.contains(label), "the legend {legend} has no {label} to show: {text}");
        }
        for selector in query.selectors {
            for label in SCRAPED {
                assert!(selector.labels.iter().any(|named| named == label), "all gateways at once: {text}");
            }
        }
    }
}

#[test]
fn every_metric_of_the_gateway_is_on_the_dashboard() {
    let asked: BTreeSet<String> = queries(&dashboard())
        .iter()
        .flat_map(|(text, _)| Query::read(text).selectors)
        .map(|selector| selector.metric)
        .collect();
    for name in told().into_keys().filter(|name| name.starts_with("letta_gateway_")) {
        // of a histogram any one of its series
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        assert!(asked.iter().any(|asked| asked.starts_with(family)), "{name} is on no panel");
    }
}

#[test]
fn every_alert_names_a_metric_that_exists_and_says_what_is_wrong() {
    let told = told();
    let rules = rules();
    assert!(rules.len() >= 8, "only {} alerts were found", rules.len());
    for rule in rules {
        let alert = text(&rule, "alert");
        let (_, labels) = check(text(&rule, "expr"), &told);
        assert!(["info", "warning", "critical"].contains(&text(&rule["labels"], "severity")), "{alert}");
        for annotation in ["summary", "description"] {
            let words = text(&rule["annotations"], annotation);
            assert!(!words.is_empty(), "{alert}");
            for label in between(words, "$labels.", " ") {
                assert!(labels.contains(label), "{alert}: its result has no label {label}");
            }
        }
    }
}

#[test]
fn the_variables_of_the_dashboard_are_all_defined_and_ask_for_what_exists() {
    let (dashboard, told) = (dashboard(), told());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let defined: BTreeSet<_> = variables.iter().map(|variable| text(variable, "name")).collect();
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let asked = text(&variable["query"], "query");
        let inside = asked.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (selector, label) = inside.rsplit_once(',').unwrap();
        check(selector, &told);
        assert!(SCRAPED.contains(&label.trim()), "{asked}");
    }
    let name = |rest: &str| {
        rest.trim_start_matches('{').split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap().to_owned()
    };
    for used in dashboard.to_string().split('$').skip(1).map(name) {
        // a replacement made by Grafana, and its word for "all values"
        assert!(used.starts_with("__") || defined.contains(used.as_str()), "${used} is not defined");
    }
}

#[test]
fn every_panel_has_a_place_of_its_own_and_asks_the_chosen_data_source() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    let place = |panel: &Value| ["x", "y", "w", "h"].map(|field| panel["gridPos"][field].as_u64().unwrap());
    let mut ids = BTreeSet::new();
    for (index, panel) in panels.iter().enumerate() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "id of {} is taken", panel["title"]);
        let [x, y, w, h] = place(panel);
        assert!(x + w <= 24, "{} is wider than the page", panel["title"]);
        for other in &panels[index + 1..] {
            let [ox, oy, ow, oh] = place(other);
            let apart = x + w <= ox || ox + ow <= x || y + h <= oy || oy + oh <= y;
            assert!(apart, "{} lies on {}", panel["title"], other["title"]);
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    let rows: Vec<_> = panels.iter().filter(|panel| panel["type"] == "row").map(|row| text(row, "title")).collect();
    for topic in
        ["Traffic", "Latency", "Errors", "Keys and limits", "Cache", "Turns", "Replicas", "Redis", "Process and TLS"]
    {
        assert!(rows.iter().any(|row| row.starts_with(topic)), "no row {topic}");
    }
}

#[test]
fn a_query_for_what_does_not_exist_is_found_out() {
    let told = told();
    let wrong = [
        "letta_gateway_request_total",
        "rate(letta_gateway_requests_total{path=\"/\"}[1m])",
        "sum by (agent) (rate(letta_gateway_requests_total[1m]))",
        "sum(letta_gateway_requests_total)",
        "rate(letta_gateway_requests_in_flight[1m])",
        "average(letta_gateway_requests_in_flight)",
        "1 + 1",
    ];
    for text in wrong {
        assert!(std::panic::catch_unwind(|| check(text, &told)).is_err(), "passed: {text}");
    }
    check("sum without (job) (rate(letta_gateway_requests_total{status=~\"5xx|none\"}[$__rate_interval])) > 1", &told);
}
