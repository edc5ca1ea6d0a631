"""A stub of a Letta replica: it answers every GET at once with `{}`, or holds requests back until it is told otherwise.

`/control/hold`, `/control/release` and `/control/state` are for the demonstration; no gateway forwards them.
"""

import asyncio
import json
import sys


class Upstream:
    def __init__(self):
        self.open = asyncio.Event()
        self.open.set()
        self.held = self.peak = self.answered = 0

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                if path.startswith("/control/"):
                    body = self.control(path.removeprefix("/control/"))
                elif path.startswith("/v1/agents/"):
                    body = await self.answer()
                else:
                    body = b"{}"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self):
        self.held += 1
        self.peak = max(self.peak, self.held)
        try:
            await self.open.wait()
        finally:
            self.held -= 1
        self.answered += 1
        return b"{}"

    def control(self, what):
        if what == "hold":
            self.open.clear()
            self.peak = self.answered = 0
        elif what == "release":
            self.open.set()
        return json.dumps({"held": self.held, "peak": self.peak, "answered": self.answered}).encode()


async def main():
    server = await asyncio.start_server(Upstream().serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
