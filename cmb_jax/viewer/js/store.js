// Where verdicts are kept: every change goes to the browser's own storage at once, and to the local server if the
// page came from one. From disk there is no server; the reader downloads the file instead.
import { parseVerdicts, verdictsText } from './verdicts.js';

const RETRY_MS = 3000;

export class Store {
  /** @param {(status: string, text: string) => void} report is told how the last change is kept */
  constructor(facts, report) {
    this.facts = facts;
    this.report = report;
    this.server = false;
    this.reader = '';
    this.etag = null;
    this.stopped = false;
    addEventListener('storage', (event) => {
      if (this.reader && event.key === this.key(this.reader) && !this.server) {
        this.stop('These verdicts were changed in another window. Close one of the two and reload this page.');
      }
    });
  }

  /** Find out whether the page came from `cmb-jax view`. */
  async connect() {
    if (location.protocol.startsWith('http')) {
      this.server = await fetch('verdicts', { cache: 'no-store' }).then(
        (answer) => answer.ok,
        () => false,
      );
    }
    return this.server;
  }

  /** Readers with verdicts on this scan: [{reader, saved, marks, added}]. */
  async readers() {
    if (this.server) return (await fetch('verdicts', { cache: 'no-store' })).json();
    const found = [];
    const prefix = this.key('');
    for (let index = 0; index < localStorage.length; index += 1) {
      const key = localStorage.key(index);
      if (!key.startsWith(prefix)) continue;
      try {
        const content = JSON.parse(localStorage.getItem(key));
        found.push({
          reader: content.reader,
          saved: content.saved,
          marks: content.marks.filter((mark) => mark.verdict).length,
          added: content.added.length,
        });
      } catch {
        // not ours, or half written: not offered
      }
    }
    return found;
  }

  /** The file's text of a reader, null if there is none. */
  async text(reader) {
    if (!this.server) return this.local(reader);
    const answer = await fetch(`verdicts/${reader}`, { cache: 'no-store' });
    if (answer.status === 204) return null; // nothing yet
    if (!answer.ok) throw new Error(await answer.text());
    this.etagOfText = answer.headers.get('ETag');
    return answer.text();
  }

  /** Open a reader's verdicts, those that were kept here when the server could not be reached included. */
  async open(reader) {
    await this.settled();
    this.reader = ''; // until the verdicts are here, nothing can be judged
    this.etagOfText = null;
    let text = await this.text(reader);
    this.etag = this.etagOfText;
    this.stopped = false;
    this.tried = [];
    let unsent = false;
    if (this.server) {
      const here = this.local(reader);
      if (here && localStorage.getItem(`${this.key(reader)} unsent`) === '1') {
        text = here;
        unsent = true;
      }
    }
    const found = text === null ? null : parseVerdicts(this.facts, text, `The file of ${reader}`);
    this.reader = reader;
    if (unsent) this.save(found.state);
    else this.report(found ? 'saved' : 'new', found ? this.where() : '');
    return found;
  }

  /** Wait until the last change is saved; another reader's verdicts must not be opened over it. */
  async settled() {
    for (let waited = 0; this.sending && waited < RETRY_MS; waited += 50) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    if (this.sending) throw new Error(`The verdicts of ${this.reader} are not saved yet. Download them first.`);
  }

  /** Keep a state, now. */
  save(state) {
    if (!this.reader || this.stopped) return;
    const text = verdictsText(this.facts, this.reader, state, new Date().toISOString());
    const kept = this.keep(text);
    if (!this.server) {
      this.pending = kept ? null : text;
      this.report(kept ? 'saved' : 'failed', kept ? this.where() : 'This browser keeps nothing: download the file.');
      return;
    }
    this.pending = text;
    this.report('saving', 'Saving');
    if (!this.sending) this.send();
  }

  async send() {
    this.sending = true;
    while (this.pending !== null && this.pending !== undefined && !this.stopped) {
      const text = this.pending;
      let answer = null;
      this.tried = [...this.tried, text].slice(-2);
      try {
        answer = await fetch(`verdicts/${this.reader}`, {
          method: 'PUT',
          headers: {
            'Content-Type': 'application/json',
            ...(this.etag ? { 'If-Match': this.etag } : { 'If-None-Match': '*' }),
          },
          body: text,
        });
      } catch {
        this.report('failed', 'cmb-jax view is not running: download the file before you close this page');
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        continue;
      }
      if (answer.ok) {
        this.etag = answer.headers.get('ETag');
        if (this.pending === text) this.pending = null;
        if (this.pending === null) {
          this.sent();
          this.report('saved', this.where());
        }
      } else if (answer.status === 412 && (await this.isOurs())) {
        // an earlier answer was lost on its way: what lies there is what we had sent
      } else if (answer.status === 412) {
        this.stop(
          `Someone else saved verdicts as ${this.reader}, in another window or under the same initials. ` +
            'Download yours, then reload this page, or choose other initials.',
        );
      } else {
        this.stop(`Not saved: ${await answer.text()}`);
      }
    }
    this.sending = false;
  }

  /** Whether the server holds one of the files that we tried to save; then the next one may follow it. */
  async isOurs() {
    const there = await this.text(this.reader).catch(() => null);
    if (!this.tried.slice(0, -1).includes(there)) return false;
    this.etag = this.etagOfText;
    return true;
  }

  /** Nothing more is saved, so that nothing of another is written over. */
  stop(text) {
    this.stopped = true;
    this.report('stopped', text);
  }

  get unsaved() {
    return this.stopped || (this.pending !== null && this.pending !== undefined);
  }

  where() {
    return this.server ? `Saved in verdicts/${this.reader}.json` : 'Saved in this browser';
  }

  key(reader) {
    return `cmb-jax verdicts ${this.facts.detections_sha256} ${reader}`;
  }

  local(reader) {
    return withStorage(() => localStorage.getItem(this.key(reader)), null);
  }

  keep(text) {
    return withStorage(() => {
      localStorage.setItem(this.key(this.reader), text);
      if (this.server) localStorage.setItem(`${this.key(this.reader)} unsent`, '1');
      return true;
    }, false);
  }

  sent() {
    withStorage(() => localStorage.removeItem(`${this.key(this.reader)} unsent`));
  }

  /** Who was reading in this window before it was reloaded, '' if nobody was. */
  get lastReader() {
    return withStorage(() => sessionStorage.getItem(this.key('last')) ?? '', '');
  }

  set lastReader(reader) {
    withStorage(() => sessionStorage.setItem(this.key('last'), reader));
  }
}

/** The browser's storage may be switched off or full: `otherwise` then. */
function withStorage(work, otherwise = null) {
  try {
    return work();
  } catch {
    return otherwise;
  }
}
