"""Redis as the gateways' store: one server, a master with a replica and Sentinels, a cluster."""

import shutil
import signal
import subprocess
import tempfile
import pathlib

from environment import Process, accepts, free_port, wait_until

MASTER = "limits"


class Server:
    """`redis-server` at a port that stays."""

    def __init__(self, folder, *options):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="redis-", dir=folder))
        self.port = self.free_port()
        self.options = options
        self.start()

    @staticmethod
    def free_port():
        """One beside which the port that nodes of a cluster talk to each other on is free, too."""
        while True:
            port = free_port()
            if port + 10000 < 65536 and not accepts(port + 10000):
                return port

    def start(self):
        common = ["--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self.folder]
        self.server = Process(self.folder, "redis", ["redis-server", *common, *self.options])
        wait_until(lambda: accepts(self.port), "Redis accepts", alive=self.server.process)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def ask(self, *words):
        return ask("-p", self.port, *words)

    def signal(self, sign):
        self.server.process.send_signal(sign)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.server.process.wait()

    def stop(self):
        self.signal(signal.SIGCONT)
        self.server.stop(signal.SIGKILL)


def ask(*words):
    ran = subprocess.run(["redis-cli", *map(str, words)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return ran.stdout


class Watched:
    """A master, a replica, and three Sentinels that make the replica the master when the first one is gone."""

    def __init__(self, folder):
        quick = ("--repl-diskless-sync-delay", 0, "--repl-ping-replica-period", 1)
        self.master = Server(folder, *quick)
        self.replica = Server(folder, *quick, "--replicaof", "127.0.0.1", self.master.port)
        self.sentinels = [Sentinel(folder, self.master.port) for _ in range(3)]
        wait_until(lambda: "master_link_status:up" in self.replica.ask("INFO", "replication"), "the replica follows")
        for sentinel in self.sentinels:
            wait_until(lambda: self.is_known(sentinel), "the Sentinels know the replica and each other")

    def is_known(self, sentinel):
        master = ask("-p", sentinel.port, "SENTINEL", "MASTER", MASTER).split()
        known = dict(zip(master[::2], master[1::2], strict=False))
        return known.get("num-slaves") == "1" and known.get("num-other-sentinels") == "2"

    @property
    def url(self):
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{MASTER}/0"

    def fail_over(self):
        """Kills the master; returns when the replica has become it."""
        self.master.kill()
        wait_until(lambda: self.replica.ask("ROLE").startswith("master"), "the replica is the master")

    def stop(self):
        for one in (*self.sentinels, self.replica, self.master):
            one.stop()


class Sentinel:
    def __init__(self, folder, master_port):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="sentinel-", dir=folder))
        self.port = free_port()
        file = folder / "sentinel.conf"
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {MASTER} 127.0.0.1 {master_port} 2\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 10000\n"
        )
        self.server = Process(folder, "sentinel", ["redis-server", file, "--sentinel"])
        wait_until(lambda: accepts(self.port), "the Sentinel accepts", alive=self.server.process)

    def stop(self):
        self.server.stop(signal.SIGKILL)


class Cluster:
    """Three primaries."""

    def __init__(self, folder):
        self.nodes = [Server(folder, "--cluster-enabled", "yes") for _ in range(3)]
        told = ask("--cluster", "create", *self.addresses(), "--cluster-yes")
        if "All 16384 slots covered" not in told:
            raise RuntimeError(f"no cluster:\n{told}")
        for node in self.nodes:
            wait_until(lambda: "cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the cluster is whole")

    def addresses(self):
        return [f"127.0.0.1:{node.port}" for node in self.nodes]

    @property
    def url(self):
        return f"redis+cluster://{','.join(self.addresses())}"

    def stop(self):
        for node in self.nodes:
            node.stop()


def are_installed():
    return shutil.which("redis-server") and shutil.which("redis-cli")
