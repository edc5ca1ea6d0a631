"""Plain HTTP as tutorials write it: the bare paths, the trailing slashes, and bodies that Letta does not take.

What Letta refuses arrives as Letta's own refusal: the same request is sent to a replica itself, on the path that Letta
knows it by, and both answers are held against each other byte for byte.
"""

import json
import re

import pytest

from clients import Requests
from environment import MODEL

NO_AGENT = "agent-00000000-0000-4000-8000-000000000000"

# Every collection that a reader may look at; Letta's own form ends in a slash.
COLLECTIONS = [
    "agents", "archives", "blocks", "conversations", "folders", "groups", "identities", "jobs", "mcp-servers",
    "messages", "models", "providers", "runs", "sandbox-config", "sources", "steps", "tags", "tools",
]  # fmt: skip


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def replica(letta):
    """Plain HTTP to a replica itself."""
    return Requests(letta.password)


def comparable(reply):
    return reply.status, reply.headers.get("content-type"), reply.value


@pytest.mark.parametrize(
    "path",
    ["/agents", "/agents/", "/v1/agents", "/v1/agents/", "/latest/agents", "/latest/agents/", "/api/agents", "/api/agents/"],
)
def test_the_list_of_agents_has_many_names(http, gateway, replica, letta, agent, path):
    answer = http.send("GET", f"{gateway.url}{path}?limit=2")
    assert comparable(answer) == comparable(replica.send("GET", f"{letta.replicas[0].url}/v1/agents/?limit=2"))
    assert agent.id in answer.value


