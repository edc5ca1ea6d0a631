//! How what gateways tell each other of a turn is written. The first byte is the version: what is of another one is not
//! understood, which is as if it were not there.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Fate};
use crate::letta::routes::Sends;
use crate::telemetry::record::Exchange;
use crate::turn::Index;
use crate::turn::log::{Ended, Head};
use crate::turn::shared::Turn;

const VERSION: u8 = 1;
/// That of a note: counts on when a message is found by another index.
const NOTE_VERSION: u8 = 2;
/// The end of an answer of which more was said than was told.
pub(super) const CUT: Bytes = Bytes::new();

/// What stands beside an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::turn) struct Note {
    pub streams: bool,
    pub sends: Sends,
    pub message: Index,
}

impl Note {
    pub(super) fn of(turn: &Turn) -> Self {
        Self { streams: turn.streams, sends: turn.sends, message: turn.marks.message }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(3 + self.message.len());
        bytes.put_slice(&[NOTE_VERSION, u8::from(self.streams), self.sends as u8]);
        bytes.put_slice(&self.message);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[NOTE_VERSION, streams, sends], message) = bytes.split_first_chunk()? else { return None };
        let sends = Sends::ALL.into_iter().find(|known| *known as u8 == sends)?;
        Some(Self { streams: streams != 0, sends, message: message.try_into().ok()? })
    }
}

/// The head of an answer. `None`: it is longer than can be told.
pub(super) fn head(head: &Head) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(256);
    bytes.put_u8(VERSION);
    bytes.put_u16(head.status.as_u16());
    for (name, value) in &head.headers {
        bytes.put_u16(u16::try_from(name.as_str().len()).ok()?);
        bytes.put_slice(name.as_str().as_bytes());
        bytes.put_u32(u32::try_from(value.len()).ok()?);
        bytes.put_slice(value.as_bytes());
    }
    Some(bytes.freeze())
}

pub(super) fn read_head(mut bytes: Bytes) -> Option<Head> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let status = StatusCode::from_u16(bytes.try_get_u16().ok()?).ok()?;
    let mut headers = HeaderMap::new();
    while bytes.has_remaining() {
        let length = usize::from(bytes.try_get_u16().ok()?);
        let name = HeaderName::from_bytes(&taken(&mut bytes, length)?).ok()?;
        let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        let value = HeaderValue::from_maybe_shared(taken(&mut bytes, length)?).ok()?;
        headers.append(name, value);
    }
    Some(Head { status, headers, exchange: Exchange::default() })
}

fn taken(bytes: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

/// How an answer ended.
#[derive(Serialize, Deserialize)]
struct End<'a> {
    how: How,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fate: Option<Fate>,
    /// What the clients of its own gateway were told.
    #[serde(default, borrow)]
    text: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timed_out: Option<std::time::Duration>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum How {
    Whole,
    Told,
    Failed,
}

/// `None`: it did not end, its gateway did.
pub(super) fn end(ended: &Ended) -> Option<Bytes> {
    let (how, error) = match ended {
        Ended::Whole => (How::Whole, None),
        Ended::Told(error) => (How::Told, Some(error)),
        Ended::Failed(error) => (How::Failed, Some(error)),
    };
    let mut end = End { how, run: None, fate: None, text: "".into(), timed_out: None };
    match error {
        Some(Error::Draining | Error::CutOff) => return None,
        Some(Error::TurnLost { run, fate, error }) => {
            (end.run, end.fate) = (run.clone(), Some(*fate));
            if let Error::UpstreamTimeout { after, .. } = &**error {
                end.timed_out = Some(*after);
            }
            end.text = error.to_string().into();
        }
        Some(error) => end.text = error.to_string().into(),
        None => {}
    }
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, &end).ok()?;
    Some(bytes.into())
}

pub(super) fn read_end(bytes: &[u8]) -> Option<Ended> {
    let (&VERSION, json) = bytes.split_first()? else { return None };
    let end: End<'_> = serde_json::from_slice(json).ok()?;
    let upstream = || String::from("of another gateway");
    let error = match end.timed_out {
        Some(after) => Error::UpstreamTimeout { upstream: upstream(), after },
        None => Error::UpstreamClosed { upstream: upstream(), sent: true, cause: end.text.into_owned().into() },
    };
    let lost = Error::TurnLost { run: end.run, fate: end.fate.unwrap_or(Fate::Unknown), error: Box::new(error) };
    Some(match end.how {
        How::Whole => Ended::Whole,
        How::Told => Ended::Told(lost),
        How::Failed => Ended::Failed(lost),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_told_obs_text_and_repeated_names_included() {
        let mut headers = HeaderMap::new();
        headers.append("content-type", HeaderValue::from_static("application/json"));
        headers.append("x-two", HeaderValue::from_static("1"));
        headers.append("x-two", HeaderValue::from_bytes(&[0xe4]).unwrap());
        let told =
            head(&Head { status: StatusCode::ACCEPTED, headers: headers.clone(), exchange: Exchange::default() });
        let read = read_head(told.clone().unwrap()).unwrap();
        assert_eq!((read.status, read.headers), (StatusCode::ACCEPTED, headers));
        let told = told.unwrap();
        for length in 0..told.len() {
            // whatever is cut off, nothing is made up
            if let Some(read) = read_head(told.slice(..length)) {
                assert!(read.headers.len() < 3);
            }
        }
    }

    #[test]
    fn how_an_answer_ended_is_read_as_it_was_told() {
        let error = Error::UpstreamTimeout { upstream: "a:1".into(), after: std::time::Duration::from_secs(120) };
        let lost =
            || Error::TurnLost { run: Some("run-1".into()), fate: Fate::Running, error: Box::new(error.again()) };
        let read = |ended: &Ended| read_end(&end(ended).unwrap()).unwrap();
        assert!(matches!(read(&Ended::Whole), Ended::Whole));
        match read(&Ended::Told(lost())) {
            Ended::Told(read) => assert_eq!(read.to_string(), lost().to_string()),
            _ => panic!("not what was told"),
        }
        assert!(matches!(read(&Ended::Failed(lost())), Ended::Failed(Error::TurnLost { .. })));
        assert!(end(&Ended::Failed(Error::CutOff)).is_none(), "a gateway that ends says nothing of its turns' ends");
        assert!(read_end(b"\x02{}").is_none() && read_end(b"").is_none());
    }

    #[test]
    fn a_note_is_read_as_it_was_told_and_another_version_is_not() {
        let note = Note { streams: true, sends: Sends::Conversation, message: [7; 32] };
        let told = note.encode();
        assert_eq!(Note::decode(&told), Some(note));
        assert_eq!(Note::decode(told.get(..34).unwrap()), None);
        for version in (0..=u8::MAX).filter(|version| *version != NOTE_VERSION) {
            let mut other = told.to_vec();
            other[0] = version;
            assert_eq!(Note::decode(&other), None, "{version}");
        }
    }
}
