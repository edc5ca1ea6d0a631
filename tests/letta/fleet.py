"""Several gateways on one Redis behind one address, and plain nginx in the same place to compare with.

Each part keeps its port, so that it can be killed and started again while clients go on.
"""

import pathlib
import shutil
import signal
import sys
import tempfile

import environment
import gateway as gateways
from environment import HERE, Process, accepts, free_port, wait_until

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;

    upstream letta {{
{servers}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://letta;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


class Member:
    """One gateway of a fleet: a port that stays, and a process that can be killed and started again."""

    def __init__(self, folder, settings):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.folder.mkdir()
        self.settings = {**settings, "listeners": [{"address": f"127.0.0.1:{self.port}"}]}
        # What processes of this member that are gone have written.
        self.lines = []
        self.gateway = None
        self.start()

    def start(self):
        self.gateway = gateways.Gateway(self.folder, self.settings)

    def kill(self):
        """Gone at once: nothing is drained, no lease is given back."""
        self.gateway.signal(signal.SIGKILL)
        self.gateway.exit_code()
        self.lines += self.gateway.access_log()

    def access_log(self):
        lines = self.gateway.access_log()
        return self.lines + lines if self.gateway.process.poll() is None else self.lines

    def stop(self):
        self.gateway.stop()


class Fleet:
    """`size` gateways in front of Letta on one Redis of their own, behind a front that spreads connections."""

    key = gateways.key_text("team")

    def __init__(self, letta, *, size=2, redis=None, **settings):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="fleet-", dir=letta.folder))
        self.parts = []
        try:
            self.redis = redis or self.part(environment.Redis(self.folder, "redis"))
            settings = gateways.config(letta, store={"redis": {"url": self.redis.url}}, **settings)
            self.gateways = [self.part(Member(self.folder / f"gateway-{n}", settings)) for n in range(size)]
            self.port = free_port()
            command = [sys.executable, HERE / "front.py", self.port, *[one.port for one in self.gateways]]
            front = self.part(Process(self.folder, "front", command))
            wait_until(lambda: accepts(self.port), "the front accepts", alive=front.process)
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def part(self, part):
        self.parts.append(part)
        return part

    def access_log(self):
        """The lines of all gateways, also of those that were killed."""
        return [line for one in self.gateways for line in one.access_log()]

    def report(self):
        return "\n".join(f"-- gateway {n}\n{one.gateway.report()}" for n, one in enumerate(self.gateways))

    def stop(self):
        for part in reversed(self.parts):
            part.stop()


class Nginx:
    """The reverse proxy of the tutorials: both replicas, nothing else. Its clients hold Letta's own password."""

    def __init__(self, letta):
        program = shutil.which("nginx", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin")
        if program is None:
            raise RuntimeError("nginx is not installed (Debian and Ubuntu: apt-get install nginx-light)")
        folder = pathlib.Path(tempfile.mkdtemp(prefix="nginx-", dir=letta.folder))
        folder.chmod(0o755)
        self.key = letta.password
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        servers = "\n".join(f"        server 127.0.0.1:{replica.port};" for replica in letta.replicas)
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, port=self.port, servers=servers))
        self.server = Process(folder, "nginx", [program, "-p", folder, "-c", file])
        wait_until(lambda: accepts(self.port), "nginx accepts", alive=self.server.process)

    def stop(self):
        self.server.stop()
