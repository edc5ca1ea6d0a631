use std::num::NonZeroU32;

use super::*;
use crate::letta::reply::Usage;
use crate::limits::budget::{Purse, Remaining};
use crate::limits::terms::BudgetWindow;
use crate::store::Charged;

const DAY: Duration = Duration::from_hours(24);
const SEND: Asking = Asking { may_repeat: false, starts_turn: true };
const USAGE: Usage = Usage { prompt_tokens: 600, completion_tokens: 100, total_tokens: 700, step_count: 3 };

fn tokens(most: u64) -> BudgetWindow {
    BudgetWindow { name: "tokens_1d".into(), what: Measure::Tokens, most, per: DAY }
}

fn budgeted(budgets: &[(Measure, u64)], rate: impl Into<Option<Rate>>) -> Plan {
    // so long that no test sees its end
    let per = Duration::from_hours(24 * 365 * 100);
    let budgets = budgets.iter().map(|(what, most)| Budget { what: *what, most: *most, per });
    Plan { budgets: budgets.collect(), ..plan("p", rate, 4) }
}

/// Starts a turn of the key's.
fn start(limits: &Limits, key: &str) -> Result<Bill, Box<Refusal>> {
    match now(limits.admit(key, None, SEND)) {
        Ok((mut seat, _)) => Ok(seat.bill().expect("a bill")),
        Err(Error::Limited(refusal)) => Err(refusal),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_budget_is_charged_what_was_used_and_is_whole_again_in_the_next_period() {
    let (purse, budget) = (Purse::default(), tokens(1000));
    let alone = NonZeroU32::MIN;
    let noon = 1000 * DAY + DAY / 2;
    assert_eq!(purse.remaining(&budget, noon, alone), Remaining { left: 1000, reset: DAY / 2 });
    purse.charge(&budget, noon, Some(&USAGE));
    assert_eq!(purse.remaining(&budget, noon, alone).left, 300);
    purse.charge(&budget, noon, None);
    purse.charge(&budget, noon + DAY / 4, Some(&USAGE));
    assert_eq!(purse.remaining(&budget, noon + DAY / 4, alone), Remaining { left: -400, reset: DAY / 4 });
    assert_eq!(purse.remaining(&budget, noon + DAY / 2, alone), Remaining { left: 1000, reset: DAY });
    // a clock that was set back does not give it back twice
    purse.charge(&budget, noon + DAY, Some(&USAGE));
    assert_eq!(purse.remaining(&budget, noon, alone).left, 300);
}

#[test]
fn what_others_charge_is_learned_and_what_they_may_have_charged_is_counted_where_nobody_tells() {
    let (purse, budget) = (Purse::default(), tokens(10_000));
    let (noon, four) = (1000 * DAY, NonZeroU32::new(4).unwrap());
    purse.charge(&budget, noon, Some(&USAGE));
    let told = purse.ledger(&budget, noon);
    assert_eq!((told.own, told.period, told.most), (700, 1000, 10_000));
    // charged while it is told
    purse.charge(&budget, noon, Some(&USAGE));
    purse.learn(&told, Charged { period: 1000, total: 2700 });
    assert_eq!(purse.remaining(&budget, noon, NonZeroU32::MIN).left, 10_000 - 2000 - 1400);
    assert_eq!(purse.remaining(&budget, noon, four).left, 10_000 - 2000 - 1400 - 3 * 700);
    // a store whose clock is ahead
    purse.learn(&told, Charged { period: 1001, total: 50 });
    assert_eq!(purse.remaining(&budget, noon, four).left, 9950);
    // and what it said of the period before is of no use any more
    purse.learn(&told, Charged { period: 1000, total: 9000 });
    assert_eq!(purse.remaining(&budget, noon, four).left, 9950);
}

#[test]
fn a_turn_may_start_while_anything_is_left_of_every_budget_and_not_after() {
    let metrics = Metrics::new();
    let limits = limits(budgeted(&[(Measure::Tokens, 701), (Measure::Steps, 7)], PLENTY), &metrics);
    start(&limits, "a").unwrap().charge(Some(&USAGE));
    let both = [start(&limits, "a").unwrap(), start(&limits, "a").unwrap()];
    both.into_iter().for_each(|bill| bill.charge(Some(&USAGE)));
    for _ in 0..3 {
        let refused = start(&limits, "a").unwrap_err();
        assert_eq!((refused.window, &*refused.name, refused.limit), (Window::Budget, "tokens_36500d", 701));
    }
    assert_eq!(refusals(&metrics, "a", "tokens_36500d"), 3);
    assert!(start(&limits, "b").is_ok(), "another key has its own");
    assert!(admit(&limits, "a", false).is_ok(), "what starts no turn needs no budget");
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    for (budget, left) in [("tokens_36500d", -1399), ("steps_36500d", -2)] {
        let line = format!("letta_gateway_budget_remaining{{budget=\"{budget}\",key=\"a\"}} {left}\n");
        assert!(text.contains(&line), "{line}");
    }
}

#[test]
fn a_turn_that_was_never_sent_costs_nothing_and_every_other_one_is_a_turn() {
    let limits = limits(budgeted(&[(Measure::Turns, 2)], None), &Metrics::new());
    for _ in 0..5 {
        drop(start(&limits, "a").unwrap());
    }
    for _ in 0..2 {
        let bill = start(&limits, "a").unwrap();
        assert!(!bill.wants_usage());
        bill.charge(None);
    }
    assert!(start(&limits, "a").is_err());
}

#[test]
fn a_budget_that_is_spent_counts_in_no_window_and_lets_a_repeat_go_on_that_starts_none() {
    let rate = Rate { burst: 3, ..ONE };
    let limits = limits(budgeted(&[(Measure::Turns, 1)], rate), &Metrics::new());
    start(&limits, "a").unwrap().charge(None);
    for _ in 0..10 {
        assert_eq!(start(&limits, "a").unwrap_err().window, Window::Budget);
    }
    assert_eq!(limits.in_flight("a"), 0);
    let (seat, _) = now(limits.admit("a", None, Asking { may_repeat: true, ..SEND })).unwrap();
    assert!(matches!(seat.take(), Err(Error::Limited(refusal)) if refusal.window == Window::Budget));
    assert!(admit(&limits, "a", false).is_ok());
    assert_eq!(refusal(&limits, "a").window, Window::Rate);
}

#[test]
fn a_turn_of_before_a_reload_is_charged_to_the_budget_of_after() {
    let metrics = Metrics::new();
    let before = limits(budgeted(&[(Measure::Turns, 3)], None), &metrics);
    start(&before, "a").unwrap().charge(None);
    let running = start(&before, "a").unwrap();
    let less = budgeted(&[(Measure::Tokens, 5), (Measure::Turns, 2)], None);
    let after = Limits::new(&[less], &[key("a", "p")], &metrics, Some(&before));
    assert!(start(&after, "a").is_ok());
    running.charge(None);
    assert_eq!(start(&after, "a").unwrap_err().limit, 2);
}

#[test]
fn a_plan_in_shadow_starts_turns_without_a_budget_and_tells() {
    let metrics = Metrics::new();
    let plan = Plan { mode: Mode::Shadow, ..budgeted(&[(Measure::Turns, 1)], None) };
    let limits = limits(plan, &metrics);
    for _ in 0..3 {
        start(&limits, "a").unwrap().charge(None);
    }
    assert_eq!(metrics.key("a").decided("turns_36500d", Decision::Shadowed).get(), 2);
}
