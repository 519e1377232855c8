// The page: the selection, the display, and what each control does.
import { Review, candidateKey } from './state.js';
import { isReader, parseVerdicts, verdictsText } from './verdicts.js';
import { Store } from './store.js';
import { PLANES, Scene, hasWebGL } from './scene.js';
import { drawMarks } from './marks.js';
import { consensusState, kappa, sideBySide } from './agreement.js';
import { arrange, element, factsText, showList } from './list.js';
import { KEYS, listenToKeys, listenToPointer } from './tools.js';

const CONSENSUS = 'consensus';
const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId('case').textContent);
const review = new Review(facts.candidates);
const store = new Store(facts, showSaved);
const view = { status: 'kept', sort: 'id', unread: false, selected: '', adding: false, rings: true };
let scene = null;
let saving = false; // off while a saved state is loaded
let afterReader = null; // what to do once the initials are entered
let opening = null; // a promise while looking for the server or fetching a reader's verdicts
let known = []; // readers with saved verdicts
let others = []; // files of other readers, for the comparison

// ---- Candidates

function items() {
  return review.items();
}

function listed() {
  const shown = arrange(items(), view);
  return view.unread ? shown.filter((item) => item.key === view.selected || !review.entry(item.key).verdict) : shown;
}

function selectedItem() {
  return items().find((item) => item.key === view.selected) ?? null;
}

function select(key) {
  view.selected = key;
  const item = selectedItem();
  if (item && !listed().some((each) => each.key === key)) {
    view.status = 'all';
    byId('status').querySelector('[value="all"]').checked = true;
  }
  showCandidates();
  if (item && scene) scene.goTo(item.position_mm);
}

function step(count) {
  const shown = listed();
  if (!shown.length) return;
  const here = shown.findIndex((item) => item.key === view.selected);
  const wanted = here < 0 ? 0 : Math.min(Math.max(here + count, 0), shown.length - 1);
  select(shown[wanted].key);
}

function nextUnread() {
  const shown = arrange(items(), view);
  const here = shown.findIndex((item) => item.key === view.selected);
  const order = [...shown.slice(here + 1), ...shown.slice(0, here + 1)];
  const next = order.find((item) => !review.entry(item.key).verdict);
  if (next) select(next.key);
}

function showCandidates() {
  showList(byId('list'), listed(), (key) => review.entry(key), view.selected, select);
  const all = items();
  for (const status of ['kept', 'rejected', 'all']) {
    const count = status === 'all' ? all.length : all.filter((item) => item.status === status).length;
    byId('status').querySelector(`[value="${status}"] + span b`).textContent = count;
  }
  const counted = arrange(all, view);
  const read = review.read(counted);
  byId('count').textContent = `${read} of ${counted.length}`;
  byId('bar').max = Math.max(counted.length, 1);
  byId('bar').value = read;
  showDetail();
  drawOver();
}

function showDetail() {
  const item = selectedItem();
  const entry = review.entry(view.selected);
  byId('which').textContent = item ? `${item.name} · ${item.place}` : 'No candidate is selected';
  byId('facts').textContent = item ? factsText(item) : 'Choose one in the list, or press J.';
  check('verdict', 'verdict', entry.verdict, Boolean(item));
  check('certainty', 'certainty', entry.certainty, true);
  check('mimic', 'mimic', entry.mimic, true);
  byId('certainty').hidden = entry.verdict !== 'microbleed';
  byId('mimic').hidden = entry.verdict !== 'mimic';
  const comment = byId('comment');
  if (document.activeElement !== comment || comment.dataset.key !== view.selected) comment.value = entry.comment;
  comment.dataset.key = view.selected;
  comment.disabled = !item;
  byId('undo').disabled = !review.past.length;
}

/** Mark the chosen button of a group; Tab reaches that one, or the first. */
function check(group, field, value, enabled) {
  const buttons = [...byId(group).querySelectorAll('button')];
  const chosen = buttons.find((button) => button.dataset[field] === value);
  for (const button of buttons) {
    button.setAttribute('aria-checked', String(enabled && button === chosen));
    button.tabIndex = button === (chosen ?? buttons[0]) ? 0 : -1;
    button.disabled = !enabled;
  }
}

// ---- Verdicts

/** Do something that is saved under the reader's initials; ask for them first if necessary. */
function asReader(work) {
  afterOpening(() => {
    if (store.reader) work();
    else askReader(work);
  });
}

