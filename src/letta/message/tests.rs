use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn form(body: &str) -> Result<Canonical, NotCacheable> {
    canonical(body.as_bytes())
}

#[track_caller]
fn same(bodies: &[&str]) {
    let first = form(bodies[0]).unwrap();
    for body in bodies {
        assert_eq!(form(body).as_ref(), Ok(&first), "{body}");
    }
}

/// Each has a form, and none the form of another.
#[track_caller]
fn different(bodies: &[&str]) {
    let forms: Vec<_> = bodies.iter().map(|body| form(body).unwrap_or_else(|why| panic!("{body}: {why:?}"))).collect();
    for (place, one) in forms.iter().enumerate() {
        for (other, body) in forms.iter().zip(bodies).skip(place + 1) {
            assert_ne!(one, other, "{} and {body}", bodies[place]);
        }
    }
}

#[test]
fn a_message_is_the_same_in_each_of_its_spellings() {
    same(&[
        r#"{"input":"hi"}"#,
        r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"messages":[{"content":"hi","role":"user"}]}"#,
        r#" { "messages" : [ { "role" : "us\u0065r", "content" : "h\u0069" } ] } "#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"text":"hi","type":"text","signature":null}]}]}"#,
        r#"{"input":[{"type":"text","text":"hi"}]}"#,
        r#"{"input":"hi","messages":null}"#,
        r#"{"input":null,"messages":[{"type":"message","role":"user","content":"hi"}]}"#,
        r#"{"messages":[{"role":"user","content":"hi","otid":"aaaa"}]}"#,
        r#"{"messages":[{"role":"user","content":"hi","otid":"bbbb","batch_item_id":"c","name":null,"sender_id":null}]}"#,
        r#"{"input":"hi","max_steps":50,"use_assistant_message":true,"assistant_message_tool_name":"send_message"}"#,
        r#"{"input":"hi","assistant_message_tool_kwarg":"message","include_return_message_types":null}"#,
        r#"{"input":"hi","streaming":false,"stream_tokens":false,"include_pings":true,"background":false}"#,
        r#"{"input":"hi","client_tools":null,"callback_url":null,"client_skills":null,"override_model":null}"#,
        r#"{"input":"hi","system":null,"return_logprobs":false,"top_logprobs":null,"include_compaction_messages":false}"#,
    ]);
    same(&[r#"{"input":"hi","system":"be brief"}"#, r#"{"override_system":"be brief","input":"hi"}"#]);
    let types = |list| format!(r#"{{"input":"hi","include_return_message_types":{list}}}"#);
    same(&[
        &types(r#"["assistant_message","reasoning_message"]"#),
        &types(r#"["reasoning_message","assistant_message","reasoning_message"]"#),
    ]);
}

#[test]
fn what_letta_may_answer_otherwise_is_another_message() {
    different(&[
        r#"{"input":"hi"}"#,
        r#"{"input":"hi "}"#,
        r#"{"input":"Hi"}"#,
        r#"{"input":""}"#,
        r#"{"messages":[{"role":"system","content":"hi"}]}"#,
        r#"{"messages":[{"content":"hi"}]}"#,
        r#"{"messages":[{"role":"user","content":"hi","name":"ann"}]}"#,
        r#"{"messages":[{"role":"user","content":"hi","sender_id":"ann"}]}"#,
        r#"{"messages":[{"role":"user","content":"hi","unknown":null}]}"#,
        r#"{"messages":[{"role":"user","content":"hi"},{"role":"user","content":"hi"}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"h"},{"type":"text","text":"i"}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi","signature":"s"}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"aGk="}}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"aGo="}}]}]}"#,
        r#"{"input":"hi","max_steps":1}"#,
        r#"{"input":"hi","max_steps":"50"}"#,
        r#"{"input":"hi","max_steps":null}"#,
        r#"{"input":"hi","use_assistant_message":false}"#,
        r#"{"input":"hi","include_return_message_types":[]}"#,
        r#"{"input":"hi","include_return_message_types":["assistant_message"]}"#,
        r#"{"input":"hi","override_model":"a/b"}"#,
        r#"{"input":"hi","system":"be brief"}"#,
        r#"{"input":"hi","return_logprobs":true}"#,
        r#"{"input":"hi","enable_thinking":"false"}"#,
        r#"{"input":"hi","agent_id":"agent-1"}"#,
        r#"{"input":"hi","unknown":1}"#,
        r#"{"input":"hi","unknown":"1"}"#,
        r#"{"input":"hi","unknown":[1]}"#,
        r#"{"input":"hi","unknown":{"1":1}}"#,
        r#"{"input":"hi","unknown":null}"#,
        r#"{"input":"hi","unknown":18446744073709551615}"#,
        r#"{"input":"hi","unknown":-1}"#,
    ]);
}

#[test]
fn an_answer_that_is_not_for_the_next_asker_has_no_key() {
    let refused = |why, bodies: &[&str]| {
        for body in bodies {
            assert_eq!(form(body), Err(why), "{body}");
        }
    };
    refused(
        NotCacheable::Streams,
        &[
            r#"{"input":"hi","streaming":true}"#,
            r#"{"input":"hi","streaming":1}"#,
            r#"{"input":"hi","streaming":null}"#,
            r#"{"input":"hi","background":true}"#,
            // Letta refuses these unless streaming; the refusal must be Letta's
            r#"{"input":"hi","stream_tokens":true}"#,
            r#"{"input":"hi","include_pings":false}"#,
        ],
    );
    refused(
        NotCacheable::Involves,
        &[r#"{"input":"hi","callback_url":"http://a.test"}"#, r#"{"input":"hi","client_tools":[]}"#],
    );
    refused(
        NotCacheable::Resumes,
        &[
            r#"{"messages":[{"type":"approval","approvals":[]}]}"#,
            r#"{"messages":[{"type":"tool_return","tool_returns":[]}]}"#,
            r#"{"messages":[{"approve":true,"approval_request_id":"message-1"}]}"#,
            r#"{"messages":[{"role":"user","content":"hi","approval_request_id":null}]}"#,
            r#"{"messages":[{"role":"user","content":"hi"},{"type":"approval"}]}"#,
            r#"{"messages":[{"type":null,"role":"user","content":"hi"}]}"#,
        ],
    );
    refused(
        NotCacheable::Content,
        &[
            r#"{"input":[{"type":"image","source":{"type":"url","url":"http://a.test/b.png"}}]}"#,
            r#"{"input":[{"type":"image"}]}"#,
            r#"{"input":[{"type":"tool_return","content":"x"}]}"#,
            r#"{"input":[{"text":"hi"}]}"#,
            r#"{"input":["hi"]}"#,
        ],
    );
}

#[test]
fn what_another_reader_could_take_otherwise_has_no_key() {
    let deep = format!(r#"{{"input":"hi","x":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    for body in [
        "",
        "hi",
        "[]",
        "null",
        "{}",
        r#"{"input":"hi""#,
        r#"{"input":"hi"}{}"#,
        r#"{"input":"hi","input":"ho"}"#,
        r#"{"input":"hi","\u0069nput":"hi"}"#,
        r#"{"messages":[{"role":"user","role":"system","content":"hi"}]}"#,
        r#"{"input":"hi","x":{"a":{"b":1,"b":2}}}"#,
        r#"{"input":"hi","x":0.5}"#,
        r#"{"input":"hi","x":1.0}"#,
        r#"{"input":"hi","x":18446744073709551616}"#,
        r#"{"input":"hi","x":1e3}"#,
        r#"{"input":"hi","x":NaN}"#,
        r#"{"input":"hi","messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"input":null}"#,
        r#"{"input":1}"#,
        r#"{"messages":[]}"#,
        r#"{"messages":{}}"#,
        r#"{"messages":["hi"]}"#,
        r#"{"messages":[{"role":"user","content":null}]}"#,
        r#"{"input":"hi","system":"a","override_system":"b"}"#,
        r#"{"input":"\ud800"}"#,
        &deep,
    ] {
        assert_eq!(form(body), Err(NotCacheable::Unclear), "{body}");
    }
    assert_eq!(canonical(b"{\"input\":\"\xff\"}"), Err(NotCacheable::Unclear));
    assert_eq!(canonical(b"\xef\xbb\xbf{\"input\":\"hi\"}"), Err(NotCacheable::Unclear));
}

#[test]
fn a_body_of_too_many_values_has_no_key() {
    // beside the zeros: the map, its keys, its other value and the list
    let zeros = usize::try_from(json::MOST_VALUES).unwrap() - 5;
    let body = |zeros| format!(r#"{{"input":"hi","x":[{}]}}"#, vec!["0"; zeros].join(","));
    same(&[&body(zeros), &body(zeros).replace(',', ", ")]);
    assert_eq!(form(&body(zeros + 1)), Err(NotCacheable::Unclear));
}

#[test]
fn two_messages_one_after_the_other_do_not_hash_like_one() {
    let digest = |bodies: &[&str]| {
        let mut hash = Sha256::new();
        bodies.iter().for_each(|body| form(body).unwrap().feed(&mut hash));
        hash.finalize()
    };
    let (hi, ho) = (r#"{"input":"hi"}"#, r#"{"input":"ho"}"#);
    assert_eq!(digest(&[hi]), digest(&[r#"{"messages":[{"role":"user","content":"hi"}]}"#]));
    assert_ne!(digest(&[hi, ho]), digest(&[ho, hi]));
    assert_ne!(digest(&[hi, hi]), digest(&[hi]));
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-c]{0,2}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    /// Two values are written alike exactly if they are the same value.
    #[test]
    fn a_form_is_as_good_as_the_value(one in values(), other in values()) {
        let text = |value: &Value| serde_json::json!({"input": "hi", "x": value}).to_string();
        let (first, second) = (form(&text(&one)).unwrap(), form(&text(&other)).unwrap());
        prop_assert_eq!(first == second, one == other);
        let spaced = serde_json::to_string_pretty(&serde_json::json!({"x": one, "input": "hi"})).unwrap();
        prop_assert_eq!(form(&spaced).unwrap(), first);
    }

    #[test]
    fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = canonical(&body);
    }
}
