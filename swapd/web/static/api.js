// Everything that is asked of the daemon. A key lives in this tab's session storage, and goes into headers alone.

const KEY = "swapd-api-key";
const FIRST_RETRY_MS = 500, LAST_RETRY_MS = 15000;

export class NeedsKey extends Error {}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", credentials: "omit",
  });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  const message = said?.error?.message ?? `the daemon answered ${answer.status}`;
  if (answer.status === 401) throw new NeedsKey(message);
  throw new Refused(answer.status, message);
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path) {
  return (await ask(path, { method: "POST" })).json();
}

export function modelPath(id, action) {
  return `/swapd/v1/models/${encodeURIComponent(id)}/${action}`;
}

// The data of each server-sent event of one answer. EventSource would not send a key.
export async function* events(answer) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of pieces(answer.body)) {
    rest += decoder.decode(chunk, { stream: true });
    const whole = rest.split(/\r?\n\r?\n/);
    rest = whole.pop();
    for (const event of whole) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Follows an endless stream, and comes back when it breaks: `onStart` is told of each beginning.
export async function follow(path, onEvent, { signal, onStart = () => {} } = {}) {
  let wait = FIRST_RETRY_MS;
  while (!signal?.aborted) {
    try {
      const answer = await ask(path, { signal });
      onStart();
      for await (const data of events(answer)) {
        wait = FIRST_RETRY_MS;
        onEvent(data);
      }
    } catch (error) {
      if (signal?.aborted || error instanceof NeedsKey || error.status === 403 || error.status === 404) return;
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(2 * wait, LAST_RETRY_MS);
  }
}
