// Characters: kept in this browser, written by hand or taken from a card. A card is read by the server, as data.

import { chooseFile, element, labelled, openDialog, button } from "./element.js";
import { append, readKind } from "./history.js";
import { postFile } from "./server.js";

export async function characters() {
  const newest = new Map((await readKind("character")).map((record) => [record.name, record]));
  return [...newest.values()].filter((record) => !record.hidden);
}

export async function readCard() {
  const file = await chooseFile(".png,.json,.yaml,.yml");
  if (!file) return null;
  const { name, context, greeting } = await postFile("page/character", file);
  await keep({ name, context, greeting });
  return { name, context, greeting };
}

async function keep(character) {
  await append({ kind: "character", chat: null, ...character });
}

// A form for a character; it is kept and handed on.
export function editCharacter(character, done) {
  const name = element("input", { required: true, value: character?.name ?? "" });
  const context = element("textarea", { rows: 8 });
  const greeting = element("textarea", { rows: 3 });
  context.value = character?.context ?? "";
  greeting.value = character?.greeting ?? "";
  const form = element(
    "form",
    { method: "dialog", class: "stack" },
    labelled("Name", name),
    labelled("Context", context, "Comes before the conversation, as the system prompt"),
    labelled("Greeting", greeting, "Is seen first; not part of the prompt"),
    element("div", { class: "row" }, element("button", { class: "primary" }, "Save"), button("Cancel", () => dialog.close(), { class: "quiet" })),
  );
  const dialog = openDialog(character ? "Character" : "New character", form);
  form.addEventListener("submit", async () => {
    const made = { name: name.value.trim(), context: context.value, greeting: greeting.value };
    await keep(made);
    done(made);
  });
}

// {{user}} and {{char}}, as cards spell them.
export function spoken(text, character) {
  return text.replace(/\{\{user\}\}|<USER>/gi, "User").replace(/\{\{char\}\}|<BOT>/gi, () => character.name);
}
