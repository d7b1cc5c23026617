// Text generation: a text continued in place (notebook), or an input beside its output (default).

import { announce, askForText, button, element, labelled, later } from "./element.js";
import { append, readKind } from "./history.js";
import { samplingPanel, sampling } from "./sampling.js";
import { models, post, stream } from "./server.js";
import { StreamedTokens, TokenText, bar, isToken, likeliestTable, percent } from "./tokens.js";
import { visible } from "./prompt.js";

const LIKELIEST = 10;
const MOST_UNDO = 200;
const STORE = "octavo-text";

export async function view() {
  return new TextView().made;
}

const textOf = (pieces) => pieces.map(({ text }) => text).join("");

// The pieces of an edited text: those before what changed stay as they are.
export function edited(pieces, text) {
  const kept = [];
  let start = 0;
  for (const piece of pieces) {
    if (!text.startsWith(piece.text, start)) break;
    kept.push(piece);
    start += piece.text.length;
  }
  const rest = text.slice(start);
  if (!rest) return kept.length ? kept : [{ text: "" }];
  const typed = kept.length && !isToken(kept.at(-1)) ? kept.pop().text : "";
  return [...kept, { text: typed + rest }];
}

class TextView {
  pieces = [{ text: localStorage.getItem(STORE) ?? "" }];
  measured = null; // the same text, scored
  before = null; // the pieces before the last generation
  undone = [];
  past = [];
  running = null;

