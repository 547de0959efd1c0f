// What is marked inside a paragraph of markdown: emphasis, code, links. Finds it; makes no nodes.

// What begins at `at`: where it ends, its inner part, and its element; null for an ordinary character.
export function span(text, at) {
  switch (text[at]) {
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { end: at + 2, inner: [at + 1, at + 2] } : null;
    case "`":
      return code(text, at);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at);
    case "[":
      return link(text, at);
    case "h":
      return address(text, at);
    default:
      return null;
  }
}

function code(text, at) {
  let begin = at;
  while (text[begin] === "`") begin += 1;
  const marks = text.slice(at, begin);
  for (let end = text.indexOf(marks, begin); end >= 0; end = text.indexOf(marks, end)) {
    let behind = end;
    while (text[behind] === "`") behind += 1;
    if (behind - end === marks.length) return { end: behind, inner: [begin, end], tag: "code", plain: true };
    end = behind;
  }
  return { end: begin, inner: [at, begin] };
}

function emphasis(text, at) {
  const sign = text[at];
  let begin = at;
  while (text[begin] === sign) begin += 1;
  const count = begin - at;
  const word = (index) => /[\p{L}\p{N}]/u.test(text[index] ?? "");
  const opens = count <= 3 && /\S/.test(text[begin] ?? "") && !(sign === "~" && count !== 2) && !(sign === "_" && word(at - 1));
  if (!opens) return { end: begin, inner: [at, begin] };
  const marks = count === 1 ? sign : sign + sign; // of three, the third is the inner part's
  for (let end = text.indexOf(marks, begin); end >= 0; end = text.indexOf(marks, end)) {
    let behind = end;
    while (text[behind] === sign) behind += 1;
    const closes = /\S/.test(text[end - 1]) && !(sign === "_" && word(behind));
    if (closes && (behind - end === marks.length || behind - end === 3)) {
      const tag = sign === "~" ? "del" : marks.length === 2 ? "strong" : "em";
      return { end: behind, inner: [at + marks.length, behind - marks.length], tag };
    }
    end = behind;
  }
  return null;
}

function link(text, at) {
  const close = text.indexOf("]", at);
  if (close < 0 || text[close + 1] !== "(") return null;
  const end = text.indexOf(")", close);
  const attributes = end < 0 ? null : target(text.slice(close + 2, end));
  return attributes && { end: end + 1, inner: [at + 1, close], tag: "a", attributes };
}

function address(text, at) {
  if (!text.startsWith("http", at) || /\w/.test(text[at - 1] ?? "")) return null;
  const sticky = /https?:\/\/[^\s<>"'`()[\]]+/y;
  sticky.lastIndex = at;
  const found = sticky.exec(text)?.[0].replace(/[.,;:!?*_~]+$/, "");
  const attributes = found ? target(found) : null;
  return attributes && { end: at + found.length, inner: [at, at + found.length], tag: "a", attributes, plain: true };
}

function target(address) {
  if (!URL.canParse(address)) return null;
  const url = new URL(address);
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return { href: url.href, target: "_blank", rel: "noopener noreferrer" };
}
