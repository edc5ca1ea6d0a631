"""What the gateway tells of the official clients' requests: one line each, and counts that name nobody."""

import uuid

import pytest

from clients import Refused
from environment import wait_until
from gateway import key_text


def user(text):
    return [{"role": "user", "content": text}]


def line_of(gateway, request_id):
    """The one access-log line of this request."""
    lines = wait_until(
        lambda: [line for line in gateway.access_log() if line["request_id"] == request_id], "the access log's line", 20
    )
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def request_id():
    return f"request-{uuid.uuid4()}"


@pytest.fixture
def named(connect, gateway, request_id):
    """A client whose one request is known by its id."""
    return connect(gateway.url, headers={"X-Request-Id": request_id})


def test_a_message_is_one_line_in_the_access_log(named, request_id, gateway, agent):
    reply = named.call("agents.messages.create", agent.id, messages=user("hello"))
    assert reply.headers["x-request-id"] == request_id
    line = line_of(gateway, request_id)
    assert (line["method"], line["route"], line["agent"]) == ("POST", "/v1/agents/{agent_id}/messages", agent.id)
    assert (line["key"], line["status"], line["ended_by"], line["attempts"]) == ("team", 200, "complete", 1)
    assert line["overhead_ms"] > 0
    assert line["upstream_ms"] > 0
    # But for the microsecond that each is cut to.
    assert line["overhead_ms"] + line["upstream_ms"] <= line["duration_ms"] + 0.01
    assert line["bytes_in"] > 0
    assert line["bytes_out"] > 0


def test_a_stream_that_was_read_to_its_end_is_complete(named, request_id, gateway, agent):
    """Both clients hang up at [DONE], a little before Letta ends the body: nobody broke anything off."""
    text = "[[tokens=10]] [[rate=20]]"
    stream = named.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    list(stream)
    line = line_of(gateway, request_id)
    assert (line["status"], line["ended_by"]) == (200, "complete")
    # As long as it takes to say it: the first word comes at once, each other one after a pause.
    assert line["ttfb_ms"] < line["duration_ms"]


def test_a_client_that_leaves_a_stream_is_named_as_who_ended_it(named, request_id, gateway, agent):
    text = "[[tokens=30]] [[rate=10]]"
    stream = named.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    stream.until("assistant_message")
    stream.close()
    assert line_of(gateway, request_id)["ended_by"] == "client"


def test_a_refusal_is_a_line_with_its_reason(connect, gateway, request_id):
    stranger = connect(gateway.url, key="nobody", headers={"X-Request-Id": request_id})
    with pytest.raises(Refused) as refused:
        stranger.call("agents.list")
    line = line_of(gateway, request_id)
    assert (line["status"], line["ended_by"]) == (401, "gateway")
    assert line["reason"] == refused.value.body["error"]["type"]
    assert "upstream" not in line


def test_what_is_told_holds_no_secret_and_no_word_of_a_conversation(client, gateway, agent, letta):
    secret = f"between us {uuid.uuid4()}"
    client.call("agents.messages.create", agent.id, messages=user(secret))
    list(client.call("agents.messages.create", agent.id, messages=user(secret), streaming=True))
    metrics = gateway.metrics()
    told = str(gateway.output) + metrics
    for hidden in (secret, key_text("team"), letta.password):
        assert hidden not in told
    # An access log names the agent; a metric, which is kept for ever, does not.
    assert agent.id not in metrics
    assert "letta_gateway_requests_total" in metrics
