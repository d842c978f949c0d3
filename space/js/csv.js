/** The table as a file. */

import { measured, speedTitle } from './models.js';

const HEADINGS = [
  'model', 'of', 'family', 'task', 'method', 'license', 'image', 'classes', 'parameters', 'gmacs', 'megabytes',
  'top1', 'top1_by', 'top1_source', 'ms', 'images_per_second', 'speed_measured_on', 'speed_date', 'speed_source',
];

/**
 * @param {any[]} models
 * @param {import('./view.js').View} view
 * @param {Record<string, {text: string, url: string|null}>} sources
 * @returns {string} One line a model, in their order; empty where nothing is known.
 */
export function csvText(models, view, sources) {
  const lines = models.map((model) => {
    const speed = measured(model, view.speed);
    const { top1 } = model;
    return [
      model.name, model.of, model.series, model.task, model.method, model.license.id, model.img_size.value, model.num_classes.value,
      model.params.value, model.gmacs.value, model.megabytes.value,
      top1?.top1, top1?.by, top1 && (sources[top1.source].url ?? sources[top1.source].text),
      speed?.ms, speed?.images_per_second, speed && speedTitle(speed), speed?.date, speed && sources[speed.source].text,
    ];
  });
  return [HEADINGS, ...lines].map((line) => line.map(cell).join(',')).join('\n') + '\n';
}

/** Let the browser save it as a file. */
export function saveCsv(models, view, sources) {
  const address = URL.createObjectURL(new Blob([csvText(models, view, sources)], { type: 'text/csv' }));
  const anchor = document.createElement('a');
  anchor.href = address;
  anchor.download = 'tinyvit_zoo.csv';
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function cell(value) {
  const text = String(value ?? '');
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
