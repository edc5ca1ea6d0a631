//! The replicas: where they are, how they are picked, watched and talked to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use super::listeners::overlap;
use super::{Check, DAY, HOUR, MILLISECOND, MINUTE};
use crate::config::raw;
use crate::{balance, listen, upstream};

/// uvicorn closes a connection that was unused for so long.
const UVICORN_KEEP_ALIVE: Duration = Duration::from_secs(5);

impl Check {
    pub(super) fn upstreams(
        &mut self,
        upstreams: BTreeMap<String, raw::Upstream>,
        listeners: &[listen::Settings],
    ) -> (balance::Settings, upstream::Settings) {
        let count = upstreams.len();
        if count > 1 {
            let names = upstreams.keys().cloned().collect::<Vec<_>>().join(", ");
            self.problem("upstreams", format_args!("there are {count} groups ({names}), and one is served; keep one, with all replicas of one database as its servers"));
        }
        let fix = "add upstreams: { letta: { servers: [ { url: http://127.0.0.1:8284 } ] } }";
        let first = upstreams.into_iter().next();
        let (name, group) = first.unwrap_or_else(|| {
            self.problem("upstreams", format_args!("there is none; {fix}"));
            Default::default()
        });
        self.upstream(&format!("upstreams.{name}"), group, count > 0, listeners)
    }

    fn upstream(
        &mut self,
        path: &str,
        group: raw::Upstream,
        given: bool,
        listeners: &[listen::Settings],
    ) -> (balance::Settings, upstream::Settings) {
        let raw::Upstream { servers, password, balance, health_check, ejection, timeouts, pool, max_body } = group;
        if servers.is_empty() && given {
            self.problem(&format!("{path}.servers"), "there is none; add e.g. - url: http://127.0.0.1:8284");
        }
        let policy = match balance {
            raw::Balance::AgentAffinity => balance::Policy::AgentAffinity,
            raw::Balance::LeastRequest => balance::Policy::LeastRequest,
            raw::Balance::RoundRobin => balance::Policy::RoundRobin,
        };
        let replicas = balance::Settings {
            servers: self.servers(path, servers, listeners),
            policy,
            health_check: self.health_check(&format!("{path}.health_check"), health_check),
            ejection: self.ejection(&format!("{path}.ejection"), ejection),
        };
        let attempts = upstream::Settings {
            password: self.password(&format!("{path}.password"), &password),
            timeouts: self.timeouts(&format!("{path}.timeouts"), timeouts),
            pool: self.pool(&format!("{path}.pool"), pool),
            max_body: self.size(&format!("{path}.max_body"), max_body, 1..=1 << 40),
        };
        (replicas, attempts)
    }

    fn servers(
        &mut self,
        path: &str,
        servers: Vec<raw::Server>,
        listeners: &[listen::Settings],
    ) -> Vec<balance::Server> {
        let mut settings: Vec<balance::Server> = Vec::new();
        for (index, raw::Server { url, weight }) in servers.into_iter().enumerate() {
            let path = format!("{path}.servers[{index}]");
            let weight = self.count(&format!("{path}.weight"), weight, 1..=1000);
            let Some(url) = self.required(&path, "url", url) else { continue };
            let path = format!("{path}.url");
            match authority(&url) {
                Ok(authority) if settings.iter().any(|other| other.authority == authority) => {
                    self.problem(&path, format_args!("{authority} stands here twice; keep one, and give it a weight"));
                }
                Ok(authority) => {
                    if let Some(own) = listeners.iter().position(|listener| leads_to(&authority, listener.address)) {
                        self.problem(
                            &path,
                            format_args!(
                                "{authority} is listeners[{own}] of this gateway; write where a replica listens"
                            ),
                        );
                    }
                    settings.push(balance::Server { authority, weight });
                }
                Err(why) => self.problem(&path, why),
            }
        }
        settings
    }

