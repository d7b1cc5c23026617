// Chat: a conversation with a model, every version of every message kept.

import { announce, button, element, labelled, later, newId } from "./element.js";
import { append, branch, newChat, newestLeaf, readChat, shortName, told, versions } from "./history.js";
import { chatList } from "./chats.js";
import { sampling, samplingPanel } from "./sampling.js";
import { models, stream, post } from "./server.js";

const WRITE_MILLISECONDS = 300; // how much of a reply a crash may cost
const LAST_CHAT = "octavo-chat";
const DRAFT = "octavo-draft";

export async function view() {
  const chat = new Chat();
  await chat.open(localStorage.getItem(LAST_CHAT)).catch((error) => chat.say(error.message));
  return chat.made;
}

class Chat {
  id = null;
  tree = told([]);
  running = null; // what stops the reply under way
  settings = { system: "", character: null }; // of a chat that has not begun

  constructor() {
    this.list = chatList((id) => this.open(id));
    this.messages = element("ol", { class: "messages" });
    const scroller = element("div", { class: "scroller", role: "region", "aria-label": "Messages", tabindex: 0 }, this.messages);
    this.alert = element("p", { class: "alert", role: "alert", hidden: true });
    this.made = element(
      "div",
      { class: "view chat" },
      element("aside", { class: "drawer left", id: "chats", "aria-label": "Chats" }, this.list.made),
      element("section", { class: "conversation", "aria-label": "Conversation" }, this.#head(), scroller, this.#composer()),
      element("aside", { class: "drawer right", id: "settings", "aria-label": "Settings" }, this.#conversationPanel(), samplingPanel()),
    );
    this.measure = later(250, () => this.#measure());
    models.addEventListener("change", () => this.#modelChanged());
    this.made.addEventListener("keydown", (event) => event.key === "Escape" && this.#closeDrawers());
  }

  #head() {
    const drawer = (label, side) => {
      const control = button(label, () => {
        const opens = !this.made.classList.contains(`${side}-open`);
        this.#closeDrawers();
        this.made.classList.toggle(`${side}-open`, opens);
        control.setAttribute("aria-expanded", String(opens));
      }, { class: `quiet only-narrow ${side}`, "aria-expanded": "false", "aria-controls": side === "left" ? "chats" : "settings" });
      return control;
    };
    this.title = element("h1", {}, "New chat");
    return element("div", { class: "conversation-head" }, drawer("Chats", "left"), this.title, button("Exact prompt", () => this.showPrompt(), { class: "quiet" }), drawer("Settings", "right"));
  }

  #closeDrawers() {
    this.made.classList.remove("left-open", "right-open");
    for (const control of this.made.querySelectorAll(".only-narrow")) control.setAttribute("aria-expanded", "false");
  }

  #composer() {
    this.draft = element("textarea", { rows: 1, placeholder: "Write a message", "aria-label": "Message", enterkeyhint: "send" });
    this.draft.value = sessionStorage.getItem(DRAFT) ?? "";
    this.draft.addEventListener("input", () => {
      sessionStorage.setItem(DRAFT, this.draft.value);
      this.measure();
    });
    this.draft.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.gaugeBar = element("span", {});
    this.gauge = element("div", { class: "gauge", role: "meter", "aria-label": "Context used", "aria-valuemin": 0, "aria-valuenow": 0 }, this.gaugeBar);
    this.count = element("span", { class: "facts count" }, "");
    this.sendButton = element("button", { class: "primary" }, "Send");
    this.stopButton = button("Stop", () => this.running?.abort(), { class: "primary stop", hidden: true });
    const form = element(
      "form",
      { class: "composer" },
      this.alert,
      this.draft,
      element(
        "div",
        { class: "row" },
        this.gauge,
        this.count,
        button("Impersonate", () => this.impersonate(), { class: "quiet", title: "The model writes your turn" }),
        this.sendButton,
        this.stopButton,
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    return form;
  }

  #conversationPanel() {
    this.system = element("textarea", { rows: 4, onchange: () => this.#set({ system: this.system.value }) });
    this.begun = element("input", { placeholder: "nothing", autocomplete: "off" });
    this.character = element("select", { onchange: () => this.#chooseCharacter(this.character.value) });
    this.character.append(element("option", { value: "" }, "none"));
    const edit = async () => {
      const { characters, editCharacter } = await import("./characters.js");
      const known = (await characters()).find(({ name }) => name === this.character.value);
      editCharacter(known, (character) => this.#play(character));
    };
    const bring = async () => {
      const { readCard } = await import("./characters.js");
      await readCard().then((character) => character && this.#play(character), (error) => this.say(error.message));
    };
    this.character.addEventListener("focus", () => this.#listCharacters(), { once: true });
    return element(
      "fieldset",
      {},
      element("legend", {}, "Conversation"),
      labelled("System prompt", this.system, "What the model is told before all messages"),
      labelled("Start reply with", this.begun, "The reply goes on from this"),
      labelled("Character", this.character, "Begins a chat of its own"),
      element("div", { class: "row" }, button("Edit character", edit, { class: "quiet" }), button("Import card", bring, { class: "quiet" })),
    );
  }

  async #listCharacters(chosen = this.character.value) {
    const { characters } = await import("./characters.js");
    const names = (await characters()).map(({ name }) => name);
    this.character.replaceChildren(element("option", { value: "" }, "none"), ...names.map((name) => element("option", { value: name }, name)));
    this.character.value = names.includes(chosen) ? chosen : "";
  }

  async #chooseCharacter(name) {
    const { characters } = await import("./characters.js");
    const character = (await characters()).find((each) => each.name === name);
    if (character) await this.#play(character);
    else await this.#set({ character: null });
  }

  // A character begins a chat of its own, with its greeting.
  async #play(character) {
    const { spoken } = await import("./characters.js");
    await this.open(null);
    const system = spoken(character.context, character);
    this.settings = { system, character };
    await this.#begin(character.name);
    if (character.greeting) {
      const content = spoken(character.greeting, character);
      await this.#add({ role: "assistant", content, greeting: true, ended: { reason: "stop" } });
    }
    await this.#listCharacters(character.name);
    this.#showSettings();
    this.draw();
  }

  async #set(changes) {
    Object.assign(this.id ? this.tree.settings : this.settings, changes);
    if (this.id) await append({ kind: "setting", chat: this.id, values: changes });
    this.measure();
  }

  #showSettings() {
    const { system = "", character } = this.id ? this.tree.settings : this.settings;
    this.system.value = system;
    this.begun.value = "";
    if (character && ![...this.character.options].some(({ value }) => value === character.name)) {
      this.character.append(element("option", { value: character.name }, character.name));
    }
    this.character.value = character?.name ?? "";
  }

  // Shows a chat that is in the history, or a new one.
  async open(id) {
    this.running?.abort();
    const tree = id ? await readChat(id) : told([]);
    const known = id && !tree.hidden && (tree.name || tree.messages.size);
    this.id = known ? id : null;
    this.tree = known ? tree : told([]);
    this.settings = { system: "", character: null };
    if (known) localStorage.setItem(LAST_CHAT, id);
    else localStorage.removeItem(LAST_CHAT);
    this.#closeDrawers();
    this.#showSettings();
    this.say("");
    await this.list.refresh();
    await this.draw();
  }

  async #begin(name) {
    if (this.id) return;
    this.id = await newChat(this.settings);
    this.tree = told([{ kind: "setting", values: this.settings }]);
    this.tree.name = shortName(name) || "New chat";
    await append({ kind: "name", chat: this.id, name: this.tree.name });
    localStorage.setItem(LAST_CHAT, this.id);
    await this.list.refresh();
  }

  async #add(message) {
    const tree = this.tree; // another chat may be opened while this one is written
    const record = { kind: "message", chat: this.id, id: newId(), parent: tree.current, ...message };
    await append(record);
    tree.messages.set(record.id, { ...record, ended: record.ended ?? null });
    tree.current = record.id;
    return tree.messages.get(record.id);
  }

  async draw() {
    this.title.textContent = this.id ? this.tree.name || "Chat" : "New chat";
    this.list.mark(this.id);
    const shown = branch(this.tree);
    if (shown.length) {
      const { messageElement } = await import("./message.js");
      const name = this.tree.settings.character?.name ?? "Assistant";
      const made = shown.map((message, place) =>
        messageElement(message, {
          own: versions(this.tree, message),
          place,
          actions: this.actions,
          name: message.role === "user" ? "You" : name,
        }),
      );
      this.messages.replaceChildren(...made);
    } else this.messages.replaceChildren(this.#welcome());
    this.measure();
  }

  #welcome() {
    const model = models.current;
    const words = {
      ready: `${model?.name} is ready.`,
      loading: `${model?.name} is being loaded.`,
      unloaded: "The model is not loaded. The menu above loads it.",
      failed: model?.problem,
    };
    const hint = model ? (words[model.state] ?? "") : "";
    return element("li", { class: "welcome" }, element("p", { class: "large" }, "What shall we talk about?"), element("p", { class: "facts" }, hint));
  }

  #modelChanged() {
    if (!this.tree.messages.size) this.draw();
    this.measure();
  }

  say(text) {
    this.alert.hidden = !text;
    this.alert.textContent = text;
  }

  // The messages of a branch as the model gets them; a greeting is only seen.
  #asked(last) {
    const { system } = this.id ? this.tree.settings : this.settings;
    const said = branch(this.tree, last).filter(({ greeting }) => !greeting);
    const turns = said.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...turns] : turns;
  }

