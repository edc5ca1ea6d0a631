"""Messages sent in ways that hurt, and what became of them: in their clients' hands, in the model, in Letta's history.

Each drive takes whatever stands before the replicas (a fleet of gateways, or nginx), so that the same run can be judged
with both.
"""

import collections
import datetime
import json
import random
import re
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import clients
from clients import Refused
from environment import MODEL

AGENT = re.compile(r"agent-[0-9a-f-]{36}")
DIRECTIVES = re.compile(r"\s*\[\[[^\]]*\]\]\s*")
# Two sends this far apart arrive in this order, whatever the machine is busy with.
APART_SECONDS = 0.15


def user(text):
    return [{"role": "user", "content": text}]


def words(events):
    return "".join(event["content"] for event in events if event.get("message_type") == "assistant_message")


# ---- what Letta holds ----


class History:
    """What Letta holds, asked of a replica itself."""

    def __init__(self, letta):
        self.letta = letta

    def ask(self, path, body=None):
        alive = next(replica for replica in self.letta.replicas if replica.pid)
        headers = {"Authorization": f"Bearer {self.letta.password}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{alive.url}/v1{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def make_agents(self, count):
        body = {"model": MODEL, "memory_blocks": [], "include_base_tools": False}
        return [self.ask("/agents/", {**body, "name": f"talked-to-{n}"})["id"] for n in range(count)]

    def messages(self, agent):
        """All of them, oldest first."""
        return self.ask(f"/agents/{agent}/messages?limit=100000&order=asc")

    def sentences(self, agent):
        """What its users said, oldest first."""
        return [one["content"] for one in self.messages(agent) if one["message_type"] == "user_message"]

    def copies(self, agent, sentence):
        return self.sentences(agent).count(sentence)

    def in_context(self, agent):
        """The sentences that the agent still knows of."""
        known = set(self.ask(f"/agents/{agent}")["message_ids"])
        said = [one for one in self.messages(agent) if one["message_type"] == "user_message"]
        return [one["content"] for one in said if one["id"] in known]

    def runs(self, agent):
        """Oldest first."""
        return self.ask(f"/runs/?agent_id={agent}&limit=1000&order=asc")

    def unfinished(self, agents):
        return [run for agent in agents for run in self.runs(agent) if run["status"] in ("created", "running")]


def overlapping(spans):
    """How many of these (start, end) began before one that began earlier had ended."""
    count, latest = 0, None
    for start, end in sorted(spans):
        count += latest is not None and start < latest
        latest = end if latest is None else max(latest, end)
    return count


def overlapping_calls(letta, agent):
    """Of the model, for this agent."""
    return overlapping([(call["started"], call["ended"] or time.time()) for call in letta.model.calls(agent)])


def instant(text):
    """A time as Letta writes it; it means UTC also where it does not say so."""
    moment = datetime.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def overlapping_runs(history, agent):
    """By Letta's own book."""
    runs = history.runs(agent)
    spans = [(instant(run["created_at"]), instant(run["completed_at"])) for run in runs if run["completed_at"]]
    return overlapping(spans)


# ---- sending ----


@dataclass
class Sent:
    agent: str
    text: str
    form: str
    language: str
    stays: bool = True
    otid: str = None
    # Connections that broke without a word.
    broken_off: int = 0
    began: float = 0.0
    ended: float = 0.0
    # The answer's words, or how the client was refused.
    answer: str = None
    refused: Refused = None
    # The status of every HTTP answer that the client saw on the way.
    attempts: list = field(default_factory=list)
    headers: dict = field(default_factory=dict)

    @property
    def answered(self):
        if self.answer is None:
            return False
        return self.answer.split() == ["echo:", *DIRECTIVES.sub(" ", self.text).split()]

    def told(self):
        """The kind of error that the client was left with."""
        if self.refused is None:
            return "an answer" if self.answered else "another answer"
        body = self.refused.body
        if not isinstance(body, dict):
            return self.refused.name
        nested = body.get("error")
        kind = nested.get("type") if isinstance(nested, dict) else body.get("error_type")
        return kind or f"{self.refused.name} {self.refused.status}"


def send(client, sent, **more):
    """Sends through an official client and writes down what came of it."""
    sent.began = sent.began or time.time()
    message = {"role": "user", "content": sent.text, **({"otid": sent.otid} if sent.otid else {})}
    try:
        if sent.form == "json":
            reply = client.call("agents.messages.create", sent.agent, messages=[message], **more)
            spoken = [one for one in reply.value["messages"] if one["message_type"] == "assistant_message"]
        else:
            options = {"streaming": True, "stream_tokens": sent.form == "tokens", **more}
            reply = client.call("agents.messages.create", sent.agent, messages=[message], **options)
            spoken = list(reply)
        sent.refused = None
        sent.answer, sent.attempts, sent.headers = words(spoken), reply.attempts, reply.headers
    except Refused as refused:
        sent.refused, sent.attempts, sent.headers = refused, refused.attempts, refused.headers
    sent.ended = time.time()
    return sent


def insist(client, sent, times=5):
    """Sends until somebody says what became of it: a connection that breaks says nothing, and the clients do not repeat
    a stream that has begun. The message's own id makes it a repeat."""
    sent.otid = str(uuid.uuid4())
    for _ in range(times):
        send(client, sent)
        if sent.refused is None or sent.refused.status is not None or isinstance(sent.refused.body, dict):
            break
        sent.broken_off += 1
        time.sleep(0.5)
    return sent


def make_client(language, node, place, **options):
    if language == "python":
        return clients.Python(place.url, place.key, **options)
    return clients.TypeScript(node, place.url, place.key, **options)


def language_of(number):
    return ("python", "typescript")[number % 2]


# ---- 1: clients that give up after a second and send again ----


@dataclass(repr=False)
class Retries:
    sent: list
    copies: collections.Counter
    unanswered: list

    def broken(self):
        """Sentences that do not stand exactly once, and clients that stayed and got nothing."""
        return sum(times for count, times in self.copies.items() if count != 1) + len(self.unanswered)

    def __repr__(self):
        stayed = sum(sent.stays for sent in self.sent)
        counts = ", ".join(f"{times} stand {count}×" for count, times in sorted(self.copies.items()))
        extra = sum((count - 1) * times for count, times in self.copies.items() if count > 1)
        return (
            f"{len(self.sent)} sends: {counts}; {extra} extra copies; "
            f"{stayed - len(self.unanswered)} of {stayed} clients that stayed got their answer"
        )


def drive_retries(letta, node, place, *, sends, at_once, model_seconds, patient=8, impatient=2, stay=3):
    """Clients with a timeout of a second before a model that takes longer; of four clients, `stay` try until they have it.

    Each of `at_once` agents is talked to by one client, half of them Python and half TypeScript, in both forms of answer.
    """
    history = History(letta)
    agents = history.make_agents(at_once)

    def talk(number):
        agent, language = agents[number], language_of(number)
        talked = []
        for n in range(number, sends, at_once):
            stays = (n // 2) % 4 < stay
            text = f"{agent} hears sentence {n} [[delay={model_seconds}]]"
            sent = Sent(agent, text, ("json", "steps")[(n // at_once) % 2], language, stays)
            client = make_client(language, node, place, timeout=1, retries=patient if stays else impatient)
            # No ping at once: a stream's head comes with the model's first word, so that its client gives up too.
            send(client, sent, **({} if sent.form == "json" else {"include_pings": False}))
            client.close()
            talked.append(sent)
            settle(history, letta, agent)
        return talked

    with ThreadPoolExecutor(at_once) as pool:
        sent = [one for talked in pool.map(talk, range(at_once)) for one in talked]
    said = {agent: collections.Counter(history.sentences(agent)) for agent in agents}
    copies = collections.Counter(said[one.agent][one.text] for one in sent)
    return Retries(sent, copies, [one for one in sent if one.stays and not one.answered])


def settle(history, letta, agent, seconds=60):
    """Until nothing of this agent runs any more, or the time is over: what comes then is another turn."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        in_the_model = [call for call in letta.model.calls(agent) if call["ended"] is None]
        if not in_the_model and not history.unfinished([agent]):
            return
        time.sleep(0.2)


# ---- 2 and 3: many clients, few agents ----


@dataclass(repr=False)
class Crowd:
    sent: list
    # By agent.
    said: dict
    known: dict
    overlapping_calls: int
    overlapping_runs: int
    arrived: dict
    seconds: float

    def copies(self, sent):
        return self.said[sent.agent].count(sent.text)

    def answered(self):
        return [sent for sent in self.sent if sent.answered]

    def unanswered(self):
        return [sent for sent in self.sent if not sent.answered]

    def doubled(self):
        return [sent for sent in self.sent if self.copies(sent) > 1]

    def forgotten(self):
        """Stored, but gone from the agent's context."""
        return [sent for sent in self.sent if self.copies(sent) and sent.text not in self.known[sent.agent]]

    def swallowed(self):
        """Answered, but neither stored nor known."""
        return [sent for sent in self.answered() if not self.copies(sent)]

    def present_though_refused(self):
        return [sent for sent in self.unanswered() if self.copies(sent)]

    def troubles(self):
        """Statuses other than 200 that clients saw, also where a retry mended it."""
        return collections.Counter(status for sent in self.sent for status in sent.attempts if status != 200)

    def told(self):
        return collections.Counter(sent.told() for sent in self.unanswered())

    def out_of_order(self):
        """Pairs of one agent that stand the other way round than they arrived, where it can be told."""
        wrong, pairs = 0, 0
        for agent, said in self.said.items():
            place = {text: n for n, text in enumerate(said)}
            mine = [sent for sent in self.sent if sent.agent == agent and sent.text in place]
            mine.sort(key=self.arrival)
            for n, one in enumerate(mine):
                for other in mine[n + 1 :]:
                    if self.arrival(other) - self.arrival(one) > APART_SECONDS:
                        pairs += 1
                        wrong += place[one.text] > place[other.text]
        return wrong, pairs

    def arrival(self, sent):
        return self.arrived.get(sent.headers.get("x-request-id"), sent.began)

    def __repr__(self):
        wrong, pairs = self.out_of_order()
        troubles = ", ".join(f"{times}× {status}" for status, times in sorted(self.troubles().items())) or "none"
        return (
            f"{len(self.sent)} messages in {self.seconds:.0f} s: {len(self.answered())} answered, "
            f"{len(self.forgotten())} gone from their agent's context, {len(self.doubled())} doubled, "
            f"{len(self.swallowed())} answered but not stored, {self.overlapping_calls} overlapping model calls, "
            f"{self.overlapping_runs} overlapping runs, {wrong} of {pairs} pairs out of order, refusals on the way: {troubles}"
        )


def drive_crowd(letta, node, place, *, crowd, agents, messages, model_seconds=0.1, retries=2, meanwhile=None):
    """`crowd` clients talk to a few agents at once, in JSON and in both kinds of stream; `meanwhile` is run beside them."""
    history = History(letta)
    agents = history.make_agents(agents)
    start = time.monotonic()

    def talk(number):
        chance = random.Random(number)
        language = language_of(number)
        client = make_client(language, node, place, retries=retries)
        talked = []
        for n in range(number, messages, crowd):
            agent = chance.choice(agents)
            text = f"{agent} hears sentence {n} [[delay={chance.uniform(0, 2 * model_seconds):.3f}]]"
            form = ("json", "steps", "tokens")[n % 3]
            talked.append((send if meanwhile is None else insist)(client, Sent(agent, text, form, language)))
        client.close()
        return talked

    with ThreadPoolExecutor(crowd + 1) as pool:
        if meanwhile is not None:
            disturbing = pool.submit(meanwhile)
        talking = [pool.submit(talk, number) for number in range(crowd)]
        sent = [one for talked in talking for one in talked.result()]
        if meanwhile is not None:
            meanwhile.over()
            disturbing.result()
    seconds = time.monotonic() - start
    with ThreadPoolExecutor(len(agents)) as pool:
        list(pool.map(lambda agent: settle(history, letta, agent, 20), agents))
    return Crowd(
        sent,
        {agent: history.sentences(agent) for agent in agents},
        {agent: set(history.in_context(agent)) for agent in agents},
        sum(overlapping_calls(letta, agent) for agent in agents),
        sum(overlapping_runs(history, agent) for agent in agents),
        arrivals(place),
        seconds,
    )


def arrivals(place):
    """When each request came in, by its id, as the gateways' access log has it."""
    if not hasattr(place, "access_log"):
        return {}
    return {line["request_id"]: instant(line["ts"]) - line["duration_ms"] / 1000 for line in place.access_log()}


# ---- 4: streams that are dropped and taken up again ----


class Reader:
    """Reads a stream of events as bytes and knows where it is."""

    def __init__(self):
        self.blocks = []
        self.rest = ""
        self.run = None
        self.sequence = 0

    def read(self, parts, events=None):
        """Reads to the end, or until this many more events are there; then what has begun is lost, as in a real drop."""
        self.rest = ""
        goal = None if events is None else len(self.blocks) + events
        for part in parts:
            self.rest += part
            *blocks, self.rest = self.rest.split("\n\n")
            for block in blocks:
                self.take(block)
                if goal is not None and len(self.blocks) >= goal:
                    return
            if self.over():
                return

    def take(self, block):
        if block.startswith(":"):
            return
        self.blocks.append(block)
        data = block.partition("data: ")[2]
        if not data.startswith("{"):
            return
        event = json.loads(data)
        self.run = event.get("run_id") or self.run
        # Letta numbers the events of background runs; others are counted.
        self.sequence = event.get("seq_id") or self.sequence + 1

    def over(self):
        return bool(self.blocks) and self.blocks[-1] == "data: [DONE]"

    @property
    def text(self):
        return "".join(block + "\n\n" for block in self.blocks)


@dataclass
class Resumed:
    run: str
    language: str
    text: str
    log: str
    drops: int

    @property
    def whole(self):
        return self.text == self.log and self.text.endswith("data: [DONE]\n\n")


@dataclass(repr=False)
class Resumes:
    all: list

    def broken(self):
        return sum(not one.whole for one in self.all)

    def __repr__(self):
        drops = sum(one.drops for one in self.all)
        return f"{len(self.all)} streams dropped {drops} times: {len(self.all) - self.broken()} equal to the full log, byte for byte"


def drive_resumes(letta, node, place, *, streams, at_once, tokens=30, rate=30, most_drops=2):
    """Streams that are dropped at a random event and resumed with the official clients' own call, on any gateway."""
    history = History(letta)
    agents = history.make_agents(at_once)

    def talk(number):
        return [resume(number, n) for n in range(number, streams, at_once)]

    def resume(number, n):
        chance = random.Random(n)
        language = language_of(n // at_once + number)
        client = make_client(language, node, place)
        text = f"{agents[number]} hears sentence {n} [[tokens={tokens}]] [[rate={rate}]]"
        options = {"streaming": True, "stream_tokens": True}
        stream = client.raw("agents.messages.create", agents[number], messages=user(text), **options)
        reader, drops = Reader(), 0
        for _ in range(chance.randint(1, most_drops)):
            reader.read(stream, chance.randint(1, tokens // most_drops))
            if reader.over():
                break
            stream.close()
            drops += 1
            stream = client.raw("runs.messages.stream", reader.run, starting_after=reader.sequence)
        reader.read(stream)
        stream.close()
        # Another connection, so another gateway: it has to have all of it too.
        other = make_client(language, node, place)
        full = Reader()
        full.read(other.raw("runs.messages.stream", reader.run, starting_after=0))
        for one in (client, other):
            one.close()
        return Resumed(reader.run, language, reader.text, full.text, drops)

    with ThreadPoolExecutor(at_once) as pool:
        return Resumes([one for talked in pool.map(talk, range(at_once)) for one in talked])
