// The learned prior: a transformer walks over the tokens of a code, first those of the whole image,
// then the places of the grid, row after row. support/code_priors.py is the same in PyTorch.

function priorFrom(engine, description, buffer) {
  const { tokens, channels, width, hidden, components, conditions } = description;
  const reader = readerOf(engine, description, buffer);
  const linear = (inputs, outputs) => {
    const weight = reader.matrix(inputs, outputs);
    return { weight, bias: reader.vector(outputs), inputs, outputs };
  };
  const bos = reader.vector(width); // stands before the first token
  const positions = reader.matrix(tokens, width);
  const condition = conditions ? reader.matrix(conditions, width) : null;
  const embed = linear(channels, width);
  const blocks = Array.from({ length: description.blocks }, () => ({
    qkv: linear(width, 3 * width),
    out: linear(width, width),
    up: linear(width, hidden),
    down: linear(hidden, width),
  }));
  const head = linear(width, components * (1 + 2 * channels));
  return { ...description, bos, positions, condition, embed, blocks, head };
}

// rows (m, inputs) → (m, outputs), in memory that is borrowed
function throughLinear(engine, { weight, bias, inputs, outputs }, rows, m) {
  const result = engine.take(m * outputs);
  for (let row = 0; row < m; row++) result.set(bias, row * outputs);
  engine.product(rows, weight, result, m, inputs, outputs);
  return result;
}

// Each row has mean 0 and variance 1 then. Gain and bias are in the layer that follows.
function layerNorm(engine, rows, width) {
  const result = engine.take(rows.length);
  for (let start = 0; start < rows.length; start += width) {
    let mean = 0;
    for (let i = start; i < start + width; i++) mean += rows[i] / width;
    let variance = 0;
    for (let i = start; i < start + width; i++) variance += (rows[i] - mean) ** 2 / width;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let i = start; i < start + width; i++) result[i] = (rows[i] - mean) * scale;
  }
  return result;
}

// x times the chance that a standard normal number is below x. The error function is formula 7.1.26
// of Abramowitz & Stegun, right to 1.5e-7.
function gelu(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x) * Math.SQRT1_2);
  const series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027
    + t * 1.061405429)));
  const erf = 1 - t * series * Math.exp((-x * x) / 2);
  return 0.5 * x * (1 + Math.sign(x) * erf);
}

// A walk over the tokens in several rows at once, one for each condition (null says nothing).
// Keys and values of the tokens behind are kept, so that a step reads one token of each row.
function makeWalk(engine, prior, conditions) {
  const { tokens, width, heads, positions, bos, embed, blocks, head } = prior;
  const m = conditions.length;
  const told = conditions.map((condition) => whatConditionAdds(prior, condition));
  const keptPerBlock = blocks.map(() => ({
    keys: new Float32Array(m * tokens * width),
    values: new Float32Array(m * tokens * width),
  }));

  // What is said of a place: (m, outputs of the head). `before` holds the codes (m, channels) of
  // the token before it.
  function step(place, before) {
    return engine.borrow(() => {
      const h = place ? tokenOf(before) : engine.take(m * width);
      for (let row = 0; row < m; row++) {
        for (let i = 0; i < width; i++) {
          const start = place ? 0 : bos[i];
          h[row * width + i] += start + positions[place * width + i] + told[row][i];
        }
      }
      blocks.forEach((block, b) => throughBlock(block, keptPerBlock[b], h, place));
      return Float32Array.from(throughLinear(engine, head, layerNorm(engine, h, width), m));
    });
  }

  function tokenOf(codes) {
    const rows = engine.take(codes.length);
    rows.set(codes);
    return throughLinear(engine, embed, rows, m);
  }

  // Adds to h (m, width) what attention and then two linear layers say.
  function throughBlock({ qkv, out, up, down }, kept, h, place) {
    const parts = throughLinear(engine, qkv, layerNorm(engine, h, width), m);
    const seen = engine.take(m * width);
    for (let row = 0; row < m; row++) attend(parts, kept, seen, row, place);
    add(h, throughLinear(engine, out, seen, m));
    const inner = throughLinear(engine, up, layerNorm(engine, h, width), m);
    for (let i = 0; i < inner.length; i++) inner[i] = gelu(inner[i]);
    add(h, throughLinear(engine, down, inner, m));
  }

  // Of one row: keep key and value of this place, then weigh the values of all places so far.
  function attend(parts, { keys, values }, seen, row, place) {
    const query = parts.subarray(3 * row * width, (3 * row + 1) * width);
    const first = row * tokens * width;
    const key = parts.subarray((3 * row + 1) * width, (3 * row + 2) * width);
    const value = parts.subarray((3 * row + 2) * width, (3 * row + 3) * width);
    keys.set(key, first + place * width);
    values.set(value, first + place * width);
    const size = width / heads;
    const weights = new Float32Array(place + 1);
    for (let start = 0; start < width; start += size) {
      let largest = -Infinity;
      for (let t = 0; t <= place; t++) {
        let match = 0;
        const there = first + t * width + start;
        for (let i = 0; i < size; i++) match += query[start + i] * keys[there + i];
        weights[t] = match / Math.sqrt(size);
        largest = Math.max(largest, weights[t]);
      }
      let total = 0;
      for (let t = 0; t <= place; t++) total += weights[t] = Math.exp(weights[t] - largest);
      for (let t = 0; t <= place; t++) {
        const there = first + t * width + start;
        const share = weights[t] / total;
        for (let i = 0; i < size; i++) {
          seen[row * width + start + i] += share * values[there + i];
        }
      }
    }
  }

  return { step };
}

