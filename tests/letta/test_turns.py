"""What a client can ask of a turn: a name for its message, its progress, and what its leaving does to the run."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import gateway as gateways
from clients import Refused
from environment import wait_until

SEND = "agents.messages.create"


def user(text):
    return [{"role": "user", "content": text}]


def test_a_named_message_is_answered_again_and_its_name_takes_no_other(connect, gateway, agent, letta):
    client = connect(gateway.url, headers={"Idempotency-Key": f"name-of-{agent.id}"})
    first = client.call(SEND, agent.id, messages=user(f"once {agent.id}"))
    again = client.call(SEND, agent.id, messages=user(f"once {agent.id}"))
    assert "x-turn" not in first.headers and again.headers["x-turn"] == "replayed"
    assert again.value == first.value
    assert first.headers["server-timing"].startswith("queue;dur=0.000, letta;dur=")
    with pytest.raises(Refused) as refused:
        client.call(SEND, agent.id, messages=user(f"another {agent.id}"))
    assert refused.value.status == 409
    assert refused.value.body["error"]["type"] == "client_idempotency_key_reused"
    assert len(letta.model.calls(agent.id)) == 1


def test_two_who_say_the_same_at_once_share_a_turn_where_that_is_wanted(connect, start_gateway, agent, letta):
    gateway = start_gateway(gateways.config(letta, turns={"dedupe": "identical_in_flight"}))
    text = f"[[hold={agent.id}]] together"
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(connect(gateway.url).call, SEND, agent.id, messages=user(text)) for _ in range(2)]
        wait_until(lambda: gateway.metric('turn_repeats_total{how="joined"}') == 1, "one joins the other", 20)
        letta.model.release(agent.id)
        replies = [one.result(30) for one in both]
    assert replies[0].value == replies[1].value
    assert sorted(reply.headers.get("x-turn", "") for reply in replies) == ["", "joined"]
    assert len(letta.model.calls(agent.id)) == 1


def test_a_stream_that_waits_is_kept_alive_and_told_its_place(connect, start_gateway, agent, letta):
    gateway = start_gateway(gateways.config(letta, turns={"keepalive": "300ms"}))
    client = connect(gateway.url)
    held = f"[[tokens=5]] [[hold={agent.id}]] first"
    stream = client.call(SEND, agent.id, messages=user(held), streaming=True, stream_tokens=True)
    stream.until("assistant_message")
    other = connect(gateway.url)
    waiting = other.raw(SEND, agent.id, messages=user("second"), streaming=True)
    assert waiting.headers["x-queue-position"] == "1"
    parts = iter(waiting)
    said = next(parts)
    assert said.startswith(": waiting, 1 ahead\n\n"), said
    letta.model.release(agent.id)
    list(stream)
    assert "echo: second" in said + "".join(parts)


@pytest.mark.parametrize("policy, status", [("cancel", "cancelled"), ("detach", "completed"), ("drain", "completed")])
def test_what_becomes_of_a_run_whose_client_leaves_is_the_operators_choice(
    connect, start_gateway, agent, letta, direct, policy, status
):
    gateway = start_gateway(gateways.config(letta, turns={"on_disconnect": policy}))
    client = connect(gateway.url)
    held = f"[[tokens=5]] [[hold={agent.id}]] left"
    stream = client.call(SEND, agent.id, messages=user(held), streaming=True, stream_tokens=True)
    run = stream.until("assistant_message")["run_id"]
    stream.close()
    if policy != "cancel":
        wait_until(lambda: gateway.metric("turns_detached_total") == 1, "nobody follows the turn", 20)
        letta.model.release(agent.id)

    def is_over():
        return direct.call("runs.retrieve", run).value["status"] not in ("created", "running")

    wait_until(is_over, "the run is over", 20)
    assert direct.call("runs.retrieve", run).value["status"] == status
    letta.model.release(agent.id)
    wait_until(lambda: gateway.metric("turns_running") == 0, "the turn is over", 20)
    if policy != "cancel":
        # Read to its end by the gateway: what the run cost is known.
        assert gateway.metric('turn_tokens_total{kind="completion"}') > 0
    assert len(letta.model.calls(agent.id)) == 1
