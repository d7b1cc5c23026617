// What the page asks of the server that it came from: calls, streams, and the models that it has.

const POLL_MILLISECONDS = 400;
const KEY = "octavo-key";
const MODEL = "octavo-model";

export class Refusal extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function respond(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Nothing is lost; try again when it is back.", "unreachable");
  }
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error ?? {};
  if (response.status === 401) document.dispatchEvent(new CustomEvent("octavo-key-needed"));
  throw new Refusal(response.status, error.message ?? `The server answered ${response.status}.`, error.code);
}

function posted(body, signal) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

export async function get(path) {
  return (await respond(path, {})).json();
}

export async function post(path, body, signal) {
  return (await respond(path, posted(body, signal))).json();
}

export async function postFile(path, file) {
  return (await respond(path, { method: "POST", body: file })).json();
}

// The events of a stream. The promise is fulfilled once the request is admitted; a stream that ends without its
// last word has failed, and says so.
export async function stream(path, body, signal) {
  return parsed((await respond(path, posted(body, signal))).body.getReader());
}

async function* parsed(reader) {
  const decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      held += decoder.decode(value, { stream: true });
      const events = held.split("\n\n");
      held = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        if (event === "data: [DONE]") return;
        const data = JSON.parse(event.slice(6));
        if (data.error) throw new Refusal(200, data.error.message, data.error.code);
        yield data;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal(0, "The connection was lost. What had arrived is kept.", "lost");
  } finally {
    reader.cancel().catch(() => {}); // it may have ended by itself
  }
  throw new Refusal(0, "The server ended the reply early. What had arrived is kept.", "lost");
}

// The models of the server, asked for again as long as one is on its way.
class Models extends EventTarget {
  all = [];
  memory = {};
  #polling = false;

  get ready() {
    return this.all.filter((model) => model.state === "ready");
  }

  // The one that is meant: as chosen, else the first that is ready.
  get current() {
    return this.named(localStorage.getItem(MODEL)) ?? this.ready[0] ?? this.all[0] ?? null;
  }

  choose(name) {
    localStorage.setItem(MODEL, name);
    this.#changed();
  }

  named(name) {
    return this.all.find((model) => model.name === name) ?? null;
  }

  async refresh() {
    const answer = await get("page/models");
    this.all = answer.models;
    this.memory = answer.memory;
    this.#changed();
    if (this.#polling || !this.all.some(({ state }) => state === "loading" || state === "stopped")) return;
    this.#polling = true;
    setTimeout(() => {
      this.#polling = false;
      this.refresh().catch(() => {}); // that the server is gone is said by whatever is asked of it next
    }, POLL_MILLISECONDS);
  }

  // `verb` is load or unload.
  async change(name, verb) {
    const done = post(`models/${verb}`, { model: name });
    this.refresh().catch(() => {}); // to see it begin; how it ends is what counts
    try {
      await done;
    } finally {
      await this.refresh();
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const models = new Models();
