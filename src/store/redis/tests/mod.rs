//! Redis that is more than one server, and servers that are not (any more) who is to be asked.

mod cluster;
mod sentinel;

use super::*;
use crate::store::tests::server::RedisServer;
use crate::store::tests::{eventually, redis_at};
use crate::store::{Ask, Health, Pace, SharedLimits, Spender, Store, Tally, Verdict};

/// Waits until `replica` has all that `master` was told. (WAIT waits for what its own connection has written.)
async fn replicated(master: &RedisServer, replica: &RedisServer) {
    let written = |server: &RedisServer| {
        let told = server.ask(&["INFO", "replication"]);
        told.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).map(|offset| offset.trim().to_owned())
    };
    eventually("the replica has all", async || written(master).is_some() && written(master) == written(replica)).await;
}

#[test]
fn what_is_wrong_with_a_server_is_told_with_what_mends_it_and_nothing_that_was_sent() {
    let of = |reply: &[u8]| {
        told(&::redis::parse_redis_value(reply).and_then(Value::extract_error).expect_err("no reply but an error"))
    };
    assert_eq!(of(b"-NOAUTH Authentication required.\r\n"), "it wants a password: write it into the URL (NOAUTH)");
    let wrong = "the URL has another user or password than it wants (WRONGPASS)";
    assert_eq!(of(b"-WRONGPASS invalid username-password pair\r\n"), wrong);
    assert_eq!(of(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "what answers there is no Redis");
    assert_eq!(of(b"-NOPERM no permission to run 'get' with 'secret'\r\n"), "NOPERM");
}

const HOUR: Duration = Duration::from_hours(1);
/// That no loaded machine exceeds.
const PATIENT: Duration = Duration::from_secs(10);
const HASTY: Duration = Duration::from_millis(50);

/// A gateway's view of `redis`, with all its connections made.
async fn gateway(redis: RedisSettings) -> (Store, Arc<SharedLimits>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let settings = crate::store::Settings { redis: Some(redis), max_entry: 1024, max_total: 0 };
    let store = Store::new(settings, &metrics, None).unwrap();
    let (limits, _turns) = (store.shared_limits().unwrap(), store.shared_turns().unwrap());
    eventually("connected", async || store.health() == Health::Ok).await;
    (store, limits, metrics)
}

/// Asks for one request of `most` an hour.
async fn count(limits: &SharedLimits, spender: Spender, most: u32) -> Result<Tally, StoreError> {
    let paces = [Pace { name: "rate".into(), period: HOUR, burst: most }];
    limits.count(Ask { spender, paces: &paces, known: &[], most: None, budgets: &[], may_stand: false }).await
}

/// How many are counted of requests that go on until one is refused.
async fn counted(limits: &SharedLimits, spender: Spender, most: u32) -> u32 {
    let mut counted = 0;
    while matches!(count(limits, spender, most).await.unwrap().verdict, Verdict::Counted(_)) {
        counted += 1;
    }
    counted
}

/// Counts until that is no error, which is none that takes longer than its budget.
async fn counts_again(limits: &SharedLimits, spender: Spender) {
    eventually("it is counted again", async || count(limits, spender, 1000).await.is_ok()).await;
}

/// Asks while `redis` is gone until nothing is waited for any more; how many requests waited for their whole budget.
async fn waits_until_down(limits: &SharedLimits, spenders: impl Iterator<Item = Spender>) -> usize {
    let mut waited = 0;
    for spender in spenders {
        match count(limits, spender, 1000).await {
            Err(StoreError::Timeout) => waited += 1,
            Err(StoreError::Down) => return waited,
            _ => {}
        }
    }
    unreachable!("there are spenders without end")
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_not_asked_until_it_may_write_again() {
    let (server, master) = (RedisServer::start(), RedisServer::start());
    let (store, limits, metrics) = gateway(redis_at(server.url(), PATIENT)).await;
    counts_again(&limits, [1; 16]).await;
    server.ask(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    eventually("no connection is kept", async || {
        matches!(count(&limits, [1; 16], 1000).await, Err(StoreError::Down))
            && matches!(store.health(), Health::Degraded(why) if why.contains("values, turns and limits"))
    })
    .await;
    assert!(!metrics.redis_up(RedisLink::Limits).is_set());
    server.ask(&["REPLICAOF", "NO", "ONE"]);
    counts_again(&limits, [1; 16]).await;
    eventually("all are back", async || store.health() == Health::Ok).await;
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_sent_them_with_the_request() {
    let server = RedisServer::start();
    let (_store, limits, _) = gateway(redis_at(server.url(), PATIENT)).await;
    for _ in 0..3 {
        server.ask(&["SCRIPT", "FLUSH"]);
        assert!(count(&limits, [1; 16], 1000).await.is_ok());
    }
    assert_eq!(counted(&limits, [1; 16], 5).await, 2, "each was counted once");
}

#[test]
fn what_cannot_be_used_is_told_with_the_name_of_its_option() {
    let check = |url: &str, change: fn(&mut RedisSettings)| {
        let mut settings = redis_at(url, PATIENT);
        change(&mut settings);
        settings.check().map_err(|bad| bad.field)
    };
    let password = |settings: &mut RedisSettings| settings.sentinel.password = Some("sesame".into());
    let authority = |settings: &mut RedisSettings| settings.ca_file = Some("ca.pem".into());
    let braces = |settings: &mut RedisSettings| settings.prefix = "{}:".into();
    assert_eq!(check("redis+sentinel://a/m", password), Ok(()));
    assert_eq!(check("redis://a", password), Err("sentinel_password"));
    assert_eq!(check("redis+cluster://a", password), Err("sentinel_password"));
    assert_eq!(check("rediss+cluster://a", authority), Ok(()));
    assert_eq!(check("redis+cluster://a", authority), Err("ca_file"));
    assert_eq!(check("redis://a", braces), Ok(()));
    assert_eq!(check("redis+cluster://a", braces), Err("prefix"));
    assert_eq!(check("redis+cluster://a/1", |_| ()), Err("url"));
}
