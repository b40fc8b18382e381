// Part 2: one picture turns into another, through the codes of a model and as a cross-fade.

const morph = makeFigures($("#morph"), {
  a: "from", latent: "through the latent space", fade: "cross-fade", b: "to",
});

const morphNetwork = () => {
  const set = state["morph.set"] === "celeba" ? "faces" : "cifar10";
  return `${set}_${state["morph.model"]}`;
};

// Spherical. Where two codes point the same way the line is taken.
function between(a, b, t, method) {
  if (method === "linear") return mix(a, b, t);
  const cosine = sum(a.map((value, i) => value * b[i])) / (norm(a) * norm(b));
  const angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
  if (Math.sin(angle) < 1e-4) return mix(a, b, t);
  const [ofA, ofB] = [Math.sin((1 - t) * angle), Math.sin(t * angle)];
  return a.map((value, i) => (ofA * value + ofB * b[i]) / Math.sin(angle));
}

function cells(parent, count) {
  while (parent.children.length > count) parent.lastChild.remove();
  while (parent.children.length < count) {
    parent.append(makeCanvas(`step ${parent.children.length + 1}`));
  }
  return [...parent.children];
}

async function renderMorph() {
  const { "morph.a": a, "morph.b": b, "morph.set": set, "morph.method": method } = state;
  const { "morph.t": t, "morph.steps": steps } = state;
  const network = morphNetwork();
  const [pixelsA, pixelsB] = await Promise.all([pixelsOf(a, set), pixelsOf(b, set)]);
  const shown = [["a", pixelsA, 0], ["fade", mix(pixelsA, pixelsB, t), t], ["b", pixelsB, 1]];
  for (const [name, pixels, place] of shown) {
    show(morph[name].canvas, pixels);
    morph[name].tell(`position ${place.toFixed(2)}`, `contrast ${contrast(pixels)}`);
  }
  const [za, zb] = await Promise.all([codeOf(a, set, network), codeOf(b, set, network)]);
  draw(morph.latent.canvas, network, between(za, zb, t, method), (pixels) => {
    morph.latent.tell(`position ${t.toFixed(2)}`, `contrast ${contrast(pixels)}`);
  });
  const walk = [a, b, network, method, steps].join();
  if ($("#walk").dataset.shown === walk) return;
  $("#walk").dataset.shown = walk;
  cells($("#walk"), steps).forEach((canvas, i) => {
    draw(canvas, network, between(za, zb, i / (steps - 1), method));
  });
  cells($("#fades"), steps).forEach((canvas, i) => {
    show(canvas, mix(pixelsA, pixelsB, i / (steps - 1)));
  });
}

let playing = 0; // when "Play" was pressed
let morphIsNear = false;

function play(now) {
  if (!playing) return;
  const phase = ((now - playing) / 4000 + 1.5) % 2; // four seconds for one way, from the middle
  const slider = $('[name="morph.t"]');
  slider.value = phase < 1 ? phase : 2 - phase;
  state["morph.t"] = Number(slider.value);
  showValues();
  newest("morph", renderMorph);
  requestAnimationFrame(play);
}

function setPlaying(on) {
  playing = on ? performance.now() : 0;
  $("#play").textContent = on ? "❚❚ Pause" : "▶ Play";
  if (on) requestAnimationFrame(play);
}

function stopPlaying() {
  setPlaying(false);
  commit();
}

$("#play").onclick = () => (playing ? stopPlaying() : setPlaying(true));

$("#save-walk").onclick = () => {
  save(sheetOf([[...$("#walk").children], [...$("#fades").children]], 128), "morph.png");
};

definePart(["morph"], (changed) => {
  if (changed.includes("morph.t")) setPlaying(false); // it was moved by hand, or brought back
  if (morphIsNear) newest("morph", renderMorph);
});

function listenToMorph() {
  whenNear($("#part-morph"), () => {
    morphIsNear = true;
    newest("morph", renderMorph);
  });
  // Out of sight it would only slow the other parts down.
  new IntersectionObserver(([entry]) => {
    if (playing && !entry.isIntersecting) stopPlaying();
  }).observe($("#part-morph"));
}
