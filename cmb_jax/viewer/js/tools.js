// Mouse, touch and keys on the images, and the keys of the whole page.
import { IN_PLANE } from './scene.js';

const SLICES_PER_PAGE = 5;
const WHEEL_STEP = 40; // wheel distance of one slice; a trackpad sends many small events

/** What each key does: [keys shown, what it does]. */
export const KEYS = [
  ['J  K', 'next, previous candidate'],
  ['N', 'next unread candidate'],
  ['M', 'microbleed'],
  ['D  P', 'definite, possible microbleed'],
  ['X', 'mimic'],
  ['1 … 8', 'mimic of that kind'],
  ['U', 'uncertain'],
  ['Backspace', 'no verdict; removes an added lesion'],
  ['A', 'add a missed microbleed'],
  ['C', 'comment'],
  ['Z  Shift Z', 'undo, redo'],
  ['↑  ↓', 'scroll slices (in the list: candidates)'],
  ['PgUp  PgDn', `scroll ${SLICES_PER_PAGE} slices`],
  ['S  F  I', 'SWI, phase, minIP'],
  ['Space', 'flip between SWI and phase'],
  ['[  ]', 'thinner, thicker slab'],
  ['T  V', 'three planes, next single plane'],
  ['+  −  0', 'zoom in, out, whole image'],
  ['Shift ↑ ↓', 'brighter, darker'],
  ['Shift ← →', 'more, less contrast'],
  ['W', 'reset window'],
  ['R  L  G', 'rings, labels, regions on or off'],
  ['O', 'readers'],
  ['?', 'this help'],
];

/** Wire the canvas; a click first goes to `add` (with its voxel), which returns whether it used it. */
export function listenToPointer(scene, add) {
  const canvas = scene.over;
  const pointers = new Map();
  let drag = null;
  let wheel = 0; // distance not yet scrolled
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  };
  const moveCross = (tile, point) => {
    const voxel = scene.voxelAt(tile, point.x, point.y);
    if (voxel) scene.goToVoxel(voxel);
  };
  const panBy = (tile, from, to) => {
    const [column, row] = IN_PLANE[tile.plane];
    const pan = scene.nv.scene.pan2Dxyzmm;
    const perPixel = (Math.abs(tile.extent[0]) / tile.width) * pan[3];
    pan[column] += (to.x - from.x) * perPixel * (tile.mirrored ? -1 : 1);
    pan[row] -= (to.y - from.y) * perPixel;
    scene.draw();
  };
  const fractionAt = (tile, point) => {
    const voxel = scene.voxelAt(tile, point.x, point.y);
    return voxel ? scene.fraction(voxel) : undefined;
  };

  canvas.addEventListener('pointerdown', (event) => {
    const point = at(event);
    const tile = scene.tileAt(point.x, point.y);
    if (!tile) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, point);
    if (scene.layout === 'three') scene.plane = tile.plane;
    let mode = 'cross';
    if (event.button === 2) mode = 'window';
    else if (event.button === 1 || event.shiftKey) mode = 'pan';
    if (pointers.size === 2) mode = 'pinch';
    if (mode === 'cross') {
      const voxel = scene.voxelAt(tile, point.x, point.y);
      if (voxel && add(voxel)) return;
      moveCross(tile, point);
    }
    drag = { mode, tile, last: point };
    event.preventDefault();
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!drag || !pointers.has(event.pointerId)) return;
    const point = at(event);
    const before = pointers.get(event.pointerId);
    if (drag.mode === 'pinch' && pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const apart = (a) => Math.hypot(a.x - other.x, a.y - other.y);
      const middle = (a) => ({ x: (a.x + other.x) / 2, y: (a.y + other.y) / 2 });
      scene.zoom(apart(point) / Math.max(apart(before), 1), fractionAt(drag.tile, middle(point)));
      panBy(drag.tile, middle(before), middle(point));
    } else if (drag.mode === 'cross') moveCross(drag.tile, point);
    else if (drag.mode === 'pan') panBy(drag.tile, before, point);
    else if (drag.mode === 'window') {
      scene.changeWindow((before.y - point.y) / canvas.height, (2 * (point.x - before.x)) / canvas.width);
    }
    pointers.set(event.pointerId, point);
  });
  for (const name of ['pointerup', 'pointercancel']) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      drag = null;
    });
  }
  canvas.addEventListener('contextmenu', (event) => event.preventDefault());
  canvas.addEventListener(
    'wheel',
    (event) => {
      event.preventDefault();
      const point = at(event);
      const tile = scene.tileAt(point.x, point.y);
      if (!tile) return;
      if (event.ctrlKey || event.metaKey) {
        scene.zoom(Math.exp(-event.deltaY / 300), fractionAt(tile, point));
        return;
      }
      if (scene.layout === 'three') scene.plane = tile.plane;
      wheel += event.deltaMode === 0 ? event.deltaY : event.deltaY * WHEEL_STEP;
      const steps = Math.trunc(wheel / WHEEL_STEP);
      wheel -= steps * WHEEL_STEP;
      if (steps) scene.scroll(-steps, tile.plane);
    },
    { passive: false },
  );
}

