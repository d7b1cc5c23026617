// The history of chats, in the browser's own database: a log to which records are only ever appended.
//
// A record belongs to a chat and is of one kind: "chat" begins it; "name", "setting" and "hidden" speak of it as a
// whole; "message" begins a message that follows its parent, "piece" adds to its text, "end" says how it ended;
// "select" says which message is the last of the branch that is shown. The newest record of a kind counts. So an
// edit is a further message with the same parent, and whatever breaks off, what was written stays.

import { newId } from "./element.js";

const SHORT_NAME = 60;
let opened;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("octavo", 1);
    request.onupgradeneeded = () => {
      const records = request.result.createObjectStore("records", { keyPath: "sequence", autoIncrement: true });
      records.createIndex("chat", "chat");
      records.createIndex("kind", "kind");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(new Error(`The browser keeps no history: ${request.error.message}`));
  });
  return opened;
}

export async function append(...records) {
  const transaction = (await database()).transaction("records", "readwrite", { durability: "strict" });
  const store = transaction.objectStore("records");
  for (const record of records) store.add({ ...record, at: Date.now() });
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(new Error(`The history could not be written: ${transaction.error?.message}`));
  });
}

async function read(index, value) {
  const store = (await database()).transaction("records").objectStore("records");
  const request = value === undefined ? store.getAll() : store.index(index).getAll(value);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const readKind = (kind) => read("kind", kind);

// A chat as its records tell it: messages by id, in the order in which they began.
export async function readChat(chat) {
  return told(await read("chat", chat));
}

export function told(records) {
  const tree = { messages: new Map(), current: null, name: "", hidden: false, settings: {} };
  for (const record of records) {
    const message = tree.messages.get(record.id);
    if (record.kind === "message") {
      tree.messages.set(record.id, { ...record, ended: record.ended ?? null });
      tree.current = record.id;
    } else if (record.kind === "piece" && message) message.content += record.text;
    else if (record.kind === "end" && message) message.ended = record;
    else if (record.kind === "select" && message) tree.current = record.id;
    else if (record.kind === "name") tree.name = record.name;
    else if (record.kind === "setting") Object.assign(tree.settings, record.values);
    else if (record.kind === "hidden") tree.hidden = record.hidden;
  }
  return tree;
}

// The messages from the first to `last`.
export function branch(tree, last = tree.current) {
  const messages = [];
  for (let id = last; id !== null && tree.messages.has(id); id = tree.messages.get(id).parent) {
    messages.push(tree.messages.get(id));
  }
  return messages.reverse();
}

// The versions of a message: those with its parent and its role.
export function versions(tree, message) {
  return [...tree.messages.values()].filter((other) => other.parent === message.parent && other.role === message.role);
}

// The message below another, or itself, that was begun last: the end of the branch that was last gone on with.
export function newestLeaf(tree, id) {
  const below = new Set([id]);
  let newest = id;
  for (const message of tree.messages.values()) {
    if (!below.has(message.parent)) continue;
    below.add(message.id);
    newest = message.id;
  }
  return newest;
}

export async function newChat(settings) {
  const chat = newId();
  await append({ kind: "chat", chat }, { kind: "setting", chat, values: settings });
  return chat;
}

// All chats, the newest first: name and id.
export async function listChats() {
  const [chats, names, hidden] = await Promise.all(["chat", "name", "hidden"].map(readKind));
  const nameOf = new Map(names.map((record) => [record.chat, record.name]));
  const isHidden = new Map(hidden.map((record) => [record.chat, record.hidden]));
  return chats
    .filter(({ chat }) => !isHidden.get(chat))
    .map(({ chat, at }) => ({ chat, at, name: nameOf.get(chat) ?? "New chat" }))
    .reverse();
}

// The chats in which every word of `text` occurs, in the name or in what was said.
export async function searchChats(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const chats = await listChats();
  if (!words.length) return chats;
  const said = new Map(chats.map(({ chat, name }) => [chat, [name]]));
  for (const record of [...(await readKind("message")), ...(await readKind("piece"))]) {
    said.get(record.chat)?.push(record.content ?? record.text);
  }
  return chats.filter(({ chat }) => {
    const all = said.get(chat).join("").toLowerCase();
    return words.every((word) => all.includes(word));
  });
}

export function shortName(text) {
  const line = text.trim().split("\n")[0];
  return line.length > SHORT_NAME ? `${line.slice(0, SHORT_NAME - 1)}…` : line;
}
