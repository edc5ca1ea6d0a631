mod lanes;
mod logs;

use std::collections::HashSet;

use ::redis::{Client, FromRedisValue, cmd};

use super::*;
use crate::store::tests::{eventually, redis_at, server::RedisServer};
use crate::store::{Appended, Piece, Settings, Store};

const TAG: Index = [0xab; 32];
/// Bytes of a log at most.
const MOST: usize = 64 << 20;
const HOUR: Duration = Duration::from_hours(1);
const LONG: Duration = Duration::from_mins(1);
/// So long that nothing lapses in a test that is not about it.
const PATIENT: Timing = Timing { lease: LONG, presence: LONG, owner: LONG, grace: Duration::ZERO };

/// A gateway's view of `server`, connected.
async fn gateway(server: &RedisServer, timing: Timing) -> Arc<SharedTurns> {
    let redis = redis_at(server.url(), Duration::from_secs(5));
    let settings = Settings { redis: Some(redis), max_entry: 0, max_total: 0 };
    let store = Store::new(settings, &Arc::new(Metrics::new()), None).unwrap();
    let turns = store.shared_turns_with(timing).unwrap();
    turns.reconnected(None).await;
    turns
}

fn turn() -> TurnId {
    SharedTurns::turn_id(&TAG).unwrap()
}

fn index(of: u8) -> Index {
    [of; 32]
}

fn noted(of: u8, note: &'static str) -> (Index, Bytes) {
    (index(of), Bytes::from_static(note.as_bytes()))
}

/// Asks Redis beside the gateways.
async fn ask<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (name, arguments) = words.split_first().unwrap();
    cmd(name).arg(arguments).query_async(&mut connection).await.unwrap()
}

#[tokio::test]
async fn of_fifty_claims_at_once_one_wins_and_the_others_are_told_of_it() {
    let server = RedisServer::start();
    let mut gateways = Vec::new();
    for _ in 0..4 {
        gateways.push(gateway(&server, PATIENT).await);
    }
    let claims: Vec<_> = (0..50)
        .map(|n| {
            let (turns, turn) = (Arc::clone(&gateways[n % 4]), turn());
            tokio::spawn(async move {
                let claimed = turns.claim(turn, &[noted(1, "a"), noted(2, "b")], &[noted(3, "c")], HOUR).await;
                (turn, claimed.unwrap())
            })
        })
        .collect();
    let (mut won, mut told) = (Vec::new(), HashSet::new());
    for claim in claims {
        match claim.await.unwrap() {
            (turn, Claim::New) => won.push(turn),
            (_, Claim::Taken(found)) => {
                assert_eq!(found.note, "a");
                told.insert(found.turn);
            }
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(told, HashSet::from([won[0]]));
}

#[tokio::test]
async fn a_claim_takes_all_indexes_or_none_and_is_the_same_made_twice() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (one, other) = (turn(), turn());
    for _ in 0..2 {
        assert_eq!(turns.claim(one, &[noted(1, "x")], &[noted(2, "y")], HOUR).await, Ok(Claim::New));
    }
    let one_found = |note| Found { turn: one, note: Bytes::from_static(note) };
    assert_eq!(turns.find(&TAG, &index(2)).await, Ok(vec![one_found(b"y")]));
    let taken = turns.claim(other, &[noted(3, "x"), noted(1, "z")], &[noted(2, "z")], HOUR).await;
    assert_eq!(taken, Ok(Claim::Taken(one_found(b"x"))));
    assert_eq!(turns.find(&TAG, &index(3)).await, Ok(vec![]));
    assert_eq!(turns.find(&TAG, &index(2)).await, Ok(vec![one_found(b"y")]));
    assert!(!turns.read(other, &Default::default()).await.unwrap().exists);
    assert!(turns.read(one, &Default::default()).await.unwrap().owned);
}

#[tokio::test]
async fn the_newest_of_many_alike_is_found_first_and_no_more_than_four() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let mut claimed = Vec::new();
    for _ in 0..6 {
        claimed.push(turn());
        turns.claim(*claimed.last().unwrap(), &[], &[noted(1, "x")], HOUR).await.unwrap();
    }
    let found: Vec<_> = turns.find(&TAG, &index(1)).await.unwrap().into_iter().map(|found| found.turn).collect();
    claimed.reverse();
    assert_eq!(found, claimed[..MOST_FOUND]);
}

