"""Messages, streams, runs and conversations through the gateway, as the official clients send them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import gateway as gateways
from clients import Refused
from environment import MODEL, wait_until


def user(text):
    return [{"role": "user", "content": text}]


def words(events):
    return "".join(event["content"] for event in events if event.get("message_type") == "assistant_message")


def kinds(events):
    return [event["message_type"] for event in events]


def sends(letta, marks):
    return [request for request in letta.requests(marks) if request["method"] == "POST"]


def test_a_message_gets_its_answer_and_is_sent_once(client, agent, letta):
    marks = letta.mark()
    reply = client.call("agents.messages.create", agent.id, messages=user(f"good morning {agent.id}"))
    assert reply.value["messages"][-1]["content"] == f"echo: good morning {agent.id}"
    assert reply.value["stop_reason"]["stop_reason"] == "end_turn"
    assert [request["target"] for request in sends(letta, marks)] == [f"/v1/agents/{agent.id}/messages"]
    assert len(letta.model.calls(agent.id)) == 1


def test_the_input_form_is_understood(client, agent):
    reply = client.call("agents.messages.create", agent.id, input="good evening")
    assert reply.value["messages"][-1]["content"] == "echo: good evening"


def test_history_is_listed(client, agent):
    client.call("agents.messages.create", agent.id, messages=user("remember this"))
    history = client.call("agents.messages.list", agent.id).value
    assert [message["content"] for message in history if message["message_type"] == "user_message"] == ["remember this"]


def test_a_stream_by_step_holds_lettas_events_in_order(client, agent):
    stream = client.call("agents.messages.create", agent.id, messages=user("by step"), streaming=True)
    events = list(stream)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert words(events) == "echo: by step"
    assert [kind for kind in kinds(events) if kind != "ping"] == ["assistant_message", "stop_reason", "usage_statistics"]


def test_a_stream_by_token_arrives_event_by_event(client, agent, letta):
    text = f"[[tokens=20]] [[hold={agent.id}]] by token"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    first = [stream.until("assistant_message")]
    # It is here although the model has not said more: nothing on the way waits for company.
    letta.model.release(agent.id)
    events = first + list(stream)
    assert words(events).split() == [f"word{n}" for n in range(20)]
    assert kinds(events).count("assistant_message") >= 20


def test_the_older_stream_method_works(client, agent):
    events = list(client.call("agents.messages.stream", agent.id, messages=user("older")))
    assert words(events) == "echo: older"


def test_a_background_stream_is_resumed_where_it_was_left(client, agent):
    text = "[[tokens=30]] [[rate=15]] in the background"
    stream = client.call(
        "agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True, background=True
    )
    first = [stream.until("assistant_message")]
    stream.close()
    rest = list(client.call("runs.messages.stream", first[0]["run_id"], starting_after=first[0]["seq_id"]))
    assert words(first + rest).split() == [f"word{n}" for n in range(30)]
    assert kinds(rest)[-2:] == ["stop_reason", "usage_statistics"]


def test_an_asynchronous_run_is_polled_to_its_end(client, agent):
    run = client.call("agents.messages.create_async", agent.id, messages=user("[[delay=0.5]] later")).value
    assert run["status"] == "created"
    wait_until(lambda: client.call("runs.retrieve", run["id"]).value["status"] == "completed", "the run is completed")
    messages = client.call("runs.messages.list", run["id"]).value
    assert words(messages) == "echo: later"


def test_a_run_is_cancelled_while_it_streams(client, agent):
    text = "[[tokens=200]] [[rate=10]] too long"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    run = stream.until("assistant_message")["run_id"]
    cancelled = client.call("agents.messages.cancel", agent.id, run_ids=[run]).value
    assert cancelled == {run: "cancelled"}
    events = list(stream)
    assert [event["stop_reason"] for event in events if event["message_type"] == "stop_reason"] == ["cancelled"]
    assert len(words(events).split()) < 100
    assert client.call("runs.retrieve", run).value["status"] == "cancelled"


def test_a_conversation_is_held(client, agent):
    conversation = client.call("conversations.create", agent_id=agent.id, summary="about tea").value
    assert client.call("conversations.retrieve", conversation["id"]).value["agent_id"] == agent.id
    assert [one["id"] for one in client.call("conversations.list", agent_id=agent.id).value] == [conversation["id"]]

    streamed = list(client.call("conversations.messages.create", conversation["id"], messages=user("streamed")))
    assert words(streamed) == "echo: streamed"
    whole = client.post(f"/v1/conversations/{conversation['id']}/messages", messages=user("whole"), streaming=False)
    assert whole.value["messages"][-1]["content"] == "echo: whole"

    history = client.call("conversations.messages.list", conversation["id"], order="asc").value
    assert [message["content"] for message in history if message["message_type"] == "user_message"] == ["streamed", "whole"]
    client.call("conversations.update", conversation["id"], summary="about coffee")
    assert client.call("conversations.retrieve", conversation["id"]).value["summary"] == "about coffee"
    client.call("conversations.delete", conversation["id"])


@pytest.fixture
def own_gateway(start_gateway, letta):
    """A gateway whose counts no other test shares."""
    return start_gateway(gateways.config(letta))


def test_a_message_to_an_agent_at_work_waits_for_its_turn(connect, own_gateway, agent, letta):
    """Letta has no lock there: both would be answered, and one of them would be gone from the agent's memory."""
    client, path = connect(own_gateway.url), "agents.messages.create"
    text = f"[[tokens=5]] [[hold={agent.id}]] first"
    with ThreadPoolExecutor(1) as waiting:
        stream = client.call(path, agent.id, messages=user(text), streaming=True, stream_tokens=True)
        first = [stream.until("assistant_message")]
        marks = letta.mark()
        later = waiting.submit(connect(own_gateway.url).call, path, agent.id, messages=user(f"second {agent.id}"))
        wait_until(lambda: own_gateway.metric("turns_waiting") == 1, "the second message waits")
        assert sends(letta, marks) == []
        letta.model.release(agent.id)
        assert words(first + list(stream)).split() == [f"word{n}" for n in range(5)]
        reply = later.result()
    assert (reply.value["messages"][-1]["content"], reply.attempts) == (f"echo: second {agent.id}", [200])
    assert "x-turn" not in reply.headers, "it is a turn of its own"
    earlier, then = letta.model.calls(agent.id)
    assert earlier["ended"] <= then["started"]
    history = client.call("agents.messages.list", agent.id, order="asc").value
    said = [message["content"] for message in history if message["message_type"] == "user_message"]
    assert said == [text, f"second {agent.id}"]


