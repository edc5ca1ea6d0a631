//! Handles of what is told of turns.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::families::Families;
use super::times::Times;
use crate::letta::reply::Usage;

/// Handles of the turns of one gateway.
pub struct TurnMetrics {
    ended: IntCounterVec,
    end_turn: IntCounter,
    pub running: IntGauge,
    pub waiting: IntGauge,
    pub detached: IntCounter,
    pub alone: IntCounter,
    pub kept: IntGauge,
    pub log_bytes: IntGauge,
    repeats: IntCounterVec,
    pub queue: Times,
    pub duration: Times,
    pub first_event: Times,
    pub gap: Times,
    prompt_tokens: IntCounter,
    completion_tokens: IntCounter,
    steps: IntCounter,
    lane_refusals: IntCounterVec,
    conflicts: IntCounterVec,
}

impl TurnMetrics {
    pub(super) fn new(families: &Families) -> Self {
        // told as 0 before the first one
        for how in ["joined", "replayed", "resumed"] {
            families.turn_repeats.with_label_values(&[how]);
        }
        for reason in ["full", "patience"] {
            families.lane_refusals.with_label_values(&[reason]);
        }
        for kind in ["busy", "freed", "database"] {
            families.conflicts.with_label_values(&[kind]);
        }
        Self {
            ended: families.turns.clone(),
            end_turn: families.turns.with_label_values(&["end_turn"]),
            running: families.turns_running.clone(),
            waiting: families.turns_waiting.clone(),
            detached: families.turns_detached.clone(),
            alone: families.turns_alone.clone(),
            kept: families.turns_kept.clone(),
            log_bytes: families.turn_log_bytes.clone(),
            repeats: families.turn_repeats.clone(),
            queue: families.turn_queue.clone(),
            duration: families.turn_durations.clone(),
            first_event: families.turn_first_events.clone(),
            gap: families.turn_gaps.clone(),
            prompt_tokens: families.turn_tokens.with_label_values(&["prompt"]),
            completion_tokens: families.turn_tokens.with_label_values(&["completion"]),
            steps: families.turn_steps.clone(),
            lane_refusals: families.lane_refusals.clone(),
            conflicts: families.conflicts.clone(),
        }
    }

    /// A turn is over; `outcome` is of a closed set.
    pub fn ended(&self, outcome: &'static str) {
        if outcome == "end_turn" {
            self.end_turn.inc();
        } else {
            self.ended.with_label_values(&[outcome]).inc();
        }
    }

    pub fn used(&self, usage: &Usage) {
        self.prompt_tokens.inc_by(usage.prompt_tokens);
        self.completion_tokens.inc_by(usage.completion_tokens);
        self.steps.inc_by(usage.step_count);
    }

    /// `how`: `joined`, `replayed`, `resumed`.
    pub fn repeat(&self, how: &'static str) {
        self.repeats.with_label_values(&[how]).inc();
    }

    /// `reason`: `full`, `patience`.
    pub fn lane_refusal(&self, reason: &'static str) {
        self.lane_refusals.with_label_values(&[reason]).inc();
    }

    /// `kind`: `busy`, `freed`, `database`.
    pub fn conflict(&self, kind: &'static str) {
        self.conflicts.with_label_values(&[kind]).inc();
    }
}
