/** Segment Anything: its two files, and from points on an image to a mask. */

import { DAMAGED, fittedSize, parsed, readPreprocessing } from './preprocess.js';

/** @typedef {import('./resize.js').Pixels} Pixels */

/**
 * @typedef {object} Mark
 * @property {number} x In pixels of the image.
 * @property {number} y
 * @property {boolean} isOn Whether it is on the object, not on something else.
 */

const STRIDE = 16; // pixels of a place of the encoder's map
const LEAST = 32;
const PADDING = -1; // label of a point that is none, which goes with points where there is no box
const PARTS = ['encoder', 'decoder'];
const INPUTS = { images: 'images', map: 'image_embeddings' };

export class Sam {
  /** @param {import('./runner.js').Runner} runner */
  constructor(runner) {
    this.runner = runner;
    /** @type {Record<string, {facts: any, bytes: ArrayBuffer, config: any}>} By 'encoder' and 'decoder'. */
    this.forget();
  }

  /** Forget the files. */
  forget() {
    this.files = {};
    this.reset();
  }

  /** Forget what the runner held, and the map of the image. */
  reset() {
    this.loaded = null; // of `files`, those that the worker holds
    this.embedded = null;
  }

  get isWhole() {
    return Boolean(this.files.encoder && this.files.decoder);
  }

  /**
   * @param {ArrayBuffer} bytes
   * @param {import('./onnx_file.js').OnnxFile} file One that does not go with a whole pair begins another pair.
   * @throws {Error} If it is damaged, or does not go with the only other one.
   */
  use(bytes, file) {
    const facts = parsed(file.metadata.segment_anything);
    const config = readPreprocessing(file.metadata, ['corner']);
    if (!PARTS.includes(facts?.part) || String(facts.img_size) !== String(config.input_size.slice(1))) throw new Error(DAMAGED);
    const { isWhole } = this;
    const others = Object.values(this.files).filter((one) => one.facts.part !== facts.part);
    const fit = others.filter((one) => one.facts.weights === facts.weights && String(one.facts.img_size) === String(facts.img_size));
    this.files = Object.fromEntries([...fit, { facts, bytes, config }].map((one) => [one.facts.part, one]));
    this.reset();
    if (others.length > fit.length && !isWhole) throw new Error('The two files are of different models or sizes: give both of one export.');
  }

  /**
   * Run the encoder over an image, once for all marks on it.
   * @param {Pixels} image
   */
  async embed(image) {
    const { files } = this;
    const { facts, config } = files.encoder;
    if (this.loaded !== files) {
      for (const part of PARTS) await this.runner.load(part, files[part].bytes);
      this.loaded = files;
    }
    const fitted = fittedSize(image, facts.img_size);
    const size = facts.rectangular && facts.dynamic ? fitted.map((side) => Math.max(side, LEAST)) : facts.img_size;
    const { values } = await this.runner.fit(image, config, fitted, size);
    const { outputs, ms } = await this.runner.run('encoder', { [INPUTS.images]: { data: values, dims: [1, 3, ...size] } });
    if (this.files === files) this.embedded = { map: outputs[INPUTS.map], image, fitted, size };
    return ms;
  }

  /**
   * The mask of what is marked.
   * @param {Mark[]} marks
   * @returns {Promise<{mask: Uint8Array, iou: number, ms: number}>} 1 on the object, row by row of the image.
   */
  async mask(marks) {
    const { map, image, fitted, size } = this.embedded;
    const rows = Math.ceil(size[0] / STRIDE);
    const columns = Math.ceil(size[1] / STRIDE);
    const points = marks.flatMap(({ x, y }) => [(x * fitted[1]) / image.width, (y * fitted[0]) / image.height]);
    const labels = marks.map(({ isOn }) => (isOn ? 1 : 0));
    const inputs = {
      [INPUTS.map]: map,
      point_coords: tensor([...points, 0, 0], [1, marks.length + 1, 2]),
      point_labels: tensor([...labels, PADDING], [1, marks.length + 1]),
      mask_input: tensor(16 * rows * columns, [1, 1, 4 * rows, 4 * columns]),
      has_mask_input: tensor([0], [1]),
      orig_im_size: tensor([image.height, image.width], [2]),
    };
    const { outputs, ms } = await this.runner.run('decoder', inputs);
    const chosen = best(outputs.iou_predictions.data, marks.length + 1);
    const count = image.width * image.height;
    const logits = outputs.masks.data.subarray(chosen * count, (chosen + 1) * count);
    return { mask: Uint8Array.from(logits, (logit) => (logit > 0 ? 1 : 0)), iou: outputs.iou_predictions.data[chosen], ms };
  }
}

/** @param {number[]|number} values Numbers, or how many zeros. */
function tensor(values, dims) {
  return { data: new Float32Array(values), dims };
}

/** Of one mask that one; of four the first where there are many points, else the best of the others. */
function best(quality, points) {
  if (quality.length === 1) return 0;
  const scores = [...quality].map((value, i) => (i ? value : value + (points - 2.5) * 1000));
  return scores.indexOf(Math.max(...scores));
}
