// Rings around candidates, cross-hair, orientation letters and scale bar, drawn on the canvas above the images.
import { THROUGH } from './scene.js';

export const COLORS = {
  microbleed: '#ff8f6b',
  mimic: '#7cc4ff',
  uncertain: '#ffd54a',
  '': '#f2f5f8',
};
const EDGES = {
  axial: ['R', 'L', 'A', 'P'],
  coronal: ['R', 'L', 'S', 'I'],
  sagittal: ['A', 'P', 'S', 'I'],
};

/**
 * @param {Scene} scene
 * @param {{item: object, verdict: string}[]} marked what to draw a ring around
 * @param {string} selected key
 * @param {boolean} rings whether rings are shown
 */
export function drawMarks(scene, marked, selected, rings) {
  const context = scene.over.getContext('2d');
  const scale = devicePixelRatio || 1;
  context.clearRect(0, 0, scene.over.width, scene.over.height);
  for (const tile of scene.tiles()) {
    context.save();
    context.beginPath();
    context.rect(tile.left, tile.top, tile.width, tile.height);
    context.clip();
    if (rings) {
      for (const each of marked) if (each.item.key !== selected) ring(context, scene, tile, each, scale, false);
      const chosen = marked.find((each) => each.item.key === selected);
      if (chosen) ring(context, scene, tile, chosen, scale, true);
    }
    crosshair(context, scene, tile, scale);
    frame(context, scene, tile, scale);
    context.restore();
  }
}

function ring(context, scene, tile, { item, verdict }, scale, selected) {
  const voxel = scene.voxelOf(item.position_mm);
  const axis = THROUGH[tile.plane];
  const away_mm = Math.abs(voxel[axis] - scene.voxel[axis]) * scene.spacing[axis];
  if (away_mm > item.diameter_mm / 2 + scene.spacing[axis]) return;
  const at = scene.pixel(tile, voxel);
  const radius = Math.max((item.diameter_mm / 2 + 2.5) * at.scale, 9 * scale);
  context.lineWidth = (selected ? 2.4 : 1.4) * scale;
  context.setLineDash(item.status === 'rejected' ? [4 * scale, 4 * scale] : []);
  context.strokeStyle = COLORS[verdict];
  context.globalAlpha = selected ? 1 : 0.75;
  context.beginPath();
  context.arc(at.x, at.y, radius, 0, 2 * Math.PI);
  context.stroke();
  context.setLineDash([]);
  text(context, item.name, at.x + radius * 0.75 + 3 * scale, at.y - radius * 0.75 - 3 * scale, scale, COLORS[verdict]);
  context.globalAlpha = 1;
}

function crosshair(context, scene, tile, scale) {
  const at = scene.pixel(tile, scene.voxel);
  const gap = 22 * scale;
  context.strokeStyle = 'rgba(124, 196, 255, 0.55)';
  context.lineWidth = scale;
  context.beginPath();
  context.moveTo(tile.left, at.y);
  context.lineTo(at.x - gap, at.y);
  context.moveTo(at.x + gap, at.y);
  context.lineTo(tile.left + tile.width, at.y);
  context.moveTo(at.x, tile.top);
  context.lineTo(at.x, at.y - gap);
  context.moveTo(at.x, at.y + gap);
  context.lineTo(at.x, tile.top + tile.height);
  context.stroke();
}

function frame(context, scene, tile, scale) {
  const [left, right, top, bottom] = EDGES[tile.plane];
  const inset = 13 * scale;
  const middle = { x: tile.left + tile.width / 2, y: tile.top + tile.height / 2 };
  const muted = '#aab6c4';
  text(context, left, tile.left + inset, middle.y, scale, muted, 'center');
  text(context, right, tile.left + tile.width - inset, middle.y, scale, muted, 'center');
  text(context, top, middle.x, tile.top + inset, scale, muted, 'center');
  text(context, bottom, middle.x, tile.top + tile.height - inset, scale, muted, 'center');
  const [number, count] = scene.slice(tile.plane);
  const name = tile.plane[0].toUpperCase() + tile.plane.slice(1);
  text(context, `${name} ${number}/${count}`, tile.left + inset, tile.top + tile.height - inset, scale, muted);
  const { scale: perMm } = scene.pixel(tile, scene.voxel);
  const end = tile.left + tile.width - 12 * scale;
  const length = 10 * perMm;
  context.strokeStyle = muted;
  context.lineWidth = 2 * scale;
  context.beginPath();
  context.moveTo(end - length, tile.top + tile.height - 10 * scale);
  context.lineTo(end, tile.top + tile.height - 10 * scale);
  context.stroke();
  text(context, '10 mm', end, tile.top + tile.height - 22 * scale, scale, muted, 'right');
}

function text(context, words, x, y, scale, color, align = 'left') {
  context.font = `600 ${12 * scale}px system-ui, sans-serif`;
  context.textAlign = align;
  context.textBaseline = 'middle';
  context.lineWidth = 3 * scale;
  context.strokeStyle = 'rgba(0, 0, 0, 0.8)';
  context.lineJoin = 'round';
  context.strokeText(words, x, y);
  context.fillStyle = color;
  context.fillText(words, x, y);
}
