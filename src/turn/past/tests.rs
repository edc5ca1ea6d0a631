//! What is over is found, given again, given up and forgotten.

use super::tape::PIECE;
use super::*;
use crate::letta::reply::Usage;
use crate::telemetry::turn::Outcome;
use crate::turn::log::{Ended, Head};
use crate::turn::marks::{self, Marks, Target};
use crate::turn::shared::Beginning;

/// Room for all, in one chapter.
fn roomy() -> Settings {
    Settings::default()
}

/// Each turn in a chapter of its own, and each answer to be given up alone.
fn narrow() -> Settings {
    Settings { max_total: 0, ..Settings::default() }
}

/// Each turn in a chapter of its own, but there is room.
fn hasty() -> Settings {
    Settings { window: Duration::ZERO, ..Settings::default() }
}

fn turn(message: u8, streams: bool, began: Instant) -> Arc<Turn> {
    let marks = Marks { message: [message; 32], otid: None, idempotency: None };
    let target = Target::Conversation("conv-1".into());
    let (sends, key) = (Sends::Conversation, "a".into());
    let beginning = Beginning { marks, target, sends, key: &key, streams, is_retry: false, began };
    Turn::new(beginning, 1 << 20, Duration::from_secs(60), false).unwrap()
}

fn head() -> Head {
    Head { status: http::StatusCode::OK, headers: http::HeaderMap::new(), exchange: Exchange::default() }
}

fn whole(head: Head, body: &[u8]) -> Ending {
    Ending::Whole { answer: Box::new(Whole { head, body: Bytes::copy_from_slice(body) }), is_known_to_all: false }
}

fn answered(past: &mut Past, message: u8, body: &[u8], settings: &Settings) -> Number {
    let turn = turn(message, false, Instant::now());
    past.push(&turn, whole(head(), body), Instant::now(), settings);
    turn.log.number().unwrap()
}

/// A stream of a run of its own, and what the newest turn of its conversation is found by.
fn streamed(past: &mut Past, message: u8, began: Instant, settings: &Settings) -> Index {
    let turn = turn(message, true, began);
    turn.learn_run(&format!("run-{message}"));
    turn.log.append(b"data: {}\n\n");
    past.push(&turn, Ending::Logged(Ended::Whole), Instant::now(), settings);
    turn.newest()
}

fn body(past: &Past, number: Number) -> Option<Vec<u8>> {
    Some(past.kept(number)?.answer?.body.concat())
}

/// The lengths of the answers to this message, the latest first.
fn lengths(past: &Past, message: u8) -> Vec<Option<usize>> {
    let numbers: Vec<Number> = past.alike(&[message; 32]).map(|(number, ..)| number).collect();
    numbers.into_iter().map(|number| body(past, number).map(|body| body.len())).collect()
}

fn is_abandoned(past: &Past, message: u8) -> bool {
    past.alike(&[message; 32]).next().unwrap().1
}

#[test]
fn those_with_one_message_are_told_from_the_latest_on_and_no_others() {
    for settings in [roomy(), narrow()] {
        let mut past = Past::default();
        for (message, body) in [(1, &b"1"[..]), (2, b"22"), (1, b"333"), (3, b"4444"), (1, b"55555")] {
            answered(&mut past, message, body, &settings);
        }
        assert_eq!(lengths(&past, 1), [Some(5), Some(3), Some(1)]);
        assert_eq!((lengths(&past, 2), lengths(&past, 4)), (vec![Some(2)], vec![]));
    }
}

