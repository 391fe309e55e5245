// The page: shows conversations and turns as the server sends them. HTML comes sanitized from the server and is set in
// `setHtml` alone; all else is text.
"use strict";

const $ = id => document.getElementById(id);
const state = { name: null, turn: null, keep: null, files: [], earlier: 0, following: null, about: null };
const SETTINGS = ["reasoning_effort", "temperature", "top_p", "max_tokens", "seed", "instructions", "schema"];
const MAX_FILE = 1000000, RETRY_MS = 1000, MAX_RETRY_MS = 15000;

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("page", { createHTML: html => html }) : { createHTML: html => html };
function setHtml(element, html) { element.innerHTML = policy.createHTML(html); }

function make(tag, options = {}, ...children) {
  const { text, on, data, ...attributes } = options;
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  Object.assign(element.dataset, data || {});
  if (on) element.addEventListener("click", on);
  element.append(...children);
  return element;
}

// What this browser keeps. Some browsers keep nothing, and say so with an exception.
function remembered(name) { try { return localStorage.getItem(name); } catch { return null; } }
function remember(name, value) { try { localStorage.setItem(name, value); } catch { /* it is asked for again */ } }

// Requests

let key = remembered("key");
function takeKey() {
  const found = /^#key=([^&]+)$/.exec(location.hash);
  if (!found) return;
  key = decodeURIComponent(found[1]);
  remember("key", key);
  history.replaceState(null, "", location.pathname);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = "Bearer " + key;
  const body = options.json === undefined ? undefined : JSON.stringify(options.json);
  if (body) headers["Content-Type"] = "application/json";
  const method = options.method || (body ? "POST" : "GET");
  const reply = await fetch("/page/" + path, { method, headers, body, signal: options.signal });
  if (reply.ok) return reply;
  if (reply.status === 401) askForKey();
  const told = await reply.json().catch(() => null);
  const error = new Error(told && told.error ? told.error.message : "the server answered " + reply.status);
  error.status = reply.status;
  throw error;
}
async function json(path, options) { return (await ask(path, options)).json(); }
const post = (path, value) => json(path, { json: value || {} });
const place = name => "conversations/" + encodeURIComponent(name);

function askForKey() {
  if (!$("ask-key").open) $("ask-key").showModal();
}
$("ask-key").addEventListener("close", () => {
  key = $("key").value.trim();
  remember("key", key);
  start();
});

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") note(error.message === "Failed to fetch" ? "The server cannot be reached." : error.message);
    return undefined;
  }
}

// The log

function atEnd() { const log = $("log"); return log.scrollHeight - log.scrollTop - log.clientHeight < 80; }
function keepingEnd(change) {
  const follow = atEnd();
  change();
  if (follow) $("log").scrollTop = $("log").scrollHeight;
}
function announce(text) { $("status").textContent = text.slice(0, 2000); }
function note(text) {
  keepingEnd(() => $("log").append(make("p", { class: "note error", text })));
  announce(text);
}

function question(text, at) {
  const wrap = make("div", { class: "asked", data: at === undefined ? {} : { at } });
  const edit = make("button", { type: "button", text: "Edit", on: () => beginEdit(wrap) });
  wrap.append(make("div", { class: "question", text, dir: "auto", tabindex: "0" }), make("div", { class: "actions" }, edit));
  return wrap;
}

function folded(kind, summary, ...children) {
  return make("details", { class: kind }, make("summary", { text: summary }), ...children);
}

function saved(message) {
  if (message.kind === "question") return question(message.text, message.at);
  if (message.kind === "call") return make("div", { class: "call" }, ...callParts(message));
  if (message.kind === "result") return folded("result", "Result", make("pre", { text: message.text, tabindex: "0" }));
  const body = make("div", { class: "block" });
  setHtml(body, message.html);
  return message.kind === "reasoning" ? folded("reasoning", "Reasoning", body) : make("div", { class: "answer" }, body);
}

