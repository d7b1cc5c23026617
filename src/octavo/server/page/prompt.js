// The exact prompt: what the template made of a chat, token by token, and the template itself.

import { element, openDialog } from "./element.js";
import { get, post } from "./server.js";

const MOST_SHOWN = 4000;

export async function showPrompt(body) {
  const [applied, info] = await Promise.all([
    post("apply_template", body),
    get(`tokenizer_info?model=${encodeURIComponent(body.model)}`),
  ]);
  const { prompt, tokens, token_strs: spellings } = applied;
  const control = new Set(["bos_token", "eos_token", "unk_token", "pad_token"].map((name) => info[name]));
  const chips = tokens.slice(0, MOST_SHOWN).map((id, index) =>
    element(
      "li",
      { class: control.has(spellings[index]) && "control-token" },
      element("span", {}, visible(spellings[index])),
      element("small", {}, String(id)),
    ),
  );
  openDialog(
    "The exact prompt",
    element("p", { class: "facts" }, `${tokens.length} of ${applied.max_model_len} tokens, as ${body.model} gets them.`),
    element("pre", { class: "exact", tabindex: 0, "aria-label": "Prompt" }, prompt),
    element("h3", {}, "Tokens"),
    element("ol", { class: "chips", tabindex: 0, "aria-label": "Tokens with their ids" }, chips),
    tokens.length > MOST_SHOWN && element("p", { class: "facts" }, `The first ${MOST_SHOWN} are shown.`),
    element("h3", {}, "Template"),
    element("pre", { class: "exact", tabindex: 0, "aria-label": "Template" }, info.chat_template ?? "Vicuna v1.1, built in"),
  );
}

export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}
