// The list of chats: named, searched, taken along and brought back.

import { announce, askForText, button, chooseFile, download, element, later } from "./element.js";
import { append, listChats, readChat, searchChats } from "./history.js";

const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

// `open` shows a chat, or a new one for null.
export function chatList(open) {
  const list = element("ul", {});
  const search = element("input", { type: "search", placeholder: "Search chats", "aria-label": "Search chats", oninput: later(150, refresh) });
  let current = null;

  async function refresh() {
    const chats = search.value.trim() ? await searchChats(search.value) : await listChats();
    list.replaceChildren(...chats.map(row));
    if (!chats.length) list.append(element("li", { class: "facts" }, search.value ? "Nothing found." : "Chats are kept in this browser."));
  }

  function row({ chat, name, at }) {
    return element(
      "li",
      { "data-chat": chat },
      button(name, () => open(chat), { class: "chat-name", title: DAY.format(at), "aria-current": chat === current && "true" }),
      button("⋯", (event) => toggleMenu(event.target, chat, name), { class: "quiet", "aria-label": `More for ${name}`, "aria-expanded": "false" }),
    );
  }

  function toggleMenu(opener, chat, name) {
    const open = opener.nextElementSibling;
    opener.setAttribute("aria-expanded", String(!open));
    if (open) return open.remove();
    const then = (act) => async () => {
      await act();
      await refresh();
    };
    opener.after(
      element(
        "div",
        { class: "menu" },
        button("Rename", then(() => rename(chat, name))),
        button("Export", () => save(chat, name)),
        button("Remove", then(() => hide(chat, name))),
      ),
    );
  }

  async function rename(chat, name) {
    const given = await askForText("Rename chat", "Name", name);
    if (given) await append({ kind: "name", chat, name: given });
  }

  async function save(chat, name) {
    const { exported } = await import("./exchange.js");
    const text = JSON.stringify(exported(await readChat(chat), name), null, 2);
    download(`${name.replace(/[^\p{L}\p{N} -]+/gu, "").trim() || "chat"}.json`, text);
  }

  // Records are never taken away: a removed chat is one that is not listed.
  async function hide(chat, name) {
    await append({ kind: "hidden", chat, hidden: true });
    if (chat === current) open(null);
    undo.replaceChildren(`“${name}” was removed. `, button("Undo", async () => {
      await append({ kind: "hidden", chat, hidden: false });
      undo.replaceChildren();
      await refresh();
    }, { class: "quiet" }));
    announce(`${name} was removed`);
  }

  async function bring() {
    const file = await chooseFile(".json,application/json");
    if (!file) return;
    try {
      const { imported } = await import("./exchange.js");
      const chat = await imported(file);
      await refresh();
      open(chat);
    } catch (error) {
      undo.textContent = error.message;
    }
  }

  const undo = element("p", { class: "facts", role: "status" });
  const made = element(
    "div",
    { class: "chat-list" },
    element("div", { class: "row" }, button("New chat", () => open(null), { class: "primary" }), button("Import", bring, { class: "quiet" })),
    search,
    undo,
    list,
  );
  return {
    made,
    refresh,
    mark(chat) {
      current = chat;
      for (const item of list.querySelectorAll("[data-chat]")) {
        const name = item.querySelector(".chat-name");
        if (item.dataset.chat === chat) name.setAttribute("aria-current", "true");
        else name.removeAttribute("aria-current");
      }
    },
  };
}
