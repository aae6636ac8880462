"use strict";
// One page over the server's own API: upload, watch once, ask often. Text reaches the page as text nodes alone.

const THUMBS = 48; // frames of the strip at most; a longer video's stand for their neighbours
const el = (id) => document.getElementById(id);
let video = null; // what /v1/videos says of the one that is asked about
let history = []; // questions and answers about it
let running = null; // what a click on Stop or Cancel ends
let drawing = 0; // number of the strip that is being drawn

const clock = (s) => {
  const whole = Math.floor(s), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
  const two = (n) => String(n).padStart(2, "0");
  return (h ? `${h}:${two(m)}` : String(m)) + `:${two(whole % 60)}` + (s % 1 && !h ? `.${Math.floor((s % 1) * 10)}` : "");
};

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

async function problem(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `the server answered ${reply.status}`;
  }
}

// Server-sent events as objects; comment lines are passed over.
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      const found = JSON.parse(part.slice(6));
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

// ---- a video --------------------------------------------------------------------------------------------------------

function busy(name, share) {
  el("going").hidden = name === null;
  if (name === null) return;
  el("progress-name").textContent = name;
  if (share === null) el("progress").removeAttribute("value");
  else el("progress").value = share;
}

function upload(file, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(), form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file);
    request.upload.onprogress = (e) => busy(`Uploading ${file.name}`, e.lengthComputable ? e.loaded / e.total : null);
    request.onload = () => {
      const reply = (() => { try { return JSON.parse(request.responseText); } catch { return {}; } })();
      if (request.status === 200) resolve(reply);
      else reject(new Error(reply.error?.message ?? `the server answered ${request.status}`));
    };
    request.onerror = () => reject(new Error("the upload was cut off"));
    request.onabort = () => reject(new DOMException("", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", "v1/files");
    request.send(form);
  });
}

async function watch(body, signal) {
  busy("Watching", null);
  const reply = await fetch("v1/videos", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, stream: true }), signal,
  });
  if (!reply.ok) throw new Error(await problem(reply));
  let found = null;
  for await (const event of events(reply)) {
    if (event.object === "video") found = event;
    else busy(`Watching: frame ${event.done} of ${event.total}`, event.done ? event.done / event.total : null);
  }
  if (!found) throw new Error("the server ended before the video did");
  return found;
}

async function take(file) {
  running?.abort();
  running = new AbortController();
  const mine = running;
  el("status").textContent = "";
  ready(false);
  try {
    const stored = await upload(file, mine.signal);
    show(await watch({ file_id: stored.id }, mine.signal), URL.createObjectURL(file), file.name);
    await earlier();
  } catch (error) {
    const reason = error.message.replace(/^file_id:/, `${file.name}:`);
    el("status").textContent = error.name === "AbortError" ? "Stopped." : `It did not work: ${reason}`;
    if (video) ready(true);
  }
  busy(null);
  if (running === mine) running = null;
}

function show(found, source, name) {
  video = found;
  history = [];
  el("log").replaceChildren();
  const player = el("player");
  if (player.src.startsWith("blob:")) URL.revokeObjectURL(player.src);
  el("unplayable").hidden = true;
  player.hidden = !source || found.kind === "image";
  if (source) player.src = source;
  const size = found.state_bytes < 1e6 ? `${Math.ceil(found.state_bytes / 1e3)} kB` : `${(found.state_bytes / 1e6).toFixed(1)} MB`;
  el("status").textContent = `${name}: ${clock(found.duration)} long, ${found.frames} frames watched, ` +
    `from ${clock(found.first_seconds)} to ${clock(found.last_seconds)}; its state takes ${size}.`;
  strip(null);
  ready(true);
  el("question").focus();
}

function ready(yes) {
  el("question").disabled = el("send").disabled = !yes;
}

