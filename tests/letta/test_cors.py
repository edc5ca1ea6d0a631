"""Browsers: the gateway's origins hold, whatever origins Letta itself would let in."""

import pytest

import gateway as gateways

# Letta allows this one by default.
LETTAS_ORIGIN = "http://localhost:3000"
OURS = "https://app.example.com"


@pytest.fixture
def gateway(start_gateway, letta):
    return start_gateway(gateways.config(letta, cors={"origins": [OURS]}))


def asked(http, gateway, origin):
    return http.send("GET", f"{gateway.url}/v1/agents/?limit=1", headers={"Origin": origin})


def test_letta_alone_would_let_its_own_origin_in(http, letta):
    http.headers = {"Authorization": f"Bearer {letta.password}"}
    assert asked(http, letta.replicas[0], LETTAS_ORIGIN).headers["access-control-allow-origin"] == LETTAS_ORIGIN


def test_an_origin_of_the_config_is_let_in(http, gateway):
    answer = asked(http, gateway, OURS)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == OURS
    assert "origin" in answer.headers["vary"].lower()


def test_another_origin_is_not_let_in(http, gateway):
    headers = asked(http, gateway, LETTAS_ORIGIN).headers
    assert not [name for name in headers if name.startswith("access-control-")]


def test_a_preflight_is_answered_without_a_key_and_without_letta(http, gateway, letta):
    http.headers = {}
    marks = letta.mark()
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    answer = http.send("OPTIONS", f"{gateway.url}/v1/agents/", headers={"Origin": OURS, **wanted})
    assert answer.status in (200, 204)
    assert answer.headers["access-control-allow-origin"] == OURS
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert letta.requests(marks) == []
