// The engine: a stretch of memory, and one matrix product on numbers that lie in it.
//
// With WebAssembly and its vectors (SIMD) the product is that of engine.wat, else it is the loop
// below. Both take the same arguments and give the same numbers up to rounding.

const COLUMNS_AT_ONCE = 8; // matrices on the right of a product have a multiple of 8 columns

const roundUp = (count, unit) => Math.ceil(count / unit) * unit;

// `wasm` holds the assembled bytes; null asks for plain JavaScript.
function makeEngine(floatCount, wasm) {
  const pages = Math.ceil((4 * floatCount) / 65536) + 1;
  try {
    if (!wasm) throw new Error("plain JavaScript was asked for");
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    const module = new WebAssembly.Module(wasm);
    const { multiply } = new WebAssembly.Instance(module, { page: { memory } }).exports;
    return engineOn(memory.buffer, multiply, "WebAssembly");
  } catch {
    const buffer = new ArrayBuffer(65536 * pages);
    return engineOn(buffer, plainProduct(new Float32Array(buffer)), "JavaScript");
  }
}

function engineOn(buffer, multiply, kind) {
  const floats = new Float32Array(buffer);
  let taken = 0; // how many numbers of the memory are in use

  // A new array of so many numbers, all 0.
  function take(count) {
    const first = taken;
    taken = roundUp(first + count, 4);
    if (taken > floats.length) throw new Error("The memory of the engine is full.");
    return floats.subarray(first, first + count).fill(0);
  }

  // All that `work` takes is given back when it is done. It must return an array of its own.
  function borrow(work) {
    const before = taken;
    try {
      return work();
    } finally {
      taken = before;
    }
  }

  // c += a b, for arrays of whole matrices, row after row: a (m, k), b (k, n), c (m, n).
  function product(a, b, c, m, k, n) {
    multiply(a.byteOffset, 4 * k, 4, b.byteOffset, c.byteOffset, 4 * n, m, k, n);
  }

  // c += aᵀ b, with a (k, m): its rows are read as columns.
  function productTransposed(a, b, c, m, k, n) {
    multiply(a.byteOffset, 4, 4 * m, b.byteOffset, c.byteOffset, 4 * n, m, k, n);
  }

  return { kind, take, borrow, multiply, product, productTransposed };
}

// The product of engine.wat in JavaScript: two rows and four columns at a time.
function plainProduct(floats) {
  return (aBytes, aRowBytes, aStepBytes, bBytes, cBytes, cRowBytes, m, k, n) => {
    const [a, aRow, aStep] = [aBytes >> 2, aRowBytes >> 2, aStepBytes >> 2];
    const [b, c, cRow] = [bBytes >> 2, cBytes >> 2, cRowBytes >> 2];
    for (let j = 0; j < n; j += 4) {
      for (let i = 0; i < m; i += 2) {
        const isLast = i + 1 === m; // a last row that stands alone is computed twice
        const first = c + i * cRow + j;
        const second = isLast ? first : first + cRow;
        let x = a + i * aRow;
        let y = isLast ? x : x + aRow;
        let w = b + j;
        let p0 = floats[first], p1 = floats[first + 1], p2 = floats[first + 2];
        let p3 = floats[first + 3];
        let q0 = floats[second], q1 = floats[second + 1], q2 = floats[second + 2];
        let q3 = floats[second + 3];
        for (let l = 0; l < k; l++) {
          const p = floats[x], q = floats[y];
          const w0 = floats[w], w1 = floats[w + 1], w2 = floats[w + 2], w3 = floats[w + 3];
          p0 += p * w0; p1 += p * w1; p2 += p * w2; p3 += p * w3;
          q0 += q * w0; q1 += q * w1; q2 += q * w2; q3 += q * w3;
          x = (x + aStep) | 0;
          y = (y + aStep) | 0;
          w = (w + n) | 0;
        }
        floats[first] = p0; floats[first + 1] = p1; floats[first + 2] = p2; floats[first + 3] = p3;
        floats[second] = q0; floats[second + 1] = q1; floats[second + 2] = q2;
        floats[second + 3] = q3;
      }
    }
  };
}
