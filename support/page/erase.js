// Part 3: places that are erased are drawn again by the prior, given all places before them.

// A mask has one bit for each place, four in a letter: places 0 to 3 are the first one.
const isInMask = (mask, place) => {
  return Boolean((parseInt(mask[place >> 2] ?? "0", 16) >> (3 - (place & 3))) & 1);
};
const maskOf = (places) => Array.from({ length: GRID ** 2 / 4 }, (_, letter) => {
  const bits = [0, 1, 2, 3].map((bit) => places.has(4 * letter + bit) << (3 - bit));
  return sum(bits).toString(16);
}).join("");

const MOST_EDITS = 20; // as page.js reads them from a link
const eraser = { on: false, places: new Set(), cursor: Math.floor(GRID ** 2 / 2) };

function setErasing(on) {
  eraser.on = on;
  const frame = $("#portrait-frame");
  $("#erase").ariaPressed = String(on);
  frame.classList.toggle("erasing", on);
  frame.toggleAttribute("tabindex", on);
  if (on) {
    frame.tabIndex = 0;
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-label", "The face. Arrow keys choose a place, Space erases it, Enter "
      + "draws what is erased.");
    $("#portrait-text").textContent = "Rub over a part of the face and let go. The prior draws it "
      + "again, given the code of the whole image and all places before it.";
  } else {
    frame.removeAttribute("role");
    frame.removeAttribute("aria-label");
    eraser.places.clear();
    if (face.code) tellFace();
  }
  showErased();
}

function showErased(withCursor = $("#portrait-frame").matches(":focus-visible")) {
  $$("#places > span").forEach((span, place) => {
    span.classList.toggle("erased", eraser.places.has(place));
    span.classList.toggle("cursor", withCursor && place === eraser.cursor);
  });
}

// The eraser is a little wider than a finger's tip: all places within two thirds of one.
function eraseAt(event) {
  const box = $("#portrait-frame").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * GRID;
  const y = ((event.clientY - box.top) / box.height) * GRID;
  for (let place = 0; place < GRID ** 2; place++) {
    const [right, down] = [(place % GRID) + 0.5 - x, Math.floor(place / GRID) + 0.5 - y];
    if (Math.hypot(right, down) < 0.75) eraser.places.add(place);
  }
  showErased();
}

function redrawErased() {
  if (!eraser.places.size || !face.code) return;
  const edit = `${maskOf(eraser.places)}.${newSeed()}`;
  eraser.places.clear();
  showErased();
  const edits = state["faces.edits"].split(",").filter(Boolean);
  if (edits.length === MOST_EDITS) {
    return say(`A face can be redrawn ${MOST_EDITS} times. Undo, or begin with another face.`);
  }
  drawsSlowly = true;
  set({ "faces.edits": [...edits, edit].join(",") });
}

function speakPlace() {
  const [row, column] = [Math.floor(eraser.cursor / GRID) + 1, (eraser.cursor % GRID) + 1];
  const erased = eraser.places.has(eraser.cursor) ? ", erased" : "";
  speak(`row ${row}, column ${column}${erased}`);
}

function listenToEraser() {
  const frame = $("#portrait-frame");
  $("#erase").onclick = () => setErasing(!eraser.on);
  frame.addEventListener("pointerdown", (event) => {
    if (!eraser.on) return;
    frame.setPointerCapture(event.pointerId);
    eraseAt(event);
  });
  frame.addEventListener("pointermove", (event) => eraser.on && event.buttons && eraseAt(event));
  frame.addEventListener("pointerup", () => eraser.on && redrawErased());
  frame.addEventListener("focus", () => {
    if (!frame.matches(":focus-visible")) return; // a mouse needs no cursor
    showErased();
    speakPlace();
  });
  frame.addEventListener("blur", () => showErased());
  frame.addEventListener("keydown", (event) => {
    if (!eraser.on) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -GRID, ArrowDown: GRID };
    const to = eraser.cursor + moves[event.key];
    if (to >= 0 && to < GRID ** 2) eraser.cursor = to;
    else if (event.key === " ") eraser.places.add(eraser.cursor);
    else if (event.key === "Enter") return redrawErased();
    else if (!(event.key in moves)) return;
    event.preventDefault();
    showErased(true);
    speakPlace();
  });
}
