"""A stub of a Letta replica for load: health, and messages that take a few milliseconds, as JSON and as a stream.

`GET /turns` says how many messages it has answered to the end.
"""

import asyncio
import json
import re
import sys

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
USAGE = {"message_type": "usage_statistics", "completion_tokens": 3, "prompt_tokens": 5, "total_tokens": 8, "step_count": 1}
STOP = {"message_type": "stop_reason", "stop_reason": "end_turn"}
RUN = "run-00000000-0000-4000-8000-{:012x}"
EVENTS = 8
PAUSE_SECONDS = 0.003


class Replica:
    def __init__(self):
        self.turns = self.begun = 0

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = LENGTH.search(head)
                if length:
                    await reader.readexactly(int(length[1]))
                path = head.split(b" ", 2)[1]
                if path.endswith(b"/messages/stream"):
                    await self.stream(writer)
                elif path.endswith(b"/messages"):
                    await self.whole(writer)
                else:
                    answer(writer, str(self.turns).encode() if path == b"/turns" else b"{}")
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def message(self, run, content):
        return {"id": run.replace("run", "message"), "message_type": "assistant_message", "run_id": run, "seq_id": None, "content": content}

    def run(self):
        self.begun += 1
        return RUN.format(self.begun)

    async def whole(self, writer):
        run = self.run()
        await asyncio.sleep(PAUSE_SECONDS * EVENTS)
        body = {"messages": [self.message(run, "word " * EVENTS)], "stop_reason": STOP, "usage": USAGE}
        self.turns += 1
        answer(writer, json.dumps(body).encode())

    async def stream(self, writer):
        run = self.run()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(EVENTS):
            event(writer, json.dumps(self.message(run, f"word{n} ")))
            await asyncio.sleep(PAUSE_SECONDS)
        for data in (json.dumps(STOP), json.dumps(USAGE), "[DONE]"):
            event(writer, data)
        self.turns += 1
        writer.write(b"0\r\n\r\n")


def event(writer, data):
    block = f"data: {data}\n\n".encode()
    writer.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")


def answer(writer, body):
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def main():
    server = await asyncio.start_server(Replica().serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
