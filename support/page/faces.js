// Part 3: a face is drawn place by place, by the prior of the grid model.

const NETWORK = "faces_grid";
const priorOfFaces = facts.networks[`${NETWORK}_prior`];
const GRID = facts.networks[`${NETWORK}_decoder`].grid; // places along each side
const FIRST_PLACE = priorOfFaces.tokens - GRID ** 2; // the tokens before it are of the whole image
const GHOST_STANDS = 350; // milliseconds
const PLACES_TAKE = 1100; // milliseconds for all of them
const SLOWLY = { ghost: 2500, place: 130 }; // where one wants to talk about it
const SHEET = 12;

const face = {
  near: false,
  code: null, // of the face that is shown
  writing: -1, // the token that is being drawn
};

const drawingSettings = () => ({
  network: NETWORK, guidance: state["faces.guidance"], temperature: state["faces.temperature"],
});

let drawingCount = 0;

// Draws images with the prior. `shown` is given each state on the way, and says (or promises) how
// many tokens come next; 0 stops the drawing, and nothing is returned. Else the last state is.
async function drawWithPrior(images, settings, shown) {
  await Promise.all(["prior", "decoder"].map((part) => load(`${settings.network}_${part}`)));
  drawingCount += 1;
  const drawing = { number: drawingCount, network: settings.network };
  await models.ask("begin", { ...settings, ...drawing, images });
  let now = { next: 0 };
  for (;;) {
    const count = await shown(now);
    if (!count) return void models.ask("stop", drawing);
    now = await models.ask("advance", { ...drawing, count });
    if (now.next === now.tokens) return now;
  }
}

// How many tokens come next where pictures are drawn row after row: first all of the whole image.
function nextRow(network, next) {
  const { grid } = facts.networks[`${network}_decoder`];
  const first = facts.networks[`${network}_prior`].tokens - grid ** 2;
  return next < first ? first - next : grid;
}

// How many places come next, so that a face takes about as long as it should: one at each frame of
// the screen, more on a slow machine.
function pace(began, next) {
  const done = next - FIRST_PLACE;
  const wanted = (GRID ** 2 * (performance.now() - began)) / PLACES_TAKE;
  return Math.max(1, Math.min(GRID, Math.round(wanted - done)));
}

async function drawFace(animated, stale) {
  const fromOutside = Boolean(state["faces.start"]);
  const told = fromOutside ? conditionOfPicture() : await conditionOf(state["faces.seed"]);
  if (stale()) return;
  tellWishes(told);
  const asked = { condition: told.condition, without: told.without };
  let code;
  if (fromOutside) {
    code = await codeOf(state["faces.start"], "celeba", NETWORK);
    showFace(await decode(NETWORK, code));
  } else {
    const slowly = animated && !state["faces.edits"];
    code = await drawTokens(asked, state["faces.seed"], {}, slowly, stale);
  }
  const edits = state["faces.edits"].split(",").filter(Boolean);
  for (const [i, edit] of edits.entries()) {
    if (!code || stale()) return;
    const [mask, seed] = edit.split(".");
    const keep = Uint8Array.from({ length: priorOfFaces.tokens }, (_, token) => {
      return token < FIRST_PLACE || !isInMask(mask, token - FIRST_PLACE);
    });
    const slowly = animated && i === edits.length - 1;
    code = await drawTokens(asked, Number(seed), { given: code, keep }, slowly, stale);
  }
  if (!code || stale()) return;
  face.code = code;
  tellFace();
  showReconstructions();
}

async function pauseUnless(stale, milliseconds) {
  const end = performance.now() + milliseconds;
  while (performance.now() < end && !stale()) await pause(50);
}

// One face, slowly or at once; returns its code. With `keep` some tokens stand already.
async function drawTokens(asked, seed, standing, animated, stale) {
  const inSteps = animated && !fewMoves.matches;
  const patient = Boolean(state["faces.slow"]);
  let began = 0;
  const shown = async ({ next, pictures }) => {
    if (pictures) showFace(pictures[0]);
    if (!inSteps) return stale() ? 0 : Infinity;
    const erased = standing.keep?.indexOf(0, next); // where the next one is
    if (erased < 0) return Infinity; // all that is left stands
    if (erased > next) return erased - next;
    mark(next);
    await nextFrame();
    if (next === FIRST_PLACE) {
      await pauseUnless(stale, patient ? SLOWLY.ghost : GHOST_STANDS);
      began = performance.now();
    } else if (patient) {
      await pause(SLOWLY.place);
    }
    if (stale()) return 0;
    if (standing.keep || (patient && next >= FIRST_PLACE)) return 1;
    return next < FIRST_PLACE ? FIRST_PLACE - next : pace(began, next);
  };
  const images = [{ ...asked, seed }];
  const done = await drawWithPrior(images, { ...drawingSettings(), ...standing }, shown);
  mark(-1);
  if (!done || stale()) return null;
  showFace(done.pictures[0]);
  return done.codes[0];
}

