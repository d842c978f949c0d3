/** Labels beside the points of the front, where there is room. */

import { svg } from './dom.js';

export const RING = 11; // radius around what is chosen
const MARK = 5;
const HEIGHT = 12;
const LETTER = 6.1; // mean width at 11 pixels

/**
 * @param {any[]} best Points of the front, with pixels.
 * @param {any[]} points All points.
 * @param {(point: any) => boolean} isChosen Whether a point has a ring.
 * @param {{left: number, right: number, top: number, bottom: number}} area
 * @returns {SVGElement[]}
 */
export function placeLabels(best, points, isChosen, area) {
  const radius = (point) => (isChosen(point) ? RING + 1 : MARK);
  const marks = points.map((point) => around(point, radius(point)));
  const taken = [...marks, ...lines(best)];
  const labels = [];
  for (const point of [...best].reverse()) {
    const words = point.model.label ?? point.model.architecture;
    const place = places(point, words.length * LETTER, radius(point)).find((one) => within(one, area) && !taken.some((other) => overlap(one, other)));
    if (!place) continue;
    taken.push(place);
    labels.push(svg('text', { x: place.left, y: place.bottom - 2 }, words));
  }
  return labels;
}

/** Where the steps of the front are drawn: to the right, then up to the next point. */
function lines(best) {
  return best.slice(1).flatMap(({ px, py }, i) => [
    { left: best[i].px, right: px, top: best[i].py - 1, bottom: best[i].py + 1 },
    { left: px - 1, right: px + 1, top: py, bottom: best[i].py },
  ]);
}

function around({ px, py }, radius) {
  return { left: px - radius, right: px + radius, top: py - radius, bottom: py + radius };
}

function places({ px, py }, width, radius) {
  const at = (left, top) => ({ left, right: left + width, top, bottom: top + HEIGHT });
  const more = radius - MARK;
  return [
    at(px - width - 8 - more, py - 8), at(px - width / 2, py - 21 - more), at(px - width - 4, py - 19 - more),
    at(px + 9 + more, py - 6), at(px - width / 2, py + 9 + more), at(px + 6, py + 7 + more),
  ];
}

function within(one, area) {
  return one.left >= area.left && one.right <= area.right && one.top >= area.top && one.bottom <= area.bottom;
}

function overlap(one, other) {
  return one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
}
