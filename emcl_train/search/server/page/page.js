// The page of a library: search as one types, play a moment at its second. Texts are only ever set as text.
"use strict";

(() => {
  const AT_ONCE = 24;
  const MOST = 96;
  const TYPING = 160; // milliseconds after the last letter, before a search is asked for
  const SLOW = 350; // after which it is said that something takes long
  const AHEAD = 8; // seconds before a part ends, at which the next one is asked for
  const AROUND = 2;

  const $ = (id) => document.getElementById(id);
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };

  // Control characters and marks that turn the direction of writing, which names of files may have, as escapes.
  const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
  const visible = (text) =>
    text.replace(HIDDEN, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const quoted = (text) => make("bdi", {}, visible(text));

  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  const clock = (seconds) => {
    const tenths = Math.round(seconds * 10);
    const [hours, minutes] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60];
    const rest = `${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}${tenths % 10 ? `.${tenths % 10}` : ""}`;
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  };
  const span = ({ start, end }) => `${clock(start)}–${clock(end)}`;
  const score = (value) => value.toFixed(3).replace("-", "−");

  // What the server says to a question; an error is its sentence.
  const ask = async (address, parameters, signal) => {
    let answer;
    try {
      answer = await fetch(`${address}?${new URLSearchParams(parameters)}`, { signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer; is it still running?");
    }
    const value = await answer.json().catch(() => ({ error: `The server has answered with ${answer.status}.` }));
    if (!answer.ok) throw new Error(value.error);
    return value;
  };

  const [query, lists, status, more] = ["query", "lists", "status", "more"].map($);
  const ranking = $("ranking");
  let library = null;

  // ---- What is asked, and the address that says it. ----

  const state = { q: "", like: "", ranking: "refined", play: "" };
  const read = () => {
    const given = new URLSearchParams(location.search);
    state.q = (given.get("q") || "").slice(0, query.maxLength);
    state.like = given.get("like") || "";
    state.play = given.get("play") || "";
    const wanted = given.get("ranking");
    state.ranking = ["plain", "both"].includes(wanted) ? wanted : "refined";
    query.value = state.q;
  };
  const keep = (anew) => {
    const kept = new URLSearchParams();
    if (state.q) kept.set("q", state.q);
    if (state.like) kept.set("like", state.like);
    if (state.ranking !== "refined") kept.set("ranking", state.ranking);
    if (state.play) kept.set("play", state.play);
    const address = kept.size ? `/?${kept}` : "/";
    if (address === location.pathname + location.search) return;
    history[anew ? "pushState" : "replaceState"](null, "", address);
  };

  // ---- Results. ----

  let shown = AT_ONCE;
  let asking = null;
  let waiting = 0;

  const picture = (moment, words = span(moment)) => {
    const image = make("img", { alt: "", src: moment.thumbnail, loading: "lazy", decoding: "async" });
    image.addEventListener("error", () => image.classList.add("blank"));
    return make("span", { class: "frame" }, image, make("span", { class: "time" }, words));
  };
  const card = (moment, other) => {
    const [folder, name] = [moment.file.slice(0, moment.file.lastIndexOf("/") + 1), moment.file.split("/").pop()];
    const value = moment.score === null ? "" : score(moment.score);
    const button = make(
      "button",
      { type: "button", class: "card", tabindex: "-1", "data-id": moment.id },
      picture(moment),
      make(
        "span",
        { class: "line" },
        make("span", { class: "file" }, quoted(name)),
        make("span", { class: "score" }, value),
      ),
      other ? make("span", { class: "other" }, other) : null,
    );
    button.title = visible(folder + name);
    const words = [visible(name), `from ${clock(moment.start)} to ${clock(moment.end)}`];
    if (value) words.push(`score ${value}`);
    if (moment.below) words.push("below the cut-off");
    if (other) words.push(other);
    button.setAttribute("aria-label", words.join(", "));
    button.addEventListener("click", () => play(moment, button));
    return make("li", { class: moment.below ? "below" : "" }, button);
  };

  const summary = ({ results, cutoff }) => {
    if (!results.length) return "No moment was found.";
    const words = count(results.length, "moment");
    if (cutoff === null) return `${words}.`;
    const fit = results.filter((moment) => !moment.below).length;
    return `${words}, ${fit === results.length ? "all" : fit} above the cut-off of ${score(cutoff)}.`;
  };
  // Where each moment stands in the other ranking.
  const places = (results) => new Map(results.map((moment, place) => [moment.id, place + 1]));
  const cards = (found, others, title) => {
    const items = [];
    for (const moment of found.results) {
      if (moment.below && found.fits && !items.some((item) => item.className === "rule")) {
        const words = `below the cut-off of ${score(found.cutoff)}: 95 % of unrelated queries stay under it`;
        items.push(make("li", { class: "rule" }, words));
      }
      const there = others ? others.get(moment.id) : null;
      items.push(card(moment, others ? (there ? `place ${there} in ${title}` : `not in ${title}`) : ""));
    }
    return make("ul", { class: "cards" }, ...items);
  };

  const welcome = () => {
    const words = make("p", { class: "welcome" });
    words.append(
      make("strong", {}, "Describe what is to be seen"),
      ", as a caption would. The moments that fit best come first, and each plays at its second.",
    );
    return words;
  };
  const draw = (found) => {
    const both = found.length > 1;
    lists.className = both ? "both" : "";
    status.className = "";
    if (!both) {
      const [one] = found;
      status.textContent = one.said || summary(one);
      status.className = one.fits === false ? "nothing" : "";
      lists.replaceChildren(cards(one));
    } else {
      const titles = ["Refined", "Plain"];
      status.textContent = titles.map((title, n) => `${title}: ${found[n].said || summary(found[n])}`).join(" ");
      lists.replaceChildren(
        ...found.map((one, n) =>
          make(
            "section",
            {},
            make("h2", {}, titles[n]),
            make("p", one.fits === false ? { class: "nothing" } : {}, one.said || summary(one)),
            cards(one, places(found[1 - n].results), titles[1 - n].toLowerCase()),
          ),
        ),
      );
    }
    // The live region says it; the sections show it.
    status.classList.toggle("unseen", both);
    more.hidden = shown >= MOST || found.every((one) => one.results.length < shown);
    mark();
    enter(lists.querySelector(".card"));
  };
  const fail = (error) => {
    status.textContent = error.message;
    status.className = "nothing";
    lists.replaceChildren();
    more.hidden = true;
  };

  // Ask, and show what comes; an answer to an earlier question is dropped.
  const update = async () => {
    clearTimeout(waiting);
    if (!library) return; // what is typed before is searched for when the library is known
    if (asking) asking.abort();
    const mine = (asking = new AbortController());
    document.title = state.q ? `${state.q} – ${library.name}` : library.name;
    showExample();
    if (!state.q && !state.like) {
      lists.className = "";
      lists.setAttribute("aria-busy", "false");
      lists.replaceChildren(welcome());
      status.textContent = "";
      status.className = "";
      more.hidden = true;
      return;
    }

    const slow = setTimeout(() => lists.setAttribute("aria-busy", "true"), SLOW);
    try {
      if (!library.refines) state.ranking = "refined";
      const refines = { refined: [library.refines], plain: [false], both: [true, false] }[state.ranking];
      const address = state.like ? "/api/like" : "/api/search";
      const what = state.like ? { id: state.like } : { q: state.q };
      const found = await Promise.all(
        refines.map((refine) => ask(address, { ...what, k: shown, refine: refine ? 1 : 0 }, mine.signal)),
      );
      if (mine === asking) draw(found);
    } catch (error) {
      if (error.name !== "AbortError" && mine === asking) fail(error);
    } finally {
      clearTimeout(slow);
      if (mine === asking) lists.setAttribute("aria-busy", "false");
    }
  };
  const search = (anew) => {
    shown = AT_ONCE;
    keep(anew);
    return update();
  };

  const showExample = () => {
    const place = $("example");
    place.hidden = !state.like;
    if (!state.like) return;
    const remove = make("button", { type: "button" }, state.q ? `Back to “${visible(state.q).slice(0, 60)}”` : "Remove");
    remove.addEventListener("click", () => {
      state.like = "";
      search(true);
      query.focus();
    });
    const like = state.like;
    const name = make("span", {}, "Moments like the one that was chosen");
    place.replaceChildren(name, remove);
    ask("/api/neighbours", { id: like, around: 1 })
      .then(({ of }) => {
        if (state.like === like) name.replaceChildren("Moments like ", quoted(of.file.split("/").pop()), ` at ${clock(of.start)}`);
      })
      .catch(() => {});
  };
  const like = (id) => {
    state.like = id;
    scrollTo({ top: 0 });
    search(true).then(() => focusOn(lists.querySelector(".card")));
  };

  // ---- Keys: one card at a time is in the order of Tab, and arrows go from card to card. ----

  const all = () => [...lists.querySelectorAll(".card")];
  const enter = (one) => {
    for (const other of all()) other.tabIndex = other === one ? 0 : -1;
  };
  const focusOn = (one) => {
    if (!one) return;
    enter(one);
    one.focus({ preventScroll: true });
    one.scrollIntoView({ block: "nearest" });
  };
  const centre = (one) => {
    const box = one.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const nearest = (from, [right, down]) => {
    const [x, y] = centre(from);
    let best = null;
    let least = Infinity;
    for (const one of all()) {
      const [dx, dy] = [centre(one)[0] - x, centre(one)[1] - y];
      const [along, beside] = right ? [right * dx, Math.abs(dy)] : [down * dy, Math.abs(dx)];
      if (along < 8 || (right && beside > from.offsetHeight / 2)) continue;
      const cost = along + 3 * beside;
      if (cost < least) [best, least] = [one, cost];
    }
    // A row goes on in the next one.
    if (best || down) return best;
    const order = all().filter((one) => one.closest(".cards") === from.closest(".cards"));
    return order[order.indexOf(from) + right] || null;
  };
  lists.addEventListener("focusin", (event) => event.target.matches(".card") && enter(event.target));
  lists.addEventListener("keydown", (event) => {
    const from = event.target.closest(".card");
    if (!from || event.ctrlKey || event.metaKey || event.altKey) return;
    if (WAYS[event.key]) {
      const next = nearest(from, WAYS[event.key]);
      if (next) focusOn(next);
      else if (event.key === "ArrowUp") query.focus();
    } else if (event.key === "Home") focusOn(all()[0]);
    else if (event.key === "End") focusOn(all().pop());
    else if (event.key.toLowerCase() === "m") like(from.dataset.id);
    else return;
    event.preventDefault();
  });
  query.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && all().length) {
      event.preventDefault();
      focusOn(all()[0]);
    }
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input[type=search]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      query.focus();
      query.select();
    } else if (event.key === "Escape" && !document.fullscreenElement) {
      if (!player.hidden) close();
      else if (state.like) $("example").querySelector("button").click();
      else if (event.target !== query) query.focus();
      else if (query.value) {
        query.value = state.q = "";
        search(false);
      } else return;
      event.preventDefault();
    }
  });

  query.addEventListener("input", () => {
    state.q = query.value.trim();
    state.like = "";
    clearTimeout(waiting);
    waiting = setTimeout(() => search(false), TYPING);
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.q = query.value.trim();
    state.like = "";
    search(true);
  });
  ranking.addEventListener("change", () => {
    state.ranking = ranking.querySelector("input:checked").value;
    search(false);
  });
  more.addEventListener("click", async () => {
    const before = all().length;
    shown = Math.min(MOST, shown + AT_ONCE);
    await update();
    focusOn(all()[before]);
  });

  // ---- The player: its video is the file, or a part of it that the server has made. ----

  const [player, video, cover, said] = ["player", "video", "cover", "said"].map($);
  let opening = null; // what is being fetched for it
  let moment = null;
  let from = null; // the card that was played
  let media = null; // what the video shows: begin, end, more, part
  let goesOn = false; // past the end of the moment
  let seeks = 0; // of our own that are under way

  const second = () => media.begin + video.currentTime;
  const go = (to) => {
    const place = Math.max(0, to - media.begin);
    if (Math.abs(video.currentTime - place) < 1e-3) return;
    seeks += 1;
    video.currentTime = place;
  };
  const start = () =>
    video.play().catch(() => {
      said.textContent = `${span(moment)} · press play`;
    });
  const mark = () => {
    for (const one of document.querySelectorAll("[data-id]")) {
      if (moment && one.dataset.id === moment.id) one.setAttribute("aria-current", "true");
      else one.removeAttribute("aria-current");
    }
  };

  // Have a part ready, and show it from a second of the file on.
  const load = async (part, to) => {
    if (opening) opening.abort();
    const mine = (opening = new AbortController());
    cover.textContent = "Opening …";
    const slow = setTimeout(() => {
      cover.textContent = "Being converted for the browser …";
      cover.hidden = false;
    }, SLOW);
    try {
      const found = await ask("/api/playing", { id: moment.id, part }, mine.signal);
      if (mine !== opening) return;
      media = { ...found, part };
      video.src = found.media;
      await new Promise((resolve, reject) => {
        const done = { once: true, signal: mine.signal };
        video.addEventListener("loadedmetadata", resolve, done);
        video.addEventListener("error", () => reject(new Error(`The browser cannot play this (${found.way}).`)), done);
        mine.signal.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
      });
      cover.hidden = true;
      said.textContent = span(moment);
      const words = found.way === "as it is" ? [] : [`${found.way}: ${found.why}`];
      if (found.muted) words.push("its sound cannot be decoded");
      $("how").hidden = !words.length;
      $("how").textContent = words.join("; ");
      seeks = 0;
      go(to);
      await start();
    } catch (error) {
      if (error.name === "AbortError" || mine !== opening) return;
      cover.textContent = error.message;
      cover.hidden = false;
      media = null;
    } finally {
      clearTimeout(slow);
    }
  };
  const playMoment = () => {
    goesOn = false;
    if (media && media.part === 0) {
      go(moment.start);
      start();
    } else load(0, moment.start);
  };
  const playOn = () => {
    if (!media) return;
    goesOn = true;
    if (video.ended && media.more) load(media.part + 1, media.end);
    else start();
  };

  const play = (one, button) => {
    const again = moment && moment.id === one.id && media;
    moment = one;
    from = button || from;
    state.play = one.id;
    keep(false);
    player.hidden = false;
    $("room").classList.add("open");
    mark();
    if (again) {
      playMoment();
      return;
    }

    media = null;
    goesOn = false;
    video.pause();
    video.removeAttribute("src");
    video.load();
    $("playing").replaceChildren(quoted(one.file));
    said.textContent = span(one);
    $("how").hidden = true;
    $("copies").hidden = !one.also_at.length;
    $("copies").replaceChildren("Also: ", ...one.also_at.flatMap((path, n) => [n ? ", " : "", quoted(path)]));
    load(0, one.start);
    beside(one);
    if (player.getBoundingClientRect().top < 0 || innerWidth < 1000) player.scrollIntoView({ block: "start" });
  };
  const close = () => {
    if (opening) opening.abort();
    video.pause();
    video.removeAttribute("src");
    video.load();
    player.hidden = true;
    $("room").classList.remove("open");
    moment = media = null;
    state.play = "";
    keep(false);
    mark();
    focusOn(from && from.isConnected ? from : all()[0]);
  };

  const beside = async (one) => {
    const place = $("around");
    const found = await ask("/api/neighbours", { id: one.id, around: AROUND }).catch(() => ({ results: [] }));
    if (!moment || moment.id !== one.id) return;
    place.replaceChildren(
      ...found.results.map((other) => {
        const button = make("button", { type: "button", class: "card", "data-id": other.id }, picture(other, clock(other.start)));
        button.setAttribute("aria-label", `from ${clock(other.start)} to ${clock(other.end)}`);
        button.addEventListener("click", () => {
          play(other, null);
          $("around-title").scrollIntoView({ block: "nearest" });
        });
        return make("li", {}, button);
      }),
    );
    mark();
  };

  // The end of the moment is looked for with every picture; timeupdate alone comes four times a second.
  const follow = () => {
    if (!moment || !media || video.paused) return;
    if (!goesOn && !seeks && second() >= moment.end - 0.02) {
      video.pause();
      said.textContent = `${span(moment)} · its end`;
      return;
    }
    if (goesOn && media.more && media.end - second() < AHEAD && !media.next) {
      media.next = ask("/api/playing", { id: moment.id, part: media.part + 1 }).catch(() => null);
    }
    requestAnimationFrame(follow);
  };
  video.addEventListener("play", () => {
    // Who presses play where the moment has ended wants to see what follows.
    if (media && !seeks && second() >= moment.end - 0.05) goesOn = true;
    requestAnimationFrame(follow);
  });
  video.addEventListener("timeupdate", () => document.hidden && follow());
  video.addEventListener("seeking", () => {
    if (media && !seeks && (second() < moment.start - 0.05 || second() > moment.end + 0.05)) goesOn = true;
  });
  video.addEventListener("seeked", () => {
    seeks = Math.max(0, seeks - 1);
  });
  video.addEventListener("ended", () => {
    if (media && media.more && (goesOn || media.end < moment.end - 0.05)) load(media.part + 1, media.end);
  });
  video.addEventListener("error", () => {
    if (!media || !video.error) return;
    cover.textContent = "The browser cannot play this further.";
    cover.hidden = false;
  });
  $("again").addEventListener("click", playMoment);
  $("on").addEventListener("click", playOn);
  $("like").addEventListener("click", () => like(moment.id));
  $("close").addEventListener("click", close);

  // ---- The beginning, and going back. ----

  const show = async () => {
    ranking.querySelector(`[value="${state.ranking}"]`).checked = true;
    const wanted = state.play;
    if (player.hidden === false && moment && moment.id !== wanted) {
      close();
      state.play = wanted;
    }
    await update();
    if (!wanted || (moment && moment.id === wanted)) return;
    const card = all().find((one) => one.dataset.id === wanted);
    const { of } = await ask("/api/neighbours", { id: wanted, around: 1 }).catch(() => ({}));
    if (of) play(of, card || null);
  };
  const begin = async () => {
    read();
    if (!state.q && !state.like && !state.play) query.focus();
    try {
      library = await ask("/api/library", {});
    } catch (error) {
      fail(error);
      return;
    }
    $("name").replaceChildren(quoted(library.name));
    const facts = [count(library.moments, "moment"), library.cutting, visible(library.model.label)];
    $("facts").textContent = facts.filter(Boolean).join(" · ");
    $("random").hidden = !library.model.random;
    ranking.hidden = !library.refines;
    const { damaged } = library;
    $("damaged").hidden = !damaged.count;
    $("damaged").querySelector("summary").textContent = `${count(damaged.count, "file")} could not be read`;
    $("damaged")
      .querySelector("ul")
      .replaceChildren(...damaged.files.map(({ file, reason }) => make("li", {}, quoted(file), ": ", quoted(reason))));
    await show();
  };
  addEventListener("popstate", () => {
    read();
    show();
  });
  begin();
})();
