// The list of all queries: search, filter, sort, and films that play where they are. Texts are only ever set as text.
"use strict";

(() => {
  const read = (id) => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : null;
  };
  const media = read("media") || { pictures: {}, films: {}, reasons: {} };
  const run = read("queries");

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const quoted = (text) => {
    const isolated = make("bdi");
    isolated.textContent = text;
    return isolated;
  };
  const score = (value) => (value === null ? "–" : value.toFixed(3));
  const signed = (value) => (value === null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`);

  // Films, each decoded from its base64 once. A blob, since some browsers play no data: address.
  const addresses = new Map();
  const film = (clip) => {
    if (!addresses.has(clip)) {
      const bytes = Uint8Array.from(atob(media.films[clip]), (letter) => letter.charCodeAt(0));
      addresses.set(clip, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
    }
    return addresses.get(clip);
  };
  const play = (place, clip) => {
    for (const other of document.querySelectorAll("video")) other.pause();
    const video = make("video", { controls: "", loop: "", playsinline: "", src: film(clip) });
    video.muted = true;
    if (media.pictures[clip]) video.poster = `data:image/webp;base64,${media.pictures[clip]}`;
    place.replaceChildren(video);
    video.play().catch(() => {});
    video.focus();
  };

  // A clip's picture, which plays where there is a film.
  const frame = (clip, name) => {
    const place = make("div", { class: "frame" });
    const image = media.pictures[clip]
      ? make("img", { alt: "", src: `data:image/webp;base64,${media.pictures[clip]}` })
      : make("span", { class: "blank" }, media.reasons[clip] ? "cannot be decoded" : "no picture");
    if (media.films[clip]) {
      const button = make("button", { type: "button", class: "play", "aria-label": `play ${name}` }, image);
      button.addEventListener("click", () => play(place, clip));
      place.append(button);
    } else {
      place.append(image);
      if (media.reasons[clip]) place.title = media.reasons[clip];
    }
    return place;
  };

  // Cards that are on the page already.
  for (const button of document.querySelectorAll("button[data-clip]")) {
    if (!media.films[button.dataset.clip]) continue;
    button.hidden = false;
    button.addEventListener("click", () => play(button.closest(".clip").querySelector(".strip"), button.dataset.clip));
  }

  const list = document.getElementById("list");
  if (!run || !list) return;

  const AT_ONCE = 20;
  const controls = document.getElementById("controls");
  const [search, filter, sort] = ["search", "filter", "sort"].map((id) => document.getElementById(id));
  const more = document.getElementById("more");
  const shown = document.getElementById("shown");
  let direction = "text";
  let found = [];

  const KINDS = {
    all: () => true,
    first: (rank) => rank <= 1,
    near: (rank) => rank > 1 && rank <= 10,
    worse: (rank) => rank > 10,
  };
  const captionsOf = run.clips.map(() => []);
  run.owner.forEach((clip, caption) => captionsOf[clip].push(caption));

  // What a query is called, and what is searched in.
  const textOf = (query) => (direction === "text" ? run.captions[query] : run.clips[query]);
  const words = {};
  const searched = () => {
    if (!words[direction]) {
      words[direction] =
        direction === "text"
          ? run.captions.map((caption, i) => `${caption} ${run.clips[run.owner[i]]}`.toLowerCase())
          : run.clips.map((clip, i) => [clip, ...captionsOf[i].map((j) => run.captions[j])].join(" ").toLowerCase());
    }
    return words[direction];
  };

  const order = () => {
    const { rank, margin } = run[direction];
    const ways = {
      worst: (a, b) => rank[b] - rank[a] || margin[a] - margin[b] || a - b,
      best: (a, b) => rank[a] - rank[b] || margin[b] - margin[a] || a - b,
      close: (a, b) => Math.abs(margin[a]) - Math.abs(margin[b]) || a - b,
      text: (a, b) => textOf(a).localeCompare(textOf(b)) || a - b,
      data: (a, b) => a - b,
    };
    return ways[sort.value];
  };

  const hit = (clip, place, value, right) => {
    const name = run.clips[clip];
    const line = make("span", { class: "place" }, `${place} · ${score(value)}`);
    return make(
      "li",
      { class: right ? "right" : "" },
      frame(clip, name),
      line,
      right ? make("span", { class: "mark" }, "✓ right") : null,
      make("code", {}, quoted(name)),
    );
  };
  const sentence = (caption, place, value, right) =>
    make(
      "li",
      { class: right ? "right" : "" },
      make("span", { class: "place" }, `${place} · ${score(value)}`),
      make("span", { class: "text" }, quoted(run.captions[caption])),
      right ? make("span", { class: "mark" }, "✓ right") : null,
    );

  const item = (query) => {
    const { rank, margin, own, right, best, scores } = run[direction];
    const isText = direction === "text";
    const isRight = (other) => (isText ? other === right[query] : run.owner[other] === query);
    const draw = isText ? hit : sentence;
    const nearest = best[query].map((other, i) => draw(other, i + 1, scores[query][i], isRight(other)));

    // Further down the list, the right one stands behind the five.
    if (!best[query].some(isRight)) nearest.push(draw(right[query], rank[query], own[query], true));

    const kind = Object.keys(KINDS).find((name) => name !== "all" && KINDS[name](rank[query]));
    const head = make(
      "div",
      { class: "head" },
      make("span", { class: `badge ${kind}` }, `rank ${rank[query]}`),
      isText ? null : frame(query, run.clips[query]),
      make("p", {}, isText ? quoted(run.captions[query]) : make("code", {}, quoted(run.clips[query]))),
      make("span", { class: "margin" }, `margin ${signed(margin[query])}`),
    );
    return make("li", { class: "item" }, head, make("ol", { class: isText ? "hits" : "sentences" }, ...nearest));
  };

  const say = () => {
    const all = run[direction].rank.length;
    const some = Math.min(list.children.length, found.length);
    shown.textContent = found.length ? `${some} shown of ${found.length} found, ${all} in all` : `none of ${all} found`;
    more.hidden = some >= found.length;
    more.textContent = `Show ${Math.min(AT_ONCE, found.length - some)} more`;
  };
  const extend = () => {
    const begin = list.children.length;
    list.append(...found.slice(begin, begin + AT_ONCE).map(item));
    say();
    return list.children[begin];
  };
  const update = () => {
    const { rank } = run[direction];
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = wanted.length ? searched() : [];
    found = [];
    rank.forEach((value, query) => {
      if (KINDS[filter.value](value) && wanted.every((word) => texts[query].includes(word))) found.push(query);
    });
    found.sort(order());
    list.replaceChildren();
    extend();
  };
  const count = () => {
    const { rank } = run[direction];
    for (const option of filter.options) {
      const number = rank.filter(KINDS[option.value]).length;
      option.textContent = `${option.dataset.name} (${number})`;
    }
  };

  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  for (const control of [filter, sort]) control.addEventListener("change", update);
  for (const button of controls.querySelectorAll("button[data-direction]")) {
    button.addEventListener("click", () => {
      direction = button.dataset.direction;
      for (const one of controls.querySelectorAll("button[data-direction]")) {
        one.setAttribute("aria-pressed", String(one === button));
      }
      count();
      update();
    });
  }
  more.addEventListener("click", () => {
    const next = extend();
    const first = next && next.querySelector("button");
    if (first) first.focus({ preventScroll: true });
  });

  // "/" goes to the search, as on many pages; Escape empties it.
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      update();
    }
  });

  controls.hidden = false;
  count();
  update();
})();
