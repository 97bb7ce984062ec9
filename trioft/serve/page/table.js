// A table of any length: only the rows that can be seen exist. Rows have one height, --row.

const BEYOND = 6; // rows above and below what can be seen

export class Table {
  #rows = []; #pool = []; #height = 36; #current = null; #first = 0;

  // *make* returns a new row's element, *fill* writes a file into one; *open* is called with the file that was chosen.
  constructor(table, view, body, { make, fill, open }) {
    Object.assign(this, { table, view, body, make, fill, open });
    view.addEventListener("scroll", () => this.#draw(), { passive: true });
    view.addEventListener("keydown", (event) => this.#key(event));
    view.addEventListener("click", (event) => {
      const row = event.target.closest("[role=row]");
      if (row) { this.#current = row.file.id; this.open(row.file); }
    });
    view.addEventListener("focusin", (event) => {
      this.#current = event.target.closest("[role=row]")?.file.id ?? this.#current;
    });
    new ResizeObserver(() => this.#measure()).observe(view);
    this.#measure();
  }

  show(rows) {
    this.#rows = rows;
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.body.style.height = `${rows.length * this.#height}px`;
    const active = document.activeElement, held = this.body.contains(active) ? this.#current : null;
    this.#draw();
    if (held === null) return;
    // The focus stays with its file, as long as that can be seen.
    const row = this.#pool.find((row) => !row.hidden && row.file.id === held);
    const button = row?.querySelector("button");
    if (button && button !== document.activeElement) button.focus({ preventScroll: true });
  }

  #measure() {
    this.#height = parseFloat(getComputedStyle(this.view).getPropertyValue("--row")) || 36;
    this.body.style.height = `${this.#rows.length * this.#height}px`;
    this.#draw();
  }

  #draw() {
    const { clientHeight, scrollTop } = this.view;
    const wanted = Math.min(this.#rows.length, Math.ceil(clientHeight / this.#height) + 2 * BEYOND);
    while (this.#pool.length < wanted) {
      this.#pool.push(this.make());
      this.body.append(this.#pool.at(-1));
    }
    const last = this.#rows.length - wanted;
    this.#first = Math.max(0, Math.min(last, Math.floor(scrollTop / this.#height) - BEYOND));
    const length = this.#pool.length;
    let reachable = null;
    for (let n = 0; n < length; n += 1) {
      // A row keeps its element while it is scrolled: only those that come into view are written anew.
      const index = this.#first + ((n - this.#first) % length + length) % length;
      const row = this.#pool[n];
      row.hidden = index >= this.#first + wanted;
      if (row.hidden) continue;
      row.index = index;
      row.file = this.#rows[index];
      row.style.transform = `translateY(${index * this.#height}px)`;
      row.setAttribute("aria-rowindex", index + 2);
      this.fill(row, row.file);
      row.querySelector("button").tabIndex = -1;
      const rank = row.file.id === this.#current ? 0 : (index * this.#height >= scrollTop ? index + 1 : Infinity);
      if (!reachable || rank < reachable.rank) reachable = { rank, row };
    }
    if (reachable) reachable.row.querySelector("button").tabIndex = 0; // one of them, by Tab; the others by arrows
  }

  #key(event) {
    const row = event.target.closest("[role=row]");
    const page = Math.max(1, Math.floor(this.view.clientHeight / this.#height) - 1), end = this.#rows.length - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!row || !(event.key in steps)) return;
    event.preventDefault();
    this.#go(Math.max(0, Math.min(end, row.index + steps[event.key])));
  }

  #go(index) {
    const top = index * this.#height, { scrollTop, clientHeight } = this.view;
    if (top < scrollTop) this.view.scrollTop = top;
    if (top + this.#height > scrollTop + clientHeight) this.view.scrollTop = top + this.#height - clientHeight;
    this.#current = this.#rows[index].id;
    this.#draw();
    const button = this.#pool.find((row) => !row.hidden && row.index === index)?.querySelector("button");
    button?.focus({ preventScroll: true });
    button?.scrollIntoView({ block: "nearest" }); // the page too, where the table is below its edge
  }
}
