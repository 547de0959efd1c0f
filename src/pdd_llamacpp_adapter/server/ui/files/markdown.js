// Markdown to DOM nodes, of text whose every character knows who made it: {text, by}, `by` as long as `text`, of
// "c" (cloud), "d" (device) and "-". Only nodes are made, so whatever an answer says stays text. No image is loaded.

import { el } from "./dom.js";
import { span } from "./markdown_spans.js";

const MAKERS = { c: "cloud", d: "device" };
const LONGEST = 20_000; // characters of a paragraph in which marks are looked for: that takes their square
const DEEPEST = 8;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*\s*$/d;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export function render(answer) {
  const page = new Page();
  const made = document.createDocumentFragment();
  page.blocks(made, lines(answer), 0);
  return made;
}

// Whether a line ends the paragraph before it.
const begins = (line) => !line.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM].some((one) => one.test(line));

const cut = (s, from, to) => ({ text: s.text.slice(from, to), by: s.by.slice(from, to) });

function lines(s) {
  const made = [];
  let at = 0;
  for (const line of s.text.split("\n")) {
    made.push(cut(s, at, at + line.length));
    at += line.length + 1;
  }
  return made;
}

function joined(parts) {
  const glue = (name, mark) => parts.map((part) => part[name]).join(mark);
  return { text: glue("text", "\n"), by: glue("by", "-") };
}

class Page {
  #maker = null; // of the last character that has one

  blocks(parent, all, depth) {
    if (depth > DEEPEST) return this.put(parent, joined(all));
    let at = 0;
    const taken = (test) => {
      const from = at;
      while (at < all.length && test(all[at].text, at)) at += 1;
      return all.slice(from, at);
    };
    while (at < all.length) {
      const line = all[at];
      const { text } = line;
      let found;
      if (!text.trim()) {
        at += 1;
      } else if ((found = FENCE.exec(text))) {
        at += 1;
        const [, fence, language] = found;
        const code = taken((one) => !(one.trim().startsWith(fence) && /^(`+|~+)$/.test(one.trim())));
        at += 1; // the fence's end, if it is there already
        const inner = el("code", language ? { "data-language": language } : {});
        this.put(inner, joined(code));
        parent.append(el("pre", { tabindex: "0" }, inner));
      } else if ((found = HEADING.exec(text))) {
        at += 1;
        const heading = el(`h${Math.min(6, found[1].length + 2)}`); // the page has h1 and h2
        this.inline(heading, cut(line, ...found.indices[2]));
        parent.append(heading);
      } else if (RULE.test(text)) {
        at += 1;
        parent.append(el("hr"));
      } else if (QUOTE.test(text)) {
        const quoted = taken((one) => QUOTE.test(one)).map((one) => cut(one, QUOTE.exec(one.text)[0].length));
        const quote = el("blockquote");
        this.blocks(quote, quoted, depth + 1);
        parent.append(quote);
      } else if ((found = ITEM.exec(text))) {
        at = this.#list(parent, all, at, found[2], depth);
      } else if (text.includes("|") && TABLE.test(all[at + 1]?.text ?? "")) {
        parent.append(this.#table(taken((one) => one.includes("|") || TABLE.test(one))));
      } else {
        const begin = at;
        const paragraph = el("p");
        this.inline(paragraph, joined(taken((one, here) => here === begin || !begins(one))));
        parent.append(paragraph);
      }
    }
  }

  #list(parent, all, at, mark, depth) {
    const ordered = /\d/.test(mark);
    const list = ordered ? el("ol", { start: parseInt(mark, 10) }) : el("ul");
    while (at < all.length) {
      const found = ITEM.exec(all[at].text);
      if (!found || /\d/.test(found[2]) !== ordered) break;
      const width = found[0].length;
      const inner = [cut(all[at], width)];
      for (at += 1; at < all.length; at += 1) {
        const { text } = all[at];
        const indent = text.length - text.trimStart().length;
        // of an item is what is indented, and a line without a mark of its own right behind one of its lines
        const goesOn = text.trim() && (indent >= 2 || !(ITEM.test(text) || FENCE.test(text) || HEADING.test(text)));
        const blank = !text.trim() && /^ {2,}\S/.test(all[at + 1]?.text ?? "");
        if (!(blank || (goesOn && (indent >= 2 || inner.at(-1).text.trim())))) break;
        inner.push(cut(all[at], Math.min(indent, width)));
      }
      const item = el("li");
      this.blocks(item, inner, depth + 1);
      list.append(item);
      while (at < all.length && !all[at].text.trim() && ITEM.test(all[at + 1]?.text ?? "")) at += 1;
    }
    parent.append(list);
    return at;
  }

  #table(rows) {
    const table = el("table");
    rows.forEach((row, index) => {
      if (index === 1) return;
      const line = el("tr");
      for (const cell of cells(row)) {
        const made = el(index ? "td" : "th");
        this.inline(made, cell);
        line.append(made);
      }
      table.append(line);
    });
    return el("div", { class: "wide", tabindex: "0" }, table);
  }

  inline(parent, s, depth = 0) {
    if (s.text.length > LONGEST || depth > DEEPEST) return this.put(parent, s);
    let from = 0;
    for (let at = 0; at < s.text.length; ) {
      const found = span(s.text, at);
      if (found === null) {
        at += 1;
        continue;
      }
      this.put(parent, cut(s, from, at));
      const inner = cut(s, ...found.inner);
      if (found.tag === undefined) {
        this.put(parent, inner);
      } else {
        const made = el(found.tag, found.attributes);
        if (found.plain) this.put(made, inner);
        else this.inline(made, inner, depth + 1);
        parent.append(made);
      }
      at = from = found.end;
    }
    this.put(parent, cut(s, from));
  }

  // The only place that writes an answer's text.
  put(parent, s) {
    for (let from = 0, to = 0; from < s.text.length; from = to) {
      while (to < s.text.length && s.by[to] === s.by[from]) to += 1;
      const text = document.createTextNode(s.text.slice(from, to));
      const maker = MAKERS[s.by[from]];
      if (maker === undefined) {
        parent.append(text);
        continue;
      }
      if (this.#maker !== null && this.#maker !== maker) {
        const said = `the ${maker} goes on here`;
        parent.append(el("span", { class: "over", role: "img", "aria-label": said, title: said }));
      }
      this.#maker = maker;
      parent.append(el("span", { class: maker }, text));
    }
  }
}

function cells(row) {
  const { text } = row;
  const made = [];
  let from = /^\s*\|?/.exec(text)[0].length;
  while (from < text.trimEnd().length) {
    const bar = text.indexOf("|", from);
    const to = bar < 0 ? text.length : bar;
    made.push(cut(row, from, to));
    from = to + 1;
  }
  return made;
}
