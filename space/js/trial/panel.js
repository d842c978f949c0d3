/** The part of the page where an image is tried. */

import { announce, el } from '../dom.js';
import { draw } from './draw.js';
import { Marking } from './marking.js';
import { Stopped } from './runner.js';
import { Trial } from './trial.js';

const HOW = 'Images and files stay in this browser. They are resized as Pillow does it, with antialiasing; browsers decode JPEG a little differently, lose colors under transparency, and apply no color profile, like timm.';

/** @param {{runtime: string|null, model: string|null, images: string[]}} given What the site comes with. */
export function makeTrial(given) {
  const box = document.getElementById('trial');
  if (!given.runtime) {
    box.append(el('p', { class: 'hint' }, 'Trying images is left out of this copy of the page: ', el('code', {}, 'tinyvit-zoo browser build --npm'), ' adds onnxruntime-web, which it needs.'));
    return;
  }
  new Panel(box, given).show();
}

/** The bytes of a file of this site. */
async function fetched(address) {
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) throw new Error(`${address} cannot be fetched from this site: try again, or give a file of your own.`);
  return answer.arrayBuffer();
}

/** Whether a file can be read: a folder, or what is gone since it was chosen, cannot. */
async function check(file) {
  await file.slice(0, 1).arrayBuffer().catch(() => { throw new Error(`${file.name} cannot be read: give files, not folders.`); });
}

class Panel {
  constructor(box, given) {
    this.box = box;
    this.given = given;
    this.trial = new Trial((loaded, total) => this.progress(loaded, total));
    this.turn = 0; // counts runs, so that one knows when it is no longer wanted
    this.input = el('input', { type: 'file', id: 'file', accept: 'image/*,.onnx', multiple: true, onchange: () => this.take([...this.input.files]) });
    this.drop = el('div', { class: 'drop' }, el('p', {}, 'Drop an image here, or an ONNX file of ', el('code', {}, 'tinyvit-zoo export'), ', or the two of ', el('code', {}, 'tinyvit-zoo sam export'), '.'), el('label', { for: 'file' }, 'Choose files'), this.input);
    this.line = el('p', { class: 'model-line', 'aria-live': 'polite' });
    this.own = null; // the model of this site, once it was fetched
    this.back = el('button', { type: 'button', class: 'back', hidden: true, onclick: () => this.takeOwnModel() }, "Use this site's model");
    this.bar = el('progress', { 'aria-label': 'Progress' });
    this.state = el('span', {});
    this.busy = el('div', { class: 'busy', hidden: true }, this.bar, this.state, el('button', { type: 'button', onclick: () => this.stop() }, 'Stop'));
    this.error = el('p', { class: 'notice', role: 'alert', hidden: true });
    this.result = el('div', { class: 'result' });
  }

