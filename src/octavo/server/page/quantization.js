// How a model is stored and what that cost: scheme, sizes, the error of each layer, where it loads, its card.

import { asBytes, drawing, element, labelled, replaceOptions } from "./element.js";
import { fragment } from "./rendered.js";
import { get, models } from "./server.js";

const CHART = { width: 720, height: 260, left: 56, bottom: 24, top: 8 };
const PARTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

export async function view() {
  return new Quantization().made;
}

class Quantization {
  shown = null;

  constructor() {
    this.choice = element("select", { onchange: () => (location.hash = `quantization/${encodeURIComponent(this.choice.value)}`) });
    this.content = element("div", { class: "stack wide" });
    this.made = element(
      "div",
      { class: "view pages", tabindex: 0, role: "region", "aria-label": "Quantization of a model" },
      element("div", { class: "work-head" }, element("h1", {}, "Quantization"), element("div", { class: "narrow" }, labelled("Model", this.choice))),
      this.content,
    );
    models.addEventListener("change", () => this.show());
    this.made.addEventListener("shown", () => this.show());
    window.addEventListener("hashchange", () => this.show());
  }

  async show() {
    const [name, wanted] = location.hash.slice(1).split("/");
    if (name !== "quantization" || !models.all.length) return;
    const names = models.all.map((model) => model.name);
    const chosen = names.includes(decodeURIComponent(wanted ?? "")) ? decodeURIComponent(wanted) : models.current.name;
    replaceOptions(this.choice, names, chosen);
    if (this.shown === chosen) return;
    this.shown = chosen;
    try {
      const facts = await get(`page/quantization/${encodeURIComponent(chosen)}`);
      if (this.shown === chosen) this.content.replaceChildren(...sections(facts));
    } catch (error) {
      if (this.shown !== chosen) return;
      this.shown = null; // asked for again when it is next looked at
      this.content.replaceChildren(element("p", { class: "alert", role: "alert" }, error.message));
    }
  }
}

function sections(facts) {
  return [
    element("dl", { class: "numbers" }, numbers(facts).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    section("Error of each layer", facts.linears ? errors(facts.linears) : element("p", { class: "facts" }, "This folder has no record of its quantization: Octavo did not write it, or it is dense.")),
    section("Where it loads", loads(facts.loads_in)),
    facts.recipe && section("How it was solved", table(["", ""], flat(facts))),
    facts.files && section("Files", table(["file", "SHA-256"], Object.entries(facts.files))),
    facts.card && section("Model card", element("div", { class: "rendered card" }, fragment(facts.card))),
  ].filter(Boolean);
}

const section = (title, content) => element("section", { class: "stack" }, element("h2", {}, title), content);

function numbers(facts) {
  return [
    ["Scheme", facts.scheme],
    ["Format", facts.format ?? "dense"],
    ["Size", asBytes(facts.bytes)],
    ["of which linears", asBytes(facts.bytes_of_linears)],
    ["Bits per weight", facts.bits_per_weight_of_linears.toFixed(3)],
    ["Layers × width", `${facts.layers} × ${facts.hidden_size}`],
    ["Heads / key-value", `${facts.heads} / ${facts.kv_heads}`],
    ["Context", `${facts.context} tokens`],
  ];
}

function table(titles, rows) {
  return element(
    "div",
    { class: "scrolls", tabindex: 0, role: "group", "aria-label": titles.join(" ").trim() || "Table" },
    element(
      "table",
      {},
      titles.some(Boolean) && element("thead", {}, element("tr", {}, titles.map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, cell))))),
    ),
  );
}

function loads(verdicts) {
  const degrees = (on) => (on.length === 0 ? "no" : on.length === 1 && on[0] === 1 ? "yes" : `on ${on.join(", ")} devices`);
  return table(
    ["engine", "loads", "what stands against it", "rule"],
    verdicts.map(({ engine, tensor_parallel, objection, rule }) => [engine, degrees(tensor_parallel), objection ?? "–", rule ?? "–"]),
  );
}

// The recipe and its surroundings, a line for each value.
function flat({ recipe, calibration, run }) {
  const rows = [];
  const add = (name, value) => {
    if (value !== null && typeof value === "object") Object.entries(value).forEach(([key, inner]) => add(name ? `${name} · ${key}` : key, inner));
    else if (value !== null && value !== undefined) rows.push([name.replaceAll("_", " "), String(value)]);
  };
  add("", recipe);
  add("calibration", calibration);
  add("run", run);
  return rows;
}

// Error of each linear over the layers, on a logarithmic scale: a line for each kind of linear.
function errors(linears) {
  const lines = new Map(PARTS.map((part) => [part, []]));
  for (const { name, loss } of linears) {
    const [, layer, part] = name.match(/layers\.(\d+)\..*?(\w+)$/) ?? [];
    if (loss > 0 && lines.has(part)) lines.get(part).push([Number(layer), loss, name]);
  }
  const all = [...lines.values()].flat();
  if (!all.length) return element("p", { class: "facts" }, "The method sees no activations, so it knows no errors.");
  const losses = all.map(([, loss]) => Math.log10(loss));
  const [low, high] = [Math.floor(Math.min(...losses)), Math.ceil(Math.max(...losses))];
  const last = Math.max(...all.map(([layer]) => layer), 1);
  const { width, height, left, bottom, top } = CHART;
  const x = (layer) => left + ((width - left - 12) * layer) / last;
  const y = (loss) => top + ((height - top - bottom) * (high - Math.log10(loss))) / Math.max(high - low, 1);
  const powers = Array.from({ length: high - low + 1 }, (_, step) => low + step);
  const marks = Array.from({ length: Math.min(last, 8) + 1 }, (_, step) => Math.round((step * last) / Math.min(last, 8)));
  const chart = drawing(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Squared error of each linear's output per token, by layer; the table below has the numbers" },
    ...powers.flatMap((power) => [
      drawing("line", { class: "grid", x1: left, x2: width - 12, y1: y(10 ** power), y2: y(10 ** power) }),
      drawing("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, `1e${power}`),
    ]),
    ...marks.map((layer) => drawing("text", { x: x(layer), y: height - 6, "text-anchor": "middle" }, String(layer))),
    ...PARTS.flatMap((part, place) => {
      const points = lines.get(part).sort(([one], [other]) => one - other);
      return [
        drawing("polyline", { class: `line-${place}`, points: points.map(([layer, loss]) => `${x(layer).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") }),
        ...points.map(([layer, loss, name]) =>
          drawing("circle", { class: `line-${place}`, cx: x(layer).toFixed(1), cy: y(loss).toFixed(1), r: 3 }, drawing("title", {}, `${name}: ${loss.toPrecision(4)}`)),
        ),
      ];
    }),
  );
  const legend = element("ul", { class: "legend" }, PARTS.map((part, place) => element("li", { class: `line-${place}` }, part)));
  const rows = linears.map(({ name, bits, group_size, loss, damping }) => [
    name, `${bits} bits, ${group_size ? `groups of ${group_size}` : "one group a row"}`,
    loss === null ? "–" : loss.toPrecision(4), damping === null ? "–" : String(damping),
  ]);
  return element(
    "div",
    { class: "stack" },
    element("p", { class: "facts" }, "Squared error of the output per token, as the solver saw it on the calibration text; logarithmic."),
    element("div", { class: "chart tall", tabindex: 0, role: "group", "aria-label": "Chart of errors" }, chart),
    legend,
    element("details", {}, element("summary", {}, `All ${linears.length} linears`), table(["linear", "stored as", "error", "damping"], rows)),
  );
}
