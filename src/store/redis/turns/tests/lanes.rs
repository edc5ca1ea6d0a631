use std::sync::Mutex;

use super::*;
use crate::store::{Abandoned, LanePlace};

const LANE: Index = [7; 32];
const SHORT: Duration = Duration::from_millis(50);

/// Asks until the lane is `turn`'s.
async fn held(turns: &SharedTurns, turn: TurnId) -> (u64, Vec<Abandoned>) {
    let held = Mutex::new(None);
    eventually("the lane is held", async || match turns.lane_enter(&LANE, turn, 100).await.unwrap() {
        LanePlace::Held { token, abandoned } => {
            *held.lock().unwrap() = Some((token, abandoned));
            true
        }
        LanePlace::Waiting { .. } => false,
        full => panic!("{full:?}"),
    })
    .await;
    held.into_inner().unwrap().unwrap()
}

async fn waits(turns: &SharedTurns, turn: TurnId, behind: u32) {
    assert_eq!(turns.lane_enter(&LANE, turn, 100).await, Ok(LanePlace::Waiting { ahead: behind }));
}

/// A holder after one that abandoned the lane, a waiter; and a lane that was left.
pub(super) async fn all_that_a_lane_can_hold(server: &RedisServer) {
    let (turns, hasty) = (gateway(server, PATIENT).await, gateway(server, Timing { lease: SHORT, ..PATIENT }).await);
    held(&hasty, turn()).await;
    let (_, abandoned) = held(&turns, turn()).await;
    assert_eq!(abandoned.len(), 1);
    waits(&turns, turn(), 1).await;
    let (idle, turn) = ([8; 32], turn());
    turns.lane_enter(&idle, turn, 0).await.unwrap();
    turns.lane_leave(&idle, turn, true).await.unwrap();
}

#[tokio::test]
async fn who_comes_first_over_all_gateways_is_served_first() {
    let server = RedisServer::start();
    let mut gateways = Vec::new();
    for _ in 0..4 {
        gateways.push(gateway(&server, PATIENT).await);
    }
    let first = turn();
    held(&gateways[0], first).await;
    let turns: Vec<_> = (0..20).map(|_| turn()).collect();
    for (n, turn) in turns.iter().enumerate() {
        waits(&gateways[n % 4], *turn, u32::try_from(n).unwrap() + 1).await;
    }
    let served = Arc::new(Mutex::new(Vec::new()));
    let waiting: Vec<_> = (turns.iter().copied().enumerate().rev())
        .map(|(n, turn)| {
            let (gateway, served) = (Arc::clone(&gateways[(n + 1) % 4]), Arc::clone(&served));
            tokio::spawn(async move {
                held(&gateway, turn).await;
                served.lock().unwrap().push(turn);
                gateway.lane_leave(&LANE, turn, true).await.unwrap();
            })
        })
        .collect();
    gateways[3].lane_leave(&LANE, first, true).await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(*served.lock().unwrap(), turns);
}

#[tokio::test]
async fn lanes_of_others_do_not_wait_and_asking_again_changes_nothing() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (one, other) = (turn(), turn());
    let (token, _) = held(&turns, one).await;
    assert_eq!(held(&turns, one).await, (token, vec![]));
    assert!(matches!(turns.lane_enter(&[8; 32], other, 0).await, Ok(LanePlace::Held { .. })));
}

#[tokio::test]
async fn a_full_lane_takes_nobody_more_until_somebody_leaves() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (holder, waiter, late) = (turn(), turn(), turn());
    held(&turns, holder).await;
    assert_eq!(turns.lane_enter(&LANE, waiter, 1).await, Ok(LanePlace::Waiting { ahead: 1 }));
    for _ in 0..2 {
        assert_eq!(turns.lane_enter(&LANE, late, 1).await, Ok(LanePlace::Full { waiting: 1 }));
    }
    // who has a place keeps it
    assert_eq!(turns.lane_enter(&LANE, waiter, 1).await, Ok(LanePlace::Waiting { ahead: 1 }));
    turns.lane_leave(&LANE, waiter, true).await.unwrap();
    assert_eq!(turns.lane_enter(&LANE, late, 1).await, Ok(LanePlace::Waiting { ahead: 1 }));
    turns.lane_leave(&LANE, holder, true).await.unwrap();
    held(&turns, late).await;
}