def test_a_message_to_a_conversation_at_work_waits_for_its_turn(connect, own_gateway, agent, letta):
    """Letta's lock is not met: no client sees the 409 that it would answer."""
    client, path = connect(own_gateway.url), "conversations.messages.create"
    conversation = client.call("conversations.create", agent_id=agent.id).value["id"]
    text = f"[[tokens=5]] [[hold={agent.id}]] first"
    with ThreadPoolExecutor(1) as waiting:
        stream = client.call(path, conversation, messages=user(text), stream_tokens=True)
        first = [stream.until("assistant_message")]
        marks = letta.mark()
        later = waiting.submit(lambda: list(connect(own_gateway.url).call(path, conversation, messages=user("second"))))
        wait_until(lambda: own_gateway.metric("turns_waiting") == 1, "the second message waits")
        assert sends(letta, marks) == []
        letta.model.release(agent.id)
        assert words(first + list(stream)).split() == [f"word{n}" for n in range(5)]
        assert words(later.result()) == "echo: second"


def held_aside(direct, conversation, name):
    """A run on the conversation that a replica was asked for directly: no gateway knows of it."""
    text = f"[[tokens=5]] [[hold={name}]] aside"
    stream = direct.call("conversations.messages.create", conversation, messages=user(text), stream_tokens=True)
    return stream, stream.until("assistant_message")["run_id"]


def test_a_conversation_that_others_keep_busy_is_waited_for(connect, own_gateway, direct, agent, letta):
    client, path = connect(own_gateway.url), "conversations.messages.create"
    conversation = client.call("conversations.create", agent_id=agent.id).value["id"]
    aside, _ = held_aside(direct, conversation, agent.id)
    with ThreadPoolExecutor(1) as waiting:
        text = f"in time for {agent.id}"
        later = waiting.submit(lambda: list(client.call(path, conversation, messages=user(text))))
        # It was sent, and Letta's 409 came: it is the gateway that knows better than to pass it on.
        wait_until(lambda: own_gateway.metric('conflicts_total{kind="busy"}') >= 1, "Letta's conflict")
        letta.model.release(agent.id)
        assert words(later.result()) == f"echo: {text}"
    list(aside)
    assert len(letta.model.calls(text)) == 1


