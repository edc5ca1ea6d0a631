//! Handles of one API key, made when it is first used: a gateway may have many more keys than it sees.
//!
//! Until then it has no series; then it has all of them at once, at 0, but for what a window or a budget was never asked.

use std::sync::{Arc, Mutex, OnceLock};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::families::Families;
use super::handles::{CLASSES, Classes};
use super::lock;

/// Handles of one API key.
pub struct KeyMetrics {
    pub id: Box<str>,
    families: Arc<KeyFamilies>,
    series: OnceLock<Arc<Series>>,
}

/// What is told by key.
pub(super) struct KeyFamilies {
    requests: IntCounterVec,
    in_flight: IntGaugeVec,
    decisions: IntCounterVec,
    remaining: IntGaugeVec,
    /// Of keys that are configured no more: nobody is told of them.
    untold: Arc<Series>,
}

struct Series {
    requests: Classes,
    in_flight: IntGauge,
    /// Requests that all windows admitted.
    admitted: IntCounter,
    /// None: it is told no more.
    asked: Mutex<Option<Asked>>,
}

/// What windows and budgets told, made when they first did; they are the configuration's.
#[derive(Default)]
struct Asked {
    decided: Vec<Decided>,
    budgets: Vec<(Box<str>, IntGauge)>,
}

struct Decided {
    window: Box<str>,
    what: Decision,
    count: IntCounter,
}

/// What a window does with a request that is too many; the label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Refused,
    /// It would have been refused, but the plan only looks on.
    Shadowed,
}

impl Decision {
    fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Shadowed => "shadowed",
        }
    }
}

/// Labels of the requests that all windows admitted.
const ADMITTED: [&str; 2] = ["all", "admitted"];

impl KeyFamilies {
    pub(super) fn new(families: &Families) -> Arc<Self> {
        let untold = Families::new();
        Arc::new(Self {
            requests: families.key_requests.clone(),
            in_flight: families.key_in_flight.clone(),
            decisions: families.limit_decisions.clone(),
            remaining: families.budget_remaining.clone(),
            untold: Arc::new(Series {
                requests: Classes::new(|class| untold.key_requests.with_label_values(&["", class])),
                in_flight: untold.key_in_flight.with_label_values(&[""]),
                admitted: untold.limit_decisions.with_label_values(&["", "", ""]),
                asked: Mutex::new(None),
            }),
        })
    }

    fn series(&self, id: &str) -> Arc<Series> {
        let [window, outcome] = ADMITTED;
        Arc::new(Series {
            requests: Classes::new(|class| self.requests.with_label_values(&[id, class])),
            in_flight: self.in_flight.with_label_values(&[id]),
            admitted: self.decisions.with_label_values(&[id, window, outcome]),
            asked: Mutex::new(Some(Asked::default())),
        })
    }
}

impl KeyMetrics {
    pub(super) fn new(families: &Arc<KeyFamilies>, id: &str) -> Self {
        Self { id: id.into(), families: Arc::clone(families), series: OnceLock::new() }
    }

    fn series(&self) -> &Series {
        self.series.get_or_init(|| self.families.series(&self.id))
    }

    /// Takes the key out of what is told, for good; handles that are still held count for nobody.
    pub(super) fn forget(&self) {
        let KeyFamilies { requests, in_flight, decisions, remaining, untold } = &*self.families;
        let id = &*self.id;
        let series = self.series.get_or_init(|| Arc::clone(untold));
        let Some(Asked { decided, budgets }) = lock(&series.asked).take() else { return };
        let _ = in_flight.remove_label_values(&[id]);
        for class in CLASSES {
            let _ = requests.remove_label_values(&[id, class]);
        }
        let [window, outcome] = ADMITTED;
        let _ = decisions.remove_label_values(&[id, window, outcome]);
        for (budget, _) in budgets {
            let _ = remaining.remove_label_values(&[id, &budget]);
        }
        for Decided { window, what, .. } in decided {
            let _ = decisions.remove_label_values(&[id, &window, what.as_str()]);
        }
    }

    pub fn requests(&self, status: u16) -> Option<&IntCounter> {
        self.series().requests.of(status)
    }

    pub fn in_flight(&self) -> &IntGauge {
        &self.series().in_flight
    }

    /// Requests that all windows admitted.
    pub fn admitted(&self) -> &IntCounter {
        &self.series().admitted
    }

    /// What is left of `budget`, one of the plan's.
    pub fn budget_remaining(&self, budget: &str, left: i64) {
        let mut asked = lock(&self.series().asked);
        let Some(Asked { budgets, .. }) = &mut *asked else { return };
        if let Some((_, gauge)) = budgets.iter().find(|(known, _)| &**known == budget) {
            return gauge.set(left);
        }
        let gauge = self.families.remaining.with_label_values(&[&*self.id, budget]);
        gauge.set(left);
        budgets.push((budget.into(), gauge));
    }

    /// What `window`, one of the plan's, decided on a request too many.
    pub fn decided(&self, window: &str, what: Decision) -> IntCounter {
        let mut asked = lock(&self.series().asked);
        let Some(Asked { decided, .. }) = &mut *asked else { return self.families.untold.admitted.clone() };
        if let Some(known) = decided.iter().find(|known| known.what == what && &*known.window == window) {
            return known.count.clone();
        }
        let count = self.families.decisions.with_label_values(&[&*self.id, window, what.as_str()]);
        decided.push(Decided { window: window.into(), what, count: count.clone() });
        count
    }
}
