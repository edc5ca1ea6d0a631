//! What the gateway must know of a message's JSON answer (`LettaResponse`): why the turn stopped, and what it cost.
//!
//! A status of 200 says nothing of that: a turn that failed has one, too.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// A message's answer, its messages left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    pub stop_reason: StopReason,
    pub usage: Option<Usage>,
}

/// Why a turn stopped (`letta/schemas/letta_stop_reason.py`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    MaxSteps,
    ToolRule,
    RequiresApproval,
    Cancelled,
    Error,
    LlmApiError,
    InvalidLlmResponse,
    InvalidToolCall,
    NoToolCall,
    MaxTokensExceeded,
    ContextWindowOverflowInSystemPrompt,
    InsufficientCredits,
    /// None that 0.16.8 knows.
    #[serde(other)]
    Unknown,
}

impl StopReason {
    /// Letta's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::MaxSteps => "max_steps",
            Self::ToolRule => "tool_rule",
            Self::RequiresApproval => "requires_approval",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
            Self::LlmApiError => "llm_api_error",
            Self::InvalidLlmResponse => "invalid_llm_response",
            Self::InvalidToolCall => "invalid_tool_call",
            Self::NoToolCall => "no_tool_call",
            Self::MaxTokensExceeded => "max_tokens_exceeded",
            Self::ContextWindowOverflowInSystemPrompt => "context_window_overflow_in_system_prompt",
            Self::InsufficientCredits => "insufficient_credits",
            Self::Unknown => "unknown",
        }
    }
}

/// What a turn cost, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub step_count: u64,
}

/// Reads `body`, a whole answer; `None` if it is not one.
pub fn read(body: &[u8]) -> Option<Reply> {
    #[derive(Deserialize)]
    struct LettaResponse {
        #[serde(rename = "messages")]
        _messages: Vec<IgnoredAny>,
        stop_reason: Stopped,
        #[serde(default)]
        usage: Option<Usage>,
    }
    #[derive(Deserialize)]
    struct Stopped {
        stop_reason: StopReason,
    }
    // checked at once, not text by text
    let answer: LettaResponse = serde_json::from_str(std::str::from_utf8(body).ok()?).ok()?;
    Some(Reply { stop_reason: answer.stop_reason.stop_reason, usage: answer.usage })
}

/// True if the agent has said all it wanted: nothing failed, was cut short or waits for anybody.
pub fn is_final(body: &[u8]) -> bool {
    read(body).is_some_and(|reply| reply.stop_reason == StopReason::EndTurn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(stop_reason: &str) -> String {
        format!(
            r#"{{"messages":[{{"id":"message-1","date":"2026-11-23T23:30:14+00:00","name":null,
            "message_type":"assistant_message","otid":null,"content":"\"stop_reason\":{{\"stop_reason\":\"error\"}}"}}],
            "stop_reason":{{"message_type":"stop_reason","stop_reason":"{stop_reason}"}},
            "usage":{{"message_type":"usage_statistics","completion_tokens":3,"prompt_tokens":670,"total_tokens":673,
            "step_count":1,"run_ids":null,"cached_input_tokens":0}},"logprobs":null,"turns":null}}"#
        )
    }

    #[test]
    fn an_answer_tells_why_it_stopped_and_what_it_cost() {
        let usage = Usage { prompt_tokens: 670, completion_tokens: 3, total_tokens: 673, step_count: 1 };
        let reply = Reply { stop_reason: StopReason::EndTurn, usage: Some(usage) };
        assert_eq!(read(answer("end_turn").as_bytes()), Some(reply));
        for (word, reason) in [
            ("requires_approval", StopReason::RequiresApproval),
            ("llm_api_error", StopReason::LlmApiError),
            ("cancelled", StopReason::Cancelled),
            ("something_new", StopReason::Unknown),
        ] {
            assert_eq!(read(answer(word).as_bytes()).unwrap().stop_reason, reason);
        }
    }

    #[test]
    fn only_the_end_of_a_turn_is_final() {
        assert!(is_final(answer("end_turn").as_bytes()));
        for other in
            ["max_steps", "tool_rule", "requires_approval", "error", "cancelled", "no_tool_call", "END_TURN", ""]
        {
            assert!(!is_final(answer(other).as_bytes()), "{other}");
        }
    }

    #[test]
    fn what_is_no_answer_to_a_message_is_not_read_as_one() {
        let end = r#""stop_reason":{"stop_reason":"end_turn"}"#;
        for body in [
            String::new(),
            "[]".to_owned(),
            format!("{{{end}}}"),
            format!(r#"{{"messages":[],{end}"#),
            format!(r#"{{"messages":[],{end}}}x"#),
            format!(r#"{{"messages":[],{end},{end}}}"#),
            r#"{"messages":[],"stop_reason":"end_turn"}"#.to_owned(),
            r#"{"messages":[],"stop_reason":null}"#.to_owned(),
            answer("end_turn").replace("670", "-1"),
        ] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
    }
}
