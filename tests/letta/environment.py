"""Real Letta for the tests: PostgreSQL, Redis and a stub model of its own, and two replicas that share them.

Everything listens on free loopback ports, keeps its files in one temporary folder and ends with this process.
"""

import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).parent
POSTGRES = HERE.parent / ".letta/postgres"
# PostgreSQL refuses to run as root; any other user will do, this one exists everywhere.
NOBODY = 65534
PASSWORD = "the-password-only-the-gateway-knows"
MODEL = "openai-proxy/gpt-4o-mini"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, what, seconds=60, alive=None):
    """Polls `condition` until it is true, for a bounded time."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if alive is not None and alive.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with {alive.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def accepts(port):
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def answers_200(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def die_with_parent():
    """Run in a child before its program starts: nothing outlives the tests, however they end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A program of the environment; its output goes to a file of its own."""

    def __init__(self, folder, name, command, **options):
        self.log = folder / f"{name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                **options,
            )

    def stop(self, sign=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sign)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Postgres:
    def __init__(self, folder):
        self.port = free_port()
        data = folder / "postgres"
        data.mkdir()
        installed, as_user = POSTGRES, []
        if os.geteuid() == 0:
            # The checkout may lie where only root can look.
            installed = shutil.copytree(POSTGRES, folder / "postgres-programs", symlinks=True)
            os.chown(data, NOBODY, NOBODY)
            as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig=KILL"]
        programs = installed / "pgserver/pginstall/bin"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        options = {"cwd": data, "env": environment}
        initialise = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*as_user, *initialise], check=True, stdout=subprocess.DEVNULL, **options)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 300,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.server = Process(folder, "postgres-server", [*as_user, programs / "postgres", "-D", data, *flags], **options)
        self.psql = [programs / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-q", "-c"]
        wait_until(lambda: self.run("SELECT 1"), "PostgreSQL answers", alive=self.server.process)
        for statement in ("CREATE ROLE letta LOGIN SUPERUSER", "CREATE DATABASE letta OWNER letta"):
            if not self.run(statement):
                raise RuntimeError(f"PostgreSQL refused: {statement}")
        self.uri = f"postgresql://letta:letta@127.0.0.1:{self.port}/letta?sslmode=disable"

    def run(self, statement):
        done = subprocess.run([*self.psql, statement], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        return done.returncode == 0

    def stop(self):
        self.server.stop(signal.SIGINT)


class Redis:
    """A Redis at a port that stays; `keeps`: what it holds survives a restart."""

    def __init__(self, folder, name, *, keeps=False):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        self.name = name
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.program = shutil.which("redis-server")
        if self.program is None:
            raise RuntimeError("redis-server is not on PATH: install it (Debian and Ubuntu: apt-get install redis-server)")
        self.appendonly = "yes" if keeps else "no"
        self.start()

    def start(self):
        address = ["--port", self.port, "--bind", "127.0.0.1"]
        keeping = ["--save", "", "--appendonly", self.appendonly, "--dir", self.folder]
        self.server = Process(self.folder, self.name, [self.program, *address, *keeping])
        wait_until(lambda: accepts(self.port), f"{self.name} accepts", alive=self.server.process)

    def ask(self, command):
        """The answer to a command, as it comes over the wire."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(1 << 16).decode()

    def stop(self):
        self.server.stop()


class Model:
    """The stub model; see model.py for what it understands."""

    def __init__(self, folder):
        self.port = free_port()
        self.server = Process(folder, "model", [sys.executable, HERE / "model.py", "--port", self.port])
        wait_until(lambda: accepts(self.port), "the stub model accepts", alive=self.server.process)

    def calls(self, text=""):
        """The calls whose last user message contains `text`; each has its `started` and `ended`, in Unix seconds."""
        query = urllib.parse.urlencode({"text": text})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats?{query}", timeout=10) as response:
            return json.load(response)["calls"]

    def release(self, name):
        """Lets the calls go on that a `[[hold=name]]` stopped, and those that it would."""
        query = urllib.parse.urlencode({"name": name})
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/release?{query}", data=b"", timeout=10).close()

    def stop(self):
        # It would wait for the answers that it still gives to nobody.
        self.server.stop(signal.SIGKILL)


