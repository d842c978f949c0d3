/** From an image to what a model takes, as timm's transform for evaluation does it. */

import { FILTERS, resize } from './resize.js';

/** @typedef {import('./resize.js').Pixels} Pixels */

const MOST = 4096; // pixels of a side
const LEAST_CROP = 0.1;
export const DAMAGED = 'What this file says of itself is damaged: export it anew.';

/**
 * @typedef {object} Preprocessing timm's data config, as our exported files hold it.
 * @property {[number, number, number]} input_size Channels, height, width.
 * @property {string} interpolation
 * @property {number[]} mean
 * @property {number[]} std
 * @property {number} crop_pct
 * @property {string} crop_mode
 */

/**
 * The data config in the metadata of a file. A file can say anything: nothing else is computed with.
 * @param {Record<string, string>} metadata
 * @param {string[]} modes Values of `crop_mode` that can be followed.
 * @returns {Preprocessing}
 * @throws {Error} If there is none, or this page cannot follow it.
 */
export function readPreprocessing(metadata, modes = ['center', 'squash']) {
  if (!metadata.preprocessing) {
    throw new Error('This file does not say how images are prepared: `tinyvit-zoo export` writes files that do.');
  }
  const config = parsed(metadata.preprocessing);
  const { input_size: size, interpolation, crop_mode: mode } = config ?? {};
  if (!areNumbers(size, (side) => Number.isInteger(side) && side > 0)) throw new Error(DAMAGED);
  if (size[0] !== 3) throw new Error(`This model takes ${size[0]} channel${size[0] === 1 ? '' : 's'}, and images have three.`);
  if (Math.max(...size) > MOST) throw new Error(`This model takes images of ${size[1]} × ${size[2]} pixels, too large for this page.`);
  const isWhole = areNumbers(config.mean) && areNumbers(config.std, (value) => value > 0) && config.crop_pct >= LEAST_CROP && config.crop_pct <= 1;
  if (!isWhole) throw new Error(DAMAGED);
  if (!Object.hasOwn(FILTERS, interpolation)) throw new Error(`This page cannot resize by '${interpolation}', only ${Object.keys(FILTERS).join(' and ')}.`);
  if (!modes.includes(mode)) throw new Error(`This page cannot crop by '${mode}', only ${modes.join(' and ')}.`);
  return config;
}

/** Whether these are three numbers, and good ones. */
function areNumbers(values, isGood = () => true) {
  return Array.isArray(values) && values.length === 3 && values.every((value) => Number.isFinite(value) && isGood(value));
}

/**
 * A text of the metadata that should be JSON.
 * @param {string} text
 * @throws {Error} If it is not.
 */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(DAMAGED);
  }
}

/**
 * The square, or rectangle, that a model sees.
 * @param {Pixels} image
 * @param {Preprocessing} config
 * @returns {Pixels}
 */
export function resizedAndCropped(image, config) {
  const [, height, width] = config.input_size;
  const [high, wide] = scaledSize(image, [Math.floor(height / config.crop_pct), Math.floor(width / config.crop_pct)], config.crop_mode);
  const box = { left: halfToEven((wide - width) / 2), top: halfToEven((high - height) / 2), width, height };
  return resize(image, wide, high, config.interpolation, box);
}

/**
 * @param {Pixels} pixels
 * @param {Preprocessing} config
 * @returns {Float32Array} (1, 3, height, width), normalized.
 */
export function normalized(pixels, config) {
  const count = pixels.width * pixels.height;
  const values = new Float32Array(3 * count);
  for (let channel = 0; channel < 3; channel++) {
    const [mean, std] = [Math.fround(config.mean[channel]), Math.fround(config.std[channel])];
    for (let i = 0; i < count; i++) {
      const level = Math.fround(pixels.data[3 * i + channel] / 255);
      values[channel * count + i] = Math.fround(level - mean) / std;
    }
  }
  return values;
}

/**
 * Height and width of an image in the upper left corner of what Segment Anything takes.
 * @param {Pixels} image
 * @param {[number, number]} size Height and width of the model.
 * @returns {[number, number]}
 */
export function fittedSize({ height, width }, size) {
  const scaled = (scale) => [height, width].map((side) => Math.max(1, Math.trunc(side * scale + 0.5)));
  const found = scaled(Math.max(...size) / Math.max(height, width));
  return found[0] > size[0] || found[1] > size[1] ? scaled(Math.min(size[0] / height, size[1] / width)) : found;
}

/**
 * What Segment Anything takes: normalized pixels in the upper left corner, zeros around them.
 * @param {Pixels} image
 * @param {Preprocessing} config
 * @param {[number, number]} fitted Height and width of the resized image.
 * @param {[number, number]} size Height and width of the result.
 * @returns {Float32Array} (1, 3, height, width)
 */
export function padded(image, config, fitted, [height, width]) {
  const values = normalized(resize(image, fitted[1], fitted[0], config.interpolation), config);
  const whole = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++) {
    for (let row = 0; row < fitted[0]; row++) {
      const start = (channel * fitted[0] + row) * fitted[1];
      whole.set(values.subarray(start, start + fitted[1]), (channel * height + row) * width);
    }
  }
  return whole;
}

/** Height and width before the crop. */
function scaledSize(image, [high, wide], mode) {
  if (mode === 'squash') return [high, wide];
  if (high === wide) { // torchvision: the short side exactly, the other cut off to whole pixels
    const long = Math.trunc((high * Math.max(image.width, image.height)) / Math.min(image.width, image.height));
    return image.width <= image.height ? [long, high] : [high, long];
  }
  const ratio = Math.min(image.height / high, image.width / wide);
  return [halfToEven(image.height / ratio), halfToEven(image.width / ratio)];
}

/** As Python rounds. */
function halfToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}
