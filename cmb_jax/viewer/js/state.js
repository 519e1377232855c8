// A reader's verdicts so far, with undo. Pure data: nothing here knows the page, the server or the images.

export const EMPTY = Object.freeze({ verdict: '', certainty: '', mimic: '', comment: '' });

export const candidateKey = (id) => `c${id}`;

/** The verdicts of one reader. Each change makes a new snapshot, so that undo returns to an earlier one. */
export class Review {
  /** @param {object[]} candidates as in the page's facts */
  constructor(candidates) {
    this.candidates = candidates;
    this.listeners = [];
    this.replace({ marks: {}, added: [] });
  }

  /** Replace the whole state, such as by a saved one; this cannot be undone. */
  replace(state) {
    this.now = state;
    this.past = [];
    this.future = [];
    this.notify();
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  notify() {
    for (const listener of this.listeners) listener(this.now);
  }

  /** The verdict on a candidate or an added lesion. */
  entry(key) {
    return this.now.marks[key] ?? this.now.added.find((each) => each.key === key) ?? EMPTY;
  }

  /** Candidates and added lesions alike, each with its key. */
  items() {
    const candidates = this.candidates.map((each) => ({ ...each, key: candidateKey(each.id), name: String(each.id) }));
    const added = this.now.added.map((each, index) => ({
      key: each.key,
      name: `+${index + 1}`,
      position_mm: each.position_mm,
      diameter_mm: each.diameter_mm ?? 4,
      score: null,
      zone: 'none',
      place: 'added by the reader',
      status: 'added',
      reason: '',
      category: '',
    }));
    return [...candidates, ...added];
  }

  /** Change fields of an entry; consecutive changes with the same `joined` are undone together. */
  set(key, fields, joined = '') {
    const entry = tidy({ ...this.entry(key), ...fields });
    if (same(entry, this.entry(key))) return;
    const added = this.now.added.some((each) => each.key === key);
    const next = added
      ? { ...this.now, added: this.now.added.map((each) => (each.key === key ? entry : each)) }
      : { ...this.now, marks: { ...this.now.marks, [key]: entry } };
    if (!added && same(entry, EMPTY)) delete next.marks[key];
    this.step(next, joined);
  }

  /** A lesion that the detector missed; returns its key. */
  add(position_mm) {
    const number = 1 + Math.max(0, ...this.now.added.map((each) => Number(each.key.slice(1))));
    const key = `a${number}`;
    const entry = { ...EMPTY, key, position_mm, diameter_mm: null, verdict: 'microbleed', certainty: 'definite' };
    this.step({ ...this.now, added: [...this.now.added, entry] });
    return key;
  }

  remove(key) {
    this.step({ ...this.now, added: this.now.added.filter((each) => each.key !== key) });
  }

  step(next, joined = '') {
    if (!joined || joined !== this.joined) this.past.push(this.now);
    this.joined = joined;
    this.future = [];
    this.now = next;
    this.notify();
  }

  /** @returns {string|null} key of the first entry that changes, '' if none does; null if there is nothing to undo */
  undo() {
    return this.move(this.past, this.future);
  }

  redo() {
    return this.move(this.future, this.past);
  }

  move(from, to) {
    if (!from.length) return null;
    const before = this.now;
    to.push(before);
    this.now = from.pop();
    this.joined = '';
    this.notify();
    const keys = new Set([...Object.keys(before.marks), ...Object.keys(this.now.marks)]);
    for (const each of [...before.added, ...this.now.added]) keys.add(each.key);
    const entryIn = (state, key) => state.marks[key] ?? state.added.find((each) => each.key === key);
    return [...keys].find((key) => !same(entryIn(before, key) ?? EMPTY, entryIn(this.now, key) ?? EMPTY)) ?? '';
  }

  /** How many of the given items have a verdict. */
  read(items) {
    return items.filter((item) => this.entry(item.key).verdict).length;
  }
}

/** Only a mimic has a kind, only a microbleed a certainty. */
function tidy(entry) {
  return {
    ...entry,
    mimic: entry.verdict === 'mimic' ? entry.mimic : '',
    certainty: entry.verdict === 'microbleed' ? entry.certainty : '',
  };
}

function same(a, b) {
  return JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort());
}
