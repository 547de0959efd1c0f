// The server, asked with its key: the key is asked for once, and stays in this tab.

import { el } from "./dom.js";

const KEY = "pdd-device-key";
let asking = null; // the dialog's promise, while it is open
let dismissed = false;

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Returns the response. `quiet` asks for no key again once the user has put the question away.
export async function call(path, { quiet = false, ...options } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key !== null && { authorization: `Bearer ${bytes(key)}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (sessionStorage.getItem(KEY) !== key) continue; // another call has asked meanwhile
    if (quiet && dismissed) throw new Refusal(401, "The server needs a key.");
    asking ??= askForKey(key !== null).finally(() => (asking = null));
    await asking;
  }
}

export const json = async (path, options) => (await call(path, options)).json();

async function refusal(response) {
  const told = await response.json().catch(() => null);
  return new Refusal(response.status, told?.error?.message ?? `The server answers ${response.status}.`);
}

// A header's value is bytes: those of UTF-8, as the server compares them.
const bytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

function askForKey(wrong) {
  const field = el("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const form = el("form", { method: "dialog" },
    el("label", { for: "key" }, wrong ? "This is not the server's key. API key:" : "This server needs a key. API key:"),
    field,
    el("p", {}, "It stays in this tab, until you close the tab."),
    el("button", { value: "use" }, "Use"),
    el("button", { value: "", type: "button", onclick: () => dialog.close("") }, "Not now"));
  const dialog = el("dialog", { "aria-label": "API key" }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      dismissed = dialog.returnValue !== "use";
      if (!dismissed) sessionStorage.setItem(KEY, field.value);
      dialog.remove();
      if (dismissed) reject(new Refusal(401, "The server needs a key."));
      else resolve();
    });
  });
}
