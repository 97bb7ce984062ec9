// The page: draws what the feed knows, in the order in which an operator asks.

import { $, bar, button, list, make, name, set, state, wide } from "./dom.js";
import { Feed } from "./feed.js";
import { Files, later } from "./files.js";
import { drawJobs } from "./jobs.js";
import * as say from "./words.js";

const PERIOD = 600_000, SAMPLE = 1_000; // of the throughput, in milliseconds
const MOST = { troubles: 5, active: 8, lately: 5 }; // shown of each

// --- the parts

const nameButton = (li) => {
  const element = button("", () => open(li.file));
  element.className = "name";
  return element;
};

const feed = new Feed(changed, answered);
const table = new Files(feed, open);
let samples = []; // [time, bytes a second or null]
let drawing = 0, shownFile = null, announced = null, unresolved = [], failed = 0, isWhole = true;
let ended = [], epoch = null; // jobs that an error has ended

function drawLink() {
  const { link, heardAt, retryAt, isDenied } = feed;
  const words = {
    connecting: ["settling", "dim", "Connecting"],
    loading: ["settling", "dim", "Loading"],
    live: ["done", "good", "Live"],
    lost: ["alert", "bad", isDenied ? "Refused, retrying" : "Disconnected, retrying"],
  }[link];
  state($("link"), words[0], words[1]);
  set($("link-text"), words[2]);
  const seconds = retryAt === null ? 0 : (retryAt - Date.now()) / 1000;
  const old = heardAt === null ? "" : `; what you see is from ${say.clock(heardAt)}`;
  set($("link-more"), link === "lost" ? `${seconds > 0.5 ? `in ${say.span(seconds)}` : "now"}${old}` : "");
  $("reconnect").hidden = link !== "lost";
  document.body.classList.toggle("stale", link === "lost");
}

function drawNow({ agent, totals }) {
  set($("host"), [agent.host, agent.mode, `v${agent.version}`].join(" · "));
  const more = agent.scanned ? "" : "+";
  const files = `${say.count(totals.pending_files, "file")}${more}, ${say.size(totals.pending_bytes)}${more} to go`;
  const left = totals.pending_files ? files : "nothing to go";
  const rate = totals.rate ? `${say.size(totals.rate)}/s` : "";
  const eta = totals.eta && totals.pending_bytes ? `${say.span(totals.eta)} left` : "";
  $("now").dataset.kind = agent.paused ? "warn" : "";
  set($("now"), agent.paused ? `Paused · ${left}` : say.join(" · ", rate, left, eta));
  const pause = $("pause");
  pause.hidden = !agent.control;
  pause.disabled = !feed.isLive;
  set(pause, agent.paused ? "Resume" : "Pause");
  $("limit").hidden = !agent.control;
  $("rate").disabled = !feed.isLive;
  $("rate").placeholder = agent.bwlimit === null ? "off" : `${say.size(agent.bwlimit)}/s`;
}

