//! HTTP/1.1, and the choice of the protocol on plaintext: tables of bytes under a paused clock.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};

use super::{HANDSHAKE, HEADER, IDLE, Rig, TICK, WRITE, read_response, read_to_close};

/// Sends `bytes` and waits for the close: how long it took, and the errors counted.
async fn silent_after(bytes: &[u8]) -> (Duration, Vec<String>) {
    let rig = Rig::plain();
    let mut client = rig.connect();
    let begun = Instant::now();
    client.write_all(bytes).await.unwrap();
    read_to_close(&mut client).await;
    let took = begun.elapsed();
    drop(client);
    rig.all_over(Duration::ZERO + TICK).await;
    (took, rig.errors())
}

#[tokio::test(start_paused = true)]
async fn silence_closes_a_connection_and_only_half_done_things_are_errors() {
    let whole = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".as_slice();
    let head = [whole, b"GET / HT"].concat();
    let table: &[(&[u8], Duration, &[&str])] = &[
        (b"", HANDSHAKE, &[]),
        (b"P", HANDSHAKE, &["preface=1"]),
        (b"PRI * HT", HANDSHAKE, &["preface=1"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", HANDSHAKE, &["preface=1"]),
        (b"G", HEADER, &["header_timeout=1"]),
        (b"GET / HTTP/1.1\r\nhost: a", HEADER, &["header_timeout=1"]),
        (b"POST / HTTP/1.1\r\nhost: a\r\n", HEADER, &["header_timeout=1"]),
        (whole, IDLE, &[]),
        // what came with the request before is known to hyper alone, and counts as idleness
        (&head, IDLE, &[]),
    ];
    for (bytes, expected, errors) in table {
        let (took, counted) = silent_after(bytes).await;
        let name = String::from_utf8_lossy(bytes);
        assert!(took >= *expected && took <= *expected + TICK, "{name:?}: closed after {took:?}, not {expected:?}");
        assert_eq!(counted, *errors, "{name:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickled_head_gets_no_more_time_than_a_stopped_one() {
    for before in [&b""[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let rig = Rig::plain();
        let mut client = rig.connect();
        if !before.is_empty() {
            client.write_all(before).await.unwrap();
            read_response(&mut client).await;
            sleep(IDLE - Duration::from_secs(5)).await;
        }
        let begun = Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        while client.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(700)).await;
        }
        let took = begun.elapsed();
        assert!(took >= HEADER && took <= HEADER + 2 * TICK, "closed after {took:?}");
        assert_eq!(rig.errors(), ["header_timeout=1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_starts_the_idle_time_anew() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    for _ in 0..5 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (head, body) = read_response(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, "hello");
        sleep(IDLE - TICK).await;
    }
    assert_eq!(rig.served(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_is_never_idle() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    client.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(20 * IDLE).await;
    rig.world.go.notify_one();
    assert_eq!(read_response(&mut client).await.1, "waited");
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    let request =
        |body: &str| format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    client.write_all([request("one"), request("two"), request("three")].concat().as_bytes()).await.unwrap();
    for expected in ["one", "two", "three"] {
        assert_eq!(read_response(&mut client).await.1, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off_and_holds_64_kib_at_most() {
    let rig = Rig::plain();
    let mut client = rig.connect_with(1024);
    let begun = Instant::now();
    client.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    rig.all_over(WRITE + TICK).await;
    assert!(begun.elapsed() >= WRITE);
    assert_eq!(rig.errors(), ["write_timeout=1"]);
    let handed = rig.world.handed.load(std::sync::atomic::Ordering::SeqCst);
    assert!(handed <= 64 * 1024, "{handed} bytes were held");
    rig.all_let_go(Duration::ZERO + TICK).await;
    assert!(!read_to_close(&mut client).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_that_takes_something_is_not_cut_off() {
    let rig = Rig::plain();
    let mut client = rig.connect_with(64 * 1024);
    client.write_all(b"GET /megabyte HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut all = 0;
    let mut piece = vec![0; 32 * 1024];
    loop {
        sleep(WRITE - 2 * TICK).await;
        match client.read(&mut piece).await.unwrap() {
            0 => break,
            read => all += read,
        }
    }
    assert!(all > 1 << 20, "{all} bytes came");
    assert_eq!(rig.errors(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_http_is_refused_and_counted() {
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(17 * 1024));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(101));
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "y".repeat(17 * 1024));
    let table: &[(&[u8], &str, &str)] = &[
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "HTTP/1.1 400 ", "parse=1"),
        (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", "HTTP/1.1 400 ", "parse=1"),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "HTTP/1.1 400 ", "parse=1"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n", "HTTP/1.1 400 ", "parse=1"),
        (large.as_bytes(), "HTTP/1.1 431 ", "too_large=1"),
        (many.as_bytes(), "HTTP/1.1 431 ", "too_large=1"),
        (long.as_bytes(), "HTTP/1.1 431 ", "too_large=1"),
    ];
    for (bytes, status, error) in table {
        let rig = Rig::plain();
        let mut client = rig.connect();
        client.write_all(bytes).await.unwrap();
        let name = String::from_utf8_lossy(bytes.get(..60).unwrap_or(bytes));
        let answer = String::from_utf8(read_to_close(&mut client).await).unwrap();
        assert!(answer.starts_with(status), "{name:?}: {answer:?}");
        drop(client);
        rig.all_over(TICK).await;
        assert_eq!(rig.errors(), [*error], "{name:?}");
        assert_eq!(rig.served(), 0, "{name:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_tunnel_opens_behind_connect() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    // the service says 200
    client.write_all(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n").await.unwrap();
    let (head, _) = read_response(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    // the connection is one of HTTP still
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!(read_response(&mut client).await.1, "hello");
}

#[tokio::test(start_paused = true)]
async fn upgrade_is_not_heard() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    let upgrade = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    for _ in 0..2 {
        client.write_all(upgrade).await.unwrap();
        let (head, body) = read_response(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, "hello");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_request_is_under_way_is_the_next_one_however_it_comes() {
    let next = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz";
    for pieces in [next.len(), 40, 24, 7, 1] {
        let rig = Rig::plain();
        let mut client = rig.connect();
        client.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        rig.serves(1).await;
        for piece in next.chunks(pieces) {
            client.write_all(piece).await.unwrap();
            // all that can be read is read before time goes on
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(rig.served(), 1, "one after the other");
        rig.world.go.notify_one();
        assert_eq!(read_response(&mut client).await.1, "waited");
        assert_eq!(read_response(&mut client).await.1, "abcdefghijklmnopqrstuvwxyz", "in pieces of {pieces}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_has_asked_for_yet_comes_whole() {
    let body = "abcdefghijklmnopqrstuvwxyz".repeat(3);
    let rig = Rig::plain();
    let mut client = rig.connect();
    let head = format!("POST /wait-and-echo HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write_all(head.as_bytes()).await.unwrap();
    rig.serves(1).await;
    client.write_all(&body.as_bytes()[..30]).await.unwrap();
    sleep(TICK).await;
    rig.world.go.notify_one();
    sleep(TICK).await;
    client.write_all(&body.as_bytes()[30..]).await.unwrap();
    assert_eq!(read_response(&mut client).await.1, body);
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_be_told_to_go_on_with_a_body_is_told() {
    let rig = Rig::plain();
    let mut client = rig.connect();
    let head = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n";
    client.write_all(head).await.unwrap();
    assert!(read_response(&mut client).await.0.starts_with("HTTP/1.1 100 "));
    client.write_all(b"abc").await.unwrap();
    assert_eq!(read_response(&mut client).await.1, "abc");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_and_closes_its_side_has_left() {
    let rig = Rig::plain();
    let mut client = rig.connect_with(1024);
    client.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    rig.serves(1).await;
    sleep(TICK).await;
    client.shutdown().await.unwrap();
    rig.all_let_go(TICK).await;
    assert_eq!(rig.errors(), ["incomplete=1"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_or_closes_its_side_cancels_its_request() {
    for leaves in [true, false] {
        let rig = Rig::plain();
        let mut client = rig.connect();
        client.write_all(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        rig.serves(1).await;
        if leaves {
            drop(client);
        } else {
            client.shutdown().await.unwrap();
        }
        rig.all_let_go(TICK).await;
        rig.all_over(TICK).await;
        assert_eq!(rig.errors(), ["incomplete=1"]);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_refused_upload_are_read_until_the_client_has_its_answer() {
    let rig = Rig::plain();
    let mut client = rig.connect_with(1024);
    client.write_all(b"POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    for _ in 0..20 {
        client.write_all(&[b'u'; 1024]).await.expect("the connection is closed under the upload");
    }
    let (head, body) = read_response(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(body, "no");
    // but not for ever
    rig.all_over(Duration::from_secs(3)).await;
    assert_eq!(rig.errors(), [""; 0]);
}
