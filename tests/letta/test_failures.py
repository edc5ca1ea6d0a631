"""Replicas that die, and a gateway that leaves: what a client sees of it."""

import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

import gateway as gateways
from clients import Refused
from environment import wait_until
from gateway import ALL_SCOPES, key, key_text


@pytest.fixture
def own_gateway(start_gateway, letta):
    """A gateway whose view of the replicas no other test shares."""
    return start_gateway(gateways.config(letta))


def user(text):
    return [{"role": "user", "content": text}]


def serving(letta, marks):
    """The replica that got the one message since `marks`."""
    (number,) = {request["replica"] for request in letta.requests(marks) if request["method"] == "POST"}
    return letta.replicas[number]


def words(events):
    return "".join(event["content"] for event in events if event.get("message_type") == "assistant_message")


def refuses_connections(port):
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) != 0


def test_a_replica_killed_in_a_stream_ends_it_with_lettas_error_event(connect, own_gateway, agent, mortal):
    client = connect(own_gateway.url, retries=2)
    marks = mortal.mark()
    text = f"[[tokens=200]] [[rate=10]] {agent.id}"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    run = stream.until("assistant_message")["run_id"]
    dead = serving(mortal, marks)
    dead.kill()
    with pytest.raises(Refused) as refused:
        list(stream)
    assert refused.value.body["message_type"] == "error_message"
    assert refused.value.body["run_id"] in (run, None)
    assert refused.value.body["message"]

    # The next message goes to the other replica, and nobody sent the broken one again.
    marks = mortal.mark()
    reply = client.call("agents.messages.create", agent.id, messages=user("still there?"))
    assert reply.value["messages"][-1]["content"] == "echo: still there?"
    assert reply.attempts == [200]
    assert serving(mortal, marks) is not dead
    assert len(mortal.model.calls(text)) == 1


def test_a_stream_cut_by_a_death_is_well_formed_to_its_end(http, own_gateway, agent, mortal):
    marks = mortal.mark()
    body = {"messages": user("[[tokens=200]] [[rate=10]]"), "streaming": True, "stream_tokens": True}
    stream = http.send("POST", f"{own_gateway.url}/v1/agents/{agent.id}/messages/stream", body)
    received = ""
    while "assistant_message" not in received:
        received += next(stream)
    serving(mortal, marks).kill()
    # Neither client finds the chunked body incomplete: it is read to its end without an error.
    received += "".join(stream)
    *events, error, done, rest = received.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert error.startswith('event: error\ndata: {"message_type":"error_message"')
    assert all(event.startswith("data: {") and event.endswith("}") for event in events)


def test_a_replica_killed_between_requests_costs_no_client_an_error(connect, own_gateway, agent, mortal):
    client = connect(own_gateway.url)
    marks = mortal.mark()
    client.call("agents.messages.create", agent.id, messages=user("before"))
    dead = serving(mortal, marks)
    dead.kill()
    marks = mortal.mark()
    for n in range(5):
        reply = client.call("agents.messages.create", agent.id, messages=user(f"after {n} {agent.id}"))
        assert reply.value["messages"][-1]["content"] == f"echo: after {n} {agent.id}"
    assert serving(mortal, marks) is not dead
    assert len(mortal.model.calls(agent.id)) == 5


def test_a_replica_that_is_back_is_used_again(connect, own_gateway, agent, mortal):
    client = connect(own_gateway.url)
    marks = mortal.mark()
    client.call("agents.messages.create", agent.id, messages=user("before"))
    home = serving(mortal, marks)
    home.kill()
    client.call("agents.messages.create", agent.id, messages=user("elsewhere"))
    home.start()
    home.wait_ready()

    def home_again():
        marks = mortal.mark()
        client.call("agents.messages.create", agent.id, messages=user("home?"))
        return serving(mortal, marks) is home

    wait_until(home_again, "the agent's own replica serves it again", seconds=60)


def test_a_replica_killed_under_a_message_is_told_and_the_message_is_not_sent_twice(connect, own_gateway, agent, mortal):
    client = connect(own_gateway.url, retries=2)
    text = f"[[delay=30]] {agent.id}"
    marks = mortal.mark()
    with ThreadPoolExecutor(1) as waiting:
        sent = waiting.submit(client.call, "agents.messages.create", agent.id, messages=user(text))
        wait_until(lambda: mortal.model.calls(text), "the model was asked")
        dead = serving(mortal, marks)
        dead.kill()
        with pytest.raises(Refused) as refused:
            sent.result(timeout=20)
    assert refused.value.name == "InternalServerError"
    assert refused.value.status == 502
    # Letta may have done some of it, so neither the gateway nor the client does it again.
    assert refused.value.headers["x-should-retry"] == "false"
    assert refused.value.attempts == [502]
    assert refused.value.body["detail"] == refused.value.body["message"]
    assert len(mortal.model.calls(text)) == 1
    messages = [request["replica"] for request in mortal.requests(marks) if request["target"].endswith("/messages")]
    assert messages == [mortal.replicas.index(dead)]
    # What became of it was learned from the living replica, and is told.
    told = refused.value.body["message"]
    (run,) = re.findall(r"run-[0-9a-f-]{36}", told)
    assert "it ended with its replica and was cancelled" in told
    assert client.call("runs.retrieve", run).value["status"] == "cancelled"
    assert client.call("agents.messages.create", agent.id, messages=user("and now?")).attempts == [200]