#[test]
fn a_turn_is_found_as_soon_as_it_is_over_whether_it_is_in_its_chapters_table_or_not() {
    let mut past = Past::default();
    let mut numbers = [const { Vec::new() }; 3];
    let mut named = [None; 3];
    for turn in 0..FEW + 3 * chapter::TABLED_AT_ONCE {
        let (message, is_named) = (turn % 5 % 3, turn % 47 == 0);
        match u8::try_from(message).unwrap() {
            message if is_named => drop(streamed(&mut past, message, Instant::now(), &roomy())),
            message => drop(answered(&mut past, message, b"", &roomy())),
        }
        let number = *past.numbers().last().unwrap();
        numbers[message].insert(0, number);
        named[message] = if is_named { Some(number) } else { named[message] };
        for (message, (numbers, named)) in (0u8..).zip(numbers.iter().zip(named)) {
            let found: Vec<Number> = past.alike(&[message; 32]).map(|(number, ..)| number).collect();
            assert_eq!(found, numbers[..numbers.len().min(MOST_ALIKE)], "after {turn} turns");
            let run = marks::run("a", &format!("run-{message}"));
            assert_eq!(past.find(&run).map(|(number, _)| number), named, "after {turn} turns");
        }
    }
    assert_eq!(past.chapters.len(), 2);
}

#[test]
fn what_became_of_a_turn_is_told_as_it_was_when_it_ended() {
    let mut past = Past::default();
    let began = Instant::now();
    let turn = turn(1, false, began);
    let usage = Usage { prompt_tokens: 670, completion_tokens: 3, total_tokens: u64::MAX, step_count: 1 };
    let after = |nanos| Some(began + Duration::from_nanos(nanos));
    let exchange = Exchange { upstream: None, attempts: 2, sent: after(1), answered: after(7_200_000_000_001) };
    turn.facts.answered(Outcome::Answered, Some(usage), &exchange);
    past.push(&turn, whole(head(), b""), Instant::now(), &roomy());
    let kept = past.kept(turn.log.number().unwrap()).unwrap();
    assert_eq!((kept.facts.outcome, kept.exchange.attempts), (Some(Outcome::Answered), 2));
    assert_eq!((kept.exchange.sent, kept.exchange.answered), (exchange.sent, exchange.answered));
    let most = u32::MAX.into();
    assert_eq!(kept.facts.usage, Some(Usage { total_tokens: most, ..usage }), "as many as there is room for");
    assert_eq!(kept.answer.map(|answer| answer.body.len()), Some(0), "an answer without a body is one");
}

#[test]
fn each_half_of_a_turn_fills_a_line_of_the_cache() {
    assert_eq!([size_of::<chapter::Placed>(), size_of::<chapter::Told>()], [tape::LINE; 2]);
}

#[test]
fn a_chapter_is_forgotten_as_a_whole_and_no_other() {
    let mut past = Past::default();
    for message in [1, 2, 1] {
        answered(&mut past, message, b"old", &roomy());
    }
    let settings = Settings { window: Duration::ZERO, ..roomy() };
    answered(&mut past, 1, b"newer", &settings);
    assert_eq!((past.chapters.len(), past.len()), (2, 4));
    assert!(past.forget_oldest());
    assert_eq!((lengths(&past, 1), lengths(&past, 2), past.len()), (vec![Some(5)], vec![], 1));
    assert!(past.has_expired(Instant::now(), Duration::ZERO) && !past.has_expired(Instant::now(), roomy().window));
}

#[test]
fn chapters_are_bounded_in_turns_and_grow_with_their_number() {
    let mut past = Past::default();
    for _ in 0..3 * FEW {
        answered(&mut past, 1, b"", &Settings { max_total: u64::MAX, ..roomy() });
    }
    assert_eq!(past.chapters.iter().map(|chapter| chapter.turns.len()).collect::<Vec<_>>(), [FEW; 3]);
    past.len = 2 * FEW * CHAPTERS;
    for _ in 0..12 * FEW {
        answered(&mut past, 1, b"", &Settings { max_total: u64::MAX, ..roomy() });
    }
    let lengths: Vec<usize> = past.chapters.iter().map(|chapter| chapter.turns.len()).collect();
    assert!(
        lengths.iter().max() > Some(&(3 * FEW / 2)) && lengths.iter().all(|length| *length < 3 * FEW),
        "{lengths:?}"
    );
}

