"""Bearer keys: who may do what, and what Letta and the client learn of each other's secrets (nothing)."""

import pytest

import gateway as gateways
from clients import Refused, Requests
from environment import MODEL
from gateway import key_text

OTHER_USER = "user-11111111-1111-4111-8111-111111111111"


def user(text):
    return [{"role": "user", "content": text}]


def test_a_wrong_key_is_refused_before_letta_sees_anything(connect, gateway, letta, agent):
    stranger = connect(gateway.url, key="nobody", retries=2)
    marks = letta.mark()
    for call in (
        lambda: stranger.call("agents.list"),
        lambda: stranger.call("agents.messages.create", agent.id, messages=user("let me in")),
        lambda: stranger.call("agents.messages.create", agent.id, messages=user("let me in"), streaming=True),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.name, refused.value.status) == ("AuthenticationError", 401)
        assert refused.value.headers["www-authenticate"].startswith("Bearer")
        assert refused.value.body["detail"] == refused.value.body["message"] == refused.value.body["error"]["message"]
        # Trying again with the same key is of no use, and the client does not.
        assert refused.value.attempts == [401]
    assert letta.requests(marks) == []
    assert letta.model.calls("let me in") == []


def test_no_key_is_refused_and_health_needs_none(http, gateway, letta):
    http.headers = {}
    marks = letta.mark()
    assert http.send("GET", f"{gateway.url}/v1/agents/").status == 401
    assert letta.requests(marks) == []
    for path in ("/v1/health/", "/v1/health", "/latest/health/"):
        health = http.send("GET", gateway.url + path)
        assert (health.status, health.value) == (200, '{"version":"0.16.8","status":"ok"}')


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": f"Bearer {key_text('team')}"},
        {"X-API-Key": key_text("team")},
        {"X-BARE-PASSWORD": f"password {key_text('team')}"},
    ],
    ids=lambda header: next(iter(header)),
)
def test_a_key_is_taken_from_each_header_that_clients_use(http, gateway, header):
    http.headers = header
    assert http.send("GET", f"{gateway.url}/v1/agents/?limit=1").status == 200


def test_a_key_that_may_only_read_does_not_write(connect, gateway, letta, agent):
    reader = connect(gateway.url, key="reader", retries=2)
    assert reader.call("agents.retrieve", agent.id).value["id"] == agent.id
    marks = letta.mark()
    for call in (
        lambda: reader.call("agents.messages.create", agent.id, messages=user("not allowed")),
        lambda: reader.call("agents.messages.create", agent.id, messages=user("not allowed"), streaming=True),
        lambda: reader.call("agents.update", agent.id, name="not allowed"),
        lambda: reader.call("agents.delete", agent.id),
        lambda: reader.call("agents.create", name="not allowed", model=MODEL),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.name, refused.value.status) == ("PermissionDeniedError", 403)
        assert refused.value.attempts == [403]
    assert letta.requests(marks) == []
    assert letta.model.calls("not allowed") == []
    assert reader.call("agents.retrieve", agent.id).value["name"] == "tested"


def test_a_key_for_messages_sends_and_does_not_change_agents(connect, gateway, agent):
    messenger = connect(gateway.url, key="messenger")
    reply = messenger.call("agents.messages.create", agent.id, messages=user("allowed"))
    assert reply.value["messages"][-1]["content"] == "echo: allowed"
    with pytest.raises(Refused) as refused:
        messenger.call("agents.delete", agent.id)
    assert refused.value.status == 403


@pytest.mark.parametrize("prefix", ["/v1", "/latest", "", "/api"])
def test_running_code_and_the_servers_own_routes_need_the_admin_scope(http, start_gateway, letta, prefix):
    keys = [gateways.key("power-user", ["read", "message", "modify"])]
    gateway = start_gateway(gateways.config(letta, keys=keys))
    http.headers = {"Authorization": f"Bearer {key_text('power-user')}"}
    marks = letta.mark()
    for method, path, body in (
        ("POST", "/tools/run", {"source_code": "def f(): return 1", "args": {}}),
        ("POST", "/tools/", {"source_code": "def f(): return 1"}),
        ("GET", "/providers/", None),
        ("GET", "/_internal_agents/count", None),
    ):
        answer = http.send(method, gateway.url + prefix + path, body)
        # What has no bare form is not there at all; in no form may it pass.
        assert answer.status in ((403, 404) if prefix in ("", "/api") else (403,)), (path, answer.value)
    if prefix == "/v1":
        assert http.send("GET", f"{gateway.url}/v1/admin/users/").status == 403
    assert letta.requests(marks) == []


