// Tokens as text, each coloured by a number of its own; beside each, what else could stand in its place.

import { element } from "./element.js";
import { visible } from "./prompt.js";

// `level` is 0 (no colour) to 1 of a token; `marked` says which are underlined; `describe` is a word on a token for
// those who cannot see its colour; `table` is what is shown beside a token, pinned there or only under the mouse.
// A piece without `id` and `logprob` is plain text.
export class TokenText {
  #pieces = [];
  #pinned = null;

  constructor(label, { level, describe, table, marked = () => false }) {
    Object.assign(this, { level, describe, table, marked });
    this.text = element("div", { class: "token-text" });
    this.beside = element("div", { class: "beside", hidden: true });
    this.made = element("div", { class: "tokens", role: "group", "aria-label": label, tabindex: 0 }, this.text, this.beside);
    this.made.addEventListener("mouseover", ({ target }) => this.#pinned === null && this.#show(target, false));
    this.made.addEventListener("mouseleave", () => this.#pinned === null && (this.beside.hidden = true));
    this.made.addEventListener("click", ({ target }) => {
      if (target.classList.contains("token")) this.#show(target, true);
      else if (!this.beside.contains(target)) this.close();
    });
    this.made.addEventListener("keydown", (event) => this.#move(event));
  }

  // Shows pieces; those before `from` are there already.
  show(pieces, from = 0) {
    if (from === 0) this.close();
    this.#pieces = pieces;
    while (this.text.childNodes.length > from) this.text.lastChild.remove();
    this.text.append(...pieces.slice(from).map((piece, index) => this.#piece(piece, from + index)));
  }

  close() {
    this.#pinned = null;
    this.beside.hidden = true;
  }

  #piece(piece, index) {
    if (!isToken(piece)) return element("span", {}, piece.text);
    const made = element(
      "span",
      {
        class: this.marked(piece) ? "token marked" : "token",
        role: "button", tabindex: -1, "data-index": index,
        "aria-label": `${visible(piece.text) || "part of a character"}: ${this.describe(piece)}`,
      },
      piece.text,
    );
    made.style.setProperty("--level", this.level(piece).toFixed(3));
    return made;
  }

  #show(target, pin) {
    if (!target.classList.contains("token")) return;
    const index = Number(target.dataset.index);
    this.#pinned = pin ? index : null;
    this.beside.replaceChildren(this.table(this.#pieces[index], index, pin));
    this.beside.classList.toggle("pinned", pin);
    this.beside.hidden = false;
    const [token, all] = [target.getClientRects()[0], this.made.getBoundingClientRect()];
    const left = Math.min(token.left - all.left, all.width - this.beside.offsetWidth - 8);
    const below = token.bottom + this.beside.offsetHeight + 12 < window.innerHeight || token.top < this.beside.offsetHeight;
    const top = below ? token.bottom - all.top + 4 : token.top - all.top - this.beside.offsetHeight - 4;
    this.beside.style.setProperty("left", `${Math.max(left, 4)}px`);
    this.beside.style.setProperty("top", `${top + this.made.scrollTop}px`);
    if (pin) (this.beside.querySelector("button") ?? this.made).focus();
  }

  // Arrows go from token to token, Enter pins what is beside one, Escape closes it.
  #move(event) {
    const tokens = [...this.text.querySelectorAll(".token")];
    const at = tokens.indexOf(document.activeElement);
    if (event.key === "Escape" && !this.beside.hidden) {
      event.stopPropagation();
      const token = this.text.querySelector(`[data-index="${this.#pinned}"]`);
      this.close();
      token?.focus();
    } else if (event.key === "Enter" && at >= 0) {
      event.preventDefault();
      this.#show(tokens[at], true);
    } else if (["ArrowRight", "ArrowLeft"].includes(event.key) && !this.beside.contains(document.activeElement)) {
      event.preventDefault();
      const next = tokens[event.key === "ArrowRight" ? at + 1 : Math.max(at - 1, 0)];
      next?.focus();
      if (next) this.#show(next, false);
    }
  }
}

export const isToken = (piece) => piece.logprob !== undefined || piece.divergence !== undefined;

export function percent(probability) {
  const value = 100 * probability;
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 99.95 ? 100 : value.toPrecision(value < 0.1 ? 1 : value < 10 ? 2 : 3)} %`;
}

// Rows of [id, text, log-probability], the likeliest first; `choose` makes each a choice.
export function likeliestTable(title, rows, chosen, choose) {
  return element(
    "table",
    { class: "likeliest" },
    element("caption", {}, title),
    element(
      "tbody",
      {},
      rows.map(([id, text, logprob]) =>
        element(
          "tr",
          { class: (id ?? text) === chosen && "chosen" },
          element("td", {}, choose ? element("button", { type: "button", onclick: () => choose(id, text) }, visible(text)) : element("code", {}, visible(text))),
          element("td", { class: "number" }, percent(Math.exp(logprob))),
          element("td", {}, bar(Math.exp(logprob))),
        ),
      ),
    ),
  );
}

export function bar(share, kind = "") {
  const made = element("span", { class: `bar ${kind}` });
  made.style.setProperty("--share", Math.min(share, 1));
  return made;
}

// Tokens of a stream: their places in its text are told, so their texts follow once the next is known.
export class StreamedTokens {
  pieces = [];
  #characters = []; // offsets count these, not UTF-16's halves

  // Takes an event in; the number of the first piece that is new or changed.
  push({ text, tokens }) {
    const first = Math.max(this.pieces.length - 1, 0);
    this.#characters.push(...text);
    this.pieces.push(...tokens);
    for (let index = first; index < this.pieces.length; index++) {
      const [piece, next] = [this.pieces[index], this.pieces[index + 1]];
      this.pieces[index] = { ...piece, text: this.#characters.slice(piece.offset, next?.offset).join("") };
    }
    return first;
  }
}
