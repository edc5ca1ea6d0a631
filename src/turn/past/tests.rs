//! What is packed is found, given again, given up and forgotten.

use super::tape::PIECE;
use super::*;
use crate::turn::log::{Ended, Head, Log};

fn kept(message: u8, body: &[u8]) -> Kept {
    let log = Log::new(1 << 20);
    let head = Head { status: http::StatusCode::OK, headers: http::HeaderMap::new(), exchange: Default::default() };
    log.fill(head, body);
    log.end(Ended::Whole);
    let now = Instant::now();
    Kept {
        message: [message; 32],
        key: "a".into(),
        sends: Sends::Agent,
        streams: false,
        began: now,
        over: now,
        facts: Facts::default(),
        exchange: Exchange::default(),
        log: log.keep().unwrap(),
        more: None,
    }
}

fn stream(message: u8, newest: u8) -> Kept {
    let (newest, by_run) = (Some([newest; 32]), Some([100 + message; 32]));
    let more = More { newest, is_newest: true, by_run, ..More::default() };
    Kept { streams: true, more: Some(Box::new(more)), ..kept(message, b"data: {}\n\n") }
}

fn body(past: &mut Past, number: Number) -> Option<Vec<u8>> {
    let answer = past.turn(number)?.log.keep()?.answer?;
    Some(answer.body.concat())
}

/// The lengths of the answers to this message, the latest first.
fn lengths(past: &mut Past, message: u8) -> Vec<Option<usize>> {
    let numbers: Vec<Number> = past.alike(&[message; 32]).map(|(number, _)| number).collect();
    numbers.into_iter().map(|number| body(past, number).map(|body| body.len())).collect()
}

#[test]
fn those_with_one_message_are_told_from_the_latest_on_and_no_others() {
    let mut past = Past::default();
    for (message, body) in [(1, &b"1"[..]), (2, b"22"), (1, b"333"), (3, b"4444"), (1, b"55555")] {
        past.push(kept(message, body));
    }
    assert_eq!(lengths(&mut past, 1), [Some(5), Some(3), Some(1)]);
    assert_eq!((lengths(&mut past, 2), lengths(&mut past, 4)), (vec![Some(2)], vec![]));
    past.forget_oldest();
    assert_eq!((lengths(&mut past, 1), lengths(&mut past, 2)), (vec![Some(5), Some(3)], vec![Some(2)]));
}

#[test]
fn who_comes_at_one_time_follows_one_turn_and_it_is_told_when_somebody_has_all_of_it() {
    let mut past = Past::default();
    past.push(kept(1, b"answer"));
    let before = past.bytes();
    let (one, other) = (past.turn(0).unwrap(), past.turn(0).unwrap());
    assert!(Arc::ptr_eq(&one, &other));
    let left = one.log.enter().unwrap();
    assert!(!past.find(&[1; 32]).unwrap().1.is_abandoned(), "somebody reads it");
    one.log.leave(left);
    drop((one, other));
    assert!(past.find(&[1; 32]).unwrap().1.is_abandoned(), "who left has not read it");
    let (again, bytes) = (past.turn(0).unwrap(), past.bytes());
    assert!(bytes > before, "what stays of it is counted");
    let reader = again.log.enter().unwrap();
    assert_eq!(again.log.whole(reader).unwrap(), "answer");
    again.log.leave(reader);
    drop(again);
    assert!(!past.find(&[1; 32]).unwrap().1.is_abandoned());
    for _ in 0..100 {
        past.turn(0).unwrap();
    }
    assert_eq!((past.bytes(), past.tape.pieces.len()), (bytes, 1), "being given again and again takes no more");
    past.forget_oldest();
    assert_eq!(past.bytes(), 0);
}

#[test]
fn what_is_forgotten_leaves_nothing_behind() {
    let mut past = Past { first: Number::MAX - 3, ..Past::default() };
    for round in 0..10_u8 {
        past.push(kept(round % 3, &[round; 100]));
        past.push(stream(50 + round, 7));
    }
    assert_eq!(past.streams(), 10);
    assert_eq!(past.find(&[7; 32]).unwrap().1.message(), &[59; 32]);
    past.supersede(&[7; 32], Instant::now());
    assert!(past.find(&[7; 32]).is_none());
    assert_eq!(past.find(&[159; 32]).unwrap().1.message(), &[59; 32], "by its run it is found still");
    while past.forget_oldest() {}
    assert_eq!((past.latest.len(), past.bytes(), past.streams(), past.stripped), (0, 0, 0, 0));
    assert!(past.tape.pieces.len() <= 1);
}

#[test]
fn a_stream_that_began_before_the_newest_does_not_become_it() {
    let mut past = Past::default();
    let (before, after) = (stream(1, 7), stream(2, 7));
    assert!(before.began <= after.began);
    let before = Kept { began: after.began.checked_sub(Duration::from_secs(1)).unwrap(), ..before };
    past.push(after);
    past.push(before);
    assert_eq!(past.find(&[7; 32]).unwrap().1.message(), &[2; 32]);
}

#[test]
fn the_oldest_answers_are_given_up_first_and_what_had_them_is_known_still() {
    let mut past = Past::default();
    for message in 0..4 {
        past.push(kept(message, &[message; 1000]));
    }
    let one = past.answers() / 4;
    assert!(one >= 1000 && past.give_up_an_answer() && past.give_up_an_answer());
    assert_eq!(past.answers(), 2 * one);
    let lengths = [0, 1, 2, 3].map(|message| lengths(&mut past, message));
    assert_eq!(lengths, [[None], [None], [Some(1000)], [Some(1000)]]);
    past.forget_oldest();
    assert!(past.give_up_an_answer() && past.give_up_an_answer() && !past.give_up_an_answer());
    assert_eq!((past.answers(), past.len()), (0, 3));
    assert!(past.turn(1).unwrap().log.enter().is_none(), "it is told that there is no answer any more");
}

#[test]
fn answers_of_any_length_are_read_as_they_were_written_until_they_are_given_up() {
    let mut past = Past::default();
    let written = |number: usize| -> Vec<u8> { (0..number * 777).map(|at| (at + number) as u8).collect() };
    for number in 0..60 {
        past.push(kept(1, &written(number)));
    }
    let is_there = |past: &mut Past, number| body(past, number) == Some(written(number as usize));
    assert!((0..60).all(|number| is_there(&mut past, number)));
    let before = past.tape.pieces.len();
    for given_up in 1..60 {
        assert!(past.give_up_an_answer());
        assert_eq!(body(&mut past, given_up), None);
        assert!((given_up + 1..60).all(|number| is_there(&mut past, number)), "{given_up}");
    }
    assert!(!past.give_up_an_answer());
    assert!(past.tape.pieces.len() < before / 10, "what is given up is given back");
    assert_eq!(past.tape.pieces.iter().map(Vec::capacity).max(), Some(PIECE));
}
