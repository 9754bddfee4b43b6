// Reads the page again while somebody writes it. The browser keeps the reader's place, this what was searched for.
(() => {
  const line = document.getElementById("reload");
  const seconds = Number(line.dataset.seconds);
  const written = Number(line.dataset.written);
  const LONGEST = 900; // seconds that a page is old, of which nobody seems to write a new one
  const KEY = "emcl-reload";
  const FIELDS = ["search", "filter", "sort"];

  function keep() {
    const fields = {};
    for (const id of FIELDS) fields[id] = document.getElementById(id)?.value;
    const direction = document.querySelector("[data-direction][aria-pressed=true]")?.dataset.direction;
    try { sessionStorage.setItem(KEY, JSON.stringify({ fields, direction })); } catch { /* not allowed here */ }
  }

  function restore() {
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem(KEY));
      sessionStorage.removeItem(KEY);
    } catch { /* not allowed here */ }
    if (!kept) return;
    document.querySelector(`[data-direction="${kept.direction === "video" ? "video" : "text"}"]`)?.click();
    for (const id of FIELDS) {
      const field = document.getElementById(id);
      if (!field || kept.fields[id] === undefined) continue;
      field.value = kept.fields[id];
      field.dispatchEvent(new Event("input", { bubbles: true }));
      field.dispatchEvent(new Event("change", { bubbles: true }));
    }
  }

  // Nobody is interrupted: not a search that is being typed, a selection, or a film that plays.
  function busy() {
    const typing = ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
    const playing = [...document.querySelectorAll("video")].some((film) => !film.paused);
    return typing || playing || document.hidden || !getSelection().isCollapsed;
  }

  restore();
  if (Date.now() / 1000 - written > LONGEST) {
    line.textContent = "This page was not written anew for a quarter of an hour, and no longer reads itself again.";
    return;
  }
  setInterval(() => {
    if (busy()) return;
    keep();
    location.reload();
  }, 1000 * seconds);
})();