function callParts(call) {
  return [make("strong", { text: "Calls " + call.name }), make("pre", { text: call.text, tabindex: "0" })];
}

function clearLog() {
  [...$("log").children].forEach(child => child !== $("hello") && child.remove());
  $("hello").hidden = false;
}

// A conversation

async function open(name) {
  leave();
  const opened = await attempt(() => json(place(name)));
  if (!opened) return;
  clearLog();
  state.name = name;
  $("title").textContent = name;
  document.title = name + " · gptoss-mlx";
  $("own-instructions").textContent = opened.instructions ? "Instructions of this conversation: " + opened.instructions : "";
  $("hello").hidden = true;
  $("log").append(...opened.messages.map(saved));
  earlierButton(opened.first);
  if (opened.turn) follow(opened.turn);
  else lastActions(opened.unfinished);
  $("log").scrollTop = $("log").scrollHeight;
  mark();
}

function earlierButton(first) {
  if (!first) return;
  const button = make("button", { type: "button", class: "earlier", text: "Earlier messages", on: async () => {
    const more = await attempt(() => json(place(state.name) + "?before=" + first));
    if (!more) return;
    button.replaceWith(...more.messages.map(saved));
    earlierButton(more.first);
  } });
  $("log").prepend(button);
}

function leave() {
  if (state.following) state.following.abort();
  Object.assign(state, { name: null, turn: null, following: null });
  endEdit();
  busy(false);
}

function fresh() {
  leave();
  clearLog();
  $("title").textContent = document.title = "gptoss-mlx";
  $("own-instructions").textContent = "";
  $("facts").textContent = "";
  history.replaceState(null, "", location.pathname);
  mark();
  $("text").focus();
}

function mark() {
  if (state.name !== null) history.replaceState(null, "", "#c=" + encodeURIComponent(state.name));
  for (const item of $("list").children) {
    const current = item.dataset.name === state.name;
    item.classList.toggle("current", current);
    if (current) item.firstChild.setAttribute("aria-current", "page");
    else item.firstChild.removeAttribute("aria-current");
  }
}

async function list() {
  const listed = await attempt(() => json("conversations"));
  if (!listed) return;
  $("list").replaceChildren(...listed.map(({ name, running }) => make("li", { data: { name } },
    make("button", { type: "button", text: name + (running ? " …" : ""), on: () => { closeMenu(); open(name); } }),
    make("button", { type: "button", text: "⋯", "aria-label": "More for " + name, on: event => more(event, name) }))));
  mark();
}