  show() {
    const samples = this.given.images.map((address) => el('li', {}, el('button', { type: 'button', 'aria-label': `Try ${address.split('/').pop()}`, onclick: () => this.takeSample(address) }, el('img', { src: address, alt: '', width: 40, height: 40, loading: 'lazy' }))));
    for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) this.drop.addEventListener(kind, (event) => this.dragged(event));
    // A file that misses the place would otherwise be shown in place of the page.
    for (const kind of ['dragover', 'drop']) addEventListener(kind, (event) => { if (event.dataTransfer?.types.includes('Files')) event.preventDefault(); });
    this.box.append(
      el('div', { class: 'trial' }, el('div', { class: 'given' }, this.drop, samples.length ? el('ul', { class: 'samples', 'aria-label': 'Images to try' }, ...samples) : null, this.line, this.back), el('div', { class: 'found' }, this.busy, this.error, this.result)),
      el('p', { class: 'hint' }, HOW),
    );
    this.describe();
  }

  dragged(event) {
    event.preventDefault();
    this.drop.classList.toggle('over', event.type === 'dragenter' || event.type === 'dragover');
    if (event.type === 'drop') this.take([...event.dataTransfer.files]);
  }

  /** @param {string} address */
  takeSample(address) {
    return this.guarded(async (goOn) => {
      const file = new Blob([await fetched(address)]);
      goOn();
      await this.trial.useImage(file, goOn);
      await this.run(goOn);
    });
  }

  /** Go back to the model of this site after one that was given. */
  takeOwnModel() {
    return this.guarded(async (goOn) => {
      this.trial.forgetModels();
      this.describe();
      await this.run(goOn);
    });
  }

  /** @param {File[]} files */
  take(files) {
    this.input.value = ''; // the same file may be chosen again, mended
    if (!files.length) return Promise.resolve(); // text or a link was dropped
    return this.guarded(async (goOn) => {
      for (const file of files) {
        await check(file);
        if (file.name.toLowerCase().endsWith('.onnx')) {
          const bytes = await file.arrayBuffer();
          goOn();
          this.trial.useModel(bytes, file.name);
        } else if (!file.type || file.type.startsWith('image/')) await this.trial.useImage(file, goOn);
        else throw new Error(`${file.name} is neither an image nor an ONNX file.`);
      }
      await this.run(goOn);
    });
  }

  /** @param {() => void} goOn Throws once this run was stopped, or another one began. */
  async run(goOn) {
    const { trial } = this;
    if (trial.segments) {
      await this.segment(goOn);
      return;
    }
    if (trial.image && !trial.model && this.given.model) {
      this.say('Fetching the model');
      const bytes = await fetched(this.given.model);
      goOn();
      trial.useModel(bytes, this.given.model);
      this.own = trial.model;
    }
    this.describe();
    if (!trial.model || !trial.image) return;
    this.say(trial.isLoaded ? 'Running' : 'Making the model ready');
    const answer = await trial.run();
    goOn();
    this.result.replaceChildren(...draw(answer, trial.model));
    announce(answer.best.length ? `${answer.best[0].label}, ${(100 * answer.best[0].probability).toFixed(1)} %.` : 'Features computed.');
  }

  /** Show the image of which objects are to be marked. */
  async segment(goOn) {
    const { sam, image } = this.trial;
    this.describe();
    if (!sam.isWhole || !image) return;
    this.say('Encoding the image, once for all marks');
    await sam.embed(image);
    goOn();
    const marking = new Marking(image, (marks) => this.guarded(async (stillOn) => {
      if (!sam.embedded) await sam.embed(image); // after a stop
      const found = await sam.mask(marks);
      stillOn();
      marking.show(found);
    }, false));
    this.result.replaceChildren(marking.element);
  }

  /** Run an action in place of the last one; show that it runs, and how it failed. */
  async guarded(action, clears = true) {
    const turn = ++this.turn;
    const isOver = () => turn !== this.turn;
    this.error.hidden = true;
    if (clears) this.result.replaceChildren();
    this.say(clears ? 'Reading' : 'Segmenting');
    try {
      await action(() => { if (isOver()) throw new Stopped('Stopped.'); });
    } catch (error) {
      if (!isOver()) this.fail(error.message);
    }
    if (!isOver()) this.rest();
  }

  /** Nothing runs any more. The focus does not get lost with a button that goes. */
  rest() {
    const isLost = this.busy.contains(document.activeElement);
    this.busy.hidden = true;
    if (isLost) this.input.focus();
  }

  stop() {
    this.turn++;
    this.trial.stop();
    this.rest();
    this.fail('Stopped.');
  }

  fail(words) {
    this.describe();
    this.error.textContent = words;
    this.error.hidden = false;
  }

  say(words) {
    this.busy.hidden = false;
    this.bar.removeAttribute('value');
    this.state.textContent = `${words} …`;
  }

  /** What runs is shown already; where a later run has failed, an earlier one goes on in silence. */
  progress(loaded, total) {
    if (total) this.bar.value = loaded / total;
    this.state.textContent = `onnxruntime-web: ${(loaded / 1e6).toFixed(1)}${total ? ` of ${(total / 1e6).toFixed(1)}` : ''} MB …`;
  }

  describe() {
    const { model, segments, sam } = this.trial;
    const isOwn = !segments && (!model || model === this.own);
    if (isOwn && document.activeElement === this.back) this.input.focus();
    this.back.hidden = isOwn || !this.given.model;
    if (segments) {
      this.line.textContent = sam.isWhole
        ? `Model: Segment Anything, ${sam.files.encoder.facts.img_size.join(' × ')} pixels. ${this.trial.image ? '' : 'Give an image.'}`
        : `Segment Anything has two files: give its ${sam.files.encoder ? 'decoder' : 'encoder'}, too.`;
      return;
    }
    if (!model) {
      this.line.textContent = this.given.model ? 'The model of this site is used until you give an ONNX file.' : 'This site comes with no model: give an ONNX file first.';
      return;
    }
    const [, height, width] = model.config.input_size;
    this.line.textContent = `Model: ${model.name}, ${model.labels.length ? `${model.labels.length} ${model.labels.length === 1 ? 'class' : 'classes'}` : 'features'}, ${height} × ${width} pixels.`;
  }
}
