use super::*;
use crate::store::{Cursor, Read};

fn data(n: usize) -> Piece {
    Piece::Data(Bytes::from(format!("piece {n};")))
}

/// A head, pieces 1 to 99, an end.
fn hundred() -> Vec<Piece> {
    let middle = (1..100).map(data);
    [Piece::Head("head".into())].into_iter().chain(middle).chain([Piece::End("end".into())]).collect()
}

async fn read_all(turns: &SharedTurns, turn: TurnId, mut cursor: Cursor) -> (Vec<Piece>, Read) {
    let mut pieces = Vec::new();
    loop {
        let mut read = turns.read(turn, &cursor).await.unwrap();
        if read.pieces.is_empty() {
            return (pieces, read);
        }
        cursor = read.cursor;
        pieces.append(&mut read.pieces);
    }
}

#[tokio::test]
async fn a_log_is_read_in_order_from_any_cursor_on_another_gateway() {
    let server = RedisServer::start();
    let (owner, other) = (gateway(&server, PATIENT).await, gateway(&server, PATIENT).await);
    let (turn, pieces) = (turn(), hundred());
    owner.claim(turn, &[], &[noted(1, "x")], HOUR).await.unwrap();
    let mut at = 0;
    for pieces in pieces.chunks(7) {
        assert_eq!(owner.append(turn, at, pieces, HOUR).await, Ok(Appended::Kept));
        at += pieces.len() as u64;
        // what is there so far can be read so far
        assert_eq!(read_all(&other, turn, Cursor::default()).await.0.len() as u64, at);
    }
    for from in 0..=pieces.len() {
        let (read, end) = read_all(&other, turn, Cursor(from as u64)).await;
        assert_eq!(read, pieces[from..]);
        assert!(end.exists && end.owned && !end.cut);
        assert_eq!(end.cursor, Cursor(pieces.len() as u64));
    }
}

#[tokio::test]
async fn a_large_log_is_read_in_parts_that_are_bounded() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let turn = turn();
    let pieces: Vec<_> = (0..64).map(|n| Piece::Data(vec![n; 50_000].into())).collect();
    for (at, pieces) in pieces.chunks(16).enumerate() {
        turns.append(turn, at as u64 * 16, pieces, HOUR).await.unwrap();
    }
    let first = turns.read(turn, &Cursor::default()).await.unwrap();
    assert_eq!(first.pieces.len(), 6, "256 KiB and what is begun");
    assert_eq!(read_all(&turns, turn, Cursor::default()).await.0, pieces);
}

#[tokio::test]
async fn a_piece_appended_twice_is_there_once() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (turn, pieces) = (turn(), hundred());
    for (from, to) in [(0, 10), (0, 10), (5, 20), (20, 101), (90, 101), (0, 101)] {
        assert_eq!(turns.append(turn, from as u64, &pieces[from..to], HOUR).await, Ok(Appended::Kept));
    }
    assert_eq!(read_all(&turns, turn, Cursor::default()).await.0, pieces);
}

#[tokio::test]
async fn a_log_that_redis_lost_is_wanted_again_and_its_reader_misses_nothing() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (turn, pieces) = (turn(), hundred());
    turns.append(turn, 0, &pieces[..50], HOUR).await.unwrap();
    let (mut read, end) = read_all(&turns, turn, Cursor::default()).await;
    let _: String = ask(&server, &["FLUSHALL"]).await;
    // not half a log
    assert_eq!(turns.append(turn, 50, &pieces[50..60], HOUR).await, Ok(Appended::Missing { from: 0 }));
    turns.heartbeat(turn, &[]).await.unwrap();
    assert!(!turns.read(turn, &end.cursor).await.unwrap().exists);
    turns.append(turn, 0, &pieces[..20], HOUR).await.unwrap();
    let waiting = turns.read(turn, &end.cursor).await.unwrap();
    assert!(waiting.exists && waiting.pieces.is_empty());
    assert_eq!(turns.append(turn, 60, &pieces[60..], HOUR).await, Ok(Appended::Missing { from: 20 }));
    turns.append(turn, 20, &pieces[20..], HOUR).await.unwrap();
    read.append(&mut read_all(&turns, turn, end.cursor).await.0);
    assert_eq!(read, pieces);
}

#[tokio::test]
async fn an_owner_that_gives_no_sign_is_not_taken_for_alive_unless_it_is_done() {
    let server = RedisServer::start();
    let turns = gateway(&server, Timing { owner: Duration::from_millis(50), ..PATIENT }).await;
    let turn = turn();
    turns.claim(turn, &[], &[noted(1, "x")], HOUR).await.unwrap();
    eventually("not owned", async || !turns.read(turn, &Cursor::default()).await.unwrap().owned).await;
    let patient = gateway(&server, PATIENT).await;
    patient.heartbeat(turn, &[]).await.unwrap();
    assert!(turns.read(turn, &Cursor::default()).await.unwrap().owned);
    turns.append(turn, 0, &[Piece::Head("head".into())], HOUR).await.unwrap();
    eventually("not owned again", async || !turns.read(turn, &Cursor::default()).await.unwrap().owned).await;
    turns.append(turn, 1, &[Piece::End("end".into())], HOUR).await.unwrap();
    let state = turns.state_key(&turn);
    eventually("the lease ran out", async || {
        let (until, now): (u64, Vec<u64>) =
            (ask(&server, &["HGET", &state, "owner"]).await, ask(&server, &["TIME"]).await);
        until < now[0] * 1000 + now[1] / 1000
    })
    .await;
    assert!(turns.read(turn, &Cursor::default()).await.unwrap().owned, "it is over");
}

#[tokio::test]
async fn a_log_over_its_bound_is_cut_and_says_so_and_has_its_end() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let turn = turn();
    let large = Piece::Data(vec![0; 4 << 20].into());
    let mut last = Appended::Kept;
    for at in 0..17 {
        last = turns.append(turn, at, std::slice::from_ref(&large), HOUR).await.unwrap();
        assert_eq!(last == Appended::Cut, at == 16, "{at}");
    }
    assert_eq!(last, Appended::Cut);
    // also what would fit would be behind a hole
    assert_eq!(turns.append(turn, 17, &[data(17)], HOUR).await, Ok(Appended::Cut));
    for _ in 0..2 {
        assert_eq!(turns.append(turn, 18, &[Piece::End("end".into())], HOUR).await, Ok(Appended::Cut));
    }
    let (pieces, end) = read_all(&turns, turn, Cursor(15)).await;
    assert_eq!(pieces, [large, Piece::End("end".into())]);
    assert!(end.cut && end.owned);
}

#[tokio::test]
async fn a_sign_of_life_keeps_a_silent_turn_longer_than_its_window() {
    let server = RedisServer::start();
    let turns = gateway(&server, PATIENT).await;
    let (turn, window) = (turn(), Duration::from_secs(2));
    turns.append(turn, 0, &[Piece::Head("head".into())], window).await.unwrap();
    let (state, log) = (turns.state_key(&turn), turns.log_key(&turn));
    for key in [&state, &log] {
        let _: i64 = ask(&server, &["PEXPIRE", key, "1000"]).await;
    }
    turns.heartbeat(turn, &[]).await.unwrap();
    for key in [&state, &log] {
        let ttl: i64 = ask(&server, &["PTTL", key]).await;
        assert!(ttl > 1000, "{key}: {ttl} ms");
    }
}
