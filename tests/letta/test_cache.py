"""Answers that the gateway gives again without asking Letta."""

import pytest

import environment
import gateway as gateways
from clients import Refused
from environment import MODEL, wait_until
from gateway import ALL_SCOPES, key

KEYS = [key("other-team", ALL_SCOPES)]


@pytest.fixture(scope="session")
def gateway_redis(letta):
    """A Redis of the gateways' own; Letta's is not to be shared."""
    redis = environment.Redis(letta.folder, "gateway-redis")
    yield redis
    redis.stop()


def in_redis(redis):
    """With a time budget that no loaded machine exceeds: what happens over it is tested elsewhere."""
    return {"redis": {"url": redis.url, "timeout": "10s"}}


@pytest.fixture
def start_caching(start_gateway):
    """Starts gateways whose store is there."""

    def start(settings):
        gateway = start_gateway(settings)
        wait_until(gateway.has_store, "the gateway has its store")
        return gateway

    return start


@pytest.fixture(params=["in-process", "redis"])
def caching(request, start_caching, letta):
    """A gateway that caches for every agent, in each of its stores."""
    settings = gateways.config(letta, keys=KEYS, cache={"agents": ["*"], "ttl": "1h"})
    if request.param == "redis":
        settings["store"] = in_redis(request.getfixturevalue("gateway_redis"))
    return start_caching(settings)


def user(text):
    return [{"role": "user", "content": text}]


def cache_status(reply):
    """`hit` or `fwd=…`, the first parameter of the gateway's entry."""
    name, first, *_ = [part.strip() for part in reply.headers["cache-status"].split(";")]
    assert name == "letta-gateway"
    return first


def history(direct, agent):
    return direct.call("agents.messages.list", agent.id, limit=100).value


def test_a_repeated_message_is_answered_without_letta(connect, caching, agent, letta, direct):
    client = connect(caching.url)
    first = client.call("agents.messages.create", agent.id, messages=user(f"what is tea? {agent.id}"))
    assert cache_status(first).startswith("fwd=")
    before = history(direct, agent)
    marks = letta.mark()

    second = client.call("agents.messages.create", agent.id, messages=user(f"what is tea? {agent.id}"))
    assert cache_status(second) == "hit"
    assert int(second.headers["age"]) >= 0
    assert second.value == first.value
    assert letta.requests(marks) == []
    assert len(letta.model.calls(agent.id)) == 1
    assert history(direct, agent) == before


def test_the_same_message_in_another_form_is_the_same(connect, caching, agent, letta):
    client = connect(caching.url)
    text = f"in any form {agent.id}"
    client.call("agents.messages.create", agent.id, messages=user(text))
    for form in (
        {"input": text},
        {"messages": [{"role": "user", "content": text, "otid": "11111111-1111-4111-8111-111111111111"}]},
        {"messages": [{"content": text, "role": "user"}]},
    ):
        assert cache_status(client.call("agents.messages.create", agent.id, **form)) == "hit"
    assert len(letta.model.calls(agent.id)) == 1


def test_another_message_key_agent_or_field_is_another_entry(connect, caching, agent, direct, letta):
    client, text = connect(caching.url), f"mine alone {agent.id}"
    other_agent = direct.call("agents.create", name="other", model=MODEL, include_base_tools=False).value["id"]
    client.call("agents.messages.create", agent.id, messages=user(text))
    for sender, to, body in (
        (client, agent.id, {"messages": user(text + "!")}),
        (client, agent.id, {"messages": user(text), "max_steps": 3}),
        (client, other_agent, {"messages": user(text)}),
        (connect(caching.url, key="other-team"), agent.id, {"messages": user(text)}),
    ):
        assert cache_status(sender.call("agents.messages.create", to, **body)).startswith("fwd=")
    assert len(letta.model.calls(agent.id)) == 5


