"""A letta-gateway process in front of the replicas, started from the built binary with a config of the test's own."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import urllib.request

from environment import HERE, die_with_parent, wait_until

BINARY = pathlib.Path(os.environ.get("LETTA_GATEWAY_BIN", HERE.parent.parent / "target/debug/letta-gateway"))
START_SECONDS = 20
LISTENING = re.compile(r"(?<!admin )listening address=127\.0\.0\.1:(\d+) tls=(true|false)")
ADMIN_LISTENING = re.compile(r"admin listening address=127\.0\.0\.1:(\d+)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")

ALL_SCOPES = ["read", "message", "modify", "admin"]
WIDE = {"rate": {"requests": 100000, "per": "1m", "burst": 10000}, "in_flight": 1000}


def key(name, scopes, plan="wide"):
    """A key's entry in the config; the key itself is `key_text(name)`."""
    digest = hashlib.sha256(key_text(name).encode()).hexdigest()
    return {"id": name, "hash": f"sha256:{digest}", "plan": plan, "scopes": scopes}


def key_text(name):
    return f"a-key-for-{name}"


def config(letta, *, keys=(), plans=None, tls=None, **more):
    """A gateway in front of both replicas, with the key `team` that may do everything."""
    listeners = [{"address": "127.0.0.1:0"}]
    if tls:
        listeners.append({"address": "127.0.0.1:0", "tls": {"cert_file": str(tls.cert), "key_file": str(tls.key)}})
    return {
        "listeners": listeners,
        "admin": {"address": "127.0.0.1:0"},
        "upstreams": {
            "letta": {
                "servers": [{"url": replica.url} for replica in letta.replicas],
                "password": letta.password,
                # Quick to notice a replica that a test killed and started again.
                "health_check": {"interval": "500ms", "timeout": "2s", "unhealthy_after": 3, "healthy_after": 1},
            }
        },
        "keys": [key("team", ALL_SCOPES), *keys],
        "plans": {"wide": WIDE, **(plans or {})},
        **more,
    }


class Gateway:
    def __init__(self, folder, settings):
        if not BINARY.exists():
            raise RuntimeError(f"{BINARY} does not exist: build it (cargo build) or name it in LETTA_GATEWAY_BIN")
        self.file = folder / "gateway.yaml"
        self.configure(settings)
        self.output = {"stdout": [], "stderr": []}
        self.process = subprocess.Popen(
            [BINARY, "run", "--config", self.file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            preexec_fn=die_with_parent,
        )
        self.readers = [threading.Thread(target=self.keep, args=(name,), daemon=True) for name in self.output]
        for reader in self.readers:
            reader.start()
        expected = len(settings["listeners"])
        try:
            wait_until(
                lambda: len(self.find(LISTENING)) == expected and self.find(ADMIN_LISTENING),
                "listening",
                START_SECONDS,
                self.process,
            )
        except Exception as error:
            self.process.kill()
            self.join()
            raise RuntimeError(f"the gateway did not start: {error}\n{self.report()}") from error
        ports = {tls: port for port, tls in self.find(LISTENING)}
        self.port = int(ports["false"])
        self.url = f"http://127.0.0.1:{self.port}"
        self.tls_url = f"https://localhost:{ports['true']}" if "true" in ports else None
        self.admin_url = f"http://127.0.0.1:{self.find(ADMIN_LISTENING)[0]}"

    def configure(self, settings):
        """Writes the file, whole at once as an administrator's tool would."""
        fresh = self.file.with_suffix(".new")
        # JSON is YAML, too.
        fresh.write_text(json.dumps(settings, indent=2))
        fresh.replace(self.file)

    def keep(self, name):
        for line in getattr(self.process, name):
            self.output[name].append(ANSI.sub("", line.rstrip("\n")))

    def find(self, pattern):
        return [found for line in list(self.output["stderr"]) for found in pattern.findall(line)]

    def access_log(self):
        return [json.loads(line) for line in list(self.output["stdout"]) if line.startswith("{")]

    def metrics(self):
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def metric(self, name):
        """What a counter or a gauge says, with its labels as they are written; 0 before it is told."""
        told = [line.rsplit(" ", 1) for line in self.metrics().splitlines()]
        return next((float(value) for series, value in told if series == f"letta_gateway_{name}"), 0.0)

    def has_store(self):
        """The store of its configuration is there; what is sent before is neither looked for nor kept."""
        with urllib.request.urlopen(f"{self.admin_url}/readyz", timeout=10) as answer:
            return json.load(answer)["store"]["state"] in ("in_process", "ok")

    def signal(self, sign):
        self.process.send_signal(sign)

    def exit_code(self, seconds=30):
        code = self.process.wait(seconds)
        self.join()
        return code

    def stop(self):
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.join()

    def join(self):
        for reader in self.readers:
            reader.join(5)

    def report(self):
        """The end of what it said, for a test that failed."""
        return "\n".join(f"-- {name}\n" + "\n".join(lines[-60:]) for name, lines in self.output.items())
