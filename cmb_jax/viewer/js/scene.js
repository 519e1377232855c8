// The images on the screen: NiiVue draws the slices; a second canvas above them shows the marks and takes the mouse.
import { applyAffine, imageBytes, invertAffine, parseNifti, slabSlices, slidingMinimum } from './volumes.js';

const { Niivue, NVImage } = globalThis.niivue;

export const PLANES = ['axial', 'coronal', 'sagittal']; // in NiiVue's order
export const THROUGH = { axial: 2, coronal: 1, sagittal: 0 }; // the volume axis perpendicular to a plane
export const IN_PLANE = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2] }; // its columns and rows
const GAP = 0.004; // between tiles, as a fraction of the width
const REGION_COLORS = {
  1: [125, 227, 160], 2: [47, 182, 140], 3: [255, 138, 61], 4: [255, 93, 93], 5: [255, 193, 77],
  6: [255, 224, 138], 7: [245, 143, 208], 8: [217, 179, 140], 9: [74, 163, 255], 10: [157, 140, 255],
  11: [53, 208, 230], 12: [196, 107, 255], 13: [166, 200, 255], 14: [255, 255, 255], 15: [120, 130, 145],
}; // prettier-ignore
const LABEL_COLOR = [255, 122, 89];

/** @returns {boolean} whether the browser can draw volumes on this canvas; NiiVue later gets the same context */
export function hasWebGL(canvas) {
  try {
    return canvas.getContext('webgl2', { alpha: true, antialias: false }) !== null;
  } catch {
    return false;
  }
}

export class Scene {
  /**
   * @param facts the JSON in the page
   * @param {HTMLCanvasElement} canvas for NiiVue
   * @param {HTMLCanvasElement} over the canvas above it
   * @param {() => void} redrawn called after each drawing
   */
  constructor(facts, canvas, over, redrawn) {
    this.facts = facts;
    this.canvas = canvas;
    this.over = over;
    this.redrawn = redrawn;
    this.layout = 'three';
    this.plane = 'axial'; // the one that keys scroll
    this.modality = 'swi';
    this.slab_mm = 10;
    this.windows = structuredClone(facts.windows);
    this.opacity = { labels: 0, regions: 0 };
    this.volumes = {};
    this.overlays = {};
    this.nv = new Niivue({
      isResizeCanvas: false,
      interactive: false, // the canvas above takes mouse, touch and keys
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isOrientationTextVisible: false,
      multiplanarShowRender: 0,
      crosshairWidth: 0,
      backColor: [0, 0, 0, 1],
      logLevel: 'error',
      loadingText: '',
      isAlphaClipDark: false,
    });
  }

  /** Draw the SWI; the other images are loaded when first needed. */
  async open() {
    await this.nv.attachToCanvas(this.canvas, false);
    const swi = await this.volume('swi');
    this.dims = swi.dims;
    this.spacing = swi.spacing;
    this.toVoxel = invertAffine(swi.affine);
    this.toWorld = swi.affine;
    this.voxel = swi.dims.map((size) => Math.floor(size / 2));
    const [low, high] = this.windows.swi;
    this.base = await NVImage.new(swi.buffer, 'swi.nii', 'gray', 1, null, low, high);
    this.nv.addVolume(this.base);
    this.resize();
    this.setLayout(this.layout);
  }

  /** An image by name. Callers share one promise, so that an image is unpacked only once. */
  volume(name) {
    this.volumes[name] ??= imageBytes(name).then(parseNifti);
    this.volumes[name].catch(() => delete this.volumes[name]); // so that the next call tries again
    return this.volumes[name];
  }

  has(name) {
    return this.facts.images.includes(name === 'minip' ? 'swi' : name);
  }

  /** The stored image that is shown: a minimum intensity projection has window and unit of the SWI. */
  get source() {
    return this.modality === 'phase' ? 'phase' : 'swi';
  }

  get window() {
    return this.windows[this.source];
  }

  /** The window as it was chosen for the scan. */
  get initialWindow() {
    return this.facts.windows[this.source];
  }

  /** Show 'swi', 'phase' or 'minip'. */
  async setModality(modality) {
    if (!this.has(modality)) return;
    this.modality = modality;
    await this.showBase();
  }

  async showBase() {
    const wanted = this.modality;
    const shown = wanted === 'minip' ? await this.projection() : await this.volume(wanted);
    if (wanted !== this.modality) return; // the user has chosen another one meanwhile
    this.base.img = shown.data;
    this.setWindow(...this.window);
  }

  /** The minimum intensity projection through the slices of the current plane. */
  async projection() {
    const swi = await this.volume('swi');
    const axis = THROUGH[this.layout === 'three' ? 'axial' : this.layout];
    const slices = slabSlices(this.slab_mm, this.spacing[axis]);
    const name = `minip ${axis} ${slices}`;
    if (this.projectionName !== name) {
      this.projectionData = { data: slidingMinimum(swi.data, this.dims, axis, slices) };
      this.projectionName = name;
    }
    return this.projectionData;
  }