function more(event, name) {
  const item = event.target.parentNode;
  const shown = item.nextSibling && item.nextSibling.classList.contains("choices");
  document.querySelectorAll("li.choices").forEach(each => each.remove());
  if (shown) return;
  const button = (text, on) => make("button", { type: "button", text, on });
  item.after(make("li", { class: "choices", data: { name: "" } },
    button("Rename", () => attempt(async () => {
      const chosen = prompt("New name", name);
      if (!chosen) return;
      await post(place(name) + "/rename", { name: chosen });
      if (state.name === name) { state.name = chosen; $("title").textContent = chosen; }
      await list();
    })),
    button("Delete", () => attempt(async () => {
      if (!confirm("Delete “" + name + "”?")) return;
      await json(place(name), { method: "DELETE" });
      if (state.name === name) fresh();
      await list();
    })),
    button("Export", () => attempt(async () => {
      const reply = await ask(place(name) + "/export");
      const url = URL.createObjectURL(await reply.blob());
      make("a", { href: url, download: name + ".md" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    }))));
}

// A turn

function busy(on) {
  $("stop").hidden = !on;
  $("send").hidden = on;
}

async function send(action, more = {}) {
  if (state.turn) return false;
  const settings = chosenSettings();
  if (!settings) return false;
  busy(true);
  const begun = await attempt(() => post("turns", { action, name: state.name, settings, ...more }));
  if (!begun) { busy(false); return false; }
  $("hello").hidden = true;
  document.querySelectorAll(".last").forEach(each => each.remove());
  return begun.turn;
}

async function submit() {
  const text = $("text").value, files = state.files, keep = state.keep;
  if (!text.trim() && !files.length) return;
  const turn = await send("ask", { text, files, ...(keep === null ? {} : { keep }) });
  if (!turn) return;
  if (keep !== null) removeFrom([...document.querySelectorAll(".asked")].find(each => each.dataset.at === String(keep)));
  endEdit();
  $("text").value = "";
  state.files = [];
  showFiles();
  grow();
  $("log").append(question([text, ...files.map(file => "File " + file.name)].filter(Boolean).join("\n\n")));
  $("log").scrollTop = $("log").scrollHeight;
  follow(turn);
}

function removeFrom(element) {
  while (element) {
    const next = element.nextSibling;
    element.remove();
    element = next;
  }
}

async function follow(turn) {
  const article = make("div", { class: "turn" });
  $("log").append(article);
  state.turn = turn;
  busy(true);
  announce("Waiting for the answer");
  const abort = state.following = new AbortController();
  const pieces = new Map();
  let since = 0, pause = RETRY_MS, ended = false;
  const lost = make("p", { class: "note", text: "The connection is lost; trying again …" });
  while (!ended && !abort.signal.aborted) {
    try {
      const reply = await ask("turns/" + turn, { headers: { "Last-Event-ID": String(since) }, signal: abort.signal });
      lost.remove();
      pause = RETRY_MS;
      for await (const [id, changed] of frames(reply.body)) {
        since = id;
        keepingEnd(() => changed.forEach(piece => show(piece, pieces, article)));
        if (changed.some(piece => piece.kind === "end")) ended = true;
      }
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error.status === 404) break;
      if (error.status === 401) return;
    }
    if (!ended) {
      keepingEnd(() => article.after(lost));
      await new Promise(resolve => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, MAX_RETRY_MS);
    }
  }
  lost.remove();
  if (abort.signal.aborted) return;
  state.turn = state.following = null;
  busy(false);
  const name = state.name;
  if (!ended && name !== null) { await open(name); return; }
  await list();
  if (name !== null && state.name === name) await settle(name);
}

// The events of a stream, as pairs of an id and its data.
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n");
      const id = lines.find(line => line.startsWith("id: ")), data = lines.find(line => line.startsWith("data: "));
      if (id && data) yield [Number(id.slice(4)), JSON.parse(data.slice(6))];
    }
  }
}

function show(piece, pieces, article) {
  const write = PIECES[piece.kind];
  if (!write) return;
  const before = pieces.get(piece.at);
  const element = write(piece, before, pieces, article);
  if (element && !before) pieces.set(piece.at, element);
}

function added(article, element) { article.append(element); return element; }

