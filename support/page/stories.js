// Part 1: four buttons that set up what each question of theory asks, and say what to look for.

const STORIES = {
  "": {
    setUp: { "learn.beta": betaIndex(1), "learn.noise": 1 },
    text: `The encoder turns each garment into two numbers, its code. The decoder draws the garment
      again from them. <b>Look for</b> the names: kinds that look alike come together. Then move
      β: off, and all the way to 100.`,
    actions: {},
  },
  1: {
    // No KL term from the beginning
    setUp: { "learn.beta": 0, "learn.noise": 1 },
    text: `A new network begins, without a KL term. <b>Look for</b> how far the codes drift from the
      rings, and how small σ becomes. Ever fewer codes are in the dashed square, so draws of the
      prior land where nothing was learned. Then turn the KL on and watch them come back.`,
    actions: { "Turn the KL on: β = 1": { beta: 1 }, "Off again": { beta: 0 } },
  },
  2: {
    setUp: { "learn.beta": betaIndex(1), "learn.noise": 1 },
    text: `One garment, close up. A noise ε is drawn, then z = μ + σ ε is computed. <b>Look for</b>
      the orange arrow: that way the picture gets better. As z is computed, not drawn, the same
      arrow moves μ. Blue: the pull of the KL. Each ε gives another arrow; training follows their
      mean.`,
    actions: { "Another ε": "noise", "Another garment": "garment", "100 steps": "steps" },
  },
  3: {
    // An autoencoder first
    setUp: { "learn.beta": 0, "learn.noise": 0 },
    text: `A new network begins as an autoencoder: no noise and no KL, each garment a point.
      <b>Look for</b> where the points lie: nothing ties them to the prior, and the dashed square
      misses most of them. Keep this picture, go on to a VAE, and compare the squares.`,
    actions: { "Keep this picture": "keep", "Now a VAE": { beta: 1, noise: 1, again: true },
      "An autoencoder again": { beta: 0, noise: 0, again: true } },
  },
  4: {
    setUp: { "learn.beta": betaIndex(0.05), "learn.noise": 1 },
    text: `A new network begins at 0.05. <b>Look for</b> σ and the reconstruction. There σ is tiny,
      and codes spread beyond the rings. At 15 posteriors overlap, and many garments get the same
      picture. At 100 the code says nothing: all share one posterior, the prior.`,
    actions: { "β = 0.05": { beta: 0.05 }, "β = 1": { beta: 1 }, "β = 15": { beta: 15 },
      "β = 100": { beta: 100 }, "Keep this picture": "keep" },
  },
};
const ANSWERS = {
  1: "1--why-does-the-kl-term-matter-in-the-vae-loss",
  2: "2--how-does-the-reparameterisation-trick-let-gradients-through-the-stochastic-layer",
  3: "3--why-a-probabilistic-latent-space-and-not-a-fixed-one",
  4: "4--what-does-the-kl-term-do-for-a-smooth-latent-space",
};

// A question that is chosen sets β and noise. Those that are about how codes come to lie where they
// lie begin with a new network; question 2 does where β or noise were set otherwise.
const BEGIN_ANEW = ["1", "3", "4"];
CONSEQUENCES["learn.question"] = (number) => {
  const { setUp } = STORIES[number];
  const unusual = Object.entries(setUp).some(([name, value]) => state[name] !== value);
  const anew = BEGIN_ANEW.includes(number) || (number === "2" && (unusual || hasCollapsed()));
  return anew ? { ...setUp, "learn.seed": state["learn.seed"] + 1 } : setUp;
};
// Chosen once more, it begins once more.
$("fieldset.questions").addEventListener("click", ({ target: { value } }) => {
  if (!lesson.codes || value !== state["learn.question"]) return;
  const seed = state["learn.seed"];
  set(CONSEQUENCES["learn.question"](value));
  if (value !== "2" || seed === state["learn.seed"]) beginStory();
});

async function beginStory() {
  if (state["learn.question"] !== "2") {
    closeDetail();
    return setRunning(!fewMoves.matches);
  }
  if (lesson.preparing) return;
  setRunning(false);
  const { network } = lesson;
  if (lesson.steps < 300) { // so that there is something to see
    lesson.preparing = true;
    try {
      await learnSteps(300);
    } finally {
      lesson.preparing = false;
    }
  }
  for (let draws = 0; draws < 6; draws++) {
    if (state["learn.question"] !== "2" || lesson.running || network !== lesson.network) return;
    await inspect({ image: 0, eps: drawNoise() });
  }
}