#[tokio::test]
async fn a_turn_is_found_by_what_is_learned_later_and_not_when_it_is_forgotten() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (one, other, run) = (turn(), turn(), index(9));
    turns.claim(one, &[noted(1, "x")], &[noted(2, "x")], HOUR).await.unwrap();
    turns.append(one, 0, &[Piece::Head("head".into())], MOST, HOUR).await.unwrap();
    turns.also(&run, one, &[(run, Bytes::new())], HOUR).await.unwrap();
    assert_eq!(turns.find(&run, &run).await.unwrap()[0].turn, one);

    turns.claim(other, &[], &[noted(2, "y")], HOUR).await.unwrap();
    turns.release(one, &[index(1)]).await.unwrap();
    assert_eq!(turns.find(&TAG, &index(1)).await, Ok(vec![]));
    assert!(turns.read(one, &Default::default()).await.unwrap().exists);
    turns.forget(one, &[index(1), index(2)]).await.unwrap();
    let found = turns.find(&TAG, &index(2)).await.unwrap();
    assert_eq!(found, [Found { turn: other, note: "y".into() }], "what is another's stays");
    let read = turns.read(one, &Default::default()).await.unwrap();
    assert!(!read.exists && read.pieces.is_empty());
}

#[tokio::test]
async fn nothing_stays_in_redis_for_ever() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let window = Duration::from_millis(300);
    let (one, other) = (turn(), turn());
    turns.claim(one, &[noted(1, "x")], &[noted(2, "x")], window).await.unwrap();
    turns.also(&TAG, one, &[noted(3, "x")], window).await.unwrap();
    turns.append(one, 0, &[Piece::Head("head".into()), Piece::End("end".into())], MOST, window).await.unwrap();
    turns.heartbeat(one, &[]).await.unwrap();
    // published without a claim, as after a loss
    turns.append(other, 0, &[Piece::Head("head".into())], MOST, window).await.unwrap();
    lanes::all_that_a_lane_can_hold(&server).await;
    let keys: Vec<String> = ask(&server, &["KEYS", "*"]).await;
    assert!(keys.len() >= 10, "{keys:?}");
    for key in &keys {
        assert_eq!(key.matches('{').count(), 1, "{key} has a hash tag");
        let ttl: i64 = ask(&server, &["PTTL", key]).await;
        // -2: gone already
        assert!(ttl > 0 || ttl == -2, "{key} stays for ever");
    }
    eventually("turns are gone", async || {
        let keys: Vec<String> = ask(&server, &["KEYS", "test:turn:*"]).await;
        keys.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_forgot_the_scripts_is_given_them_again() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    turns.claim(turn(), &[noted(1, "x")], &[], HOUR).await.unwrap();
    let _: String = ask(&server, &["SCRIPT", "FLUSH"]).await;
    assert!(matches!(turns.claim(turn(), &[noted(1, "x")], &[], HOUR).await, Ok(Claim::Taken(_))));
}

#[tokio::test]
async fn a_connection_made_again_is_told_and_none_is_missed() {
    let mut server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let first = turns.reconnected(None).await;
    assert_eq!(turns.connected_since(), Some(first));
    server.kill();
    eventually("lost", async || !turns.is_up()).await;
    assert_eq!(turns.connected_since(), None);
    assert_eq!(turns.heartbeat(turn(), &[]).await, Err(StoreError::Down));
    server.restart();
    eventually("back", async || turns.is_up()).await;
    // asked for after it came
    let second = turns.reconnected(Some(first)).await;
    assert!(second > first);
    assert_eq!(turns.connected_since(), Some(second));
}

#[tokio::test]
async fn a_reload_that_keeps_redis_keeps_what_is_shared() {
    let server = RedisServer::start();
    let redis =
        |prefix: &str| RedisSettings { prefix: prefix.into(), ..redis_at(server.url(), Duration::from_secs(5)) };
    let metrics = Arc::new(Metrics::new());
    let store = |prefix, max_entry, previous| {
        let settings = Settings { redis: Some(redis(prefix)), max_entry, max_total: 0 };
        Store::new(settings, &metrics, previous).unwrap()
    };
    let before = store("a:", 1, None);
    let shared = before.shared_turns().unwrap();
    let after = store("a:", 2, Some(&before)).shared_turns().unwrap();
    assert!(Arc::ptr_eq(&shared, &after));
    let other = store("b:", 2, Some(&before)).shared_turns().unwrap();
    assert!(!Arc::ptr_eq(&shared, &other));
    let memory = Settings { redis: None, max_entry: 1, max_total: 1 };
    assert!(Store::new(memory, &metrics, Some(&before)).unwrap().shared_turns().is_none());
}
