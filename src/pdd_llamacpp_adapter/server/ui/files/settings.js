// What the settings' form says: fields of the request, and the page's colours. Kept in the browser, not on the server.

const KEPT = "pdd-device-settings";
const OWN = ["rate", "plan", "refine"]; // fields of the request's `pdd`

export class Settings {
  #form;

  constructor(form) {
    this.#form = form;
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    for (const field of form.elements) if (kept[field.name]) field.value = kept[field.name];
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      localStorage.setItem(KEPT, JSON.stringify(this.#values()));
      theme();
    });
  }

  // The fields that the user has set.
  request() {
    const { theme: _, temperature, max_tokens, ...own } = this.#values();
    const pdd = { tokens: true };
    for (const name of OWN) if (own[name]) pdd[name] = number(own[name]);
    return {
      ...(temperature && { temperature: Number(temperature) }),
      ...(max_tokens && { max_tokens: Number(max_tokens) }),
      pdd,
    };
  }

  #values() {
    return Object.fromEntries(new FormData(this.#form));
  }
}

// The colours that were chosen on either page; without a choice, the system's.
export function theme() {
  const { theme: chosen } = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  document.documentElement.dataset.theme = chosen ?? "";
}

const number = (text) => (text.trim() && Number.isFinite(Number(text)) ? Number(text) : text.trim());
