/**
 * Resizing of 8-bit images with antialiasing, to the bit as Pillow 13 does it: two passes, weights as integers of 22
 * bits, and whole gray levels in between.
 */

const BITS = 22;

/** Filters by timm's names: half of their width in pixels, and their weights. */
export const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
};

/**
 * @typedef {object} Pixels
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array|Uint8ClampedArray} data RGB, row by row.
 */

/**
 * @typedef {object} Box
 * @property {number} left
 * @property {number} top
 * @property {number} width
 * @property {number} height
 */

/**
 * @param {Pixels} image
 * @param {number} width
 * @param {number} height
 * @param {string} filter A key of `FILTERS`.
 * @param {Box} [box] Part of the result that is wanted; nothing else is computed, so a 1 × 5000 image stays small.
 * @returns {Pixels}
 */
export function resize(image, width, height, filter, box = { left: 0, top: 0, width, height }) {
  const [columns, rows] = [{ first: box.left, count: box.width }, { first: box.top, count: box.height }];
  const across = (given) => (width === image.width ? cut(given, columns, true) : pass(given, width, columns, true, FILTERS[filter]));
  const down = (given) => (height === image.height ? cut(given, rows, false) : pass(given, height, rows, false, FILTERS[filter]));
  // Found by trying sizes: earlier versions always begin across, which changes a level by one here and there.
  const isTall = image.height > height && image.height - height > 2 * (image.width - width);
  return isTall ? across(down(image)) : down(across(image));
}

/** Some columns, or rows, of an image. */
function cut(image, { first, count }, isAcross) {
  if (count === (isAcross ? image.width : image.height)) return image;
  const [width, height] = isAcross ? [count, image.height] : [image.width, count];
  if (!isAcross) return { width, height, data: image.data.slice(3 * width * first, 3 * width * (first + count)) };
  const data = new Uint8Array(width * height * 3);
  for (let row = 0; row < height; row++) {
    const start = 3 * (row * image.width + first);
    data.set(image.data.subarray(start, start + 3 * width), 3 * row * width);
  }
  return { width, height, data };
}

function cubic(given) {
  const x = Math.abs(given);
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** One pass: along rows, or along columns, of which some are wanted. */
function pass(image, size, wanted, isAcross, filter) {
  const [width, height] = isAcross ? [wanted.count, image.height] : [image.width, wanted.count];
  const [step, stride] = isAcross ? [3, image.width * 3] : [image.width * 3, 3]; // to the next pixel; to the next line
  const [lines, from] = isAcross ? [height, image.width] : [width, image.height];
  const [outStep, outStride] = isAcross ? [3, width * 3] : [width * 3, 3];
  const data = new Uint8Array(width * height * 3);
  weights(from, size, wanted, filter).forEach(({ first, values }, i) => {
    for (let line = 0; line < lines; line++) {
      let [red, green, blue] = [1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)];
      let at = line * stride + first * step;
      for (const value of values) {
        red += image.data[at] * value;
        green += image.data[at + 1] * value;
        blue += image.data[at + 2] * value;
        at += step;
      }
      const out = line * outStride + i * outStep;
      data[out] = level(red);
      data[out + 1] = level(green);
      data[out + 2] = level(blue);
    }
  });
  return { width, height, data };
}

function level(sum) {
  return Math.min(255, Math.max(0, sum >> BITS));
}

/** For every wanted pixel of the result: the first pixel that it sees, and the weights of those from there on. */
function weights(from, to, wanted, { support, weight }) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: wanted.count }, (_, i) => {
    const center = (wanted.first + i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support * stretch + 0.5));
    const last = Math.min(from, Math.trunc(center + support * stretch + 0.5));
    const raw = Array.from({ length: last - first }, (_unused, k) => weight((k + first - center + 0.5) * (1 / stretch)));
    const total = raw.reduce((sum, value) => sum + value, 0);
    const values = raw.map((value) => {
      const scaled = (total === 0 ? value : value * (1 / total)) * 2 ** BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, values };
  });
}
