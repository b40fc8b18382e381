// What all parts of the page share: its state and its controls, the workers, drawing on canvases.

const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => [...document.querySelectorAll(selector)];
const facts = JSON.parse($("#facts").textContent);
const fewMoves = matchMedia("(prefers-reduced-motion: reduce)");
const isDark = matchMedia("(prefers-color-scheme: dark)");
const nextFrame = () => new Promise(requestAnimationFrame);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const whenRead = new Promise((resolve) => addEventListener("DOMContentLoaded", resolve));

// ── State: one flat object; the names of the controls are its keys ──

const initial = {
  "learn.beta": 7, "learn.noise": 1, "learn.question": "", "learn.seed": 1,
  "morph.set": "celeba", "morph.model": "grid", "morph.method": "linear",
  "morph.a": "test:0", "morph.b": "test:16", "morph.t": 0.5, "morph.steps": 8,
  "faces.seed": 1, "faces.start": "", "faces.edits": "", "faces.sheet": 0,
  "faces.guidance": 3, "faces.temperature": 0.7, "faces.slow": 0,
  "region.kind": "temperature", "region.z_range": 2, "region.radius": 11.3,
  "region.temperature": 1, "region.seed": 1,
  "classes.name": "horse", "classes.guidance": 2, "classes.temperature": 1, "classes.seed": 1,
  "classes.input": "test:27",
};
for (const name of facts.attributes) initial[`wish.${name}`] = "open";
const state = { ...initial };

// What else is set when one of these is.
const CONSEQUENCES = {
  "morph.set": { "morph.a": "test:0", "morph.b": "test:16" },
  "faces.seed": { "faces.start": "", "faces.edits": "" },
  "faces.start": { "faces.edits": "" },
  "region.z_range": { "region.kind": "z_range" },
  "region.radius": { "region.kind": "radius" },
  "region.temperature": { "region.kind": "temperature" },
};
// What a value may be that no control offers.
const TOKENS = {
  "morph.a": /^test:\d\d?$/, "morph.b": /^test:\d\d?$/, "classes.input": /^test:\d\d?$/,
  "faces.start": /^test:\d\d?$/, "faces.edits": /^([0-9a-f]{1,64}\.\d{1,9}(,|$)){0,20}$/,
};

const PART_OF = { learn: "learn", morph: "morph", faces: "faces", wish: "faces", region: "faces",
  classes: "classes" };
let lastPart = ""; // in which something was changed: a link leads there

// A part of the page: the keys that it draws from, and the function that does it. It is given the
// keys that changed.
const parts = [];
const definePart = (prefixes, render) => parts.push({ prefixes, render });

function render(changed = Object.keys(state)) {
  showValues();
  for (const { prefixes, render: draw } of parts) {
    const own = changed.filter((key) => prefixes.includes(key.split(".")[0]));
    if (own.length) draw(own);
  }
}

function change(values) {
  const all = {};
  for (const [name, value] of Object.entries(values)) {
    const follows = CONSEQUENCES[name];
    Object.assign(all, typeof follows === "function" ? follows(value) : follows);
  }
  Object.assign(all, values);
  const changed = Object.keys(all).filter((key) => state[key] !== all[key]);
  Object.assign(state, all);
  if (changed.length) lastPart = PART_OF[changed[0].split(".")[0]];
  return changed;
}

function set(values) {
  const changed = change(values);
  fillControls();
  render(changed);
  commit();
}

// ── The address holds the state; "Undo" goes back ──

const snapshot = () => ({ values: { ...state }, part: lastPart });
const past = []; // snapshots before each change
let settled = snapshot(); // after the last one

// A visitor's photo is no part of a link, and so neither is what was redrawn of it.
function fragment() {
  const ofPhoto = state["faces.start"].startsWith("own:");
  const changed = Object.entries(state).filter(([key, value]) => {
    if (value === initial[key] || (ofPhoto && key === "faces.edits")) return false;
    return !String(value).startsWith("own:");
  });
  if (changed.length && lastPart) changed.push(["part", lastPart]);
  return new URLSearchParams(changed).toString();
}

// After a change is complete: remember the state before it, and put the new one into the address.
function commit() {
  if (Object.keys(state).every((key) => state[key] === settled.values[key])) return;
  past.push(settled);
  settle();
}