#[test]
fn it_is_told_who_follows_a_turn_and_whether_somebody_has_all_of_it() {
    let mut past = Past::default();
    let running = turn(1, false, Instant::now());
    let first = running.log.enter().unwrap();
    past.push(&running, whole(head(), b"answer"), Instant::now(), &roomy());
    assert!(!is_abandoned(&past, 1), "who followed it while it ran does so still");
    let (number, has_all) = running.log.leave(first).packed.unwrap();
    assert!(!has_all);
    past.left(number, has_all);
    assert!(is_abandoned(&past, 1), "who left has not read it");

    let (one, other) = (past.follow(number).unwrap(), past.follow(number).unwrap());
    past.left(number, one.0.log.leave(one.1.unwrap()).packed.unwrap().1);
    assert!(!is_abandoned(&past, 1), "somebody reads it");
    let (turn, place) = (other.0, other.1.unwrap());
    assert_eq!(turn.log.whole(place).unwrap(), "answer");
    past.left(number, turn.log.leave(place).packed.unwrap().1);
    assert!(!is_abandoned(&past, 1));
    assert_eq!(past.placed(number).unwrap().1.followers, 0);
}

#[test]
fn who_reads_its_head_first_does_not_take_it_from_others() {
    let mut past = Past::default();
    let running = turn(1, false, Instant::now());
    let places = [(); 3].map(|()| running.log.enter().unwrap());
    let mut headers = http::HeaderMap::new();
    headers.insert("x-a", http::HeaderValue::from_static("1"));
    past.push(&running, whole(Head { headers, ..head() }, b"answer"), Instant::now(), &roomy());
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    for place in places {
        let std::task::Poll::Ready(Ok(head)) = running.log.poll_head(place, &cx) else { panic!("no head") };
        assert_eq!(head.headers["x-a"], "1");
        running.log.leave(place);
    }
    let kept = past.kept(running.log.number().unwrap()).unwrap().answer.unwrap();
    assert_eq!(crate::packed::unpack(&kept.head.unwrap().1)["x-a"], "1");
}

#[test]
fn only_who_drives_a_turn_and_is_alone_with_it_is_given_the_answer_by_hand() {
    let mut past = Past::default();
    let mut end = |enter: fn(&Turn) -> Option<usize>, others: usize, is_known_to_all: bool| {
        let running = turn(1, false, Instant::now());
        let place = enter(&running).unwrap();
        (0..others).for_each(|_| assert!(running.log.enter().is_some()));
        let answer = Whole { head: head(), body: "answer".into() };
        let given =
            past.push(&running, Ending::Whole { answer: Box::new(answer), is_known_to_all }, Instant::now(), &roomy());
        assert!(!is_abandoned(&past, 1), "nobody has left without it");
        let number = running.log.number().unwrap();
        assert_eq!(body(&past, number).as_deref(), Some(&b"answer"[..]), "it is kept");
        let in_log = running.log.whole(place);
        if let Some((number, has_all)) = running.log.leave(place).packed.filter(|_| in_log.is_some()) {
            assert!(has_all);
            past.left(number, has_all);
        }
        assert_eq!(past.placed(number).unwrap().1.followers, u32::try_from(others).unwrap());
        (given.map(|whole| whole.body), in_log)
    };
    let answer = || Some(Bytes::from_static(b"answer"));
    let drives = |turn: &Turn| turn.log.enter_driving();
    assert_eq!(end(drives, 0, false), (answer(), None));
    assert_eq!(end(drives, 0, true), (None, answer()), "other gateways are told of it from the log");
    assert_eq!(end(drives, 1, false), (None, answer()), "others follow");
    assert_eq!(end(|turn| turn.log.enter(), 0, false), (None, answer()), "it reads the log");
    let drove = |turn: &Turn| {
        let place = turn.log.enter_driving();
        turn.log.is_driven_no_more();
        place
    };
    assert_eq!(end(drove, 0, false), (None, answer()), "the turn has a task of its own");
}

