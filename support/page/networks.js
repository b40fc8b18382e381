// Encoders and decoders: lists of plain layers, on feature maps in the order (H, W, C).
// support/page_weights.py writes what is read here.

// Reads vectors and matrices in the order in which they were written: numbers in float32, then the
// lower bytes of all weights, then, where there are two bytes a weight, their upper ones.
function readerOf(engine, description, buffer) {
  const { numbers, weights, bytes_per_weight: wide } = description;
  const floats = new Float32Array(buffer, 0, numbers);
  const whole = new Int8Array(buffer, 4 * numbers, weights);
  const lower = new Uint8Array(buffer, 4 * numbers, weights);
  const upper = new Int8Array(buffer, 4 * numbers + (wide - 1) * weights);
  const weightAt = wide === 2 ? (i) => lower[i] + 256 * upper[i] : (i) => whole[i];
  let number = 0;
  let weight = 0;

  function vector(length) {
    const values = engine.take(roundUp(length, COLUMNS_AT_ONCE));
    values.set(floats.subarray(number, number + values.length));
    number += values.length;
    return values;
  }

  // (inputs, outputs), with one scale for each output
  function matrix(inputs, outputs) {
    const columns = roundUp(outputs, COLUMNS_AT_ONCE);
    const scale = floats.subarray(number, number + columns);
    number += columns;
    const values = engine.take(inputs * columns);
    for (let i = 0; i < values.length; i++) values[i] = scale[i % columns] * weightAt(weight + i);
    weight += values.length;
    return values;
  }

  return { vector, matrix };
}

function networkFrom(engine, description, buffer) {
  const reader = readerOf(engine, description, buffer);

  function readLayer(layer) {
    if (layer.layers) return { ...layer, layers: layer.layers.map(readLayer) };
    if (layer.kind === "affine") {
      const scale = reader.vector(layer.channels);
      return { ...layer, scale, shift: reader.vector(layer.channels) };
    }
    const taps = layer.size ** 2 * layer.inputs;
    const phases = [];
    for (let phase = 0; phase < layer.spread ** 2; phase++) {
      phases.push(reader.matrix(taps, layer.outputs));
    }
    return { ...layer, phases, bias: reader.vector(layer.outputs) };
  }

  return { ...description, layers: description.layers.map(readLayer) };
}

// An image (H, W, 3) in [0, 1] → mu. Of a grid mu is in the order of the prior's tokens: the code
// of the whole image, then that of each place, row after row.
function encode(engine, { layers, range: [low, high] }, image) {
  return engine.borrow(() => {
    const x = engine.take(image.length);
    image.forEach((value, i) => (x[i] = value * (high - low) + low));
    const maps = { side: Math.sqrt(image.length / 3), channels: 3, data: x };
    const whole = []; // filled by a fork
    const { data } = through(engine, layers, maps, whole);
    return Float32Array.from([...whole, ...data]);
  });
}

// z → an image (H, W, 3) in [0, 1]. z of a grid is in the order of the prior's tokens.
function decode(engine, { layers, range: [low, high], grid: side }, z) {
  return engine.borrow(() => {
    const { inputs } = layers[0];
    const places = side * side * inputs; // a plain VAE has one
    const code = engine.take(places);
    code.set(z.subarray(z.length - places));
    const whole = z.subarray(0, z.length - places);
    const { data } = through(engine, layers, { side, channels: inputs, data: code }, whole);
    // A tanh that is scaled from [-1, 1] to [0, 1] is a sigmoid of twice the argument.
    return Float32Array.from(data, (xRaw) => 1 / (1 + Math.exp((low - high) * xRaw)));
  });
}

// `whole` is the code of the whole image: a fork writes it, a join reads it.
function through(engine, layers, maps, whole) {
  for (const layer of layers) {
    if (layer.kind === "conv") {
      maps = convolve(engine, layer, maps);
    } else if (layer.kind === "affine") {
      maps = { ...maps, data: normalised(engine, layer, maps.data) };
    } else if (layer.kind === "residual") {
      const branch = through(engine, layer.layers, maps, whole);
      maps = { ...maps, data: sumOf(engine, maps.data, branch.data, false) };
    } else if (layer.kind === "fork") {
      whole.push(...through(engine, layer.layers, maps, whole).data);
    } else if (layer.kind === "join") {
      const code = engine.take(whole.length);
      code.set(whole);
      const start = { side: 1, channels: whole.length, data: code };
      const other = through(engine, layer.layers, start, whole);
      maps = { ...maps, data: sumOf(engine, maps.data, other.data, layer.relu) };
    }
  }
  return maps;
}

function sumOf(engine, a, b, relu) {
  const sum = engine.take(a.length);
  const least = relu ? 0 : -Infinity;
  for (let i = 0; i < sum.length; i++) sum[i] = Math.max(least, a[i] + b[i]);
  return sum;
}

// Batch normalisation and ReLU
function normalised(engine, { channels, scale, shift }, data) {
  const result = engine.take(data.length);
  for (let i = 0; i < data.length; i++) {
    result[i] = Math.max(0, data[i] * scale[i % channels] + shift[i % channels]);
  }
  return result;
}

function withBorder(engine, { side, channels, data }, pad) {
  if (!pad) return data;
  const wide = side + 2 * pad;
  const padded = engine.take(wide * wide * channels);
  for (let y = 0; y < side; y++) {
    const row = data.subarray(y * side * channels, (y + 1) * side * channels);
    padded.set(row, ((y + pad) * wide + pad) * channels);
  }
  return padded;
}

// A convolution is one product for each row of the output and each row of the kernel: the windows
// of a row of pixels overlap, and the product reads them where they are.
// A transposed convolution has four phases: phase 2a + b makes the pixels (2y + a, 2x + b).
function convolve(engine, layer, maps) {
  const { size, stride, pad, spread, inputs, outputs, phases, bias, relu } = layer;
  const wide = maps.side + 2 * pad;
  const places = (wide - size - (spread - 1)) / stride + 1; // a phase may start one pixel later
  const rows = Math.floor(places);
  const side = rows * spread;
  const columns = roundUp(outputs, COLUMNS_AT_ONCE);
  const input = withBorder(engine, maps, pad);
  const output = engine.take(side * side * columns);
  for (let start = 0; start < output.length; start += columns) output.set(bias, start);
  const run = size * inputs; // what one row of the kernel reads
  phases.forEach((weights, phase) => {
    const [top, left] = [phase >> 1, phase & 1];
    for (let y = 0; y < rows; y++) {
      const to = output.byteOffset + 4 * columns * ((y * spread + top) * side + left);
      for (let row = 0; row < size; row++) {
        const from = input.byteOffset + 4 * inputs * ((y * stride + top + row) * wide + left);
        const tap = weights.byteOffset + 4 * columns * run * row;
        const [step, cRow] = [4 * stride * inputs, 4 * spread * columns];
        engine.multiply(from, step, 4, tap, to, cRow, rows, run, columns);
      }
    }
  });
  if (relu) for (let i = 0; i < output.length; i++) output[i] = Math.max(0, output[i]);
  const data = outputs === columns ? output : withoutPadding(engine, output, outputs, columns);
  if (!layer.side) return { side, channels: outputs, data };
  return { side: layer.side, channels: outputs / layer.side ** 2, data };
}

function withoutPadding(engine, padded, outputs, columns) {
  const places = padded.length / columns;
  const data = engine.take(places * outputs);
  for (let place = 0; place < places; place++) {
    data.set(padded.subarray(place * columns, place * columns + outputs), place * outputs);
  }
  return data;
}