function settle() {
  settled = snapshot();
  $("#undo").disabled = past.length === 0;
  history.replaceState(null, "", `#${fragment()}`);
}

function restore({ values, part }, isFirst = false) {
  const before = { ...state };
  Object.assign(state, values);
  lastPart = part;
  fillControls();
  render(Object.keys(state).filter((key) => isFirst || state[key] !== before[key]));
  openDetails();
}

function openLink(text, isFirst = false) {
  const values = {};
  const given = new URLSearchParams(text);
  for (const [key, usual] of Object.entries(initial)) {
    const value = given.get(key) ?? usual;
    const choices = $$(`input[type="radio"][name="${key}"]`).map((input) => input.value);
    if (typeof usual === "number") values[key] = Math.min(1e9, Math.max(0, Number(value) || 0));
    else values[key] = TOKENS[key]?.test(value) || choices.includes(value) ? value : usual;
  }
  const part = Object.values(PART_OF).includes(given.get("part")) ? given.get("part") : "";
  restore({ values, part }, isFirst);
  if (!isFirst) return commit();
  settled = snapshot();
  if (part) $(`#part-${part}`).scrollIntoView();
}

// What was set inside of a closed <details> shall be seen.
function openDetails() {
  for (const details of $$("details")) {
    const keys = [...details.querySelectorAll("[name]")].map(({ name }) => name);
    if (keys.some((key) => state[key] !== initial[key])) details.open = true;
  }
}

$("#undo").onclick = () => {
  restore(past.pop());
  settle();
};
$("#reset").onclick = () => {
  commit();
  restore({ values: initial, part: "" });
  commit();
};
$("#link").onclick = async () => {
  commit();
  try {
    await navigator.clipboard.writeText(location.href);
    const where = location.protocol === "file:" ? ", on this computer" : "";
    say(`Link copied. It restores what is set here${where}.`);
  } catch {
    say("Copy the address from the address bar: it restores what is set here.");
  }
};
// A link of the page to one of its parts takes the place of the state in the address: put it back.
addEventListener("hashchange", () => {
  if (location.hash.includes("=")) openLink(location.hash.slice(1));
  else if (fragment()) history.replaceState(null, "", `#${fragment()}`);
});

// On GitHub Pages only docs/ is published: notebooks and texts are in the repository it belongs to.
function linkTo(path) {
  if (!location.host.endsWith(".github.io")) return `../${path}`;
  const repository = `${location.host.split(".")[0]}/${location.pathname.split("/")[1]}`;
  return `https://github.com/${repository}/blob/HEAD/${path}`;
}

let silence; // timer that ends what is said
function say(text, stays = false) {
  clearTimeout(silence);
  $("#status").textContent = text;
  if (!stays) silence = setTimeout(() => ($("#status").textContent = ""), 4000);
}
const speak = (text) => ($("#spoken").textContent = text); // to those who do not see the page

// A browser too old, or too little memory
addEventListener("unhandledrejection", ({ reason }) => {
  say(`Something failed (${reason}). Reload the page, or try another browser.`, true);
});

// ── Controls ──

function fillControls() {
  fillStrips();
  for (const input of $$("input[name]")) {
    const value = state[input.name];
    if (input.type === "radio") {
      input.checked = input.value === value;
      if (input.checked) reveal(input.parentElement);
    } else if (input.type === "checkbox") {
      input.checked = Boolean(value);
    } else {
      input.value = value;
      state[input.name] = Number(input.value); // within the slider's limits
    }
  }
}

// Scroll a strip, not the page, until this picture is seen.
function reveal({ offsetLeft: left, offsetWidth: width, parentElement: strip }) {
  if (!strip.matches(".strip")) return;
  const { scrollLeft, clientWidth } = strip;
  const seen = left >= scrollLeft && left + width <= scrollLeft + clientWidth;
  if (!seen) strip.scrollLeft = left - clientWidth / 2;
}

// Beside each slider its value. A part may have words of its own for the values of a slider.
const valueTexts = {};
function showValues() {
  for (const input of $$('input[type="range"]')) {
    const value = Number(input.value);
    const digits = input.step === "any" ? 0 : Math.max(0, input.step.length - 2); // of 0.01: two
    const text = valueTexts[input.name]?.(value) ?? value.toFixed(digits);
    input.ariaValueText = text;
    if (input.nextElementSibling?.matches("output")) input.nextElementSibling.textContent = text;
  }
}