function renderStory() {
  const number = state["learn.question"];
  const parent = $("#story");
  if (parent.dataset.number === number) return;
  parent.dataset.number = number;
  const { text, actions } = STORIES[number];
  const answers = linkTo("theory_answers.md");
  parent.innerHTML = number ? `<p>${text}</p>` : `<p>${text} <a href="${answers}">The four
    answers</a></p>`;
  const row = document.createElement("div");
  row.className = "row";
  for (const [label, action] of Object.entries(actions)) {
    const button = document.createElement("button");
    button.textContent = label;
    button.action = action;
    button.onclick = () => act(action);
    row.append(button);
  }
  parent.append(row);
  if (number) row.append(answerButton(parent, number, `${answers}#${ANSWERS[number]}`));
  markActions();
}

function answerButton(parent, number, address) {
  const button = Object.assign(document.createElement("button"), { ariaExpanded: "false" });
  button.textContent = "The short answer";
  button.onclick = () => {
    const opens = !parent.querySelector(".answer");
    button.ariaExpanded = String(opens);
    if (!opens) return parent.querySelector(".answer").remove();
    parent.insertAdjacentHTML("beforeend", `<p class="answer">${facts.answers[number]}
      <a href="${address}">The whole answer</a></p>`);
  };
  return button;
}

// The button of the β that is set
function markActions() {
  for (const button of $$("#story .row button")) {
    const { beta, again } = button.action ?? {};
    if (beta !== undefined && !again) button.ariaPressed = betaIndex(beta) === state["learn.beta"];
  }
}

function act(action) {
  if (action === "keep") return keepSnapshot();
  if (action === "steps") return learnSteps(100);
  if (action === "noise") return setRunning(false), inspect({ eps: drawNoise() });
  if (action === "garment") {
    setRunning(false);
    return inspect({ image: Math.floor(Math.random() * SHOWN), eps: drawNoise() });
  }
  const values = { "learn.beta": betaIndex(action.beta) };
  if (action.noise !== undefined) values["learn.noise"] = action.noise;
  if (action.again) values["learn.seed"] = state["learn.seed"] + 1;
  set(values);
  setRunning(true);
}

// One sentence, which follows β, the noise and what was learned, not the question.
function whatHappens() {
  const { beta, noise } = lessonSettings();
  if (lesson.detail) return "";
  if (lesson.preparing) return "First it learns 300 steps.";
  if (!lesson.running) return "Paused: β acts only while it learns.";
  if (!noise) return "No noise, no KL: each garment is a point, and nothing ties it to the prior.";
  if (hasCollapsed()) return "Collapsed: all garments share one code, and all get one picture.";
  if (!beta) return "No KL: σ shrinks, and nothing holds the codes in the square.";
  if (beta < 0.5) return "A weak KL: σ is small, and codes spread beyond the rings.";
  if (beta < 6) return "Codes gather where the prior is, and what looks alike lies together.";
  if (beta < 20) return "A strong KL: posteriors overlap, and many garments get the same picture.";
  return "Too strong: the code is saying less and less.";
}

// A copy of codes and plane, to compare with what comes.
function keepSnapshot() {
  const { beta, noise } = lessonSettings();
  const figure = document.createElement("figure");
  for (const name of ["codes", "plane"]) {
    const copy = contextOf(320, 320);
    copy.fillStyle = ink.card;
    copy.fillRect(0, 0, 320, 320);
    copy.drawImage($(`#${name}`), 0, 0, 320, 320);
    Object.assign(copy.canvas, { role: "img", ariaLabel: `kept: ${name}` });
    figure.append(copy.canvas);
  }
  const caption = document.createElement("figcaption");
  const kind = noise ? `β = ${beta || "off"}` : "no noise, no KL";
  caption.textContent = `${kind}, step ${lesson.steps.toLocaleString("en")}. `;
  const remove = Object.assign(document.createElement("button"), { textContent: "Remove" });
  remove.className = "quiet";
  remove.onclick = () => figure.remove();
  caption.append(remove);
  figure.append(caption);
  $("#snapshots").append(figure);
  say("Kept below the pictures, to compare.");
}