def test_letta_gets_the_server_password_and_never_the_clients_key(client, connect, gateway, agent, letta):
    marks = letta.mark()
    client.call("agents.messages.create", agent.id, messages=user("hello"))
    list(client.call("agents.messages.create", agent.id, messages=user("hello"), streaming=True))
    with_more = connect(gateway.url, headers={"X-API-Key": key_text("team"), "X-BARE-PASSWORD": f"password {key_text('team')}"})
    with_more.call("agents.retrieve", agent.id)
    received = letta.requests(marks)
    assert len(received) == 3
    for request in received:
        headers = dict(request["headers"])
        assert headers["authorization"] == f"Bearer {letta.password}"
        assert "x-api-key" not in headers
        assert "x-bare-password" not in headers
        assert key_text("team") not in str(request)


def test_a_client_never_sees_the_server_password(client, http, gateway, agent, letta):
    reply = client.call("agents.retrieve", agent.id)
    assert letta.password not in str(reply)
    stream = client.call("agents.messages.create", agent.id, messages=user("hello"), streaming=True)
    assert letta.password not in str(list(stream)) + str(stream.headers)
    for path in ("/v1/agents/none", "/v1/nothing/", "/v1/agents/agent-00000000-0000-4000-8000-000000000000"):
        assert letta.password not in str(http.send("GET", gateway.url + path))
    # And it is no key of the gateway.
    http.headers = {"Authorization": f"Bearer {letta.password}"}
    assert http.send("GET", f"{gateway.url}/v1/agents/").status == 401
    assert letta.password not in gateway.report()


def test_replicas_refuse_who_comes_without_the_password(letta):
    """What the gateway's password is for: the way around it is closed."""
    assert Requests().send("GET", f"{letta.replicas[0].url}/v1/agents/").status == 401
    assert Requests(key_text("team")).send("GET", f"{letta.replicas[1].url}/v1/agents/").status == 401


def test_a_client_cannot_choose_another_letta_user(connect, gateway, agent, letta):
    chosen = {
        "user_id": OTHER_USER,
        "X-Organization-Id": "org-1",
        "X-Experimental-Letta-V1-Agent": "true",
        "X-Billing-Plan-Type": "free",
    }
    client = connect(gateway.url, headers=chosen)
    marks = letta.mark()
    assert client.call("agents.retrieve", agent.id).value["id"] == agent.id
    client.call("agents.messages.create", agent.id, messages=user("as somebody else"))
    received = letta.requests(marks)
    assert len(received) == 2
    for request in received:
        names = {name for name, _ in request["headers"]}
        assert names.isdisjoint(name.lower() for name in chosen)
        assert OTHER_USER not in str(request)


def test_a_malformed_user_id_that_letta_would_refuse_does_not_reach_it(http, gateway, letta):
    headers = {"user_id": "not-a-user"}
    http.headers = {"Authorization": f"Bearer {letta.password}"}
    assert http.send("GET", f"{letta.replicas[0].url}/v1/agents/?limit=1", headers=headers).status == 400
    http.headers = {"Authorization": f"Bearer {key_text('team')}"}
    assert http.send("GET", f"{gateway.url}/v1/agents/?limit=1", headers=headers).status == 200


def test_what_letta_needs_to_know_of_the_client_reaches_it(client, agent, letta):
    """Letta refuses `streaming` to who does not say which client library it is."""
    marks = letta.mark()
    client.call("agents.retrieve", agent.id)
    (request,) = letta.requests(marks)
    headers = dict(request["headers"])
    assert headers["x-stainless-package-version"] == "1.12.1"
    assert headers["user-agent"].startswith("Letta/")