function drawEnds({ source, destination, totals, jobs }) {
  for (const side of ["source", "destination"]) $(side).hidden = Boolean(jobs); // each job has its own
  for (const [side, end] of [["source", source], ["destination", destination]]) {
    const isWell = end.state === "ok";
    const well = feed.link === "lost" ? "Well, when last heard of" : "Well";
    const text = isWell ? well : `Cannot be used: ${end.reason ?? "it is still being looked for"}`;
    state($(`${side}-state`), isWell ? "done" : "alert", isWell ? "good" : "bad", text);
    set($(`${side}-path`), say.shown(end.path));
    set($(`${side}-what`), end.filesystem ?? "");
  }
  const { sure, text } = say.verdict(feed, failed, feed.verdicts.get(null));
  state($("verdict"), sure ? "done" : "skipped", sure ? "good" : "warn", text);
  const { free, total, reserved, full_in: full } = destination;
  const isKnown = free !== null && total > 0;
  const kept = reserved ? `${say.size(reserved)} of it reserved` : "";
  const space = `${say.size(free)} free of ${say.size(total)}`;
  const words = isKnown ? say.join(", ", space, kept) : "Free space is not known";
  $("space").hidden = !isKnown;
  if (isKnown) {
    const [used, held] = $("space").children;
    wide(used, say.part(total - free, total));
    wide(held, Math.min(say.part(reserved ?? 0, total), free / total));
    $("space").setAttribute("aria-label", `${say.percent(say.part(total - free, total))} used`);
  }
  const isFull = isKnown && free === 0, isScarce = full !== null || isFull;
  state($("space-text"), isScarce ? "alert" : "ready", isFull ? "bad" : isScarce ? "warn" : "dim",
    say.join("; ", words, full === null ? "" : `full in ${say.span(full)}, as it is being recorded now`));
  const some = (n, what, show = say.plain) => (n ? `${show(n)} ${what}` : "");
  const { already, failed: failures, skipped, bytes_resumed: resumed, bytes_patched: patched } = totals;
  const counts = [some(already, "there already"), some(failures, "failed"), some(skipped, "skipped")];
  const sizes = [some(resumed, "resumed", say.size), some(patched, "patched", say.size)];
  const numbers = say.join(", ", `This run: ${say.plain(totals.delivered)} delivered`, ...counts);
  set($("totals"), `${numbers}; ${say.join(", ", `${say.size(totals.bytes)} copied`, ...sizes)}`);
}

function sample() {
  const now = Date.now(), last = samples.at(-1);
  if (last && now - last[0] < SAMPLE * 0.9) return;
  samples.push([now, feed.isLive ? feed.totals.rate ?? 0 : null]);
  while (samples[0][0] < now - PERIOD) samples.shift();
}

function drawChart() {
  const now = Date.now(), most = Math.max(1, ...samples.map(([, rate]) => rate ?? 0));
  let curve = "", area = "", from = null, x = 0;
  const close = () => { if (from !== null) area += `L${x} 80L${from} 80Z`; from = null; };
  for (const [at, rate] of samples) {
    if (rate === null) { close(); continue; }
    x = (600 - ((now - at) / PERIOD) * 600).toFixed(1);
    const point = `${x} ${(78 - (rate / most) * 74).toFixed(1)}`;
    curve += `${from === null ? "M" : "L"}${point}`;
    area += `${from === null ? "M" : "L"}${point}`;
    from ??= x;
  }
  close();
  const [areaPath, curvePath] = $("chart").children;
  areaPath.setAttribute("d", area);
  curvePath.setAttribute("d", curve);
  const highest = most > 1 ? `at most ${say.size(most)}/s` : "nothing was copied";
  set($("most"), highest);
  const current = `now ${say.size(feed.totals.rate ?? 0)}/s`;
  $("chart").setAttribute("aria-label", `Throughput in the last 10 minutes: ${current}, ${highest}`);
}

// Failed files that no later version of the same name has replaced, and what waits, one line for each reason.
function troublesOf(files) {
  const newest = new Map(), key = (file) => `${file.job}/${file.path}`;
  for (const file of files) {
    if ((newest.get(key(file))?.id ?? 0) < file.id && file.state !== "gone") newest.set(key(file), file);
  }
  unresolved = files.filter((file) => file.state === "failed" && newest.get(key(file)) === file);
  unresolved.sort((a, b) => b.id - a.id);
  const waiting = new Map();
  for (const file of files) {
    if (file.state !== "waiting") continue;
    const reason = file.error?.text ?? file.reason ?? "";
    const group = waiting.get(reason) ?? { key: `waiting ${reason}`, file, count: 0, reason };
    group.count += 1;
    if (Date.parse(file.retry_at) < Date.parse(group.file.retry_at)) group.file = file;
    waiting.set(reason, group);
  }
  return [...unresolved.map((file) => ({ key: file.id, file, count: 1, reason: file.reason })), ...waiting.values()];
}

