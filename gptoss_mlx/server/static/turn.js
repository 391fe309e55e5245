// A turn: begun, followed over lost connections, shown piece by piece, and what can be done after it.
"use strict";

function busy(on) {
  $("stop").hidden = !on;
  $("send").hidden = on;
}

async function send(action, more = {}) {
  if (state.turn) return false;
  const settings = chosenSettings();
  if (!settings) return false;
  busy(true);
  const last = [...document.querySelectorAll(".last")];
  last.forEach(each => { each.hidden = true; });
  const begun = await attempt(() => post("turns", { action, name: state.name, settings, ...more }));
  if (!begun) {
    busy(false);
    last.forEach(each => { each.hidden = false; });
    return false;
  }
  $("hello").hidden = true;
  last.forEach(each => each.remove());
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
