// What is said, and how: sizes, times, states, and what is true about a file. Pure.

export const STATES = [
  "failed", "waiting", "copying", "verifying", "growing", "ready", "settling", "done", "skipped", "gone",
];
export const ACTIVE = new Set(["copying", "verifying"]);
export const FINAL = new Set(["done", "failed", "skipped", "gone"]);
export const KEPT = 1_000; // finished files that the feed keeps
const FRESH = 10_000; // milliseconds since a look for which a yes stands: the agent gives it half of that

const number = new Intl.NumberFormat("en");
export const count = (n, one, many = `${one}s`) => `${number.format(n)} ${n === 1 ? one : many}`;
export const plain = (n) => number.format(n);

// What there is of the parts, with something between them.
export const join = (between, ...parts) => parts.filter(Boolean).join(between);

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "unknown";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes, unit = 0;
  while (value >= 999.5 && unit < 4) { value /= 1000; unit += 1; }
  const isWhole = unit === 0 || value >= 999.5;
  return `${isWhole ? plain(Math.round(value)) : Number(value.toPrecision(3))} ${units[unit]}`;
}

export function span(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days >= 2) return `${plain(days)} days`;
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
}

export function clock(time) {
  if (!time) return "";
  const at = new Date(time), today = at.toDateString() === new Date().toDateString();
  const text = at.toLocaleTimeString("en-GB");
  return today ? text : `${at.toLocaleDateString("en-CA")} ${text}`;
}

export const part = (some, all) => (all > 0 ? Math.min(1, some / all) : 1);
export const percent = (share) => `${Math.floor(share * 100)} %`;

// A name is shown on one line, and reads in the order in which it is written.
export const shown = (path) => path.replace(
  /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu,
  (c) => ({ "\n": "\\n", "\t": "\\t", "\r": "\\r" })[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`,
);

export function behind(file) {
  if (file.lag_seconds !== null) return `following, ${file.lag_seconds.toFixed(1)} s behind`;
  if (file.lag_bytes !== null) return `following, ${size(file.lag_bytes)} behind`;
  return "following";
}

const PROOFS = {
  readback: "verified by read-back",
  transfer: "durable, but not read back",
  size: "only its size was compared",
};

// How sure one can be that the destination has the file: what was done to find out, and not more.
export function proof(file, agent) {
  if (file.reason === "already there") {
    return file.digest ? "was there already, with the same content" : "was there already, with the same size and time";
  }
  return PROOFS[agent.verify];
}

export const isProven = (file, agent) =>
  file.state === "done" && (file.reason === "already there" ? Boolean(file.digest) : agent.verify === "readback");

// May this file's source be removed? What is true, for one who wants to know.
export function removable(file, agent) {
  if (file.state === "gone") return "The source has no such file any more.";
  if (file.state !== "done") return "No: it is not delivered.";
  const how = file.reason === "already there" ? `it ${proof(file, agent)}` : `delivered, ${proof(file, agent)}`;
  if (!isProven(file, agent)) return `Not proven: ${how}.`;
  return agent.on_success === "keep" ? `When it was delivered, yes: ${how}. Whether that still holds, "trioft safe" says.` : `It has been dealt with (${agent.on_success}): ${how}.`;
}

export function why(file, now) {
  const reason = file.reason || file.error?.text || "";
  if (file.state !== "waiting" || !file.retry_at) return reason;
  const seconds = (Date.parse(file.retry_at) - now) / 1000;
  const text = reason.replace(/^retry in \d+ s: /, "");
  return seconds > 0.5 ? `${text} (again in ${span(seconds)})` : text;
}

// The last column: what there is to say about a file besides its state and its figures.
export function remark(file, agent, now) {
  switch (file.state) {
    case "done": return proof(file, agent);
    case "copying": return file.growing ? behind(file) : file.eta === null ? "" : `${span(file.eta)} left`;
    case "failed": return join("; ", why(file, now), file.error?.hint);
    default: return why(file, now);
  }
}

// What keeps a source from being removed, or may do so, as `trioft safe` has found it.
const because = (known) => known.reasons.map(({ text, files, examples }) =>
  `${files > 1 ? `${count(files, "file")}: ` : ""}${text}${files === 1 && examples.length ? ` (${examples[0]})` : ""}`).join("; ");

// May all of the source be removed? *known* is what was found when it was looked at last, from the ledger and at both
// ends. "sure" only where that was a moment ago, and nothing has become known of any file since.
export function verdict(feed, failed, known) {
  const { agent, totals, source, destination } = feed;
  const unsure = (text) => ({ sure: false, text });
  if (!feed.isLive) return unsure("Unknown: there is no connection to the agent.");
  if (source.state !== "ok") return unsure("Unknown: the source cannot be seen.");
  if (!agent.scanned) return unsure("Not known yet: the source is still being looked through.");
  const open = [
    [totals.pending_files, "not delivered yet"], [failed, "failed"], [totals.busy, "still being written"],
  ].filter(([n]) => n > 0).map(([n, what]) => `${plain(n)} ${what}`);
  if (open.length) return unsure(`No: ${open.join(", ")}.`);
  if (destination.state !== "ok") return unsure("Unknown: the destination cannot be seen.");
  if (!known?.known) return unsure("Not known yet: sources and copies are being looked at.");
  const at = `as of ${clock(known.time)}`, isNow = known.current && feed.now - Date.parse(known.time) < FRESH;
  const { sure, text } = found(known, isNow ? `, ${at}` : "");
  return isNow ? { sure, text } : unsure(`Not known now: sources and copies are being looked at again. Last found, ${at}: ${text}`);
}

// What was found; a yes says *when*.
function found(known, when) {
  const unsure = (text) => ({ sure: false, text });
  if (known.reasons.some(({ kind }) => kind === "nothing")) return unsure("There is no file that could be removed.");
  if (known.safe === "no") return unsure(`No: ${because(known)}.`);
  if (known.safe !== "yes") return unsure(`Unknown: ${because(known)}.`);
  const others = known.not_copied.map(({ kind, files }) => `${kind}: ${plain(files)}`).join(", ");
  const what = `${count(known.files, "file")}, ${size(known.bytes)}, verified when delivered; each copy is there`;
  const more = others && `; not copied: ${others}`;
  return { sure: true, text: `Yes${when}: ${what}, with its size and time${more}.` };
}