def test_a_conversation_whose_replica_died_takes_the_next_message(connect, own_gateway, agent, mortal):
    """Letta's lock outlives the replica that held it, for minutes and on every replica: the gateway frees it."""
    client = connect(own_gateway.url)
    conversation = client.call("conversations.create", agent_id=agent.id).value["id"]
    marks = mortal.mark()
    text = "[[tokens=200]] [[rate=10]]"
    stream = client.call("conversations.messages.create", conversation, messages=user(text), stream_tokens=True)
    run = stream.until("assistant_message")["run_id"]
    serving(mortal, marks).kill()
    with pytest.raises(Refused):
        list(stream)
    following = client.call("conversations.messages.create", conversation, messages=user("go on"))
    assert (words(list(following)), following.attempts) == ("echo: go on", [200])
    assert client.call("runs.retrieve", run).value["status"] == "cancelled"
    assert own_gateway.metric('conflicts_total{kind="freed"}') == 1


def test_an_agents_messages_stay_with_one_replica(connect, own_gateway, agent, letta):
    client = connect(own_gateway.url)
    marks = letta.mark()
    for n in range(4):
        client.call("agents.messages.create", agent.id, messages=user(f"number {n}"))
    assert serving(letta, marks)


def test_a_replica_that_is_stopped_finishes_its_stream_while_others_take_over(connect, own_gateway, agent, mortal):
    client = connect(own_gateway.url)
    marks = mortal.mark()
    text = "[[tokens=40]] [[rate=10]]"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    first = [stream.until("assistant_message")]
    leaving = serving(mortal, marks)
    os.kill(leaving.pid, signal.SIGTERM)
    wait_until(lambda: refuses_connections(leaving.port), "the replica accepts nobody any more", 10)
    marks = mortal.mark()
    assert client.call("agents.retrieve", agent.id).status == 200
    assert {request["replica"] for request in mortal.requests(marks)} == {mortal.replicas.index(leaving) ^ 1}
    assert words(first + list(stream)).split() == [f"word{n}" for n in range(40)]
    leaving.kill(signal.SIGTERM)


def test_a_gateway_told_to_stop_lets_its_streams_end(connect, own_gateway, agent):
    client = connect(own_gateway.url)
    text = "[[tokens=30]] [[rate=10]]"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    first = [stream.until("assistant_message")]
    own_gateway.signal(signal.SIGTERM)
    wait_until(lambda: refuses_connections(own_gateway.port), "the gateway accepts nobody any more", 10)
    rest = list(stream)
    assert words(first + rest).split() == [f"word{n}" for n in range(30)]
    assert rest[-1]["message_type"] == "usage_statistics"
    assert own_gateway.exit_code() == 0


def test_who_has_no_answer_when_the_drain_time_is_over_does_not_send_again(connect, start_gateway, agent, letta, direct):
    gateway = start_gateway(gateways.config(letta, drain="1s"))
    client = connect(gateway.url, retries=2)
    text = f"[[hold={agent.id}]] said once"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.call, "agents.messages.create", agent.id, messages=user(text))
        wait_until(lambda: letta.model.calls(agent.id), "the message is with the model", 20)
        gateway.signal(signal.SIGTERM)
        with pytest.raises(Refused) as refused:
            waiting.result(30)
    assert refused.value.attempts == [503]
    assert refused.value.headers["x-should-retry"] == "false"
    assert refused.value.body["error"]["type"] == "gateway_draining"
    assert gateway.exit_code() == 0

    # Letta goes on with the turn, and nobody has sent it once more.
    letta.model.release(agent.id)

    def said():
        history = direct.call("agents.messages.list", agent.id, order="asc").value
        kinds = ("user_message", "assistant_message")
        return [message["content"] for message in history if message["message_type"] in kinds]

    wait_until(lambda: len(said()) > 1, "the turn is over", 20)
    assert said() == [text, "echo: said once"]
    assert len(letta.model.calls(agent.id)) == 1


def test_a_reload_takes_a_new_key_and_leaves_a_running_stream_alone(connect, start_gateway, agent, letta):
    settings = gateways.config(letta)
    gateway = start_gateway(settings)
    client = connect(gateway.url)
    text = "[[tokens=30]] [[rate=10]]"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    first = [stream.until("assistant_message")]
    newcomer = connect(gateway.url, key="newcomer")
    with pytest.raises(Refused):
        newcomer.call("agents.retrieve", agent.id)
    settings["keys"].append(key("newcomer", ALL_SCOPES))
    gateway.configure(settings)
    gateway.signal(signal.SIGHUP)

    def welcome():
        try:
            return newcomer.call("agents.retrieve", agent.id).status == 200
        except Refused as refused:
            assert refused.status == 401
            return False

    wait_until(welcome, f"{key_text('newcomer')} is taken", 10)
    assert words(first + list(stream)).split() == [f"word{n}" for n in range(30)]
