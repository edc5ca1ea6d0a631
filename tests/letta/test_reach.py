"""Keys that act as Letta users of their own, and keys that are limited to one agent: what each sees of the others."""

import json

import pytest

import gateway as gateways
from clients import Refused, Requests
from environment import MODEL

ALL = ["read", "message", "modify"]


def user(text):
    return [{"role": "user", "content": text}]


def make_user(letta, name):
    """A Letta user in an organisation of its own: Letta shares everything within one."""
    direct, url = Requests(letta.password), letta.replicas[0].url
    organisation = ask(direct, "POST", f"{url}/v1/admin/orgs/", {"name": name})
    return ask(direct, "POST", f"{url}/v1/admin/users/", {"name": name, "organization_id": organisation["id"]})["id"]


def make_agent(client, name):
    made = client.call("agents.create", name=name, model=MODEL, memory_blocks=[], include_base_tools=False)
    return made.value["id"]


def ask(client, method, url, body=None):
    return json.loads(client.send(method, url, body).value)


def ids(reply):
    return {item["id"] for item in reply.value}


def test_keys_with_users_of_their_own_see_only_their_own_agents(connect, start_gateway, letta):
    keys = [{**gateways.key(name, ALL), "letta_user": make_user(letta, name)} for name in ("alice", "bob")]
    gateway = start_gateway(gateways.config(letta, keys=keys))
    clients = {name: connect(gateway.url, key=name) for name in ("alice", "bob")}
    agents = {name: make_agent(client, name) for name, client in clients.items()}
    for name, client in clients.items():
        assert ids(client.call("agents.list")) == {agents[name]}
        other = agents["bob" if name == "alice" else "alice"]
        for call in ("agents.retrieve", "agents.messages.list"):
            with pytest.raises(Refused) as refused:
                client.call(call, other)
            assert refused.value.status == 404
        with pytest.raises(Refused) as refused:
            client.call("agents.messages.create", other, messages=user("not mine"))
        assert refused.value.status == 404
        reply = client.call("agents.messages.create", agents[name], messages=user("mine"))
        assert reply.value["messages"][-1]["content"] == "echo: mine"
        # what the body of a chat completion says of the user is no matter
        chosen = {"model": agents[name], "stream": True, "user": keys[0]["letta_user"], "messages": user("chat")}
        assert Requests(gateways.key_text(name)).send("POST", f"{gateway.url}/v1/chat/completions", chosen).status == 200
    assert letta.model.calls("not mine") == []


@pytest.fixture
def two(connect, start_gateway, letta):
    """A gateway with a key for the first of two agents, which both have said something."""
    team = gateways.config(letta)
    first = start_gateway(team)
    wide = connect(first.url)
    own, other = make_agent(wide, "own"), make_agent(wide, "other")
    key = {**gateways.key("limited", [*ALL, "admin"]), "agents": [own]}
    gateway = start_gateway(gateways.config(letta, keys=[key]))
    for agent in (own, other):
        wide.call("agents.messages.create", agent, messages=user("hello"))
    return gateway, connect(gateway.url, key="limited"), own, other


def test_a_key_of_one_agent_sees_its_own_in_every_list(two):
    gateway, client, own, other = two
    assert ids(client.call("agents.list")) == {own}
    raw = Requests(gateways.key_text("limited"))
    # not /v1/steps/: Letta 0.16.8 answers 400 to every key
    for path in ("/v1/runs/", "/v1/conversations/", "/v1/runs/active"):
        answer = raw.send("GET", gateway.url + path)
        assert answer.status == 200 and {item["agent_id"] for item in json.loads(answer.value)} <= {own}, (path, answer.value)
    assert ask(raw, "GET", f"{gateway.url}/v1/runs/") != []
    reply = client.call("agents.messages.create", own, messages=user("mine"))
    assert reply.value["messages"][-1]["content"] == "echo: mine"


def test_nothing_of_another_agents_is_fetched_by_its_id(two, letta):
    gateway, client, own, other = two
    direct, limited = Requests(letta.password), Requests(gateways.key_text("limited"))
    url = letta.replicas[0].url
    things = {}
    for agent in (own, other):
        run = ask(direct, "GET", f"{url}/v1/runs/?agent_id={agent}")[0]["id"]
        said = ask(direct, "GET", f"{url}/v1/agents/{agent}/messages")
        message = next(message for message in said if message["step_id"])
        conversation = ask(direct, "POST", f"{url}/v1/conversations/?agent_id={agent}", {})["id"]
        things[agent] = [
            f"/v1/agents/{agent}",
            f"/v1/agents/{agent}/messages",
            f"/v1/runs/{run}",
            f"/v1/runs/{run}/messages",
            f"/v1/steps/{message['step_id']}",
            f"/v1/messages/{message['id']}",
            f"/v1/conversations/{conversation}",
            f"/v1/conversations/{conversation}/messages",
            f"/v1/conversations/default/messages?agent_id={agent}",
            f"/v1/conversations/{agent}/messages",
        ]
    for path in things[own]:
        answer = limited.send("GET", gateway.url + path)
        assert answer.status == 200, (path, answer.value)
    for path in things[other]:
        answer = limited.send("GET", gateway.url + path)
        assert answer.status == 403 and "policy_agent" in answer.value, (path, answer.value)
    for path in ("/v1/messages/", "/v1/agents/count", "/v1/blocks/", "/v1/tags/", "/v1/jobs/"):
        assert "policy_reach" in limited.send("GET", gateway.url + path).value, path
    run = things[other][2].rsplit("/", 1)[1]
    cancel = limited.send("POST", f"{gateway.url}/v1/agents/{own}/messages/cancel", {"run_ids": [run]})
    assert cancel.status == 403
    with pytest.raises(Refused) as refused:
        client.call("agents.messages.create", other, messages=user("into another's"))
    assert refused.value.status == 403
    assert letta.model.calls("into another's") == []
