// Pictures: (H, W, 3) in [0, 1], on canvases, from sheets of test images, and saved.

const SETS = {
  cifar10: { side: 32, names: facts.classes },
  celeba: { side: 64, names: Array(facts.faces).fill("face") },
};
const COLUMNS = 10; // of a sheet of test images
const sheets = {}; // data set → promise of a canvas with its test images
const ownPixels = new Map(); // token → pixels, as long as the page is open

function loadSheet(name) {
  sheets[name] ??= whenRead.then(async () => {
    const image = new Image();
    image.src = $(`#data-sheet_${name}`).textContent;
    await image.decode();
    const sheet = contextOf(image.width, image.height);
    sheet.drawImage(image, 0, 0);
    document.documentElement.style.setProperty(`--${name}`, `url(${image.src})`);
    return sheet;
  });
  return sheets[name];
}

function contextOf(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return canvas.getContext("2d", { willReadFrequently: true });
}

function read(context, x, y, side) {
  const { data } = context.getImageData(x, y, side, side);
  return Float32Array.from(data.filter((_, i) => i % 4 < 3), (value) => value / 255);
}

// A token says where a picture comes from: test:NUMBER, or own:NUMBER.
async function pixelsOf(token, name) {
  if (token.startsWith("own:")) return ownPixels.get(token);
  const sheet = await loadSheet(name);
  const { side, names } = SETS[name];
  const index = Math.min(token.slice(5), names.length - 1);
  return read(sheet, (index % COLUMNS) * side, Math.floor(index / COLUMNS) * side, side);
}

const codes = new Map(); // network and token → promise of a code
function codeOf(token, set, network) {
  const key = `${network} ${token}`;
  if (!codes.has(key)) {
    codes.set(key, pixelsOf(token, set).then((pixels) => encode(network, pixels)));
  }
  return codes.get(key);
}

function makeCanvas(ariaLabel) {
  const canvas = document.createElement("canvas");
  return Object.assign(canvas, { width: 64, height: 64, role: "img", ariaLabel });
}

function show(canvas, pixels) {
  const side = Math.sqrt(pixels.length / 3);
  const image = new ImageData(side, side);
  image.data.fill(255);
  pixels.forEach((value, i) => (image.data[4 * Math.floor(i / 3) + (i % 3)] = 255 * value));
  if (canvas.width !== side) canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.classList.toggle("pixels", side === 32);
  canvas.pixels = pixels;
  canvas.drawn = performance.now();
}

// Decode a code onto a canvas; `then` is given the pixels.
function draw(canvas, network, z, then) {
  return newest(canvas, async () => {
    const pixels = await decode(network, z);
    show(canvas, pixels);
    then?.(pixels);
  });
}

function makeFigure(parent, label) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const canvas = makeCanvas(label);
  figure.append(canvas, caption);
  parent.append(figure);
  const tell = (...lines) => (caption.innerHTML = [`<b>${label}</b>`, ...lines].join("<br>"));
  tell();
  return { canvas, tell };
}

function makeFigures(parent, labels) {
  const figures = Object.entries(labels).map(([name, label]) => [name, makeFigure(parent, label)]);
  return Object.fromEntries(figures);
}

function makeButtons(parent, count, label, choose) {
  return Array.from({ length: count }, (_, i) => {
    const button = document.createElement("button");
    button.append(makeCanvas(`${label} ${i + 1} of ${count}`));
    button.onclick = () => choose(i);
    parent.append(button);
    return button;
  });
}

const mix = (a, b, t) => a.map((value, i) => value + t * (b[i] - value));
const norm = (z) => Math.sqrt(sum(z.map((value) => value ** 2)));
const squaredError = (a, b) => sum(a.map((value, i) => (value - b[i]) ** 2)) / a.length;

function contrast(pixels) {
  const mean = sum(pixels) / pixels.length;
  return Math.sqrt(sum(pixels.map((value) => (value - mean) ** 2)) / pixels.length).toFixed(3);
}

// ── Strips of test images, one of which is chosen ──

// The data set that a key's picture is from
function setOf(key) {
  if (key.startsWith("morph.")) return state["morph.set"];
  return key.startsWith("classes.") ? "cifar10" : "celeba";
}

function fillStrips() {
  for (const strip of $$("[data-strip]")) {
    const name = setOf(strip.dataset.strip);
    if (strip.shown === name) continue;
    strip.shown = name;
    loadSheet(name);
    const { names } = SETS[name];
    const rows = Math.ceil(names.length / COLUMNS);
    strip.innerHTML = names.map((title, i) => {
      const x = (i % COLUMNS) / (COLUMNS - 1);
      const y = Math.floor(i / COLUMNS) / (rows - 1);
      const place = `${100 * x}% ${100 * y}% / ${100 * COLUMNS}% ${100 * rows}%`;
      return `<label class="thumb"><input type="radio" name="${strip.dataset.strip}"
        value="test:${i}" aria-label="${title}, test image ${i + 1}">
        <span style="background: var(--${name}) ${place}"></span></label>`;
    }).join("");
  }
}

// ── Saving ──

async function save(canvas, name) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(blob), download: name }).click();
  say(`Saved as ${name}.`);
  await pause(60_000); // the browser may still be reading it
  URL.revokeObjectURL(link.href);
}

// Canvases in rows on one sheet, each enlarged to `side`
function sheetOf(rows, side) {
  const context = contextOf(rows[0].length * side, rows.length * side);
  rows.forEach((row, y) => {
    row.forEach((canvas, x) => {
      context.imageSmoothingEnabled = canvas.width > 32;
      context.drawImage(canvas, x * side, y * side, side, side);
    });
  });
  return context.canvas;
}
