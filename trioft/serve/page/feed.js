// The feed's client: the state as the agent tells it, kept up to date. A lost connection is opened again.

const SILENCE = 15_000; // milliseconds without any message, heartbeats included, after which the connection is lost
const FIRST = 1_000, LONGEST = 15_000; // pauses before another attempt: they double

export class Feed {
  files = new Map();
  agent = null; source = null; destination = null; totals = null;
  jobs = null; // where there are several
  verdicts = new Map(); // by job: whether its source may be removed, as it was looked at last
  link = "connecting"; // loading, live, lost
  isDenied = false; // another server, or a proxy, answers and refuses
  heardAt = null; retryAt = null; // on this machine's clock, in milliseconds
  skew = 0; // the agent's clock minus this one's
  epoch = null; #rev = 0; #pause = FIRST; #timer = 0; #silence = 0; #socket = null; #ref = 0;

  constructor(changed, answered) {
    this.changed = changed;
    this.answered = answered;
    addEventListener("online", () => this.tryNow());
    document.addEventListener("visibilitychange", () => document.hidden || this.tryNow());
  }

  get isLive() { return this.link === "live"; }
  get now() { return Date.now() + this.skew; }

  connect() {
    clearTimeout(this.#timer);
    const url = new URL("feed", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.epoch !== null) url.search = new URLSearchParams({ epoch: this.epoch, since: this.#rev });
    const socket = this.#socket = new WebSocket(url);
    socket.onmessage = ({ data }) => socket === this.#socket && this.#take(JSON.parse(data));
    socket.onclose = () => socket === this.#socket && this.#lost();
    this.#listen();
  }

  tryNow() {
    if (this.link !== "lost") return;
    this.#pause = FIRST;
    this.connect();
  }

  // The job of a file; the agent, where there is only one. It says how files are verified, and what becomes of sources.
  jobOf(file) {
    return this.jobs?.find((job) => job.name === file.job) ?? this.agent;
  }

  // Ask for something, where the agent can be controlled: pause, resume, retry, cancel, other limits.
  ask(what, more = {}) {
    this.#socket.send(JSON.stringify({ do: what, ...more, ref: (this.#ref += 1) }));
  }

  #listen() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#lost(), SILENCE);
  }

  #take(message) {
    this.#listen();
    if (message.type === "answer") this.answered(message);
    if (message.type !== "state") return;
    if (message.reset) this.files.clear();
    for (const file of message.files) this.files.set(file.id, file);
    for (const id of message.gone) this.files.delete(id);
    for (const name of ["agent", "source", "destination", "totals", "jobs"]) this[name] = message[name] ?? this[name];
    this.epoch = message.epoch;
    this.#rev = message.rev;
    this.#pause = FIRST;
    this.link = message.rev === message.head ? "live" : "loading";
    this.heardAt = Date.now();
    this.skew = Date.parse(message.time) - this.heardAt;
    this.retryAt = null;
    this.isDenied = false;
    this.changed();
  }

  #lost() {
    const socket = this.#socket;
    this.#socket = null; // what it still says does not count
    socket?.close();
    clearTimeout(this.#silence);
    this.link = "lost";
    this.retryAt = Date.now() + this.#pause;
    this.#timer = setTimeout(() => this.connect(), this.#pause);
    this.#pause = Math.min(LONGEST, this.#pause * 2);
    this.changed();
    this.#probe();
  }

  // Ask whether the sources may be removed; that has it looked at, too.
  async askVerdicts() {
    try {
      const answer = await fetch("api/v1/safe", { cache: "no-store", signal: AbortSignal.timeout(5_000) });
      const { jobs } = await answer.json();
      this.verdicts = new Map(jobs.map((known) => [known.job, known]));
    } catch {
      this.verdicts.clear(); // nobody knows
    }
    this.changed();
  }

  // A browser does not tell why it got no WebSocket: whether the token is missing has to be asked for.
  async #probe() {
    try {
      const answer = await fetch("status", { method: "HEAD", signal: AbortSignal.timeout(5_000) });
      if (answer.status === 401) location.assign("./");
      this.isDenied = !answer.ok;
      this.changed();
    } catch { /* nobody is there, which is said already */ }
  }
}
