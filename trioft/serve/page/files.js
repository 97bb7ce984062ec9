// The table of all files: filter, search, order.

import { $, bar, button, make, mark, name, set, shape, state, wide } from "./dom.js";
import { JobChoice } from "./jobs.js";
import { Table } from "./table.js";
import * as say from "./words.js";

const text = (key) => (a, b) => (a[key] < b[key] ? -1 : a[key] > b[key] ? 1 : 0);
const figure = (key) => (a, b) => (a[key] ?? -1) - (b[key] ?? -1);
const rank = Object.fromEntries(say.STATES.map((name, n) => [name, n]));
const share = (file) => say.part(file.bytes_copied, file.size);
const when = (file) => file.finished_at ?? file.found_at;
export const later = (a, b) => (when(a) < when(b) ? 1 : when(a) > when(b) ? -1 : b.id - a.id);
// Label, and the order that the first click brings.
const COLUMNS = {
  state: ["State", (a, b) => rank[a.state] - rank[b.state] || later(a, b)],
  name: ["Name", text("path")],
  size: ["Size", figure("size")],
  progress: ["Progress", (a, b) => share(a) - share(b)],
  rate: ["Rate", figure("rate")],
  time: ["Time", (a, b) => later(b, a)],
  remark: ["Remarks", null],
};

const KINDS = { failed: "bad", waiting: "warn", copying: "busy", verifying: "busy", growing: "busy", done: "good" };

export class Files {
  #feed; #table; #chips; #job = new JobChoice(() => this.draw());
  #state = "all"; #find = ""; #sort = "state"; #isDown = false;

  // *open* is called with the file that was chosen.
  constructor(feed, open) {
    this.#feed = feed;
    const fill = (row, file) => fillRow(row, file, feed);
    this.#table = new Table($("table"), $("view"), $("rows"), { make: newRow, fill, open });
    this.#chips = new Map(["all", ...say.STATES].map((name) => [name, this.#chip(name)]));
    for (const [key, [label, order]] of Object.entries(COLUMNS)) {
      const cell = make("div", `c-${key}`, order ? button(label, () => this.#sortBy(key)) : label);
      cell.setAttribute("role", "columnheader");
      $("heads").append(cell);
    }
    $("find").addEventListener("input", (event) => { this.#find = event.target.value; this.draw(); });
  }

  draw() {
    this.#job.draw(this.#feed.jobs);
    const files = [...this.#feed.files.values()].filter((file) => this.#job.has(file)), counts = { all: files.length };
    for (const file of files) counts[file.state] = (counts[file.state] ?? 0) + 1;
    for (const [name, chip] of this.#chips) {
      chip.hidden = name !== "all" && name !== this.#state && !counts[name];
      chip.setAttribute("aria-pressed", this.#state === name);
      set(chip.lastChild, say.plain(counts[name] ?? 0));
    }
    Object.entries(COLUMNS).forEach(([key, [, order]], n) => {
      const sorted = key !== this.#sort ? "none" : this.#isDown ? "descending" : "ascending";
      if (order) $("heads").children[n].setAttribute("aria-sort", sorted);
    });
    const needle = this.#find.toLowerCase(), order = COLUMNS[this.#sort][1], sign = this.#isDown ? -1 : 1;
    const rows = files.filter((file) => (this.#state === "all" || file.state === this.#state)
      && (!needle || file.path.toLowerCase().includes(needle) || (file.dest ?? "").toLowerCase().includes(needle)));
    this.#table.show(rows.sort((a, b) => sign * order(a, b) || a.id - b.id));
    set($("no-files"), files.length ? "No file is like that." : "There are no files yet.").hidden = rows.length > 0;
  }

  #sortBy(key) {
    this.#isDown = this.#sort === key && !this.#isDown;
    this.#sort = key;
    this.draw();
  }

  #chip(name) {
    const chip = button("", () => {
      this.#state = this.#state === name ? "all" : name;
      this.draw();
    });
    chip.className = "chip";
    if (name !== "all") chip.append(shape(name));
    chip.append(make("span", "", name), " ", make("b"));
    $("chips").append(chip);
    return chip;
  }
}

function newRow() {
  const row = make("div", "row");
  row.setAttribute("role", "row");
  for (const key of Object.keys(COLUMNS)) {
    const cell = make("div", `c-${key}`);
    cell.setAttribute("role", "cell");
    row.append(cell);
  }
  const named = make("button", "name");
  named.type = "button";
  row.children[1].append(named);
  row.children[3].append(bar(), make("span"));
  return row;
}

function fillRow(row, file, feed) {
  const [what, which, bytes, progress, rate, time, remark] = row.children;
  state(what, file.state, KINDS[file.state] ?? "dim", file.state);
  name(which.firstChild, file);
  set(bytes, say.size(file.size));
  wide(progress.firstChild.children[0], share(file));
  wide(progress.firstChild.children[1], say.part(file.bytes_verified, file.size));
  const isUnder = say.ACTIVE.has(file.state) || file.bytes_copied > 0;
  progress.firstChild.hidden = !isUnder;
  set(progress.lastChild, isUnder ? say.percent(share(file)) : "");
  set(rate, file.rate === null || !say.ACTIVE.has(file.state) ? "" : `${say.size(file.rate)}/s`);
  set(time, say.clock(when(file)));
  time.title = file.finished_at ? "when it was finished" : "when it was found";
  const words = say.remark(file, feed.jobOf(file), feed.now);
  set(remark, words).title = words;
}