function drawTroubles(files) {
  const troubles = troublesOf(files);
  list($("troubles"), troubles.slice(0, MOST.troubles), (t) => t.key, () => {
    const li = make("li", "trouble");
    const retry = button("Retry", () => feed.ask("retry", { id: li.file.id }));
    li.append(make("span", "state"), nameButton(li), retry, make("span", "reason"), make("span", "hint dim"));
    return li;
  }, (li, { file, count, reason }) => {
    li.file = file;
    const [what, which, retry, because, hint] = li.children, isFailed = file.state === "failed";
    state(what, file.state, isFailed ? "bad" : "warn", file.state);
    name(which, file);
    const others = count > 1 ? `and ${say.plain(count - 1)} more` : "";
    set(because, say.join(": ", others, isFailed ? reason : say.why(file, feed.now)));
    set(hint, file.error?.hint ?? "");
    hint.hidden = !file.error?.hint;
    retry.hidden = !feed.agent.control;
    retry.disabled = !feed.isLive;
    retry.setAttribute("aria-label", `Retry ${say.shown(file.path)}`);
  });
  // What failed first is forgotten first: then only the total tells of it.
  isWhole = files.filter((file) => say.FINAL.has(file.state)).length < say.KEPT;
  failed = failedOf(unresolved, feed.totals);
  const failedBefore = failed - unresolved.length;
  const hidden = Math.max(0, troubles.length - MOST.troubles);
  ended = (feed.jobs ?? []).filter((job) => job.state === "failed").map((job) => `job ${job.name}: ${job.reason}`);
  const away = feed.jobs ? [] : [["source", feed.source], ["destination", feed.destination]]
    .filter(([, end]) => end.state !== "ok")
    .map(([side, end]) => `the ${side} cannot be used: ${end.reason ?? "it is still being looked for"}`);
  const more = say.join("; ", ...ended, ...away, hidden && `and ${say.plain(hidden)} more: see Files below`,
    failedBefore && `${say.count(failedBefore, "file")} failed earlier: see the log`);
  set($("more-troubles"), more).hidden = !more;
  const isKnown = feed.isLive && feed.agent.scanned;
  const nothing = isKnown ? "Nothing failed, nothing waits." : feed.isLive
    ? "Nothing so far; the source is still being looked through." : "Not known now.";
  set($("no-attention"), nothing).hidden = troubles.length > 0 || more !== "";
  const isBad = unresolved.length || ended.length || away.length;
  $("attention").dataset.kind = isBad ? "bad" : troubles.length || !isKnown ? "warn" : "good";
}

const failedOf = (files, totals) => (isWhole ? files.length : Math.max(files.length, totals.failed));

function announce() {
  if (!feed.isLive) return;
  const ids = new Set(unresolved.map((file) => file.id));
  const fresh = announced === null ? unresolved : unresolved.filter((file) => !announced.has(file.id));
  announced = ids;
  if (fresh.length === 0) return;
  const [file] = fresh, more = fresh.length > 1 ? `, and ${say.count(fresh.length - 1, "other file")}` : "";
  set($("announce"), `${say.shown(file.path)} failed${more}: ${file.reason ?? ""}`);
}

