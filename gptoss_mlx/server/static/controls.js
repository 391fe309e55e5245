// Files, settings, keys and buttons; begins when all else is loaded.
"use strict";

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
