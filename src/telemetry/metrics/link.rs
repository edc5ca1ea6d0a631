//! The connections to Redis of one gateway, in its metrics: `redis_up` by `link`.

use prometheus::IntGauge;

use super::Metrics;

/// What a connection is for; the label `link`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisLink {
    /// Answers that are kept, and revoked keys.
    Values,
    Turns,
    Limits,
}

impl RedisLink {
    const ALL: [Self; 3] = [Self::Values, Self::Turns, Self::Limits];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Turns => "turns",
            Self::Limits => "limits",
        }
    }
}

/// Whether a connection works.
pub struct LinkUp(IntGauge);

impl LinkUp {
    pub fn set(&self, is_up: bool) {
        self.0.set(is_up.into());
    }

    pub fn is_set(&self) -> bool {
        self.0.get() == 1
    }
}

impl Metrics {
    /// The gauge of `link`, told from now on.
    pub fn redis_up(&self, link: RedisLink) -> LinkUp {
        LinkUp(self.families.redis_up.with_label_values(&[link.as_str()]))
    }

    /// There is no Redis (any more), so nothing is told of one.
    pub fn forget_redis(&self) {
        for link in RedisLink::ALL {
            // an error: it was not told of before
            let _ = self.families.redis_up.remove_label_values(&[link.as_str()]);
        }
    }
}