  async setSlab(thickness_mm) {
    this.slab_mm = thickness_mm;
    if (this.modality === 'minip') await this.showBase();
  }

  setWindow(low, high) {
    const [least, most] = this.initialWindow;
    const narrowest = (most - least) / 200;
    if (high - low < narrowest) high = low + narrowest;
    this.windows[this.source] = [low, high];
    this.base.cal_min = low;
    this.base.cal_max = high;
    this.nv.updateGLVolume();
    this.redrawn();
  }

  /** Change level and width by fractions of the initial window. */
  changeWindow(level, width) {
    const [least, most] = this.initialWindow;
    const [low, high] = this.window;
    const middle = (low + high) / 2 - level * (most - least);
    const half = Math.max(((high - low) / 2) * (1 + width), (most - least) / 400);
    this.setWindow(middle - half, middle + half);
  }

  resetWindow() {
    this.setWindow(...this.initialWindow);
  }

  /** 'three', or one of PLANES. */
  setLayout(layout) {
    this.layout = layout;
    if (layout === 'three') {
      this.plane = 'axial';
      this.arrangeThree();
    } else {
      this.plane = layout;
      this.nv.clearCustomLayout();
      this.nv.setSliceType(PLANES.indexOf(layout)); // fills the canvas
    }
    if (this.modality === 'minip') this.showBase();
    else this.draw();
  }

  /** A large axial plane with the other two beside it, or below it on a portrait screen. */
  arrangeThree() {
    const wide = this.canvas.width >= this.canvas.height;
    const [large, small] = [0.62, 0.38 - GAP];
    const places = wide
      ? [[0, 0, large, 1], [large + GAP, 0, small, 0.5 - GAP / 2], [large + GAP, 0.5 + GAP / 2, small, 0.5 - GAP / 2]]
      : [[0, 0, 1, large], [0, large + GAP, 0.5 - GAP / 2, small], [0.5 + GAP / 2, large + GAP, 0.5 - GAP / 2, small]];
    this.nv.setCustomLayout(places.map((position, index) => ({ sliceType: index, position })));
  }

  resize() {
    const scale = devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    for (const canvas of [this.canvas, this.over]) {
      canvas.width = Math.max(1, Math.round(clientWidth * scale));
      canvas.height = Math.max(1, Math.round(clientHeight * scale));
    }
    if (!this.base) return;
    if (this.layout === 'three') this.arrangeThree();
    this.draw();
  }

  draw() {
    this.nv.scene.crosshairPos = this.fraction(this.voxel);
    this.nv.drawScene();
    this.redrawn();
  }

  fraction(voxel) {
    return voxel.map((index, axis) => (index + 0.5) / this.dims[axis]);
  }

  voxelOf(position_mm) {
    return applyAffine(this.toVoxel, position_mm);
  }

  positionOf(voxel) {
    return applyAffine(this.toWorld, voxel);
  }

  /** Put the cross-hair on a voxel (rounded, kept inside the image). */
  goToVoxel(voxel) {
    this.voxel = voxel.map((index, axis) => Math.min(Math.max(Math.round(index), 0), this.dims[axis] - 1));
    this.draw();
  }

  goTo(position_mm) {
    const before = this.nv.scene.pan2Dxyzmm[3];
    this.goToVoxel(this.voxelOf(position_mm));
    if (before > 1) this.center();
  }

  scroll(steps, plane = this.plane) {
    const voxel = [...this.voxel];
    voxel[THROUGH[plane]] += steps;
    this.goToVoxel(voxel);
  }

  /** Number of the slice shown, from 1, and the number of slices. */
  slice(plane = this.plane) {
    const axis = THROUGH[plane];
    return [this.voxel[axis] + 1, this.dims[axis]];
  }

