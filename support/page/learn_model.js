// A VAE that learns in the page: 784 - 128 - 64 - (mu, logvar) - 64 - 128 - 784, with a code of two
// numbers, ReLU between the layers, binary cross-entropy and Adam. Gradients are written by hand.

const SIZES = [[PIXELS, 128], [128, 64], [64, HEADS], [CODE, 64], [64, 128], [128, PIXELS]];
const ENCODER = [0, 1, 2];
const DECODER = [3, 4, 5];
const BATCH = 64;
const ADAM = { rate: 3e-3, decay: 0.9, squareDecay: 0.999, epsilon: 1e-8 };

// All weights and biases stand in one array; their gradients and Adam's averages in others.
function makeParameters(engine) {
  const columnsOf = ([, outputs]) => roundUp(outputs, COLUMNS_AT_ONCE);
  const lengths = SIZES.map((size) => (size[0] + 1) * columnsOf(size));
  const total = lengths.reduce((sum, length) => sum + length);
  const values = engine.take(total);
  const gradients = engine.take(total);
  let start = 0;
  const layers = SIZES.map((size) => {
    const [inputs, outputs] = size;
    const columns = columnsOf(size);
    const from = start;
    const middle = from + inputs * columns;
    start = middle + columns;
    return {
      inputs, outputs, columns,
      weight: values.subarray(from, middle),
      bias: values.subarray(middle, start),
      weightGradient: gradients.subarray(from, middle),
      biasGradient: gradients.subarray(middle, start),
    };
  });
  return { values, gradients, layers, mean: engine.take(total), square: engine.take(total) };
}

// As PyTorch begins: uniform, up to 1 / sqrt(inputs).
function fillAtRandom({ layers }, uniform) {
  for (const { inputs, outputs, columns, weight, bias } of layers) {
    const bound = 1 / Math.sqrt(inputs);
    for (const part of [weight, bias]) {
      for (let i = 0; i < part.length; i++) {
        part[i] = i % columns < outputs ? bound * (2 * uniform() - 1) : 0;
      }
    }
  }
}

const weightOfKl = ({ beta, noise }) => (noise ? beta : 0); // points have no KL

