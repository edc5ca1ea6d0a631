//! The policies: pure functions of the replicas, their load and the agent.

use std::sync::Arc;

use super::{Endpoint, Policy};

/// A replica takes an agent's request while its load is under this many hundredths of the fair share.
const BOUND: u64 = 125;

/// The replica for a request about `subject`, among those that `may` take it. `turn` counts requests.
pub(super) fn pick<'e>(
    endpoints: &'e [Arc<Endpoint>],
    policy: Policy,
    subject: Option<&str>,
    turn: impl Fn() -> u32,
    may: impl Fn(&Endpoint) -> bool,
) -> Option<&'e Arc<Endpoint>> {
    match (policy, subject) {
        (Policy::AgentAffinity, Some(subject)) => affine(endpoints, subject, may),
        (Policy::AgentAffinity, None) | (Policy::LeastRequest, _) => least(endpoints, u64::from(turn()), may),
        (Policy::RoundRobin, _) => in_turn(endpoints, turn(), may),
    }
}

/// Weighted rendezvous hashing with bounded load: an agent stays with its replica, unless that one is over 1.25 times
/// its fair share; then it goes to the agent's next one.
fn affine<'e>(
    endpoints: &'e [Arc<Endpoint>],
    subject: &str,
    may: impl Fn(&Endpoint) -> bool,
) -> Option<&'e Arc<Endpoint>> {
    let (mut load, mut weights) = (1_u64, 0_u64);
    for endpoint in endpoints.iter().filter(|endpoint| may(endpoint)) {
        load += u64::from(endpoint.load.now());
        weights += u64::from(endpoint.weight);
    }
    let has_room = |endpoint: &Endpoint| {
        let fair = (load * u64::from(endpoint.weight) * BOUND).div_ceil(weights.max(1) * 100);
        u64::from(endpoint.load.now()) < fair
    };
    let best = |among: &dyn Fn(&Endpoint) -> bool| {
        endpoints
            .iter()
            .filter(|endpoint| among(endpoint))
            .max_by(|a, b| score(a, subject).total_cmp(&score(b, subject)))
    };
    best(&|endpoint| may(endpoint) && has_room(endpoint)).or_else(|| best(&may))
}

/// The weighted rendezvous score of Schindelhauer and Schomaker: -w / ln(u), u uniform in (0, 1).
fn score(endpoint: &Endpoint, subject: &str) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double")]
    let uniform = ((hash(endpoint.seed, subject.as_bytes()) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(endpoint.weight) / uniform.ln()
}

/// The power of two choices: the less loaded of two random ones, by load per weight.
fn least(endpoints: &[Arc<Endpoint>], turn: u64, may: impl Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
    let candidates = || endpoints.iter().filter(|endpoint| may(endpoint));
    let count = candidates().count() as u64;
    if count == 0 {
        return None;
    }
    let random = mix(turn.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let first = random % count;
    let second = (first + 1 + (random >> 32) % (count - 1).max(1)) % count;
    let at = |place: u64| candidates().nth(usize::try_from(place).unwrap_or(0));
    let (first, second) = (at(first)?, at(second)?);
    // compares load/weight without dividing
    let heavier = |a: &Endpoint, b: &Endpoint| {
        u64::from(a.load.now()) * u64::from(b.weight) > u64::from(b.load.now()) * u64::from(a.weight)
    };
    Some(if heavier(first, second) { second } else { first })
}

/// Each in its turn, as often as its weight says.
fn in_turn(endpoints: &[Arc<Endpoint>], turn: u32, may: impl Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
    let candidates = || endpoints.iter().filter(|endpoint| may(endpoint));
    let weights: u32 = candidates().map(|endpoint| endpoint.weight).sum();
    let mut place = turn.checked_rem(weights)?;
    candidates().find(|endpoint| match place.checked_sub(endpoint.weight) {
        Some(rest) => {
            place = rest;
            false
        }
        None => true,
    })
}

/// FNV-1a with a final mix: the same in every gateway and every version, so that all agree on an agent's replica.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(fnv)
}

/// The finaliser of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::Server;
    use super::*;
    use crate::telemetry::Metrics;

    fn fleet(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        let metrics = Metrics::new();
        let endpoint = |(place, weight): (usize, &u32)| {
            let server = Server { authority: format!("10.0.0.{place}:8283"), weight: *weight };
            Arc::new(Endpoint::new(place, &server, metrics.upstream(&server.authority), None))
        };
        weights.iter().enumerate().map(endpoint).collect()
    }

    fn places(fleet: &[Arc<Endpoint>], policy: Policy, requests: u32) -> Vec<usize> {
        let places = (0..requests).map(|turn| {
            pick(fleet, policy, Some(&format!("agent-{turn}")), || turn, |_| true).expect("somebody").place
        });
        places.collect()
    }

    fn share(places: &[usize], of: usize) -> usize {
        places.iter().filter(|place| **place == of).count()
    }

    #[test]
    fn round_robin_takes_turns_by_weight() {
        assert_eq!(places(&fleet(&[2, 1]), Policy::RoundRobin, 6), [0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn agents_spread_by_weight_and_stay() {
        let fleet = fleet(&[1, 3]);
        let first = places(&fleet, Policy::AgentAffinity, 4000);
        assert!((2800..3200).contains(&share(&first, 1)), "{}", share(&first, 1));
        assert_eq!(first, places(&fleet, Policy::AgentAffinity, 4000));
    }

    #[test]
    fn a_replica_that_leaves_moves_only_its_own_agents() {
        let fleet = fleet(&[1, 1, 1]);
        for turn in 0..300 {
            let agent = format!("agent-{turn}");
            let place = |may: &dyn Fn(&Endpoint) -> bool| {
                pick(&fleet, Policy::AgentAffinity, Some(&agent), || 0, may).expect("somebody").place
            };
            let before = place(&|_| true);
            let after = place(&|endpoint| endpoint.place != 2);
            assert!(before == 2 || before == after, "{agent} moved from {before} to {after}");
        }
    }

    #[test]
    fn a_busy_replica_hands_its_agents_on() {
        let fleet = fleet(&[1, 1]);
        let agent = Some("agent-x");
        let at = |fleet: &[Arc<Endpoint>]| {
            pick(fleet, Policy::AgentAffinity, agent, || 0, |_| true).expect("somebody").place
        };
        let home = at(&fleet);
        let mut load = Vec::new();
        for _ in 0..20 {
            load.push(fleet[at(&fleet)].load.add());
        }
        let (here, there) = (fleet[home].load.now(), fleet[1 - home].load.now());
        assert_eq!(here + there, 20);
        assert!(here > there, "home is preferred: {here} and {there}");
        assert!(here <= 13, "and bounded to 1.25 times its share: {here}");
    }

    #[test]
    fn of_two_random_ones_the_less_loaded_is_taken() {
        let fleet = fleet(&[1, 1]);
        let _load = [fleet[0].load.add(), fleet[0].load.add()];
        assert_eq!(share(&places(&fleet, Policy::LeastRequest, 50), 0), 0);
    }

    #[test]
    fn nobody_is_picked_of_nobody() {
        for policy in [Policy::AgentAffinity, Policy::LeastRequest, Policy::RoundRobin] {
            assert!(pick(&fleet(&[1, 1]), policy, Some("agent"), || 7, |_| false).is_none());
            assert!(pick(&[], policy, None, || 7, |_| true).is_none());
        }
    }
}