class Replica:
    """One Letta server: a port that stays, and a process that can be killed and started again."""

    def __init__(self, launcher, name, folder):
        self.launcher = launcher
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self.record = folder / f"{name}.requests"
        self.record.touch()
        self.pid = None

    def start(self):
        command = {"do": "start", "port": self.port, "log": str(self.log), "record": str(self.record)}
        self.pid = self.launcher.ask(command)["pid"]

    def wait_ready(self):
        wait_until(lambda: answers_200(f"{self.url}/v1/health/"), f"{self.name} is healthy", 120, alive=self.launcher.process)

    def kill(self, sign=signal.SIGKILL):
        """Returns when the replica is gone."""
        self.launcher.ask({"do": "signal", "pid": self.pid, "signal": int(sign)})
        self.pid = None

    def requests(self, since=0):
        """What this replica received, health checks left out."""
        with open(self.record) as record:
            record.seek(since)
            requests = [json.loads(line) for line in record.read().splitlines()]
        return [request for request in requests if not request["target"].startswith("/v1/health")]

    def mark(self):
        """A position in the record, for `requests(since=…)`."""
        return self.record.stat().st_size


class Launcher:
    """The process that has Letta imported and forks replicas."""

    def __init__(self, folder, variables):
        self.log = folder / "launcher.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "replicas.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=variables,
                preexec_fn=die_with_parent,
            )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the replica launcher ended:\n{self.log.read_text()[-4000:]}")
        answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer

    def ask(self, command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self):
        self.process.kill()
        self.process.wait()


class Letta:
    """Two replicas on one database, one Redis and one stub model."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="letta-gateway-tests-"))
        # The user that PostgreSQL runs as has to come through.
        self.folder.chmod(0o755)
        self.password = PASSWORD
        self.parts = []
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self):
        self.postgres = self.part(Postgres(self.folder))
        self.redis = self.part(Redis(self.folder, "letta-redis"))
        self.model = self.part(Model(self.folder))
        launcher = self.part(Launcher(self.folder, self.variables()))
        launcher.answer()
        launcher.ask({"do": "tables", "log": str(self.folder / "tables.log")})
        self.replicas = [Replica(launcher, f"replica-{n}", self.folder) for n in (1, 2)]
        # The first one writes the default user and tools into the empty database; two at once would collide.
        for replica in self.replicas:
            replica.start()
            replica.wait_ready()

    def variables(self):
        home = self.folder / "home"
        home.mkdir()
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LETTA_PG_URI": self.postgres.uri,
            "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
            "LETTA_PG_POOL_SIZE": "60",
            "LETTA_PG_MAX_OVERFLOW": "60",
            "LETTA_REDIS_HOST": "127.0.0.1",
            "LETTA_REDIS_PORT": str(self.redis.port),
            "LETTA_SERVER_SECURE": "true",
            "LETTA_SERVER_PASSWORD": self.password,
            "LETTA_DISABLE_TRACING": "true",
            "LETTA_ENABLE_DB_POOL_MONITORING": "false",
            "OPENAI_API_KEY": "stub",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.model.port}/v1",
        }

    def part(self, part):
        self.parts.append(part)
        return part

    def mark(self):
        return [replica.mark() for replica in self.replicas]

    def requests(self, marks):
        """What both replicas received since `marks`, each with the replica's number."""
        received = []
        for number, (replica, mark) in enumerate(zip(self.replicas, marks, strict=True)):
            received += [{**request, "replica": number} for request in replica.requests(mark)]
        return received

    def stop(self):
        for part in reversed(self.parts):
            part.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