#[test]
fn what_is_forgotten_leaves_nothing_behind() {
    for settings in [roomy(), narrow()] {
        let mut past = Past { first: u32::MAX - 3, ..Past::default() };
        let mut newest = None;
        for round in 0..10_u8 {
            answered(&mut past, round % 3, &[round; PIECE], &settings);
            newest = Some(streamed(&mut past, 50 + round, Instant::now(), &settings));
        }
        assert_eq!((past.streams(), past.len(), past.numbers().len()), (10, 20, 20));
        assert!(past.numbers().into_iter().all(|number| past.kept(number).is_some()));
        let newest = newest.unwrap();
        let found = |past: &Past, index| past.find(index).and_then(|(number, _)| past.message(number).copied());
        assert_eq!(found(&past, &newest), Some([59; 32]));
        past.supersede(&newest, Instant::now());
        assert_eq!(found(&past, &newest), None, "no older one takes its place");
        let by_run = crate::turn::marks::run("a", "run-59");
        assert_eq!(found(&past, &by_run), Some([59; 32]), "by its run it is found still");
        streamed(&mut past, 60, Instant::now(), &settings);
        while past.forget_oldest() {}
        assert_eq!((past.newest.len(), past.bytes(), past.streams(), past.followed()), (0, 0, 0, 0));
        assert_eq!((past.len(), past.tape.pieces.len()), (0, 0));
    }
}

#[test]
fn a_stream_that_began_before_the_newest_does_not_become_it() {
    for settings in [roomy(), narrow()] {
        let mut past = Past::default();
        let began = Instant::now();
        let newest = streamed(&mut past, 2, began, &settings);
        streamed(&mut past, 1, began.checked_sub(Duration::from_secs(1)).unwrap(), &settings);
        assert_eq!(past.message(past.find(&newest).unwrap().0), Some(&[2; 32]));
    }
}

#[test]
fn the_oldest_answers_are_given_up_first_and_what_had_them_is_known_still() {
    let mut past = Past::default();
    let numbers = [0, 1, 2, 3].map(|message| answered(&mut past, message, &[message; 1000], &narrow()));
    let one = past.answers() / 4;
    assert!(one >= 1000 && past.give_up_answers() && past.give_up_answers());
    assert_eq!(past.answers(), 2 * one);
    let lengths = [0, 1, 2, 3].map(|message| lengths(&past, message));
    assert_eq!(lengths, [[None], [None], [Some(1000)], [Some(1000)]]);
    past.forget_oldest();
    assert!(past.give_up_answers() && past.give_up_answers() && !past.give_up_answers());
    assert_eq!((past.answers(), past.len()), (0, 3));
    assert!(past.follow(numbers[1]).unwrap().1.is_none(), "it is told that there is no answer any more");
    assert!(past.follow(numbers[0]).is_none());

    // what comes after is kept
    answered(&mut past, 9, b"new", &roomy());
    assert_eq!((past.answers(), self::lengths(&past, 9)), (3, vec![Some(3)]));
}

#[test]
fn answers_of_any_length_are_read_as_they_were_written_until_they_are_given_up() {
    let mut past = Past::default();
    let written = |number: usize| -> Vec<u8> { (0..number * 777).map(|at| (at + number) as u8).collect() };
    let numbers: Vec<Number> = (0..60).map(|number| answered(&mut past, 1, &written(number), &narrow())).collect();
    let is_there = |past: &Past, number: usize| body(past, numbers[number]) == Some(written(number));
    assert!((0..60).all(|number| is_there(&past, number)));
    let before = past.tape.pieces.len();
    for (given_up, number) in numbers.iter().enumerate().skip(1) {
        assert!(past.give_up_answers());
        assert_eq!(body(&past, *number), None);
        assert!((given_up + 1..60).all(|number| is_there(&past, number)), "{given_up}");
    }
    assert!(!past.give_up_answers());
    assert!(past.tape.pieces.len() < before / 10, "what is given up is given back");
}

