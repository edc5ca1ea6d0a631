//! The listening socket on loopback: what it gives its connections, its cap, its drain.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::super::{ConnectionLimits, Listener, Settings, Stop, socket};
use super::{World, errors, limits, read_response, read_to_close, service};
use crate::telemetry::Metrics;

/// How long anything here may take.
const BOUND: Duration = Duration::from_secs(10);

struct Served {
    address: SocketAddr,
    world: Arc<World>,
    metrics: Metrics,
    stop: Stop,
    accepting: JoinHandle<()>,
}

impl Served {
    fn new(address: &str, limits: ConnectionLimits) -> Self {
        let settings = Settings { address: address.parse().unwrap(), tls: None, limits };
        let (metrics, world, stop) = (Metrics::new(), Arc::<World>::default(), Stop::new());
        let listener = Listener::bind(&settings, &metrics).unwrap();
        let address = listener.local_address();
        let accepting = tokio::spawn(listener.serve(service(Arc::clone(&world)), stop.clone()));
        Self { address, world, metrics, stop, accepting }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

async fn get(client: &mut TcpStream, path: &str) -> String {
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    read_response(client).await.1
}

/// Polls `condition` until it holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(BOUND, wait).await.unwrap_or_else(|_| panic!("{what}: never"));
}

#[tokio::test]
async fn a_connection_is_served() {
    let served = Served::new("127.0.0.1:0", limits());
    let mut client = served.connect().await;
    assert_eq!(get(&mut client, "/").await, "hello");
    assert_eq!(get(&mut client, "/peer").await, format!("{} false", client.local_addr().unwrap()));
}

#[tokio::test]
async fn any_address_of_ipv6_takes_ipv4_and_says_so() {
    let served = Served::new("[::]:0", limits());
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, served.address.port())).await.unwrap();
    assert_eq!(get(&mut client, "/peer").await, format!("{} false", client.local_addr().unwrap()));
}

#[tokio::test]
async fn accepted_sockets_hold_nothing_back_and_notice_the_dead() {
    let listener = socket::open("127.0.0.1:0".parse().unwrap(), Duration::from_secs(7)).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    socket::accepted(&accepted).unwrap();
    let options = SockRef::from(&accepted);
    assert!(options.tcp_nodelay().unwrap());
    assert!(options.keepalive().unwrap());
    assert_eq!(options.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
    #[cfg(target_os = "linux")]
    assert_eq!(options.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named_with_the_fix() {
    let first = Served::new("127.0.0.1:0", limits());
    for (address, words) in [
        (first.address.to_string(), ["another process has this port", "ss -ltnp"]),
        ("192.0.2.1:0".to_owned(), ["no interface of this machine", "0.0.0.0"]),
    ] {
        let settings = Settings { address: address.parse().unwrap(), tls: None, limits: limits() };
        let error = Listener::bind(&settings, &Metrics::new()).err().expect("it is bound").to_string();
        for word in [address.as_str()].iter().chain(&words) {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }
}

#[tokio::test]
async fn a_full_listener_closes_at_once_and_takes_the_next_when_there_is_room() {
    let served = Served::new("127.0.0.1:0", ConnectionLimits { max_connections: 1, ..limits() });
    let mut first = served.connect().await;
    assert_eq!(get(&mut first, "/").await, "hello");
    let mut second = served.connect().await;
    assert_eq!(read_to_close(&mut second).await, b"");
    assert_eq!(errors(&served.metrics), ["full=1"]);
    assert_eq!(get(&mut first, "/").await, "hello");
    drop(first);
    eventually("the first is over", || served.stop.connections.is_empty()).await;
    assert_eq!(get(&mut served.connect().await, "/").await, "hello");
}

#[tokio::test]
async fn one_address_cannot_take_the_connections_of_all() {
    let served = Served::new("127.0.0.1:0", ConnectionLimits { max_connections_per_address: 2, ..limits() });
    let (mut first, mut second) = (served.connect().await, served.connect().await);
    for held in [&mut first, &mut second] {
        assert_eq!(get(held, "/").await, "hello");
    }
    assert_eq!(read_to_close(&mut served.connect().await).await, b"");
    assert_eq!(errors(&served.metrics), ["address_full=1"]);
    let neighbour = tokio::net::TcpSocket::new_v4().unwrap();
    neighbour.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    assert_eq!(get(&mut neighbour.connect(served.address).await.unwrap(), "/").await, "hello");
    drop(first);
    eventually("one is over", || served.stop.connections.len() == 1).await;
    assert_eq!(get(&mut served.connect().await, "/").await, "hello");
}

#[tokio::test]
async fn drain_refuses_the_new_closes_the_idle_and_lets_the_running_end() {
    let served = Served::new("127.0.0.1:0", limits());
    let (mut idle, mut fresh, mut running) = (served.connect().await, served.connect().await, served.connect().await);
    assert_eq!(get(&mut idle, "/").await, "hello");
    running.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    eventually("the request runs", || served.world.served.load(Ordering::SeqCst) == 2).await;

    let stop = served.stop.clone();
    let finish = tokio::spawn(async move { stop.finish(BOUND).await });
    tokio::time::timeout(BOUND, served.accepting).await.unwrap().unwrap();
    assert!(TcpStream::connect(served.address).await.is_err(), "a new connection is taken");
    for closed in [&mut idle, &mut fresh] {
        assert_eq!(tokio::time::timeout(BOUND, read_to_close(closed)).await.unwrap(), b"");
    }
    assert!(!finish.is_finished());
    served.world.go.notify_one();
    let (head, body) = read_response(&mut running).await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(body, "waited");
    assert_eq!(running.read(&mut [0; 1]).await.unwrap(), 0);
    drop(running);
    assert_eq!(finish.await.unwrap(), 0);
    assert_eq!(errors(&served.metrics), [""; 0]);
}

#[tokio::test]
async fn what_outlives_the_drain_is_cut_off() {
    let served = Served::new("127.0.0.1:0", limits());
    let mut running = served.connect().await;
    running.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    eventually("the request runs", || served.world.served.load(Ordering::SeqCst) == 1).await;
    assert_eq!(served.stop.finish(Duration::from_millis(20)).await, 1);
    assert_eq!(tokio::time::timeout(BOUND, read_to_close(&mut running)).await.expect("it lives on"), b"");
    assert_eq!(served.world.alive.load(Ordering::SeqCst), 0);
    assert_eq!(errors(&served.metrics), ["drain_deadline=1"]);
}

#[tokio::test]
async fn an_upload_refused_early_can_still_be_answered() {
    let served = Served::new("127.0.0.1:0", limits());
    let mut client = served.connect().await;
    client.write_all(b"POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n").await.unwrap();
    // more than any socket buffer: without someone to read it on, the client would see a reset and no answer
    for _ in 0..500 {
        client.write_all(&[b'u'; 100_000]).await.expect("the connection is reset under the upload");
    }
    assert!(read_response(&mut client).await.0.starts_with("HTTP/1.1 413 "));
}
