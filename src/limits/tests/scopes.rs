use super::*;

fn scoped(scope: Scope, rate: Rate, in_flight: impl Into<Option<u32>>) -> Plan {
    Plan { scope, ..plan("p", rate, in_flight) }
}

fn ask(limits: &Limits, key: &str, agent: Option<&str>) -> bool {
    now(limits.admit(key, agent, READ)).is_ok()
}

#[test]
fn keys_of_a_plan_that_counts_as_one_share_what_it_gives() {
    let metrics = Metrics::new();
    let limits = limits(scoped(Scope::Plan, Rate { burst: 3, ..ONE }, 2), &metrics);
    let (one, other) = (admit(&limits, "a", false).unwrap(), admit(&limits, "b", false).unwrap());
    assert_eq!(refusal(&limits, "a").window, Window::InFlight);
    // whose they are is still told
    assert_eq!((metrics.key("a").in_flight().get(), metrics.key("b").in_flight().get()), (1, 1));
    drop((one, other));
    assert_eq!((metrics.key("a").in_flight().get(), metrics.key("b").in_flight().get()), (0, 0));
    assert!(ask(&limits, "b", None));
    assert_eq!(refusal(&limits, "a").window, Window::Rate);
    assert_eq!(refusal(&limits, "b").window, Window::Rate);
}

#[test]
fn a_key_has_what_its_plan_gives_at_every_agent() {
    let metrics = Metrics::new();
    let limits = limits(scoped(Scope::Agent, ONE, 1), &metrics);
    let held = now(limits.admit("a", Some("agent-1"), READ)).unwrap();
    assert!(!ask(&limits, "a", Some("agent-1")));
    assert!(ask(&limits, "a", Some("agent-2")) && ask(&limits, "b", Some("agent-1")));
    // those that name none are one
    assert!(ask(&limits, "a", None));
    assert!(!ask(&limits, "a", None) && !ask(&limits, "a", Some("agent-2")));
    assert_eq!((limits.in_flight("a"), metrics.key("a").in_flight().get()), (1, 1));
    drop(held);
    assert_eq!((limits.in_flight("a"), metrics.key("a").in_flight().get()), (0, 0));
}

#[test]
fn a_key_that_counts_as_one_does_not_look_at_agents() {
    let limits = limits(scoped(Scope::Key, ONE, None), &Metrics::new());
    assert!(ask(&limits, "a", Some("agent-1")));
    assert!(!ask(&limits, "a", Some("agent-2")) && !ask(&limits, "a", None));
}

#[tokio::test(start_paused = true)]
async fn names_that_a_client_makes_up_take_no_memory_without_end_and_no_other_keys_room() {
    const MANY: usize = 4096;
    let limits = limits(scoped(Scope::Agent, Rate { burst: 2, ..ONE }, None), &Metrics::new());
    for n in 0..MANY {
        assert!(ask(&limits, "a", Some(&n.to_string())));
    }
    assert_eq!(limits.agents(), MANY);
    // there is no room: one more shares what is the key's without an agent
    assert!(ask(&limits, "a", Some("one more")) && ask(&limits, "a", Some("another")));
    assert!(!ask(&limits, "a", Some("a third")) && !ask(&limits, "a", None));
    assert!(ask(&limits, "a", Some("7")), "one that is known has its own");
    assert_eq!(limits.agents(), MANY);
    for agent in ["1", "2", "3"] {
        assert!(ask(&limits, "b", Some(agent)) && ask(&limits, "b", Some(agent)), "another key has its own");
    }
    assert_eq!(limits.agents(), MANY + 3);
    // those who have all they may spend are forgotten
    advance(Duration::from_hours(24)).await;
    assert!(ask(&limits, "a", Some("one more")));
    assert_eq!(limits.agents(), 5, "it, and 7 and those of the other, which have spent two");
}

#[test]
fn the_accounts_of_all_keys_have_an_end_and_are_counted_anew_at_a_reload() {
    let plan = scoped(Scope::Agent, ONE, None);
    let keys: Vec<_> = (0..17).map(|n| key(&n.to_string(), "p")).collect();
    let before = Limits::new(std::slice::from_ref(&plan), &keys, &Metrics::new(), None);
    for key in &keys {
        for n in 0..4096 {
            ask(&before, &key.id, Some(&n.to_string()));
        }
    }
    assert_eq!(before.agents(), 65_536, "one of the keys has none");
    let after = Limits::new(&[plan], &keys[1..], &Metrics::new(), Some(&before));
    assert_eq!(after.agents(), 61_440);
    assert!(ask(&after, "16", Some("1")), "there is room for it now");
    assert_eq!(after.agents(), 61_441);
}

#[test]
fn a_reload_keeps_what_was_spent_by_a_plan_and_at_an_agent() {
    for (scope, agent) in [(Scope::Plan, None), (Scope::Agent, Some("agent-1"))] {
        let before = limits(scoped(scope, ONE, 2), &Metrics::new());
        let held = now(before.admit("a", agent, READ)).unwrap();
        let keys = [key("a", "p"), key("b", "p")];
        let after = Limits::new(&[scoped(scope, ONE, 2)], &keys, &Metrics::new(), Some(&before));
        assert!(!ask(&after, "a", agent));
        let faster = Rate { requests: 2, ..ONE };
        let after = Limits::new(&[scoped(scope, faster, 1)], &keys, &Metrics::new(), Some(&after));
        assert!(!ask(&after, "a", agent), "the request in flight is still counted");
        drop(held);
        assert!(ask(&after, "a", agent));
    }
}
