//! Raw turns into the turn module's settings.

use std::time::Duration;

use super::{Check, DAY, HOUR};
use crate::config::raw;
use crate::turn::{self, Dedupe, LaneSettings, OnDisconnect, OnStoreError};

impl Check {
    pub(super) fn turns(&mut self, turns: raw::Turns) -> turn::Settings {
        let raw::Turns { dedupe, window, lane, on_disconnect, keepalive, max_log, max_total, on_store_error } = turns;
        let second = Duration::from_secs(1);
        let log = self.size("turns.max_log", max_log, 1024..=64 << 20);
        let total = self.size("turns.max_total", max_total, 1024..=1 << 40);
        if log > total {
            self.problem(
                "turns.max_log",
                format_args!("{max_log} is more than turns.max_total ({max_total}); lower it"),
            );
        }
        turn::Settings {
            dedupe: match dedupe {
                raw::Dedupe::Repeats => Dedupe::Repeats,
                raw::Dedupe::IdenticalInFlight => Dedupe::IdenticalInFlight,
                raw::Dedupe::Off => Dedupe::Off,
            },
            window: self.duration("turns.window", window, second..=DAY),
            lane: lane.0.map(|raw::LaneBounds { max_waiting, max_wait }| LaneSettings {
                max_waiting: self.count("turns.lane.max_waiting", max_waiting, 0..=100_000),
                max_wait: self.duration("turns.lane.max_wait", max_wait, Duration::ZERO..=HOUR),
            }),
            on_disconnect: match on_disconnect {
                raw::OnDisconnect::Detach => OnDisconnect::Detach,
                raw::OnDisconnect::Cancel => OnDisconnect::Cancel,
                raw::OnDisconnect::Drain => OnDisconnect::Drain,
            },
            keepalive: self.duration("turns.keepalive", keepalive, Duration::ZERO..=HOUR),
            max_log: usize::try_from(log).unwrap_or(usize::MAX),
            max_total: total,
            on_store_error: match on_store_error {
                raw::OnStoreError::Local => OnStoreError::Local,
                raw::OnStoreError::Deny => OnStoreError::Deny,
            },
        }
    }
}