function makeLearner(engine, seed) {
  const parameters = makeParameters(engine);
  const { layers, values, gradients } = parameters;
  let steps = 0;

  function reset(newSeed) {
    fillAtRandom(parameters, uniforms(newSeed));
    parameters.mean.fill(0);
    parameters.square.fill(0);
    steps = 0;
  }

  // rows (m, inputs) → (m, columns); all but the last layer of a network are followed by a ReLU
  function forwardThrough(which, rows, m) {
    const outputs = [];
    which.forEach((index, place) => {
      const { weight, bias, inputs, columns } = layers[index];
      const output = engine.take(m * columns);
      for (let row = 0; row < m; row++) output.set(bias, row * columns);
      engine.product(rows, weight, output, m, inputs, columns);
      if (place < which.length - 1) relu(output);
      outputs.push(output);
      rows = output;
    });
    return outputs;
  }

  // From the gradient of the last output to those of all weights, and of the input if it is asked
  // for: (m, inputs rounded up to a multiple of eight).
  function backwardThrough(which, input, outputs, gradient, m, wantsInput) {
    for (let place = which.length - 1; place >= 0; place--) {
      const layer = layers[which[place]];
      const { inputs, columns, weightGradient, biasGradient } = layer;
      const before = place ? outputs[place - 1] : input;
      engine.productTransposed(before, gradient, weightGradient, inputs, m, columns);
      for (let i = 0; i < gradient.length; i++) biasGradient[i % columns] += gradient[i];
      if (!place && !wantsInput) return null;
      const wide = roundUp(inputs, COLUMNS_AT_ONCE);
      const inputGradient = engine.take(m * wide);
      engine.product(gradient, transposed(layer, wide), inputGradient, m, columns, wide);
      if (place) stopWhereZero(inputGradient, before);
      gradient = inputGradient;
    }
    return gradient;
  }

  // (inputs, columns) → (columns, wide)
  function transposed({ inputs, columns, weight }, wide) {
    const turned = engine.take(columns * wide);
    for (let i = 0; i < inputs; i++) {
      for (let j = 0; j < columns; j++) turned[j * wide + i] = weight[i * columns + j];
    }
    return turned;
  }

  // What a batch x (m, 784) in [0, 1] costs, and the gradients of reconstruction + beta * KL, the
  // mean over the batch. z = mu + sigma * eps with noise, else z = mu, and beta counts as 0. Nats
  // per image.
  function lossAndGradients(x, m, eps, settings) {
    const { noise } = settings;
    const beta = weightOfKl(settings);
    return engine.borrow(() => {
      gradients.fill(0);
      const seen = forwardThrough(ENCODER, x, m);
      const heads = seen.at(-1);
      const headColumns = layers[2].columns;
      const z = engine.take(m * CODE);
      for (let i = 0; i < m * CODE; i++) {
        const { mu, logvar } = headsAt(heads, headColumns, i);
        z[i] = noise ? mu + Math.exp(0.5 * logvar) * eps[i] : mu;
      }
      const drawn = forwardThrough(DECODER, z, m);
      const pixelGradient = engine.take(m * PIXELS);
      const reconstruction = crossEntropy(drawn.at(-1), x, pixelGradient, m);

      const zGradient = backwardThrough(DECODER, z, drawn, pixelGradient, m, true);
      const headGradient = engine.take(m * headColumns);
      let kl = 0;
      for (let i = 0; i < m * CODE; i++) {
        const { mu, logvar, place } = headsAt(heads, headColumns, i);
        const fromPicture = zGradient[Math.floor(i / CODE) * COLUMNS_AT_ONCE + (i % CODE)];
        const variance = Math.exp(logvar);
        kl += 0.5 * (mu * mu + variance - 1 - logvar) / m;
        headGradient[place] = fromPicture + (beta * mu) / m;
        headGradient[place + CODE] = (beta * 0.5 * (variance - 1)) / m;
        if (noise) headGradient[place + CODE] += fromPicture * 0.5 * Math.sqrt(variance) * eps[i];
      }
      backwardThrough(ENCODER, x, seen, headGradient, m, false);
      return { reconstruction, kl, z: z.slice(), zGradient: zGradient.slice() };
    });
  }

  function adam() {
    steps += 1;
    const { mean, square } = parameters;
    const { rate, decay, squareDecay, epsilon } = ADAM;
    const meanScale = 1 / (1 - decay ** steps);
    const squareScale = 1 / (1 - squareDecay ** steps);
    for (let i = 0; i < values.length; i++) {
      const gradient = gradients[i];
      mean[i] = decay * mean[i] + (1 - decay) * gradient;
      square[i] = squareDecay * square[i] + (1 - squareDecay) * gradient * gradient;
      values[i] -= (rate * meanScale * mean[i]) / (Math.sqrt(squareScale * square[i]) + epsilon);
    }
  }

  // x (m, 784) → mu and logvar of each, (m, 4)
  function encode(x, m) {
    return engine.borrow(() => {
      const rows = engine.take(x.length);
      rows.set(x);
      const heads = forwardThrough(ENCODER, rows, m).at(-1);
      return Float32Array.from({ length: m * HEADS }, (_, i) => {
        return heads[Math.floor(i / HEADS) * layers[2].columns + (i % HEADS)];
      });
    });
  }

  // z (m, 2) → pictures (m, 784), 0 to 255
  function decode(z, m) {
    return engine.borrow(() => {
      const rows = engine.take(z.length);
      rows.set(z);
      const logits = forwardThrough(DECODER, rows, m).at(-1);
      return Uint8ClampedArray.from(logits, (logit) => 255 / (1 + Math.exp(-logit)));
    });
  }

  reset(seed);
  return {
    parameters, reset, lossAndGradients, adam, encode, decode,
    get steps() { return steps; },
  };
}

function headsAt(heads, columns, i) {
  const place = Math.floor(i / CODE) * columns + (i % CODE);
  return { mu: heads[place], logvar: heads[place + CODE], place };
}

function relu(values) {
  for (let i = 0; i < values.length; i++) if (values[i] < 0) values[i] = 0;
}

// A ReLU that gave 0 passes no gradient on.
function stopWhereZero(gradient, output) {
  for (let i = 0; i < gradient.length; i++) if (output[i] <= 0) gradient[i] = 0;
}

// Binary cross-entropy of logits (m, 784) in nats per image; fills in its gradient.
// -x log p - (1 - x) log(1 - p) = max(l, 0) - x l + log(1 + e^-|l|). The logarithms of an image are
// one logarithm of a product, which stays below 2^784 and so within a double.
function crossEntropy(logits, x, gradient, m) {
  let total = 0;
  for (let image = 0; image < m; image++) {
    let product = 1;
    for (let i = image * PIXELS; i < (image + 1) * PIXELS; i++) {
      const logit = logits[i];
      const small = Math.exp(-Math.abs(logit));
      const p = logit >= 0 ? 1 / (1 + small) : small / (1 + small);
      product *= 1 + small;
      total += Math.max(logit, 0) - x[i] * logit;
      gradient[i] = (p - x[i]) / m;
    }
    total += Math.log(product);
  }
  return total / m;
}

