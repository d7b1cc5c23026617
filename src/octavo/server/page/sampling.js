// How replies are drawn: eight controls, and presets of them by name.

import { askForText, button, element, labelled, replaceOptions } from "./element.js";

const STORE = "octavo-sampling";
const OWN_PRESETS = "octavo-presets";

const NEUTRAL = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 };
// Named and set as in text-generation-webui, except for what needs samplers that are not offered here.
export const PRESETS = {
  Default: { temperature: 0.7, top_k: 40, top_p: 0.5, min_p: 0, repetition_penalty: 1.2 },
  "LLaMA-Precise": { temperature: 0.7, top_k: 40, top_p: 0.1, min_p: 0, repetition_penalty: 1.18 },
  Naive: { temperature: 0.7, top_k: 50, top_p: 0.85, min_p: 0, repetition_penalty: 1 },
  "Debug-deterministic": { ...NEUTRAL, temperature: 0 },
  "Model as it is": NEUTRAL,
};

const CONTROLS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.01 }, "0 always takes the likeliest token"],
  ["top_k", "Top-k", { min: 0, max: 200, step: 1 }, "Keeps the k likeliest tokens; 0 keeps all"],
  ["top_p", "Top-p", { min: 0.01, max: 1, step: 0.01 }, "Keeps the fewest tokens that together reach p"],
  ["min_p", "Min-p", { min: 0, max: 1, step: 0.01 }, "Keeps tokens at least p times as likely as the likeliest"],
  ["repetition_penalty", "Repetition penalty", { min: 0.5, max: 2, step: 0.01 }, "Above 1, tokens already seen become less likely"],
];
const MOST_TOKENS = 1_000_000;

function stored(key, fallback) {
  try {
    return { ...fallback, ...JSON.parse(localStorage.getItem(key) ?? "{}") };
  } catch {
    return { ...fallback }; // written by something else: the defaults are as good
  }
}

export const sampling = {
  values: stored(STORE, { preset: "Default", ...PRESETS.Default, max_tokens: 256, seed: "", stop: "" }),

  set(changes) {
    Object.assign(this.values, changes);
    localStorage.setItem(STORE, JSON.stringify(this.values));
  },

  // The fields of a request that say how to draw. Without a seed one is made up, so that it can be told.
  request() {
    const { temperature, top_k, top_p, min_p, repetition_penalty, seed, stop } = this.values;
    const stops = stop.split("\n").filter(Boolean).slice(0, 4);
    return {
      temperature,
      top_k,
      top_p,
      min_p,
      repetition_penalty,
      seed: seed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(seed),
      ...(stops.length ? { stop: stops } : {}),
    };
  },

  get maxTokens() {
    return this.values.max_tokens;
  },
};

export function samplingPanel() {
  const inputs = new Map();
  const own = () => stored(OWN_PRESETS, {});
  const preset = element("select", { onchange: () => take(preset.value) });

  function names() {
    const known = [...Object.keys(PRESETS), ...Object.keys(own())];
    return known.includes(sampling.values.preset) ? known : [...known, sampling.values.preset];
  }

  function show() {
    replaceOptions(preset, names(), sampling.values.preset);
    for (const [name, pair] of inputs) for (const input of pair) input.value = sampling.values[name];
  }

  function take(name) {
    sampling.set({ preset: name, ...(PRESETS[name] ?? own()[name]) });
    show();
  }

  async function save() {
    const name = await askForText("Save preset", "Name");
    if (!name) return;
    const values = Object.fromEntries(CONTROLS.map(([field]) => [field, sampling.values[field]]));
    localStorage.setItem(OWN_PRESETS, JSON.stringify({ ...own(), [name]: values }));
    sampling.set({ preset: name });
    show();
  }

  const rows = CONTROLS.map(([name, label, range, hint]) => {
    const change = (event) => {
      if (event.target.value === "" || !event.target.checkValidity()) return;
      sampling.set({ [name]: Number(event.target.value), preset: "Own values" });
      show();
    };
    const slider = element("input", { type: "range", ...range, oninput: change, "aria-label": label });
    const number = element("input", { type: "number", ...range, onchange: change });
    inputs.set(name, [slider, number]);
    return element("div", { class: "control" }, labelled(label, number, hint), slider);
  });

  const most = element("input", {
    type: "number", min: 1, max: MOST_TOKENS, step: 1, value: sampling.values.max_tokens,
    onchange: () => most.value && most.checkValidity() && sampling.set({ max_tokens: Number(most.value) }),
  });
  const seed = element("input", {
    type: "number", min: 0, step: 1, placeholder: "random", value: sampling.values.seed,
    onchange: () => sampling.set({ seed: seed.value }),
  });
  const stop = element("textarea", { rows: 2, placeholder: "one a line, up to four", onchange: () => sampling.set({ stop: stop.value }) });
  stop.value = sampling.values.stop;

  const panel = element(
    "fieldset",
    { class: "sampling" },
    element("legend", {}, "Sampling"),
    element("div", { class: "row" }, labelled("Preset", preset), button("Save as…", save, { class: "quiet" })),
    ...rows,
    element("div", { class: "pair" }, labelled("New tokens", most, "The longest reply"), labelled("Seed", seed, "Repeats a draw")),
    labelled("Stop at", stop, "The reply ends before the first of these"),
  );
  show();
  return panel;
}
