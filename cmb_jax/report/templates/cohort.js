// Sorting and filtering of the table; without scripts the page shows all scans in order.
'use strict';
const table = document.getElementById('lines');
const body = table.tBodies[0];
const lines = [...body.rows].map((row) => ({ row, words: row.textContent.toLowerCase(), home: row.rowIndex }));
const controls = document.getElementById('controls');
const field = (name) => document.getElementById(name);

function value(line, column) {
  const text = line.row.cells[column].dataset.value;
  return text === '' || Number.isNaN(Number(text)) ? text : Number(text);
}

function sort(heading) {
  const column = heading.cellIndex;
  const now = heading.getAttribute('aria-sort');
  // numbers begin with the largest, texts with the first
  const first = heading.classList.contains('n') ? 'descending' : 'ascending';
  const next = now === 'none' ? first : now === 'ascending' ? 'descending' : 'ascending';
  for (const other of table.tHead.querySelectorAll('[aria-sort]')) other.setAttribute('aria-sort', 'none');
  heading.setAttribute('aria-sort', next);
  const sign = next === 'ascending' ? 1 : -1;
  lines.sort((a, b) => {
    const x = value(a, column);
    const y = value(b, column);
    return sign * (x < y ? -1 : x > y ? 1 : 0) || a.home - b.home;
  });
  body.append(...lines.map((line) => line.row));
}

function filter() {
  table.classList.toggle('bare', !field('pictures').checked);
  const words = field('words').value.toLowerCase();
  const status = field('status').value;
  const least = Number(field('least').value) || 0;
  let shown = 0;
  for (const { row, words: text } of lines) {
    const fits =
      (!words || text.includes(words)) &&
      (!status || row.dataset.status === status) &&
      (!least || Number(row.cells[3].dataset.value) >= least) &&
      (!field('outlying')?.checked || 'outlying' in row.dataset) &&
      (!field('warned').checked || row.querySelector('details') !== null);
    row.hidden = !fits;
    shown += fits;
  }
  field('shown').textContent = `${shown} of ${lines.length} shown`;
}

table.tHead.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) sort(button.closest('th'));
});
controls.addEventListener('input', filter);
controls.addEventListener('submit', (event) => event.preventDefault());
// A link to a scan that is filtered out shows it again: by a click (also the second on one link, which
// leaves the address as it is), and by an address or a step back.
function reveal(hash) {
  const row = document.getElementById(hash.slice(1));
  if (!row?.hidden) return;
  controls.reset();
  filter();
  row.scrollIntoView();
}
addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="#line-"]');
  if (link) reveal(link.hash);
});
addEventListener('hashchange', () => reveal(location.hash));
document.documentElement.classList.add('scripted');
controls.hidden = false;
filter();