const showFace = (pixels) => show($("#portrait"), pixels);

// Marks the place that is being written; while the code of the whole image is, the whole frame.
function mark(token) {
  face.writing = token;
  $("#portrait-frame").classList.toggle("whole", token >= 0 && token < FIRST_PLACE);
  $$("#places > span").forEach((span, place) => {
    span.classList.toggle("writing", place === token - FIRST_PLACE);
  });
}

function tellFace() {
  const { "faces.start": start, "faces.edits": edits } = state;
  const { channels } = priorOfFaces;
  const numbers = face.code.length.toLocaleString("en");
  const kind = start.startsWith("own") ? "Your photo" : "A test image";
  const how = start
    ? `${kind}, encoded as ${numbers} numbers and decoded.`
    : `Drawn: first ${FIRST_PLACE * channels} numbers for the whole image, then ${channels} for each
      of ${GRID ** 2} places.`;
  const asked = wishWords().join(", ");
  const wish = asked && (start ? " Wishes count only where you erase and redraw."
    : ` Asked for: ${asked}.`);
  $("#portrait-text").textContent = how + wish
    + (edits ? " Parts were erased and drawn again." : "");
}

// ── A picture from outside, and what two models make of it ──

const reconstructions = makeFigures($("#reconstructions"), {
  original: "the picture", grid: "grid: a code for each place", plain: "plain: 128 numbers",
});

async function showReconstructions() {
  const start = state["faces.start"];
  $("#reconstructions").hidden = !start;
  if (!start) return;
  const original = await pixelsOf(start, "celeba");
  show(reconstructions.original.canvas, original);
  for (const model of ["grid", "plain"]) {
    const network = `faces_${model}`;
    const z = await codeOf(start, "celeba", network);
    draw(reconstructions[model].canvas, network, z, (pixels) => {
      const error = squaredError(pixels, original).toFixed(4);
      reconstructions[model].tell(`mean squared error (MSE) ${error}`);
    });
  }
}

// ── Twelve at once ──

const sheetSeed = (i) => 1000 * state["faces.sheet"] + i;
const sheetButtons = makeButtons($("#sheet"), SHEET, "show face", (i) => {
  set({ "faces.seed": sheetSeed(i) });
  $("#portrait-frame").scrollIntoView({ block: "nearest" });
});

async function drawSheet(stale) {
  $("#sheet").hidden = !state["faces.sheet"];
  if (!state["faces.sheet"]) return;
  const images = await Promise.all(sheetButtons.map(async (_, i) => {
    const { condition, without } = await conditionOf(sheetSeed(i));
    return { condition, without, seed: sheetSeed(i) };
  }));
  const showAll = ({ pictures }) => pictures?.forEach((pixels, i) => {
    show(sheetButtons[i].firstChild, pixels);
  });
  const done = await drawWithPrior(images, drawingSettings(), (now) => {
    showAll(now);
    if (stale()) return 0;
    return fewMoves.matches ? Infinity : nextRow(NETWORK, now.next);
  });
  if (done) showAll(done);
}

// ── Controls ──

let seedOfVisit = Math.floor(Math.random() * 1e6);
const newSeed = () => (seedOfVisit += 1);
let drawsSlowly = false; // the next drawing was asked for by a button

$("#draw-face").onclick = () => {
  drawsSlowly = true;
  set({ "faces.seed": newSeed() });
};
$("#draw-twelve").onclick = () => {
  set({ "faces.sheet": newSeed() });
  $("#sheet").scrollIntoView({ block: "nearest", behavior: fewMoves.matches ? "auto" : "smooth" });
};
$("#test-face").onclick = () => {
  const before = Number(state["faces.start"].match(/^test:(\d+)$/)?.[1] ?? -1);
  set({ "faces.start": `test:${(before + 1) % facts.faces}` });
};
$("#save-face").onclick = () => save(sheetOf([[$("#portrait")]], 512), "face.png");

definePart(["faces", "wish"], (changed) => {
  $('[name="faces.guidance"]').disabled = !wishes().size; // which it makes count more
  if (changed.some((key) => key.startsWith("wish."))) tellRare();
  if (!face.near || changed.every((key) => key === "faces.slow")) return;
  const slowly = drawsSlowly;
  drawsSlowly = false;
  const onlySheet = changed.every((key) => key === "faces.sheet");
  if (!onlySheet) newest("face", (stale) => drawFace(slowly, stale));
  const ofOneFace = ["faces.seed", "faces.start", "faces.edits"];
  const onlyFace = changed.every((key) => ofOneFace.includes(key));
  if (!onlyFace || onlySheet) newest("sheet", drawSheet);
});

function listenToFaces() {
  makeWishes();
  $("#places").innerHTML = "<span></span>".repeat(GRID ** 2);
  $("#places").style.gridTemplateColumns = `repeat(${GRID}, 1fr)`;
  whenNear($("#part-faces"), () => {
    face.near = true;
    newest("face", (stale) => drawFace(true, stale));
    newest("sheet", drawSheet);
  });
}
