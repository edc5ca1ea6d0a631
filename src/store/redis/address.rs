//! Where Redis is, as `store.redis.url` says it: one server, a master that Sentinels know, or a cluster.

use std::fmt;

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult};

use super::BadUrl;

/// Where Sentinels listen.
const SENTINEL_PORT: u16 = 26379;

/// Each with what is said to a server there: user, password, database. Shown without them.
#[derive(Clone)]
pub(super) enum Address {
    Server(ConnectionInfo),
    /// The Sentinels' addresses; what is said is said to the master they name.
    Sentinel {
        master: String,
        sentinels: Vec<ConnectionInfo>,
    },
    /// Some of its nodes.
    Cluster(Vec<ConnectionInfo>),
}

impl Address {
    /// `redis://[user:password@]host:port/database`, `redis+sentinel://…@host:port,…/master/database`,
    /// `redis+cluster://…@host:port,…`; with `rediss` for TLS.
    pub(super) fn read(url: &str) -> Result<Self, BadUrl> {
        let told = "this is not a Redis URL; write redis://host:port/db, redis+sentinel://host:26379,host:26379/master/db \
                    or redis+cluster://host:port,host:port (rediss instead of redis for TLS)";
        let bad = || BadUrl(told.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let (scheme, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let servers = Servers::read(scheme, rest);
        match kind {
            "" => url.into_connection_info().map(Self::Server).map_err(|_| bad()),
            "sentinel" => {
                let (master, database) = servers.path.split_once('/').unwrap_or((servers.path, ""));
                if master.is_empty() {
                    let told = "names no master; write redis+sentinel://host:26379,host:26379/master, with the name the \
                                Sentinels know it by";
                    return Err(BadUrl(told.to_owned()));
                }
                let sentinels = servers.each(Some(SENTINEL_PORT), database).map_err(|_| bad())?;
                Ok(Self::Sentinel { master: master.to_owned(), sentinels })
            }
            "cluster" => {
                if !["", "0"].contains(&servers.path) {
                    return Err(BadUrl(
                        "a Redis Cluster has database 0 only; leave out what stands behind the nodes".into(),
                    ));
                }
                servers.each(None, "").map(Self::Cluster).map_err(|_| bad())
            }
            _ => Err(bad()),
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.servers().iter().any(|server| matches!(server.addr(), ConnectionAddr::TcpTls { .. }))
    }

    fn servers(&self) -> &[ConnectionInfo] {
        match self {
            Self::Server(server) => std::slice::from_ref(server),
            Self::Sentinel { sentinels, .. } => sentinels,
            Self::Cluster(nodes) => nodes,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Sentinel { master, .. } = self {
            write!(f, "{master} of ")?;
        }
        for (index, server) in self.servers().iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", server.addr())?;
        }
        Ok(())
    }
}

/// The parts of a URL with several servers.
struct Servers<'u> {
    scheme: &'u str,
    /// With the `@`.
    user: &'u str,
    hosts: &'u str,
    /// Without the first slash.
    path: &'u str,
    /// Query and fragment, which are the crate's.
    end: &'u str,
}

impl<'u> Servers<'u> {
    fn read(scheme: &'u str, rest: &'u str) -> Self {
        let (rest, end) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Self { scheme, user, hosts, path, end }
    }

    /// As if each had a URL of its own, which the crate reads.
    fn each(&self, port: Option<u16>, database: &str) -> RedisResult<Vec<ConnectionInfo>> {
        let Self { scheme, user, hosts, path: _, end } = self;
        let one = |host: &str| {
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let port = port.filter(|_| !has_port).map_or_else(String::new, |port| format!(":{port}"));
            format!("{scheme}://{user}{host}{port}/{database}{end}").into_connection_info()
        };
        hosts.split(',').map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        Address::read(url).map_or_else(|error| error.to_string(), |address| address.to_string())
    }

    #[test]
    fn each_form_of_an_address_is_read_and_shown_without_what_is_secret() {
        for (url, address) in [
            ("redis://h:7/3", "h:7"),
            ("rediss://user:sesame@h", "h:6379"),
            ("redis+sentinel://a,b:7,10.0.0.1/mymaster", "mymaster of a:26379,b:7,10.0.0.1:26379"),
            ("rediss+sentinel://:sesame@a:1,b:2/my-master/4", "my-master of a:1,b:2"),
            ("redis+sentinel://[::1],[::2]:7/m", "m of ::1:26379,::2:7"),
            ("redis+cluster://a,b:7", "a:6379,b:7"),
            ("rediss+cluster://user:sesame@a:1,b:2/0", "a:1,b:2"),
        ] {
            assert_eq!(shown(url), address, "{url}");
        }
    }

    #[test]
    fn user_password_and_database_are_said_to_every_server() {
        let read = |url| Address::read(url).unwrap();
        for (address, database) in [
            (read("rediss+sentinel://us%40er:se%2Fsame@a,b/m/4"), 4),
            (read("rediss+cluster://us%40er:se%2Fsame@a,b"), 0),
        ] {
            assert!(address.is_tls() && address.servers().len() == 2);
            for server in address.servers() {
                let said = server.redis_settings();
                assert_eq!((said.username(), said.password(), said.db()), (Some("us@er"), Some("se/same"), database));
            }
        }
        assert!(!read("redis+cluster://a").is_tls());
    }

    #[test]
    fn what_is_no_address_is_told_without_the_url() {
        for (url, why) in [
            ("redis+sentinel://sesame:x@a,b", "names no master"),
            ("redis+sentinel://sesame:x@a//1", "names no master"),
            ("redis+cluster://sesame:x@a/1", "database 0"),
            ("redis+cluster://sesame:x@a:port", "not a Redis URL"),
            ("redis+cluster://sesame:x@", "not a Redis URL"),
            ("redis+cluster://sesame:x@a,,b", "not a Redis URL"),
            ("redis+sentinel://sesame:x@a/m/x", "not a Redis URL"),
            ("redis+ring://sesame:x@a", "not a Redis URL"),
            ("http+cluster://sesame:x@a", "not a Redis URL"),
            ("sesame", "not a Redis URL"),
        ] {
            let told = shown(url);
            assert!(told.contains(why) && !told.contains("sesame"), "{url}: {told}");
        }
    }
}
