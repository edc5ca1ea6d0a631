"""A stub of an OpenAI-compatible model provider, so that real Letta can run turns without a real model.

It answers with an echo of the last user message. Directives inside that message change how:

    [[tokens=20]]   answer with twenty words instead of the echo
    [[rate=10]]     ten words a second
    [[delay=1.5]]   wait before the first byte
    [[status=500]]  refuse with this status, as the provider does
    [[cut]]         close the connection after five words
    [[hang]]        never answer
    [[hold=name]]   say one word (none where the answer comes whole) and wait until `POST /release?name=…`
    [[tool=name]]   call this tool (once), then answer

Every chat call is recorded with the user's words in it; `GET /stats?text=T` hands out the calls with T in them, and it
is how a test knows that a message did not reach the model, and which calls overlapped.
"""

import argparse
import asyncio
import collections
import json
import re
import time

from aiohttp import web

MODELS = ["gpt-4o-mini", "gpt-4o"]
EMBEDDING_DIMENSIONS = 1536
DIRECTIVE = re.compile(r"\[\[(\w+)(?:=([^\]]*))?\]\]")
LONGEST_HANG_SECONDS = 300


class Record:
    """What this model was asked."""

    def __init__(self):
        self.calls = []
        self.releases = collections.defaultdict(asyncio.Event)
        self.in_flight = 0
        self.most_in_flight = 0


RECORD = web.AppKey("record", Record)


def last_user_text(messages):
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content") or ""
            if isinstance(content, list):
                content = " ".join(part.get("text", "") for part in content)
            return content
    return ""


def read_directives(text):
    directives = {name: value for name, value in DIRECTIVE.findall(text)}
    plain = " ".join(DIRECTIVE.sub(" ", text).split())
    return directives, plain


def words_of(directives, plain):
    if "tokens" in directives:
        return [f"word{n} " for n in range(int(directives["tokens"]))]
    return [word + " " for word in f"echo: {plain}".split(" ")]


async def chat(request):
    body = await request.json()
    record = request.app[RECORD]
    text = last_user_text(body["messages"])
    directives, plain = read_directives(text)
    call = {"text": text, "stream": bool(body.get("stream")), "authorization": request.headers.get("authorization")}
    call |= {"started": time.time(), "ended": None}
    record.calls.append(call)
    record.in_flight += 1
    record.most_in_flight = max(record.most_in_flight, record.in_flight)
    try:
        return await answer(request, body, directives, plain)
    finally:
        call["ended"] = time.time()
        record.in_flight -= 1


async def answer(request, body, directives, plain):
    if "hang" in directives:
        await asyncio.sleep(LONGEST_HANG_SECONDS)
    await asyncio.sleep(float(directives.get("delay", 0)))
    if "status" in directives:
        status = int(directives["status"])
        error = {"message": f"the stub model was told to answer {status}", "type": "stub", "code": str(status)}
        return web.json_response({"error": error}, status=status)

    async def hold():
        if "hold" in directives:
            released = request.app[RECORD].releases[directives["hold"]]
            await asyncio.wait_for(released.wait(), LONGEST_HANG_SECONDS)

    tool = directives.get("tool")
    if tool and body["messages"][-1].get("role") != "tool":
        words, calls, finish = [], [tool_call(tool)], "tool_calls"
    else:
        words, calls, finish = words_of(directives, plain), None, "stop"
    pause = 1 / float(directives["rate"]) if "rate" in directives else 0
    if body.get("stream"):
        return await stream(request, body, words, calls, finish, pause, hold, "cut" in directives)
    await hold()
    if "cut" in directives:
        request.transport.abort()
    await asyncio.sleep(pause * len(words))
    message = {"role": "assistant", "content": "".join(words).strip() or None}
    if calls:
        message["tool_calls"] = calls
    return web.json_response(
        {
            "id": "chatcmpl-stub",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": usage(body, words),
        }
    )


async def stream(request, body, words, calls, finish, pause, hold, cut):
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)

    async def send(delta, finish_reason=None, **more):
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        chunk = {
            "id": "chatcmpl-stub",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body.get("model"),
            "choices": choices,
            **more,
        }
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

    await send({"role": "assistant", "content": ""})
    for n, word in enumerate(words):
        if cut and n == 5:
            request.transport.abort()
            return response
        await asyncio.sleep(pause)
        await send({"content": word})
        if n == 0:
            await hold()
    for n, call in enumerate(calls or []):
        await send({"tool_calls": [{"index": n, **call}]})
    await send({}, finish)
    await send(None, usage=usage(body, words))
    await response.write(b"data: [DONE]\n\n")
    return response


def tool_call(name):
    return {"id": "call_stub", "type": "function", "function": {"name": name, "arguments": "{}"}}


def usage(body, words):
    prompt = len(json.dumps(body["messages"])) // 4
    return {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}


async def models(_request):
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in MODELS]
    return web.json_response({"object": "list", "data": data})


async def embeddings(request):
    body = await request.json()
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vector = [0.01] * EMBEDDING_DIMENSIONS
    data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(inputs))]
    return web.json_response(
        {"object": "list", "data": data, "model": body.get("model"), "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    )


async def stats(request):
    record = request.app[RECORD]
    text = request.query.get("text", "")
    calls = [call for call in record.calls if text in call["text"]]
    return web.json_response({"calls": calls, "in_flight": record.in_flight, "most_in_flight": record.most_in_flight})


async def release(request):
    request.app[RECORD].releases[request.query["name"]].set()
    return web.json_response({})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    app = web.Application(client_max_size=64 << 20)
    app[RECORD] = Record()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/stats", stats)
    app.router.add_post("/release", release)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
