//! Which agents a key reaches: a key that is limited to some of them reads, messages, lists, cancels, searches and
//! fetches nothing of any other.
//!
//! Everything a request names is looked at: the agent in its path, what its query and its body name, and the owner of
//! what belongs to an agent (a conversation, a run, a step, a message), which Letta is asked for once. Lists are brought
//! down to the key's agents. Where neither can be done, the request is refused with the reason (`letta::routes::reach`
//! says what each route touches, and what it does not say is refused). Keys that reach all agents pass untouched.

mod list;
mod names;
mod owners;
mod pages;
mod question;
mod step;

use crate::auth::Parts;
use crate::limits::Seat;

pub use step::Reacher;

/// A request that names nothing its key does not reach.
pub struct Confined {
    parts: Box<Parts>,
    seat: Option<Box<Seat>>,
}

impl Confined {
    /// The place in flight comes with a send.
    pub fn into_parts(self) -> (Box<Parts>, Option<Box<Seat>>) {
        (self.parts, self.seat)
    }
}
