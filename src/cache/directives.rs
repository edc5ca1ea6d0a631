//! What a request's `Cache-Control` asks of a cache (RFC 9111 §5.2.1).

use std::time::Duration;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, PRAGMA};

/// The directives that matter here; `no-transform` and `max-stale` ask nothing of a cache that does neither.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Directives {
    /// A fresh answer, please.
    pub no_cache: bool,
    /// Neither give a kept answer nor keep this one.
    pub no_store: bool,
    /// A kept answer or none.
    pub only_if_cached: bool,
    /// No answer older than this.
    pub max_age: Option<Duration>,
    /// No answer that would not be good for so long.
    pub min_fresh: Option<Duration>,
}

impl Directives {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        let mut given = false;
        for value in headers.get_all(CACHE_CONTROL) {
            given = true;
            // what is no text is no directive
            for directive in value.to_str().unwrap_or_default().split(',') {
                directives.add(directive.trim());
            }
        }
        // for HTTP/1.0 clients (RFC 9111 §5.4)
        if !given && headers.get(PRAGMA).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no-cache")) {
            directives.no_cache = true;
        }
        directives
    }

    fn add(&mut self, directive: &str) {
        let (name, value) = directive.split_once('=').map_or((directive, None), |(name, value)| (name, Some(value)));
        let seconds = || {
            let value = value.unwrap_or_default().trim_matches('"');
            // not understood: the stricter reading
            Some(Duration::from_secs(value.parse().unwrap_or(0)))
        };
        if name.eq_ignore_ascii_case("no-cache") {
            self.no_cache = true;
        } else if name.eq_ignore_ascii_case("no-store") {
            self.no_store = true;
        } else if name.eq_ignore_ascii_case("only-if-cached") {
            self.only_if_cached = true;
        } else if name.eq_ignore_ascii_case("max-age") {
            self.max_age = seconds();
        } else if name.eq_ignore_ascii_case("min-fresh") {
            self.min_fresh = seconds();
        }
    }

    /// Whether an answer of this age, good for `left` more, will do.
    pub(super) fn accept(&self, age: Duration, left: Duration) -> bool {
        self.max_age.is_none_or(|most| age <= most) && self.min_fresh.is_none_or(|least| left >= least)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(values: &[&'static str]) -> Directives {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CACHE_CONTROL, HeaderValue::from_static(value));
        }
        Directives::of(&headers)
    }

    #[test]
    fn directives_are_read_as_rfc_9111_writes_them() {
        let none = Directives::default();
        assert_eq!(of(&[]), none);
        assert_eq!(of(&["no-transform, max-stale=5, x=\"no-cache\""]), none);
        assert_eq!(of(&["No-Cache"]), Directives { no_cache: true, ..none });
        assert_eq!(of(&["no-transform ,no-store"]), Directives { no_store: true, ..none });
        assert_eq!(of(&["only-if-cached", "no-cache"]), Directives { only_if_cached: true, no_cache: true, ..none });
        let second = Some(Duration::from_secs(1));
        assert_eq!(of(&["max-age=1, min-fresh=\"1\""]), Directives { max_age: second, min_fresh: second, ..none });
        assert_eq!(of(&["max-age=soon"]), Directives { max_age: Some(Duration::ZERO), ..none });
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        assert!(Directives::of(&headers).no_cache);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        assert!(!Directives::of(&headers).no_cache);
    }
}
