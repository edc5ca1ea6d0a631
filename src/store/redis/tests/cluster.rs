use super::*;
use crate::store::tests::entry;
use crate::store::tests::server::cluster::Cluster;
use crate::store::{Account, LanePlace, Ledger, Piece, SharedTurns};

/// Spenders whose keys lie all over the cluster.
fn spenders() -> impl Iterator<Item = Spender> {
    (0_u128..).map(|number| (number << 64 | 7).to_be_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_clients_at_four_gateways_get_the_limit_exactly_through_a_cluster() {
    let cluster = Cluster::start();
    let mut gateways = Vec::new();
    for _ in 0..4 {
        gateways.push(gateway(redis_at(cluster.url(), PATIENT)).await);
    }
    for spender in spenders().take(10) {
        let clients: Vec<_> = (0..16)
            .map(|client: usize| {
                let limits = Arc::clone(&gateways[client % 4].1);
                tokio::spawn(async move {
                    let mut counted = 0;
                    for _ in 0..20 {
                        let tally = count(&limits, spender, 150).await.unwrap();
                        counted += u32::from(matches!(tally.verdict, Verdict::Counted(_)));
                    }
                    counted
                })
            })
            .collect();
        let mut sum = 0;
        for client in clients {
            sum += client.await.unwrap();
        }
        assert_eq!(sum, 150);
    }
    let used = cluster.nodes.iter().filter(|node| node.ask(&["DBSIZE"]).trim() != "0").count();
    assert_eq!(used, 3, "every primary has some of the keys");
}

#[tokio::test]
async fn everything_that_gateways_share_is_shared_through_a_cluster() {
    let cluster = Cluster::start();
    let (one, limits, _) = gateway(redis_at(cluster.url(), PATIENT)).await;
    let (other, _, _) = gateway(redis_at(cluster.url(), PATIENT)).await;
    for number in 0..12_u8 {
        let value = entry([number]);
        one.put([number; 32], value.clone(), HOUR);
        eventually("kept", async || other.get(&[number; 32]).await == Ok(Some(value.clone()))).await;
        one.revoke(&[[number; 32]]).await.unwrap();
    }
    assert_eq!((other.revocations().await, other.revoked().await.map(|all| all.len())), (Ok(12), Ok(12)));

    let budgets = [1, 2].map(|days| Ledger {
        name: format!("tokens_{days}d").into(),
        per: Duration::from_hours(24 * days),
        period: 0,
        own: 7,
        most: 100,
    });
    for spender in spenders().take(12) {
        let paces = [Pace { name: "a".into(), period: HOUR, burst: 9 }];
        let ask = Ask { spender, paces: &paces, known: &[], most: Some(3), budgets: &budgets, may_stand: false };
        assert!(matches!(limits.count(ask).await.unwrap().verdict, Verdict::Counted(Some(_))));
        limits.charge(spender, &budgets).await.unwrap();
        let names = budgets.each_ref().map(|budget| (budget.name.clone(), budget.per));
        let used = other.usage(&[Account { spender, paces: &paces, budgets: &names }]).await.unwrap();
        assert_eq!((used[0].charged.len(), used[0].ahead.len()), (2, 1));
    }

    let turns = [one.shared_turns().unwrap(), other.shared_turns().unwrap()];
    for number in 0..12_u8 {
        let tag = [number.wrapping_mul(37); 32];
        let turn = SharedTurns::turn_id(&tag).unwrap();
        let (exclusive, latest) = ([([number; 32], Bytes::new())], [([number + 100; 32], Bytes::new())]);
        turns[0].claim(turn, &exclusive, &latest, HOUR).await.unwrap();
        turns[0].also(&tag, turn, &[([number + 50; 32], Bytes::new())], HOUR).await.unwrap();
        assert_eq!(turns[0].begin(turn).await, Ok(true));
        turns[0].append(turn, 0, &[Piece::Head(Bytes::from_static(b"head"))], 1024, HOUR).await.unwrap();
        assert_eq!(turns[0].heartbeat(turn, &[[number; 32], [number + 50; 32]]).await, Ok(true));
        assert_eq!(turns[1].find(&tag, &[number + 50; 32]).await.unwrap()[0].turn, turn);
        assert_eq!(turns[1].read(turn, &Default::default()).await.unwrap().pieces.len(), 1);
        let lane = [number; 32];
        // no lane is given out for a while after the cluster began
        eventually("the lane is held", async || {
            matches!(turns[0].lane_enter(&lane, turn, 1).await, Ok(LanePlace::Held { .. }))
        })
        .await;
        turns[0].lane_leave(&lane, turn, true).await.unwrap();
        turns[0].release(turn, &[[number; 32]]).await.unwrap();
        turns[0].forget(turn, &[[number + 50; 32], [number + 100; 32]]).await.unwrap();
    }
}

/// Moves the slot of `spender`'s keys to another primary, and asks in every state between.
#[tokio::test]
async fn a_slot_that_moves_to_another_node_is_followed() {
    let cluster = Cluster::start();
    let (store, limits, _) = gateway(redis_at(cluster.url(), PATIENT)).await;
    let spender = [9; 16];
    count(&limits, spender, 10).await.unwrap();
    let key = format!("test:limit:{{{}}}:rates", hex::encode(spender));
    let from = cluster.of(&key);
    let to = cluster.nodes.iter().find(|node| node.port() != from.port()).unwrap();
    let slot = from.ask(&["CLUSTER", "KEYSLOT", &key]).trim().to_owned();
    let id = |node: &RedisServer| node.ask(&["CLUSTER", "MYID"]).trim().to_owned();
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    from.ask(&["MIGRATE", "127.0.0.1", &to.port().to_string(), &key, "0", "5000"]);
    // on its way, so that nobody counts; the connection is not to blame
    assert!(matches!(count(&limits, spender, 10).await, Err(StoreError::Reply)));
    assert_eq!(store.health(), Health::Ok);
    for node in [to, from] {
        node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
    assert_eq!(counted(&limits, spender, 10).await, 9, "each was counted once, wherever");
    assert_eq!(store.health(), Health::Ok);
    assert_eq!(to.ask(&["EXISTS", &key]).trim(), "1");
}

#[tokio::test]
async fn one_primary_that_hangs_is_waited_for_by_a_few_and_not_hidden_by_the_others() {
    let cluster = Cluster::start();
    let (store, limits, metrics) = gateway(redis_at(cluster.url(), HASTY)).await;
    cluster.nodes[1].hang();
    // a third of them are where it hangs
    let waited = waits_until_down(&limits, spenders()).await;
    assert!((1..=6).contains(&waited), "{waited} requests waited");
    eventually(
        "nothing goes on with a part of it",
        async || matches!(store.health(), Health::Degraded(why) if why.contains("values, turns and limits")),
    )
    .await;
    cluster.nodes[1].wake();
    eventually("all are back", async || store.health() == Health::Ok).await;
    cluster.is_whole();
    let nobody_waits = async || {
        let before = crate::store::tests::errors(&metrics, "timeout");
        for spender in spenders().take(20) {
            if count(&limits, spender, 1000).await.is_err() {
                return false;
            }
        }
        crate::store::tests::errors(&metrics, "timeout") <= before
    };
    eventually("all slots are counted in", nobody_waits).await;
}

#[tokio::test]
async fn a_primary_that_dies_is_replaced_by_its_replica_and_forgets_nothing() {
    let mut cluster = Cluster::start_with(1);
    let (store, limits, _) = gateway(redis_at(cluster.url(), PATIENT)).await;
    let all: Vec<Spender> = spenders().take(24).collect();
    for spender in &all {
        assert_eq!(counted(&limits, *spender, 3).await, 3);
    }
    replicated(&cluster.nodes[0], &cluster.nodes[3]).await;
    cluster.nodes[0].kill();
    for spender in &all {
        // at once: it is gone, nobody waits for what is not there
        let _ = count(&limits, *spender, 3).await;
    }
    eventually("all are back", async || {
        cluster.nodes[3].ask(&["ROLE"]).starts_with("master") && store.health() == Health::Ok
    })
    .await;
    for spender in &all {
        eventually("it is counted where it is now", async || {
            matches!(count(&limits, *spender, 3).await, Ok(Tally { verdict: Verdict::TooFast, .. }))
        })
        .await;
    }
    assert_ne!(cluster.nodes[3].ask(&["DBSIZE"]).trim(), "0");
}
