"use strict";
// An upload with its progress; the file is played from the browser's own copy, the server keeps none.
const form = document.getElementById("upload");
const part = (id) => document.getElementById(id);
let shownFile = null;

function say(text) {
  part("status").textContent = text;
}

function send(data) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", form.dataset.api);
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) part("progress").value = event.loaded / event.total;
    };
    request.onload = () => {
      let found = {};
      try { found = JSON.parse(request.responseText); } catch { /* no answer of ours */ }
      if (request.status === 202) done(found);
      else failed(new Error(found.error || `error ${request.status}`));
    };
    request.onerror = () => failed(new Error("the server did not answer"));
    request.send(data);
  });
}

async function finished(job) {
  for (;;) {
    const response = await fetch(`${form.dataset.api}/${job.id}`);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    if (found.state === "failed") throw new Error(found.error);
    if (found.state === "done") return;
    say(found.state === "waiting" ? "waiting for its turn" : `decoding: ${found.windows} windows so far`);
    await new Promise((done) => setTimeout(done, 300));
  }
}

async function submit(event) {
  event.preventDefault();
  const file = form.elements.file ? form.elements.file.files[0] : null;
  if (!file) return;
  part("result").replaceChildren();
  if (file.size > Number(form.dataset.limit)) {
    say("the file is larger than the server accepts");
    return;
  }
  const button = form.querySelector("button");
  button.disabled = true;
  part("progress").hidden = false;
  say("uploading");
  try {
    const job = await send(new FormData(form));
    part("progress").hidden = true;
    await finished(job);
    const response = await fetch(`${form.dataset.result}${job.id}?part=result`);
    const text = new DOMParser().parseFromString(await response.text(), "text/html");
    part("result").replaceChildren(...text.body.childNodes);
    if (part("player")) {
      if (shownFile) URL.revokeObjectURL(shownFile);
      shownFile = URL.createObjectURL(file);
      part("player").hidden = false;
      part("player").src = shownFile;
      connectTimelines(part("player"));
    }
    say("done");
  } catch (error) {
    say(error.message);
  } finally {
    part("progress").hidden = true;
    button.disabled = false;
  }
}

if (form) form.addEventListener("submit", submit);