// ── The training set, and what the page shows of it ──

// packed: two pixels of 16 grey values in a byte
function makeTraining(engine, packed, seed) {
  const learner = makeLearner(engine, seed);
  const count = (2 * packed.length) / PIXELS;
  const batch = engine.take(BATCH * PIXELS);
  const shown = new Float32Array(SHOWN * HEADS);
  const settings = { beta: 1, noise: true };
  const planeCodes = Float32Array.from({ length: CODE * PLANE ** 2 }, (_, i) => {
    const place = Math.floor(i / CODE);
    const column = place % PLANE;
    const row = Math.floor(place / PLANE);
    const at = (step) => REACH * ((2 * (step + 0.5)) / PLANE - 1);
    return i % CODE ? -at(row) : at(column); // up is the larger second number
  });
  let uniform;
  let order;
  let place;

  function reset(newSeed) {
    uniform = uniforms(newSeed + 1);
    order = Uint16Array.from({ length: count }, (_, i) => i);
    place = count;
    learner.reset(newSeed);
  }

  function unpack(image, into, start) {
    const first = (image * PIXELS) / 2;
    for (let i = 0; i < PIXELS / 2; i++) {
      const byte = packed[first + i];
      into[start + 2 * i] = (byte >> 4) / 15;
      into[start + 2 * i + 1] = (byte & 15) / 15;
    }
  }

  function imagesFrom(first, number) {
    const x = new Float32Array(number * PIXELS);
    for (let i = 0; i < number; i++) unpack(first + i, x, i * PIXELS);
    return x;
  }

  function step() {
    if (place + BATCH > count) {
      shuffle(order, uniform);
      place = 0;
    }
    for (let i = 0; i < BATCH; i++) unpack(order[place + i], batch, i * PIXELS);
    place += BATCH;
    const eps = Float32Array.from({ length: BATCH * CODE }, () => normalFrom(uniform));
    const loss = learner.lossAndGradients(batch, BATCH, eps, settings);
    learner.adam();
    return loss;
  }

  // So many steps, or as many as fit into the time; then a look at codes and plane. On a slow
  // machine a look takes long, and so do the turns: three quarters of the time are for learning.
  function learn({ milliseconds = 0, count: wanted = 0, look = true, all = false }) {
    const began = performance.now();
    const turn = milliseconds && Math.max(milliseconds, Math.min(200, 3 * lookTook));
    const losses = [];
    while (losses.length < wanted || performance.now() - began < turn) {
      const { reconstruction, kl } = step();
      losses.push({ reconstruction, kl });
    }
    const mean = (key) => losses.reduce((sum, loss) => sum + loss[key], 0) / losses.length;
    const done = {
      steps: learner.steps, number: losses.length,
      reconstruction: mean("reconstruction"), kl: mean("kl"), // of no steps: NaN
    };
    return look ? { ...done, ...view(all) } : done;
  }

  // Half of the codes are read anew each time: the even ones, then the odd ones.
  let half = 0;
  let lookTook = 0;
  function view(all = false) {
    const began = performance.now();
    const blocks = all ? [0, 1] : [(half = 1 - half)];
    for (const block of blocks) {
      const first = (block * SHOWN) / 2;
      shown.set(learner.encode(imagesFrom(first, SHOWN / 2), SHOWN / 2), first * HEADS);
    }
    const plane = learner.decode(planeCodes, PLANE ** 2);
    lookTook = performance.now() - began;
    return { codes: shown.slice(), plane };
  }

  // One image with given noise: its code, a sample z, the picture at z, and which way the gradients
  // of reconstruction and KL move z.
  function inspect(image, eps) {
    const x = imagesFrom(image, 1);
    const [mu0, mu1, logvar0, logvar1] = learner.encode(x, 1);
    const { z, zGradient } = engine.borrow(() => {
      const rows = engine.take(PIXELS);
      rows.set(x);
      return learner.lossAndGradients(rows, 1, eps, settings);
    });
    return {
      mu: [mu0, mu1], logvar: [logvar0, logvar1], z: [...z], xHat: learner.decode(z, 1),
      pictureGradient: [zGradient[0], zGradient[1]],
      klGradient: [mu0, mu1].map((mu) => weightOfKl(settings) * mu),
    };
  }

  reset(seed);
  return { learner, settings, reset, learn, view, inspect, imagesFrom };
}

function shuffle(order, uniform) {
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(uniform() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
}