@pytest.mark.parametrize("prefix", ["", "/v1", "/latest", "/api"])
def test_the_tutorials_calls_work_under_every_prefix(http, gateway, direct, prefix):
    base = gateway.url + prefix
    body = {"name": "from a tutorial", "model": MODEL, "memory_blocks": [{"label": "human", "value": "Name: Ann"}]}
    created = http.send("POST", f"{base}/agents", {**body, "include_base_tools": False})
    assert created.status == 200, created.value
    agent = json.loads(created.value)["id"]
    assert json.loads(http.send("GET", f"{base}/agents/{agent}").value)["name"] == "from a tutorial"

    answer = http.send("POST", f"{base}/agents/{agent}/messages", {"messages": user("hello")})
    assert json.loads(answer.value)["messages"][-1]["content"] == "echo: hello"
    stream = http.send("POST", f"{base}/agents/{agent}/messages/stream", {"messages": user("hello"), "stream_tokens": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    text = "".join(stream)
    assert '"content":"echo: "' in text
    assert text.endswith("data: [DONE]\n\n")

    assert http.send("PATCH", f"{base}/agents/{agent}", {"name": "renamed"}).status == 200
    assert direct.call("agents.retrieve", agent).value["name"] == "renamed"
    assert http.send("DELETE", f"{base}/agents/{agent}").status == 200
    assert http.send("GET", f"{base}/agents/{agent}").status == 404


def test_a_body_that_asks_for_a_stream_in_other_words_is_answered_as_letta_does(http, gateway, agent):
    """Letta knows no field `stream` here and ignores it: the answer is whole."""
    answer = http.send("POST", f"{gateway.url}/agents/{agent.id}/messages", {"messages": user("hi"), "stream": True})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.value)["messages"][-1]["content"] == "echo: hi"


REFUSED = {
    "a message that is no list": ("POST", "/agents/{agent}/messages", {"message": "hi"}),
    "a message that is no list, streamed": ("POST", "/agents/{agent}/messages", {"message": "hi", "stream": True}),
    "a message to the stream route": ("POST", "/agents/{agent}/messages/stream", {"message": "hi"}),
    "no messages": ("POST", "/agents/{agent}/messages", {"messages": []}),
    "messages and input": ("POST", "/agents/{agent}/messages", {"messages": [{"role": "user", "content": "a"}], "input": "b"}),
    "streaming by who names no client library": ("POST", "/agents/{agent}/messages", {"input": "hi", "streaming": True}),
    "stream options without streaming": ("POST", "/agents/{agent}/messages", {"input": "hi", "stream_tokens": True}),
    "an agent that is not there": ("GET", f"/agents/{NO_AGENT}", None),
    "a message to an agent that is not there": ("POST", f"/agents/{NO_AGENT}/messages", {"input": "hi"}),
    "a stream from an agent that is not there": ("POST", f"/agents/{NO_AGENT}/messages/stream", {"input": "hi"}),
    "an id that is none": ("GET", "/agents/my-agent", None),
    "a message to an id that is none": ("POST", "/agents/my-agent/messages", {"message": "hi"}),
    "an agent of an unknown model": ("POST", "/agents/", {"name": "x", "model": "gpt-4"}),
    "an agent that is no object": ("POST", "/agents/", ["x"]),
    "a batch that names no requests": ("POST", "/messages/batches", {"messages": [{"agent_id": NO_AGENT, "message": "hi"}]}),
    "a batch for an agent that is not there": (
        "POST",
        "/messages/batches",
        {"requests": [{"agent_id": NO_AGENT, "messages": [{"role": "user", "content": "hi"}]}]},
    ),
    "a batch for a model that has none": (
        "POST",
        "/messages/batches",
        {"requests": [{"agent_id": "{agent}", "messages": [{"role": "user", "content": "hi"}]}]},
    ),
    "a conversation that is not there": ("GET", "/conversations/conv-00000000-0000-4000-8000-000000000000", None),
    "a run that is not there": ("GET", "/runs/run-00000000-0000-4000-8000-000000000000", None),
    "a resumed run that is not there": ("POST", "/runs/run-00000000-0000-4000-8000-000000000000/stream", {}),
    "the older cancel of nothing": ("POST", "/conversations/{agent}/cancel", None),
    "a message changed after it was sent": ("PATCH", "/agents/{agent}/messages/message-00000000-0000-4000-8000-000000000000", {}),
    "a voice call": ("POST", "/voice-beta/{agent}/chat/completions", {}),
    "a chat completion that is not streamed": (
        "POST",
        "/chat/completions",
        {"model": "{agent}", "messages": [{"role": "user", "content": "hi"}], "stream": False},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_letta_refuses_arrives_as_lettas_own_refusal(http, gateway, replica, letta, agent, case):
    method, path, body = REFUSED[case]
    path = path.replace("{agent}", agent.id)
    body = json.loads(json.dumps(body).replace("{agent}", agent.id))
    agents_own_words = {"User-Agent": "a-tutorial/1.0"}
    marks = letta.mark()
    answer = http.send(method, f"{gateway.url}/v1{path}", body, agents_own_words)
    # Once and no more: a refusal is an answer, not a reason to try the other replica.
    assert len(letta.requests(marks)) == 1
    lettas = replica.send(method, f"{letta.replicas[0].url}/v1{path}", body, agents_own_words)
    assert comparable(answer) == comparable(lettas)
    assert answer.status >= 400


def test_a_body_that_is_no_json_is_refused_by_letta(gateway, replica, letta, agent):
    import requests

    from gateway import key_text

    def send(base, key):
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        answer = requests.post(f"{base}/v1/agents/{agent.id}/messages", data=b'{"messages": [', headers=headers, timeout=30)
        return answer.status_code, answer.content

    through = send(gateway.url, key_text("team"))
    assert through == send(letta.replicas[0].url, letta.password)
    assert through[0] == 422


@pytest.mark.parametrize("prefix", ["/v1", "/latest", "", "/api"])
def test_no_redirect_with_an_inner_address_reaches_a_client(http, gateway, replica, letta, agent, prefix):
    inner = {str(replica.port) for replica in letta.replicas}
    paths = [f"/{name}{slash}" for name in COLLECTIONS for slash in ("", "/")]
    paths += [f"/agents/{agent.id}", f"/agents/{agent.id}/", f"/agents/{agent.id}/messages", f"/agents/{agent.id}/messages/"]
    for path in paths:
        answer = http.send("GET", gateway.url + prefix + path)
        assert not 300 <= answer.status < 400, (path, answer)
        assert "location" not in answer.headers
        assert not inner & set(re.findall(r"\d+", str(answer.headers))), (path, answer.headers)
    # Under Letta's own prefix each form is answered as Letta answers the one it knows.
    for name in COLLECTIONS if prefix == "/v1" else []:
        lettas = replica.send("GET", f"{letta.replicas[0].url}/v1/{name}/")
        for slash in ("", "/"):
            assert comparable(http.send("GET", f"{gateway.url}/v1/{name}{slash}")) == comparable(lettas), name


def test_a_plain_stream_arrives_event_by_event(http, gateway, agent, letta):
    body = {"messages": user(f"[[tokens=20]] [[hold={agent.id}]]"), "stream_tokens": True}
    stream = http.send("POST", f"{gateway.url}/agents/{agent.id}/messages/stream", body)
    text = ""
    while "word0" not in text:
        text += next(stream)
    # What came so far came although there is no more yet.
    letta.model.release(agent.id)
    text += "".join(stream)
    assert re.findall(r"word\d+", text) == [f"word{n}" for n in range(20)]
    assert not re.search(r"^(id|retry):", text, re.MULTILINE)
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert "content-encoding" not in stream.headers


def test_the_openai_form_streams(http, gateway, agent):
    body = {"model": agent.id, "stream": True, "messages": user("hello")}
    text = "".join(http.send("POST", f"{gateway.url}/v1/chat/completions", body))
    said = "".join(part or "" for part in re.findall(r'"content":"([^"]*)"', text))
    assert said.strip() == "echo: hello"
    assert text.endswith("data: [DONE]\n\n")
