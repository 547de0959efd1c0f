// Elements, made of text and attributes only: no string is ever read as markup.

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const $ = (id) => document.getElementById(id);

// Changes a text only where it is another one: screen readers read out what changes.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The rows of a <dl>; a value of null has no row.
export function facts(rows) {
  return rows.filter(([, value]) => value != null).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
}

export const seconds = (value) => (value == null ? null : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);

export const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
