/** The image on which objects are marked: by clicks, or by a cross that the arrow keys move. */

import { el } from '../dom.js';
import { toImageData } from './draw.js';

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const COLOR = [30, 144, 255];

export class Marking {
  /**
   * @param {import('./resize.js').Pixels} image
   * @param {(marks: import('./sam.js').Mark[]) => void} onMarks
   */
  constructor(image, onMarks) {
    this.image = image;
    this.onMarks = onMarks;
    this.marks = [];
    this.mask = null;
    this.cross = null;
    this.canvas = el('canvas', {
      class: 'marking', width: image.width, height: image.height, tabindex: 0, role: 'application', 'aria-describedby': 'marking-help',
      'aria-label': 'The image. Arrow keys move a cross, Enter marks the object under it.',
      onclick: (event) => this.clicked(event), onkeydown: (event) => this.pressed(event),
    });
    this.other = el('input', { type: 'checkbox', id: 'not-this' });
    this.line = el('p', { 'aria-live': 'polite' }, 'Click on an object.');
    this.element = el(
      'div', { class: 'marked' }, this.canvas,
      el('p', { class: 'hint', id: 'marking-help' }, 'By keyboard: arrow keys move a cross (with Shift, further), Enter marks.'),
      el('div', { class: 'buttons' }, el('label', { class: 'check', for: 'not-this' }, this.other, 'Marks what is not the object'), el('button', { type: 'button', onclick: () => this.clear() }, 'Clear marks')),
      this.line,
    );
    this.draw();
  }

  /**
   * @param {{mask: Uint8Array, iou: number, ms: number}} found
   */
  show({ mask, iou, ms }) {
    this.mask = mask;
    const area = mask.reduce((sum, value) => sum + value, 0);
    this.line.textContent = `Mask of ${area} pixels, ${((100 * area) / mask.length).toFixed(1)} % of the image; the model expects an IoU of ${iou.toFixed(2)}; ${ms.toFixed(0)} ms.`;
    this.draw();
  }

  clicked(event) {
    const box = this.canvas.getBoundingClientRect();
    this.add(((event.clientX - box.left) / box.width) * this.image.width, ((event.clientY - box.top) / box.height) * this.image.height);
  }

  pressed(event) {
    const { width, height } = this.image;
    this.cross ??= [width / 2, height / 2];
    if (event.key in STEPS) {
      const step = (Math.max(width, height) / 100) * (event.shiftKey ? 10 : 1);
      const [across, down] = STEPS[event.key];
      this.cross = [clamp(this.cross[0] + across * step, width), clamp(this.cross[1] + down * step, height)];
      this.draw();
    } else if (event.key === 'Enter') this.add(...this.cross);
    else return;
    event.preventDefault();
  }

  add(x, y) {
    this.marks.push({ x: clamp(x, this.image.width), y: clamp(y, this.image.height), isOn: !this.other.checked });
    this.draw();
    if (this.marks.some((mark) => mark.isOn)) this.onMarks(this.marks);
    else this.line.textContent = 'Mark the object itself, too.';
  }

  clear() {
    this.marks = [];
    this.mask = null;
    this.line.textContent = 'Click on an object.';
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext('2d');
    const pixels = toImageData(this.image);
    this.mask?.forEach((value, i) => {
      if (!value) return;
      for (let channel = 0; channel < 3; channel++) pixels.data[4 * i + channel] = (pixels.data[4 * i + channel] + COLOR[channel]) / 2;
    });
    context.putImageData(pixels, 0, 0);
    const radius = Math.max(2, Math.max(this.image.width, this.image.height) / 100);
    context.lineWidth = radius / 3;
    for (const { x, y, isOn } of this.marks) {
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = isOn ? 'rgb(0 160 0)' : 'rgb(200 0 0)';
      context.strokeStyle = 'white';
      context.fill();
      context.stroke();
    }
    if (!this.cross) return;
    const [x, y] = this.cross;
    context.beginPath();
    context.moveTo(x - 2 * radius, y);
    context.lineTo(x + 2 * radius, y);
    context.moveTo(x, y - 2 * radius);
    context.lineTo(x, y + 2 * radius);
    for (const [color, width] of [['black', 0.8], ['white', 0.35]]) { // seen on any image, of any size
      context.strokeStyle = color;
      context.lineWidth = width * radius;
      context.stroke();
    }
  }
}

function clamp(value, size) {
  return Math.min(Math.max(value, 0), size - 1);
}