function add(sum, more) {
  for (let i = 0; i < sum.length; i++) sum[i] += more[i];
}

// A condition (1 yes, 0 no, 0.5 left open) moves every place by the same vector.
function whatConditionAdds({ width, condition: weight }, condition) {
  const sum = new Float32Array(width);
  if (!weight || !condition) return sum;
  condition.forEach((value, a) => {
    for (let i = 0; i < width; i++) sum[i] += (2 * value - 1) * weight[a * width + i];
  });
  return sum;
}

// ── The mixture of Gaussians that is said of a place ──

function mixtureFrom({ components, channels }, said) {
  const size = 1 + 2 * channels;
  const parts = Array.from({ length: components }, (_, k) => {
    const start = k * size;
    const mean = said.subarray(start + 1, start + 1 + channels);
    const logScale = said.subarray(start + 1 + channels, start + size).map((value) => {
      return Math.min(3, Math.max(-7, value)); // as in Python
    });
    const scale = logScale.map(Math.exp);
    return { logit: said[start], mean, scale, logVolume: sumOver(logScale) };
  });
  return { parts, total: logSumExp(parts.map(({ logit }) => logit)), channels };
}

const sumOver = (values) => values.reduce((total, value) => total + value, 0);

function logSumExp(values) {
  const largest = Math.max(...values);
  return largest + Math.log(sumOver(values.map((value) => Math.exp(value - largest))));
}

// log p(code) in nats
function logDensity({ parts, total, channels }, code) {
  const constant = 0.5 * channels * Math.log(2 * Math.PI);
  return logSumExp(parts.map(({ logit, mean, scale, logVolume }) => {
    let squares = 0;
    for (let i = 0; i < channels; i++) squares += ((code[i] - mean[i]) / scale[i]) ** 2;
    return logit - total - constant - logVolume - 0.5 * squares;
  }));
}

// Which of the choices a uniform number in [0, 1) falls on: chances are in proportion to exp(logs).
function chosen(logs, uniform) {
  const total = logSumExp(logs);
  let left = uniform;
  const index = logs.findIndex((log) => (left -= Math.exp(log - total)) < 0);
  return index < 0 ? logs.length - 1 : index;
}

// One code. Below temperature 1 likely components come oftener, and codes are nearer to their
// means. With guidance w several candidates are drawn, and one is kept, with a chance in
// proportion to (p / p without)^w: what the condition says counts more.
function drawCode(prior, said, saidWithout, { temperature, guidance }, noise) {
  const mixture = mixtureFrom(prior, said);
  const logits = mixture.parts.map(({ logit }) => logit / temperature ** 2);
  const candidates = Array.from({ length: guidance ? prior.candidates : 1 }, () => {
    const { mean, scale } = mixture.parts[chosen(logits, noise.uniform())];
    return mean.map((mu, i) => mu + temperature * scale[i] * noise.normal());
  });
  if (!guidance) return candidates[0];
  const without = mixtureFrom(prior, saidWithout);
  const logs = candidates.map((code) => {
    return guidance * (logDensity(mixture, code) - logDensity(without, code));
  });
  return candidates[chosen(logs, noise.uniform())];
}

// ── Codes of several images, drawn side by side ──

// `images` is a list of {condition, without, noise}; noise(token) gives what one token takes.
// given (tokens * channels) and keep (tokens): tokens that stand already.
// `advance` draws so many tokens more and says which one is next.
function makeDrawing(engine, prior, { images, temperature, guidance, given, keep }) {
  const { tokens, channels } = prior;
  const n = images.length;
  const conditions = images.map(({ condition }) => condition);
  const others = guidance ? images.map(({ without }) => without) : [];
  const walk = makeWalk(engine, prior, [...conditions, ...others]);
  const codes = images.map(() => new Float32Array(tokens * channels).map((nothing, i) => {
    return keep?.[Math.floor(i / channels)] ? given[i] : nothing; // what stands is seen at once
  }));
  let next = 0;

  function advance(count) {
    const end = Math.min(tokens, next + count);
    for (; next < end; next++) {
      const said = walk.step(next, tokensBefore());
      const size = said.length / (conditions.length + others.length);
      const of = (row) => said.subarray(row * size, (row + 1) * size);
      const [from, to] = [next * channels, (next + 1) * channels];
      images.forEach(({ noise }, i) => {
        const stands = keep?.[next];
        const saidWithout = guidance ? of(n + i) : null;
        const code = stands
          ? given.subarray(from, to)
          : drawCode(prior, of(i), saidWithout, { temperature, guidance }, noise(next));
        codes[i].set(code, from);
      });
    }
    return next;
  }

  // (rows, channels): the walks with and without a condition go over the same codes
  function tokensBefore() {
    if (!next) return null;
    const part = codes.map((code) => code.subarray((next - 1) * channels, next * channels));
    return Float32Array.from([...part, ...(guidance ? part : [])].flatMap((code) => [...code]));
  }

  return { codes, tokens, advance };
}
