// Part 3: what a face shall have. Each label can be asked for, asked against, or left open.

const WISH_NAMES = {
  Smiling: "smile", Eyeglasses: "glasses", Male: "male", Young: "young", No_Beard: "beard",
  Wearing_Hat: "hat", Bangs: "bangs", Wavy_Hair: "wavy hair", Blond_Hair: "blond hair",
  Black_Hair: "black hair", Heavy_Makeup: "heavy make-up", Mouth_Slightly_Open: "mouth open",
};
const TURNED = ["No_Beard"]; // asked for as the opposite of the label

const wishName = (label) => WISH_NAMES[label] ?? label.replaceAll("_", " ").toLowerCase();

function makeWishes() {
  const first = Object.keys(WISH_NAMES).filter((label) => facts.attributes.includes(label));
  const more = facts.attributes.filter((label) => !first.includes(label));
  for (const [id, labels] of [["first", first], ["more", more]]) {
    $(`#wishes-${id}`).innerHTML = labels.map((label) => {
      const name = wishName(label);
      const choices = [["no", "no"], ["open", "any"], ["yes", "yes"]].map(([value, text]) => {
        const full = { no: `no ${name}`, open: `${name} left open`, yes: `yes, ${name}` }[value];
        return `<label><input type="radio" name="wish.${label}" value="${value}"
          aria-label="${full}"><span>${text}</span></label>`;
      });
      return `<fieldset aria-label="${name}"><span>${name}</span><div class="choice small">
        ${choices.join("")}</div></fieldset>`;
    }).join("");
  }
}

// Label number → 1 or 0, for those that are asked for or against
function wishes() {
  const wanted = new Map();
  facts.attributes.forEach((label, number) => {
    const value = state[`wish.${label}`];
    if (value === "open") return;
    const yes = value === "yes" ? 1 : 0;
    wanted.set(number, TURNED.includes(label) ? 1 - yes : yes);
  });
  return wanted;
}

let attributeBits; // promise: eight labels in a byte, one row for each training image
async function attributeRows() {
  attributeBits ??= whenRead.then(() => inflate("attributes"));
  const bytes = new Uint8Array(await attributeBits);
  const stride = Math.ceil(facts.attributes.length / 8);
  const has = (row, number) => (bytes[row * stride + (number >> 3)] >> (7 - (number & 7))) & 1;
  return { count: facts.training_faces, has };
}

// What the prior is told. Labels that are left open are those of a training image that has all that
// is asked for. `without` is the same without what was asked for: 0.5 says nothing there.
// Each seed looks at the training images in an order of its own, so one wish more changes little
// else.
const STRIDE = 7919; // a prime, so that it comes to every image: their number is no multiple of it
async function conditionOf(seed) {
  const wanted = wishes();
  const { count, has } = await attributeRows();
  const start = Math.floor(uniforms(seed)() * count);
  let row = -1;
  for (let i = 0; i < count && row < 0; i++) {
    const candidate = (start + i * STRIDE) % count;
    if ([...wanted].every(([number, value]) => has(candidate, number) === value)) row = candidate;
  }
  const numbers = facts.attributes.map((_, number) => number);
  const open = row < 0 ? () => 0.5 : (number) => has(row, number);
  const condition = Float32Array.from(numbers, (number) => wanted.get(number) ?? open(number));
  const without = condition.map((value, number) => (wanted.has(number) ? 0.5 : value));
  return { condition, without, wanted, known: row >= 0 };
}

// Of a picture from outside no labels are known: what is left open says nothing.
function conditionOfPicture() {
  const wanted = wishes();
  const without = new Float32Array(facts.attributes.length).fill(0.5);
  const condition = without.map((open, number) => wanted.get(number) ?? open);
  return { condition, without, wanted, known: false };
}

// What is asked for, in words
const wishWords = () => [...wishes().keys()].map((number) => {
  const label = facts.attributes[number];
  return `${state[`wish.${label}`] === "yes" ? "" : "no "}${wishName(label)}`;
});

// Of what is asked for, the part that few training images have: the prior has hardly seen it.
const RARE = 0.1;
async function tellRare() {
  const { count, has } = await attributeRows();
  const rows = Array.from({ length: count }, (_, row) => row);
  const texts = [...wishes()].map(([number, value], i) => {
    const share = rows.filter((row) => has(row, number) === value).length / count;
    return share < RARE ? `${wishWords()[i]} (${Math.round(100 * share)}%)` : "";
  }).filter(Boolean);
  const text = texts.length ? `Few training images have ${texts.join(", ")}: such a wish often
    fails. Raise guidance, draw twelve, and choose.` : "";
  const isNew = text !== $("#rare-text").textContent;
  $("#rare-text").textContent = text;
  if (text && isNew && face.near) say(text);
}

function tellWishes({ condition, wanted, known }) {
  let text = state["faces.start"] ? "What you left open is left to the picture."
    : "No training image has all of these together: what you left open stays open.";
  if (known) {
    const shown = Object.keys(WISH_NAMES).filter((label) => {
      const number = facts.attributes.indexOf(label);
      const yes = condition[number] === (TURNED.includes(label) ? 0 : 1);
      return yes && !wanted.has(number);
    });
    const list = shown.map(wishName).join(", ") || "none of these";
    text = `What you left open was taken from the labels of a training image: ${list}.`;
  }
  $("#wishes-text").textContent = text;
}

$("#no-wishes").onclick = () => {
  set(Object.fromEntries(facts.attributes.map((label) => [`wish.${label}`, "open"])));
};
