// The file of verdicts, which `cmb-jax review import` reads: one format on the server, in the browser's storage and
// as a download.
import { EMPTY, candidateKey } from './state.js';

/** @returns {string} the file's text */
export function verdictsText(facts, reader, state, saved) {
  const byId = new Map(facts.candidates.map((each) => [candidateKey(each.id), each]));
  const marks = Object.entries(state.marks)
    .map(([key, entry]) => ({
      candidate: byId.get(key).id,
      verdict: entry.verdict || null,
      certainty: entry.certainty,
      mimic: entry.mimic,
      position_mm: byId.get(key).position_mm,
      diameter_mm: null,
      comment: entry.comment,
    }))
    .sort((a, b) => a.candidate - b.candidate);
  const added = state.added.map(({ verdict, certainty, mimic, position_mm, diameter_mm, comment }) => ({
    verdict,
    certainty,
    mimic,
    position_mm,
    diameter_mm,
    comment,
  }));
  const content = {
    format: facts.format.name,
    format_version: facts.format.version,
    notice: 'Research use only; not a diagnosis.',
    version: facts.version,
    subject: facts.subject,
    swi_sha256: facts.swi_sha256,
    detections_sha256: facts.detections_sha256,
    reader,
    saved,
    coordinates: 'RAS mm',
    marks,
    added,
  };
  return `${JSON.stringify(content, null, 1)}\n`;
}

/**
 * Read a file of verdicts.
 * @returns {{reader: string, saved: string, state: object}}
 * @throws {Error} with a message for the reader: what is wrong and what to do
 */
export function parseVerdicts(facts, text, name = 'The file') {
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error(`${name} is damaged or is not a JSON file. Choose a file that this viewer saved.`);
  }
  if (content?.format !== facts.format.name || !Array.isArray(content.marks) || !Array.isArray(content.added)) {
    throw new Error(`${name} holds no verdicts. Choose a file that this viewer saved.`);
  }
  if (content.format_version !== facts.format.version) {
    throw new Error(`${name} is of another version of the viewer. Open it with that version and save it again.`);
  }
  if (content.swi_sha256 !== facts.swi_sha256) {
    throw new Error(`${name} was read on another scan (${content.subject}). Choose the file of ${facts.subject}.`);
  }
  if (content.detections_sha256 !== facts.detections_sha256) {
    throw new Error(`${name} was read on another run of this scan. Open the viewer of that run, or read again here.`);
  }
  const known = new Set(facts.candidates.map((each) => each.id));
  if (!content.marks.every((mark) => known.has(mark.candidate)) || !isReader(content.reader)) {
    throw new Error(`${name} does not fit this scan's candidates. Choose a file that this viewer saved.`);
  }
  const entry = (mark) => ({
    ...EMPTY,
    verdict: facts.verdicts.includes(mark.verdict) ? mark.verdict : '',
    certainty: facts.certainties.includes(mark.certainty) ? mark.certainty : '',
    mimic: facts.mimic_kinds.includes(mark.mimic) ? mark.mimic : '',
    comment: typeof mark.comment === 'string' ? mark.comment : '',
  });
  const marks = Object.fromEntries(content.marks.map((mark) => [candidateKey(mark.candidate), entry(mark)]));
  const added = content.added.map((mark, index) => ({
    ...entry(mark),
    key: `a${index + 1}`,
    position_mm: mark.position_mm,
    diameter_mm: mark.diameter_mm ?? null,
  }));
  return { reader: content.reader, saved: String(content.saved), state: { marks, added } };
}

/** The same rule as in review/verdicts.py. */
export function isReader(name) {
  return typeof name === 'string' && /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,14}[A-Za-z0-9])?$/.test(name);
}
