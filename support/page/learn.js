// Part 1: a VAE learns garments in a worker, and one sees its codes and what it decodes.

const BETAS = [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50,
  70, 100]; // 0: off
const betaIndex = (beta) => BETAS.indexOf(beta);
valueTexts["learn.beta"] = (index) => (index ? String(BETAS[index]) : "off");

const LEARN_MILLISECONDS = 45; // of each turn; then the page is drawn anew
const REST_AFTER = 120_000; // milliseconds without a touch: a page that is left open stops
const HOME = { x: 0, y: 0, extent: 3.4 };

const lesson = {
  running: false, near: false, touched: performance.now(),
  network: 0, // how often one began
  kinds: null, // label of each code that is shown
  target: null, codes: null, // as they are, and as they are drawn on the way there
  plane: null, steps: 0, history: [], marks: [],
  markedAt: 0, // when β or the noise was changed last
  view: { ...HOME }, pointed: [0, 0],
  preparing: false, // it learns on its own before the close-up of question 2
  detail: null, closings: 0, // this close-up, and how often it was closed
};

async function startLesson() {
  readColours();
  const [garments, labels] = await Promise.all([inflate("garments"), inflate("garment_labels")]);
  lesson.kinds = new Uint8Array(labels).subarray(0, SHOWN);
  const settings = { packed: new Uint8Array(garments), seed: state["learn.seed"] };
  takeLook(await learner.ask("garments", settings, [garments]));
  lesson.codes = lesson.target.slice();
  pause(500).then(tellOfFirstPicture); // also when part 1 is out of sight
  sendSettings();
  pointAt(lesson.pointed);
  requestAnimationFrame(paintLesson);
  renderStory();
  beginStory();
}

const lessonSettings = () => ({
  beta: BETAS[state["learn.beta"]], noise: Boolean(state["learn.noise"]),
});
const sendSettings = () => learner.ask("set", lessonSettings());

function takeLook({ codes, plane, steps = 0, number, reconstruction, kl }) {
  Object.assign(lesson, { target: codes, plane, steps });
  stir();
  if (!number) return;
  lesson.history.push({ steps, reconstruction, kl });
  if (lesson.history.length > 500) lesson.history = lesson.history.filter((_, i) => i % 2);
}

function setRunning(running) {
  if (!lesson.codes) return; // the worker has no garments yet
  lesson.running = running;
  lesson.touched = performance.now();
  $("#learn-play").textContent = running ? "❚❚ Pause" : "▶ Learn";
  stir();
  if (running) closeDetail();
  if (running && !lesson.turning) learnInTurns();
}

async function learnInTurns() {
  lesson.turning = true;
  try {
    while (lesson.running) {
      if (lesson.near && !document.hidden) await learnForATurn();
      if (performance.now() - lesson.touched > REST_AFTER) {
        setRunning(false);
        say("It stopped learning after two minutes. Press Learn to go on.");
      }
      await nextFrame();
    }
  } finally {
    lesson.turning = false;
  }
}

async function learnForATurn() {
  const { network } = lesson;
  const look = await learner.ask("learn", { milliseconds: LEARN_MILLISECONDS });
  if (network === lesson.network) takeLook(look); // else a new one began in between
  pointAt(lesson.pointed);
}

const STEPS_AT_ONCE = 25;
async function learnSteps(count) {
  if (!lesson.codes) return;
  setRunning(false);
  const { network } = lesson;
  for (let done = 0; done < count; done += STEPS_AT_ONCE) {
    if (lesson.running || network !== lesson.network) return; // something else was asked for
    const now = Math.min(STEPS_AT_ONCE, count - done);
    const look = await learner.ask("learn", { count: now, all: true });
    if (network !== lesson.network) return;
    takeLook(look);
    pointAt(lesson.pointed);
    if (lesson.detail) await inspect({});
  }
}

// ── Drawing, at every frame: codes move a part of the way to where they are now ──

const FRAMES_TO_REST = 40; // after these nothing moves any more
const stir = () => (lesson.frames = FRAMES_TO_REST);

