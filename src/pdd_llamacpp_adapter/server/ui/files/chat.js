// The chat: asks the server as any client does, and shows who makes the answer while it comes.

import { json, Refusal } from "./api.js";
import { $, el, say } from "./dom.js";
import { keep, kept } from "./kept_chat.js";
import { render } from "./markdown.js";
import { figures, plan, server, Spared } from "./panel.js";
import { Settings, theme } from "./settings.js";
import { AnswerStream } from "./stream.js";
import { Timeline } from "./timeline.js";

const LOOK_AGAIN_MS = 10_000;

let turns = []; // {role, text, by, node}; `by` as in markdown.js
let running = null; // the AnswerStream of the answer that is being made
let spared = new Spared();
let looksElsewhere = false;
const settings = new Settings($("settings"));
const timeline = new Timeline($("timeline"));

theme();
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("question").value.trim();
  if (!text || running) return;
  $("question").value = "";
  ask(text);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
$("stop").addEventListener("click", stop);
$("clear").addEventListener("click", () => {
  stop();
  spared = new Spared();
  back(0);
  $("question").focus();
});
// The other page is looked at for as long as one likes. Of any other leaving, a page cannot know what it is.
document.querySelector("nav").addEventListener("click", ({ ctrlKey, metaKey, shiftKey }) => {
  looksElsewhere = !(ctrlKey || metaKey || shiftKey);
});
addEventListener("pageshow", () => (looksElsewhere = false));
addEventListener("pagehide", () => looksElsewhere || running?.leave());
restore();
look();

function ask(text) {
  add({ role: "user", text, by: "-".repeat(text.length) });
  return answer();
}

// Forgets the turns from `index` on.
function back(index) {
  for (const turn of turns.splice(index)) turn.node.remove();
  keep(turns, spared);
}

function stop() {
  running?.stop();
}

function answer() {
  // a question whose answer has no text is not part of what was said
  const said = turns.filter(({ text }, index) => text && turns[index + 1]?.text !== "");
  const messages = said.map(({ role, text }) => ({ role, content: text }));
  return receive(new AnswerStream(), { model: "default", messages, stream: true, ...settings.request() });
}

// Shows the answer that `body` asks for, or, without one, an answer that was asked for before the page was loaded.
async function receive(stream, body) {
  const turn = add({ role: "assistant", text: "", by: "", thoughts: "" });
  running = stream;
  keep(turns, spared, stream.name);
  busy(true);
  timeline.clear();
  let id = null;
  let whole = false;
  try {
    for await (const chunk of stream.events(body, (text) => connection(turn, text))) {
      if (chunk.error) throw new Refusal(500, chunk.error.message);
      if (id === null) {
        id = chunk.id;
        tell(turn, id); // the plan is known before the first token
      }
      take(turn, chunk);
    }
    whole = !stream.stopped;
    if (whole) happened("The answer is complete.");
    else note(turn, "Stopped.");
  } catch (error) {
    note(turn, error.message, "alert");
  } finally {
    show(turn);
    timeline.draw();
    timeline.describe();
    if (running === stream) running = null;
    busy(running !== null);
    keep(turns, spared, running?.name);
  }
  if (stream.stopped) await stream.stop().catch(() => note(turn, "The server does not know: it cannot be reached.", "alert"));
  if (!whole && id !== null) tell(turn, id);
}

// Brings back the chat that the page had. An answer that was being made is read again from its beginning.
function restore() {
  const { turns: said, spared: before, running: name } = kept();
  spared = new Spared(before);
  if (name) said.pop();
  for (const turn of said) add(turn);
  if (name) receive(new AnswerStream(name));
}

