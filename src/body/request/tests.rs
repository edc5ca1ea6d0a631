use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::*;

/// A request body as hyper's server side makes it, with the client's end of the connection.
pub(in crate::body) async fn posted(head: &str) -> (RequestBody, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let (arrived, mut requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let service = service_fn(move |request: http::Request<Incoming>| {
            arrived.send(request.into_body()).unwrap();
            std::future::pending::<Result<http::Response<String>, std::convert::Infallible>>()
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await
    });
    client.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n").as_bytes()).await.unwrap();
    (RequestBody::incoming(requests.recv().await.unwrap()), client)
}

async fn all(mut body: RequestBody) -> Result<Bytes, Error> {
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await? {
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}

#[tokio::test]
async fn a_short_body_is_read_whole() {
    let (body, mut client) = posted("content-length: 6").await;
    client.write_all(b"abc").await.unwrap();
    client.write_all(b"def").await.unwrap();
    let Ok(Read::Whole(bytes)) = body.read(6).await else { panic!("not whole") };
    assert_eq!(bytes, "abcdef");
}

#[tokio::test]
async fn nothing_read_of_a_longer_body_is_lost() {
    let (body, mut client) = posted("transfer-encoding: chunked").await;
    client.write_all(b"3\r\nabc\r\n3\r\ndef\r\n").await.unwrap();
    let Ok(Read::Longer(mut body)) = body.read(4).await else { panic!("whole") };
    let meter = body.meter().unwrap();
    client.write_all(b"3\r\nghi\r\n0\r\nt: 1\r\n\r\n").await.unwrap();
    assert_eq!(all(body).await.unwrap(), "abcdefghi");
    assert_eq!(meter.bytes(), 9);
}

#[tokio::test]
async fn an_announced_longer_body_is_not_touched() {
    let (body, _client) = posted("content-length: 7").await;
    let Ok(Read::Longer(body)) = body.read(6).await else { panic!("not longer") };
    assert!(matches!(body.0, Content::Coming(coming) if coming.taken == 0));
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused_at_once_if_announced_and_when_it_comes_if_not() {
    let (body, _client) = posted("content-length: 7").await;
    assert!(matches!(body.within(6), Err(Error::BodyTooLarge { limit: 6 })));

    let (body, mut client) = posted("transfer-encoding: chunked").await;
    client.write_all(b"4\r\nabcd\r\n4\r\nefgh\r\n").await.unwrap();
    let mut body = body.within(6).unwrap();
    let meter = body.meter().unwrap();
    assert!(matches!(all(body).await, Err(Error::BodyTooLarge { limit: 6 })));
    assert!(matches!(meter.failure(), Some(Error::BodyTooLarge { limit: 6 })));
}

#[tokio::test]
async fn the_limit_counts_what_a_step_has_read() {
    let (body, mut client) = posted("transfer-encoding: chunked").await;
    client.write_all(b"4\r\nabcd\r\n").await.unwrap();
    let Ok(Read::Longer(body)) = body.read(2).await else { panic!("whole") };
    client.write_all(b"4\r\nefgh\r\n0\r\n\r\n").await.unwrap();
    assert!(matches!(all(body.within(7).unwrap()).await, Err(Error::BodyTooLarge { limit: 7 })));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_doing() {
    for (head, sent) in [("content-length: 7", "abc"), ("transfer-encoding: chunked", "x\r\n")] {
        let (mut body, mut client) = posted(head).await;
        client.write_all(sent.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let meter = body.meter().unwrap();
        assert!(matches!(all(body).await, Err(Error::BodyBroken(_))), "{head}");
        let failure = meter.failure().unwrap();
        assert!(std::error::Error::source(&failure).unwrap().is::<hyper::Error>(), "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_sending_is_not_waited_for_for_ever() {
    let (body, mut client) = posted("content-length: 7").await;
    client.write_all(b"abc").await.unwrap();
    assert!(matches!(body.read(7).await, Err(Error::BodyTimeout)));
}

#[tokio::test]
async fn only_a_whole_body_can_go_twice() {
    let body = RequestBody::whole("abc".into());
    assert_eq!(all(body.again().unwrap()).await.unwrap(), "abc");
    assert_eq!(all(body).await.unwrap(), "abc");
    assert!(RequestBody::empty().again().is_some());
    assert!(RequestBody::whole("abc".into()).meter().is_none(), "nothing more is to be learnt of it");
    let (body, _client) = posted("content-length: 7").await;
    assert!(body.again().is_none());
}

#[test]
fn a_body_is_no_larger_than_its_bytes() {
    assert_eq!(size_of::<RequestBody>(), size_of::<Bytes>());
}
