// The chat, kept in the tab: it is there again when the page is loaded again, or left for the other one.

const KEPT = "pdd-device-chat";

// `running` is the name of the stream of the answer that is being made, if one is.
export function keep(turns, spared, running) {
  const said = turns.map(({ role, text, by, thoughts }) => ({ role, text, by, thoughts }));
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ turns: said, spared, running }));
  } catch {
    sessionStorage.removeItem(KEPT); // it is longer than what a browser keeps
  }
}

export function kept() {
  return JSON.parse(sessionStorage.getItem(KEPT) ?? '{"turns": []}');
}
