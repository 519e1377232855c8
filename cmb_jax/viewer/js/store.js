// Where verdicts are stored: every change goes to the browser's storage at once, and to the local server if the page
// came from one. A page opened from disk has no server; the reader downloads the file instead.
import { parseVerdicts, verdictsText } from './verdicts.js';

const RETRY_MS = 3000;

export class Store {
  /** @param {(status: string, text: string) => void} report called with the state of saving */
  constructor(facts, report) {
    this.facts = facts;
    this.report = report;
    this.server = false;
    this.reader = '';
    this.etag = null;
    this.pending = null; // text that the server does not have yet
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
        // not ours, or damaged: leave it out
      }
    }
    return found;
  }

  /** The text of a reader's file; null if there is none yet. */
  async text(reader) {
    if (!this.server) return this.local(reader);
    const answer = await fetch(`verdicts/${reader}`, { cache: 'no-store' });
    if (answer.status === 204) return null;
    if (!answer.ok) throw new Error(await answer.text());
    this.etagOfText = answer.headers.get('ETag');
    return answer.text();
  }

  /** Open a reader's verdicts; changes that the server has not received yet take precedence. */
  async open(reader) {
    await this.settled();
    this.reader = ''; // no verdicts can be given until these are here
    this.etagOfText = null;
    let text = await this.text(reader);
    this.etag = this.etagOfText;
    this.stopped = false;
    this.tried = [];
    const stored = this.server ? this.local(reader) : null;
    const unsent = Boolean(stored) && localStorage.getItem(`${this.key(reader)} unsent`) === '1';
    if (unsent) text = stored;
    const found = text === null ? null : parseVerdicts(this.facts, text, `The file of ${reader}`);
    this.reader = reader;
    if (unsent) this.save(found.state);
    else this.report(found ? 'saved' : 'new', found ? this.where() : '');
    return found;
  }

  /** Wait until the last change is saved: opening another reader's verdicts would lose it. */
  async settled() {
    for (let waited = 0; this.sending && waited < RETRY_MS; waited += 50) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    if (this.sending) throw new Error(`The verdicts of ${this.reader} are not saved yet. Download them first.`);
  }

  /** Save a state. */
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
    while (this.pending !== null && !this.stopped) {
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
        // the answer to an earlier request was lost: the server has what we sent
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

  /** Whether the server has one of the versions that we tried to save, so that the next may replace it. */
  async isOurs() {
    const current = await this.text(this.reader).catch(() => null);
    if (!this.tried.slice(0, -1).includes(current)) return false;
    this.etag = this.etagOfText;
    return true;
  }

  /** Save nothing more, so that someone else's verdicts are not overwritten. */
  stop(text) {
    this.stopped = true;
    this.report('stopped', text);
  }

  get unsaved() {
    return this.stopped || (this.pending !== null);
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

  /** The reader in this window before it was reloaded, or ''. */
  get lastReader() {
    return withStorage(() => sessionStorage.getItem(this.key('last')) ?? '', '');
  }

  set lastReader(reader) {
    withStorage(() => sessionStorage.setItem(this.key('last'), reader));
  }
}

/** Returns `otherwise` if the browser's storage is off or full. */
function withStorage(work, otherwise = null) {
  try {
    return work();
  } catch {
    return otherwise;
  }
}
