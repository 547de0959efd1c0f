// The server's state, read again now and then from /v1/pdd/status.

import { json, Refusal } from "./api.js";
import { $, count, el, facts, say, seconds } from "./dom.js";
import { theme } from "./settings.js";

const LOOK_AGAIN_MS = 3000;
const STOPPED = { answer_deleted: "stopped", stream_replaced: "replaced", stream_unread: "left" }; // by its client
const per = (word) => (value) => `${value.toPrecision(3)} ${word}`;

theme();
look();

async function look() {
  try {
    if (!document.hidden) show(await json("v1/pdd/status", { quiet: true }));
  } catch (error) {
    say($("server"), error instanceof Refusal ? error.message : "The server cannot be reached.");
  }
  setTimeout(look, LOOK_AGAIN_MS);
}

function show({ version, model, queue, cloud, learnt, answers }) {
  say($("server"), `${model.id}, version ${version}`);
  $("now").replaceChildren(...facts([
    ["Being made", `${queue.running} of ${queue.max_running}`],
    ["Waiting", `${queue.waiting} of ${queue.max_queue}`],
    ["Longest prompt and answer", count(model.max_model_len, "token")],
    ["Cloud", cloud.url ? `${cloud.state}${cloud.way ? `, asked by ${cloud.way}` : ""}` : "none"],
    ["Cloud's URL", cloud.url],
    ["Cloud's error", cloud.error],
  ]));
  $("summary").replaceChildren(...summary(answers));
  $("answers").replaceChildren(...table(
    ["Ended", "Plan", "Why", "Prompt", "Cloud", "Device", "First token", "Mean gap", "Longest gap", "Take-over", "End"],
    answers.map(row)));
  $("learnt").replaceChildren(...learnings(learnt));
  $("links").replaceChildren(...links(learnt));
}

function summary(answers) {
  const made = answers.filter((one) => one.tokens);
  const verdicts = Object.entries(Object.groupBy(made, (one) => one.plan?.verdict ?? "none"));
  const total = (name) => made.reduce((sum, one) => sum + one.tokens[name], 0);
  return facts([
    ["Answers", String(answers.length)],
    ["Plans", verdicts.map(([name, all]) => `${name} ${all.length}`).join(", ") || null],
    ["First token, median", seconds(median(made.map((one) => one.ttft_s)))],
    ["Longest gap, median", seconds(median(made.map((one) => one.max_gap_s)))],
    ["Tokens by cloud and device", `${total("cloud")} and ${total("device")}`],
    ["Failed", String(answers.filter((one) => one.error && !(one.error in STOPPED)).length)],
  ]);
}

function row(one) {
  const { tokens, plan } = one;
  return [
    new Date(one.ended * 1000).toLocaleTimeString(), plan?.verdict, plan?.reason, tokens?.prompt, tokens?.cloud, tokens?.device,
    seconds(one.ttft_s), seconds(one.tpot_mean_s), seconds(one.max_gap_s), seconds(one.took_over_s),
    STOPPED[one.error] ?? one.error ?? one.finish_reason,
  ];
}

function learnings({ device, cloud }) {
  const ttft = (index) => (cloud ? estimate(cloud.ttft_s[index], seconds) : null);
  return table(
    ["Prompt", "The device reads", "The device decodes", "The cloud's first token"],
    device.map((one, index) => [
      count(one.prompt_tokens, "token"), estimate(one.prefill_tps, per("tokens/s")), estimate(one.decode_tps, per("tokens/s")), ttft(index),
    ]));
}

function links({ cloud, answer_tokens: tokens }) {
  return facts([
    ["Cloud, from token to token", cloud && estimate(cloud.tpot_s, seconds)],
    ["Round trip", cloud && estimate(cloud.rtt_s, seconds)],
    ["Link, while cells arrive", cloud?.link_bps ? estimate(cloud.link_bps, (value) => `${(value / 1e6).toPrecision(3)} MB/s`) : null],
    ["Answers", `${Math.round(tokens)} tokens on average`],
  ]);
}

const estimate = ({ mean, sd }, shown) => `${shown(mean)} ± ${shown(sd)}`;

function table(names, rows) {
  const head = el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));
  const cells = (values) => values.map((value) => el("td", {}, value == null ? "" : String(value)));
  return [head, el("tbody", {}, ...rows.map((values) => el("tr", {}, ...cells(values))))];
}

function median(values) {
  const known = values.filter((one) => one != null).sort((one, other) => one - other);
  return known.length ? known[Math.floor(known.length / 2)] : null;
}
