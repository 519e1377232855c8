// Images as arrays, unpacked from the page or from the local server, and the sliding minimum.

/**
 * The bytes of an image: embedded in the page, else from the server that the page came from.
 * @throws {Error} with a message for the reader
 */
export async function imageBytes(name) {
  try {
    return await unpacked(name);
  } catch {
    const remedy = location.protocol === 'file:' ? 'cmb-jax view RESULT --swi FILE --phase FILE shows it' : 'start cmb-jax view again';
    throw new Error(`The image (${name}) is missing or damaged; ${remedy}.`);
  }
}

async function unpacked(name) {
  const block = document.getElementById(`image-${name}`);
  let packed;
  if (block) {
    const text = atob(block.textContent);
    block.remove(); // free the megabytes: it is read only once
    packed = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index += 1) packed[index] = text.charCodeAt(index);
  } else {
    const answer = await fetch(`images/${name}`);
    if (!answer.ok) throw new Error(answer.statusText);
    packed = await answer.arrayBuffer();
  }
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
}

/** A NIfTI-1 file of this program: int16 or uint8, x fastest, axes to right, anterior, superior. */
export function parseNifti(buffer) {
  const view = new DataView(buffer);
  const dims = [1, 2, 3].map((axis) => view.getInt16(40 + 2 * axis, true));
  const spacing = [1, 2, 3].map((axis) => view.getFloat32(76 + 4 * axis, true));
  const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => view.getFloat32(280 + 16 * row + 4 * column, true)));
  const start = view.getFloat32(108, true);
  const size = dims[0] * dims[1] * dims[2];
  const data = view.getInt16(70, true) === 4 ? new Int16Array(buffer, start, size) : new Uint8Array(buffer, start, size);
  return { buffer, dims, spacing, affine, data };
}

/**
 * Minimum over a slab that slides along one axis: for each slice, over those at most half a slab away.
 * A window is the minimum of two windows of half its length, so the work grows with the logarithm of the slab.
 * @param {Int16Array} data x fastest
 * @param {number[]} dims [x, y, z]
 * @param {number} axis 0, 1 or 2
 * @param {number} slices length of the slab, odd
 */
export function slidingMinimum(data, dims, axis, slices) {
  const size = dims[axis];
  const length = Math.min(slices, 2 * size - 1);
  const half = (length - 1) / 2;
  const stride = [1, dims[0], dims[0] * dims[1]][axis];
  const lines = data.length / size;
  // each entry is the minimum over `reach` slices from its own; at the end of the image, over what is left
  let from = Int16Array.from(data);
  let reach = 1;
  const extend = (step) => {
    const longer = new Int16Array(from.length);
    eachSlice((index, at) => {
      const other = Math.min(index + step, size - 1);
      for (let line = 0; line < lines; line += 1) {
        const base = lineStart(line);
        const a = from[base + at];
        const b = from[base + other * stride];
        longer[base + at] = a < b ? a : b;
      }
    });
    from = longer;
    reach += step;
  };
  const eachSlice = (work) => {
    for (let index = 0; index < size; index += 1) work(index, index * stride);
  };
  const lineStart = (line) => Math.floor(line / stride) * stride * size + (line % stride);
  const wanted = (count) => {
    while (reach < count) extend(Math.min(reach, count - reach));
  };
  wanted(half + 1); // forward half, center included
  const forward = from;
  const result = new Int16Array(from.length);
  eachSlice((index, at) => {
    // the backward half is the forward window of the slice `half` before; near the edge, that of slice 0
    const before = Math.max(0, index - half);
    for (let line = 0; line < lines; line += 1) {
      const base = lineStart(line);
      const a = forward[base + at];
      const b = forward[base + before * stride];
      result[base + at] = a < b ? a : b;
    }
  });
  return result;
}

/** Odd number of slices that is nearest to a thickness. */
export function slabSlices(thickness_mm, spacing_mm) {
  return Math.max(1, 2 * Math.round((thickness_mm / spacing_mm - 1) / 2) + 1);
}

export function invertAffine(affine) {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = affine;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const inverse = [
    [(e * i - f * h) / det, (c * h - b * i) / det, (b * f - c * e) / det],
    [(f * g - d * i) / det, (a * i - c * g) / det, (c * d - a * f) / det],
    [(d * h - e * g) / det, (b * g - a * h) / det, (a * e - b * d) / det],
  ];
  return inverse.map((row) => [...row, -(row[0] * x + row[1] * y + row[2] * z)]);
}

export function applyAffine(affine, point) {
  return affine.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);
}
