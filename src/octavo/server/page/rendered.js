// Markdown, rendered and sanitised by the server: the only text that becomes HTML, and the only place where.

import { post } from "./server.js";

const AT_ONCE = 32;
const MOST_KEPT = 2000;
const policy = window.trustedTypes?.createPolicy("rendered", { createHTML: (html) => html }) ?? {
  createHTML: (html) => html,
};
const kept = new Map();
let waiting = [];

// A fragment of what `text` looks like. Those asked for at the same time make one call.
export async function rendered(text) {
  if (!kept.has(text)) {
    if (kept.size >= MOST_KEPT) kept.delete(kept.keys().next().value);
    kept.set(text, new Promise((resolve, reject) => waiting.push({ text, resolve, reject })));
    kept.get(text).catch(() => kept.delete(text)); // asked for again next time
    if (waiting.length === 1) queueMicrotask(send);
  }
  return fragment(await kept.get(text));
}

// Of HTML that the server sanitised.
export function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(html);
  return template.content;
}

async function send() {
  const all = waiting;
  waiting = [];
  for (let start = 0; start < all.length; start += AT_ONCE) {
    const part = all.slice(start, start + AT_ONCE);
    try {
      const { html } = await post("page/markdown", { texts: part.map(({ text }) => text) });
      part.forEach(({ resolve }, index) => resolve(html[index]));
    } catch (error) {
      part.forEach(({ reject }) => reject(error));
    }
  }
}
