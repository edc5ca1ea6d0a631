"""Limits of a key, as the official clients meet them."""

import time

import pytest

import gateway as gateways
from clients import Refused
from environment import wait_until
from gateway import ALL_SCOPES, key, key_text

PLANS = {
    "hourly": {"rate": {"requests": 1, "per": "1h", "burst": 1}, "in_flight": 8},
    # Longer than any two requests take, short enough to be waited for.
    "five-seconds": {"rate": {"requests": 1, "per": "5s", "burst": 1}, "in_flight": 8},
    "one-at-a-time": {"rate": {"requests": 100000, "per": "1m", "burst": 1000}, "in_flight": 1},
}


@pytest.fixture
def limited(start_gateway, letta):
    keys = [key(plan, ALL_SCOPES, plan) for plan in PLANS]
    return start_gateway(gateways.config(letta, keys=keys, plans=PLANS))


def user(text):
    return [{"role": "user", "content": text}]


def test_over_the_limit_is_a_rate_limit_error_that_says_when_to_come_back(connect, limited, agent, letta):
    client = connect(limited.url, key="hourly", retries=2)
    marks = letta.mark()
    client.call("agents.messages.create", agent.id, messages=user("within"))
    with pytest.raises(Refused) as refused:
        client.call("agents.messages.create", agent.id, messages=user("too many"))
    assert (refused.value.name, refused.value.status) == ("RateLimitError", 429)
    headers = refused.value.headers
    assert 3500 < int(headers["retry-after"]) <= 3600
    assert 3_500_000 < int(headers["retry-after-ms"]) <= 3_600_000
    assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= headers.keys()
    assert headers["x-ratelimit-remaining"] == "0"
    # An hour is more than a client should sleep through: it is told not to try again, and did not.
    assert headers["x-should-retry"] == "false"
    assert refused.value.attempts == [429]
    assert refused.value.body["detail"] == refused.value.body["message"]
    assert len(letta.requests(marks)) == 1
    assert letta.model.calls("too many") == []


def test_the_clients_own_retry_waits_as_long_as_it_is_told(connect, limited, agent, letta):
    client = connect(limited.url, key="five-seconds", retries=2)
    marks = letta.mark()
    client.call("agents.retrieve", agent.id)
    reply = client.call("agents.retrieve", agent.id)
    # Sooner, it would have been refused once more.
    assert reply.attempts == [429, 200]
    assert len(letta.requests(marks)) == 2


def test_without_retries_the_client_raises_at_once(connect, limited, agent):
    client = connect(limited.url, key="five-seconds", retries=0)
    client.call("agents.retrieve", agent.id)
    with pytest.raises(Refused) as refused:
        client.call("agents.retrieve", agent.id)
    assert refused.value.name == "RateLimitError"
    assert 1 <= int(refused.value.headers["retry-after"]) <= 5
    assert refused.value.headers.get("x-should-retry") != "false"


def test_one_keys_limit_is_not_anothers(connect, limited, agent):
    spent = connect(limited.url, key="hourly")
    spent.call("agents.retrieve", agent.id)
    with pytest.raises(Refused):
        spent.call("agents.retrieve", agent.id)
    other = connect(limited.url, key="team")
    assert [other.call("agents.retrieve", agent.id).status for _ in range(3)] == [200] * 3


def test_a_stream_is_in_flight_until_its_last_byte(connect, limited, agent, letta):
    client = connect(limited.url, key="one-at-a-time")
    text = f"[[tokens=30]] [[hold={agent.id}]] talking"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    stream.until("assistant_message")
    marks = letta.mark()
    with pytest.raises(Refused) as refused:
        client.call("agents.retrieve", agent.id)
    assert (refused.value.name, refused.value.status) == ("RateLimitError", 429)
    assert int(refused.value.headers["retry-after"]) >= 1
    assert letta.requests(marks) == []
    letta.model.release(agent.id)
    list(stream)

    def free_again():
        try:
            return client.call("agents.retrieve", agent.id).status == 200
        except Refused as refused:
            assert refused.status == 429
            return False

    wait_until(free_again, "the stream's place is free again", seconds=20)


def test_a_tutorials_retry_loop_gets_through(http, limited, agent):
    http.headers = {"Authorization": f"Bearer {key_text('five-seconds')}"}
    seen = []
    for _ in range(2):
        while (answer := http.send("GET", f"{limited.url}/agents/{agent.id}")).status == 429:
            seen.append(int(answer.headers["retry-after"]))
            assert len(seen) < 5
            time.sleep(seen[-1])
        assert answer.status == 200
    assert len(seen) == 1