function paintLesson() {
  requestAnimationFrame(paintLesson);
  if (!lesson.near || !lesson.frames) return;
  lesson.frames -= 1;
  const part = fewMoves.matches ? 1 : 0.3;
  const { codes, target } = lesson;
  for (let i = 0; i < codes.length; i++) codes[i] += part * (target[i] - codes[i]);
  moveView(part);
  paintCodes($("#codes"), {
    ...lesson, names: facts.garments, noise: Boolean(state["learn.noise"]),
  });
  $("#learn-happens").textContent = whatHappens();
  if (lesson.paintedPlane !== lesson.plane || lesson.paintedAt !== lesson.pointed) {
    paintPlane($("#plane"), lesson.plane, lesson.pointed);
    for (const [key, id, digits] of [["reconstruction", "rec", 0], ["kl", "kl", 2]]) {
      paintCurve($(`#${id}-curve`), lesson.history, key, lesson.marks);
      const now = lesson.history.at(-1)?.[key];
      $(`#${id}-now`).textContent = now === undefined ? "" : `${now.toFixed(digits)} nats`;
    }
    const noise = Boolean(state["learn.noise"]);
    if (!noise) $("#kl-now").textContent = "counts only with noise";
    for (const id of ["kl", "beta"]) $(`#${id}-part`).classList.toggle("idle", !noise);
    $("#learn-facts").innerHTML = lessonFacts();
    lesson.paintedPlane = lesson.plane;
    lesson.firstPainted ??= performance.now();
    tellOfFirstPicture();
    lesson.paintedAt = lesson.pointed;
  }
}

// The view keeps 99 of 100 codes in sight; for question 2 it comes close to one.
function moveView(part) {
  const { target, view, detail } = lesson;
  let to = HOME;
  if (detail) {
    const sigma = Math.max(...detail.logvar.map((value) => Math.exp(0.5 * value)));
    to = { x: detail.mu[0], y: detail.mu[1], extent: Math.max(0.1, 4 * sigma) };
  } else {
    const means = target.filter((_, i) => i % HEADS < CODE);
    const far = means.map(Math.abs).sort();
    to = { ...HOME, extent: Math.max(HOME.extent, 1.1 * far[Math.floor(0.99 * far.length)]) };
  }
  for (const key of Object.keys(to)) view[key] += 0.5 * part * (to[key] - view[key]);
}

function lessonFacts() {
  const { target, steps, kinds } = lesson;
  const all = kinds.length;
  let inside = 0;
  let sigma = 0;
  for (let i = 0; i < all; i++) {
    const [mu0, mu1, logvar0, logvar1] = target.subarray(HEADS * i, HEADS * (i + 1));
    inside += Math.max(Math.abs(mu0), Math.abs(mu1)) < REACH;
    sigma += (Math.exp(0.5 * logvar0) + Math.exp(0.5 * logvar1)) / (2 * all);
  }
  const share = Math.round((100 * inside) / all);
  const lines = [`step <b>${steps.toLocaleString("en")}</b>`,
    `codes in the dashed square <b>${share}%</b>`];
  if (state["learn.noise"]) lines.push(`mean σ <b>${sigma.toFixed(sigma < 0.1 ? 3 : 2)}</b>`);
  return lines.join(", ");
}

const COLLAPSED = 0.1; // nats: below, all garments share one code
const klNow = () => lesson.history.at(-1)?.kl ?? Infinity;
const hasCollapsed = () => lesson.steps > 100 && state["learn.noise"] && klNow() < COLLAPSED;

// ── The picture under the pointer, and the garment whose code is nearest ──

async function pointAt(z) {
  if (!lesson.codes) return;
  lesson.pointed = z;
  stir();
  if (!lesson.detail) await newest("pointed", showPoint);
}

const originals = []; // of each garment a promise of its pixels, which never change
const originalOf = (image) => (originals[image] ??= learner.ask("garment", { image }));

async function showPoint() {
  const z = lesson.pointed;
  const image = nearestCode(z);
  const [picture, garment] = await Promise.all([
    learner.ask("decodePlane", { z }), originalOf(image),
  ]);
  if (lesson.detail) return;
  const [right, up] = z.map((value) => value.toFixed(2));
  showGarment($("#pointed"), picture);
  $("#pointed-text").innerHTML = `<b>decoded at</b><br>(${right}, ${up})`;
  showOriginal(garment, image, "nearest");
}

function nearestCode([right, up]) {
  const { target } = lesson;
  let nearest = 0;
  let least = Infinity;
  for (let i = 0; i < target.length; i += HEADS) {
    const distance = (target[i] - right) ** 2 + (target[i + 1] - up) ** 2;
    if (distance < least) [least, nearest] = [distance, i / HEADS];
  }
  return nearest;
}

const nameOfNearest = (image) => {
  return hasCollapsed() ? "all alike" : facts.garments[lesson.kinds[image]];
};

function showOriginal(garment, image, how) {
  showGarment($("#original"), garment);
  $("#original-text").innerHTML = `<b>${how}</b><br>${
    how === "nearest" ? nameOfNearest(image) : facts.garments[lesson.kinds[image]]}`;
}

