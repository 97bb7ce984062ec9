// Small tools: text is only ever text, and what has not changed is not touched.

import { shown } from "./words.js";

export const $ = (id) => document.getElementById(id);

export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
  return element;
}

export function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

export function shape(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.setAttribute("class", "shape");
  svg.setAttribute("aria-hidden", "true");
  return mark(svg, name);
}

export function mark(svg, name) {
  if (svg.dataset.name !== name) {
    svg.dataset.name = name;
    svg.firstChild.setAttribute("href", `#i-${name}`);
  }
  return svg;
}

// A shape, and words beside it; *kind* is its colour.
export function state(element, icon, kind, text) {
  if (!element.firstElementChild?.matches("svg")) element.prepend(shape(icon));
  mark(element.firstElementChild, icon);
  element.dataset.kind = kind;
  if (text === undefined) return;
  if (element.children.length < 2) element.append(make("span"));
  set(element.children[1], text);
}

// A name that is too long loses its middle: how it ends tells takes apart.
export function name(element, { path, job }) {
  const text = shown(path), whose = job ? `${job}: ` : "", cut = text.lastIndexOf("/") + 1, end = Math.max(cut, text.length - 12);
  const tail = /[\udc00-\udfff]/.test(text[end]) ? end - 1 : end;
  if (!element.children.length) element.append(make("span", "folder"), make("span", "base"), make("span", "tail"));
  set(element.children[0], whose + text.slice(0, cut));
  set(element.children[1], text.slice(cut, tail));
  set(element.children[2], text.slice(tail));
  element.title = whose + text;
}

export function wide(element, share) {
  const width = `${(share * 100).toFixed(1)}%`;
  if (element.style.width !== width) element.style.width = width;
}

// Keep a list's elements, so that a button does not vanish under somebody's finger.
export function list(ul, items, key, create, fill) {
  const known = new Map([...ul.children].map((li) => [li.dataset.key, li]));
  items.forEach((item, n) => {
    let li = known.get(String(key(item)));
    known.delete(String(key(item)));
    if (!li) {
      li = create();
      li.dataset.key = key(item);
    }
    if (ul.children[n] !== li) ul.insertBefore(li, ul.children[n] ?? null);
    fill(li, item);
  });
  for (const li of known.values()) li.remove();
}

export function button(text, act) {
  const element = make("button", "small", text);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

// What is copied, and before it what is verified.
export function bar() {
  return make("span", "bar", make("i", "copied"), make("i", "verified"));
}