#[test]
fn what_a_forgotten_chapter_took_is_taken_again_and_goes_with_the_last() {
    let mut past = Past::default();
    let numbers = [1, 2, 3].map(|message| answered(&mut past, message, &[message; 2 * PIECE], &hasty()));
    let read = past.kept(numbers[1]).unwrap().answer.unwrap().body;
    past.forget_oldest();
    let spare = past.spare.as_ref().unwrap().turns.as_ptr();
    assert_eq!((past.tape.spare.len(), past.tape.pieces.len()), (2, 4));
    let piece = past.tape.spare[1].as_ptr();
    answered(&mut past, 4, &[4; 2 * PIECE], &hasty());
    assert_eq!(past.chapters.back().unwrap().turns.as_ptr(), spare);
    assert_eq!(lengths(&past, 4), [Some(2 * PIECE)]);
    assert!(past.tape.pieces.iter().any(|other| other.as_ptr() == piece) && past.tape.spare.is_empty());

    past.forget_oldest();
    assert!(past.tape.spare.is_empty() && read.concat() == [2; 2 * PIECE], "what somebody reads is not written again");
    for message in 5..100 {
        answered(&mut past, message, &[message; 2 * PIECE], &hasty());
    }
    while past.chapters.len() > 1 {
        past.forget_oldest();
    }
    assert_eq!(past.tape.spare.len(), tape::SPARE, "and no more than that");
    past.forget_oldest();
    assert!(past.spare.is_none() && past.tape.spare.is_empty());
}

#[test]
fn a_chapter_that_is_full_has_no_idle_room_and_all_of_it_is_counted() {
    let mut past = Past::default();
    for round in 0..FEW / 2 + 10 {
        streamed(&mut past, (round % 100) as u8, Instant::now(), &roomy());
    }
    answered(&mut past, 1, b"", &narrow());
    let full = &past.chapters[0];
    assert_eq!((past.chapters.len(), full.more.len()), (2, FEW / 2 + 10));
    assert!(full.turns.capacity() <= full.turns.len() * 5 / 4 && full.more.capacity() <= full.more.len() * 5 / 4);
    assert_eq!(past.rest, past.chapters.iter().map(Chapter::rest).sum::<u64>());
}

#[test]
fn no_turn_is_known_for_much_longer_than_its_window() {
    let (mut past, start, window) = (Past::default(), Instant::now(), Duration::from_secs(160));
    let settings = Settings { window, ..roomy() };
    // the second is told of after the third, which ended after it
    for (message, after) in [(1, 0), (3, 5), (2, 3), (4, 20)] {
        let now = start + Duration::from_secs(after);
        past.push(&turn(message, false, now), whole(head(), b""), now, &settings);
    }
    assert_eq!(past.chapters.iter().map(|chapter| chapter.turns.len()).collect::<Vec<_>>(), [3, 1]);
    assert!(!past.has_expired(start + window + Duration::from_secs(4), window), "the third has some time left");
    assert!(past.has_expired(start + window + window / AGES, window));
    past.forget_oldest();
    assert!(!past.has_expired(start + window + window / AGES, window));
}

#[test]
fn so_much_room_knows_so_many_turns() {
    let known = |named: bool| {
        let (mut past, settings) = (Past::default(), Settings { max_total: 4 << 20, ..roomy() });
        for number in 0..40_000_u32 {
            let mut message = [0; 32];
            message[..4].copy_from_slice(&number.to_le_bytes());
            let running = turn(0, false, Instant::now());
            let otid = named.then(|| [&message[..31], &[1]].concat().try_into().unwrap());
            let marks = Marks { message, otid, idempotency: None };
            let beginning = Beginning {
                marks,
                target: running.target.clone(),
                sends: Sends::Conversation,
                key: &running.key,
                streams: false,
                is_retry: false,
                began: running.began,
            };
            let running = Turn::new(beginning, 1 << 20, Duration::from_secs(60), false).unwrap();
            past.push(&running, whole(head(), &[0; 40]), Instant::now(), &settings);
            while past.bytes() > settings.max_total {
                assert!(past.forget_but_last());
            }
        }
        past.len()
    };
    // a turn of these takes 40 bytes of answer
    assert!(known(false) > (4 << 20) / 350 && known(true) > (4 << 20) / 800, "{} {}", known(false), known(true));
}