#[tokio::test]
async fn a_lapsed_lease_is_handed_on_and_told_until_the_lane_is_left() {
    let server = RedisServer::start();
    let hasty = gateway(&server, Timing { lease: SHORT, ..PATIENT }).await;
    let patient = gateway(&server, PATIENT).await;
    let (one, two, three, four) = (turn(), turn(), turn(), turn());
    let (first, _) = held(&hasty, one).await;
    assert!(hasty.lane_renew(&LANE, one, first, b"run-1").await.unwrap());
    let (second, abandoned) = held(&hasty, two).await;
    assert!(second > first);
    assert_eq!(abandoned, [Abandoned { turn: one, since_ms: first / 1000, note: "run-1".into() }]);
    assert!(!hasty.lane_renew(&LANE, one, first, b"run-1").await.unwrap(), "it is another's");
    // the second leaves no better: nobody has seen to the first
    let (third, abandoned) = held(&patient, three).await;
    assert!(third > second);
    assert_eq!(abandoned.iter().map(|left| left.turn).collect::<Vec<_>>(), [two, one]);
    assert_eq!(abandoned[0].note, "");
    // told again, should the reply have been lost
    assert_eq!(held(&patient, three).await, (third, abandoned));
    // late, and of no effect
    patient.lane_leave(&LANE, one, true).await.unwrap();
    waits(&patient, four, 1).await;
    patient.lane_leave(&LANE, three, true).await.unwrap();
    assert_eq!(held(&patient, four).await.1, []);
}

#[tokio::test]
async fn a_lease_that_is_renewed_does_not_lapse() {
    let server = RedisServer::start();
    let hasty = gateway(&server, Timing { lease: SHORT, ..PATIENT }).await;
    let patient = gateway(&server, PATIENT).await;
    let (one, two) = (turn(), turn());
    let (token, _) = held(&hasty, one).await;
    assert!(patient.lane_renew(&LANE, one, token, b"").await.unwrap());
    let now = async || ask::<Vec<u64>>(&server, &["TIME"]).await.into_iter().fold(0, |us, n| us * 1_000_000 + n);
    eventually("the first lease is over", async || now().await > token + 60_000).await;
    waits(&patient, two, 1).await;
}

#[tokio::test]
async fn a_token_never_comes_again() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let mut last = 0;
    for n in 0..200 {
        let turn = turn();
        let (token, _) = held(&turns, turn).await;
        assert!(token > last, "{token} after {last}");
        last = token;
        turns.lane_leave(&LANE, turn, true).await.unwrap();
        assert!(!turns.lane_renew(&LANE, turn, token, b"").await.unwrap(), "what was left is not taken back");
        if n % 3 == 0 {
            let _: i64 = ask(&server, &["DEL", &turns.lane_key(&LANE)]).await;
        }
    }
    // also if the clock of Redis is behind
    let ahead = (last + 3_600_000_000).to_string();
    let _: i64 = ask(&server, &["HSET", &turns.lane_key(&LANE), "token", &ahead]).await;
    assert_eq!(held(&turns, turn()).await.0, last + 3_600_000_001);
}

#[tokio::test]
async fn a_waiter_that_is_gone_holds_up_nobody() {
    let server = RedisServer::start();
    let turns = gateway(&server, Timing { presence: SHORT, ..PATIENT }).await;
    let (holder, gone, next) = (turn(), turn(), turn());
    held(&turns, holder).await;
    waits(&turns, gone, 1).await;
    turns.lane_enter(&LANE, next, 100).await.unwrap();
    turns.lane_leave(&LANE, holder, true).await.unwrap();
    held(&turns, next).await;
}

