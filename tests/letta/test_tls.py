"""The official clients over TLS, with a certificate they were told to trust."""

import pytest

from clients import Refused


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(connect, gateway, certificate):
    return connect(gateway.tls_url, ca=certificate.cert)


def test_a_message_is_answered(client, agent):
    reply = client.call("agents.messages.create", agent.id, messages=user("over TLS"))
    assert reply.value["messages"][-1]["content"] == "echo: over TLS"


def test_a_stream_arrives_event_by_event(client, agent, letta):
    text = f"[[tokens=15]] [[hold={agent.id}]]"
    stream = client.call("agents.messages.create", agent.id, messages=user(text), streaming=True, stream_tokens=True)
    first = stream.until("assistant_message")
    # It is here although the model has not said more.
    letta.model.release(agent.id)
    said = [event["content"] for event in [first, *stream] if event.get("message_type") == "assistant_message"]
    assert "".join(said).split() == [f"word{n}" for n in range(15)]


def test_a_wrong_key_is_refused(connect, gateway, certificate):
    with pytest.raises(Refused) as refused:
        connect(gateway.tls_url, key="nobody", ca=certificate.cert).call("agents.list")
    assert refused.value.name == "AuthenticationError"


def test_plain_text_on_the_tls_port_reaches_nobody(connect, gateway, letta):
    marks = letta.mark()
    with pytest.raises(Refused) as refused:
        connect(gateway.tls_url.replace("https", "http")).call("agents.list")
    assert refused.value.status in (None, 400)
    assert letta.requests(marks) == []
