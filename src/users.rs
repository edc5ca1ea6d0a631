//! Asks Letta whether the users that keys act as exist: before a configuration is taken over, and again and again.
//!
//! `GET /v1/admin/users/` of any replica, page by page (`routers/v1/users.py`), on a connection of its own. If no replica
//! can be asked, nothing that was known is forgotten.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::{AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use crate::auth::letta_user::{LettaUser, LettaUsers};
use crate::balance::Endpoint;
use crate::dial::dial;
use crate::error::Cause;

/// Users a page.
const PAGE: usize = 500;
/// Pages at most: a list that never ends is no list of users.
const MOST_PAGES: usize = 2000;
/// Bytes of one page at most.
const LONGEST_PAGE: usize = 4 << 20;
/// How long one page may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long all of it may hold up a start or a reload.
pub const LONGEST: Duration = Duration::from_secs(10);
/// How soon is asked again after nobody could be: doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How often is asked when all is well: a user may be deleted.
const EVERY: Duration = Duration::from_secs(60);

/// Where to ask.
#[derive(Clone)]
pub struct Asking {
    pub users: Arc<LettaUsers>,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub password: Option<String>,
}

impl Asking {
    /// Asks one replica after another until one has told all; what it knows not is in no way anybody's user.
    pub async fn once(&self) -> Result<(), Cause> {
        if self.users.is_empty() {
            return Ok(());
        }
        let mut why: Cause = "no replica is in rotation".into();
        let now = Instant::now();
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.is_available(now)) {
            match self.list(&endpoint.authority).await {
                Ok(()) => return Ok(()),
                Err(cause) => why = format!("{}: {cause}", endpoint.authority).into(),
            }
        }
        Err(why)
    }

    /// Asks for ever.
    pub async fn watch(self) {
        let mut wait = FIRST_WAIT;
        loop {
            let is_well = self.users.unverified().next().is_none();
            sleep(if is_well { EVERY } else { wait }).await;
            wait = if self.once().await.is_ok() && is_well { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        }
    }

    /// Finds all users in the list of one replica.
    async fn list(&self, authority: &str) -> Result<(), Cause> {
        #[derive(Deserialize)]
        struct User {
            id: Box<str>,
        }
        let mut left: Vec<&Arc<LettaUser>> = self.users.iter().collect();
        let mut after: Option<Box<str>> = None;
        for _ in 0..MOST_PAGES {
            let cursor = after.as_ref().map_or_else(String::new, |after| format!("&after={after}"));
            let path = format!("/v1/admin/users/?limit={PAGE}{cursor}");
            let page = timeout(PATIENCE, ask(authority, &path, self.password.as_deref())).await;
            let page: Vec<User> = serde_json::from_slice(&page.map_err(|_| "no answer in time")??)?;
            left.retain(|user| {
                let is_here = page.iter().any(|one| one.id == user.id);
                if is_here && user.found(true) {
                    tracing::info!(user = &*user.id, "Letta knows this user");
                }
                !is_here
            });
            let last = page.last().map(|user| user.id.clone());
            if left.is_empty() || page.len() < PAGE || last == after {
                for user in left {
                    if user.found(false) {
                        tracing::error!(user = &*user.id, "Letta knows no such user: its keys are refused");
                    }
                }
                return Ok(());
            }
            after = last;
        }
        Err("the list of users has no end".into())
    }
}

/// One GET; the body of a 200.
async fn ask(authority: &str, path: &str, password: Option<&str>) -> Result<Bytes, Cause> {
    let stream = dial(authority).await.map_err(|failure| failure.to_string())?;
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = path.parse()?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority)?);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("letta-gateway/", env!("CARGO_PKG_VERSION"))));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(password) = password {
        let mut credentials = HeaderValue::from_str(&format!("Bearer {password}"))?;
        credentials.set_sensitive(true);
        headers.insert(AUTHORIZATION, credentials);
    }
    let exchange = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(Cause::from(format!("status {}", response.status().as_u16())));
        }
        Ok(Limited::new(response.into_body(), LONGEST_PAGE).collect().await?.to_bytes())
    };
    match select(pin!(exchange), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // the last poll of a connection may have delivered the answer
        Either::Right((_, exchange)) => exchange.await,
    }
}
