//! What the admin listener promises.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;

const READY: Readiness = Readiness {
    draining: false,
    upstreams: 2,
    unhealthy: Vec::new(),
    wrong_password: Vec::new(),
    store: StoreState::InProcess,
    unverified_users: Vec::new(),
    config_problem: None,
    pending_restart: Vec::new(),
};

fn named(replicas: &[&str]) -> Vec<String> {
    replicas.iter().map(|replica| (*replica).to_owned()).collect()
}

struct Running {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: Arc<Mutex<Readiness>>,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

fn start() -> Running {
    let admin = Admin::bind(&Settings { address: SocketAddr::from(([127, 0, 0, 1], 0)) }).unwrap();
    let address = admin.local_address();
    let metrics = Arc::new(Metrics::new());
    let readiness = Arc::new(Mutex::new(READY));
    let shutdown = CancellationToken::new();
    let asked = Arc::clone(&readiness);
    let serving = admin.serve(Arc::clone(&metrics), move || asked.lock().unwrap().clone(), shutdown.clone());
    Running { address, metrics, readiness, shutdown, task: tokio::spawn(serving) }
}

impl Running {
    async fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask(&self, path: &str) -> (u16, String) {
        let answer = self.send(&format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}

#[tokio::test]
async fn a_scrape_is_the_text_format_of_all_metrics() {
    let admin = start();
    admin.metrics.error("client_left");
    let answer = admin.send("GET /metrics?x=1 HTTP/1.1\r\nhost: admin\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nletta_gateway_errors_total{reason=\"client_left\"} 1\n"), "{answer}");
}

#[tokio::test]
async fn readiness_follows_the_drain_and_the_replicas() {
    let admin = start();
    let cases = [
        (READY, 200, "ready"),
        (Readiness { draining: true, ..READY }, 503, "draining"),
        (Readiness { unhealthy: named(&["a:1", "b:2"]), ..READY }, 503, "no_upstream"),
        (Readiness { unhealthy: named(&["b:2"]), ..READY }, 200, "degraded"),
        (Readiness { wrong_password: named(&["a:1"]), ..READY }, 200, "degraded"),
        (Readiness { store: StoreState::Ok, ..READY }, 200, "ready"),
        (Readiness { store: StoreState::Degraded("redis timeout"), ..READY }, 200, "degraded"),
        (Readiness { config_problem: Some("line 3: no such key".to_owned()), ..READY }, 200, "degraded"),
        (Readiness { unverified_users: vec!["user-1".to_owned()], ..READY }, 200, "degraded"),
    ];
    for (readiness, status, word) in cases {
        *admin.readiness.lock().unwrap() = readiness.clone();
        let (seen, body) = admin.ask("/readyz").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((seen, &body["status"]), (status, &word.into()), "{readiness:?}");
        assert_eq!(body["upstreams"]["healthy"], 2 - readiness.unhealthy.len());
        assert_eq!(body["upstreams"]["unhealthy"], serde_json::json!(readiness.unhealthy));
        assert_eq!(body["upstreams"]["wrong_password"], serde_json::json!(readiness.wrong_password));
        assert_eq!(body["config"]["problem"], serde_json::json!(readiness.config_problem));
    }
    // what waits for a restart makes nothing worse
    *admin.readiness.lock().unwrap() = Readiness { pending_restart: vec!["workers"], store: StoreState::Ok, ..READY };
    let (status, body) = admin.ask("/readyz").await;
    assert!(status == 200 && body.contains(r#""pending_restart":["workers"]"#) && body.contains("ready"), "{body}");
    *admin.readiness.lock().unwrap() = Readiness { store: StoreState::Degraded("redis timeout"), ..READY };
    assert!(admin.ask("/readyz").await.1.contains(r#""store":{"problem":"redis timeout","state":"degraded"}"#));
}

#[tokio::test]
async fn the_process_is_live_whatever_its_replicas_do() {
    let admin = start();
    *admin.readiness.lock().unwrap() = Readiness { draining: true, unhealthy: named(&["a:1", "b:2"]), ..READY };
    assert_eq!(admin.ask("/livez").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn anything_else_is_refused_and_the_index_tells_what_there_is() {
    let admin = start();
    assert!(admin.ask("/").await.1.contains("/readyz"));
    assert_eq!(admin.ask("/v1/agents/").await.0, 404);
    let posted = admin.send("POST /livez HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n").await;
    assert!(posted.starts_with("HTTP/1.1 405") && posted.contains("allow: GET, HEAD"), "{posted}");
    let head = admin.send("HEAD /livez HTTP/1.1\r\nhost: admin\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("content-length: 3") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_places_come_back() {
    let admin = start();
    let mut idle = Vec::new();
    for _ in 0..MOST {
        idle.push(TcpStream::connect(admin.address).await.unwrap());
    }
    // accepted in order, so the ones above hold every place by then
    let mut refused = TcpStream::connect(admin.address).await.unwrap();
    assert_eq!(refused.read(&mut [0]).await.unwrap_or(0), 0);
    drop(idle);
    let served = async {
        loop {
            let mut stream = TcpStream::connect(admin.address).await.unwrap();
            let mut answer = Vec::new();
            let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n").await;
            if asked.is_ok() && stream.read_to_end(&mut answer).await.is_ok() && !answer.is_empty() {
                break;
            }
        }
    };
    timeout(Duration::from_secs(10), served).await.unwrap();
}

#[tokio::test]
async fn a_client_that_sends_half_a_head_is_let_go() {
    let admin = start();
    let mut slow = TcpStream::connect(admin.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nho").await.unwrap();
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(started.elapsed() <= LONGEST, "{:?}", started.elapsed());
}

#[tokio::test]
async fn shutdown_closes_the_listener_and_ends_the_task() {
    let admin = start();
    assert_eq!(admin.ask("/livez").await.0, 200);
    admin.shutdown.cancel();
    timeout(Duration::from_secs(10), admin.task).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(admin.address).await.is_err());
}

#[tokio::test]
async fn an_address_in_use_is_named_in_the_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Admin::bind(&Settings { address }).unwrap_err();
    assert!(error.to_string().starts_with(&format!("admin address {address}: ")), "{error}");
}
