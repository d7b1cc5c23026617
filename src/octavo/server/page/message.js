// One message as it is shown: its text, its versions, what can be done with it, how it came about.

import { asBytes, button, element } from "./element.js";
import { rendered } from "./rendered.js";

// Far messages are rendered when they come near.
const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      target.dispatchEvent(new Event("near"));
    }
  },
  { rootMargin: "600px" },
);

// `actions` act on the message: edit, regenerate, go on, step to another version.
export function messageElement(message, { own, place, actions, name }) {
  const body = element("div", { class: "body" });
  const versionRow = own.length > 1 && versionControl(own, message, actions);
  const editing = message.role === "assistant" && !message.greeting;
  const controls = element(
    "div",
    { class: "actions", role: "group", "aria-label": `Message ${place + 1}` },
    versionRow,
    button("Copy", () => navigator.clipboard?.writeText(message.content), { class: "quiet" }),
    !message.greeting && button("Edit", () => edit(made, message, actions), { class: "quiet" }),
    editing && button("Regenerate", () => actions.regenerate(message), { class: "quiet" }),
    editing && button("Continue", () => actions.goOn(message), { class: "quiet" }),
    message.role === "user" && button("Answer again", () => actions.answer(message), { class: "quiet" }),
  );
  const made = element(
    "li",
    { class: `message ${message.role}`, "data-id": message.id },
    element("h3", {}, name),
    body,
    element("p", { class: "statistics" }, statistics(message)),
    controls,
  );
  body.textContent = message.content;
  made.addEventListener("near", () => render(body, message.content));
  near.observe(made);
  return made;
}

// The text of a reply that is still being written: as it is, for it may stop in the middle of a word.
export function showWriting(made, message) {
  near.unobserve(made);
  made.classList.add("writing");
  made.querySelector(".body").textContent = message.content;
}

async function render(body, text) {
  try {
    const fragment = await rendered(text);
    if (body.isConnected) body.replaceChildren(fragment);
    body.classList.add("rendered");
  } catch {
    body.textContent = text; // unformatted is how it is shown while the server is away
  }
}

function versionControl(own, message, actions) {
  const position = own.indexOf(message);
  const step = (by, label, sign) =>
    button(sign, () => actions.select(own[position + by]), {
      class: "quiet", "aria-label": label, disabled: !own[position + by],
    });
  return element(
    "span",
    { class: "versions" },
    step(-1, "Earlier version", "‹"),
    element("span", {}, `${position + 1} / ${own.length}`),
    step(1, "Later version", "›"),
  );
}

function edit(made, message, actions) {
  const text = element("textarea", { "aria-label": "New version of the message" });
  text.value = message.content;
  const done = (act) => () => {
    form.replaceWith(body);
    made.classList.remove("editing");
    if (text.value !== message.content && act) act(message, text.value);
  };
  const asked = message.role === "user";
  const form = element(
    "div",
    { class: "editor" },
    text,
    element(
      "div", { class: "row" },
      asked && button("Save and send", done(actions.editAndSend)),
      button(asked ? "Save only" : "Save", done(actions.edit)),
      button("Cancel", done(null), { class: "quiet" }),
    ),
  );
  const body = made.querySelector(".body");
  body.replaceWith(form);
  made.classList.add("editing");
  text.focus();
}

const ENDINGS = { length: "stopped at its longest", stopped: "stopped", lost: "broken off", edited: "edited", stop: null };

function statistics(message) {
  if (message.greeting) return "greeting, not part of the prompt";
  if (message.role !== "assistant") return "";
  if (message.ended === null) return "interrupted";
  const { reason, model, usage, seconds, first, rate, context, cacheBytes } = message.ended;
  const facts = [ENDINGS[reason] ?? null, model];
  if (usage) {
    facts.push(`${usage.completion_tokens} tokens`);
    if (rate) facts.push(`${rate.toFixed(1)} tokens/s`);
    if (first !== undefined) facts.push(`first after ${first.toFixed(2)} s`);
    facts.push(`context ${usage.total_tokens} / ${context}`, `cache ${asBytes(cacheBytes)}`);
  } else if (seconds) facts.push(`${seconds.toFixed(1)} s`);
  return facts.filter(Boolean).join(" · ");
}
