use super::*;
use crate::store::tests::server::sentinel::Sentinel;

#[tokio::test]
async fn after_a_failover_the_new_master_is_asked_and_no_request_waits_for_the_old_one() {
    let mut redis = Sentinel::start();
    let (store, limits, metrics) = gateway(redis_at(redis.url(""), PATIENT)).await;
    assert_eq!(counted(&limits, [1; 16], 20).await, 20);
    replicated(&redis.servers[0], &redis.servers[1]).await;
    redis.servers[0].kill();
    redis.failed_over();
    counts_again(&limits, [2; 16]).await;
    assert!(
        redis.servers[1].ask(&["KEYS", "test:limit:*02}:rates"]).contains("test:limit:"),
        "the new master is asked"
    );
    // what the old one had counted and passed on, the new one knows
    assert_eq!(counted(&limits, [1; 16], 20).await, 0);
    eventually("all are back", async || store.health() == Health::Ok).await;
    assert!(metrics.redis_up(RedisLink::Turns).is_set());
}

#[tokio::test]
async fn a_master_that_hangs_is_waited_for_by_a_few_until_another_one_is_there() {
    let redis = Sentinel::start();
    let (_store, limits, _) = gateway(redis_at(redis.url(""), HASTY)).await;
    redis.servers[0].hang();
    let waited = waits_until_down(&limits, std::iter::repeat([1; 16])).await;
    assert!(waited <= 4, "{waited} requests waited");
    redis.failed_over();
    counts_again(&limits, [1; 16]).await;
    // the old one comes back, takes itself for the master for a while, and is not asked
    redis.servers[0].wake();
    assert_eq!(counted(&limits, [3; 16], 50).await, 50);
    assert!(redis.servers[1].ask(&["KEYS", "test:limit:*03}:rates"]).contains("test:limit:"));
}

#[tokio::test]
async fn sentinels_and_the_master_have_passwords_of_their_own_and_one_that_hangs_stops_nobody() {
    let redis = Sentinel::start_with("requirepass guard\n");
    redis.servers[0].ask(&["CONFIG", "SET", "requirepass", "sesame"]);
    let other = RedisServer::start();
    other.hang();
    let url = redis.url(":sesame@").replace("sesame@", &format!("sesame@{},", other.address()));
    let mut settings = redis_at(url, PATIENT);
    settings.sentinel.password = Some("guard".into());
    let (_store, limits, _) = gateway(settings.clone()).await;
    assert_eq!(counted(&limits, [1; 16], 5).await, 5);

    settings.sentinel.password = Some("wrong".into());
    let metrics = Arc::new(Metrics::new());
    let settings = crate::store::Settings { redis: Some(settings), max_entry: 1024, max_total: 0 };
    let without = Store::new(settings, &metrics, None).unwrap();
    eventually("refused", async || crate::store::tests::errors(&metrics, "connect") >= 1.0).await;
    assert!(matches!(without.health(), Health::Degraded(_)));
}