  async send() {
    const text = this.draft.value;
    if (!text.trim()) return;
    await this.#whileRunning(async (signal) => {
      await this.#begin(text);
      const message = await this.#add({ role: "user", content: text });
      this.#setDraft("");
      await this.#reply(signal, message.id, this.begun.value);
    });
  }

  #setDraft(text) {
    this.draft.value = text;
    sessionStorage.setItem(DRAFT, text);
    this.measure();
  }

  actions = {
    select: (message) => this.#select(newestLeaf(this.tree, message.id)),
    regenerate: (message) => this.#whileRunning((signal) => this.#reply(signal, message.parent, this.begun.value)),
    answer: (message) => this.#whileRunning((signal) => this.#reply(signal, message.id, this.begun.value)),
    goOn: (message) => this.#whileRunning((signal) => this.#reply(signal, message.parent, message.content)),
    edit: (message, content) => this.#whileRunning(() => this.#edit(message, content).then(() => this.draw())),
    editAndSend: (message, content) =>
      this.#whileRunning(async (signal) => {
        const { id } = await this.#edit(message, content);
        await this.#reply(signal, id, this.begun.value);
      }),
  };

  // A version of a message, in its place.
  #edit({ role, parent }, content) {
    return this.#add({ role, parent, content, ended: role === "assistant" ? { reason: "edited" } : null });
  }

  async #select(id) {
    if (this.running) return;
    this.tree.current = id;
    await append({ kind: "select", chat: this.id, id });
    await this.draw();
  }

  // Asks for a reply to the branch that ends in `parent`; `begun` is what it goes on from. A reply that is gone on
  // with is a version of its own.
  async #reply(signal, parent, begun) {
    const model = models.current;
    const asked = this.#asked(parent);
    if (begun) asked.push({ role: "assistant", content: begun });
    const body = {
      model: model?.name ?? "",
      messages: asked,
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: sampling.maxTokens,
      ...sampling.request(),
      ...(begun ? { continue_final_message: true } : {}),
    };
    this.tree.current = parent;
    await this.draw();
    const started = performance.now();
    const chunks = await stream("v1/chat/completions", body, signal);
    const message = await this.#add({ role: "assistant", parent, content: begun, seed: body.seed });
    await this.draw();
    await this.#write(message, chunks, started, model);
  }

  // One thing runs at a time; what goes wrong is said, and nothing that is there is touched.
  async #whileRunning(act) {
    if (this.running) return;
    this.running = new AbortController();
    this.say("");
    this.#showRunning();
    try {
      await act(this.running.signal);
    } catch (error) {
      if (error.name !== "AbortError") {
        const full = error.code === "context_length_exceeded";
        this.say(full ? `${error.message} Nothing was left out: begin a new chat, or edit an earlier message.` : error.message);
      }
    } finally {
      this.running = null;
      this.#showRunning();
    }
  }

  #showRunning() {
    this.sendButton.hidden = Boolean(this.running);
    this.stopButton.hidden = !this.running;
    this.messages.setAttribute("aria-busy", String(Boolean(this.running)));
  }

  async #write(message, chunks, started, model) {
    const { showWriting } = await import("./message.js");
    const { chat } = message;
    const made = this.messages.querySelector(`[data-id="${message.id}"]`);
    const times = { started };
    let [unwritten, painted, reason, usage, problem] = ["", false, "stop", null, null];
    const keep = async () => {
      const text = unwritten;
      unwritten = "";
      if (text) await append({ kind: "piece", chat, id: message.id, text }).catch((error) => (problem ??= error));
    };
    const keeping = setInterval(keep, WRITE_MILLISECONDS);
    const paint = () => {
      painted = false;
      if (made) showWriting(made, message); // else another chat is shown
    };
    try {
      for await (const chunk of chunks) {
        const [choice] = chunk.choices;
        usage = chunk.usage ?? usage;
        reason = choice?.finish_reason ?? reason;
        if (!choice?.delta.content) continue;
        times.last = performance.now();
        times.first ??= times.last;
        message.content += choice.delta.content;
        unwritten += choice.delta.content;
        if (!painted) requestAnimationFrame(paint);
        painted = true;
      }
    } catch (error) {
      reason = error.name === "AbortError" ? "stopped" : "lost";
      if (reason === "lost") problem ??= error;
    } finally {
      clearInterval(keeping);
    }
    await keep();
    message.ended = { reason, model: model.name, usage, ...statistics(times, usage, model) };
    await append({ kind: "end", chat, id: message.id, ...message.ended });
    if (this.id === chat) await this.draw();
    announce(message.content);
    if (problem) throw problem;
  }

  // The model writes the user's turn, from what is typed so far.
  async impersonate() {
    const draft = this.draft.value;
    const body = {
      model: models.current?.name ?? "",
      messages: [...this.#asked(this.tree.current), { role: "user", content: draft }],
      continue_final_message: true,
      stream: true,
      max_tokens: sampling.maxTokens,
      ...sampling.request(),
    };
    if (models.current?.template === "Vicuna v1.1") body.stop = [...(body.stop ?? []), "ASSISTANT:"].slice(-4);
    await this.#whileRunning(async (signal) => {
      for await (const chunk of await stream("v1/chat/completions", body, signal)) {
        this.#setDraft(this.draft.value + (chunk.choices[0]?.delta.content ?? ""));
      }
    });
    this.draft.focus();
  }

  async showPrompt() {
    const { showPrompt } = await import("./prompt.js");
    const messages = this.#asked(this.tree.current);
    if (this.draft.value.trim()) messages.push({ role: "user", content: this.draft.value });
    if (!messages.some(({ role }) => role !== "system")) return this.say("There is no prompt yet: write a message first.");
    const ends = messages.at(-1).role === "assistant" ? { add_generation_prompt: false } : {};
    await showPrompt({ model: models.current?.name ?? "", messages, ...ends }).catch((error) => this.say(error.message));
  }

  // How much of the context the conversation takes, the draft included.
  async #measure() {
    const model = models.current;
    if (model?.state !== "ready") return this.#showCount(0, null);
    const messages = this.#asked(this.tree.current);
    if (this.draft.value.trim()) messages.push({ role: "user", content: this.draft.value });
    if (!messages.some(({ role }) => role !== "system") || !model.template) return this.#showCount(0, model.context);
    const ends = messages.at(-1).role === "assistant" ? { add_generation_prompt: false } : {};
    try {
      const { count, max_model_len } = await post("tokenize", { model: model.name, messages, ...ends });
      this.#showCount(count, max_model_len);
    } catch (error) {
      this.#showCount(0, null, error.message);
    }
  }

  #showCount(count, context, problem = "") {
    const over = context !== null && count >= context;
    this.gaugeBar.style.setProperty("--used", context ? Math.min(count / context, 1) : 0);
    this.gauge.setAttribute("aria-valuenow", count);
    this.gauge.setAttribute("aria-valuemax", context ?? 0);
    this.gauge.classList.toggle("over", over);
    this.gauge.title = problem;
    if (context === null) this.count.textContent = "";
    else this.count.textContent = over ? `${count} / ${context} tokens: too long` : `${count} / ${context}`;
  }
}

// Seconds of a reply, tokens per second after its first, and the memory that its context takes.
function statistics({ started, first, last }, usage, model) {
  const written = usage ? usage.completion_tokens - 1 : 0;
  return {
    seconds: ((last ?? performance.now()) - started) / 1000,
    ...(first === undefined ? {} : { first: (first - started) / 1000 }),
    rate: written > 0 && last > first ? (1000 * written) / (last - first) : null,
    context: model.context,
    cacheBytes: usage && model.cache ? usage.total_tokens * model.cache.bytes_per_token : null,
  };
}
