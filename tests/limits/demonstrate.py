#!/usr/bin/env python3
"""The promises about limits at full size: four gateways on one Redis, sixteen clients that hammer one key.

Prints a Markdown table, a row for each promise, and exits with 1 if one is broken. `tests/run --limits` installs what it
needs and runs it; names given to it run only those parts.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
import urllib.request
from datetime import UTC, datetime

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "letta"))

import gateway as gateways
import stores
from crowd import CLIENTS, Crowd
from environment import Process, accepts, free_port, wait_until

GATEWAYS = 4
ROUNDS = 10
BUDGET_MS = 50
# What a clock may add to that, beside what requests without limits are late by at the same time, because a CPU is busy.
LATE_MS = 10
# Of the parts in which Redis goes.
LIMIT = 4000
PAUSE_SECONDS = 0.02
# Requests that are under way when Redis goes, and when it is back: of each it is not known whether Redis counted it, and
# what each gateway saw last is as old as they are many. `goes_on` adds what its comments say.
UNSURE = 2 * CLIENTS


class Fleet:
    """Four gateways on `store`, in front of one stub of a replica."""

    def __init__(self, folder, store, plans):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="fleet-", dir=folder))
        port = free_port()
        self.upstream = Process(self.folder, "upstream", [sys.executable, HERE / "upstream.py", port])
        wait_until(lambda: accepts(port), "the stub accepts", alive=self.upstream.process)
        self.control_url = f"http://127.0.0.1:{port}/control"
        stub = type("Stub", (), {"url": f"http://127.0.0.1:{port}"})
        letta = type("Letta", (), {"replicas": [stub], "password": "stub"})
        keys = [gateways.key(name, ["read"], name) for name in plans]
        settings = gateways.config(letta, keys=keys, plans=plans, store={"redis": {"url": store.url}})
        self.gateways = []
        for number in range(GATEWAYS):
            (self.folder / f"gateway-{number}").mkdir()
            self.gateways.append(gateways.Gateway(self.folder / f"gateway-{number}", settings))
        for one in self.gateways:
            wait_until(lambda: one.has_store() and one.metric("limit_gateways") == GATEWAYS, "the gateways know each other")

    @property
    def ports(self):
        return [one.port for one in self.gateways]

    def control(self, what):
        with urllib.request.urlopen(f"{self.control_url}/{what}", timeout=10) as answer:
            return json.load(answer)

    def sum(self, metric):
        return sum(one.metric(metric) for one in self.gateways)

    def without_store(self):
        return self.sum('limit_without_store_total{how="local"}')

    def restarted(self):
        return sum(one.process.poll() is not None for one in self.gateways)

    def overheads(self, key, since):
        """The gateways' own share of each of the key's requests, in ms: the wait for the store, and little else."""
        lines = [line for one in self.gateways for line in one.access_log() if line.get("key") == key]
        return [line["overhead_ms"] for line in lines if datetime.fromisoformat(line["ts"]) >= since]

    def stop(self):
        for one in self.gateways:
            one.stop()
        self.upstream.stop(signal.SIGKILL)


class Demonstration:
    def __init__(self, folder, crowd):
        self.folder = folder
        self.crowd = crowd
        self.rows = []
        self.broken = []

    def row(self, part, promised, shown, kept):
        self.rows.append(f"| {part} | {promised} | {shown} | {'kept' if kept else '**broken**'} |")
        print(f"{'kept' if kept else 'BROKEN':8}{part}: {promised}: {shown}", flush=True)
        if not kept:
            self.broken.append(part)

    @contextlib.contextmanager
    def fleet(self, store, plans):
        fleet = Fleet(self.folder, store, plans)
        try:
            yield fleet
        finally:
            fleet.stop()

    # ---- the parts ----

    def exact(self):
        with contextlib.closing(Stopped(stores.Server(self.folder))) as store:
            self.is_exact("one Redis", store.it)

    def cluster(self):
        with contextlib.closing(Stopped(stores.Cluster(self.folder))) as store:
            self.is_exact("a cluster of three", store.it)

    def killed(self):
        with contextlib.closing(Stopped(stores.Server(self.folder))) as store:

            def outage():
                store.it.kill()
                time.sleep(5)
                store.it.start()

            self.goes_on("Redis killed, started again empty after 5 s", store.it, outage)

    def paused(self):
        with contextlib.closing(Stopped(stores.Server(self.folder))) as store:

            def outage():
                store.it.signal(signal.SIGSTOP)
                time.sleep(10)
                store.it.signal(signal.SIGCONT)

            self.goes_on("Redis paused for 10 s (SIGSTOP)", store.it, outage)

    def failover(self):
        with contextlib.closing(Stopped(stores.Watched(self.folder))) as store:
            self.goes_on("master killed, three Sentinels make its replica the master", store.it, store.it.fail_over)

    # ---- what they share ----

    def is_exact(self, where, store):
        rate = {"rate": {"requests": 1, "per": "1h", "burst": 60}}
        day = {"rate": [{"requests": 10000, "per": "1s"}, {"requests": 500, "per": "1d"}]}
        places = {"in_flight": 9}
        windows = [("rate", rate), ("day", day), ("places", places)]
        with self.fleet(store, {f"{name}-{n}": plan for name, plan in windows for n in range(ROUNDS)}) as fleet:
            for name, limit, times in (("rate", 60, 40), ("day", 500, 60)):
                counts = [self.admitted(fleet, f"{name}-{n}", times) for n in range(ROUNDS)]
                self.tell_exact(f"{where}: a {'rate' if name == 'rate' else 'daily'} window", limit, counts)
            self.tell_exact(f"{where}: in flight", 9, [self.most_in_flight(fleet, f"places-{n}") for n in range(ROUNDS)])
            unsure, restarted = fleet.without_store(), fleet.restarted()
            shown = f"{unsure:.0f} decided without Redis, {restarted} gateways ended"
            self.row(f"{where}: all of it", "by Redis alone", shown, unsure == 0 and restarted == 0)

    def tell_exact(self, part, limit, counts):
        shown = f"{limit} admitted, {ROUNDS} times" if set(counts) == {limit} else f"admitted {counts}"
        self.row(part, f"{limit} admitted, {ROUNDS} times of {ROUNDS}", shown, set(counts) == {limit})

    def admitted(self, fleet, key, times):
        self.crowd.start(fleet.ports, gateways.key_text(key), times=times)
        asked = self.crowd.all()
        statuses = [one.status for one in asked]
        if set(statuses) - {200, 429} or len(statuses) != CLIENTS * times:
            raise RuntimeError(f"answered {sorted(set(statuses))}")
        return statuses.count(200)

    def most_in_flight(self, fleet, key):
        """How many were at the replica at once while all clients went on asking."""
        fleet.control("hold")
        self.crowd.start(fleet.ports, gateways.key_text(key))
        try:
            refused = f'limit_decisions_total{{key="{key}",outcome="refused",window="in_flight"}}'
            wait_until(lambda: fleet.sum(refused) > 200 and fleet.control("state")["held"] >= 9, "the others are refused")
            return fleet.control("state")["peak"]
        finally:
            # Nobody asks again once those that are held are answered.
            self.crowd.stop.set()
            fleet.control("release")
            self.crowd.all()

    def goes_on(self, part, store, outage):
        """Sixteen clients hammer one key all the time; Redis goes when a quarter of the limit is spent."""
        plans = {"hammered": {"rate": {"requests": 1, "per": "1d", "burst": LIMIT}}, "free": {}}
        with self.fleet(store, plans) as fleet:
            hammered, free = gateways.key_text("hammered"), gateways.key_text("free")
            self.crowd.start(fleet.ports, hammered, pause=PAUSE_SECONDS, free=free)
            try:
                wait_until(lambda: self.crowd.so_far() >= LIMIT // 4, "a quarter is spent")
                gone, since = time.monotonic(), datetime.now(UTC)
                outage()
                first, back = self.are_back(fleet)
                self.quiet(fleet)
                alone = fleet.without_store()
                time.sleep(1)
                still = fleet.without_store() - alone
            finally:
                asked = self.crowd.finish()
            restarted = fleet.restarted()
            overheads, usual = fleet.overheads("hammered", since), max(fleet.overheads("free", since))
        statuses = {one.status for one in asked}
        asked = [one for one in asked if one.key == hammered]
        admitted = [one for one in asked if one.status == 200]
        before = sum(one.ended <= gone for one in admitted)
        shares = [sum(gone < one.ended <= first and one.gateway == n for one in admitted) for n in range(GATEWAYS)]
        # While one gateway has Redis again and another has not told it yet, with its next request, what it let pass.
        between = sum(first < one.ended <= back + 2 * PAUSE_SECONDS for one in admitted)
        share = (LIMIT - before) // GATEWAYS
        waited = sum(ms >= BUDGET_MS for ms in overheads)
        longest = max(overheads)
        self.row(
            f"{part}: no request waits over the budget",
            f"{BUDGET_MS} ms, + {LATE_MS} of the clock, + what requests without limits took",
            f"{longest:.1f} ms at most, {usual:.1f} ms without limits; {waited} of {len(overheads)} waited for all of it",
            longest <= BUDGET_MS + LATE_MS + usual and statuses == {200, 429},
        )
        self.row(
            f"{part}: each gateway has its share meanwhile",
            f"a quarter of the {LIMIT - before} that were left: {share}, + {CLIENTS} that were under way",
            f"{', '.join(map(str, shares))} in {first - gone:.1f} s",
            max(shares) <= share + CLIENTS,
        )
        # Whoever waited in vain is counted by a Redis that wakes up, and again when its gateway tells of it.
        least, most = LIMIT - UNSURE - waited, LIMIT + UNSURE + between
        self.row(
            f"{part}: the count afterwards",
            f"{LIMIT}: {least} to {most}",
            f"{len(admitted)}: {before} before, {sum(shares)} meanwhile, {len(admitted) - before - sum(shares)} after",
            least <= len(admitted) <= most,
        )
        self.row(
            f"{part}: no gateway needs a restart",
            "all count in Redis again",
            f"{restarted} ended, {still:.0f} requests decided without Redis in the last second",
            restarted == 0 and still == 0,
        )

    def are_back(self, fleet):
        """When the first gateway has its Redis again, and when the last one has."""
        first, missing = None, list(fleet.gateways)
        deadline = time.monotonic() + 60
        while missing:
            asked = time.monotonic()
            missing = [one for one in missing if one.metric('redis_up{link="limits"}') != 1]
            if first is None and len(missing) < GATEWAYS:
                first = asked
            if asked > deadline:
                raise TimeoutError("a gateway does not find its Redis again")
        return first, time.monotonic()

    def quiet(self, fleet):
        """Until nobody has been admitted for a second: all that there was is given."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < 1:
            if (now := self.crowd.so_far()) != last:
                last, since = now, time.monotonic()
            if fleet.restarted():
                raise RuntimeError("a gateway has ended")
            time.sleep(0.02)


class Stopped:
    """For `contextlib.closing`: what is stopped, not closed."""

    def __init__(self, it):
        self.it = it

    def close(self):
        self.it.stop()


PARTS = ["exact", "killed", "paused", "failover", "cluster"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # Before anything else is started, so that they inherit nothing.
    crowd = Crowd()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="letta-gateway-limits-"))
    shown = Demonstration(folder, crowd)
    try:
        for name in arguments.names or PARTS:
            try:
                getattr(shown, name)()
            except Exception:
                traceback.print_exc()
                shown.row(name, "can be shown", "could not be shown", False)
    finally:
        crowd.end()
        shutil.rmtree(folder, ignore_errors=True)
    print("\n| | promised | shown | |\n|---|---|---|---|")
    print("\n".join(shown.rows))
    print(f"\nbroken: {'; '.join(shown.broken)}" if shown.broken else "\nevery promise was kept", flush=True)
    return 1 if shown.broken else 0


if __name__ == "__main__":
    sys.exit(main())