document.addEventListener("input", ({ target: { name, type, value, checked } }) => {
  if (!name) return;
  const read = { range: () => Number(value), checkbox: () => Number(checked) };
  const changed = change({ [name]: (read[type] ?? (() => value))() });
  if (name in CONSEQUENCES) fillControls();
  render(changed);
});
// A finger that begins to scroll on a slider has not chosen its value.
document.addEventListener("pointerdown", ({ target: { type, name }, pointerType }) => {
  if (type !== "range" || !name || pointerType === "mouse") return;
  const before = { ...state };
  const keys = [name, ...Object.keys(CONSEQUENCES[name] ?? {})];
  const forget = new AbortController();
  const { signal } = forget;
  const restoreSlider = () => set(Object.fromEntries(keys.map((key) => [key, before[key]])));
  addEventListener("pointercancel", restoreSlider, { signal });
  for (const end of ["pointerup", "pointercancel"]) {
    addEventListener(end, () => forget.abort(), { signal });
  }
});
document.addEventListener("change", ({ target }) => target.name && commit());

// ── Workers ──

const workerUrl = URL.createObjectURL(
  new Blob([$("#worker").textContent], { type: "text/javascript" }),
);
const wasm = Uint8Array.from(atob($("#engine").textContent), (letter) => letter.charCodeAt(0));
const allowsWasm = !new URLSearchParams(location.search).has("javascript"); // to compare both

// `ask` sends a command and gives its answer; `busy` counts those without one.
function makeWorker(name, floats) {
  const worker = new Worker(workerUrl, { name });
  const waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  };
  worker.onerror = ({ message }) => say(`This browser cannot run the page: ${message}`, true);
  function ask(command, payload, transfer = []) {
    last += 1;
    worker.postMessage({ id: last, command, payload }, transfer);
    return new Promise((resolve, reject) => waiting.set(last, { resolve, reject }));
  }
  const started = ask("start", { floats, wasm: allowsWasm ? wasm : null });
  return { ask, started, busy: () => waiting.size };
}

const SCRATCH = 1e6; // numbers: twice what any network needs while it runs
const sizes = Object.values(facts.networks).map(({ weights, numbers }) => weights + numbers);
const learner = makeWorker("learner", 4e6);
const models = makeWorker("models", sum(sizes) + SCRATCH);

async function inflate(name) {
  const packed = await fetch(`data:;base64,${$(`[id="data-${name}"]`).textContent}`);
  const stream = packed.body.pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const loaded = {}; // network → promise that the worker has it
function load(name) {
  loaded[name] ??= whenRead.then(() => inflate(name)).then((buffer) => {
    return models.ask("load", { name, description: facts.networks[name], buffer }, [buffer]);
  });
  return loaded[name];
}

const decode = (name, z) => load(`${name}_decoder`).then(() => {
  return models.ask("decode", { network: `${name}_decoder`, z });
});
const encode = (name, image) => load(`${name}_encoder`).then(() => {
  return models.ask("encode", { network: `${name}_encoder`, image });
});

// Of the jobs of a slot one runs and the newest one waits; those between are left out. A job is
// given a function that says whether a newer one waits. The same function, asked for again, is a
// new job.
const slots = new Map();
async function newest(slot, run) {
  const job = { run };
  if (slots.has(slot)) return void slots.set(slot, job);
  slots.set(slot, job);
  try {
    for (let now = job; now; ) {
      const own = now;
      await own.run(() => slots.get(slot) !== own);
      const next = slots.get(slot);
      now = next === own ? null : next;
    }
  } finally {
    slots.delete(slot);
  }
}

// Nothing is being computed but the training.
const isQuiet = () => !slots.size && !models.busy();

// The first time that a part comes near the window, but after the first picture of the page
let tellOfFirstPicture;
const firstPicture = new Promise((resolve) => (tellOfFirstPicture = resolve));
async function whenNear(element, act) {
  await firstPicture;
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    act();
  }, { rootMargin: "300px" });
  observer.observe(element);
}
