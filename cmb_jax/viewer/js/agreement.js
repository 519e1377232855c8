// Two or more readers side by side on the candidates that they judged, and where they agree.
// The intervals and the counts over many scans come from `cmb-jax review import` and `review agreement`.
import { candidateKey } from './state.js';

const NEAR_MM = 3; // as in review/reading.py: marks of two readers closer than this are one lesion

/**
 * Cohen's kappa, unweighted, over the verdicts of the candidates that both readers judged.
 * @returns {{both: number, same: number, kappa: number}} kappa is NaN where chance alone would agree
 */
export function kappa(facts, first, second) {
  const pairs = facts.candidates
    .map(({ id }) => [first.marks[candidateKey(id)]?.verdict, second.marks[candidateKey(id)]?.verdict])
    .filter(([a, b]) => a && b);
  const same = pairs.filter(([a, b]) => a === b).length;
  const share = (index, word) => pairs.filter((pair) => pair[index] === word).length / pairs.length;
  const chance = facts.verdicts.reduce((sum, word) => sum + share(0, word) * share(1, word), 0);
  const observed = same / pairs.length;
  return { both: pairs.length, same, kappa: chance < 1 ? (observed - chance) / (1 - chance) : NaN };
}

/** One row per candidate that somebody judged and per added lesion, with every reader's verdict. */
export function sideBySide(facts, readings) {
  const rows = [];
  for (const candidate of facts.candidates) {
    const entries = readings.map(({ state }) => state.marks[candidateKey(candidate.id)] ?? null);
    if (entries.some((entry) => entry?.verdict)) {
      rows.push(row(String(candidate.id), candidate.place, candidate.position_mm, entries, candidateKey(candidate.id)));
    }
  }
  for (const group of addedGroups(readings)) {
    const entries = readings.map((_, index) => group.find((each) => each.reader === index)?.entry ?? null);
    rows.push(row('added', 'not a candidate', group[0].entry.position_mm, entries, null));
  }
  return rows;
}

function row(name, place, position_mm, entries, key) {
  const words = entries.map((entry) => entry?.verdict ?? '');
  const judged = key ? words.filter(Boolean) : words; // a reader who did not add a lesion looked and saw none
  return { name, place, position_mm, entries, key, agreed: judged.length > 1 && judged.every((word) => word === judged[0]) };
}

function addedGroups(readings) {
  const groups = [];
  readings.forEach(({ state }, reader) => {
    const taken = new Set();
    for (const entry of state.added) {
      const distance = (group) =>
        Math.hypot(...group[0].entry.position_mm.map((value, axis) => value - entry.position_mm[axis]));
      const near = groups
        .filter((group) => !taken.has(group) && distance(group) < NEAR_MM && group.every((each) => each.reader !== reader))
        .sort((a, b) => distance(a) - distance(b))[0];
      const group = near ?? [];
      if (!near) groups.push(group);
      group.push({ reader, entry });
      taken.add(group);
    }
  });
  return groups;
}

/** What the readers agree on, as the start of a consensus reading; the rest is left open. */
export function consensusState(facts, readings) {
  const state = { marks: {}, added: [] };
  for (const each of sideBySide(facts, readings)) {
    if (!each.agreed) continue;
    const judged = each.entries.filter((entry) => entry?.verdict);
    const common = (field) => (judged.every((entry) => entry[field] === judged[0][field]) ? judged[0][field] : '');
    const entry = { verdict: judged[0].verdict, certainty: common('certainty'), mimic: common('mimic'), comment: '' };
    if (each.key) state.marks[each.key] = entry;
    else state.added.push({ ...entry, key: `a${state.added.length + 1}`, position_mm: each.position_mm, diameter_mm: null });
  }
  return state;
}