const PIECES = {
  prefill({ done, total }, before, pieces, article) {
    const bar = before || added(article, make("p", { class: "note" }, "Reading ", make("progress", { "aria-label": "Reading the prompt" })));
    bar.lastChild.max = total || 1;
    bar.lastChild.value = done;
    bar.hidden = done >= total;
    return bar;
  },
  name({ name }) {
    if (state.name === name) return;
    state.name = name;
    $("title").textContent = name;
    list();
  },
  reasoning({ tokens, seconds }, before, pieces, article) {
    const details = before || added(article, folded("reasoning", "Thinking …", make("div")));
    if (!before) announce("Thinking");
    if (seconds !== undefined) details.firstChild.textContent = `Thought for ${seconds} s, ${tokens} tokens`;
    return details;
  },
  answer(piece, before, pieces, article) { return before || added(article, make("div", { class: "answer" })); },
  preamble(piece, before, pieces, article) { return before || added(article, make("div", { class: "answer" })); },
  block({ section, html }, before, pieces) {
    const parent = pieces.get(section), body = parent.tagName === "DETAILS" ? parent.lastChild : parent;
    const block = before || added(body, make("div", { class: "block" }));
    setHtml(block, html);
    return block;
  },
  call(piece, before, pieces, article) {
    const box = before || added(article, make("div", { class: "call" }));
    const parts = callParts(piece);
    if (piece.state === "asking") {
      const answer = (text, value) => make("button", { type: "button", text, on: () => attempt(() => post("turns/" + state.turn + "/approve", { answer: value })) });
      parts.push(make("div", { class: "actions", role: "group", "aria-label": "May " + piece.name + " run?" },
        answer("Allow", "yes"), answer("Always allow " + piece.name, "always"), answer("Refuse", "no")));
      announce("The model asks to run " + piece.name);
    } else if (piece.state === "running") parts.push(make("p", { class: "note", text: "Running …" }));
    else parts.push(folded("result", "Result", make("pre", { text: piece.output, tabindex: "0" })));
    box.classList.toggle("asking", piece.state === "asking");
    box.replaceChildren(...parts);
    return box;
  },
  note({ text, error }, before, pieces, article) {
    if (before) return before;
    announce(text);
    return added(article, make("p", { class: error ? "note error" : "note", text }));
  },
  stats(stats, before, pieces, article) {
    const share = Math.round(100 * stats.used / stats.context);
    $("facts").textContent = `${stats.tokens_per_second} tokens/s · first token after ${stats.first_token_seconds} s · ` +
      `${stats.prefilled} read, ${stats.decoded} written · context ${stats.used} of ${stats.context} (${share} %)`;
    const answer = article.querySelector(".answer:last-of-type");
    announce(answer ? answer.textContent : "The answer is complete");
  },
};

// After a turn: which place each question has, and what can be done next.
async function settle(name) {
  const opened = await attempt(() => json(place(name)));
  if (!opened || state.name !== name || state.turn) return;
  const places = opened.messages.filter(message => message.kind === "question").map(message => message.at).reverse();
  [...document.querySelectorAll(".asked")].reverse().forEach((each, index) => { if (index in places) each.dataset.at = places[index]; });
  lastActions(opened.unfinished);
}

function lastActions(unfinished) {
  document.querySelectorAll(".last").forEach(each => each.remove());
  if (!document.querySelector(".asked")) return;
  const button = (text, on) => make("button", { type: "button", text, on });
  const row = make("div", { class: "actions last" });
  if (unfinished) row.append(button("Continue", async () => { const turn = await send("resume"); if (turn) { await follow(turn); if (state.name && !state.turn) open(state.name); } }));
  row.append(
    button("Copy", event => copy([...document.querySelectorAll(".answer")].pop()?.innerText || "", event.target)),
    button("Regenerate", async () => {
      const turn = await send("retry");
      if (!turn) return;
      const asked = [...document.querySelectorAll(".asked")].pop();
      removeFrom(asked.nextSibling);
      follow(turn);
    }),
    button("Undo", () => attempt(async () => {
      const name = state.name, { text } = await post(place(name) + "/undo");
      await list();
      if ([...$("list").children].some(item => item.dataset.name === name)) await open(name);
      else fresh();
      $("text").value = text;
      grow();
      $("text").focus();
    })));
  keepingEnd(() => $("log").append(row));
}

function beginEdit(asked) {
  if (state.turn || asked.dataset.at === undefined) return;
  state.keep = Number(asked.dataset.at);
  $("editing").hidden = false;
  $("text").value = asked.firstChild.textContent;
  grow();
  $("text").focus();
}
function endEdit() {
  state.keep = null;
  $("editing").hidden = true;
}

