// Compare: one model writes, another is fed what it writes, and each token shows how far apart they were.

import { announce, asBytes, button, chooseFile, download, drawing, element, labelled, replaceOptions } from "./element.js";
import { sampling, samplingPanel } from "./sampling.js";
import { models, post, stream } from "./server.js";
import { StreamedTokens, TokenText, likeliestTable } from "./tokens.js";
import { choices } from "./text.js";
import { visible } from "./prompt.js";

const FORMAT = "octavo-comparison";
const VERSION = 1;
const LARGEST_FILE = 64 * 2 ** 20;
const MOST_TOKENS = 1024;
const STRONG = 1; // nats at which a token has its full colour
const CHART = { width: 640, height: 72, tallest: 1 };

export async function view() {
  return new Comparison().made;
}

class Comparison {
  record = null; // what is shown, in the form in which it is exported
  running = null;

  constructor() {
    this.first = element("select", {});
    this.second = element("select", {});
    this.prompt = element("textarea", { rows: 4, "aria-label": "Prompt", placeholder: "What the first model answers or continues" });
    this.most = element("input", { type: "number", min: 1, max: MOST_TOKENS, value: 64 });
    this.kind = "chat";
    this.tokens = new TokenText("Compared tokens: arrow keys go through them, Enter shows both models' tables", {
      level: ({ divergence }) => Math.min(Math.sqrt(divergence / STRONG), 1),
      describe: ({ divergence, agrees }) => `KL ${divergence.toFixed(4)}${agrees ? "" : ", the models disagree"}`,
      marked: ({ agrees }) => !agrees,
      table: (token) => this.#tables(token),
    });
    this.alert = element("p", { class: "alert", role: "alert", hidden: true });
    this.summary = element("div", { class: "summary" });
    this.chart = element("div", { class: "chart" });
    this.made = element(
      "div",
      { class: "view workshop compare-view" },
      element("section", { class: "work", "aria-label": "Comparison" }, this.#head(), this.alert, this.summary, this.chart, this.tokens.made),
      element("aside", { class: "side", "aria-label": "Settings" }, samplingPanel()),
    );
    models.addEventListener("change", () => this.#listModels());
    this.#listModels();
    this.draw();
  }

  #head() {
    const kind = choices("Prompt is", { chat: "a question", text: "a text" }, (value) => (this.kind = value));
    kind.querySelector("[value=chat]").checked = true;
    this.start = button("Compare", () => this.#compare(), { class: "primary" });
    this.stop = button("Stop", () => this.running?.abort(), { class: "primary", hidden: true });
    this.save = button("Export", () => this.#export());
    return element(
      "div",
      { class: "stack" },
      element("div", { class: "work-head" }, element("h1", {}, "Compare"), kind),
      element("div", { class: "pickers" }, labelled("A writes", this.first), button("Swap", () => this.#swap(), { "aria-label": "Swap A and B" }), labelled("B is fed what A writes", this.second)),
      this.prompt,
      element("div", { class: "row" }, this.start, this.stop, element("div", { class: "narrow" }, labelled("Tokens", this.most)), this.save, button("Open", () => this.#open())),
    );
  }

  #listModels() {
    const names = models.ready.map(({ name }) => name);
    const [one, two] = [this.first.value, this.second.value];
    replaceOptions(this.first, names, one);
    replaceOptions(this.second, names, two || names[1]);
  }

  #swap() {
    [this.first.value, this.second.value] = [this.second.value, this.first.value];
    if (this.record && !this.running) this.#say("Swapped: compare again to see the other direction.");
  }

  #say(text) {
    this.alert.hidden = !text;
    this.alert.textContent = text;
  }

  // The question as the first model's template writes it, as ids: what people type becomes no control token.
  async #asked() {
    if (this.kind === "text") return this.prompt.value;
    const messages = [{ role: "user", content: this.prompt.value }];
    return (await post("apply_template", { model: this.first.value, messages })).tokens;
  }

  async #compare() {
    if (this.running) return;
    this.#say("");
    const drawn = sampling.request();
    const described = await Promise.all([this.first.value, this.second.value].map(describe));
    this.record = {
      format: FORMAT, version: VERSION, made: new Date().toISOString(),
      prompt: this.prompt.value, kind: this.kind, sampling: drawn, models: described, tokens: [],
    };
    this.running = new AbortController();
    this.draw();
    try {
      await this.#write(drawn);
    } catch (error) {
      if (error.name !== "AbortError") this.#say(error.message);
    }
    this.running = null;
    await models.refresh().catch((error) => this.#say(error.message));
    this.draw();
    announce(this.summary.textContent);
  }

  async #write(drawn) {
    const prompt = await this.#asked();
    const body = { ...drawn, model: this.first.value, second: this.second.value, prompt, max_tokens: Number(this.most.value) };
    const streamed = new StreamedTokens();
    let changed = null;
    const paint = () => {
      if (changed === null) return;
      this.record.tokens = streamed.pieces;
      this.draw(changed);
      changed = null;
    };
    try {
      for await (const event of await stream("page/compare", body, this.running.signal)) {
        this.record.prompt_tokens = event.prompt_tokens ?? this.record.prompt_tokens;
        if (!event.tokens) continue;
        const first = streamed.push(event);
        if (changed === null) requestAnimationFrame(paint);
        changed = Math.min(changed ?? first, first);
      }
    } finally {
      paint();
    }
  }

  draw(from = 0) {
    this.start.hidden = Boolean(this.running);
    this.stop.hidden = !this.running;
    this.save.disabled = Boolean(this.running) || !this.record?.tokens.length;
    const tokens = this.record?.tokens ?? [];
    this.tokens.show(tokens, from);
    this.tokens.made.hidden = this.summary.hidden = this.chart.hidden = !tokens.length;
    if (tokens.length) {
      this.summary.replaceChildren(summaryOf(this.record));
      this.chart.replaceChildren(chartOf(tokens));
    }
  }

  #tables(token) {
    const [a, b] = this.record.models;
    const table = (letter, { name }, { likeliest }) => likeliestTable(`${letter}: ${name}`, likeliest, token.id);
    return element(
      "div",
      { class: "both" },
      element("p", {}, `“${visible(token.text)}”: KL ${token.divergence.toFixed(4)} nats${token.agrees ? "" : "; they disagree"}`),
      element("div", { class: "tables" }, table("A", a, token.scores[0]), table("B", b, token.scores[1])),
    );
  }

  #export() {
    const [a, b] = this.record.models;
    download(`comparison ${a.name} ${b.name}.json`.replace(/[^\p{L}\p{N}. -]+/gu, "-"), JSON.stringify(this.record, null, 1));
  }