function followPointer(canvas, viewOf) {
  const follow = (event) => {
    const box = canvas.getBoundingClientRect();
    const place = transformOf(viewOf(), box.width);
    pointAt(place.back(event.clientX - box.left, event.clientY - box.top));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    follow(event);
  });
  canvas.addEventListener("click", closeDetail); // a finger that only scrolls does not click
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons || event.pointerType === "mouse") follow(event);
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (!moves[event.key]) return;
    event.preventDefault();
    const step = (2 * viewOf().extent) / (event.shiftKey ? 10 : 40);
    pointAt(lesson.pointed.map((value, axis) => value + step * moves[event.key][axis]));
    speakPoint();
  });
}

function speakPoint() {
  if (!lesson.codes || lesson.detail) return;
  const [right, up] = lesson.pointed.map((value) => value.toFixed(2));
  speak(`${right}, ${up}; nearest: ${nameOfNearest(nearestCode(lesson.pointed))}`);
}

// ── Question 2: one code, its noise, and the gradient ──

const drawNoise = () => [0, 1].map(() => normalFrom(Math.random));

async function inspect({ image, eps }) {
  const { detail: before, closings } = lesson;
  const chosen = {
    image: image ?? before?.image ?? 0,
    eps: eps ?? before?.eps ?? drawNoise(),
  };
  const [seen, garment] = await Promise.all([
    learner.ask("inspect", chosen), originalOf(chosen.image),
  ]);
  if (closings !== lesson.closings) return; // the answer comes too late
  const same = before?.image === chosen.image && eps;
  const earlier = same ? [...before.earlier, { ...before, earlier: [] }].slice(-24) : [];
  stir();
  lesson.detail = { ...chosen, ...seen, earlier, kind: lesson.kinds[chosen.image] };
  showGarment($("#pointed"), seen.xHat);
  const pair = (values) => `(${[...values].map((one) => Number(one.toPrecision(2))).join(", ")})`;
  const sigma = seen.logvar.map((one) => Math.exp(0.5 * one));
  $("#pointed-text").innerHTML = "<b>decoded at z</b>";
  $("#detail-text").innerHTML = state["learn.noise"]
    ? `z = μ + σ ε = ${pair(seen.z)}<br>μ = ${pair(seen.mu)}, σ = ${pair(sigma)},
      ε = ${pair(chosen.eps)}`
    : `No noise: z = μ = ${pair(seen.mu)}. No KL pulls, either.`;
  $("#codes-text").hidden = true;
  $("#detail-caption").hidden = false;
  showOriginal(garment, chosen.image, "the garment");
}

function closeDetail() {
  lesson.closings += 1;
  if (!lesson.detail) return;
  lesson.detail = null;
  $("#detail-text").textContent = "";
  $("#codes-text").hidden = false;
  $("#detail-caption").hidden = true;
  pointAt(lesson.pointed);
}

// ── Controls ──

$("#learn-play").onclick = () => setRunning(!lesson.running);
$("#learn-step").onclick = () => learnSteps(1);
$("#learn-again").onclick = () => set({ "learn.seed": state["learn.seed"] + 1 });

async function startAgain() {
  lesson.network += 1;
  closeDetail();
  Object.assign(lesson, { history: [], marks: [] });
  takeLook(await learner.ask("reset", { seed: state["learn.seed"] }));
  pointAt(lesson.pointed);
}

definePart(["learn"], async (changed) => {
  if (!lesson.codes) return; // startLesson reads the state
  lesson.touched = performance.now();
  renderStory();
  if (changed.includes("learn.beta") || changed.includes("learn.noise")) {
    markChange();
    sendSettings();
  }
  markActions();
  if (lesson.detail) newest("inspect", () => inspect({}));
  lesson.paintedPlane = null;
  stir();
  const anew = changed.includes("learn.seed");
  if (anew) await startAgain();
  const showsOneCode = state["learn.question"] === "2"; // of a network that has learned
  if (changed.includes("learn.question") || (anew && showsOneCode)) beginStory();
});

// Where β or the noise changed. A slider that is moved on leaves one mark.
function markChange() {
  const now = performance.now();
  const goesOn = now - lesson.markedAt < 1000 && lesson.marks.length;
  const steps = goesOn ? lesson.marks.pop().steps : lesson.steps;
  const { beta, noise } = lessonSettings();
  lesson.marks.push({ steps, text: noise ? `β ${beta || "off"}` : "no noise" });
  lesson.markedAt = now;
}

function listenToLesson() {
  followPointer($("#codes"), () => lesson.view);
  followPointer($("#plane"), () => ({ x: 0, y: 0, extent: REACH }));
  new IntersectionObserver(([entry]) => {
    lesson.near = entry.isIntersecting;
    stir();
  }).observe($("#learn-view"));
  isDark.addEventListener("change", () => {
    readColours();
    lesson.paintedPlane = null;
    pointAt(lesson.pointed);
  });
  addEventListener("resize", () => {
    lesson.paintedPlane = null;
    stir();
  });
}
