"use strict";
// The review by keyboard: y, n and ? vote, space plays, u takes the last vote back.
const at = (id) => document.getElementById(id);
const player = at("player");
let shown = null;
let busy = false;

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options || {});
  const found = await response.json();
  if (!response.ok) throw new Error(found.error || response.statusText);
  return found;
}

function line(name, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  row.append(term, text);
  return row;
}

function show(found, play) {
  const counts = found.progress;
  shown = found.clip;
  at("done").value = counts.reviewed;
  at("counts").textContent = `${counts.reviewed} of ${counts.total} reviewed by you, ${counts.decided} decided by all`;
  at("agreement").textContent = counts.shared
    ? `${counts.agreed} of ${counts.shared} clips that several have judged are judged alike.` : "";
  at("disagreements").replaceChildren(...counts.disagreements.map((id) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = "/audit?clip=" + encodeURIComponent(id);
    link.textContent = id;
    item.append(link);
    return item;
  }));
  at("review").hidden = !shown;
  if (!shown) {
    player.removeAttribute("src");
    player.load();
    at("status").textContent = "All clips are reviewed.";
    return;
  }
  at("clip").textContent = shown.id;
  const facts = [line("labels", shown.labels.join(", ") || "unlabeled"), line("split", shown.split)];
  if (shown.mismatch !== null) facts.push(line("mismatch", shown.mismatch.toFixed(3)));
  for (const teacher of shown.teachers) {
    facts.push(line(`${teacher.modality} teacher`, `${teacher.top[0].label} ${teacher.top[0].probability.toFixed(2)}`));
  }
  at("facts").replaceChildren(...facts);
  player.setAttribute("aria-label", "clip " + shown.id);
  player.poster = shown.has_video ? shown.thumbnail : "";
  player.src = shown.player;
  if (play) player.play().catch(() => {});
  if (found.next) fetch(found.next.player, { priority: "low" }).catch(() => {});
}

async function act(path, body, said) {
  if (busy) return;
  busy = true;
  try {
    show(await ask(path, body), true);
    if (shown) at("status").textContent = said;
  } catch (error) {
    at("status").textContent = "Not recorded: " + error.message;
  } finally {
    busy = false;
  }
}

function reviewer() {
  return at("by").value.trim();
}

function vote(value) {
  const words = { yes: "matched", no: "mismatched", unsure: "unsure" };
  if (shown) act("/api/votes", { clip: shown.id, vote: value, by: reviewer() }, `${shown.id}: ${words[value]}`);
}

function undo() {
  act("/api/votes/undo", { by: reviewer() }, "the last vote is taken back");
}

function play() {
  if (player.paused) player.play().catch(() => {});
  else player.pause();
}

async function start() {
  const clip = new URLSearchParams(location.search).get("clip");
  const asked = new URLSearchParams({ by: reviewer() });
  if (clip) asked.set("clip", clip);
  try {
    show(await ask("/api/review?" + asked), false);
  } catch (error) {
    at("status").textContent = error.message;
  }
}

const keys = { y: () => vote("yes"), n: () => vote("no"), "?": () => vote("unsure"), u: undo, " ": play };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.target.tagName === "INPUT") return;
  const action = keys[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});
for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => vote(button.dataset.vote));
}
at("play").addEventListener("click", play);
at("undo").addEventListener("click", undo);
try {
  at("by").value = localStorage.getItem("reviewer") || "reviewer";
} catch { /* storage may be closed */ }
at("by").addEventListener("change", () => {
  try { localStorage.setItem("reviewer", reviewer()); } catch { /* as above */ }
  start();
});
start();
