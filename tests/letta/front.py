"""The TCP load balancer that stands before several gateways: each connection goes to the next of them in turn.

A retry of an official client opens a connection of its own, so it lands on another gateway than the send it repeats.
An address that refuses is passed over; what an address breaks off is broken off for the client too.
"""

import argparse
import asyncio
import contextlib
import itertools


async def pump(reader, writer):
    with contextlib.suppress(OSError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
        writer.write_eof()


async def connect(targets, turn):
    for n in range(len(targets)):
        with contextlib.suppress(OSError):
            return await asyncio.open_connection("127.0.0.1", targets[(turn + n) % len(targets)])
    return None


async def serve(port, targets):
    turns = itertools.count()

    async def carry(reader, writer):
        there = await connect(targets, next(turns))
        if there is None:
            writer.transport.abort()
            return
        pumps = [asyncio.ensure_future(pump(reader, there[1])), asyncio.ensure_future(pump(there[0], writer))]
        # Whoever leaves first takes the connection along: a half-open one tells neither side anything.
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for one in pumps:
            one.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for side in (writer, there[1]):
            side.close()

    server = await asyncio.start_server(carry, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("targets", type=int, nargs="+")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.targets))


if __name__ == "__main__":
    main()