/**
 * Keys of the page.
 * @param {object} actions by name, as `perform` below calls them
 * @param {() => boolean} lettersOn whether single-letter keys are on
 */
export function listenToKeys(actions, lettersOn) {
  document.addEventListener('keydown', (event) => {
    if (event.metaKey || document.querySelector('dialog[open]')) return;
    const bracket = event.altKey && '[]'.includes(event.key); // on many keyboards AltGr or Option types brackets
    if ((event.ctrlKey || event.altKey) && !bracket) return;
    // until the next frame the focus may still be in a dialog that was just closed; its keys belong to the page
    const target = event.target.closest('dialog') ? document.body : event.target;
    if (target.matches('input[type="text"], select, textarea')) {
      if (event.key === 'Escape' || (event.key === 'Enter' && target.id === 'comment')) actions.leave();
      return;
    }
    const onRange = target.matches('input[type="range"], input[type="radio"]');
    const moves = ['ArrowUp', 'ArrowDown', 'ArrowLeft', 'ArrowRight', 'PageUp', 'PageDown', ' '].includes(event.key);
    if (moves && onRange) return; // the control handles them
    if (event.key === ' ' && target.matches('button, summary, input')) return;
    const single = event.key.length === 1 || event.key === 'Backspace';
    if (single && !lettersOn()) return;
    if (perform(actions, event, target) !== false) event.preventDefault();
  });
}

function perform(actions, event, target) {
  const inList = target.id === 'list';
  const { key, shiftKey } = event;
  switch (key) {
    case 'ArrowUp':
      if (shiftKey) return actions.level(1);
      return inList ? actions.step(-1) : actions.scroll(1);
    case 'ArrowDown':
      if (shiftKey) return actions.level(-1);
      return inList ? actions.step(1) : actions.scroll(-1);
    case 'ArrowLeft':
      return shiftKey ? actions.width(-1) : false;
    case 'ArrowRight':
      return shiftKey ? actions.width(1) : false;
    case 'Home':
      return inList ? actions.step(-Infinity) : false;
    case 'End':
      return inList ? actions.step(Infinity) : false;
    case 'PageUp':
      return actions.scroll(SLICES_PER_PAGE);
    case 'PageDown':
      return actions.scroll(-SLICES_PER_PAGE);
    case 'Enter':
      return actions.enter();
    case 'Escape':
      return actions.escape();
    case 'Backspace':
      return actions.verdict('');
    case ' ':
      return actions.flip();
    case '[':
      return actions.slab(-1);
    case ']':
      return actions.slab(1);
    case '+':
    case '=':
      return actions.zoom(1);
    case '-':
      return actions.zoom(-1);
    case '0':
      return actions.fit();
    case '?':
      return actions.help();
    default:
  }
  if (key >= '1' && key <= '9') return actions.kind(Number(key) - 1);
  switch (key.toLowerCase()) {
    case 'j':
      return actions.step(1);
    case 'k':
      return actions.step(-1);
    case 'n':
      return actions.unread();
    case 'm':
      return actions.verdict('microbleed');
    case 'd':
      return actions.certainty('definite');
    case 'p':
      return actions.certainty('possible');
    case 'x':
      return actions.verdict('mimic');
    case 'u':
      return actions.verdict('uncertain');
    case 'a':
      return actions.add();
    case 'c':
      return actions.comment();
    case 'z':
      return shiftKey ? actions.redo() : actions.undo();
    case 's':
      return actions.modality('swi');
    case 'f':
      return actions.modality('phase');
    case 'i':
      return actions.modality('minip');
    case 't':
      return actions.layout('three');
    case 'v':
      return actions.nextLayout();
    case 'w':
      return actions.resetWindow();
    case 'r':
      return actions.rings();
    case 'l':
      return actions.overlay('labels');
    case 'g':
      return actions.overlay('regions');
    case 'o':
      return actions.readers();
    default:
      return false;
  }
}