def test_lettas_own_conflict_arrives_as_such_once_patience_is_over(http, start_gateway, direct, agent, letta):
    gateway = start_gateway(gateways.config(letta, turns={"lane": {"max_wait": "300ms"}}))
    conversation = direct.call("conversations.create", agent_id=agent.id).value["id"]
    aside, run = held_aside(direct, conversation, agent.id)
    path, body = f"/v1/conversations/{conversation}/messages", {"messages": user(f"too soon {agent.id}")}
    answer = http.send("POST", f"{gateway.url}{path}", body)
    with_password = {"Authorization": f"Bearer {letta.password}"}
    lettas = http.send("POST", f"{letta.replicas[0].url}{path}", body, with_password)
    assert (answer.status, answer.value) == (lettas.status, lettas.value)
    assert answer.status == 409
    assert json.loads(answer.value)["run_id"] == run
    # Nobody did it, and it can be done now.
    assert letta.model.calls(f"too soon {agent.id}") == []
    letta.model.release(agent.id)
    list(aside)
    assert "echo: too soon" in "".join(http.send("POST", f"{gateway.url}{path}", body))


def test_a_pending_approval_arrives_as_letta_says_it(client, agent):
    tool = {"name": "look_around", "description": "Look around.", "parameters": {"type": "object", "properties": {}}}
    text = "[[tool=look_around]] what is there?"
    reply = client.call("agents.messages.create", agent.id, messages=user(text), client_tools=[tool]).value
    assert reply["stop_reason"]["stop_reason"] == "requires_approval"
    with pytest.raises(Refused) as refused:
        client.call("agents.messages.create", agent.id, messages=user("and now?"))
    assert refused.value.name == "ConflictError"
    assert refused.value.body["detail"]["code"] == "PENDING_APPROVAL"


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (401, "AuthenticationError", "llm_authentication"),
        (429, "RateLimitError", "llm_rate_limit"),
        (500, "InternalServerError", "llm_error"),
    ],
)
def test_a_model_that_refuses_is_told_in_lettas_words(client, agent, status, name, kind):
    text = f"[[status={status}]]"
    with pytest.raises(Refused) as refused:
        client.call("agents.messages.create", agent.id, messages=user(text))
    assert (refused.value.name, refused.value.status) == (name, status)
    assert refused.value.body["error"]["type"] == kind
    assert "retry-after" not in refused.value.headers
    # Neither replica was taken for broken.
    assert client.call("agents.messages.create", agent.id, messages=user("still there?")).status == 200


@pytest.mark.parametrize(("text", "kind"), [("[[status=500]]", "llm_error"), ("[[tokens=20]] [[cut]]", "internal_error")])
def test_a_model_that_fails_in_a_stream_is_told_in_lettas_words(client, agent, text, kind):
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    with pytest.raises(Refused) as refused:
        list(stream)
    assert refused.value.body["message_type"] == "error_message"
    assert refused.value.body["error_type"] == kind


def test_a_silent_stream_is_kept_until_the_model_speaks(client, agent):
    text = "[[delay=3]] thought about it"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, include_pings=False)
    assert words(list(stream)) == "echo: thought about it"


def test_many_at_once_each_get_their_own_answer(client, direct, letta):
    marks = letta.mark()
    agents = [direct.call("agents.create", name=f"n{n}", model=MODEL, include_base_tools=False).value["id"] for n in range(12)]
    with ThreadPoolExecutor(len(agents)) as pool:
        replies = list(pool.map(lambda agent: client.call("agents.messages.create", agent, messages=user(agent)), agents))
    assert [reply.value["messages"][-1]["content"] for reply in replies] == [f"echo: {agent}" for agent in agents]
    messages = [request for request in letta.requests(marks) if request["target"].endswith("/messages")]
    assert len(messages) == len(agents)
    assert {request["replica"] for request in messages} == {0, 1}