function take(turn, chunk) {
  const [choice] = chunk.choices;
  const tokens = chunk.pdd?.tokens;
  if (Array.isArray(tokens)) {
    const before = timeline.tookOver;
    timeline.add(chunk.pdd);
    if (tokens.length) turn.maker = tokens.at(-1).source[0];
    if (!before && timeline.tookOver) happened("The device has taken over.");
  }
  const { content, reasoning_content: thought } = choice?.delta ?? {};
  if (content) {
    turn.text += content;
    turn.by += (turn.maker ?? "-").repeat(content.length);
  }
  if (thought) turn.thoughts += thought;
  if (choice?.finish_reason) {
    spared.add(chunk.pdd);
    panel(chunk.pdd);
    if (choice.finish_reason === "length") note(turn, "The answer has reached its longest length.");
  }
  if (!turn.due) turn.due = requestAnimationFrame(() => show(turn));
}

// Asks what is known of an answer that is being made, or was stopped.
async function tell(turn, id) {
  try {
    const { pdd } = await json(`v1/chat/completions/${id}`, { quiet: true });
    if (pdd.tokens && turns.at(-1) === turn) panel(pdd);
  } catch {
    // it is not kept any more: the end of the stream says the same
  }
}

function panel(told) {
  $("plan").replaceChildren(...plan(told));
  $("figures").replaceChildren(...figures(told, spared));
}

function add(turn) {
  const mine = turn.role === "user";
  turn.body = el("div", { class: "body" });
  turn.notes = el("div", { class: "notes" });
  const does = mine
    ? el("button", { type: "button", class: "does", onclick: () => edit(turn) }, "Edit")
    : el("button", { type: "button", class: "does", onclick: () => retry(turn) }, "Retry");
  turn.node = el("article", { class: turn.role }, el("h2", {}, mine ? "You" : "Answer"), turn.body, turn.notes, does);
  turns.push(turn);
  $("messages").append(turn.node);
  show(turn);
  turn.notes.scrollIntoView({ block: "nearest" });
  return turn;
}

function show(turn) {
  if (turn.due) cancelAnimationFrame(turn.due);
  turn.due = 0;
  const follow = turn.notes.getBoundingClientRect().top < innerHeight; // unless the user reads further up
  if (turn.role === "user") turn.body.textContent = turn.text;
  else turn.body.replaceChildren(...thoughts(turn), render(turn));
  if (turn.role === "user" || !running) return;
  timeline.draw();
  if (follow) turn.notes.scrollIntoView({ block: "nearest" });
}

function thoughts(turn) {
  if (!turn.thoughts) return [];
  return [el("details", { class: "thoughts" }, el("summary", {}, "Thoughts"), el("p", {}, turn.thoughts))];
}

function note(turn, text, role) {
  turn.notes.append(el("p", { class: "note", role }, text));
  if (!role) happened(text);
}

// Says what has become of the connection, quietly, in one line.
function connection(turn, text) {
  turn.line ??= turn.notes.appendChild(el("p", { class: "note" }));
  say(turn.line, text);
  happened(text);
}

function edit(turn) {
  if (running) return;
  const field = el("textarea", { rows: 3, "aria-label": "Edit your question" });
  field.value = turn.text;
  const form = el("form", { class: "edit" }, field, el("button", {}, "Ask again"),
    el("button", { type: "button", onclick: () => show(turn) }, "Leave it"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (!text || running) return;
    back(turns.indexOf(turn));
    ask(text);
    $("question").focus();
  });
  turn.body.replaceChildren(form);
  field.focus();
}

function retry(turn) {
  if (running) return;
  back(turns.indexOf(turn));
  answer();
  $("question").focus();
}

function busy(yes) {
  document.body.classList.toggle("busy", yes);
  $("messages").setAttribute("aria-busy", yes); // read out once it is whole, not token by token
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  for (const button of document.querySelectorAll(".does")) button.disabled = yes;
}

function happened(text) {
  $("happening").textContent = text;
}

// Shows the model and the state of the cloud, now and then.
async function look() {
  try {
    say($("server"), server(await json("v1/models", { quiet: true })));
  } catch (error) {
    say($("server"), error instanceof Refusal ? error.message : "The server cannot be reached.");
  }
  setTimeout(look, LOOK_AGAIN_MS);
}
