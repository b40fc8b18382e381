// What is drawn of the VAE that learns: its codes, the decoded plane, two curves.

// Kinds of garment: tops are blue to violet, shoes red to brown, the others stand apart.
const KIND_COLOURS = ["#3b8fd9", "#2fa36b", "#6d6ff0", "#c65bd1", "#22a9b8", "#ee8b35", "#7d93b5",
  "#e0534a", "#cda51e", "#a9653a"];

let ink; // the page's colours, as numbers and as CSS
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const css = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["text", "soft", "card", "accent", "warm"];
  ink = Object.fromEntries(names.map((name) => [name, css(name)]));
  ink.paper = coloursOf(ink.card);
  ink.print = coloursOf(ink.text);
}

function coloursOf(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

// A canvas as sharp as the screen; drawing then counts in CSS pixels.
function sharpContext(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) {
    Object.assign(canvas, { width: wide, height: high });
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

// From codes to pixels and back. A view is {x, y, extent}: its middle, and how far it reaches.
function transformOf({ x, y, extent }, width) {
  const scale = width / (2 * extent);
  return {
    scale,
    right: (z) => (z - x) * scale + width / 2,
    down: (z) => (y - z) * scale + width / 2,
    back: (px, py) => [(px - width / 2) / scale + x, y - (py - width / 2) / scale],
  };
}

function paintCodes(canvas, { codes, kinds, names, view, noise, pointed, detail }) {
  const { context, width } = sharpContext(canvas);
  const place = transformOf(view, width);
  paintPrior(context, place);
  context.globalAlpha = detail ? 0.25 : 1;
  for (let i = 0; i < kinds.length; i++) {
    const [mu0, mu1, logvar0, logvar1] = codes.subarray(HEADS * i, HEADS * (i + 1));
    const sigmas = [logvar0, logvar1].map((logvar) => Math.exp(0.5 * logvar) * place.scale);
    paintPosterior(context, place.right(mu0), place.down(mu1), noise ? sigmas : [0, 0], kinds[i]);
  }
  context.globalAlpha = 1;
  if (detail) paintGradient(context, place, detail, width);
  else paintNames(context, place, codes, kinds, names, width);
  if (pointed && !detail) paintCross(context, place.right(pointed[0]), place.down(pointed[1]));
}

function paintPrior(context, { scale, right, down }) {
  context.strokeStyle = ink.soft;
  context.lineWidth = 1.5;
  for (const radius of [1, 2]) {
    context.beginPath();
    context.arc(right(0), down(0), radius * scale, 0, 2 * Math.PI);
    context.stroke();
  }
  context.setLineDash([6, 5]);
  context.strokeRect(right(-REACH), down(REACH), 2 * REACH * scale, 2 * REACH * scale);
  context.setLineDash([]);
}

// A point at mu and an ellipse of one sigma; the larger the ellipse, the fainter.
function paintPosterior(context, x, y, [across, up], kind) {
  const alpha = context.globalAlpha;
  context.fillStyle = KIND_COLOURS[kind];
  if (Math.max(across, up) > 1.5) {
    context.globalAlpha = alpha * Math.max(0.025, Math.min(0.35, 30 / (across * up)));
    context.beginPath();
    context.ellipse(x, y, across, up, 0, 0, 2 * Math.PI);
    context.fill();
    context.globalAlpha = alpha;
  }
  context.fillRect(x - 1.25, y - 1.25, 2.5, 2.5);
}

// The name of each kind at the middle of its codes, moved apart where names would overlap.
function paintNames(context, { right, down }, codes, kinds, names, width) {
  const size = Math.max(11, width / 33);
  context.font = `600 ${size}px system-ui, sans-serif`;
  const middle = (kind, axis) => {
    const values = [];
    kinds.forEach((one, i) => one === kind && values.push(codes[HEADS * i + axis]));
    return values.sort((a, b) => a - b)[values.length >> 1];
  };
  const labels = names.map((name, kind) => {
    const half = context.measureText(name).width / 2;
    const x = Math.min(width - half - 3, Math.max(half + 3, right(middle(kind, 0))));
    const y = Math.min(width - 6, Math.max(size, down(middle(kind, 1))));
    return { name, kind, half, x, y };
  });
  const spread = (axis) => Math.max(...labels.map((one) => one[axis]))
    - Math.min(...labels.map((one) => one[axis]));
  if (Math.max(spread("x"), spread("y")) < 60) return; // all are one: names would say nothing
  labels.sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => {
    for (const above of labels.slice(0, i)) {
      const close = Math.abs(above.x - label.x) < above.half + label.half + 4;
      if (close && label.y < above.y + size + 2 && label.y > above.y - size - 2) {
        label.y = above.y + size + 2;
      }
    }
    context.lineWidth = 4;
    context.strokeStyle = ink.card;
    context.lineJoin = "round";
    context.strokeText(label.name, label.x - label.half, label.y);
    context.fillStyle = ink.text;
    context.fillText(label.name, label.x - label.half, label.y);
    context.fillStyle = KIND_COLOURS[label.kind];
    context.fillRect(label.x - label.half, label.y + 3, 2 * label.half, 2.5);
  });
}

function paintCross(context, x, y) {
  for (const [colour, thickness] of [[ink.card, 5], [ink.text, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    context.arc(x, y, 7, 0, 2 * Math.PI);
    context.stroke();
  }
}

// Question 2: one code, what was drawn from its posterior, and where the gradients pull.
function paintGradient(context, place, detail, width) {
  const { mu, logvar, z, pictureGradient, klGradient, earlier, kind } = detail;
  const at = ([x, y]) => [place.right(x), place.down(y)];
  const sigmas = logvar.map((value) => Math.exp(0.5 * value) * place.scale);
  context.strokeStyle = context.fillStyle = KIND_COLOURS[kind];
  context.lineWidth = 2;
  for (const [times, alpha] of [[2, 0.08], [1, 0.16]]) {
    context.beginPath();
    context.ellipse(...at(mu), times * sigmas[0], times * sigmas[1], 0, 0, 2 * Math.PI);
    context.globalAlpha = alpha;
    context.fill();
    context.globalAlpha = 0.8;
    context.stroke();
  }
  // Arrows show directions. Their lengths follow the logarithm, so that none leaves the picture.
  const arrowOf = (gradient) => {
    const length = Math.hypot(...gradient);
    const shown = (0.09 + 0.045 * Math.log10(1 + length)) * width;
    return gradient.map((value) => (-value / (length || 1)) * shown);
  };
  context.globalAlpha = 0.25;
  for (const one of earlier) arrow(context, at(one.z), arrowOf(one.pictureGradient), ink.warm, 1.5);
  context.globalAlpha = 1;
  context.setLineDash([4, 4]);
  line(context, at(mu), at(z), ink.soft, 2);
  context.setLineDash([]);
  arrow(context, at(z), arrowOf(pictureGradient), ink.warm, 3);
  arrow(context, at(mu), arrowOf(pictureGradient), ink.warm, 3);
  if (Math.hypot(...klGradient) > 0) arrow(context, at(mu), arrowOf(klGradient), ink.accent, 3);
  dot(context, at(mu), ink.text, "μ");
  dot(context, at(z), ink.text, "z");
}

function line(context, [x, y], [toX, toY], colour, thickness) {
  context.strokeStyle = colour;
  context.lineWidth = thickness;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(toX, toY);
  context.stroke();
}

// `by` is in codes' directions: up is positive.
function arrow(context, [x, y], [right, up], colour, thickness) {
  const [toX, toY] = [x + right, y - up];
  const angle = Math.atan2(-up, right);
  line(context, [x, y], [toX, toY], colour, thickness);
  for (const turn of [2.6, -2.6]) {
    const tip = [toX + 10 * Math.cos(angle + turn), toY + 10 * Math.sin(angle + turn)];
    line(context, [toX, toY], tip, colour, thickness);
  }
}

function dot(context, [x, y], colour, name) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, 4.5, 0, 2 * Math.PI);
  context.fill();
  context.font = "italic 700 17px Georgia, serif";
  context.lineWidth = 4;
  context.strokeStyle = ink.card;
  context.strokeText(name, x - 20, y - 9);
  context.fillText(name, x - 20, y - 9);
}

// ── Garments: grey values from paper to print, the colours of the page ──

function printGarment(data, pixels, start, stride) {
  for (let y = 0; y < GARMENT_SIDE; y++) {
    for (let x = 0; x < GARMENT_SIDE; x++) {
      const grey = pixels[y * GARMENT_SIDE + x] / 255;
      const to = 4 * (start + y * stride + x);
      for (let c = 0; c < 3; c++) {
        data[to + c] = ink.paper[c] + grey * (ink.print[c] - ink.paper[c]);
      }
      data[to + 3] = 255;
    }
  }
}

function showGarment(canvas, pixels) {
  const image = new ImageData(GARMENT_SIDE, GARMENT_SIDE);
  printGarment(image.data, pixels, 0, GARMENT_SIDE);
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.pixels = pixels;
}

const planeBuffer = contextOf(PLANE * GARMENT_SIDE, PLANE * GARMENT_SIDE);
function paintPlane(canvas, pictures, pointed) {
  const side = PLANE * GARMENT_SIDE;
  const image = new ImageData(side, side);
  for (let i = 0; i < PLANE ** 2; i++) {
    const start = Math.floor(i / PLANE) * GARMENT_SIDE * side + (i % PLANE) * GARMENT_SIDE;
    printGarment(image.data, pictures.subarray(i * PIXELS, (i + 1) * PIXELS), start, side);
  }
  planeBuffer.putImageData(image, 0, 0);
  const { context, width } = sharpContext(canvas);
  context.imageSmoothingQuality = "high";
  context.drawImage(planeBuffer.canvas, 0, 0, width, width);
  const place = transformOf({ x: 0, y: 0, extent: REACH }, width);
  if (pointed) paintCross(context, place.right(pointed[0]), place.down(pointed[1]));
}

// ── Curves: values over steps, and where β or the noise was changed ──

function paintCurve(canvas, history, key, marks) {
  const { context, width, height } = sharpContext(canvas);
  if (history.length < 2) return;
  const values = history.map((row) => row[key]);
  const sorted = [...values].sort((a, b) => a - b);
  const high = sorted[Math.floor(0.97 * (sorted.length - 1))] * 1.03;
  const low = key === "kl" ? 0 : sorted[0];
  const [first, last] = [history[0].steps, history.at(-1).steps];
  const left = 34; // of which the numbers of the axis take most
  const right = (steps) => ((steps - first) / (last - first)) * (width - left - 4) + left;
  const down = (value) => height - 3 - ((value - low) / (high - low || 1)) * (height - 6);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = ink.soft;
  const number = (value) => value.toFixed(high < 10 ? 1 : 0);
  context.fillText(number(high), 0, 10);
  context.fillText(number(low), 0, height - 3);
  let free = 0; // from here on a word has room
  for (const { steps, text } of marks.filter((mark) => mark.steps > first)) {
    const at = right(steps);
    line(context, [at, 0], [at, height], ink.soft, 1);
    const wide = context.measureText(text).width + 6;
    if (at < free || at + wide > width) continue;
    context.fillText(text, at + 3, 10);
    free = at + wide;
  }
  context.strokeStyle = ink.accent;
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.beginPath();
  values.forEach((value, i) => context.lineTo(right(history[i].steps), Math.max(1, down(value))));
  context.stroke();
}
