use std::future::Future;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;

use super::*;
use crate::telemetry::metrics::RedisLink;

#[allow(dead_code, unreachable_pub, reason = "the tests of the whole gateway use it too")]
#[path = "../../tests/support/redis.rs"]
pub(super) mod server;

use server::RedisServer;

const HOUR: Duration = Duration::from_hours(1);
const ONE: Key = [1; 32];

pub(super) fn entry(body: impl AsRef<[u8]>) -> Entry {
    Entry::new(HeaderValue::from_static("application/json"), body.as_ref())
}

fn in_memory(max_total: u64) -> Settings {
    Settings { redis: None, max_entry: 1024, max_total }
}

/// Redis at `url`, with this budget.
pub(super) fn redis_at(url: impl Into<String>, timeout: Duration) -> RedisSettings {
    let (url, sentinel) = (url.into(), Credentials::default());
    RedisSettings { url, sentinel, timeout, prefix: "test:".into(), ca_file: None }
}

/// With a budget that no loaded machine exceeds.
fn in_redis(url: String) -> Settings {
    let redis = redis_at(url, Duration::from_secs(5));
    Settings { redis: Some(redis), max_entry: 1024, max_total: 0 }
}

/// Whether the connection for values is told to be there.
fn is_up(metrics: &Metrics) -> bool {
    metrics.redis_up(RedisLink::Values).is_set()
}

/// Asks again until it is so; fails after a bound that no machine needs.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A store on `server` that has connected.
async fn connected(server: &RedisServer) -> (Store, Arc<Metrics>) {
    connected_with(in_redis(server.url())).await
}

/// A store that gives up on a Redis that hangs before the test's reader does.
async fn impatient(server: &RedisServer) -> (Store, Arc<Metrics>) {
    let mut settings = in_redis(server.url());
    if let Some(redis) = &mut settings.redis {
        redis.timeout = Duration::from_millis(100);
    }
    connected_with(settings).await
}

async fn connected_with(settings: Settings) -> (Store, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(settings, &metrics, None).unwrap();
    eventually("connected", async || store.health() == Health::Ok).await;
    (store, metrics)
}

#[tokio::test]
async fn whoever_asks_after_a_put_finds_it() {
    let server = RedisServer::start();
    let (store, _) = connected(&server).await;
    // on this one thread no task can have run between the two
    let said = entry("said");
    store.put(ONE, said.clone(), HOUR);
    assert_eq!(store.get(&ONE).await, Ok(Some(said)));
}

async fn kept(store: &Store, key: Key, entry: &Entry, ttl: Duration) {
    store.put(key, entry.clone(), ttl);
    eventually("kept", async || store.get(&key).await == Ok(Some(entry.clone()))).await;
}

pub(super) fn errors(metrics: &Metrics, reason: &str) -> f64 {
    let families = metrics.registry().gather();
    let errors = families.iter().filter(|family| family.name() == "letta_gateway_redis_errors_total");
    let of_reason =
        errors.flat_map(|family| family.get_metric()).filter(|metric| metric.get_label()[0].value() == reason);
    of_reason.map(|metric| metric.get_counter().get_value()).sum()
}

#[test]
fn an_entry_survives_its_form_and_nothing_else_is_taken_for_one() {
    let entry = entry(b"{\"messages\":[]}");
    let form = entry.encode().unwrap();
    assert_eq!(Entry::decode(form.clone().into()), Some(entry.clone()));
    for end in 0..form.len() - entry.body.len() {
        assert_eq!(Entry::decode(Bytes::copy_from_slice(&form[..end])), None, "cut at {end}");
    }
    let mut other = form.clone();
    other[0] += 1;
    assert_eq!(Entry::decode(other.into()), None, "another version");
    let mut other = form;
    other[11] = b'\n';
    assert_eq!(Entry::decode(other.into()), None, "no header value");
}

#[test]
fn an_entry_from_the_future_has_no_age() {
    let mut entry = entry("x");
    entry.stored_at += 60_000;
    assert_eq!(entry.age(std::time::SystemTime::now()), Duration::ZERO);
    entry.stored_at -= 120_000;
    assert!(entry.age(std::time::SystemTime::now()) >= Duration::from_secs(60));
}

