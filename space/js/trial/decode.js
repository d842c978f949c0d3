/** From an image file to its pixels. */

/** @typedef {import('./resize.js').Pixels} Pixels */

/**
 * Pixels as RGB with 8 bits, turned as EXIF says, without a color profile.
 * @param {Blob} file
 * @returns {Promise<Pixels>}
 * @throws {Error} If the browser cannot decode it.
 */
export async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch {
    throw new Error('The browser cannot decode this file: it is damaged, too large, or not a PNG, JPEG, WebP or GIF.');
  }
  const { width, height } = bitmap;
  const given = levels(bitmap);
  bitmap.close();
  const data = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < data.length; i += 3, j += 4) {
    data[i] = given[j];
    data[i + 1] = given[j + 1];
    data[i + 2] = given[j + 2];
  }
  return { width, height, data };
}

/** RGBA of a bitmap, row by row. */
function levels(bitmap) {
  const { width, height } = bitmap;
  try {
    const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, width, height).data;
  } catch { // browsers limit the sides and the area of what they draw on
    throw new Error(`This image of ${width} × ${height} pixels is too large for the browser: make it smaller first.`);
  }
}