  async #open() {
    const file = await chooseFile(".json,application/json");
    if (!file) return;
    try {
      this.record = await opened(file);
    } catch (error) {
      return this.#say(error.message);
    }
    this.prompt.value = this.record.prompt;
    this.#say("");
    this.draw();
  }
}

// What tells a model from others, as the export keeps it.
async function describe(name) {
  const { bytes, cache, kernel } = models.named(name) ?? {};
  return { name, bytes, bytes_per_token: cache?.bytes_per_token ?? null, kernel };
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The mean KL with its standard error over tokens, the largest, agreement, and of each model speed and memory.
function summaryOf({ tokens, models: [a, b], prompt_tokens: read = 0 }) {
  const divergences = tokens.map(({ divergence }) => divergence);
  const average = mean(divergences);
  const spread = Math.sqrt(mean(divergences.map((value) => (value - average) ** 2)) / Math.max(tokens.length - 1, 1));
  const agreed = tokens.filter(({ agrees }) => agrees).length;
  const facts = [
    ["Tokens", String(tokens.length)],
    ["Mean KL(A ‖ B)", `${average.toFixed(4)} ± ${spread.toFixed(4)} nats`],
    ["Largest", `${divergences.reduce((most, value) => Math.max(most, value), 0).toFixed(4)} nats`],
    ["Same likeliest token", `${((100 * agreed) / tokens.length).toFixed(1)} %`],
  ];
  const later = tokens.slice(1); // the first step read the whole prompt
  const row = (letter, model, place) => {
    const seconds = later.length ? mean(later.map((token) => token.seconds[place])) : 0;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, `${letter}: ${model.name}`),
      element("td", { class: "number" }, seconds ? `${(1 / seconds).toFixed(1)} tokens/s` : "–"),
      element("td", { class: "number" }, asBytes(model.bytes)),
      element("td", { class: "number" }, model.bytes_per_token ? asBytes(model.bytes_per_token * (read + tokens.length)) : "–"),
    );
  };
  return element(
    "div",
    { class: "stack" },
    element("dl", { class: "numbers" }, facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ["Model", "Speed", "Weights", "Cache"].map((title, place) => element("th", { scope: "col", class: place > 0 && "number" }, title)))),
      element("tbody", {}, row("A", a, 0), row("B", b, 1)),
    ),
  );
}

// A bar for each token, its height the square root of its KL, and the running mean as a line.
function chartOf(tokens) {
  const step = CHART.width / tokens.length;
  const tallest = Math.max(...tokens.map(({ divergence }) => divergence), 1e-9);
  const height = (value) => CHART.height * Math.sqrt(value / tallest);
  let total = 0;
  const line = tokens.map(({ divergence }, index) => {
    total += divergence;
    return `${((index + 0.5) * step).toFixed(2)},${(CHART.height - height(total / (index + 1))).toFixed(2)}`;
  });
  return drawing(
    "svg",
    { viewBox: `0 0 ${CHART.width} ${CHART.height}`, preserveAspectRatio: "none", role: "img", "aria-label": `KL of each token, at most ${tallest.toFixed(4)} nats, and its running mean` },
    ...tokens.map(({ divergence, agrees }, index) =>
      drawing("rect", {
        class: agrees ? "agrees" : "disagrees",
        x: (index * step).toFixed(2), width: (step * 0.8).toFixed(2),
        y: (CHART.height - height(divergence)).toFixed(2), height: height(divergence).toFixed(2),
      }),
    ),
    drawing("polyline", { points: line.join(" ") }),
  );
}

// A comparison from a file: every value is checked, for it is shown without the server that made it.
async function opened(file) {
  if (file.size > LARGEST_FILE) throw new Error(`${file.name} is larger than 64 MiB; a comparison is not.`);
  let record;
  try {
    record = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no JSON.`);
  }
  if (record?.format !== FORMAT || record.version !== VERSION) throw new Error(`${file.name} holds no comparison that this page knows.`);
  const sound = typeof record.prompt === "string" && record.models?.length === 2 && record.models.every(({ name }) => typeof name === "string");
  if (!sound || !Array.isArray(record.tokens) || record.tokens.length > MOST_TOKENS || !record.tokens.every(isCompared)) {
    throw new Error(`${file.name} is damaged: it cannot be shown.`);
  }
  return record;
}

const isNumber = Number.isFinite;

function isCompared(token) {
  const rows = ({ likeliest }) => Array.isArray(likeliest) && likeliest.every(([id, text, logprob]) => isNumber(id) && typeof text === "string" && isNumber(logprob));
  return (
    isNumber(token?.divergence) && typeof token.agrees === "boolean" && typeof token.text === "string" &&
    token.seconds?.length === 2 && token.seconds.every(isNumber) && token.scores?.length === 2 && token.scores.every(rows)
  );
}