#[test]
fn settings_do_not_show_the_url() {
    let settings = in_redis("redis://user:sesame@localhost".into());
    assert!(!format!("{settings:?}").contains("sesame"));
    for url in ["redis//user:sesame@localhost", "http://user:sesame@localhost", "redis://user:sesame@localhost:port"] {
        let Settings { redis: Some(redis), .. } = in_redis(url.into()) else { unreachable!() };
        let error = redis.check().unwrap_err();
        assert!(!format!("{} {error:?}", error.why).contains("sesame"), "{error:?}");
    }
    let Settings { redis: Some(redis), .. } = settings else { unreachable!() };
    assert!(redis.check().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_value_expires() {
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(in_memory(1 << 20), &metrics, None).unwrap();
    store.put(ONE, entry("a"), HOUR);
    tokio::time::advance(HOUR - Duration::from_millis(1)).await;
    assert_eq!(store.get(&ONE).await.unwrap().unwrap().body, "a");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(store.get(&ONE).await, Ok(None));
    // a new one lives its own time
    store.put(ONE, entry("b"), HOUR);
    tokio::time::advance(HOUR / 2).await;
    store.put(ONE, entry("c"), HOUR);
    tokio::time::advance(HOUR / 2).await;
    assert_eq!(store.get(&ONE).await.unwrap().unwrap().body, "c");
}

#[tokio::test]
async fn memory_is_bounded_in_bytes_and_told() {
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(in_memory(64 * 1024), &metrics, None).unwrap();
    let Place::Memory(memory) = &store.place else { unreachable!() };
    for n in 0..1000_u32 {
        let mut key = ONE;
        key[..4].copy_from_slice(&n.to_be_bytes());
        store.put(key, entry(vec![0; 1024]), HOUR);
    }
    memory.settle();
    let (bytes, entries) = (metrics.cache_bytes.get(), metrics.cache_entries.get());
    assert!((32 * 1024..=64 * 1024).contains(&bytes), "{bytes}");
    assert!((25..=63).contains(&entries), "{entries}");
    drop(store);
    assert_eq!((metrics.cache_bytes.get(), metrics.cache_entries.get()), (0, 0));
}

#[tokio::test]
async fn a_value_over_its_bound_is_not_kept() {
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(in_memory(1 << 20), &metrics, None).unwrap();
    store.put(ONE, entry(vec![0; 1025]), HOUR);
    assert_eq!(store.get(&ONE).await, Ok(None));
    let store = Store::new(in_memory(100), &metrics, None).unwrap();
    store.put(ONE, entry(vec![0; 101]), HOUR);
    assert_eq!(store.get(&ONE).await, Ok(None));
    assert_eq!(metrics.cache_entries.get(), 0);
}

#[tokio::test]
async fn a_reload_with_the_same_settings_keeps_the_values() {
    let metrics = Arc::new(Metrics::new());
    let before = Store::new(in_memory(1 << 20), &metrics, None).unwrap();
    before.put(ONE, entry("a"), HOUR);
    let after = Store::new(in_memory(1 << 20), &metrics, Some(&before)).unwrap();
    assert!(after.get(&ONE).await.unwrap().is_some());
    let other = Store::new(in_memory(2 << 20), &metrics, Some(&after)).unwrap();
    assert_eq!(other.get(&ONE).await, Ok(None));
}

#[tokio::test]
async fn two_gateways_share_what_is_in_redis() {
    let server = RedisServer::start();
    let (one, metrics) = connected(&server).await;
    let (other, _) = connected(&server).await;
    let entry = entry(vec![7; 1024]);
    kept(&one, ONE, &entry, HOUR).await;
    assert_eq!(other.get(&ONE).await, Ok(Some(entry)));
    assert_eq!(other.get(&[2; 32]).await, Ok(None));
    assert!(is_up(&metrics));
    assert!(metrics.redis_duration.seen().0 > 0);
}

#[tokio::test]
async fn a_value_in_redis_expires_there() {
    let server = RedisServer::start();
    let (store, _) = connected(&server).await;
    kept(&store, ONE, &entry("a"), Duration::from_millis(300)).await;
    eventually("expired", async || store.get(&ONE).await == Ok(None)).await;
}

#[tokio::test]
async fn what_others_write_to_redis_is_not_taken_for_a_value() {
    let server = RedisServer::start();
    let (store, metrics) = connected(&server).await;
    let Place::Redis(redis) = &store.place else { unreachable!() };
    let key = format!("test:cache:{}", hex::encode(ONE));
    let mut command = ::redis::Cmd::new();
    command.arg("SET").arg(&key).arg("not the gateway's");
    redis.run_for_test(&command).await.unwrap();
    assert_eq!(store.get(&ONE).await, Ok(None));
    // no more of it is read than a value may have
    let mut command = ::redis::Cmd::new();
    command.arg("SETRANGE").arg(&key).arg(64 << 20).arg("far");
    redis.run_for_test(&command).await.unwrap();
    assert_eq!(store.get(&ONE).await, Ok(None));
    // of another type: an error of Redis's own, and the connection stays
    let mut command = ::redis::Cmd::new();
    command.arg("DEL").arg(&key);
    redis.run_for_test(&command).await.unwrap();
    let mut command = ::redis::Cmd::new();
    command.arg("LPUSH").arg(&key).arg("a");
    redis.run_for_test(&command).await.unwrap();
    assert_eq!(store.get(&ONE).await, Err(StoreError::Reply));
    assert_eq!((store.health(), is_up(&metrics)), (Health::Ok, true));
}

#[tokio::test]
async fn a_value_of_a_gateway_with_a_larger_bound_is_not_taken_cut() {
    let server = RedisServer::start();
    let (store, _) = connected(&server).await;
    let larger = Settings { max_entry: 1 << 20, ..in_redis(server.url()) };
    let other = Store::new(larger, &Arc::new(Metrics::new()), None).unwrap();
    eventually("connected", async || other.health() == Health::Ok).await;
    kept(&other, ONE, &entry(vec![7; 1 << 20]), HOUR).await;
    assert_eq!(store.get(&ONE).await, Ok(None));
}

#[tokio::test]
async fn requests_go_on_without_a_redis_that_was_never_there() {
    let mut server = RedisServer::start();
    server.kill();
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(in_redis(server.url()), &metrics, None).unwrap();
    assert_eq!(store.get(&ONE).await, Err(StoreError::Down));
    store.put(ONE, entry("a"), HOUR);
    assert!(matches!(store.health(), Health::Degraded(_)));
    server.restart();
    eventually("connected", async || store.health() == Health::Ok).await;
    kept(&store, ONE, &entry("a"), HOUR).await;
}

#[tokio::test]
async fn a_redis_that_dies_is_known_to_be_gone_and_used_again_when_it_is_back() {
    let mut server = RedisServer::start();
    let (store, metrics) = connected(&server).await;
    kept(&store, ONE, &entry("a"), HOUR).await;
    server.kill();
    // without a request: the idle connection is watched
    eventually("lost", async || store.health() != Health::Ok).await;
    assert!(!is_up(&metrics));
    assert_eq!(store.get(&ONE).await, Err(StoreError::Down));
    server.restart();
    eventually("back", async || store.get(&ONE).await == Ok(None)).await;
    kept(&store, ONE, &entry("b"), HOUR).await;
    assert!(is_up(&metrics));
}

#[tokio::test]
async fn a_redis_that_hangs_is_given_up_after_a_few_budgets_and_used_again_when_it_wakes() {
    let server = RedisServer::start();
    let (store, metrics) = impatient(&server).await;
    kept(&store, ONE, &entry("a"), HOUR).await;
    server.hang();
    let mut timeouts = 0;
    loop {
        match store.get(&ONE).await {
            Err(StoreError::Timeout) => timeouts += 1,
            Err(StoreError::Down | StoreError::Lost) => break,
            other => panic!("{other:?}"),
        }
        assert!(timeouts <= 3, "the breaker does not open");
    }
    // open: nothing is waited for, nothing is written, and it stays so while Redis hangs
    assert_eq!(store.get(&ONE).await, Err(StoreError::Down));
    store.put(ONE, entry("b"), HOUR);
    assert!(matches!(store.health(), Health::Degraded(_)));
    assert!(!is_up(&metrics));
    server.wake();
    eventually("back", async || store.get(&ONE).await == Ok(Some(entry_of(&store, "a").await))).await;
    assert_eq!((store.health(), is_up(&metrics)), (Health::Ok, true));
}

/// The stored entry if its body is `body`.
async fn entry_of(store: &Store, body: &str) -> Entry {
    match store.get(&ONE).await {
        Ok(Some(entry)) if entry.body == body => entry,
        _ => entry("nothing"),
    }
}

#[tokio::test]
async fn many_at_once_on_a_redis_that_hangs_all_end_and_hold_nothing() {
    let server = RedisServer::start();
    let (store, _) = impatient(&server).await;
    server.hang();
    let asked: Vec<_> = (0..3000)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store.put([3; 32], entry(vec![0; 1024]), HOUR);
                store.get(&[u8::try_from(n % 256).unwrap(); 32]).await
            })
        })
        .collect();
    for asked in asked {
        assert!(asked.await.unwrap().is_err());
    }
    assert!(matches!(store.health(), Health::Degraded(_)));
    let Place::Redis(redis) = &store.place else { unreachable!() };
    eventually("all permits are back", async || redis.idle_for_test()).await;
}

