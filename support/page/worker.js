// What the page asks of its workers. A message is {id, command, payload}; the answer is
// {id, result}, or {id, error}. The page starts two workers of this source: one learns, one runs
// the networks.

let engine;
let training;
const shelf = {}; // networks by name
const drawings = new Map(); // images that are being drawn, by number

const commands = {
  start({ floats, wasm }) {
    engine = makeEngine(floats, wasm);
    return engine.kind;
  },

  // ── The VAE that learns ──
  garments({ packed, seed }) {
    training = makeTraining(engine, packed, seed);
    return training.view(true);
  },
  reset({ seed }) {
    training.reset(seed);
    return training.view(true);
  },
  set: (settings) => void Object.assign(training.settings, settings),
  learn: (how) => training.learn(how),
  look: () => training.view(true),
  decodePlane: ({ z }) => training.learner.decode(Float32Array.from(z), z.length / CODE),
  inspect: ({ image, eps }) => training.inspect(image, eps),
  garment: ({ image }) => Uint8ClampedArray.from(training.imagesFrom(image, 1), (x) => 255 * x),

  // For tests: loss and gradients of one step, and the weights after it.
  oneStep({ x, eps, settings }) {
    const { learner } = training;
    const rows = engine.borrow(() => {
      const batch = engine.take(x.length);
      batch.set(x);
      const loss = learner.lossAndGradients(batch, x.length / PIXELS, eps, settings);
      learner.adam();
      return loss;
    });
    const { reconstruction, kl } = rows;
    const { gradients, values } = learner.parameters;
    return { reconstruction, kl, gradients: gradients.slice(), values: values.slice() };
  },
  weights: () => training.learner.parameters.values.slice(),

  // ── Networks that were trained before ──
  load({ name, description, buffer }) {
    const make = name.endsWith("prior") ? priorFrom : networkFrom;
    shelf[name] = make(engine, description, buffer);
  },
  encode: ({ network, image }) => encode(engine, shelf[network], image),
  decode: ({ network, z }) => decode(engine, shelf[network], z),

  // Images whose codes the prior draws. Each of `images` has condition, without and seed.
  begin({ number, network, images, ...settings }) {
    const withNoise = images.map((image) => ({ ...image, noise: noiseOf(image.seed) }));
    const prior = shelf[`${network}_prior`];
    drawings.set(number, makeDrawing(engine, prior, { images: withNoise, ...settings }));
  },
  // So many tokens more, and the pictures that they make so far: places without a code are 0.
  advance({ number, network, count }) {
    const { codes, tokens, advance } = drawings.get(number);
    const next = advance(count);
    if (next === tokens) drawings.delete(number);
    const decoder = shelf[`${network}_decoder`];
    return { next, tokens, codes, pictures: codes.map((z) => decode(engine, decoder, z)) };
  },
  stop: ({ number }) => void drawings.delete(number),
};

onmessage = ({ data: { id, command, payload } }) => {
  try {
    postMessage({ id, result: commands[command](payload) });
  } catch (error) {
    postMessage({ id, error: String(error) });
  }
};
