//! letta-gateway: the reverse-proxy API gateway in front of Letta replicas.
//!
//! This file is the table of contents, in the order a request meets the modules. A module uses only modules declared
//! above it (`tests/layout.rs` holds this), so no cycle can exist and the list reads as the life of a request.

// The floor: used by all, uses nothing of ours but what stands above it.
pub mod boxed; //     values made in the box they are to live in
pub mod error; //     why the gateway answers in Letta's place: status, reason and side of each answer of its own
pub mod crowd; //     what comes together goes on together
pub mod socket; //    written to in one piece where the pieces are short
pub mod dial; //      a connection to a replica, and whose fault it is if there is none
pub mod body; //      bodies whole or streaming, counted permits, what is told when a *body* ends
pub mod hop; //       what ends with the connection it came over
pub mod packed; //    the fields of a head in one piece of memory, for those that are kept
pub mod cutoff; //    the moment after which nothing in flight may go on
pub mod letta; //     what is known of Letta: routes, targets, messages, replies, SSE framing
pub mod telemetry; // the metrics registry with closed labels, the access log, diagnostics
pub mod step; //      the one trait a pipeline step implements, and the only code that adapts it to tower
pub mod store; //     shared state behind one door: in this process or in Redis

// The path: in the order a request meets it.
pub mod listen; //    sockets, TLS, HTTP/1.1 and HTTP/2, timeouts, drain
pub mod record; //    id, clock, one access-log line, one count; the only place that turns an Error into a response
pub mod cors; //      answers preflights, names the origins that may read
pub mod route; //     the target, read once and strictly -> which Letta endpoint, which agent, which scope
pub mod auth; //      bearer -> key (by digest) -> may this key do that
pub mod limits; //    what each key may spend: rates, places in flight, budgets; here or over all gateways
pub mod reach; //     which agents a key reaches: named by path, query or body, owned by one, listed
pub mod cache; //     answers a repeated agent:message
pub mod turn; //      every message reaches its agent exactly once, in order: registry, log, followers, lanes
pub mod hygiene; //   what of a message may pass, in both directions: hop-by-hop names, credentials, Location
pub mod retry; //     whether another attempt is safe and affordable
pub mod balance; //   picks a replica for one attempt; health and ejection
pub mod upstream; //  one attempt to one replica: pool, timeouts, event streams

// The assembly: may see everything above.
pub mod admin; //     /metrics, /livez, /readyz on their own address
pub mod config; //    YAML text -> settings owned by each part, or every problem with its line
pub mod open_files; // as many of them as the connections need, or fewer connections
pub mod pipeline; //  the stack, top to bottom; nothing else
pub mod revoked; //   learns from the shared store which keys were revoked
pub mod users; //     whether Letta knows the users that keys act as
pub mod reload; //    watches the file, the certificates and SIGHUP
pub mod app; //       binds, runs, reloads, drains
pub mod demo; //      two replicas that are not Letta, a certificate, a gateway: the first minute
pub mod cli; //       run, check, keys, config, healthcheck, demo