async function earlier() {
  const reply = await fetch("v1/videos");
  if (!reply.ok) return;
  const found = (await reply.json()).data;
  const names = new Map((await (await fetch("v1/files")).json()).data.map((file) => [`file:${file.id}`, file.filename]));
  el("earlier-row").hidden = !found.length;
  el("earlier").replaceChildren(make("option", "choose…"));
  el("earlier").firstChild.value = "";
  for (const one of found.reverse()) {
    const name = names.get(one.source) ?? one.source.replace(/^(file|path):/, "");
    const option = make("option", `${name} (${clock(one.duration)}, ${one.frames} frames)`);
    option.value = one.id;
    const there = !one.source.startsWith("file:") || names.has(one.source);
    option.chosen = () => show(one, there ? `v1/videos/${one.id}/content` : null, name);
    el("earlier").append(option);
  }
}

// ---- the strip ------------------------------------------------------------------------------------------------------

// survived: the share of each frame's tokens that went through the last block; null: not known yet.
function strip(survived) {
  const times = video.frame_times, list = el("strip"), number = ++drawing;
  el("strip-box").hidden = !times.length || video.kind === "image";
  const step = Math.max(1, Math.ceil(times.length / THUMBS));
  const bins = [];
  for (let i = 0; i < times.length; i += step) {
    const shares = survived?.slice(i, i + step);
    const best = shares ? shares.indexOf(Math.max(...shares)) : 0;
    bins.push({ time: times[i + best], share: shares ? Math.max(...shares) : null });
  }
  const kept = survived ? survived.filter((share) => share > 0).length : 0;
  el("strip-note").textContent = survived
    ? `${kept} of ${times.length} frames left something for the last answer; bars show how much.`
    : "Ask, and it shows which frames the answer came from.";
  const old = [...list.children];
  list.replaceChildren(...bins.map(({ time, share }, i) => {
    const item = make("li"), button = make("button"), canvas = old[i]?.time === time ? old[i].querySelector("canvas") : make("canvas");
    canvas.setAttribute("aria-hidden", "true");
    item.time = time;
    button.type = "button";
    button.append(canvas);
    if (share !== null) {
      const bar = make("span", undefined, "share"), inner = make("span");
      inner.style.setProperty("width", `${100 * share}%`);
      bar.append(inner);
      button.append(bar);
      item.className = share > 0 ? "kept" : "lost";
    }
    button.append(make("span", clock(time)));
    const told = share === null ? "" : share > 0 ? `, ${Math.round(100 * share)} percent kept` : ", nothing kept";
    button.setAttribute("aria-label", `Frame at ${clock(time)}${told}`);
    button.onclick = () => seek(time);
    item.append(button);
    return item;
  }));
  draw([...list.children].filter((item) => !item.querySelector("canvas").drawn), number);
}

// Pictures come from the browser's own decoder, one seek after the other.
async function draw(items, number) {
  const player = el("player");
  if (player.hidden || !items.length) return;
  const apart = document.createElement("video");
  apart.muted = true;
  apart.preload = "auto";
  apart.src = player.src;
  const once = (name) => new Promise((resolve, reject) => {
    apart.addEventListener(name, resolve, { once: true });
    apart.addEventListener("error", reject, { once: true });
  });
  try {
    await once("loadeddata");
    for (const item of items) {
      if (number !== drawing) break;
      const there = once("seeked");
      apart.currentTime = Math.min(item.time + 1e-3, Math.max(apart.duration - 1e-3, 0));
      await there;
      const canvas = item.querySelector("canvas");
      canvas.width = 128;
      canvas.height = Math.round((128 * apart.videoHeight) / apart.videoWidth);
      canvas.getContext("2d").drawImage(apart, 0, 0, canvas.width, canvas.height);
      canvas.drawn = true;
    }
  } catch { /* a browser without this codec shows times alone */ }
  apart.removeAttribute("src");
  apart.load();
}

function seek(seconds) {
  const player = el("player");
  if (player.hidden) return;
  player.currentTime = seconds;
  el("status").textContent = `At ${clock(seconds)}.`;
}

// ---- questions ------------------------------------------------------------------------------------------------------

