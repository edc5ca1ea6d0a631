#!/usr/bin/env python3
"""The promises about turns at full size: two gateways on one Redis before two real replicas, and nginx to compare with.

Prints one line for each demonstration, in the README's numbers, and exits with 1 if a promise is broken. `tests/run
--turns` installs what it needs and runs it; names given to it run only those demonstrations.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

sys.dont_write_bytecode = True

import clients
import environment
import gateway as gateways
import traffic
from environment import HERE, Process, accepts, free_port, wait_until
from fleet import Fleet, Nginx

LEASE_SECONDS = 60
LANE_BYTES = 1024
# What an allocator may keep or give back between two looks at a process that does the same all the time.
FLAT_BYTES = 4 << 20


class Disturbance:
    """Kills a replica every 10 s and a gateway every 20 s, in turn, starts each again, and restarts Redis once."""

    def __init__(self, letta, fleet):
        self.letta = letta
        self.fleet = fleet
        self.stopped = threading.Event()
        self.replicas_killed = self.gateways_killed = self.redis_restarts = 0

    def over(self):
        self.stopped.set()

    def __call__(self):
        with ThreadPoolExecutor(1) as replicas:
            # A replica takes seconds to come back; the gateways are not to wait for it.
            killing = replicas.submit(self.every, 10, self.kill_replica)
            self.every(20, self.kill_gateway)
            killing.result()
        for replica in self.letta.replicas:
            replica.wait_ready()

    def every(self, seconds, act):
        while not self.stopped.wait(seconds):
            act()

    def kill_replica(self):
        victim = self.letta.replicas[self.replicas_killed % 2]
        self.letta.replicas[(self.replicas_killed + 1) % 2].wait_ready()
        victim.kill()
        victim.start()
        self.replicas_killed += 1

    def kill_gateway(self):
        victim = self.fleet.gateways[self.gateways_killed % 2]
        victim.kill()
        victim.start()
        self.gateways_killed += 1
        if self.gateways_killed == 2:
            self.fleet.redis.stop()
            self.fleet.redis.start()
            self.redis_restarts += 1

    def __str__(self):
        return f"{self.replicas_killed} replicas and {self.gateways_killed} gateways killed, Redis restarted {self.redis_restarts}×"


class Soak:
    def __init__(self, arguments):
        self.scale = arguments.scale
        self.forgetful = arguments.forgetful_redis
        self.turns = arguments.turns
        self.broken = []
        self.parts = contextlib.ExitStack()
        self.started = {}

    def once(self, name, make):
        """What several demonstrations share, started at its first use."""
        if name not in self.started:
            made = make()
            self.parts.callback(made.stop)
            self.started[name] = made
        return self.started[name]

    @property
    def letta(self):
        return self.once("letta", environment.Letta)

    @property
    def node(self):
        return self.once("node", lambda: clients.Node(os.devnull))

    @property
    def nginx(self):
        return self.once("nginx", lambda: Nginx(self.letta))

    @property
    def fleet(self):
        return self.once("fleet", lambda: Fleet(self.letta))

    def say(self, name, what, kept):
        """`kept`: None where nothing was promised."""
        mark = {None: "compare", True: "kept", False: "BROKEN"}[kept]
        print(f"{mark:8}{name}: {what}", flush=True)
        if kept is False:
            self.broken.append(name)

    def many(self, number):
        return max(8, int(number * self.scale))

    # ---- the demonstrations ----

    def retries(self):
        options = {"sends": self.many(200), "at_once": 20, "model_seconds": 5}
        result = traffic.drive_retries(self.letta, self.node, self.fleet, **options)
        self.say("retries, two gateways", result, result.broken() == 0)
        for sent in result.unanswered[:5]:
            print(f"        unanswered: {sent}")
        # As they come: two retries, after which no client that is not answered stays.
        result = traffic.drive_retries(self.letta, self.node, self.nginx, stay=0, **options)
        self.say("retries, plain nginx", result, None)

    def crowd(self):
        options = {"crowd": 20, "agents": 5, "messages": self.many(400)}
        result = traffic.drive_crowd(self.letta, self.node, self.fleet, **options)
        lost = [*result.unanswered(), *result.forgotten(), *result.doubled(), *result.swallowed()]
        overlaps = result.overlapping_calls + result.overlapping_runs
        refused = sum(result.troubles().values())
        self.say("crowd, two gateways", result, not (lost or overlaps or refused or result.out_of_order()[0]))
        result = traffic.drive_crowd(self.letta, self.node, self.nginx, **options)
        self.say("crowd, plain nginx", result, None)

    def deaths(self):
        redis = environment.Redis(self.letta.folder, "mortal-redis", keeps=not self.forgetful)
        with contextlib.ExitStack() as parts:
            parts.callback(redis.stop)
            fleet = Fleet(self.letta, redis=redis)
            parts.callback(fleet.stop)
            disturbance = Disturbance(self.letta, fleet)
            options = {"crowd": 20, "agents": 5, "messages": self.many(400), "model_seconds": 0.3}
            result = traffic.drive_crowd(self.letta, self.node, fleet, meanwhile=disturbance, **options)
        stands = result.present_though_refused()
        lost = [sent for sent in result.sent if sent.text not in result.known[sent.agent]]
        untold = [sent for sent in lost if sent.answered]
        told = ", ".join(f"{times}× {kind}" for kind, times in result.told().most_common()) or "none"
        what = (
            f"{disturbance}; {result}; {sum(sent.broken_off for sent in result.sent)} connections broke off; clients told of a failure: {told}; "
            f"{len(lost)} lost, {len(untold)} of them untold; {len(stands)} stand though their client was told of a failure"
        )
        self.say("deaths, two gateways", what, not (result.doubled() or untold or [one for one in stands if not fate_told(one)]))
        for sent in [*result.doubled(), *untold, *stands][:20]:
            body = sent.refused and (sent.refused.body or str(sent.refused))
            print(f"        {sent.agent} {sent.form} {sent.language} ×{result.copies(sent)} {sent.told()}: {str(body)[:300]}")

    def resumes(self):
        result = traffic.drive_resumes(self.letta, self.node, self.fleet, streams=self.many(100), at_once=5)
        self.say("resumes, two gateways", result, result.broken() == 0)
        for one in [one for one in result.all if not one.whole][:3]:
            print(f"        {one.run} {one.language}\n{one.text}\n        the log:\n{one.log}")

    def lease(self):
        """A lane whose gateway is gone is taken by the other."""
        history = traffic.History(self.letta)
        (agent,) = history.make_agents(1)
        text = f"{agent} is left alone [[delay=2]]"
        one, other = self.fleet.gateways
        with ThreadPoolExecutor(1) as pool:
            client = clients.Python(one.url, self.fleet.key)
            pool.submit(traffic.send, client, traffic.Sent(agent, text, "json", "python"))
            wait_until(lambda: self.letta.model.calls(text), "the model was asked")
            one.kill()
        start = time.monotonic()
        client = clients.Python(other.url, self.fleet.key, timeout=2 * LEASE_SECONDS)
        sent = traffic.send(client, traffic.Sent(agent, "who holds the lane?", "json", "python"))
        seconds = time.monotonic() - start
        one.start()
        overlaps = traffic.overlapping_calls(self.letta, agent)
        what = f"the lane of a killed gateway was free after {seconds:.1f} s; {overlaps} overlapping model calls"
        self.say("lease", what, sent.answered and seconds < LEASE_SECONDS and not overlaps)

    def lanes(self):
        """What 10,000 agents' lanes cost once nobody is in them, and that they go."""
        for store in ("in process", "redis"):
            with Bare(store, turns={"window": "1s"}) as bare:
                # As many turns as below, so that what differs is the lanes.
                for _ in range(2):
                    asyncio.run(bare.send_many(self.many(10000), agents=200))
                bare.settle()
                # Until Redis has let go of the turns themselves, whose window is over: what is left is lanes.
                bare.keys_are(200)
                before = bare.bytes()
                asyncio.run(bare.send_many(self.many(10000), agents=self.many(10000)))
                bare.keys_are(self.many(10000))
                each = [(after - was) / self.many(10000) for was, after in zip(before, bare.bytes(), strict=True)]
                keys = bare.redis_keys()
                if store == "redis":
                    with contextlib.suppress(TimeoutError):
                        wait_until(lambda: bare.redis_keys() == 0, "Redis forgets the lanes", 90)
                left = bare.redis_keys()
            what = f"{self.many(10000)} agents' lanes: {each[0]:.0f} bytes each in the gateway"
            if store == "redis":
                what += f", {each[1]:.0f} in Redis ({keys} keys at once, {left} a minute and a half later)"
            self.say(f"lanes, {store}", what, max(each) <= LANE_BYTES and left == 0)

    def memory(self):
        """Clients that leave at any moment of their turns."""
        for store in ("in process", "redis"):
            with Bare(store, turns={"window": "5s"}) as bare:
                looks, rounds = [], 10
                for _ in range(rounds):
                    asyncio.run(bare.send_many(self.turns // rounds, agents=1000, leaving=True))
                    bare.settle()
                    looks.append(bare.bytes())
                growth = [looks[-1][n] - looks[rounds // 2][n] for n in (0, 1)]
                mebibytes = " ".join(f"{look[0] / (1 << 20):.0f}" for look in looks)
                what = f"{bare.sent} turns, {bare.left} left by their clients, {bare.upstream_turns()} reached Letta: {mebibytes} MiB"
                if store == "redis":
                    what += f"; Redis {looks[-1][1] / (1 << 20):.1f} MiB, {bare.redis_keys()} keys"
            self.say(f"memory, {store}", what, max(growth) < FLAT_BYTES)


def fate_told(sent):
    """The client was told that its message may stand, with the run to look it up by, or what became of that run."""
    said = str(sent.refused.body) + str(sent.refused)
    return "run-" in said or "may have" in said


class Bare:
    """One gateway in front of a stub of a replica: for more turns than real Letta can run."""

    def __init__(self, store, **settings):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="letta-gateway-soak-"))
        self.sent = self.left = 0
        self.numbers = itertools.count()
        self.redis = environment.Redis(self.folder, "redis") if store == "redis" else None
        port = free_port()
        self.replica = Process(self.folder, "replica", [sys.executable, HERE / "replica_stub.py", port])
        wait_until(lambda: accepts(port), "the stub accepts", alive=self.replica.process)
        self.replica_port = port
        stub = type("Stub", (), {"url": f"http://127.0.0.1:{port}"})
        letta = type("Letta", (), {"replicas": [stub], "password": "stub"})
        if self.redis:
            settings["store"] = {"redis": {"url": self.redis.url}}
        wide = {"plans": {"wide": {"in_flight": 100000}}, "log": {"access": False}}
        self.gateway = gateways.Gateway(self.folder, gateways.config(letta, **wide, **settings))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.gateway.stop()
        self.replica.stop()
        if self.redis:
            self.redis.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def bytes(self):
        """What the gateway has in memory, and what Redis has."""
        status = pathlib.Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
        used = 0
        if self.redis:
            used = int(self.redis.ask("INFO memory").partition("used_memory:")[2].split()[0])
        return resident, used

    def redis_keys(self):
        """Without the one that says since when this Redis can be trusted, and the one of the gateways that share it."""
        if not self.redis:
            return 0
        return int(self.redis.ask("DBSIZE").strip(":\r\n")) - int(
            self.redis.ask("EXISTS lgw:lane:{all}:epoch lgw:limit:gateways").strip(":\r\n")
        )

    def keys_are(self, most):
        if self.redis:
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: self.redis_keys() <= most, "Redis has let go of what is over", 15)

    def upstream_turns(self):
        return int(ask(self.replica_port, b"GET /turns HTTP/1.1\r\nHost: x\r\n\r\n"))

    def settle(self):
        """Until the turns that were left are over."""
        last = -1
        while last != (last := self.upstream_turns()):
            time.sleep(0.5)

    async def send_many(self, count, *, agents, leaving=False, at_once=64):
        numbers = iter(range(count))

        async def talk(chance):
            for _ in numbers:
                self.sent += 1
                number = next(self.numbers)
                head, body = self.message(number, number % agents, chance.random() < 0.5)
                left = await exchange(self.gateway.port, head + body, chance.uniform(0, 0.04) if leaving else None)
                self.left += left

        await asyncio.gather(*(talk(random.Random(n)) for n in range(at_once)))

    def message(self, number, agent, stream):
        text = json.dumps({"messages": traffic.user(f"sentence {number}"), **({"stream_tokens": True} if stream else {})})
        path = f"/v1/agents/agent-{agent:08x}-0000-4000-8000-000000000000/messages" + ("/stream" if stream else "")
        head = (
            f"POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {gateways.key_text('team')}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode(), text.encode()


async def exchange(port, request, patience):
    """Sends and reads to the end; true if the client's patience was over first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(-1), patience)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the gateway answered {answer[:400]}")
        return False
    except TimeoutError:
        return True
    finally:
        # A reset, as of a client that is killed.
        writer.transport.abort()


def ask(port, request):
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        return connection.recv(65536).partition(b"\r\n\r\n")[2]


DEMONSTRATIONS = ["retries", "crowd", "deaths", "resumes", "lease", "lanes", "memory"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DEMONSTRATIONS))
    parser.add_argument("--scale", type=float, default=1.0, help="a part of the full size, e.g. 0.1")
    parser.add_argument("--turns", type=int, default=100_000, help="of `memory`")
    parser.add_argument("--forgetful-redis", action="store_true", help="`deaths` restarts a Redis that keeps nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(DEMONSTRATIONS):
        parser.error(f"no such demonstration: {', '.join(sorted(unknown))}")
    soak = Soak(arguments)
    with soak.parts:
        for name in arguments.names or DEMONSTRATIONS:
            try:
                getattr(soak, name)()
            except Exception:
                traceback.print_exc()
                soak.say(name, "could not be shown", False)
    print(f"broken: {', '.join(soak.broken)}" if soak.broken else "every promise was kept", flush=True)
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