#[tokio::test]
async fn an_idle_lane_is_small_and_gone_within_a_minute() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let turn = turn();
    let (token, _) = held(&turns, turn).await;
    turns.lane_renew(&LANE, turn, token, &[b'n'; 64]).await.unwrap();
    turns.lane_leave(&LANE, turn, true).await.unwrap();
    let keys: Vec<String> = ask(&server, &["KEYS", "test:lane:*"]).await;
    let of_lane: Vec<_> = keys.iter().filter(|key| !key.ends_with(":epoch")).collect();
    assert_eq!(of_lane, [&turns.lane_key(&LANE)]);
    let bytes: u64 = ask(&server, &["MEMORY", "USAGE", of_lane[0]]).await;
    assert!(bytes <= 512, "{bytes}");
    let ttl: i64 = ask(&server, &["PTTL", of_lane[0]]).await;
    assert!((1..60_000).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn after_redis_came_back_empty_a_holder_takes_its_lane_back_before_a_waiter_gets_it() {
    let mut server = RedisServer::start();
    let timing = Timing { grace: Duration::from_secs(3), ..PATIENT };
    let (one, other) = (gateway(&server, timing).await, gateway(&server, timing).await);
    let (holder, waiter) = (turn(), turn());
    let (token, _) = held(&one, holder).await;
    waits(&other, waiter, 1).await;
    let before = other.connected_since();
    server.kill();
    server.restart();
    other.reconnected(before).await;
    // free as far as Redis knows
    waits(&other, waiter, 0).await;
    // and whoever starts just now does not know better
    let newcomer = gateway(&server, timing).await;
    waits(&newcomer, turn(), 1).await;
    eventually("taken back", async || one.lane_renew(&LANE, holder, token, b"").await == Ok(true)).await;
    waits(&other, waiter, 1).await;
    one.lane_leave(&LANE, holder, true).await.unwrap();
    assert!(held(&other, waiter).await.0 > token);
    assert_eq!(one.lane_renew(&LANE, holder, token, b"").await, Ok(false));
}

#[tokio::test]
async fn a_lane_is_not_given_out_right_after_redis_lost_its_data_or_became_another() {
    let server = RedisServer::start();
    let timing = Timing { grace: LONG, ..PATIENT };
    // for this one the grace is over at once
    let turns = gateway(&server, PATIENT).await;
    let (holder, waiter) = (turn(), turn());
    held(&turns, holder).await;
    let careful = gateway(&server, timing).await;
    waits(&careful, waiter, 1).await;
    let _: String = ask(&server, &["FLUSHALL"]).await;
    waits(&careful, waiter, 0).await;

    // another server, with what this one had a while ago
    let server = RedisServer::start();
    held(&*gateway(&server, PATIENT).await, holder).await;
    let epoch = "test:lane:{all}:epoch";
    let _: i64 = ask(&server, &["HSET", epoch, "run", "other"]).await;
    let _: i64 = ask(&server, &["DEL", &turns.lane_key(&LANE)]).await;
    let careful = gateway(&server, timing).await;
    waits(&careful, waiter, 0).await;
    let run: String = ask(&server, &["HGET", epoch, "run"]).await;
    assert_eq!(run.len(), 40, "{run}");
}

#[tokio::test]
async fn what_redis_restored_from_long_ago_does_not_take_a_lane_from_its_holder() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (former, holder) = (turn(), turn());
    held(&turns, former).await;
    let key = turns.lane_key(&LANE);
    let restored: Vec<String> = ask(&server, &["HMGET", &key, "token", "until"]).await;
    turns.lane_leave(&LANE, former, true).await.unwrap();
    let (token, _) = held(&turns, holder).await;
    let _: i64 = ask(&server, &["DEL", &key]).await;
    let lost = ["HSET", &key, "turn", "a former turn...", "token", &restored[0], "until", &restored[1]];
    let _: i64 = ask(&server, &lost).await;
    assert_eq!(turns.lane_renew(&LANE, holder, token, b"").await, Ok(true));
    assert_eq!(held(&turns, holder).await, (token, vec![]));
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_turn_its_budget_and_no_more() {
    let server = RedisServer::start();
    let redis = redis_at(server.url(), Duration::from_millis(1));
    let settings = Settings { redis: Some(redis), max_entry: 0, max_total: 0 };
    let turns = Store::new(settings, &Arc::new(Metrics::new()), None).unwrap().shared_turns().unwrap();
    turns.reconnected(None).await;
    server.hang();
    loop {
        match turns.lane_enter(&LANE, turn(), 1).await {
            Err(StoreError::Timeout) => {}
            Err(StoreError::Down | StoreError::Lost) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(!turns.is_up());
    server.wake();
    eventually("back", async || turns.lane_enter(&LANE, turn(), 1).await.is_ok()).await;
}
