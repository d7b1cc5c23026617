// The frame of the page: which view is shown, which model is meant, light or dark.

import { announce, asBytes, askForText, button, element, openDialog } from "./element.js";
import { models, setKey } from "./server.js";

const VIEWS = ["chat", "text", "compare", "quantization"];
const THEMES = { system: "◐", light: "○", dark: "●" };
const STATES = {
  ready: "ready", unloaded: "not loaded", loading: "loading", stopped: "restarting", failed: "failed",
};
const shown = new Map();
const refusals = new Map(); // by model: why it was not loaded or unloaded, until the next try
const place = document.querySelector("#view");

// A view is made once, when it is first asked for, and kept: what is being written there goes on.
async function show() {
  const [wanted] = location.hash.slice(1).split("/");
  const name = VIEWS.includes(wanted) ? wanted : "chat";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!shown.has(name)) shown.set(name, import(`./${name}.js`).then((module) => module.view()));
  const view = await shown.get(name);
  place.replaceChildren(view);
  document.title = name === "chat" ? "Octavo" : `${name[0].toUpperCase()}${name.slice(1)} · Octavo`;
  view.dispatchEvent(new Event("shown"));
}

function modelRow(model) {
  const act = (verb) => () => {
    refusals.delete(model.name);
    models.change(model.name, verb).then(
      () => announce(`${model.name} is ${verb}ed`),
      (error) => {
        refusals.set(model.name, error.message);
        models.dispatchEvent(new Event("change"));
        announce(error.message);
      },
    );
  };
  const facts = [STATES[model.state], asBytes(model.bytes)];
  if (model.context) facts.push(`${model.context} tokens of context`, model.template ? `template: ${model.template}` : "no chat template");
  const choose = element("input", {
    type: "radio", name: "model", value: model.name, checked: model === models.current,
    onchange: () => models.choose(model.name),
  });
  const [ready, layers] = model.layers_ready ?? [0, 0];
  return element(
    "li",
    { "data-model": model.name, "data-state": model.state },
    element("label", {}, choose, element("span", { class: "dot" }), element("strong", {}, model.name)),
    element("p", { class: "facts" }, facts.join(" · ")),
    model.state === "loading" && element("progress", layers ? { value: ready, max: layers, "aria-label": "Layers loaded" } : { "aria-label": "Loading" }),
    element("p", { class: "problem" }, refusals.get(model.name) ?? model.problem),
    element(
      "div", { class: "row" },
      ["unloaded", "failed"].includes(model.state) && button("Load", act("load")),
      model.state === "ready" && button("Unload", act("unload")),
      element("a", { href: `#quantization/${encodeURIComponent(model.name)}`, onclick: () => document.querySelector("dialog")?.close() }, "How it is quantized"),
    ),
  );
}

function openModels() {
  refusals.clear();
  const list = element("ul", { class: "models" });
  const memory = element("p", { class: "facts" });
  const draw = () => {
    list.replaceChildren(...models.all.map(modelRow));
    const { resident, available } = models.memory;
    memory.textContent = `This server holds ${asBytes(resident)}; ${asBytes(available)} are free.`;
  };
  models.addEventListener("change", draw);
  openDialog("Models", list, memory).addEventListener("close", () => models.removeEventListener("change", draw));
  draw();
  models.refresh().catch((error) => (memory.textContent = error.message));
}

function drawModel() {
  const control = document.querySelector("#model");
  const model = models.current;
  control.dataset.state = model?.state ?? "failed";
  control.querySelector(".name").textContent = model?.name ?? "no model";
  control.setAttribute("aria-label", `Model: ${model?.name ?? "none"}, ${STATES[model?.state] ?? ""}`);
}

function setTheme(theme) {
  const control = document.querySelector("#theme");
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  control.textContent = THEMES[theme];
  control.title = `Theme: ${theme === "system" ? "as the system" : theme}`;
  control.setAttribute("aria-label", control.title);
  localStorage.setItem("octavo-theme", theme);
}

async function askForKey() {
  if (document.querySelector("dialog")) return;
  const key = await askForText("This server asks for a key", "API key", "", "password");
  if (!key) return;
  setKey(key);
  location.reload();
}

document.addEventListener("octavo-key-needed", askForKey);
document.querySelector("#model").addEventListener("click", openModels);
document.querySelector("#theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % names.length]);
});
models.addEventListener("change", drawModel);
window.addEventListener("hashchange", show);
setTheme(localStorage.getItem("octavo-theme") in THEMES ? localStorage.getItem("octavo-theme") : "system");
show();
models.refresh().catch((error) => announce(error.message));
