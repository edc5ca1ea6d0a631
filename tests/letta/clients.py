"""The official Python and TypeScript clients, and plain HTTP in both languages, behind one small surface.

A test is written once and run with each. `call("agents.messages.create", agent_id, streaming=True, …)` is
`client.agents.messages.create(agent_id, streaming=True, …)` in Python and
`client.agents.messages.create(agent_id, {streaming: true, …})` in TypeScript, and gives a `Reply`, a `Stream`, or
raises `Refused` where the client itself raises.
"""

import functools
import json
import os
import queue
import ssl
import subprocess
import threading
from dataclasses import dataclass, field

import httpx
import letta_client
import requests

from environment import HERE, die_with_parent

CLIENT_TIMEOUT_SECONDS = 60


@dataclass
class Reply:
    status: int
    headers: dict
    value: object
    # The status of every HTTP answer on the way: the client's own retries are visible here.
    attempts: list = field(default_factory=list)


class Refused(Exception):
    """The client raised: `name` is its own error class."""

    def __init__(self, name, status, message, body, headers, attempts):
        super().__init__(f"{name} {status}: {message}")
        self.name = name
        self.status = status
        self.message = message
        self.body = body
        self.headers = headers
        self.attempts = attempts


class Stream:
    """Events as they arrive."""

    def __init__(self, status, headers, events, close, attempts=()):
        self.status = status
        self.headers = headers
        self.close = close
        # As in `Reply`.
        self.attempts = list(attempts)
        self.events = iter(events)

    def __iter__(self):
        return self.events

    def __next__(self):
        return next(self.events)

    def until(self, message_type):
        """Reads up to the first event of this type and returns it."""
        for event in self:
            if event.get("message_type") == message_type:
                return event
        raise AssertionError(f"the stream ended without a {message_type}")


def lower(headers):
    return {name.lower(): value for name, value in headers.items()}


class Python:
    """The official Python client."""

    name = "python"

    def __init__(self, url, key, *, retries=0, headers=None, ca=None, timeout=CLIENT_TIMEOUT_SECONDS):
        self.attempts = []
        hooks = {"response": [lambda response: self.attempts.append(response.status_code)]}
        verify = ssl.create_default_context(cafile=ca) if ca else True
        self.client = letta_client.Letta(
            base_url=url,
            api_key=key,
            max_retries=retries,
            default_headers=headers,
            timeout=timeout,
            http_client=letta_client.DefaultHttpxClient(event_hooks=hooks, verify=verify),
        )

    def call(self, path, *ids, **body):
        *owners, method = path.split(".")
        owner = self.client
        for name in owners:
            owner = getattr(owner, name)
        return self.run(lambda: getattr(owner.with_raw_response, method)(*ids, **body))

    def raw(self, path, *ids, **body):
        """The same call, its answer as parts of text instead of events."""
        *owners, method = path.split(".")
        owner = self.client
        for name in owners:
            owner = getattr(owner, name)
        self.attempts = []
        with refusals(self):
            opening = getattr(owner.with_streaming_response, method)(*ids, **body)
            answer = opening.__enter__()
        close = functools.partial(opening.__exit__, None, None, None)
        return Stream(answer.status_code, lower(answer.headers), self.events(answer.iter_text()), close, self.attempts)

    def post(self, path, **body):
        """The client's own door to an endpoint it has no method for."""
        # This is what its `with_raw_response` sets.
        options = {"headers": {"X-Stainless-Raw-Response": "raw"}}
        return self.run(lambda: self.client.post(path, cast_to=object, body=body, options=options))

    def upload(self, path, parent, name, text):
        return self.call(path, parent, file=(name, text.encode()))

    def run(self, send):
        self.attempts = []
        with refusals(self):
            raw = send()
            value = raw.parse()
            headers = lower(raw.headers)
        if isinstance(value, letta_client.Stream):
            return Stream(raw.status_code, headers, self.events(value), value.close, self.attempts)
        if hasattr(value, "items") and not isinstance(value, dict):
            value = list(value.items)
        return Reply(raw.status_code, headers, plain(value), list(self.attempts))

    def events(self, stream):
        with refusals(self):
            for event in stream:
                yield plain(event)

    def close(self):
        self.client.close()


class refusals:
    """Turns what the Python client raises into `Refused`."""

    def __init__(self, client):
        self.client = client

    def __enter__(self):
        return self

    def __exit__(self, _kind, error, _trace):
        if not isinstance(error, letta_client.APIError | httpx.HTTPError):
            return
        response = getattr(error, "response", None)
        raise Refused(
            type(error).__name__,
            getattr(error, "status_code", None),
            str(error),
            getattr(error, "body", None),
            lower(response.headers) if response is not None else {},
            list(self.client.attempts),
        ) from error


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.to_dict(mode="json") if hasattr(value, "to_dict") else value


