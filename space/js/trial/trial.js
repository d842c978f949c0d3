/** Trying an image: which model and image there are, and what is done with them. */

import { readOnnx } from './onnx_file.js';
import { DAMAGED, parsed, readPreprocessing } from './preprocess.js';
import { Runner, Stopped } from './runner.js';
import { Sam } from './sam.js';

/** @typedef {import('./resize.js').Pixels} Pixels */

/**
 * @typedef {object} Classifier
 * @property {string} name
 * @property {string} input Name of its input.
 * @property {string[]} labels Names of classes; none of an encoder.
 * @property {import('./preprocess.js').Preprocessing} config
 */

/**
 * @typedef {object} Answer
 * @property {Pixels} seen What the model saw.
 * @property {number[]} values Logits, or features.
 * @property {{label: string, probability: number}[]} best Most probable classes first; none of an encoder.
 * @property {number} ms
 */

export class Trial {
  /** @param {(loaded: number, total: number) => void} onProgress */
  constructor(onProgress) {
    this.runner = new Runner(onProgress, () => this.forgetLoaded());
    this.sam = new Sam(this.runner);
    /** Whether the last file was one of Segment Anything. */
    this.segments = false;
    /** @type {Classifier|null} */
    this.model = null;
    /** @type {Pixels|null} */
    this.image = null;
    this.bytes = null;
    /** @type {Classifier|null} The one that the worker holds. */
    this.loaded = null;
  }

  get isLoaded() {
    return this.loaded !== null && this.loaded === this.model;
  }

  /**
   * Take a model from the bytes of an ONNX file.
   * @param {ArrayBuffer} bytes
   * @param {string} fileName
   */
  useModel(bytes, fileName) {
    const file = readOnnx(bytes);
    const { metadata, inputs, outputs } = file;
    if (Object.hasOwn(metadata, 'segment_anything')) {
      this.sam.use(bytes, file);
      this.segments = true;
      return;
    }
    const config = readPreprocessing(metadata);
    if (inputs.length !== 1 || outputs.length !== 1) throw new Error('This file takes or gives more than one tensor: only files of `tinyvit-zoo export` are run here.');
    const labels = outputs[0] === 'logits' ? parsed(metadata.labels ?? '[]') : [];
    if (!Array.isArray(labels) || !labels.every((label) => typeof label === 'string')) throw new Error(DAMAGED);
    this.model = { name: metadata.model || fileName, input: inputs[0], labels, config };
    this.bytes = bytes;
    this.segments = false;
  }

  /** Forget the models that were given. */
  forgetModels() {
    [this.segments, this.model, this.bytes] = [false, null, null];
    this.sam.forget();
  }

  /**
   * @param {Blob} file
   * @param {() => void} goOn Throws where this image is no longer wanted.
   */
  async useImage(file, goOn = () => {}) {
    const { image } = await this.runner.decode(file);
    goOn();
    this.image = image;
  }

  /** @returns {Promise<Answer>} */
  async run() {
    const { model, bytes, image, runner } = this;
    if (!this.isLoaded) {
      try {
        await runner.load('model', bytes);
      } catch (error) {
        if (!(error instanceof Stopped) && this.model === model) this.model = null; // the next run must not meet it again
        throw error;
      }
      this.loaded = model; // no matter which one is wanted by now
    }
    const { seen, values: pixels } = await runner.prepare(image, model.config);
    const dims = [1, 3, seen.height, seen.width];
    const { ms, outputs } = await runner.run('model', { [model.input]: { data: pixels, dims } });
    const values = [...Object.values(outputs)[0].data];
    if (!values.every(Number.isFinite)) throw new Error('The model gives values that are not finite: try the image with another export of it.');
    return { seen, values, best: best(values, model.labels), ms };
  }

  /** End what runs. Models are made ready anew at the next run. */
  stop() {
    this.runner.stop();
  }

  /** Forget what the worker held. */
  forgetLoaded() {
    this.loaded = null;
    this.sam.reset();
  }
}

/** The five most probable classes. A single logit has no other to compare with: its sigmoid, as in `classify`. */
export function best(logits, labels) {
  if (!labels.length) return [];
  if (logits.length === 1) return [{ label: labels[0], probability: 1 / (1 + Math.exp(-logits[0])) }];
  const highest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - highest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers
    .map((power, i) => ({ label: labels[i] ?? `class ${i}`, probability: power / total }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, 5);
}
