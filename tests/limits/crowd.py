"""Sixteen client processes that hammer one key, each at one gateway after the other."""

import multiprocessing
import socket
import time
from dataclasses import dataclass

CLIENTS = 16
PATH = "/v1/agents/agent-00000000-0000-4000-8000-000000000000"
# Longer than anything here may take.
PATIENCE_SECONDS = 60


@dataclass
class Asked:
    """One request: when it began and ended (of a clock that all processes share), where, by whom, what came of it."""

    began: float
    ended: float
    gateway: int
    key: str
    status: int


class Crowd:
    def __init__(self):
        self.stop = multiprocessing.Event()
        # How many of each client's requests were admitted, while they are at it.
        self.admitted = multiprocessing.Array("L", CLIENTS)
        self.clients = []
        for number in range(CLIENTS):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=client, args=(number, theirs, self.stop, self.admitted), daemon=True)
            process.start()
            self.clients.append((process, ours))

    def start(self, ports, key, *, times=None, pause=0.0, free=None):
        """Each asks `times`, or until `finish`; with a pause after each request. Every fourth is by the key `free`."""
        self.stop.clear()
        for number in range(CLIENTS):
            self.admitted[number] = 0
        for _, pipe in self.clients:
            pipe.send((ports, key, times, pause, free))

    def finish(self):
        """Has them stop, and tells all that they asked."""
        self.stop.set()
        return self.all()

    def all(self):
        """All that they asked, once they are done."""
        return [asked for _, pipe in self.clients for asked in pipe.recv()]

    def so_far(self):
        return sum(self.admitted)

    def end(self):
        for process, _ in self.clients:
            process.kill()
            process.join()


def client(number, pipe, stop, admitted):
    while True:
        ports, key, times, pause, free = pipe.recv()
        pipe.send(hammer(number, ports, [key, key, key, free or key], times, pause, stop, admitted))


def hammer(number, ports, keys, times, pause, stop, admitted):
    connections, asked = {}, []
    turn = number
    while not stop.is_set() and (times is None or len(asked) < times):
        gateway = turn % len(ports)
        turn += 1
        key = keys[len(asked) % len(keys)]
        request = f"GET {PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        began = time.monotonic()
        if gateway not in connections:
            connections[gateway] = socket.create_connection(("127.0.0.1", ports[gateway]), PATIENCE_SECONDS)
        status = exchange(connections[gateway], request)
        asked.append(Asked(began, time.monotonic(), gateway, key, status))
        if status == 200 and key == keys[0]:
            admitted[number] += 1
        if pause:
            time.sleep(pause)
    for connection in connections.values():
        connection.close()
    return asked


def exchange(connection, request):
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    while len(body) < length:
        body += received(connection)
    return int(head.split(b" ", 2)[1])


def received(connection):
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("the gateway closed the connection")
    return part