class Node:
    """The Node process behind `TypeScript` and `Fetch`; see driver.mjs for its lines."""

    def __init__(self, ca):
        # Node reads this file once, when it starts.
        variables = {**os.environ, "NODE_EXTRA_CA_CERTS": str(ca)}
        self.process = subprocess.Popen(
            ["node", HERE / "driver.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env=variables,
            preexec_fn=die_with_parent,
        )
        self.sending = threading.Lock()
        self.last_id = 0
        self.lines = {}
        threading.Thread(target=self.sort_lines, daemon=True).start()

    def sort_lines(self):
        for line in self.process.stdout:
            line = json.loads(line)
            self.lines[line["id"]].put(line)
        for lines in list(self.lines.values()):
            lines.put({"refused": dict(name="NodeEnded", status=None, message="node ended", body=None, headers={})})

    def send(self, command):
        with self.sending:
            self.last_id += 1
            self.lines[self.last_id] = queue.Queue()
            self.process.stdin.write(json.dumps({"id": self.last_id, **command}) + "\n")
            self.process.stdin.flush()
            return self.last_id

    def run(self, command):
        number = self.send(command)
        attempts = []
        while True:
            line = self.next_line(number, attempts)
            if "reply" in line:
                return Reply(**line["reply"], attempts=attempts)
            if "opened" in line:
                events, close = self.events(number, attempts), lambda: self.send({"close": number})
                return Stream(**line["opened"], events=events, close=close, attempts=attempts)

    def events(self, number, attempts):
        while "ended" not in (line := self.next_line(number, attempts)):
            yield line["event"]

    def next_line(self, number, attempts):
        while True:
            line = self.lines[number].get(timeout=2 * CLIENT_TIMEOUT_SECONDS)
            if "attempt" in line:
                attempts.append(line["attempt"])
            elif "refused" in line:
                raise Refused(**line["refused"], attempts=attempts)
            else:
                return line

    def stop(self):
        self.process.kill()
        self.process.wait()


class TypeScript:
    """The official TypeScript client."""

    name = "typescript"

    def __init__(self, node, url, key, *, retries=0, headers=None, ca=None, timeout=CLIENT_TIMEOUT_SECONDS):
        # `ca` is known to the Node process since its start.
        self.node = node
        timeout *= 1000
        self.client = {"baseURL": url, "apiKey": key, "maxRetries": retries, "headers": headers or {}, "timeout": timeout}

    def call(self, path, *ids, **body):
        return self.node.run(self.command(path, ids, body))

    def raw(self, path, *ids, **body):
        """The same call, its answer as parts of text instead of events."""
        return self.node.run({**self.command(path, ids, body), "raw": True})

    def command(self, path, ids, body):
        *owners, method = path.split(".")
        first, *rest = method.split("_")
        path = ".".join([*owners, first + "".join(word.capitalize() for word in rest)])
        return {"client": self.client, "path": path, "args": [*ids, body] if body else list(ids)}

    def post(self, path, **body):
        return self.node.run({"client": self.client, "path": "post", "args": [path, {"body": body}]})

    def upload(self, path, parent, name, text):
        return self.node.run({"client": self.client, "path": path, "args": [parent], "file": {"name": name, "text": text}})

    def close(self):
        pass


class Requests:
    """Plain HTTP as a tutorial writes it: Python's `requests`."""

    name = "requests"

    def __init__(self, key=None):
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def send(self, method, url, body=None, headers=None):
        answer = requests.request(
            method,
            url,
            json=body,
            headers={**self.headers, **(headers or {})},
            stream=True,
            allow_redirects=False,
            timeout=CLIENT_TIMEOUT_SECONDS,
        )
        headers = lower(answer.headers)
        if headers.get("content-type", "").startswith("text/event-stream"):
            return Stream(answer.status_code, headers, (part.decode() for part in answer.iter_content(None)), answer.close)
        return Reply(answer.status_code, headers, answer.content.decode())


class Fetch:
    """Plain HTTP as a tutorial writes it: JavaScript's `fetch`."""

    name = "fetch"

    def __init__(self, node, key=None):
        self.node = node
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def send(self, method, url, body=None, headers=None):
        init = {"url": url, "method": method, "headers": {**self.headers, **(headers or {})}}
        if body is not None:
            init["body"] = json.dumps(body)
            init["headers"]["Content-Type"] = "application/json"
        return self.node.run({"fetch": init})