// "from 2.0 to 5.0 seconds", "3.5s", "1:02": each time becomes a button that moves the player.
const TIMES = /(\d+(?:\.\d+)?)(?=(?:\s*(?:to|-|–|and)\s*\d+(?:\.\d+)?)?\s*(?:s|sec|secs|seconds?)\b)|\b(?:(\d{1,2}):)?(\d{1,2}):(\d{2}(?:\.\d+)?)\b/g;

function write(node, text) {
  node.replaceChildren();
  let done = 0;
  for (const found of text.matchAll(TIMES)) {
    const [whole, plain, hours, minutes, rest] = found;
    const seconds = plain !== undefined ? Number(plain) : Number(hours ?? 0) * 3600 + Number(minutes) * 60 + Number(rest);
    if (!video || seconds > video.duration + 1) continue;
    node.append(text.slice(done, found.index));
    const button = make("button", whole, "time");
    button.type = "button";
    button.setAttribute("aria-label", `Go to ${clock(seconds)}`);
    button.onclick = () => seek(seconds);
    node.append(button);
    done = found.index + whole.length;
  }
  node.append(text.slice(done));
}

async function ask(question) {
  running?.abort();
  running = new AbortController();
  const mine = running, entry = make("article"), answer = make("p", "", "answer"), note = make("p", "", "quiet");
  entry.append(make("h3", question), answer, note);
  el("log").append(entry);
  answer.setAttribute("aria-busy", "true");
  el("stop").disabled = false;
  ready(false);
  const part = { type: "video_url", video_url: { url: video.id } };
  const before = el("follow").checked ? history : [];
  const messages = [...before.map(({ role, content }) => ({ role, content })), { role: "user", content: question }];
  messages[0] = { role: "user", content: [part, { type: "text", text: messages[0].content }] };
  let text = "", facts = null;
  try {
    const reply = await fetch("v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, signal: mine.signal,
      body: JSON.stringify({ messages, stream: true, stream_options: { include_usage: true } }),
    });
    if (!reply.ok) throw new Error(await problem(reply));
    for await (const event of events(reply)) {
      text += event.choices[0]?.delta.content ?? "";
      answer.textContent = text;
      if (event.usage && event.timeviper) facts = event;
    }
    history = [...before, { role: "user", content: question }, { role: "assistant", content: text }];
  } catch (error) {
    if (error.name !== "AbortError") {
      text = `It did not work: ${error.message}`;
      answer.classList.add("bad");
    } else note.textContent = "Stopped.";
  }
  write(answer, text || (facts ? "(no words)" : ""));
  answer.removeAttribute("aria-busy");
  if (facts) {
    const { frames, tokens, survived } = facts.timeviper, left = Object.values(tokens.kept).at(-1) ?? tokens.vision;
    const cached = facts.usage.prompt_tokens_details.cached_tokens;
    note.textContent = `${frames} frames: ${tokens.vision} tokens, of which ${left} were left at the end; ` +
      (cached ? `${cached} tokens came from the kept state` : "the video was read for this question") +
      `; first word after ${Math.round(facts.metrics.time_to_first_token_ms)} ms.`;
    strip(survived);
  }
  el("stop").disabled = true;
  ready(true);
  el("question").focus();
  if (running === mine) running = null;
}

// ---- what people do -------------------------------------------------------------------------------------------------

el("file").onchange = () => el("file").files[0] && take(el("file").files[0]);
el("earlier").onchange = () => el("earlier").selectedOptions[0]?.chosen?.();
el("cancel").onclick = el("stop").onclick = () => running?.abort();
el("player").onerror = () => {
  el("unplayable").hidden = !el("player").getAttribute("src");
  el("player").hidden = true;
};
el("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = el("question").value.trim();
  if (!question || !video || el("send").disabled) return;
  el("question").value = "";
  ask(question);
};
el("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    el("ask").requestSubmit();
  }
};
for (const name of ["dragover", "dragleave", "drop"]) {
  el("drop").addEventListener(name, (event) => {
    event.preventDefault();
    el("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}
(async () => {
  const reply = await fetch("v1/models");
  if (reply.ok) el("model").textContent = (await reply.json()).data[0].id;
  await earlier();
})();
