"""Event streams through a proxy: the delay of each event, and the memory of idle streams.

This process is both the upstream and the client, so that one thread and one clock see both ends.
"""

import contextlib
import itertools
import json
import queue
import re
import select
import selectors
import socket
import statistics
import sys
import threading
import time

TICK_STREAMS = 20
TICK_SECONDS = 0.001  # between two events, whichever their streams
WARM_STREAMS = 20
AGENTS = itertools.count(1)


class BrokenStream(Exception):
    """A stream did not start, or an event did not come through whole."""


class Upstream(threading.Thread):
    """Answers health checks, and hands each event stream over after its head and first event."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", int(port)), backlog=1024)
        self.started = queue.SimpleQueue()
        self.selector = selectors.DefaultSelector()
        self.received = {}
        self.start()

    def run(self):
        self.selector.register(self.listener, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    connection = self.listener.accept()[0]
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.selector.register(connection, selectors.EVENT_READ)
                    self.received[connection] = b""
                else:
                    self.read(key.fileobj)

    def read(self, connection):
        try:
            data = connection.recv(65536)
            self.received[connection] += data
            if whole(self.received[connection]):
                self.answer(connection)
        except OSError:
            data = b""
        if not data:
            self.forget(connection)
            connection.close()

    def forget(self, connection):
        self.selector.unregister(connection)
        del self.received[connection]

    def answer(self, connection):
        if self.received[connection].startswith(b"POST "):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               b"transfer-encoding: chunked\r\n\r\n" + event("first"))
            self.forget(connection)
            self.started.put(connection)
        else:
            self.received[connection] = b""
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n"
                               b'{"status":"ok"}')


def whole(request):
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    chunked = re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE)
    return bool(end) and not (length and len(body) < int(length[1])) and not (chunked and not body.endswith(b"0\r\n\r\n"))


def event(content):
    """One event of Letta's shape as one chunk."""
    fields = {"id": "message-1f0c1d2e-8a3b-4c4d-9e5f-60718293a4b5", "date": "2026-01-01T00:00:00+00:00",
              "message_type": "assistant_message", "content": content}
    data = f"data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def open_streams(port, request, count, upstream, held):
    """`count` pairs of (upstream's socket, client's socket), each past its first event, closed with `held`."""
    pairs = []
    for number in range(count):
        client = held.enter_context(socket.create_connection(("127.0.0.1", int(port)), timeout=10))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Each to an agent of its own: turns of one agent wait for one another.
        client.sendall(re.sub(rb"/agent-[0-9a-f]{8}", b"/agent-%08x" % next(AGENTS), request, count=1))
        answer = b""
        while b'"content":"first"' not in answer or not answer.endswith(b"\n\r\n"):
            try:
                data = client.recv(65536)
            except socket.timeout:
                data = b""
            answer += data
            if not data or not answer.startswith(b"HTTP/1.1 200 "[:len(answer)]):
                raise BrokenStream(f"stream {number + 1} of {count} through port {port} did not start: {answer[:500]!r}")
        pairs.append((held.enter_context(upstream.started.get(timeout=10)), client))
    return pairs


def delay_round(port, request, seconds, upstream):
    try:
        return tick(port, request, seconds, upstream)
    except OSError as error:
        raise BrokenStream(f"a stream through port {port} broke: {error!r}") from error


def tick(port, request, seconds, upstream):
    """Sends events in turn on a few streams. The delays in milliseconds, from just before the upstream's write to just
    after the client's read."""
    delays = []
    with contextlib.ExitStack() as held:
        pairs = open_streams(port, request, TICK_STREAMS, upstream, held)
        clients = {client.fileno(): client for _, client in pairs}
        poll = held.enter_context(select.epoll())
        for client in clients.values():
            client.setblocking(False)
            poll.register(client, select.EPOLLIN)
        sent = 0
        next_tick = time.monotonic()
        end = next_tick + seconds
        while True:
            now = time.monotonic()
            if next_tick <= now < end:
                pairs[sent % TICK_STREAMS][0].sendall(event(str(time.monotonic_ns())))
                sent += 1
                next_tick = max(next_tick + TICK_SECONDS, now)
            for ready, _ in poll.poll(max(0.0, next_tick - time.monotonic())):
                data = clients[ready].recv(65536)
                arrived = time.monotonic_ns()
                delays += [(arrived - int(stamp)) / 1e6 for stamp in re.findall(rb'"content":"(\d+)"', data)]
            if now >= end and len(delays) == sent:
                return delays
            if now >= end + 5:
                raise BrokenStream(f"port {port}: {sent - len(delays)} of {sent} events did not come through whole")


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def measure_delay(ports, request, rounds, seconds, upstream):
    """For each name of `ports`, the medians over interleaved rounds of p50 and p99 in milliseconds."""
    figures = {name: [] for name in ports}
    for number in range(1, rounds + 1):
        for name, port in ports.items():
            delays = delay_round(port, request, seconds, upstream)
            p50, p99 = percentile(delays, 50), percentile(delays, 99)
            figures[name].append((p50, p99))
            print(f"round {number}: event through {name}: p50 {p50:.3f} ms, p99 {p99:.3f} ms of {len(delays)} events",
                  file=sys.stderr, flush=True)
    return {name: tuple(map(statistics.median, zip(*pairs))) for name, pairs in figures.items()}


def idle_kibibytes(process, port, request, count, upstream):
    """Resident KiB for each idle stream, beyond what the first few streams made the process load."""
    with contextlib.ExitStack() as held:
        open_streams(port, request, WARM_STREAMS, upstream, held)
        before = settled(process)
        open_streams(port, request, count, upstream, held)
        return (settled(process) - before) / count / 1024


def settled(process):
    """The resident bytes once they have been the same for half a second, or after five seconds."""
    last, equal = process.resident_bytes(), 0
    for _ in range(50):
        time.sleep(0.1)
        now = process.resident_bytes()
        equal = equal + 1 if now == last else 0
        last = now
        if equal == 5:
            break
    return last