    fn password(&mut self, path: &str, password: &crate::config::secret::Secret) -> Option<String> {
        let text = self.secret(path, password)?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            self.problem(path, "must be visible ASCII characters without spaces, for it is sent in a header");
        }
        (!text.is_empty()).then_some(text)
    }

    fn health_check(&mut self, path: &str, check: raw::HealthCheck) -> balance::HealthCheck {
        let raw::HealthCheck { path: asked, interval, timeout, unhealthy_after, healthy_after } = check;
        let at = |name: &str| format!("{path}.{name}");
        if !asked.starts_with('/') || asked.parse::<Uri>().is_err() {
            self.problem(&at("path"), format_args!("\"{asked}\" is no path; write e.g. /v1/health/"));
        }
        if timeout > interval {
            self.warn(
                &at("timeout"),
                format_args!("{timeout} is longer than the interval ({interval}), so checks come less often"),
            );
        }
        balance::HealthCheck {
            path: asked,
            interval: self.duration(&at("interval"), interval, Duration::from_millis(10)..=HOUR),
            timeout: self.duration(&at("timeout"), timeout, MILLISECOND..=5 * MINUTE),
            unhealthy_after: self.count(&at("unhealthy_after"), unhealthy_after, 1..=1000),
            healthy_after: self.count(&at("healthy_after"), healthy_after, 1..=1000),
        }
    }

    fn ejection(&mut self, path: &str, ejection: raw::Ejection) -> balance::Ejection {
        let raw::Ejection { after, duration } = ejection;
        balance::Ejection {
            after: self.count(&format!("{path}.after"), after, 1..=1000),
            duration: self.duration(&format!("{path}.duration"), duration, MILLISECOND..=HOUR),
        }
    }

    fn timeouts(&mut self, path: &str, timeouts: raw::Timeouts) -> upstream::Timeouts {
        let raw::Timeouts { connect, request, message, stream_idle } = timeouts;
        upstream::Timeouts {
            connect: self.duration(&format!("{path}.connect"), connect, MILLISECOND..=5 * MINUTE),
            request: self.duration(&format!("{path}.request"), request, MILLISECOND..=DAY),
            message: self.duration(&format!("{path}.message"), message, MILLISECOND..=DAY),
            stream_idle: self.duration(&format!("{path}.stream_idle"), stream_idle, MILLISECOND..=DAY),
        }
    }

    fn pool(&mut self, path: &str, pool: raw::Pool) -> upstream::PoolSettings {
        let raw::Pool { max_connections, max_wait, idle_timeout } = pool;
        let idle = format!("{path}.idle_timeout");
        if idle_timeout.0 >= UVICORN_KEEP_ALIVE {
            let why = "Letta's server closes unused connections after 5s, and a request may meet that moment; write less than 5s";
            self.warn(&idle, format_args!("{idle_timeout}: {why}"));
        }
        upstream::PoolSettings {
            max_connections: self.count(&format!("{path}.max_connections"), max_connections, 1..=65_535),
            max_wait: self.duration(&format!("{path}.max_wait"), max_wait, Duration::ZERO..=10 * MINUTE),
            idle_timeout: self.duration(&idle, idle_timeout, MILLISECOND..=HOUR),
        }
    }
}

/// True if `authority` is without doubt an address of this machine that `listener` has.
fn leads_to(authority: &str, listener: SocketAddr) -> bool {
    let local = authority.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let Ok(replica) = local.as_deref().unwrap_or(authority).parse::<SocketAddr>() else { return false };
    // a listener on all addresses has others, too, but whether one of them is this machine's is not known here
    let is_here = replica.ip().is_loopback() || replica.ip().is_unspecified();
    replica == listener || is_here && overlap(replica, listener)
}

/// The `host:port` of a replica's URL, or what is wrong with it; the URL itself may hold a password.
fn authority(url: &str) -> Result<String, String> {
    const FIX: &str = "write http://host:port";
    let uri: Uri = url.parse().map_err(|_| format!("is no URL; {FIX}"))?;
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {}
        Some(scheme) if *scheme == Scheme::HTTPS => {
            return Err(format!("https to a replica is not served, for Letta itself speaks plain HTTP; {FIX}"));
        }
        _ => return Err(format!("is no http URL; {FIX}")),
    }
    let Some(authority) = uri.authority() else { return Err(format!("has no host; {FIX}")) };
    if authority.as_str().contains('@') {
        return Err("has a user or password in it; put the password under \"password\"".to_owned());
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(format!("has a path or query, but requests keep their own; {FIX}"));
    }
    match authority.port_u16() {
        None | Some(0) => Err(format!("has no port; {FIX}, e.g. http://127.0.0.1:8283")),
        Some(_) if authority.host().is_empty() => Err(format!("has no host; {FIX}")),
        Some(port) => Ok(format!("{}:{port}", authority.host().to_ascii_lowercase())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_is_the_gateway_itself_is_taken_for_it() {
        for (authority, listener, is_it) in [
            ("127.0.0.1:8283", "0.0.0.0:8283", true),
            ("localhost:8283", "127.0.0.1:8283", true),
            ("0.0.0.0:8283", "127.0.0.1:8283", true),
            ("[::1]:8283", "[::]:8283", true),
            ("[::1]:8283", "0.0.0.0:8283", false),
            ("127.0.0.2:8283", "127.0.0.1:8283", false),
            ("10.0.0.7:8283", "10.0.0.7:8283", true),
            ("127.0.0.1:8284", "0.0.0.0:8283", false),
            ("10.0.0.8:8283", "0.0.0.0:8283", false),
            ("10.0.0.8:8283", "127.0.0.1:8283", false),
            ("letta:8283", "0.0.0.0:8283", false),
            ("localhost:8283", "10.0.0.7:8283", false),
        ] {
            assert_eq!(leads_to(authority, listener.parse().unwrap()), is_it, "{authority} {listener}");
        }
    }
}