async function stop() {
  if (state.turn) await attempt(() => post("turns/" + state.turn + "/stop"));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // pages without TLS have no clipboard
    const area = make("textarea", { class: "hidden-text", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { button.textContent = label; }, 1500);
}

// Files

async function attach(files) {
  for (const file of files) {
    if (file.size > MAX_FILE) { note(file.name + " is larger than " + MAX_FILE / 1e6 + " MB and was not attached."); continue; }
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new Error("binary");
      state.files.push({ name: file.name, text });
    } catch {
      note(file.name + " is not text in UTF-8 and was not attached.");
    }
  }
  showFiles();
}
function showFiles() {
  $("files").replaceChildren(...state.files.map((file, index) => make("li", {}, file.name,
    make("button", { type: "button", text: "×", "aria-label": "Remove " + file.name, on: () => { state.files.splice(index, 1); showFiles(); } }))));
}

// Settings

function chosenSettings() {
  const settings = {};
  for (const id of SETTINGS) {
    const value = $(id).value.trim();
    if (value) settings[id] = $(id).type === "number" ? Number(value) : value;
  }
  try {
    if (settings.schema) settings.schema = JSON.parse(settings.schema);
    $("schema-error").textContent = "";
  } catch (error) {
    $("schema-error").textContent = "The schema is not JSON: " + error.message;
    $("settings").showModal();
    return null;
  }
  return settings;
}

async function showAbout() {
  const about = state.about = await attempt(() => json("about"));
  if (!about) return;
  $("reasoning_effort").replaceChildren(make("option", { value: "", text: "as the conversation has it" }),
    ...about.efforts.map(effort => make("option", { value: effort, text: effort })));
  $("temperature").placeholder = about.sampling.temperature;
  $("top_p").placeholder = about.sampling.top_p;
  $("plan").caption.textContent = about.total ? `${about.total} of ${about.memory}` : "no plan";
  $("plan").tBodies[0].replaceChildren(...about.plan.map(row => make("tr", {}, ...row.map(text => make("td", { text })))));
  $("version").textContent = `${about.model}, context ${about.context} tokens; gptoss-mlx ${about.version}`;
  for (const id of SETTINGS) $(id).value = remembered(id) || "";
}

// Keys, buttons, start

function grow() {
  const rows = Math.min($("text").value.split("\n").length, 12);
  $("text").rows = rows;
}
function closeMenu() {
  $("side").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
}

$("composer").addEventListener("submit", event => { event.preventDefault(); submit(); });
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
$("text").addEventListener("paste", event => {
  if (event.clipboardData.files.length) { event.preventDefault(); attach(event.clipboardData.files); }
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if ($("side").classList.contains("open")) { closeMenu(); $("menu").focus(); } else if (state.turn) stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", fresh);
$("cancel-edit").addEventListener("click", () => { endEdit(); $("text").value = ""; });
$("menu").addEventListener("click", () => {
  const isOpen = $("side").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", String(isOpen));
});
$("attach").addEventListener("click", () => $("picker").click());
$("picker").addEventListener("change", () => { attach([...$("picker").files]); $("picker").value = ""; });
document.addEventListener("dragover", event => { event.preventDefault(); $("composer").classList.add("over"); });
document.addEventListener("dragleave", () => $("composer").classList.remove("over"));
document.addEventListener("drop", event => {
  event.preventDefault();
  $("composer").classList.remove("over");
  attach([...event.dataTransfer.files]);
});
$("log").addEventListener("click", event => {
  if (event.target.classList.contains("copy")) copy(event.target.closest(".code").querySelector("pre").textContent, event.target);
});
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("close", () => { for (const id of SETTINGS) remember(id, $(id).value); });
$("theme").addEventListener("click", () => {
  const root = document.documentElement.dataset, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.theme = (root.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  remember("theme", root.theme);
});
window.addEventListener("hashchange", start);

async function start() {
  takeKey();
  await showAbout();
  if (!state.about) return;
  await list();
  const chosen = /^#c=(.+)$/.exec(location.hash);
  if (chosen && decodeURIComponent(chosen[1]) !== state.name) await open(decodeURIComponent(chosen[1]));
}

if (remembered("theme")) document.documentElement.dataset.theme = remembered("theme");
start();
