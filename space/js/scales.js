/** Axes: from values to pixels, and their ticks. */

const LEAST = 3; // ticks of an axis
const DIGITS = [[1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]];

/**
 * @typedef {object} Scale
 * @property {(value: number) => number} at Pixel of a value.
 * @property {number[]} ticks
 */

/**
 * @param {number[]} values
 * @param {[number, number]} pixels First and last.
 * @returns {Scale}
 */
export function linear(values, pixels, fromZero = false) {
  const [low, high] = [fromZero ? 0 : Math.min(...values), Math.max(...values)];
  const step = niceStep((high - low || 1) / 5);
  const first = fromZero ? 0 : Math.floor((low - step / 4) / step) * step;
  const last = high + step / 2;
  const ticks = [];
  for (let i = 0; first + i * step <= last; i++) ticks.push(Number((first + i * step).toPrecision(12)));
  return { at: between(first, last, pixels, (value) => value), ticks };
}

/**
 * @param {number[]} values Positive.
 * @param {[number, number]} pixels
 * @returns {Scale}
 */
export function logarithmic(values, pixels) {
  const [low, high] = [Math.min(...values) / 1.25, Math.max(...values) * 1.25];
  const choices = DIGITS.map((digits) => powers(low, high, digits));
  const ticks = choices.find((some) => some.length >= LEAST) ?? steps(low, high);
  return { at: between(low, high, pixels, Math.log), ticks };
}

/** Numbers from `low` to `high` that begin with one of the digits. */
function powers(low, high, digits) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of digits) {
      const tick = Number((digit * 10 ** power).toPrecision(3));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

/** Round numbers at equal steps within a narrow range. */
function steps(low, high) {
  const step = niceStep((high - low) / 5);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function between(low, high, [first, last], map) {
  const [start, end] = [map(low), map(high)];
  return (value) => first + ((map(value) - start) / (end - start)) * (last - first);
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((step) => step >= rough * 0.999);
}
