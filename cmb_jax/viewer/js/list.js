// The list of candidates: which are shown, in what order, and the text of a row.

const ZONES = ['lobar', 'deep', 'infratentorial', 'none'];
const ORDERS = {
  id: () => 0,
  score: (a, b) => (b.score ?? 2) - (a.score ?? 2),
  zone: (a, b) => ZONES.indexOf(a.zone) - ZONES.indexOf(b.zone),
  size: (a, b) => b.diameter_mm - a.diameter_mm,
};

/** Items with a status, sorted; added lesions are always included and come first. */
export function arrange(items, { status, sort }) {
  const shown = items.filter((item) => status === 'all' || item.status === status || item.status === 'added');
  return shown
    .map((item, index) => [item, index])
    .sort(([a, i], [b, j]) => (b.status === 'added') - (a.status === 'added') || ORDERS[sort](a, b) || i - j)
    .map(([item]) => item);
}

/** The detector's confidence, in words. */
export function scoreText(item) {
  if (item.score === null) return '';
  return item.probability === null
    ? `score ${item.score.toFixed(2)}`
    : `score ${item.score.toFixed(2)}, probability ${item.probability.toFixed(2)}`;
}

export function factsText(item) {
  const parts = [];
  if (item.status === 'kept') parts.push(`Kept, ${item.category}`);
  if (item.status === 'rejected') parts.push(`Rejected: ${item.reason}`);
  if (item.status === 'added') parts.push('Added by the reader');
  if (item.zone !== 'none') parts.push(item.zone);
  if (item.status !== 'added') parts.push(`${item.diameter_mm.toFixed(1)} mm`, scoreText(item));
  return parts.join(' · ');
}

function moreText(item) {
  if (item.status === 'rejected') return `${item.diameter_mm.toFixed(1)} mm · ${item.score.toFixed(2)} · ${item.reason}`;
  if (item.status === 'added') return item.position_mm.map((value) => value.toFixed(0)).join(', ') + ' mm';
  return `${item.diameter_mm.toFixed(1)} mm · ${item.score.toFixed(2)} · ${item.category}`;
}

export function saidText(entry) {
  if (!entry.verdict) return '';
  const detail = entry.mimic || (entry.certainty === 'possible' ? 'possible' : '');
  const word = entry.verdict[0].toUpperCase() + entry.verdict.slice(1);
  return detail ? `${word}, ${detail}` : word;
}

/** Fill the list box; `choose` is called with a key. */
export function showList(box, items, entryOf, selected, choose) {
  box.replaceChildren(
    ...items.map((item) => {
      const row = element('div', 'row', { role: 'option', id: `row-${item.key}`, 'aria-selected': String(item.key === selected) });
      const entry = entryOf(item.key);
      row.append(
        element('span', 'name', {}, item.name),
        element('span', 'place-name', {}, item.place),
        element('span', `said ${entry.verdict}`, {}, saidText(entry)),
        element('span', 'more', { title: factsText(item) }, moreText(item)),
      );
      row.addEventListener('click', () => choose(item.key));
      return row;
    }),
  );
  if (!items.length) box.append(element('p', 'none', {}, 'No candidate is left in this list.'));
  const row = box.querySelector('[aria-selected="true"]');
  if (row) {
    box.setAttribute('aria-activedescendant', row.id);
    // not scrollIntoView, which on small screens would move the whole page
    const [top, bottom] = [row.offsetTop - box.offsetTop, row.offsetTop - box.offsetTop + row.offsetHeight];
    box.scrollTop = Math.min(top, Math.max(box.scrollTop, bottom - box.clientHeight));
  } else box.removeAttribute('aria-activedescendant');
}

export function element(tag, className = '', attributes = {}, text = '') {
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}