/** Do something now, or as soon as the verdicts that are being fetched have arrived. */
function afterOpening(work) {
  if (opening) opening.then(() => afterOpening(work), () => {}); // the code that fetches them reports errors
  else work();
}

function judge(fields) {
  const { selected } = view;
  const item = selectedItem();
  if (!item) return;
  asReader(() => {
    if (fields.verdict === '' && item.status === 'added') {
      review.remove(selected);
      step(0);
      return;
    }
    review.set(selected, fields);
    if (byId('advance').checked && fields.verdict) nextUnread();
  });
}

function setVerdict(verdict) {
  const certainty = verdict === 'microbleed' ? review.entry(view.selected).certainty || 'definite' : '';
  judge({ verdict, certainty });
}

function setKind(index) {
  const mimic = facts.mimic_kinds[index];
  if (mimic) judge({ verdict: 'mimic', mimic });
}

function undo(back) {
  if (opening) {
    afterOpening(() => undo(back));
    return;
  }
  const key = back ? review.undo() : review.redo();
  if (key === null) return;
  if (items().some((item) => item.key === key)) select(key);
  else if (!selectedItem()) step(0);
}

function setAdding(on) {
  view.adding = on;
  byId('adding').hidden = !on;
  if (on) byId('over').focus({ preventScroll: true });
}

function addAt(voxel) {
  if (!view.adding) return false;
  setAdding(false);
  const position_mm = scene.positionOf(voxel).map((value) => Math.round(value * 100) / 100);
  asReader(() => select(review.add(position_mm)));
  return true;
}

review.onChange((state) => {
  if (saving) store.save(state);
  showCandidates();
});

function showSaved(status, words) {
  byId('save').dataset.status = status;
  byId('save').textContent = words;
  if (status === 'stopped') notice(words);
}

function notice(words) {
  byId('notice').textContent = words;
  byId('notice').hidden = !words;
}

function openReader(reader, start = null) {
  return hold(() => takeReader(reader, start));
}

/** Make verdicts that are given during `work` wait for its end. */
function hold(work) {
  const held = (opening ?? Promise.resolve()).catch(() => {}).then(work);
  opening = held;
  const release = () => {
    if (opening === held) opening = null;
  };
  held.then(release, release);
  return held;
}

async function takeReader(reader, start) {
  let found;
  try {
    found = await store.open(reader);
  } finally {
    showReader();
  }
  saving = false;
  review.replace(found?.state ?? { marks: {}, added: [] });
  saving = true;
  if (!found && start) review.step(start);
  store.lastReader = reader;
  notice('');
}

function showReader() {
  byId('reader').textContent = store.reader ? `Reader ${store.reader}` : 'Set reader';
  byId('reader').classList.toggle('primary', !store.reader);
}

async function askReader(then = null) {
  afterReader = then;
  byId('initials').value = store.reader;
  hintInitials();
  byId('reader-dialog').showModal();
  byId('initials').select();
  known = await store.readers().catch(() => []);
  hintInitials();
}

function hintInitials() {
  const name = byId('initials').value.trim();
  const here = known.find((each) => each.reader === name);
  byId('reader-ok').disabled = !isReader(name);
  byId('reader-ok').textContent = here ? `Continue as ${name}` : 'Start';
  if (!name) byId('initials-text').textContent = '';
  else if (!isReader(name)) byId('initials-text').textContent = `Allowed: ${facts.reader_rule}.`;
  else if (here) {
    byId('initials-text').textContent =
      `${name} has ${here.marks} verdicts here, saved ${new Date(here.saved).toLocaleString()}. ` +
      'Continue only if that was you; else choose other initials.';
  } else byId('initials-text').textContent = 'Nothing is saved under these initials yet.';
}

