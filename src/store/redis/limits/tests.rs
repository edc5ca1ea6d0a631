use std::collections::HashSet;

use ::redis::{Client, FromRedisValue, cmd};

use super::*;
use crate::store::tests::{eventually, redis_at, server::RedisServer};
use crate::store::{Account, Pace, Settings, Store, Verdict};

const HOUR: Duration = Duration::from_hours(1);
/// So long that nothing lapses in a test that is not about it.
const PATIENT: LimitTiming = LimitTiming { lease: Duration::from_mins(1), alive: Duration::from_mins(1) };
const QUICK: LimitTiming = LimitTiming { lease: Duration::from_millis(300), alive: Duration::from_millis(300) };

/// A gateway's view of `server`, connected.
async fn gateway(server: &RedisServer, timing: LimitTiming, budget: Duration) -> (Arc<SharedLimits>, Arc<Metrics>) {
    let redis = redis_at(server.url(), budget);
    let settings = Settings { redis: Some(redis), max_entry: 0, max_total: 0 };
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(settings, &metrics, None).unwrap();
    let limits = store.shared_limits_with(timing).unwrap();
    limits.reconnected(None).await;
    (limits, metrics)
}

async fn gateways(server: &RedisServer, count: usize) -> Vec<Arc<SharedLimits>> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(gateway(server, PATIENT, Duration::from_secs(10)).await.0);
    }
    all
}

/// `burst` at once, and one back every `period`.
fn pace(name: &str, period: Duration, burst: u32) -> Pace {
    Pace { name: name.into(), period, burst }
}

fn ask(spender: u8, paces: &[Pace], most: Option<u32>) -> Ask<'_> {
    Ask { spender: [spender; 16], paces, known: &[], most, budgets: &[], may_stand: false }
}

fn is_counted(tally: &Tally) -> bool {
    matches!(tally.verdict, Verdict::Counted(_))
}

/// Asks Redis beside the gateways.
async fn look<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (name, arguments) = words.split_first().unwrap();
    cmd(name).arg(arguments).query_async(&mut connection).await.unwrap()
}

