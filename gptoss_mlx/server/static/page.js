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