function drawActive(files) {
  const active = files.filter((file) => say.ACTIVE.has(file.state)).sort((a, b) => a.id - b.id);
  list($("active"), active.slice(0, MOST.active), (file) => file.id, () => {
    const li = make("li", "active");
    const progress = bar();
    progress.setAttribute("role", "progressbar");
    const cancel = button("Cancel", () => feed.ask("cancel", { id: li.file.id }));
    li.append(make("span", "state"), nameButton(li), cancel, progress, make("span", "figures"));
    return li;
  }, (li, file) => {
    li.file = file;
    const [what, which, cancel, progress, figures] = li.children;
    const copied = say.part(file.bytes_copied, file.size), verified = say.part(file.bytes_verified, file.size);
    state(what, file.state, "busy", file.state);
    name(which, file);
    wide(progress.children[0], copied);
    wide(progress.children[1], verified);
    progress.setAttribute("aria-label", say.shown(file.path));
    progress.setAttribute("aria-valuenow", Math.floor(copied * 100));
    const shares = `${say.percent(copied)} copied, ${say.percent(verified)} verified`;
    const bytes = `${say.size(file.bytes_copied)} of ${say.size(file.size)}`;
    const rate = file.rate === null ? "" : `${say.size(file.rate)}/s`;
    set(figures, say.join(" · ", shares, bytes, rate, say.remark(file, feed.jobOf(file), feed.now)));
    progress.setAttribute("aria-valuetext", shares);
    cancel.hidden = !feed.agent.control;
    cancel.disabled = !feed.isLive;
    cancel.setAttribute("aria-label", `Cancel ${say.shown(file.path)}`);
  });
  set($("no-active"), feed.isLive ? "Nothing is being transferred." : "Not known now.").hidden = active.length > 0;
  const more = active.length - MOST.active;
  set($("more-active"), `and ${say.plain(more)} more`).hidden = more <= 0;
  return active;
}

function drawLately(files) {
  const done = files.filter((file) => file.state === "done");
  const lately = done.sort(later).slice(0, MOST.lately);
  list($("lately"), lately, (file) => file.id, () => {
    const li = make("li", "late");
    li.append(make("span", "state"), nameButton(li), make("span", "figures"));
    return li;
  }, (li, file) => {
    li.file = file;
    const [what, which, figures] = li.children;
    state(what, "done", say.isProven(file, feed.jobOf(file)) ? "good" : "warn", "done");
    name(which, file);
    set(figures, `${say.clock(file.finished_at)} · ${say.size(file.size)} · ${say.proof(file, feed.jobOf(file))}`);
  });
  set($("no-lately"), feed.isLive ? "Nothing was delivered in this run yet." : "Not known now.").hidden = lately.length > 0;
}

// The tab says in its title and icon what matters while another tab is looked at.
function drawTab(active) {
  const sum = (key) => active.reduce((total, file) => total + file[key], 0);
  const done = Math.floor(say.part(sum("bytes_copied"), sum("size")) * 100);
  const busy = active.length ? `${active.length} ▸ ${done}% trioft` : "";
  const isBad = failed > 0 || ended.length > 0 || feed.link === "lost";
  const what = say.join(" ‧ ", failed && `${say.plain(failed)} failed`, ended.length && `${say.count(ended.length, "job")} ended`);
  const title = feed.link === "lost" ? "disconnected ‧ trioft" : say.join(" ‧ ", what, busy || "trioft");
  if (document.title !== title) document.title = title;
  const icon = isBad ? "icon-failed.svg" : busy ? "icon-active.svg" : "icon.svg";
  if ($("icon").getAttribute("href") !== icon) $("icon").setAttribute("href", icon);
}

// --- one file in all detail

function open(file) {
  shownFile = file.id;
  const actions = $("details-do");
  const asks = { Retry: "retry", "Pause this file": "pause", Resume: "resume", "Cancel transfer": "cancel" };
  const buttons = Object.entries(asks).map(([label, what]) => button(label, () => feed.ask(what, { id: shownFile })));
  actions.replaceChildren(...buttons);
  drawDetails();
  $("details").showModal();
}

