//! (helper letta)