#[test]
fn what_is_read_is_part_of_the_tape_and_not_a_copy_of_it() {
    let mut past = Past::default();
    let long = vec![7; 5 * PIECE];
    let number = answered(&mut past, 1, &long, &roomy());
    let answer = || past.kept(number).unwrap().answer.unwrap().body;
    let (one, other) = (answer(), answer());
    assert_eq!((one.concat(), one.len()), (long, 5));
    assert!(one.iter().zip(&other).all(|(one, other)| one.as_ptr() == other.as_ptr()));
    while past.forget_oldest() {}
    assert!(one.iter().all(|piece| piece.iter().all(|byte| *byte == 7)), "who reads it may read on");
}

#[test]
fn a_stream_is_read_as_one_piece_however_long_and_a_short_answer_keeps_no_piece_of_the_tape() {
    let mut past = Past::default();
    let event = "data: {\"words\":\"some words\"}\n\n";
    let running = turn(1, true, Instant::now());
    for _ in 0..3 * PIECE / event.len() {
        running.log.append(event.as_bytes());
    }
    past.push(&running, Ending::Logged(Ended::Whole), Instant::now(), &roomy());
    let read = past.kept(running.log.number().unwrap()).unwrap().answer.unwrap();
    assert_eq!((read.body.len(), read.body.concat()), (1, event.repeat(3 * PIECE / event.len()).into_bytes()));

    let number = answered(&mut past, 2, b"short", &roomy());
    answered(&mut past, 3, &vec![0; 2 * PIECE], &roomy());
    let read = past.kept(number).unwrap().answer.unwrap().body;
    while past.forget_oldest() {}
    assert!(read[0].is_unique() && read[0] == "short");
}

#[test]
fn answers_that_are_followed_are_counted_as_long_as_they_are() {
    let mut past = Past::default();
    let numbers = [1, 2].map(|message| answered(&mut past, message, &[message; 100], &hasty()));
    assert_eq!(past.followed(), 0);
    for number in [numbers[0], numbers[0], numbers[1]] {
        assert!(past.follow(number).unwrap().1.is_some());
    }
    assert_eq!(past.followed(), 200);
    past.left(numbers[0], false);
    assert_eq!(past.followed(), 200);
    past.left(numbers[0], false);
    assert_eq!(past.followed(), 100);
    while past.forget_oldest() {}
    past.left(numbers[1], true);
    assert_eq!(past.followed(), 0);
}

#[test]
fn long_answers_make_no_more_chapters_than_short_ones() {
    let mut past = Past::default();
    let settings = Settings { max_total: 16 * PIECE as u64, ..roomy() };
    for _ in 0..500 {
        answered(&mut past, 1, &[0; PIECE], &settings);
        while past.answers() > settings.max_total / 2 {
            assert!(past.give_up_answers());
        }
        assert!(past.answers() >= settings.max_total / 4 || past.len() < 8, "no more than needed");
    }
    assert!(past.chapters.len() <= 16 && past.marks.len() <= 64, "{} {}", past.chapters.len(), past.marks.len());
}

#[test]
fn where_there_is_little_room_chapters_are_short_and_none_is_cut_off_at_its_first_turn() {
    let mut past = Past::default();
    let settings = Settings { max_total: 512 << 10, ..roomy() };
    for _ in 0..5000 {
        answered(&mut past, 1, b"x", &settings);
        while past.bytes() > settings.max_total {
            past.forget_but_last();
        }
    }
    let lengths: Vec<usize> = past.chapters.iter().map(|chapter| chapter.turns.len()).collect();
    let (_, full) = lengths.split_last().unwrap();
    assert!(full.iter().all(|length| (200..300).contains(length)), "{lengths:?}");
}

#[test]
fn the_last_chapter_is_known_whatever_room_there_is() {
    let mut past = Past::default();
    answered(&mut past, 1, b"one", &narrow());
    assert!(!past.forget_but_last() && past.len() == 1);
    answered(&mut past, 2, b"two", &narrow());
    assert!(past.forget_but_last() && !past.forget_but_last());
    assert_eq!((lengths(&past, 1), lengths(&past, 2)), (vec![], vec![Some(3)]));
}
