// DOM made by plain calls. Text stays text: the one place that makes HTML of it is rendered.js.

export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function drawing(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function button(label, act, attributes = {}) {
  return element("button", { type: "button", onclick: act, ...attributes }, label);
}

export function labelled(label, control, hint) {
  return element("label", { class: "labelled", title: hint }, element("span", {}, label), control);
}

export function replaceOptions(select, names, chosen) {
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

// Says something to those who listen to the page instead of seeing it.
export function announce(text) {
  document.querySelector("#announcements").textContent = text;
}

export function openDialog(title, ...content) {
  const heading = element("h2", { id: "dialog-title" }, title);
  const close = button("Close", () => dialog.close(), { class: "quiet" });
  const dialog = element(
    "dialog",
    { "aria-labelledby": "dialog-title", onclose: () => dialog.remove() },
    element("div", { class: "dialog-head" }, heading, close),
    element("div", { class: "dialog-body" }, ...content),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// A line of text from a person, or null if they think better of it.
export function askForText(title, label, value = "", type = "text") {
  return new Promise((answer) => {
    const input = element("input", { type, value, required: true, autofocus: true });
    const form = element("form", { class: "ask", method: "dialog" }, labelled(label, input), element("button", {}, "Save"));
    const dialog = openDialog(title, form);
    let given = null;
    form.addEventListener("submit", () => (given = input.value.trim()));
    dialog.addEventListener("close", () => answer(given || null));
    input.select();
  });
}

export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function chooseFile(accept) {
  return new Promise((answer) => {
    const input = element("input", { type: "file", accept, class: "unseen", "aria-label": "File" });
    input.addEventListener("change", () => (answer(input.files[0] ?? null), input.remove()));
    input.addEventListener("cancel", () => (answer(null), input.remove()));
    document.body.append(input);
    input.click();
  });
}

export function later(milliseconds, act) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), milliseconds);
  };
}

export function asBytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "kB", "MB", "GB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), 3);
  return `${(count / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
