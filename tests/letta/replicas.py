"""Starts Letta replicas: imports Letta once, then forks one child per replica, because importing is most of a start.

Reads one JSON command a line from standard input and answers each with one line on standard output:

    {"do": "tables"}                                   -> {"done": "tables"}
    {"do": "start", "port": N, "log": F, "record": R}  -> {"pid": P}
    {"do": "signal", "pid": P, "signal": S}            -> {"done": "signal"}, once the replica is gone

A replica appends a line to its record for each request it receives, before Letta sees it: method, target and headers
as they came in. Nothing else of Letta is touched; what is replaced below only saves time or downloads.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import types

PR_SET_PDEATHSIG = 1


def import_letta():
    """Imports Letta without what a test never uses."""
    sys.argv = ["letta", "server", "--no-generation"]
    # Letta checks every call of its managers at run time, and fetches tokenizer data when it starts.
    import nltk
    import typeguard

    typeguard.typechecked = lambda target=None, **_: target or (lambda inner: inner)
    nltk.download = lambda *_, **__: True
    # Only file upload needs it, and it brings half a gigabyte with it.
    markitdown = types.ModuleType("markitdown")
    markitdown.MarkItDown = type("Absent", (), {})
    sys.modules["markitdown"] = markitdown

    import letta.server.rest_api.app  # noqa: F401


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def in_child(work, log):
    """Forks; the child does `work` with its output in `log` and exits."""
    pid = os.fork()
    if pid:
        return pid
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = 1
    try:
        work()
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


async def create_tables():
    import letta.orm  # noqa: F401
    from letta.orm.base import Base
    from letta.server.db import engine
    from sqlalchemy import text

    async with engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        await connection.run_sync(Base.metadata.create_all)
        # The one default that Letta's migrations set and its models do not carry.
        await connection.execute(text("CREATE SEQUENCE message_seq_id"))
        await connection.execute(text("ALTER TABLE messages ALTER COLUMN sequence_id SET DEFAULT nextval('message_seq_id')"))


class Recorder:
    """An ASGI application in front of Letta's that writes down what came in."""

    def __init__(self, app, path):
        self.app = app
        self.record = open(path, "a", buffering=1)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            target = scope["raw_path"].decode("latin-1")
            if scope["query_string"]:
                target += "?" + scope["query_string"].decode("latin-1")
            headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
            self.record.write(json.dumps({"method": scope["method"], "target": target, "headers": headers}) + "\n")
        await self.app(scope, receive, send)


def serve(port, record):
    import uvicorn
    from letta.server.rest_api import app as letta

    run = uvicorn.run
    uvicorn.run = lambda _name, **options: run(Recorder(letta.app, record), **options)
    letta.start_server(port=port, host="127.0.0.1")


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_letta()
    print(json.dumps({"done": "import"}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "tables":
                pid = in_child(lambda: asyncio.run(create_tables()), command["log"])
                _, status = os.waitpid(pid, 0)
                answer = {"done": "tables"} if status == 0 else {"failed": "the tables could not be created"}
            case "start":
                answer = {"pid": in_child(lambda: serve(command["port"], command["record"]), command["log"])}
            case "signal":
                os.kill(command["pid"], command["signal"])
                os.waitpid(command["pid"], 0)
                answer = {"done": "signal"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