  constructor() {
    this.box = element("textarea", { class: "paper", "aria-label": "Text", placeholder: "Begin a text; the model goes on.", oninput: () => this.#typed() });
    this.tokens = new TokenText("Tokens of the text: arrow keys go through them, Enter shows what else could come", {
      level: (token) => (1 - Math.exp(token.logprob)) ** 2, // what is merely not certain stays pale
      describe: (token) => percent(Math.exp(token.logprob)),
      table: (token, index, pinned) => this.#table(token, index, pinned),
    });
    this.markdown = element("div", { class: "rendered paper", tabindex: 0, role: "group", "aria-label": "Rendered text" });
    this.alert = element("p", { class: "alert", role: "alert", hidden: true });
    this.count = element("span", { class: "facts", role: "status" });
    this.result = element("p", { class: "facts", role: "status" });
    this.measure = later(250, () => this.#measure());
    this.made = element(
      "div",
      { class: "view workshop text-view" },
      element("section", { class: "work", "aria-label": "Text generation" }, this.#head(), this.#sheets(), this.alert, this.#buttons(), this.result),
      element("aside", { class: "side", "aria-label": "Settings" }, this.#nextPanel(), this.#promptPanel(), samplingPanel()),
    );
    models.addEventListener("change", () => this.measure());
    this.#setMode("notebook");
    this.#setShown("edit");
    this.draw();
  }

  #head() {
    this.modes = choices("Mode", { notebook: "Notebook", default: "Default" }, (mode) => this.#setMode(mode));
    this.views = choices("Show", { edit: "Edit", tokens: "Tokens", rendered: "Rendered" }, (shown) => this.#setShown(shown));
    return element("div", { class: "work-head" }, element("h1", {}, "Text"), this.modes, this.views, this.count);
  }

  #sheets() {
    this.output = element("textarea", { class: "paper", "aria-label": "Output", readonly: true });
    return element("div", { class: "sheets" }, this.box, this.output, this.tokens.made, this.markdown);
  }

  #buttons() {
    this.generate = button("Generate", () => this.#generate(), { class: "primary" });
    this.goOn = button("Continue", () => this.#generate(false));
    this.stop = button("Stop", () => this.running?.abort(), { class: "primary", hidden: true });
    this.again = button("Regenerate", () => this.#regenerate());
    this.back = button("Undo", () => this.#undo());
    this.forth = button("Redo", () => this.#redo());
    return element(
      "div", { class: "row" },
      this.generate, this.stop, this.goOn, this.again, this.back, this.forth,
      button("Perplexity", () => this.#score(), { title: "How surprising the model finds this text" }),
    );
  }

  #nextPanel() {
    this.next = element("div", {});
    const open = element("details", { class: "panel", ontoggle: () => this.#look() }, element("summary", {}, "Next token"), this.next);
    this.nextPanel = open;
    this.look = later(400, () => this.#look());
    return open;
  }

  #promptPanel() {
    this.saved = element("select", { onchange: () => this.#takePrompt() });
    const save = async () => {
      const text = textOf(this.pieces); // a reply may go on being written while the name is asked
      const name = await askForText("Save text as a prompt", "Name");
      if (!name) return;
      await append({ kind: "prompt", chat: null, name, text });
      await this.#listPrompts(name);
    };
    this.#listPrompts();
    return element("div", { class: "row" }, labelled("Saved prompts", this.saved), button("Save…", save, { class: "quiet" }));
  }

  async #listPrompts(chosen = "") {
    this.prompts = new Map((await readKind("prompt")).map(({ name, text }) => [name, text]));
    this.saved.replaceChildren(element("option", { value: "" }, "choose"), ...[...this.prompts.keys()].map((name) => element("option", { value: name }, name)));
    this.saved.value = chosen;
  }

  #takePrompt() {
    if (this.prompts.has(this.saved.value)) this.#replace([{ text: this.prompts.get(this.saved.value) }]);
  }

  get #side() {
    return this.mode === "default";
  }

  #setMode(mode) {
    this.mode = mode;
    this.modes.querySelector(`[value="${mode}"]`).checked = true;
    this.made.classList.toggle("beside-input", this.#side);
    if (this.#side) {
      const first = this.pieces.findIndex(isToken);
      const [head, rest] = first < 0 ? [this.pieces, []] : [this.pieces.slice(0, first), this.pieces.slice(first)];
      this.pieces = [{ text: textOf(head) }, ...rest];
    }
    this.views.querySelector("[value=edit]").nextSibling.textContent = this.#side ? "Raw" : "Edit";
    this.goOn.hidden = !this.#side;
    this.draw();
  }

  #setShown(shown) {
    this.shown = shown;
    this.views.querySelector(`[value="${shown}"]`).checked = true;
    this.draw();
  }

  // What is shown as tokens or rendered: all of the text, or only the output.
  get #displayed() {
    return this.measured ?? (this.#side ? this.pieces.slice(1) : this.pieces);
  }

  draw(from = 0) {
    this.box.hidden = !this.#side && this.shown !== "edit";
    this.output.hidden = !this.#side || this.shown !== "edit";
    this.tokens.made.hidden = this.shown !== "tokens";
    this.markdown.hidden = this.shown !== "rendered";
    const text = this.#side ? this.pieces[0].text : textOf(this.pieces);
    if (this.box.value !== text) this.box.value = text;
    if (!this.output.hidden) this.output.value = textOf(this.#displayed);
    if (this.shown === "tokens") this.tokens.show(this.#displayed, this.#side ? Math.max(from - 1, 0) : from);
    if (this.shown === "rendered" && !this.running) this.#render();
    this.generate.hidden = Boolean(this.running);
    this.stop.hidden = !this.running;
    this.again.disabled = Boolean(this.running) || !this.before;
    this.goOn.disabled = Boolean(this.running);
    this.back.disabled = Boolean(this.running) || !this.past.length;
    this.forth.disabled = Boolean(this.running) || !this.undone.length;
    this.measure();
  }

  async #render() {
    const { rendered } = await import("./rendered.js");
    const fragment = await rendered(textOf(this.#displayed)).catch((error) => this.#say(error.message));
    if (fragment) this.markdown.replaceChildren(fragment);
  }

  #say(text) {
    this.alert.hidden = !text;
    this.alert.textContent = text;
  }

  #typed() {
    if (!this.typing) this.#remember();
    this.typing = true; // what is typed in one go is undone in one go
    this.measured = null;
    this.pieces = this.#side ? [{ text: this.box.value }, ...this.pieces.slice(1)] : edited(this.pieces, this.box.value);
    localStorage.setItem(STORE, textOf(this.pieces));
    this.measure();
    this.look();
  }

  #remember() {
    this.past = [...this.past.slice(-MOST_UNDO), this.pieces];
    this.undone = [];
    this.typing = false;
  }

  #replace(pieces) {
    this.#remember();
    this.#setPieces(pieces);
  }

  #setPieces(pieces) {
    this.measured = null;
    this.typing = false;
    this.pieces = pieces;
    localStorage.setItem(STORE, textOf(pieces));
    this.draw();
    this.look();
  }

  #undo() {
    this.undone.push(this.pieces);
    this.#setPieces(this.past.pop());
  }

  #redo() {
    this.past.push(this.pieces);
    this.#setPieces(this.undone.pop());
  }

  // The text as the server takes it: what was typed as text, the tokens after it by their ids.
  #asked() {
    const last = this.pieces.findLastIndex((piece) => piece.id === undefined);
    return {
      model: models.current?.name ?? "",
      prompt: textOf(this.pieces.slice(0, last + 1)),
      tokens: this.pieces.slice(last + 1).map(({ id }) => id),
      ...sampling.request(),
    };
  }

  async #generate(anew = this.#side) {
    if (this.running) return;
    this.#remember();
    this.measured = null;
    if (anew) this.pieces = this.pieces.slice(0, 1);
    this.before = this.pieces;
    if (this.shown !== "rendered") this.#setShown("tokens");
    this.running = new AbortController();
    this.#say("");
    this.draw();
    await this.#write(this.pieces).catch((error) => error.name !== "AbortError" && this.#say(error.message));
    this.running = null;
    localStorage.setItem(STORE, textOf(this.pieces));
    this.draw();
    this.look();
    announce(textOf(this.pieces.slice(this.before.length)));
  }

  async #write(head) {
    const body = { ...this.#asked(), max_tokens: sampling.maxTokens, likeliest: LIKELIEST };
    const streamed = new StreamedTokens();
    let changed = null;
    const paint = () => {
      this.pieces = [...head, ...streamed.pieces];
      this.draw(head.length + changed);
      changed = null;
      this.tokens.made.scrollTop = this.tokens.made.scrollHeight;
    };
    const started = performance.now();
    let usage = null;
    try {
      for await (const event of await stream("page/write", body, this.running.signal)) {
        usage = event.usage ?? usage;
        if (!event.tokens) continue;
        const first = streamed.push(event);
        if (changed === null) requestAnimationFrame(() => changed !== null && paint());
        changed = Math.min(changed ?? first, first);
      }
    } finally {
      if (changed !== null) paint();
      const seconds = (performance.now() - started) / 1000;
      const count = usage?.completion_tokens ?? streamed.pieces.length;
      this.result.textContent = `${count} tokens in ${seconds.toFixed(1)} s: ${(count / seconds).toFixed(1)} tokens/s`;
    }
  }

  #regenerate() {
    this.#remember();
    this.pieces = this.before;
    this.past.pop();
    this.#generate(false);
  }

  #table(token, index, pinned) {
    const choose = pinned && token.id !== undefined ? (id, text) => this.#choose(index, id, text) : null;
    const title = choose ? "Choose another to go on from it" : `${visible(token.text)} had ${percent(Math.exp(token.logprob))}`;
    return likeliestTable(title, token.likeliest, token.id ?? token.spelling, choose);
  }

  // Another token in a place: what came after it is left out (undo brings it back), and the model goes on.
  async #choose(index, id, text) {
    const place = this.#side ? index + 1 : index;
    const { likeliest } = this.pieces[place];
    const [, , logprob] = likeliest.find(([other]) => other === id);
    this.#replace([...this.pieces.slice(0, place), { id, text, logprob, likeliest }]);
    await this.#generate(false);
  }