function download(text, name) {
  const link = element('a', '', { href: URL.createObjectURL(new Blob([text], { type: 'application/json' })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function loadFiles(files) {
  for (const file of files) {
    try {
      const found = parseVerdicts(facts, await file.text(), file.name);
      if (byId('readers-dialog').open) addReading(found, file.name);
      else await takeOver(found);
      notice('');
    } catch (error) {
      notice(error.message);
      if (byId('readers-dialog').open) byId('comparison').textContent = error.message;
    }
  }
}

/** Continue with a loaded file, unless that would replace newer verdicts of the same reader. */
async function takeOver(found) {
  const here = await store.text(found.reader);
  if (here !== null && JSON.parse(here).saved > found.saved) {
    throw new Error(`Newer verdicts of ${found.reader} are here already. Download those first, or load the file under other initials.`);
  }
  await openReader(found.reader);
  review.step(found.state);
  step(0);
}

// ---- Images

function drawOver() {
  if (!scene?.base) return;
  const shown = arrange(items(), view);
  const marked = items()
    .filter((item) => shown.some((each) => each.key === item.key) || item.key === view.selected || review.entry(item.key).verdict)
    .map((item) => ({ item, verdict: review.entry(item.key).verdict }));
  drawMarks(scene, marked, view.selected, view.rings);
  showPlace();
}

let placing = 0;
async function showPlace() {
  const [number, count] = scene.slice();
  byId('plane').textContent = scene.plane[0].toUpperCase() + scene.plane.slice(1);
  byId('slice').max = count;
  byId('slice').value = number;
  byId('slice').setAttribute('aria-valuetext', `slice ${number} of ${count}`);
  showWindow();
  const turn = (placing += 1);
  const region = await scene.regionHere().catch(() => '');
  if (turn !== placing) return; // the cross-hair has moved on
  const [x, y, z] = scene.positionOf(scene.voxel).map((value) => value.toFixed(1));
  const value = scene.valueHere();
  const shown = scene.modality === 'phase' ? `${value.toFixed(2)} rad` : value.toPrecision(4).replace(/\.?0+$/, '');
  byId('place').textContent = [region, `${x}, ${y}, ${z} mm`, `${scene.modality === 'minip' ? 'minIP' : scene.modality === 'phase' ? 'phase' : 'SWI'} ${shown}`]
    .filter(Boolean)
    .join(' · ');
}

function showWindow() {
  const [least, most] = scene.initialWindow;
  const [low, high] = scene.window;
  byId('level').value = Math.round((100 * ((low + high) / 2 - least)) / (most - least));
  byId('width').value = Math.round((100 * (high - low)) / (most - least));
}

function slideWindow() {
  const [least, most] = scene.initialWindow;
  const middle = least + (byId('level').value / 100) * (most - least);
  const half = ((byId('width').value / 100) * (most - least)) / 2;
  scene.setWindow(middle - half, middle + half);
}

function setModality(name) {
  if (!scene?.has(name)) return;
  byId('modality').querySelector(`[value="${name}"]`).checked = true;
  byId('slab-box').hidden = name !== 'minip';
  scene.setModality(name).then(drawOver, (error) => {
    notice(error.message);
    if (name !== 'swi') setModality('swi'); // the label must match the image
  });
}

function setLayout(name) {
  if (!scene) return;
  byId('layout').querySelector(`[value="${name}"]`).checked = true;
  scene.setLayout(name);
}

function setSlab(thickness) {
  const slab = byId('slab');
  slab.value = thickness;
  byId('slab-text').textContent = `${slab.value} mm`;
  scene?.setSlab(Number(slab.value));
}

function setRings(on) {
  view.rings = on;
  byId('rings').checked = on;
  drawOver();
}

function setOpacity(name, percent) {
  byId(name).value = percent;
  scene?.setOpacity(name, percent / 100).catch((error) => notice(error.message));
}

// ---- Readers

async function openReaders() {
  others = [];
  byId('comparison').textContent = '';
  byId('consensus').hidden = true;
  byId('truth').hidden = !store.server;
  const box = byId('reader-list');
  box.replaceChildren();
  for (const each of await store.readers().catch(() => [])) addChoice(each.reader, `${each.marks} read, ${each.added} added`);
  if (!box.children.length) box.textContent = 'No verdicts are saved here yet.';
  byId('readers-dialog').showModal();
}

function addChoice(reader, words) {
  const box = byId('reader-list');
  if (!box.children.length) box.textContent = '';
  const label = element('label', 'check');
  label.append(element('input', '', { type: 'checkbox', value: reader }), ` ${reader} (${words})`);
  label.querySelector('input').checked = reader !== CONSENSUS;
  box.append(label);
}

function addReading(found, name) {
  if ([...byId('reader-list').querySelectorAll('input')].some((box) => box.value === found.reader)) {
    throw new Error(`${name} is by ${found.reader}, who is in the list already. If these are two people, one must save under other initials.`);
  }
  others.push(found);
  const read = Object.values(found.state.marks).filter((entry) => entry.verdict).length;
  addChoice(found.reader, `${read} read, ${found.state.added.length} added`);
}

function chosenReaders() {
  return [...byId('reader-list').querySelectorAll('input:checked')].map((box) => box.value);
}

async function chosenReadings() {
  const readings = [];
  for (const reader of chosenReaders()) {
    const loaded = others.find((each) => each.reader === reader);
    readings.push(loaded ?? parseVerdicts(facts, await store.text(reader), reader));
  }
  return readings;
}

async function compare() {
  const readings = await chosenReadings();
  const box = byId('comparison');
  if (readings.length < 2) {
    box.textContent = 'Choose two readers or more; add their files if they read elsewhere.';
    return;
  }
  box.textContent = '';
  for (let first = 0; first < readings.length; first += 1) {
    for (let second = first + 1; second < readings.length; second += 1) {
      box.append(element('p', 'pair', {}, pairText(readings[first], readings[second])));
    }
  }
  box.append(comparisonTable(readings));
  byId('consensus').hidden = false;
}

function pairText(first, second) {
  const { both, same, kappa: value } = kappa(facts, first.state, second.state);
  const names = `${first.reader} and ${second.reader}`;
  if (!both) return `${names} have judged no candidate in common.`;
  const shown = Number.isNaN(value) ? 'kappa undefined (one word alone was used)' : `kappa ${value.toFixed(2)}`;
  return `${names}: same verdict on ${same} of ${both} candidates that both judged (${Math.round((100 * same) / both)} %), ${shown}.`;
}

function comparisonTable(readings) {
  const table = element('table');
  const head = element('tr');
  for (const name of ['Candidate', 'Place', ...readings.map((each) => each.reader), '']) {
    head.append(element('th', '', { scope: 'col' }, name));
  }
  const header = element('thead');
  header.append(head);
  const body = element('tbody');
  for (const each of sideBySide(facts, readings)) {
    const line = element('tr', each.agreed ? '' : 'differ');
    const title = element('th', '', { scope: 'row' });
    const jump = element('button', '', { type: 'button' }, each.name);
    jump.addEventListener('click', () => {
      byId('readers-dialog').close();
      if (each.key) select(each.key);
      else scene?.goTo(each.position_mm);
    });
    title.append(jump);
    const cells = each.entries.map((entry) =>
      element('td', `said ${entry?.verdict ?? ''}`, {}, entry?.verdict ? [entry.verdict, entry.certainty, entry.mimic].filter(Boolean).join(', ') : each.key ? 'not read' : 'not marked'),
    );
    line.append(title, element('td', '', {}, each.place), ...cells, element('td', '', {}, each.agreed ? 'agreed' : 'to settle'));
    body.append(line);
  }
  table.append(header, body);
  return table;
}

async function readTogether() {
  const readings = (await chosenReadings()).filter((each) => each.reader !== CONSENSUS);
  byId('readers-dialog').close();
  await openReader(CONSENSUS, consensusState(facts, readings));
  const open = sideBySide(facts, readings).filter((each) => !each.agreed);
  const lesions = open.filter((each) => !each.key);
  notice(
    `Reading together: what all agree on is filled in, ${open.length - lesions.length} candidates are to be settled` +
      (lesions.length ? ` and ${lesions.length} added lesions (add those that all accept).` : '.') +
      ' Press N for the next one.',
  );
  byId('status').querySelector('[value="all"]').checked = true;
  view.status = 'all';
  const first = open.find((each) => each.key);
  if (first) select(first.key);
  else step(0);
}

async function writeTruth() {
  const box = byId('comparison');
  const readers = chosenReaders();
  const added = others.map((each) => each.reader).filter((reader) => readers.includes(reader));
  if (added.length) {
    box.textContent = `${added.join(', ')}: here as a file only. Close this, save it here with Load, then write truth.`;
    return;
  }
  const answer = await fetch('truth', { method: 'POST', body: JSON.stringify({ readers }), headers: { 'Content-Type': 'application/json' } })
    .catch(() => null); // prettier-ignore
  if (!answer) box.textContent = 'cmb-jax view is not running; start it again.';
  else if (!answer.ok) box.textContent = await answer.text();
  else {
    const { summary, commands } = await answer.json();
    box.replaceChildren(element('p', '', {}, summary), element('p', '', {}, 'Then, in a terminal:'), element('pre', '', { tabindex: '0' }, commands.join('\n')));
  }
}

// ---- Wiring

function on(id, event, work) {
  byId(id).addEventListener(event, work);
}

function wireControls() {
  for (const button of document.querySelectorAll('#verdict button')) {
    button.addEventListener('click', () => setVerdict(button.dataset.verdict));
  }
  for (const button of document.querySelectorAll('#certainty button')) {
    button.addEventListener('click', () => judge({ verdict: 'microbleed', certainty: button.dataset.certainty }));
  }
  facts.mimic_kinds.forEach((kind, index) => {
    const button = element('button', '', { role: 'radio', 'data-mimic': kind }, `${kind[0].toUpperCase()}${kind.slice(1)} `);
    button.append(element('kbd', '', {}, String(index + 1)));
    button.addEventListener('click', () => setKind(index));
    byId('mimic').append(button);
  });
  for (const group of document.querySelectorAll('[role="radiogroup"]')) {
    group.addEventListener('keydown', (event) => moveInGroup(event, group));
  }
  on('comment', 'input', () => {
    const words = byId('comment').value;
    const key = view.selected;
    asReader(() => review.set(key, { comment: words }, `comment ${key}`));
  });
  on('previous', 'click', () => step(-1));
  on('next', 'click', () => step(1));
  on('undo', 'click', () => undo(true));
  on('add', 'click', () => setAdding(!view.adding));
  on('status', 'change', (event) => {
    view.status = event.target.value;
    showCandidates();
  });
  on('sort', 'change', (event) => {
    view.sort = event.target.value;
    showCandidates();
  });
  on('unread', 'change', (event) => {
    view.unread = event.target.checked;
    showCandidates();
  });
  on('modality', 'change', (event) => setModality(event.target.value));
  on('layout', 'change', (event) => setLayout(event.target.value));
  on('slab', 'input', (event) => setSlab(event.target.value));
  on('in', 'click', () => scene?.zoom(1.4));
  on('out', 'click', () => scene?.zoom(1 / 1.4));
  on('fit', 'click', () => scene?.resetView());
  on('slice', 'input', (event) => scene?.scroll(Number(event.target.value) - scene.slice()[0]));
  for (const id of ['level', 'width']) on(id, 'input', () => scene && slideWindow());
  on('window', 'click', () => scene?.resetWindow());
  on('rings', 'change', (event) => setRings(event.target.checked));
  for (const name of ['labels', 'regions']) on(name, 'input', (event) => setOpacity(name, event.target.value));
}

/** Arrow keys move through the buttons of a radio group, as WAI-ARIA requires. */
function moveInGroup(event, group) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  const buttons = [...group.querySelectorAll('button')];
  buttons.at((buttons.indexOf(document.activeElement) + by) % buttons.length).focus();
  event.preventDefault();
  event.stopPropagation();
}

/** Return the focus to the images: browsers leave it in a closed dialog until the next frame, or drop it. */
function leaveDialog(dialog) {
  const focused = document.activeElement;
  if (focused === document.body || dialog.contains(focused)) byId('over').focus({ preventScroll: true });
}

function wireDialogs() {
  on('reader', 'click', () => askReader());
  on('initials', 'input', hintInitials);
  for (const dialog of document.querySelectorAll('dialog')) dialog.addEventListener('close', () => leaveDialog(dialog));
  on('reader-cancel', 'click', () => byId('reader-dialog').close());
  // on submit, not on the later close event: keys may arrive in between
  on('reader-dialog', 'submit', async () => {
    const name = byId('initials').value.trim();
    const work = afterReader;
    if (!isReader(name)) return;
    try {
      const opened = openReader(name);
      if (work) asReader(work);
      await opened;
    } catch (error) {
      notice(error.message);
    }
  });
  on('download', 'click', () =>
    asReader(() => {
      const text = verdictsText(facts, store.reader, review.now, new Date().toISOString());
      download(text, `${facts.subject}_verdicts-${store.reader}.json`);
    }),
  );
  on('load', 'click', () => byId('file').click());
  on('compare-file', 'click', () => byId('file').click());
  on('file', 'change', async (event) => {
    await loadFiles([...event.target.files]);
    event.target.value = '';
  });
  on('readers', 'click', openReaders);
  on('readers-close', 'click', () => byId('readers-dialog').close());
  const showingErrors = (work) => () => work().catch((error) => (byId('comparison').textContent = error.message));
  on('compare', 'click', showingErrors(compare));
  on('consensus', 'click', showingErrors(readTogether));
  on('truth', 'click', showingErrors(writeTruth));
  on('help', 'click', () => byId('help-dialog').showModal());
  on('help-close', 'click', () => byId('help-dialog').close());
  for (const [keys, words] of KEYS) {
    const line = element('div');
    line.append(element('span', '', {}, words), element('kbd', '', {}, keys));
    byId('keys').append(line);
  }
  byId('about').textContent =
    `cmb-jax ${facts.version}, images by NiiVue (BSD-2-Clause). Nothing on this page leaves this machine. ` +
    `Image ${facts.swi_sha256.slice(0, 8)}. ${facts.warnings.join(' ')}`;
}

function closeMenu() {
  if (!byId('display').open) return false;
  byId('display').open = false;
  byId('display').querySelector('summary').focus();
  return true;
}

function wireKeys() {
  listenToKeys(
    {
      step,
      scroll: (steps) => scene?.scroll(steps),
      level: (by) => scene?.changeWindow(by * 0.04, 0),
      width: (by) => scene?.changeWindow(0, by * 0.08),
      enter: () => (view.adding && scene ? addAt(scene.voxel) : false),
      escape: () => (view.adding ? setAdding(false) : closeMenu()),
      leave: () => byId('over').focus({ preventScroll: true }),
      verdict: setVerdict,
      certainty: (certainty) => judge({ verdict: 'microbleed', certainty }),
      kind: setKind,
      unread: nextUnread,
      add: () => setAdding(!view.adding),
      comment: () => byId('comment').focus(),
      undo: () => undo(true),
      redo: () => undo(false),
      modality: setModality,
      flip: () => setModality(scene?.modality === 'phase' ? 'swi' : 'phase'),
      layout: setLayout,
      nextLayout: () => setLayout(PLANES[(PLANES.indexOf(scene?.layout) + 1) % PLANES.length]),
      slab: (by) => setSlab(Number(byId('slab').value) + by),
      zoom: (by) => scene?.zoom(1.25 ** by),
      fit: () => scene?.resetView(),
      resetWindow: () => scene?.resetWindow(),
      rings: () => setRings(!view.rings),
      overlay: (name) => setOpacity(name, Number(byId(name).value) > 0 ? 0 : 40),
      readers: openReaders,
      help: () => byId('help-dialog').showModal(),
    },
    () => byId('shortcuts').checked,
  );
}

async function openImages() {
  if (!facts.images.includes('swi')) {
    return 'The images are not in this page.\nOpen them with: cmb-jax view RESULT --swi FILE --phase FILE';
  }
  if (!hasWebGL(byId('images'))) {
    return (
      'This browser cannot show the images: WebGL 2 is missing or switched off.\n' +
      'Use a current Chrome, Edge, Firefox or Safari, and switch on graphics acceleration in its settings.\n' +
      'The list and report.html work without.'
    );
  }
  try {
    scene = new Scene(facts, byId('images'), byId('over'), () => drawOver());
    await scene.open();
    return '';
  } catch (error) {
    scene = null;
    return `${error.message}\nIf that does not help, load the page again, or close other pages with images.`;
  }
}

/** Find the server, and continue with the reader from before a reload. */
async function connect() {
  await store.connect();
  if (store.lastReader) await takeReader(store.lastReader, null).catch((error) => notice(error.message));
}

async function start() {
  byId('title').textContent = facts.title;
  const connected = hold(connect); // before any key can be pressed
  wireControls();
  wireDialogs();
  wireKeys();
  showCandidates();
  for (const name of ['phase', 'minip']) {
    byId('modality').querySelector(`[value="${name}"]`).disabled = !facts.images.includes(name === 'minip' ? 'swi' : name);
  }
  byId('regions').disabled = !facts.images.includes('regions');
  const problem = await openImages();
  byId('empty').textContent = problem;
  byId('empty').hidden = !problem;
  if (scene) {
    listenToPointer(scene, addAt);
    new ResizeObserver(() => scene.resize()).observe(byId('view'));
  }
  step(0);
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  await connected;
  document.documentElement.dataset.connected = 'yes';
  addEventListener('beforeunload', (event) => {
    if (store.reader && store.unsaved) event.preventDefault();
  });
}

start();
