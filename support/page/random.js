// Random numbers that a seed determines, so that a link shows everyone the same pictures.

// Uniform numbers in [0, 1): mulberry32.
function uniforms(seed) {
  let a = seed | 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// A normal number from two uniform ones: Box-Muller.
function normalFrom(uniform) {
  return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// Each token of a code has its own noise. So a face stays nearly the same while temperature or
// guidance is moved.
function noiseOf(seed) {
  return (token) => {
    const uniform = uniforms(Math.imul(seed + 1, 0x9e3779b1) + token * 7919);
    return { uniform, normal: () => normalFrom(uniform) };
  };
}
