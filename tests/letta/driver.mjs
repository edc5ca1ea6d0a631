// Drives the official TypeScript client and plain `fetch` for the tests: one JSON command a line on standard input,
// JSON lines with the same id on standard output.
//
//   {id, client: {baseURL, apiKey, …}, path: "agents.messages.create", args: […]}, with `file: {name, text}` an upload
//       -> {id, reply: {status, headers, value}}                          one answer
//       -> {id, opened: {status, headers}}, {id, event} …, {id, ended}    a stream
//       -> {id, refused: {name, status, message, body, headers}}          also in the middle of a stream
//   {id, client, path, args, raw: true}        -> the same call, with text as event
//   {id, fetch: {url, method, headers, body}}  -> the same, with text as value or event
//   {id, close: other}                         -> stops reading the stream of that id
// Every HTTP answer on the way, retried ones too, is told as {id, attempt: status}.

import { createInterface } from 'node:readline';
import Letta, { APIError } from '@letta-ai/letta-client';

const streams = new Map();

function tell(line) {
  process.stdout.write(JSON.stringify(line) + '\n');
}

function clientFor(id, { headers, ...options }) {
  const fetchAndTell = async (url, init) => {
    const response = await fetch(url, init);
    tell({ id, attempt: response.status });
    return response;
  };
  return new Letta({ ...options, defaultHeaders: headers, fetch: fetchAndTell });
}

async function call(id, { client, path, args, file, raw }) {
  let owner = clientFor(id, client);
  const names = path.split('.');
  const method = names.pop();
  for (const name of names) owner = owner[name];
  if (file) args.push({ file: new File([file.text], file.name) });
  if (raw) return tellText(id, await owner[method](...args).asResponse());
  const { data, response } = await owner[method](...args).withResponse();
  const head = { status: response.status, headers: Object.fromEntries(response.headers) };
  if (data?.[Symbol.asyncIterator] && data.controller) {
    streams.set(id, data.controller);
    tell({ id, opened: head });
    for await (const event of data) tell({ id, event });
    tell({ id, ended: true });
  } else {
    const value = data?.getPaginatedItems ? data.getPaginatedItems() : data;
    tell({ id, reply: { ...head, value: value ?? null } });
  }
}

async function plainFetch(id, { url, ...init }) {
  const response = await fetch(url, { redirect: 'manual', ...init });
  if (response.headers.get('content-type')?.startsWith('text/event-stream')) {
    await tellText(id, response);
  } else {
    const head = { status: response.status, headers: Object.fromEntries(response.headers) };
    tell({ id, reply: { ...head, value: await response.text() } });
  }
}

async function tellText(id, response) {
  const head = { status: response.status, headers: Object.fromEntries(response.headers) };
  const reader = response.body.getReader();
  streams.set(id, { abort: () => reader.cancel() });
  tell({ id, opened: head });
  const decoder = new TextDecoder();
  for (let part; !(part = await reader.read()).done; ) tell({ id, event: decoder.decode(part.value, { stream: true }) });
  tell({ id, ended: true });
}

function describe(error) {
  return {
    name: error.constructor.name,
    status: error instanceof APIError ? (error.status ?? null) : null,
    message: error.message + (error.cause ? ` (${error.cause})` : ''),
    body: error.error ?? null,
    headers: error.headers ? Object.fromEntries(error.headers) : {},
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, ...command } = JSON.parse(line);
  if (command.close !== undefined) {
    streams.get(command.close)?.abort();
    continue;
  }
  const work = command.fetch ? plainFetch(id, command.fetch) : call(id, command);
  work.catch((error) => tell({ id, refused: describe(error) })).finally(() => streams.delete(id));
}