function drawDetails() {
  const file = feed.files.get(shownFile);
  if (!file) {
    state($("details").querySelector("dd"), "gone", "dim", "no longer known");
    return;
  }
  const { error } = file, at = (time) => (time ? new Date(time).toLocaleString("en-GB") : "");
  const where = error && say.join(", ", error.class, error.errno && `errno ${error.errno}`,
    error.offset && `at byte ${say.plain(error.offset)}`);
  const now = file.growing && file.state === "copying" ? say.behind(file) : say.why(file, feed.now);
  set($("details-name"), say.shown(file.path));
  const facts = [
    ["Job", file.job ?? ""],
    ["State", say.join(": ", file.state, now)],
    ["Error", error ? `${error.text} (${where})` : ""],
    ["What to do", error?.hint ?? ""],
    ["May its source be removed?", say.removable(file, feed.jobOf(file))],
    ["At the destination", file.dest ? say.shown(file.dest) : ""],
    ["Size", `${say.size(file.size)} (${say.plain(file.size)} bytes)`],
    ["Copied, verified", `${say.size(file.bytes_copied)}, ${say.size(file.bytes_verified)}`],
    ["Rewritten by its recorder", file.bytes_patched ? say.size(file.bytes_patched) : ""],
    ["How, failed attempts", say.join(", ", file.strategy, file.attempt)],
    ["Found", at(file.found_at)], ["Started", at(file.started_at)], ["Finished", at(file.finished_at)],
    ["Digest (xxh3-128)", file.digest ?? ""],
  ].filter(([, value]) => value);
  list($("facts"), facts, ([key]) => key, () => make("div", "", make("dt"), make("dd")), (div, [key, value]) => {
    set(div.children[0], key);
    set(div.children[1], value);
  });
  const isPaused = file.state === "waiting" && (file.reason ?? "").startsWith("paused");
  const mayBe = [!isPaused && ["failed", "waiting", "skipped"].includes(file.state),
    !isPaused && !file.finished_at, isPaused, !file.finished_at]; // retried, paused, resumed, cancelled
  mayBe.forEach((isPossible, n) => {
    $("details-do").children[n].hidden = !(feed.agent.control && isPossible);
    $("details-do").children[n].disabled = !feed.isLive;
  });
}

// --- when

function draw() {
  clearTimeout(drawing);
  drawing = 0;
  drawLink();
  if (!feed.agent || !feed.totals || !feed.source || !feed.destination) return;
  if (epoch !== feed.epoch) { // another run: its numbers mean other files
    epoch = feed.epoch;
    announced = null;
    $("details").close();
  }
  const files = [...feed.files.values()];
  drawTroubles(files);
  announce();
  drawNow(feed);
  drawEnds(feed);
  drawJobs(feed, (job) => failedOf(unresolved.filter((file) => file.job === job.name), job.totals));
  drawTab(drawActive(files));
  drawLately(files);
  drawChart();
  table.draw();
  if ($("details").open) drawDetails();
}

function changed() {
  if (feed.totals) sample();
  // Of many messages in a row only the last is drawn; where nobody looks, title and icon are enough.
  if (!drawing) drawing = setTimeout(draw, document.hidden ? 1_000 : 50);
}

function answered({ ok, text: words }) {
  $("answer").hidden = false;
  state($("answer"), ok ? "done" : "alert", ok ? "good" : "bad", words ?? (ok ? "Done" : "Refused"));
}

$("pause").addEventListener("click", () => feed.ask(feed.agent.paused ? "resume" : "pause"));
$("limit").addEventListener("submit", (event) => {
  event.preventDefault();
  feed.ask("bwlimit", { value: $("rate").value.trim() });
  $("rate").value = "";
});
$("reconnect").addEventListener("click", () => feed.tryNow());
$("details").addEventListener("click", (event) => event.target === event.currentTarget && event.currentTarget.close());
addEventListener("keydown", (event) => {
  const isOther = event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey;
  if (isOther || event.target.matches("input") || $("details").open) return;
  event.preventDefault();
  $("find").focus();
});
setInterval(() => { // clocks go on without messages
  if (feed.totals) sample();
  if (!document.hidden) draw();
}, SAMPLE);
const askVerdicts = () => document.hidden || !feed.isLive || feed.askVerdicts();
document.addEventListener("visibilitychange", () => { if (!document.hidden) draw(); askVerdicts(); });
setInterval(askVerdicts, 2 * SAMPLE);
draw();
feed.connect();
