//! What the scripts reply. `None` everywhere: it is not what they reply.

use std::time::Duration;

use ::redis::Value;

use super::Lease;
use crate::store::{Charged, Tally, Verdict};

/// What was asked for.
pub(super) struct Asked {
    pub lease: Option<Lease>,
    pub counts_places: bool,
    pub budgets: usize,
}

pub(super) fn read(reply: Value, mut asked: Asked) -> Option<Tally> {
    let Value::Array(values) = reply else { return None };
    let mut numbers = values.into_iter().map(number);
    let (verdict, in_flight) = (numbers.next()??, numbers.next()??);
    let charged = charged(&mut numbers, asked.budgets)?;
    let ahead = numbers.map(|number| Some(Duration::from_micros(number?))).collect::<Option<_>>()?;
    let lease = asked.lease.take()?;
    let verdict = match verdict {
        0 if asked.counts_places => Verdict::Counted(Some(lease.counted())),
        other => {
            lease.refused();
            match other {
                0 => Verdict::Counted(None),
                1 => Verdict::Standing,
                2 => Verdict::Full,
                3 => Verdict::TooFast,
                4 => Verdict::Spent,
                _ => return None,
            }
        }
    };
    Some(Tally { verdict, ahead, charged, in_flight: u32::try_from(in_flight).ok()? })
}

pub(super) fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

pub(super) fn charged(numbers: &mut impl Iterator<Item = Option<u64>>, count: usize) -> Option<Vec<Charged>> {
    let mut charged = Vec::with_capacity(count);
    for _ in 0..count {
        charged.push(Charged { period: numbers.next()??, total: numbers.next()?? });
    }
    Some(charged)
}
