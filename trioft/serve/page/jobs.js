// Several jobs: a card for each, and a choice of whose files are shown.

import { $, button, list, make, set, state } from "./dom.js";
import * as say from "./words.js";

const STATES = {
  starting: ["settling", "dim", "starting"], running: ["copying", "busy", "at work"],
  failed: ["failed", "bad", "ended by an error"], ended: ["done", "good", "ended"],
};

// *failedOf* says how many files of a job have failed, and are not replaced by another version.
export function drawJobs(feed, failedOf) {
  const jobs = feed.jobs ?? [];
  $("jobs").hidden = jobs.length === 0;
  list($("job-list"), jobs, (job) => job.name, () => newCard(feed), (li, job) => fillCard(li, job, feed, failedOf(job)));
}

function newCard(feed) {
  const li = make("li", "job");
  const pause = button("", () => feed.ask(li.job.paused ? "resume" : "pause", { job: li.job.name }));
  const facts = make("dl", "", ...["From", "To", "Files", "May the source be removed?"].map((label) =>
    make("div", "", make("dt", "", label), make("dd", "", make("p", "path"), make("p", "state")))));
  li.append(make("h3"), make("p", "state"), pause, facts);
  return li;
}

function fillCard(li, job, feed, failed) {
  li.job = job;
  const [title, how, pause, facts] = li.children;
  const [icon, kind, word] = job.paused && job.state === "running" ? ["waiting", "warn", "paused"] : STATES[job.state];
  set(title, job.name);
  state(how, icon, kind, say.join(": ", word, job.reason));
  pause.hidden = !feed.agent.control || job.state === "ended";
  pause.disabled = !feed.isLive;
  set(pause, job.paused ? "Resume" : "Pause").setAttribute("aria-label", `${pause.textContent} ${job.name}`);
  const [from, to, files, verdict] = [...facts.children].map((div) => div.lastChild.children);
  for (const [[path, well], end] of [[from, job.source], [to, job.destination]]) {
    set(path, say.shown(end.path));
    const isWell = end.state === "ok", { free, total } = end;
    const space = free !== undefined && total ? `${say.size(free)} free of ${say.size(total)}` : "can be used";
    const wrong = job.state === "failed" ? "cannot be used" : end.reason ?? "is still being looked for";
    const isGood = isWell && free !== 0;
    state(well, isGood ? "done" : "alert", isGood ? "good" : "bad", isWell ? space : wrong);
  }
  const { totals } = job, rate = totals.rate ? `${say.size(totals.rate)}/s` : "";
  const left = totals.pending_files ? `${say.count(totals.pending_files, "file")} to go, ${say.size(totals.pending_bytes)}` : "";
  const counts = [[totals.already, "there already"], [totals.skipped, "skipped"]];
  const some = counts.map(([n, what]) => (n ? `${say.plain(n)} ${what}` : ""));
  set(files[0], say.join(", ", `${say.plain(totals.delivered)} delivered`, ...some, left, rate));
  state(files[1], failed ? "failed" : "done", failed ? "bad" : "good", failed ? `${say.plain(failed)} failed` : "none failed");
  verdict[0].hidden = true;
  const { sure, text } = say.verdict({ ...job, isLive: feed.isLive, agent: job, now: feed.now }, failed, feed.verdicts.get(job.name));
  state(verdict[1], sure ? "done" : "skipped", sure ? "good" : "warn", text);
}

// The choice of whose files are shown; *chosen* is called when it changes.
export class JobChoice {
  #select = $("job");

  constructor(chosen) {
    this.#select.addEventListener("change", chosen);
  }

  draw(jobs) {
    const names = ["", ...(jobs ?? []).map((job) => job.name)];
    this.#select.parentElement.hidden = names.length === 1;
    const { options } = this.#select;
    if (names.length === options.length && names.every((name, n) => options[n].value === name)) return;
    const { value } = this.#select;
    this.#select.replaceChildren(...names.map((name) => new Option(name || "all jobs", name)));
    this.#select.value = names.includes(value) ? value : "";
  }

  has(file) {
    return !this.#select.value || file.job === this.#select.value;
  }
}
