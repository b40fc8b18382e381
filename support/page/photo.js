// Your own picture: choose a file, choose the square, and it becomes a small picture of this page.

const crop = { canvas: $("#crop canvas"), last: null };
let ownCount = 0;

function cropSquare() {
  const { width, height } = crop.image;
  const size = Math.min(width, height) / $("#crop-zoom").value;
  const [x, y] = [$("#crop-x").value / 100, $("#crop-y").value / 100];
  return [(width - size) * x, (height - size) * y, size, size];
}

function paintCrop() {
  crop.canvas.getContext("2d").drawImage(crop.image, ...cropSquare(), 0, 0, 320, 320);
  showValues();
}

async function openCrop(file, key) {
  try {
    crop.image = await createImageBitmap(file);
  } catch {
    say("The browser cannot read this file as a picture. Choose a JPEG or PNG file.");
    return;
  }
  crop.key = key;
  $("#crop-x").value = $("#crop-y").value = 50;
  $("#crop-zoom").value = 1;
  paintCrop();
  $("#crop").showModal();
}

// Halve the square until it is as small as wanted: each step averages four pixels.
const LARGEST = 4096; // pixels along a side: iOS has no larger canvas
function smallSquare(side) {
  const square = cropSquare();
  const halvings = Math.floor(Math.log2(Math.min(square[2], LARGEST) / side));
  let now = side * 2 ** Math.max(0, halvings);
  let context = contextOf(now, now);
  context.drawImage(crop.image, ...square, 0, 0, now, now);
  while (now > side) {
    now /= 2;
    const half = contextOf(now, now);
    half.drawImage(context.canvas, 0, 0, now, now);
    context = half;
  }
  return read(context, 0, 0, side);
}

$("#crop-use").onclick = () => {
  const { side } = SETS[setOf(crop.key)];
  ownCount += 1;
  const token = `own:${ownCount}`;
  ownPixels.set(token, smallSquare(side));
  $("#crop").close();
  set({ [crop.key]: token });
};
$("#crop-cancel").onclick = () => $("#crop").close();
$("#crop").onclose = () => crop.image.close(); // it may hold 200 MB
$("#crop").oninput = paintCrop;

crop.canvas.onpointerdown = (event) => {
  crop.canvas.setPointerCapture(event.pointerId);
  crop.last = event;
};
crop.canvas.onpointermove = (event) => {
  if (!event.buttons) return;
  const scale = cropSquare()[2] / crop.canvas.clientWidth; // pixels of the picture per pixel here
  const moved = { x: event.clientX - crop.last.clientX, y: event.clientY - crop.last.clientY };
  const slack = { x: crop.image.width - cropSquare()[2], y: crop.image.height - cropSquare()[2] };
  for (const axis of ["x", "y"]) {
    if (slack[axis]) $(`#crop-${axis}`).value -= (100 * moved[axis] * scale) / slack[axis];
  }
  crop.last = event;
  paintCrop();
};

for (const input of $$("[data-own]")) {
  input.onchange = () => {
    if (input.files[0]) openCrop(input.files[0], input.dataset.own);
    input.value = "";
  };
}
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  const place = event.target.closest("[data-drop]");
  const file = event.dataTransfer.files[0];
  if (place && file) openCrop(file, place.dataset.drop);
};
