// Chats as files, in the format that `octavo chat` saves and loads; what comes in is checked and only ever text.

import { newId } from "./element.js";
import { append, newChat, shortName } from "./history.js";

const FORMAT = "octavo-conversation";
const VERSION = 1;
const LARGEST_FILE = 64 * 2 ** 20;
const MOST_MESSAGES = 100_000;
const SYSTEM = "system";

// All versions; the system prompt is the first message, which all others follow.
export function exported(tree, name) {
  const { system = "", character = null } = tree.settings;
  const root = system ? SYSTEM : null;
  const messages = [...tree.messages.values()].map((message) => ({
    id: message.id,
    parent: message.parent ?? root,
    role: message.role,
    content: message.content,
    ...(message.greeting ? { greeting: true } : {}),
    ...(message.ended ? { ended: statistics(message.ended) } : {}),
  }));
  if (system) messages.unshift({ id: SYSTEM, parent: null, role: "system", content: system });
  const current = tree.current ?? (system ? SYSTEM : null);
  return { format: FORMAT, version: VERSION, name, character, current, messages };
}

function statistics({ reason, model, usage, seconds, rate }) {
  return { reason, model, usage, seconds, rate };
}

const isText = (value) => typeof value === "string";
const isId = (value) => isText(value) || Number.isInteger(value);

// A file as a new chat of this browser; its id.
export async function imported(file) {
  if (file.size > LARGEST_FILE) throw new Error(`${file.name} is larger than 64 MiB; a chat is not.`);
  const values = parsed(await file.text(), file.name);
  const ids = new Map(values.messages.map((message) => [message.id, newId()]));
  const system = values.messages.find((message) => message.role === "system" && message.parent === null);
  const records = values.messages
    .filter((message) => message !== system)
    .map((message) => ({
      kind: "message",
      id: ids.get(message.id),
      parent: system && message.parent === system.id ? null : (ids.get(message.parent) ?? null),
      role: message.role,
      content: message.content,
      greeting: message.greeting === true,
      ended: { reason: "stop", ...(isText(message.ended?.model) ? { model: message.ended.model } : {}) },
    }));
  const character = characterOf(values.character);
  const chat = await newChat({ system: system?.content ?? "", ...(character ? { character } : {}) });
  const first = records.find((record) => record.role === "user");
  const name = isText(values.name) && values.name ? values.name : (first?.content ?? file.name);
  const select = ids.has(values.current) && values.current !== system?.id ? [{ kind: "select", id: ids.get(values.current) }] : [];
  await append(...[{ kind: "name", name: shortName(name) }, ...records, ...select].map((record) => ({ ...record, chat })));
  return chat;
}

function parsed(text, name) {
  let values;
  try {
    values = JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON.`);
  }
  if (values?.format !== FORMAT || values.version !== VERSION || !Array.isArray(values.messages)) {
    throw new Error(`${name} holds no conversation that this page knows.`);
  }
  if (values.messages.length > MOST_MESSAGES) throw new Error(`${name} has more than ${MOST_MESSAGES} messages.`);
  const seen = new Set();
  for (const message of values.messages) {
    const known = message && isId(message.id) && !seen.has(message.id) && (message.parent === null || seen.has(message.parent));
    if (!known || !["system", "user", "assistant"].includes(message.role) || !isText(message.content)) {
      throw new Error(`${name} is damaged: its message ${seen.size + 1} cannot be read.`);
    }
    seen.add(message.id); // a message follows one that came before it, so that no circle can be
  }
  return values;
}

function characterOf(value) {
  if (!value || ![value.name, value.context, value.greeting].every(isText)) return null;
  return { name: value.name, context: value.context, greeting: value.greeting };
}