def test_a_client_may_insist_on_a_fresh_answer(connect, caching, agent, letta):
    text = f"fresh {agent.id}"
    plain = connect(caching.url)
    fresh = connect(caching.url, headers={"Cache-Control": "no-cache"})
    aside = connect(caching.url, headers={"Cache-Control": "no-store"})
    aside.call("agents.messages.create", agent.id, messages=user(text))
    assert cache_status(plain.call("agents.messages.create", agent.id, messages=user(text))).startswith("fwd=")
    assert cache_status(fresh.call("agents.messages.create", agent.id, messages=user(text))).startswith("fwd=")
    assert cache_status(plain.call("agents.messages.create", agent.id, messages=user(text))) == "hit"
    assert len(letta.model.calls(agent.id)) == 3


def test_a_failed_turn_and_a_stream_are_not_stored(connect, caching, agent, letta):
    client = connect(caching.url)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            client.call("agents.messages.create", agent.id, messages=user(f"[[status=401]] {agent.id}"))
        assert refused.value.body["error"]["type"] == "llm_authentication"
    assert len(letta.model.calls(agent.id)) == 2
    for _ in range(2):
        events = list(client.call("agents.messages.create", agent.id, messages=user(f"flow {agent.id}"), streaming=True))
        assert events[-1]["message_type"] == "usage_statistics"
    assert len(letta.model.calls(agent.id)) == 4


def test_only_the_agents_that_are_named_are_cached(connect, start_gateway, agent, direct, letta):
    other = direct.call("agents.create", name="not named", model=MODEL, include_base_tools=False).value["id"]
    gateway = start_gateway(gateways.config(letta, cache={"agents": [agent.id], "ttl": "1h"}))
    client = connect(gateway.url)
    for _ in range(2):
        client.call("agents.messages.create", agent.id, messages=user(f"named {agent.id}"))
        reply = client.call("agents.messages.create", other, messages=user(f"other {agent.id}"))
    assert len(letta.model.calls(f"named {agent.id}")) == 1
    assert len(letta.model.calls(f"other {agent.id}")) == 2
    assert "hit" not in reply.headers.get("cache-status", "")


def test_without_a_cache_every_message_reaches_letta(client, agent, letta):
    for _ in range(2):
        client.call("agents.messages.create", agent.id, messages=user(f"again {agent.id}"))
    assert len(letta.model.calls(agent.id)) == 2


def test_an_entry_ends_with_its_time_to_live(connect, start_gateway, agent, letta):
    gateway = start_gateway(gateways.config(letta, cache={"agents": ["*"], "ttl": "1s"}))
    client, text = connect(gateway.url), f"for a second {agent.id}"
    client.call("agents.messages.create", agent.id, messages=user(text))

    def asked_again():
        reply = client.call("agents.messages.create", agent.id, messages=user(text))
        if cache_status(reply) != "hit":
            return True
        assert int(reply.headers["age"]) <= 1, "given again after its time"
        assert len(letta.model.calls(agent.id)) == 1
        return False

    wait_until(asked_again, "Letta is asked again")
    assert len(letta.model.calls(agent.id)) == 2


def test_gateways_that_share_a_redis_share_their_answers(connect, start_caching, gateway_redis, agent, letta):
    settings = gateways.config(letta, cache={"agents": ["*"], "ttl": "1h"}, store=in_redis(gateway_redis))
    one, two = (connect(start_caching(settings).url) for _ in range(2))
    first = one.call("agents.messages.create", agent.id, messages=user(f"to both {agent.id}"))
    second = two.call("agents.messages.create", agent.id, messages=user(f"to both {agent.id}"))
    assert cache_status(second) == "hit"
    assert second.value == first.value
    assert len(letta.model.calls(agent.id)) == 1


def test_requests_go_on_when_redis_is_gone(connect, start_caching, agent, letta):
    redis = environment.Redis(letta.folder, "short-lived-redis")
    settings = gateways.config(letta, cache={"agents": ["*"], "ttl": "1h"}, store=in_redis(redis))
    client = connect(start_caching(settings).url)
    text = f"with or without {agent.id}"
    client.call("agents.messages.create", agent.id, messages=user(text))
    redis.stop()
    reply = client.call("agents.messages.create", agent.id, messages=user(text))
    assert reply.status == 200
    assert cache_status(reply).startswith("fwd=")
    assert len(letta.model.calls(agent.id)) == 2