  /** Zoom by a factor about a point (fractions of the volume), which keeps its place on the screen. */
  zoom(factor, about = this.fraction(this.voxel)) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const after = Math.min(Math.max(pan[3] * factor, 1), 16);
    const place = this.nv.frac2mm(about);
    for (const axis of [0, 1, 2]) pan[axis] += place[axis] * (pan[3] - after);
    pan[3] = after;
    if (after === 1) pan.fill(0, 0, 3);
    this.draw();
  }

  /** Pan so that the cross-hair is in the middle of its planes. */
  center() {
    const pan = this.nv.scene.pan2Dxyzmm;
    const here = this.nv.frac2mm(this.fraction(this.voxel));
    const middle = this.nv.frac2mm([0.5, 0.5, 0.5]);
    for (const axis of [0, 1, 2]) pan[axis] = middle[axis] - here[axis] * pan[3];
    this.draw();
  }

  resetView() {
    const pan = this.nv.scene.pan2Dxyzmm;
    pan.fill(0, 0, 3);
    pan[3] = 1;
    this.draw();
  }

  get zoomed() {
    return this.nv.scene.pan2Dxyzmm[3];
  }

  async setOpacity(name, opacity) {
    if (!this.has(name)) return;
    this.opacity[name] = opacity;
    if (!this.overlays[name] && opacity > 0) {
      this.overlays[name] = this.overlay(name);
      this.overlays[name].catch(() => delete this.overlays[name]);
    }
    if (!this.overlays[name]) return;
    const overlay = await this.overlays[name];
    overlay.opacity = this.opacity[name];
    this.nv.updateGLVolume();
    this.redrawn();
  }

  async overlay(name) {
    const { buffer, data } = await this.volume(name);
    const image = await NVImage.new(buffer, `${name}.nii`, 'gray', 0, null);
    const values = [];
    const seen = new Set();
    for (let index = 0; index < data.length; index += 1) seen.add(data[index]);
    const colors = { R: [], G: [], B: [], A: [], I: values };
    for (const value of [...seen].sort((a, b) => a - b)) {
      const color = name === 'labels' ? LABEL_COLOR : (REGION_COLORS[value % 16] ?? [0, 0, 0]);
      values.push(value);
      colors.R.push(color[0]);
      colors.G.push(color[1]);
      colors.B.push(color[2]);
      colors.A.push(value === 0 || (name === 'regions' && value % 16 === 0) ? 0 : 255);
    }
    image.setColormapLabel(colors);
    this.nv.addVolume(image);
    return image;
  }

  /** Name of the region at the cross-hair; '' without a trusted region map. */
  async regionHere() {
    if (!this.has('regions') || !this.facts.regions_trusted) return '';
    const { data } = await this.volume('regions');
    const [x, y, z] = this.voxel;
    const code = data[x + this.dims[0] * (y + this.dims[1] * z)];
    const side = ['', 'left ', 'right '][code >> 4] ?? '';
    return code % 16 ? side + this.facts.region_names[code % 16] : 'outside the brain';
  }

  /** The gray value at the cross-hair in the scan's own numbers. */
  valueHere() {
    const [x, y, z] = this.voxel;
    const unit = this.facts.units[this.source];
    return this.base.img[x + this.dims[0] * (y + this.dims[1] * z)] * unit;
  }

  /** The planes on the screen, in pixels of the canvas. */
  tiles() {
    return this.nv.screenSlices
      .filter((tile) => tile.axCorSag <= 2)
      .map((tile) => {
        const [left, top, width, height] = tile.leftTopWidthHeight;
        const mirrored = width < 0;
        return {
          plane: PLANES[tile.axCorSag],
          left: mirrored ? left + width : left,
          top,
          width: Math.abs(width),
          height,
          mirrored,
          origin: tile.leftTopMM,
          extent: tile.fovMM,
        };
      });
  }

  tileAt(x, y) {
    return this.tiles().find(
      (tile) => x >= tile.left && x < tile.left + tile.width && y >= tile.top && y < tile.top + tile.height,
    );
  }

  /** Pixel of a voxel (fractional) in a tile, and pixels per mm. */
  pixel(tile, voxel) {
    const place = this.nv.frac2mm(this.fraction(voxel));
    const [column, row] = IN_PLANE[tile.plane];
    const across = (place[column] - tile.origin[0]) / tile.extent[0];
    const up = (place[row] - tile.origin[1]) / tile.extent[1];
    return {
      x: tile.left + (tile.mirrored ? 1 - across : across) * tile.width,
      y: tile.top + (1 - up) * tile.height,
      scale: tile.width / Math.abs(tile.extent[0]),
    };
  }

  /** Fractional voxel under a pixel of a tile, on the slice shown; null outside the image. */
  voxelAt(tile, x, y) {
    const across = (x - tile.left) / tile.width;
    const up = 1 - (y - tile.top) / tile.height;
    const [column, row] = IN_PLANE[tile.plane];
    const low = this.nv.frac2mm([0, 0, 0]);
    const high = this.nv.frac2mm([1, 1, 1]);
    const voxel = [...this.voxel];
    const set = (axis, place) => {
      voxel[axis] = ((place - low[axis]) / (high[axis] - low[axis])) * this.dims[axis] - 0.5;
    };
    set(column, tile.origin[0] + (tile.mirrored ? 1 - across : across) * tile.extent[0]);
    set(row, tile.origin[1] + up * tile.extent[1]);
    return voxel.every((index, axis) => index >= -0.5 && index < this.dims[axis] - 0.5) ? voxel : null;
  }
}