  async #look() {
    if (!this.nextPanel.open || this.running) return;
    try {
      const { candidates } = await post("page/next_tokens", { ...this.#asked(), likeliest: 10 });
      this.next.replaceChildren(this.#candidates(candidates));
    } catch (error) {
      this.next.replaceChildren(element("p", { class: "facts" }, error.message));
    }
  }

  #candidates(rows) {
    const likeliest = rows.map(({ id, text, given }) => [id, text, Math.log(given)]);
    const take = ({ id, text, given }) => () => this.#replace([...this.pieces, { id, text, logprob: Math.log(given), likeliest }]);
    return element(
      "table",
      { class: "likeliest" },
      element("caption", {}, "Before and after the samplers"),
      element("thead", {}, element("tr", {}, ["token", "before", "after"].map((title) => element("th", { scope: "col" }, title)))),
      element(
        "tbody",
        {},
        rows.map((row) =>
          element(
            "tr",
            { class: row.drawn === 0 && "cut" },
            element("td", {}, element("button", { type: "button", onclick: take(row) }, visible(row.text))),
            element("td", { class: "number" }, percent(row.given), bar(row.given)),
            element("td", { class: "number" }, row.drawn ? percent(row.drawn) : "cut", bar(row.drawn, "drawn")),
          ),
        ),
      ),
    );
  }

  // Perplexity, and the surprise of every token after the first.
  async #score() {
    this.#say("");
    const prompt = textOf(this.pieces);
    const body = { model: models.current?.name ?? "", prompt, echo: true, max_tokens: 0, logprobs: LIKELIEST };
    try {
      const { choices: [{ logprobs }] } = await post("v1/completions", body);
      if (textOf(this.pieces) !== prompt) return; // it was changed meanwhile, and these are not its scores
      const characters = [...prompt]; // offsets count these, not UTF-16's halves
      this.measured = logprobs.tokens.map((spelling, index) => ({
        text: characters.slice(logprobs.text_offset[index], logprobs.text_offset[index + 1]).join(""),
        ...scored(spelling, logprobs.token_logprobs[index], logprobs.top_logprobs[index]),
      }));
      const losses = logprobs.token_logprobs.filter((value) => value !== null).map((value) => -value);
      const mean = losses.reduce((sum, value) => sum + value, 0) / losses.length;
      this.result.textContent = losses.length
        ? `Perplexity ${Math.exp(mean).toFixed(3)}: ${mean.toFixed(4)} nats per token over ${losses.length} tokens`
        : "A perplexity takes two tokens or more.";
      this.#setShown("tokens");
    } catch (error) {
      this.#say(error.message);
    }
  }

  async #measure() {
    const model = models.current;
    if (model?.state !== "ready") return;
    try {
      const { count } = await post("tokenize", { model: model.name, prompt: textOf(this.pieces) });
      this.count.textContent = `${count} / ${model.context} tokens`;
      this.count.classList.toggle("problem", count >= model.context);
    } catch (error) {
      this.count.textContent = error.message;
    }
  }
}

// A token of a text that was given: the first of it has no score.
function scored(spelling, logprob, top) {
  if (logprob === null) return {};
  const likeliest = Object.entries(top).map(([other, value]) => [undefined, other, value]);
  return { spelling, logprob, likeliest: likeliest.sort(([, , one], [, , other]) => other - one) };
}

export function choices(label, options, choose) {
  const made = element("div", { class: "choices", role: "radiogroup", "aria-label": label });
  const name = `choice-${label}`;
  for (const [value, title] of Object.entries(options)) {
    made.append(element("label", {}, element("input", { type: "radio", name, value, onchange: () => choose(value) }), title));
  }
  return made;
}