/// How many of 16 clients' requests at four gateways are counted, each asking `times`.
async fn hammer(gateways: &[Arc<SharedLimits>], spender: u8, paces: &[Pace], most: Option<u32>, times: usize) -> usize {
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let clients: Vec<_> = (0..16)
        .map(|client: usize| {
            let (limits, paces) = (Arc::clone(&gateways[client % gateways.len()]), paces.to_vec());
            let held = Arc::clone(&held);
            tokio::spawn(async move {
                for _ in 0..times {
                    let tally = limits.count(ask(spender, &paces, most)).await.unwrap();
                    if is_counted(&tally) {
                        held.lock().unwrap().push(tally);
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    held.lock().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_clients_at_four_gateways_get_the_limit_exactly_ten_times_out_of_ten() {
    let server = RedisServer::start();
    let gateways = gateways(&server, 4).await;
    for round in 0..10 {
        let rate = [pace("rate", HOUR, 60)];
        assert_eq!(hammer(&gateways, round, &rate, None, 20).await, 60, "round {round}: a rate");
        let day = [pace("second", Duration::from_nanos(1), 1000), pace("day", Duration::from_secs(86_400), 150)];
        assert_eq!(hammer(&gateways, 20 + round, &day, None, 20).await, 150, "round {round}: a day beside a rate");
        assert_eq!(hammer(&gateways, 40 + round, &[], Some(9), 20).await, 9, "round {round}: in flight");
        let all = [pace("rate", HOUR, 30)];
        assert_eq!(hammer(&gateways, 60 + round, &all, Some(1000), 20).await, 30, "round {round}: both");
    }
}

#[tokio::test]
async fn nothing_is_counted_when_any_window_refuses() {
    let server = RedisServer::start();
    let limits = gateways(&server, 1).await.remove(0);
    let paces = [pace("wide", HOUR, 100), pace("tight", HOUR, 1)];
    let first = limits.count(ask(1, &paces, Some(2))).await.unwrap();
    assert!(is_counted(&first));
    assert_eq!((first.in_flight, first.ahead.len()), (1, 2));
    let spender = hex::encode([1; 16]);
    let rates = format!("test:limit:{{{spender}}}:rates");
    let before: Vec<String> = look(&server, &["HGETALL", &rates]).await;
    for _ in 0..5 {
        let refused = limits.count(ask(1, &paces, Some(2))).await.unwrap();
        assert!(matches!(refused.verdict, Verdict::TooFast));
        assert_eq!(refused.in_flight, 1);
        // what is ahead is what there was
        assert!(refused.ahead.iter().zip(&first.ahead).all(|(now, then)| now <= then));
    }
    let full = limits.count(ask(1, &paces[..1], Some(1))).await.unwrap();
    assert!(matches!(full.verdict, Verdict::Full));
    assert_eq!(look::<Vec<String>>(&server, &["HGETALL", &rates]).await, before);
    assert_eq!(look::<u32>(&server, &["ZCARD", &format!("test:limit:{{{spender}}}:places")]).await, 1);
    // one that may stand is counted without a place
    let standing = limits.count(Ask { may_stand: true, ..ask(1, &paces[..1], Some(1)) }).await.unwrap();
    assert!(matches!(standing.verdict, Verdict::Standing));
    assert_eq!(standing.in_flight, 1);
}

#[tokio::test]
async fn a_request_comes_back_when_its_time_has_come_and_not_before() {
    let server = RedisServer::start();
    let limits = gateways(&server, 1).await.remove(0);
    let paces = [pace("rate", Duration::from_millis(50), 2)];
    let mut counted = 0;
    let mut longest = Duration::ZERO;
    let started = std::time::Instant::now();
    while counted < 6 {
        let tally = limits.count(ask(1, &paces, None)).await.unwrap();
        counted += u32::from(is_counted(&tally));
        longest = longest.max(tally.ahead[0]);
    }
    assert!(started.elapsed() >= Duration::from_millis(200), "four came back, one every 50 ms");
    assert!(longest <= Duration::from_millis(100), "never more than the burst is ahead");
}

#[tokio::test]
async fn whoever_has_seen_the_end_of_a_request_finds_its_place_free() {
    let server = RedisServer::start();
    let limits = gateways(&server, 1).await.remove(0);
    for request in 0..200 {
        let tally = limits.count(ask(1, &[], Some(1))).await.unwrap();
        assert!(is_counted(&tally), "request {request}");
    }
}

#[tokio::test]
async fn places_are_free_again_for_other_gateways_and_nothing_is_left_of_them() {
    let server = RedisServer::start();
    let both = gateways(&server, 2).await;
    let held = both[0].count(ask(1, &[], Some(1))).await.unwrap();
    assert!(matches!(both[1].count(ask(1, &[], Some(1))).await.unwrap().verdict, Verdict::Full));
    drop(held);
    eventually("the place is free", async || is_counted(&both[1].count(ask(1, &[], Some(1))).await.unwrap())).await;
    let empty = async || {
        look::<u32>(&server, &["EXISTS", &format!("test:limit:{{{}}}:places", hex::encode([1; 16]))]).await == 0
    };
    eventually("Redis knows of no place", empty).await;
    eventually("nor does the gateway", async || both.iter().all(|limits| limits.inner.leases.is_empty())).await;
}

#[tokio::test]
async fn a_gateway_that_dies_holds_nothing_for_long_and_one_that_lives_holds_on() {
    let server = RedisServer::start();
    let (dies, _) = gateway(&server, QUICK, Duration::from_secs(10)).await;
    let (lives, _) = gateway(&server, QUICK, Duration::from_secs(10)).await;
    let held = lives.count(ask(1, &[], Some(2))).await.unwrap();
    let lost = dies.count(ask(1, &[], Some(2))).await.unwrap();
    assert!(is_counted(&held) && is_counted(&lost));
    // as a crash would: nobody renews, nobody tells
    for task in &dies.tasks {
        task.abort();
    }
    eventually("a place of the dead one's", async || {
        matches!(lives.count(ask(1, &[], Some(2))).await.unwrap().verdict, Verdict::Counted(Some(_)))
    })
    .await;
    let asked = std::time::Instant::now();
    while asked.elapsed() < 3 * QUICK.lease {
        let other = gateways(&server, 1).await.remove(0);
        assert!(matches!(other.count(ask(1, &[], Some(1))).await.unwrap().verdict, Verdict::Full), "it is renewed");
    }
    drop((held, lost));
}

#[tokio::test]
async fn a_redis_that_lost_its_data_is_told_who_is_in_flight() {
    let mut server = RedisServer::start();
    let both = gateways(&server, 2).await;
    let _held = both[0].count(ask(1, &[], Some(1))).await.unwrap();
    server.kill();
    server.restart();
    for limits in &both {
        limits.reconnected(None).await;
    }
    eventually("the place is taken", async || {
        matches!(both[1].count(ask(1, &[], Some(1))).await, Ok(Tally { verdict: Verdict::Full, .. }))
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_hangs_is_waited_for_by_a_few_and_then_by_none() {
    let server = RedisServer::start();
    let (limits, metrics) = gateway(&server, PATIENT, Duration::from_millis(50)).await;
    server.hang();
    let (mut timeouts, mut others) = (0, 0);
    for _ in 0..50 {
        match limits.count(ask(1, &[pace("rate", HOUR, 10)], Some(1))).await {
            Err(StoreError::Timeout) => timeouts += 1,
            Err(StoreError::Down | StoreError::Lost) => others += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..=4).contains(&timeouts) && others >= 46, "{timeouts} waited");
    server.wake();
    limits.reconnected(None).await;
    eventually("it counts again", async || {
        limits.count(ask(1, &[pace("rate", HOUR, 10)], Some(1))).await.is_ok_and(|tally| is_counted(&tally))
    })
    .await;
    drop(metrics);
}

#[tokio::test]
async fn every_gateway_knows_how_many_there_are() {
    let server = RedisServer::start();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(gateway(&server, QUICK, Duration::from_secs(10)).await.0);
    }
    eventually("three", async || all.iter().all(|limits| limits.gateways() == 3)).await;
    drop(all.pop());
    eventually("two", async || all.iter().all(|limits| limits.gateways() == 2)).await;
}

#[tokio::test]
async fn keys_of_one_spender_are_in_one_slot_and_none_stays_for_ever() {
    let server = RedisServer::start();
    let limits = gateways(&server, 1).await.remove(0);
    let paces = [pace("a", Duration::from_millis(20), 1), pace("b", Duration::from_millis(30), 5)];
    let held = limits.count(ask(1, &paces, Some(1))).await.unwrap();
    let keys: Vec<String> = look(&server, &["KEYS", "test:limit:{*"]).await;
    assert_eq!(keys.len(), 2, "{keys:?}");
    let tag = |key: &String| key[key.find('{').unwrap()..=key.find('}').unwrap()].to_owned();
    assert_eq!(keys.iter().map(tag).collect::<HashSet<_>>().len(), 1);
    for key in look::<Vec<String>>(&server, &["KEYS", "*"]).await {
        assert!(look::<i64>(&server, &["PTTL", &key]).await > 0, "{key}");
    }
    drop(held);
    eventually("nothing is left", async || look::<Vec<String>>(&server, &["KEYS", "test:limit:{*"]).await.is_empty())
        .await;
}

fn ledger(own: u64, most: u64) -> Ledger {
    let per = Duration::from_hours(24 * 31);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let period = u64::try_from(now.as_millis() / per.as_millis()).unwrap();
    Ledger { name: "tokens".into(), per, period, own, most }
}

#[tokio::test]
async fn what_every_gateway_has_charged_is_known_to_all_however_often_it_is_told() {
    let server = RedisServer::start();
    let both = gateways(&server, 2).await;
    let spender = [1; 16];
    for _ in 0..3 {
        let charged = both[0].charge(spender, &[ledger(70, 100)]).await.unwrap();
        assert_eq!(charged, [Charged { period: ledger(0, 0).period, total: 70 }]);
    }
    let budgets = [ledger(20, 100)];
    let tally = both[1].count(Ask { budgets: &budgets, ..ask(1, &[], Some(5)) }).await.unwrap();
    assert!(is_counted(&tally), "90 of 100: something is left");
    assert_eq!(tally.charged[0].total, 90);
    let budgets = [ledger(30, 100)];
    let spent = both[1].count(Ask { budgets: &budgets, ..ask(1, &[pace("rate", HOUR, 1)], Some(5)) }).await.unwrap();
    assert!(matches!(spent.verdict, Verdict::Spent));
    assert_eq!((spent.in_flight, spent.ahead[0]), (1, Duration::ZERO), "no window has counted it");
    let standing = Ask { budgets: &budgets, may_stand: true, ..ask(1, &[], Some(5)) };
    assert!(is_counted(&both[1].count(standing).await.unwrap()), "it may start no turn");
    assert!(
        look::<i64>(&server, &["PTTL", &format!("test:limit:{{{}}}:budget:tokens", hex::encode(spender))]).await > 0
    );
}

#[tokio::test]
async fn a_budget_is_new_in_every_period_and_what_belongs_to_another_one_is_not_charged() {
    let server = RedisServer::start();
    let limits = gateways(&server, 1).await.remove(0);
    let before = Ledger { period: ledger(0, 0).period - 1, ..ledger(70, 100) };
    assert_eq!(limits.charge([1; 16], &[before]).await.unwrap()[0].total, 0);
    assert_eq!(limits.charge([1; 16], &[ledger(70, 100)]).await.unwrap()[0].total, 70);
    // as if it were written a period ago
    let key = format!("test:limit:{{{}}}:budget:tokens", hex::encode([1; 16]));
    let _: u32 = look(&server, &["HSET", &key, "period", "7"]).await;
    assert_eq!(limits.charge([1; 16], &[ledger(0, 100)]).await.unwrap()[0].total, 0);
}

#[tokio::test]
async fn what_a_gateway_knows_is_taken_by_a_redis_that_knows_less_and_what_it_owes_is_counted_once() {
    let server = RedisServer::start();
    let (limits, _) = gateway(&server, PATIENT, Duration::from_secs(5)).await;
    let paces = [pace("rate", HOUR, 10)];
    let knows = |ahead, untold| [Known { ahead, untold }];
    let known = knows(6 * HOUR, 0);
    let tally = limits.count(Ask { known: &known, ..ask(1, &paces, None) }).await.unwrap();
    assert!(is_counted(&tally) && tally.ahead[0] > 7 * HOUR - Duration::from_mins(1));
    // it knows more now, and a doubt about how old the knowledge is makes no difference
    for ahead in [Duration::ZERO, 6 * HOUR, 7 * HOUR + Duration::from_secs(9)] {
        let known = knows(ahead, 0);
        let full = limits.count(Ask { known: &known, ..ask(1, &paces, Some(0)) }).await.unwrap();
        assert!(matches!(full.verdict, Verdict::Full));
        assert!(full.ahead[0] <= 7 * HOUR);
    }
    // what is owed is counted also where the request itself is not
    let known = knows(Duration::ZERO, 2);
    let full = limits.count(Ask { known: &known, ..ask(1, &paces, Some(0)) }).await.unwrap();
    assert!(full.ahead[0] > 8 * HOUR + Duration::from_mins(59));
    assert!(is_counted(&limits.count(ask(1, &paces, None)).await.unwrap()), "the tenth");
    assert!(matches!(limits.count(ask(1, &paces, None)).await.unwrap().verdict, Verdict::TooFast));
    // and never makes one wait for longer than a quota that is spent
    let known = knows(Duration::ZERO, 1000);
    let spent = limits.count(Ask { known: &known, ..ask(2, &paces, None) }).await.unwrap();
    assert!(matches!(spent.verdict, Verdict::TooFast) && spent.ahead[0] <= 10 * HOUR);
}

/// Whoever looks finds what has lapsed as used up by nobody, and leaves it to those who count.
#[tokio::test]
async fn to_read_what_is_used_writes_nothing_not_even_over_what_has_lapsed() {
    let server = RedisServer::start();
    let redis = redis_at(server.url(), Duration::from_secs(10));
    let settings = Settings { redis: Some(redis), max_entry: 0, max_total: 0 };
    let store = Store::new(settings, &Arc::new(Metrics::new()), None).unwrap();
    eventually("it is connected", async || store.revocations().await.is_ok()).await;
    let key = |what: &str| format!("test:limit:{{{}}}:{what}", hex::encode([1; 16]));
    let _: i64 = look(&server, &["HSET", &key("budget:turns_1d"), "period", "7", "a gateway", "100"]).await;
    let _: i64 = look(&server, &["ZADD", &key("places"), "1", "over", "9999999999999", "held"]).await;
    let _: i64 = look(&server, &["HSET", &key("rates"), "lapsed", "1", "spent", "9999999999999999"]).await;
    let state = async || {
        let budget: Vec<String> = look(&server, &["HGETALL", &key("budget:turns_1d")]).await;
        let places: Vec<String> = look(&server, &["ZRANGE", &key("places"), "0", "-1"]).await;
        let keys: HashSet<String> = look(&server, &["KEYS", "*"]).await;
        (budget, places, keys)
    };
    let before = state().await;
    let paces = [pace("lapsed", HOUR, 2), pace("unknown", HOUR, 2), pace("spent", HOUR, 2)];
    let budgets = [("turns_1d".into(), Duration::from_hours(24)), ("steps_1d".into(), Duration::from_hours(24))];
    let account = Account { spender: [1; 16], paces: &paces, budgets: &budgets };
    let nobody = Account { spender: [2; 16], ..account };
    let used = store.usage(&[account, nobody]).await.unwrap();
    assert_eq!((used[0].in_flight, &used[0].charged[..]), (1, &[0, 0][..]));
    assert_eq!((used[0].ahead[0], used[0].ahead[1]), (Duration::ZERO, Duration::ZERO));
    assert!(used[0].ahead[2] > Duration::from_hours(24 * 365), "{used:?}");
    assert_eq!(
        (used[1].in_flight, &used[1].charged[..], &used[1].ahead[..]),
        (0, &[0, 0][..], &[Duration::ZERO; 3][..])
    );
    assert_eq!(state().await, before);
}
