// The tokens of one answer over time: when they were received, and when shown. Lines in an <svg> that is there.

import { count, seconds } from "./dom.js";

const LEFT = 30, RIGHT = 312, TOP = 10, BOTTOM = 130;

export class Timeline {
  #svg;
  #tokens = []; // those that were shown
  #received = []; // when each was received, in seconds; also of those that are not shown yet

  constructor(svg) {
    this.#svg = svg;
  }

  clear() {
    this.#tokens = [];
    this.#received = [];
    this.draw();
    this.#svg.setAttribute("aria-label", "The answer begins");
  }

  // A chunk's `pdd`: tokens as {source, received_s, shown_s}, and when others were received.
  add({ tokens, received_s: received }) {
    this.#tokens.push(...tokens);
    this.#received.push(...received);
  }

  get tookOver() {
    const first = this.#tokens.findIndex((one) => one.source === "device");
    return first > 0 ? this.#tokens[first] : undefined;
  }

  draw() {
    const tokens = this.#tokens;
    const received = this.#received;
    const last = Math.max(0.1, tokens.at(-1)?.shown_s ?? 0, received.at(-1) ?? 0);
    const x = (at) => LEFT + ((RIGHT - LEFT) * at) / last;
    const y = (index) => BOTTOM - ((BOTTOM - TOP) * index) / Math.max(1, received.length);
    const path = (points) => points.map(([at, index]) => `${x(at).toFixed(1)},${y(index).toFixed(1)}`).join(" ");
    const parts = [
      shape("line", { class: "axis", x1: LEFT, y1: BOTTOM, x2: RIGHT, y2: BOTTOM }),
      shape("line", { class: "axis", x1: LEFT, y1: TOP, x2: LEFT, y2: BOTTOM }),
      label(LEFT, BOTTOM + 14, "0", "start"),
      label(RIGHT, BOTTOM + 14, `${last.toFixed(1)} s`, "end"),
      label(LEFT - 4, TOP + 6, String(received.length), "end"),
    ];
    const over = this.tookOver;
    if (over) parts.push(shape("line", { class: "over", x1: x(over.shown_s), y1: TOP, x2: x(over.shown_s), y2: BOTTOM }));
    parts.push(shape("polyline", { class: "received", points: path(received.map((at, index) => [at, index + 1])) }));
    for (let from = 0, to = 0; from < tokens.length; from = to) {
      while (to < tokens.length && tokens[to].source === tokens[from].source) to += 1;
      const shown = tokens.slice(from, to).map((one, index) => [one.shown_s, from + index + 1]);
      parts.push(shape("polyline", { class: tokens[from].source, points: path(shown) }));
    }
    this.#svg.replaceChildren(...parts);
  }

  // Says the picture in words, once the answer has ended.
  describe() {
    const tokens = this.#tokens;
    if (!tokens.length) return this.#svg.setAttribute("aria-label", "No token came");
    const begin = `${count(tokens.length, "token")}, the first after ${seconds(tokens[0].shown_s)}, the last after ${seconds(tokens.at(-1).shown_s)}`;
    const over = this.tookOver;
    this.#svg.setAttribute("aria-label", over ? `${begin}; the device's first was shown after ${seconds(over.shown_s)}` : begin);
  }
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const label = (x, y, text, anchor) => shape("text", { x, y, "text-anchor": anchor }, text);
