// What the server tells of an answer, in words: its plan and why, its figures, and what was spared.

import { count, el, facts, seconds } from "./dom.js";

const WHO = {
  "handoff": "The cloud begins, and the device goes on.",
  "cloud only": "The cloud makes all of it.",
  "device only": "The device makes all of it.",
};

export function plan(told) {
  const { plan: chosen } = told;
  if (!chosen) return [el("p", {}, "There was nothing to decide.")];
  const parts = [el("p", {}, el("strong", {}, WHO[chosen.verdict] ?? chosen.verdict)), el("p", {}, `Why: ${chosen.reason}.`)];
  const terms = [
    chosen.verdict === "handoff" && chosen.decode_budget && `the cloud may decode ${count(chosen.decode_budget, "token")}`,
    chosen.refine_ratio && `the device reads ${Math.round(chosen.refine_ratio * 100)} % of the prompt`,
    chosen.kv && "the device loads the cloud's KV cache",
    `decided by the ${chosen.by}`,
  ].filter(Boolean);
  parts.push(el("p", {}, `${terms.join(", ")}.`.replace(/^./, (first) => first.toUpperCase())));
  if (chosen.alternatives?.length) {
    const all = chosen.alternatives.map((one) => el("li", {}, alternative(one)));
    parts.push(el("details", {}, el("summary", {}, `${count(all.length, "plan")} looked at`), el("ul", {}, ...all)));
  }
  if (told.decisions?.length) {
    const all = told.decisions.map((one) => el("li", {}, `${seconds(one.at_s)}: ${one.what}`));
    parts.push(el("details", {}, el("summary", {}, "What happened"), el("ul", {}, ...all)));
  }
  return parts;
}

function alternative(one) {
  const parts = [
    one.decode_budget && `budget ${one.decode_budget}`,
    one.refine_ratio && `${Math.round(one.refine_ratio * 100)} % of the prompt`,
    one.kv && "with cells",
    one.ttft_s != null && `first token ${seconds(one.ttft_s)}`,
    one.cost != null && `cost ${one.cost}`,
    one.rejected,
  ];
  return `${one.verdict}: ${parts.filter(Boolean).join(", ")}`;
}

// Tokens of the answers of this chat that the cloud did not have to decode, and the share of all.
export class Spared {
  #device;
  #all;

  // `kept` is what `toJSON` returned.
  constructor({ device = 0, all = 0 } = {}) {
    this.#device = device;
    this.#all = all;
  }

  toJSON() {
    return { device: this.#device, all: this.#all };
  }

  add({ tokens }) {
    this.#device += tokens.device;
    this.#all += tokens.device + tokens.cloud + tokens.cloud_in_vain;
  }

  toString() {
    if (!this.#all) return "none yet";
    return `${this.#device} of ${this.#all} (${Math.round((100 * this.#device) / this.#all)} %)`;
  }
}

export function figures(told, spared) {
  const { tokens, refinement, kv } = told;
  return facts([
    ["First token", seconds(told.ttft_s)],
    ["Mean gap", seconds(told.tpot_mean_s)],
    ["Longest gap", seconds(told.max_gap_s)],
    ["Take-over", seconds(told.took_over_s)],
    ["By the cloud", count(tokens.cloud, "token")],
    ["By the device", count(tokens.device, "token")],
    ["Sent in vain", tokens.cloud_in_vain ? count(tokens.cloud_in_vain, "token") : null],
    ["Prompt", `${count(tokens.prompt, "token")}, ${tokens.reused} of them known`],
    ["Refining spared", refinement?.saved_tokens ? `${count(refinement.saved_tokens, "token")} of the prompt` : null],
    ["Cells from the cloud", kv?.cells ? `${kv.cells}, ${(kv.bytes / 1e6).toFixed(1)} MB` : null],
    ["Cloud's error", told.cloud_error],
    ["Decoding that the cloud was spared in this chat", String(spared)],
  ]);
}

// The served model and the state of the cloud, from /v1/models.
export function server({ data: [model] }) {
  const { cloud } = model.pdd;
  const problem = cloud.error ? ` (${cloud.error})` : "";
  const state = cloud.url ? `cloud ${cloud.state}${problem}` : "no cloud: the device answers alone";
  return `${model.id}, ${model.max_model_len} tokens · ${state}`;
}