#[tokio::test]
async fn a_password_is_used() {
    let server = RedisServer::start_with(&["--requirepass", "sesame"]);
    let metrics = Arc::new(Metrics::new());
    let url = format!("redis://:sesame@127.0.0.1:{}/0", server.port());
    let store = Store::new(in_redis(url), &metrics, None).unwrap();
    eventually("connected", async || store.health() == Health::Ok).await;
    kept(&store, ONE, &entry("a"), HOUR).await;

    let without = Store::new(in_redis(server.url()), &Arc::new(Metrics::new()), None).unwrap();
    assert_eq!(without.get(&ONE).await, Err(StoreError::Down));
}

#[tokio::test]
async fn redis_over_tls_is_checked_against_the_configured_authority() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let server = RedisServer::start_tls(&made.cert.pem(), &made.signing_key.serialize_pem());
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca.pem");
    std::fs::write(&authority, made.cert.pem()).unwrap();
    let settings = |ca_file| {
        let mut settings = in_redis(format!("rediss://localhost:{}/0", server.port()));
        if let Some(redis) = &mut settings.redis {
            redis.ca_file = ca_file;
        }
        settings
    };
    let store = Store::new(settings(Some(authority)), &Arc::new(Metrics::new()), None).unwrap();
    eventually("connected", async || store.health() == Health::Ok).await;
    kept(&store, ONE, &entry("a"), HOUR).await;

    let metrics = Arc::new(Metrics::new());
    let other = Store::new(settings(None), &metrics, None).unwrap();
    eventually("refused twice", async || errors(&metrics, "connect") >= 2.0).await;
    assert!(matches!(other.health(), Health::Degraded(_)));
}
