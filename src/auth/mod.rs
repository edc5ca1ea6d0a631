//! Who asks, and may they: the bearer key of a request, found by its SHA-256, whether it may be used now and from there,
//! and the scope its route needs.
//!
//! Default deny: without a configured key whose scopes cover the route nothing passes but the open routes, and those
//! pass whatever key comes with them.

mod credentials;
pub mod key;
mod keyring;
mod leash;
pub mod letta_user;
pub mod network;
pub mod revocations;
pub mod text;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use http::HeaderMap;

use crate::body::{Request, Response};
use crate::error::Error;
use crate::letta::routes::{Route, Scope};
use crate::route::Routed;
use crate::step::{Handle, Step};
use crate::telemetry::{Metrics, Record};
use key::Key;
use keyring::Keyring;
use leash::leashed;
use letta_user::LettaUsers;
use revocations::Revocations;

/// A request whose key may use its route, or whose route needs none.
pub struct Admitted {
    parts: Box<Parts>,
}

/// What is known of an admitted request; boxed, for it is handed from step to step.
pub struct Parts {
    pub request: Request,
    pub route: &'static Route,
    /// The agent, conversation, run … the path names.
    pub subject: Option<Arc<str>>,
    /// None on the open routes.
    pub key: Option<Arc<Key>>,
}

impl Admitted {
    pub fn request(&self) -> &Request {
        &self.parts.request
    }

    pub fn route(&self) -> &'static Route {
        self.parts.route
    }

    pub fn subject(&self) -> Option<&str> {
        self.parts.subject.as_deref()
    }

    pub fn key(&self) -> Option<&Arc<Key>> {
        self.parts.key.as_ref()
    }

    pub fn into_parts(self) -> Box<Parts> {
        self.parts
    }
}

/// Admits the requests of the configured keys.
pub struct Auth {
    keyring: Keyring,
}

impl Auth {
    /// `users`: those that `keys` act as; `revocations`: of their texts.
    pub fn new(keys: &[key::Settings], users: &LettaUsers, revocations: &Revocations, metrics: &Metrics) -> Self {
        Self { keyring: Keyring::new(keys, users, revocations, metrics) }
    }

    /// The key of a request for `route`; what it may do is not looked at.
    fn key(&self, headers: &HeaderMap, route: &Route) -> Result<Option<&Arc<Key>>, Error> {
        if route.scope == Scope::Open {
            return Ok(None);
        }
        let text = credentials::key_text(headers, route.template.starts_with("/v1/git/"))?;
        if text::is_mistyped(&text) {
            return Err(Error::KeyMistyped);
        }
        self.keyring.find(&text).map(Some).ok_or(Error::KeyUnknown)
    }
}

impl<Next: Handle<Admitted>> Step<Routed, Next> for Auth {
    async fn call(&self, routed: Routed, record: &mut Record, next: &Next) -> Result<Response, Error> {
        let (request, route, subject) = routed.into_parts();
        let key = self.key(request.headers(), route)?.map(Arc::clone);
        if let Some(key) = &key {
            // before the refusal, so that the log tells whose it was
            record.key = Some(Arc::clone(&key.metrics));
            key.check(SystemTime::now, record.client)?;
            if !key.scopes.allow(route.scope) {
                return Err(Error::ScopeMissing { needed: route.scope.as_str() });
            }
        }
        let ear = key.as_ref().and_then(|key| key.ear());
        let handled = next.handle(Admitted { parts: Box::new(Parts { request, route, subject, key }) }, record);
        let Some(mut ear) = ear else { return handled.await };
        let mut handled = std::pin::pin!(handled);
        let response = std::future::poll_fn(|cx| match handled.as_mut().poll(cx) {
            Poll::Pending => ear.poll(cx).map(|()| Err(Error::KeyRevoked)),
            answered => answered,
        });
        Ok(leashed(response.await?, ear))
    }
}
