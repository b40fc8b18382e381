// Part 4: ten pictures of a class, drawn by the prior of CIFAR-10's grid model, and the same test
// image through four models.

const CLASSES = [...new Set(facts.classes)];
let classesAreNear = false;
const classButtons = Array.from({ length: 10 }, (_, i) => {
  const canvas = makeCanvas(`drawn picture ${i + 1} of 10`);
  $("#class-grid").append(canvas);
  return canvas;
});

async function drawClass(stale) {
  const { "classes.name": name, "classes.seed": seed, "classes.guidance": guidance } = state;
  const condition = Float32Array.from(CLASSES, (one) => Number(one === name));
  const without = condition.map(() => 0.5);
  const images = classButtons.map((_, i) => ({ condition, without, seed: 1000 * seed + i }));
  const settings = { network: "cifar10_grid", guidance, temperature: state["classes.temperature"] };
  const showAll = ({ pictures }) => pictures?.forEach((pixels, i) => show(classButtons[i], pixels));
  const done = await drawWithPrior(images, settings, (now) => {
    showAll(now);
    if (stale()) return 0;
    return fewMoves.matches ? Infinity : nextRow(settings.network, now.next);
  });
  if (done) showAll(done);
}

// What share of drawn pictures a network recognises, as it was measured for whole guidance.
function tellRecognised() {
  const percent = (share) => `${Math.round(100 * share)}%`;
  const { real, ...byGuidance } = facts.recognised;
  const measured = Object.entries(byGuidance).map(([w, share]) => {
    return `${percent(share)} at guidance ${w}`;
  });
  if (!measured.length) return;
  const ofReal = real === undefined ? "" : `, and ${percent(real)} of real test images`;
  $("#recognised").textContent = `At temperature 1 a network that was trained to tell the classes `
    + `apart names the class of ${measured.join(", ")}${ofReal}. Easy to name is not yet real.`;
}

const compared = makeFigures($("#models"), {
  input: "test image", fc: "fully connected", plain: "convolutional", best: "best",
  grid: "grid",
});

let knownCodes = {}; // of the networks that have no encoder here
async function codeOfTestImage(network, token) {
  if (facts.networks[`${network}_encoder`]) return codeOf(token, "cifar10", network);
  knownCodes[network] ??= whenRead.then(() => inflate(`codes_${network}`));
  const whole = new Int16Array(await knownCodes[network]);
  const count = facts.rows[`codes_${network}`];
  const size = whole.length / count;
  const index = Math.min(token.slice(5), count - 1);
  return Float32Array.from(whole.subarray(index * size, (index + 1) * size), (one) => one / 4096);
}

async function compareModels() {
  const token = state["classes.input"];
  const original = await pixelsOf(token, "cifar10");
  show(compared.input.canvas, original);
  compared.input.tell(`contrast ${contrast(original)}`);
  for (const model of ["fc", "plain", "best", "grid"]) {
    const network = `cifar10_${model}`;
    const z = await codeOfTestImage(network, token);
    draw(compared[model].canvas, network, z, (pixels) => {
      compared[model].tell(`${z.length.toLocaleString("en")} numbers`,
        `MSE ${squaredError(pixels, original).toFixed(4)}`, `contrast ${contrast(pixels)}`);
    });
  }
}

// ── Twelve faces from a region of the latent space of plain (in part 3) ──

const regionButtons = makeButtons($("#region-grid"), 12, "save face", (i) => {
  save(sheetOf([[regionButtons[i].firstChild]], 256), "face.png");
});
const PLAIN_SIZE = 128;

function codeFromRegion(kind, value, seed) {
  const uniform = uniforms(seed);
  const z = new Float32Array(PLAIN_SIZE);
  if (kind === "z_range") return z.map(() => value * (2 * uniform() - 1));
  const standard = z.map(() => normalFrom(uniform));
  const factor = kind === "radius" ? value / norm(standard) : value;
  return standard.map((one) => one * factor);
}

async function drawRegion() {
  const kind = state["region.kind"];
  const distances = regionButtons.map((button, i) => {
    const z = codeFromRegion(kind, state[`region.${kind}`], 1000 * state["region.seed"] + i);
    draw(button.firstChild, "faces_plain", z);
    return norm(z);
  });
  const mean = sum(distances) / distances.length;
  $("#region-text").textContent = `Mean distance from the origin ${mean.toFixed(1)}. Click a face to
    save it.`;
}

// ── Controls ──

$("#draw-class").onclick = () => set({ "classes.seed": newSeed() });
$("#region-again").onclick = () => set({ "region.seed": newSeed() });
$("#regions").ontoggle = () => $("#regions").open && newest("region", drawRegion);

definePart(["classes"], (changed) => {
  if (!classesAreNear) return;
  if (changed.includes("classes.input")) newest("compare", compareModels);
  if (changed.some((key) => key !== "classes.input")) newest("class", drawClass);
});
definePart(["region"], () => $("#regions").open && newest("region", drawRegion));

function listenToClasses() {
  $("#class-names").innerHTML = CLASSES.map((name) => {
    return `<label><input type="radio" name="classes.name" value="${name}"><span>${name}</span>
      </label>`;
  }).join("");
  tellRecognised();
  const { cifar10 } = facts.contrast;
  $("#about-contrast").textContent = `MSE: mean squared error of the pixels. Mean contrast of all
    test images: ${cifar10}. A reconstruction with less is blurred.`;
  whenNear($("#part-classes"), () => {
    classesAreNear = true;
    newest("class", drawClass);
    newest("compare", compareModels);
  });
}
