// The page of `zeroshot serve`. Everything that comes from the server is put in as text, never as
// markup; images are named by their ids. The address holds what is shown.

const $ = (id) => document.getElementById(id);
const PAGE = 60;
const BOXES = 12; // that are drawn at first
const COLOURS = ["#e6492d", "#2f7fe0", "#18a558", "#b45ad6", "#e5a50a", "#0aa5a5", "#e0529c", "#8a6d3b"];
const KEYS = [
  ["/", "to the search field"],
  ["← → ↑ ↓", "from image to image; Home, End"],
  ["Enter", "large view; Escape closes it"],
  ["s", "more like this image"],
  ["+  −", "add the image to the query, or take it away"],
  ["c", "describe the image, word by word"],
  ["x", "select the image; a selects all shown"],
  ["l", "your labels"],
  ["?", "this help"],
];

/** What is shown; the address has all of it. */
let state = { terms: [], min: null, labels: [], nothing: "", threshold: 0.5, chosen: null, view: "images", alike: 0.98, open: null };
let about = { cannot: {}, captioners: {}, nothing: "a photo" };
let images = []; // shown, in order
let more = false;
let version = 0;
let place = 0; // of the card that has the focus
let opened = null; // the image of the large view
let listing = ""; // what the shown images are an answer to
let current = 0; // number of the last request for images: an older answer is dropped
const selected = new Map();

// Elements and requests

const there = (all) => all.filter((x) => x !== null && x !== undefined);

function make(tag, given = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...there(inside));
  return element;
}

async function ask(path, body, kind = "application/json") {
  const options = body === undefined ? {} : { method: "POST", body, headers: { "content-type": kind } };
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

const post = async (path, value) => (await ask(path, JSON.stringify(value))).json();

function say(text) {
  $("status").textContent = text;
}

const thumb = (id, width = 320) => `/thumb/${encodeURIComponent(id)}?w=${width}`;
const narrow = () => (window.devicePixelRatio > 1.3 ? 640 : 320);
const number = (x, digits = 3) => x.toFixed(digits).replace("-", "−");
const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const listed = (text) => [...new Set(text.split(/[,\n]/).map((x) => x.trim()).filter(Boolean))];

// The address

function toAddress() {
  const query = new URLSearchParams();
  for (const term of state.terms) {
    const value = term.id ? `#${term.id}` : `:${term.text}`;
    query.append("t", (term.sign < 0 ? "-" : "+") + value);
  }
  if (state.min !== null && state.terms.length) query.set("min", state.min);
  for (const label of state.labels) query.append("l", label);
  if (state.labels.length && state.nothing !== about.nothing) query.set("nothing", state.nothing);
  if (state.labels.length && state.threshold !== 0.5) query.set("sure", state.threshold);
  if (state.chosen !== null) query.set("label", state.chosen === -1 ? "none" : `=${state.chosen}`);
  if (state.view !== "images") query.set("view", state.view);
  if (state.view === "duplicates" && state.alike !== 0.98) query.set("alike", state.alike);
  if (state.open) query.set("open", state.open);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  const finite = (name, other) => {
    const value = parseFloat(query.get(name));
    return Number.isFinite(value) ? value : other;
  };
  const label = query.get("label");
  state = {
    terms: query.getAll("t").map((text) => {
      const sign = text[0] === "-" ? -1 : 1;
      const rest = text.slice(2);
      return text[1] === "#" ? { id: rest, sign } : { text: rest, sign };
    }).filter((term) => term.id || term.text),
    min: finite("min", null),
    labels: query.getAll("l"),
    nothing: query.get("nothing") || about.nothing,
    threshold: finite("sure", 0.5),
    chosen: label === null ? null : label === "none" ? -1 : label.slice(1),
    view: ["duplicates", "failures"].includes(query.get("view")) ? query.get("view") : "images",
    alike: finite("alike", 0.98),
    open: query.get("open"),
  };
}

/** Change what is shown, and go there. */
function go(change, replace = false) {
  Object.assign(state, change);
  const address = toAddress();
  if (address !== location.pathname + location.search) {
    history[replace ? "replaceState" : "pushState"](null, "", address);
  }
  return show();
}

/** Show the state; `again` keeps the focus where it was. */
async function show(again = false) {
  $("words").value = "";
  showTerms();
  for (const view of ["images", "duplicates", "failures"]) {
    $(`show-${view}`).setAttribute("aria-pressed", String(state.view === view));
  }
  const ofImages = state.view === "images";
  $("score-box").hidden = !ofImages || !state.terms.length;
  $("alike-box").hidden = state.view !== "duplicates";
  $("alike").value = state.alike;
  $("alike-out").textContent = state.alike.toFixed(3);
  $("empty").hidden = true;
  $("hint").hidden = true;
  const labels = state.labels.length > 0;
  if (labels) openLabels(true);
  $("label-words").value = state.labels.join(", ");
  $("nothing").value = state.nothing;
  $("label-threshold").value = state.threshold;
  $("label-threshold-out").textContent = state.threshold.toFixed(2);
  if (!labels) $("facets").replaceChildren();
  const asked = JSON.stringify({ ...state, open: null });
  const known = asked === listing && !again; // only the large view opens or closes
  listing = asked;
  try {
    if (known) $("empty").hidden = images.length > 0 || state.view !== "images";
    else if (state.view === "failures") await showFailures();
    else if (state.view === "duplicates") await showDuplicates();
    else await Promise.all([load(true, again), labels ? showFacets() : null]);
    if (state.open) await openLarge(state.open);
    else if ($("large").open) $("large").close();
  } catch (error) {
    listing = "";
    fail(error);
  }
}

function fail(error) {
  say(error.message);
  $("empty").hidden = images.length > 0;
  empty("That did not work", error.message);
}

/** What stands in the place of images. */
function empty(title, text) {
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
}

// The query

function showTerms() {
  $("terms").replaceChildren(...state.terms.map((term, i) => {
    const sign = term.sign < 0 ? "− " : i ? "+ " : "";
    const name = term.text || "an image";
    const seen = term.id
      ? [make("span", { text: sign }), make("img", { src: thumb(term.id, 96), alt: `${sign}an image` })]
      : [make("span", { text: sign + term.text })];
    const remove = make("button", {
      type: "button", text: "×", "aria-label": `Remove ${name} from the query`,
      onclick: () => {
        const terms = state.terms.filter((_, j) => j !== i);
        go({ terms: terms.some((t) => t.sign > 0) ? terms : [], open: null });
        $("words").focus();
      },
    });
    return make("li", { class: term.sign < 0 ? "minus" : "" }, ...seen, remove);
  }));
  $("words").placeholder = state.terms.length ? "Add words" : "Describe an image";
}

function addWords(text) {
  const sign = /^[-−]\s*\S/.test(text) && state.terms.length ? -1 : 1;
  const words = text.replace(/^[-−+]\s*/, "").trim();
  if (words) go({ terms: [...state.terms, { text: words, sign }], min: null, view: "images", open: null });
}

function addImage(image, sign) {
  const terms = state.terms.filter((term) => term.id !== image.id);
  if (sign < 0 && !terms.some((term) => term.sign > 0)) {
    say("To take an image away, there must be something to take it from: search first");
    return;
  }
  go({ terms: [...terms, { id: image.id, sign }], min: null, view: "images", open: null });
}

const moreLike = (image) => go({ terms: [{ id: image.id, sign: 1 }], min: null, view: "images", open: null });

async function searchByFile(file) {
  if (!file) return;
  if (about.max_upload && file.size > about.max_upload) {
    say(`${file.name} is larger than ${Math.round(about.max_upload / 1e6)} MB`);
    return;
  }
  say("Sending the image");
  try {
    const { id } = await (await ask("/api/upload", file, file.type || "application/octet-stream")).json();
    await go({ terms: [{ id, sign: 1 }], min: null, view: "images", open: null });
  } catch (error) {
    say(`${file.name}: ${error.message}`);
  }
}

// The images

function request(offset) {
  const asked = { offset, limit: PAGE };
  if (state.terms.length) {
    asked.terms = state.terms;
    if (state.min !== null) asked.min_score = state.min;
  }
  if (state.labels.length) asked.facet = { ...facet(), label: state.chosen };
  return asked;
}

const facet = () => ({ labels: state.labels, nothing: state.nothing, threshold: state.threshold });

async function load(fresh, again = false) {
  const mine = ++current;
  if (fresh) {
    say(state.terms.length ? "Searching" : "Loading");
    place = 0;
  }
  $("grid").setAttribute("aria-busy", "true");
  try {
    const found = await post("/api/find", request(fresh ? 0 : images.length));
    if (mine !== current) return;
    version = found.version;
    $("refresh").hidden = true;
    const first = fresh ? 0 : images.length;
    images = fresh ? found.images : [...images, ...found.images];
    more = found.more;
    const held = again && document.activeElement?.closest?.("#grid > li")?.dataset.key;
    if (fresh) $("grid").replaceChildren();
    $("grid").append(...found.images.map((image, i) => card(image, first + i)));
    $("more").hidden = !more;
    roving();
    if (held) focus(Math.max(0, images.findIndex((image) => image.key === held)));
    tell(found);
    if (fresh) setScores(found.images);
  } finally {
    if (mine === current) $("grid").removeAttribute("aria-busy");
  }
}

function tell(found) {
  const shown = images.length;
  const none = !shown;
  $("empty").hidden = !none;
  $("hint").hidden = none || state.terms.length > 0 || state.labels.length > 0;
  $("describe-all").hidden = none || "caption" in about.cannot;
  $("select-all").hidden = none;
  if (none) {
    if (state.chosen !== null) empty("No image has this label", "Choose another one, or lower the minimum certainty.");
    else if (state.terms.length && state.min !== null) empty("No image scores so high", "Lower the minimum score, or search for something else.");
    else empty("No images yet", `${about.message || "The served folders have none"}. Images that are put there are shown within seconds.`);
    say("No images");
  } else if (state.terms.length && state.min !== null) {
    say(`${count(shown, "image")}${more ? " and more" : ""} with a score of at least ${number(state.min)}`);
  } else if (state.terms.length) {
    say(more ? `The best ${shown.toLocaleString("en")} of ${count(found.total, "image")}` : `${count(shown, "image")}, the best first`);
  } else {
    say(shown < found.total ? `${shown.toLocaleString("en")} of ${count(found.total, "image")}` : count(found.total, "image"));
  }
}

/** The range of the slider: from the worst to the best score that is shown. */
function setScores(found) {
  const scores = found.map((image) => image.score).filter((x) => x !== undefined);
  const slider = $("min-score");
  if (state.min === null) {
    if (!scores.length) return;
    slider.max = Math.max(...scores).toFixed(3);
    slider.min = (Math.min(...scores) - 0.1).toFixed(3);
    slider.value = slider.min;
    $("min-score-out").textContent = "none";
  } else {
    slider.min = Math.min(parseFloat(slider.min) || 0, state.min);
    slider.max = Math.max(slider.max, state.min, ...scores);
    slider.value = state.min;
    $("min-score-out").textContent = number(state.min);
  }
}

function card(image, i) {
  const { score, label } = image;
  const box = make("input", {
    type: "checkbox", tabindex: "-1", "aria-label": `Select ${image.name}`,
    onchange: (event) => choose(image, event.target.checked),
  });
  box.checked = selected.has(image.key);
  const button = make(
    "button",
    { class: "card", tabindex: "-1", "data-i": i, onclick: () => { focus(i, false); go({ open: image.key }); } },
    make("img", { src: thumb(image.id, narrow()), alt: image.caption || "", loading: "lazy", decoding: "async", width: "320", height: "320" }),
    make(
      "span", { class: "text" },
      make("span", { class: "name", text: image.name, title: image.name }),
      label !== undefined && state.chosen === null ? make("span", { class: "tag", text: image.label_score >= state.threshold ? label : "none" }) : null,
      score !== undefined ? make("span", { class: "score", text: number(score) }) : null,
    ),
    image.caption ? make("span", { class: "said", text: image.caption, "aria-hidden": "true" }) : null,
  );
  const item = make("li", { "data-id": image.id, "data-key": image.key }, button, make("label", { class: "tick" }, box));
  item.classList.toggle("selected", selected.has(image.key));
  return item;
}

const cards = () => [...$("grid").querySelectorAll(".card")];
const at = (i) => $("grid").querySelector(`.card[data-i="${i}"]`);

function roving() {
  place = Math.min(place, Math.max(0, images.length - 1));
  for (const one of cards()) one.tabIndex = Number(one.dataset.i) === place ? 0 : -1;
}

function focus(i, move = true) {
  place = Math.max(0, Math.min(i, images.length - 1));
  roving();
  const one = at(place);
  if (one && move) {
    one.focus();
    one.scrollIntoView({ block: "nearest" });
  }
}

function columns() {
  const all = cards();
  if (!all.length) return 1;
  const top = all[0].parentElement.offsetTop;
  const n = all.findIndex((one) => one.parentElement.offsetTop !== top);
  return n < 1 ? all.length : n;
}

function describeCard(id, caption) {
  for (const image of images) if (image.id === id) image.caption = caption;
  for (const item of $("grid").querySelectorAll(`li[data-id="${CSS.escape(id)}"]`)) {
    const button = item.querySelector(".card");
    button.querySelector("img").alt = caption;
    button.querySelector(".said")?.remove();
    button.append(make("span", { class: "said", text: caption, "aria-hidden": "true" }));
  }
}

// Selection and export

function choose(image, on = !selected.has(image.key)) {
  if (on) selected.set(image.key, image);
  else selected.delete(image.key);
  const item = $("grid").querySelector(`li[data-key="${CSS.escape(image.key)}"]`);
  if (item) {
    item.classList.toggle("selected", on);
    item.querySelector("input").checked = on;
  }
  showSelection();
}

function showSelection() {
  $("selection").hidden = !selected.size;
  document.body.classList.toggle("selecting", selected.size > 0);
  $("selected-count").textContent = `${count(selected.size, "image")} selected`;
  if (opened) $("select").setAttribute("aria-pressed", String(selected.has(opened.key)));
}

async function save(format) {
  try {
    const asked = { keys: [...selected.keys()], format };
    if (state.terms.length) asked.terms = state.terms;
    const response = await ask("/api/export", JSON.stringify(asked));
    const name = /filename="([\w.]+)"/.exec(response.headers.get("content-disposition"))[1];
    const link = make("a", { href: URL.createObjectURL(await response.blob()), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(`${count(selected.size, "image")} in ${name}`);
  } catch (error) {
    say(error.message);
  }
}

// Labels

function openLabels(open) {
  $("labels").hidden = !open;
  $("show-labels").setAttribute("aria-expanded", String(open));
}

async function showFacets() {
  const found = await post("/api/facets", facet());
  const total = found.none + found.labels.reduce((sum, one) => sum + one.count, 0);
  const rows = [["All images", total, null], ...found.labels.map((one) => [one.label, one.count, one.label]), ["None of these", found.none, -1]];
  const focused = document.activeElement?.dataset?.label;
  $("facets").replaceChildren(...rows.map(([name, n, chosen]) => make(
    "li", {},
    make("button", {
      "aria-pressed": String(state.chosen === chosen), "data-label": String(chosen),
      onclick: () => go({ chosen, view: "images", open: null }),
    }, make("span", { text: name }), make("span", { text: n.toLocaleString("en") })),
  )));
  if (focused !== undefined) $("facets").querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
}

// Duplicates and failures

async function showDuplicates() {
  const mine = ++current;
  say("Comparing the images");
  const response = await ask(`/api/duplicates?threshold=${state.alike}`);
  const found = await response.json();
  if (mine !== current) return;
  images = found.groups.flat();
  more = false;
  place = 0;
  $("more").hidden = true;
  $("select-all").hidden = !images.length;
  $("describe-all").hidden = true;
  let i = 0;
  $("grid").replaceChildren(...found.groups.flatMap((group) => {
    const same = new Set(group.map((image) => image.id)).size === 1;
    const title = `${count(group.length, "image")} ${same ? "with the same content" : "that look alike"}`;
    return [make("li", { class: "group", text: title }), ...group.map((image) => card(image, i++))];
  }));
  roving();
  const exact = found.exact_only ? " with the same content; there are too many images to compare each with each" : "";
  say(found.total ? `${count(found.total, "group")} of duplicates${exact}` : "No duplicates");
  $("empty").hidden = found.total > 0;
  empty("No duplicates", "No two images are so alike. A lower cosine finds more.");
}

async function showFailures() {
  const mine = ++current;
  const { failures } = await (await ask("/api/failures")).json();
  if (mine !== current) return;
  images = [];
  more = false;
  $("more").hidden = true;
  $("select-all").hidden = true;
  $("describe-all").hidden = true;
  $("grid").replaceChildren(...failures.map((one) => make(
    "li", { class: "failure" }, make("strong", { text: one.name }), make("span", { text: one.reason }),
  )));
  say(failures.length ? `${count(failures.length, "file")} could not be read` : "All files could be read");
  $("empty").hidden = failures.length > 0;
  empty("All files could be read", "Files that cannot be are listed here, with the reason.");
}

// Captions

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const blocks = waiting.split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block);
      const data = /^data: (.*)$/m.exec(block);
      if (name && data) yield [name[1], JSON.parse(data[1])];
    }
  }
}

/** The caption of an image; `write` gets the text so far. */
async function caption(id, options, write) {
  const response = await fetch("/v1/caption", {
    method: "POST", body: JSON.stringify({ id, ...options }),
    headers: { "content-type": "application/json", accept: "text/event-stream" },
  });
  if (!response.ok) throw new Error(await reason(response));
  let text = "";
  for await (const [name, value] of events(response)) {
    if (name === "word") write((text += value.text));
    else if (name === "error") throw new Error(value.message);
    else if (name === "row") {
      if (!Object.keys(options).length) describeCard(id, value.caption);
      return value;
    }
  }
  throw new Error("the caption was not finished");
}

async function describe(image) {
  const mine = image.id;
  const own = $("captioner").selectedIndex <= 0;
  const options = own || !$("large").open ? {} : { method: $("captioner").value };
  const write = (text) => {
    if (opened?.id === mine) $("caption").textContent = text;
    const shown = $("grid").querySelector(`li[data-id="${CSS.escape(mine)}"] .card`);
    if (shown && !opened) {
      let said = shown.querySelector(".said");
      if (!said) shown.append(said = make("span", { class: "said", "aria-hidden": "true" }));
      said.textContent = text;
    }
  };
  $("caption").classList.add("writing");
  try {
    const row = await caption(mine, options, write);
    write(row.caption);
    say(`Caption: ${row.caption}`);
    if (opened?.id === mine) {
      $("large-image").alt = row.caption;
      answer("caption-box", make("p", { class: "soft", text: `By ${row.method}, cosine ${number(row.score)}` }));
    }
  } catch (error) {
    say(error.message);
    if (opened?.id === mine) answerError("caption-box", error);
  } finally {
    $("caption").classList.remove("writing");
  }
}

async function describeAll() {
  const waiting = images.filter((image) => !image.caption);
  let done = 0;
  $("describe-all").disabled = true;
  $("grid").classList.add("described"); // room for the captions, so that nothing jumps
  const one = async () => {
    for (let image = waiting.shift(); image; image = waiting.shift()) {
      await caption(image.id, {}, () => {});
      say(`${++done} of ${count(done + waiting.length, "image")} described`);
    }
  };
  try {
    await Promise.all(Array.from({ length: 8 }, one));
  } catch (error) {
    say(error.message);
  } finally {
    $("describe-all").disabled = false;
  }
}

// The large view

const index = () => images.findIndex((image) => image.key === opened?.key);

async function openLarge(key) {
  if (opened?.key === key && $("large").open) return;
  const known = images.find((image) => image.key === key);
  opened = known || await (await ask(`/api/image?key=${encodeURIComponent(key)}`)).json();
  $("large-name").textContent = opened.name;
  const facts = [];
  $("large-path").textContent = opened.path || "";
  if (opened.score !== undefined) facts.push(`score ${number(opened.score)}`);
  if (opened.label !== undefined) facts.push(`${opened.label} ${number(opened.label_score, 2)}`);
  if (known) facts.push(`${index() + 1} of ${images.length}${more ? "+" : ""}`);
  $("large-facts").textContent = facts.join(" · ");
  $("large-image").src = thumb(opened.id, 1600);
  $("large-image").alt = opened.caption || opened.name;
  $("caption").textContent = opened.caption || "";
  $("why-box").hidden = "explain" in about.cannot || !(state.terms.length === 1 && state.terms[0].text);
  $("previous").disabled = index() < 1;
  $("next").disabled = index() < 0 || (index() === images.length - 1 && !more);
  clearDrawing();
  $("answer").replaceChildren();
  showSelection();
  if (!$("large").open) $("large").showModal();
}

async function step(by) {
  const to = index() + by;
  if (to >= images.length && more) await load(false);
  if (to < 0 || to >= images.length) return;
  focus(to, false);
  go({ open: images[to].key }, true);
}

function closeLarge() {
  opened = null;
  clearDrawing();
  if (state.open) go({ open: null });
  focus(place);
}

/** The answer stands below what was asked. */
function answer(box, ...inside) {
  if ($("answer").parentElement !== $(box)) $(box).append($("answer"));
  $("answer").replaceChildren(...there(inside));
  $("answer").firstElementChild.scrollIntoView({ block: "nearest" });
}

function answerError(box, error) {
  answer(box, make("p", { class: "bad", text: error.message }));
}

function clearDrawing() {
  $("boxes").replaceChildren();
  $("masks").hidden = true;
}

/** Lay the drawings over the image, which the browser has made smaller. */
function placeDrawings() {
  const image = $("large-image");
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  if (!Number.isFinite(scale)) return;
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  for (const layer of [$("boxes"), $("masks")]) {
    layer.style.width = `${width}px`;
    layer.style.height = `${height}px`;
    layer.style.left = `${(image.clientWidth - width) / 2}px`;
    layer.style.top = `${(image.clientHeight - height) / 2}px`;
  }
}

const svg = (tag, given, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
};

function drawBoxes(row, boxes, labels) {
  clearDrawing();
  placeDrawings();
  const unit = Math.max(row.width, row.height) / 100;
  const size = 2.6 * unit;
  const high = 1.35 * size;
  const named = [];
  $("boxes").setAttribute("viewBox", `0 0 ${row.width} ${row.height}`);
  for (const { label, score, box: [left, top, right, bottom] } of boxes) {
    const colour = COLOURS[labels.indexOf(label) % COLOURS.length] || COLOURS[0];
    const name = `${label} ${score.toFixed(2)}`;
    const wide = (name.length * 0.56 + 0.6) * size;
    $("boxes").append(svg("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: colour, "stroke-width": 0.5 * unit, rx: 0.4 * unit }));
    const at = Math.max(0, Math.min(left, row.width - wide));
    const apart = (y) => named.every(([x0, y0, w0]) => at >= x0 + w0 || at + wide <= x0 || Math.abs(y - y0) >= high);
    const free = [top - high, bottom, top, bottom - high].find((y) => y >= 0 && y + high <= row.height && apart(y));
    if (free !== undefined) named.push([at, free, wide, name, colour]);
  }
  for (const [left, top, wide, name, colour] of named) {
    $("boxes").append(
      svg("rect", { x: left, y: top, width: wide, height: high, fill: colour, rx: 0.3 * unit }),
      svg("text", { x: left + 0.3 * size, y: top + size, fill: "#000", "font-size": size, "font-family": "system-ui, sans-serif" }, name),
    );
  }
}

/** The boxes above a score that can be moved; at first not more than a few. */
function showBoxes(row, labels) {
  if (!row.boxes.length) {
    clearDrawing();
    return answer("find-box", make("p", { text: "Nothing of these was found" }));
  }
  const scores = row.boxes.map((one) => one.score).sort((a, b) => b - a);
  const least = Math.min(...scores);
  const slider = make("input", { type: "range", id: "box-score", min: Math.floor(least * 100) / 100, max: 1, step: 0.01, value: Math.floor((scores[BOXES - 1] ?? least) * 100) / 100 });
  const told = make("p");
  const rows = make("div", { class: "facts" });
  const draw = () => {
    const boxes = row.boxes.filter((one) => one.score >= Number(slider.value));
    told.textContent = boxes.length < row.boxes.length ? `${boxes.length} of ${count(row.boxes.length, "box", "boxes")}` : count(boxes.length, "box", "boxes");
    drawBoxes(row, boxes, labels);
    rows.replaceChildren(...facts(boxes.map((one) => [one.label, one.score.toFixed(2), one.score, COLOURS[labels.indexOf(one.label) % COLOURS.length]])));
  };
  slider.addEventListener("input", draw);
  const choice = row.boxes.length > 1 ? make("div", { class: "row" }, make("label", { for: "box-score", text: "Minimum score" }), slider) : null;
  draw();
  answer("find-box", told, choice, rows);
}

/** COCO's run lengths: columns, off and on in turn, each length told by its change. */
function runs(text) {
  const lengths = [];
  for (let i = 0; i < text.length;) {
    let value = 0;
    let shift = 0;
    let byte;
    do {
      byte = text.charCodeAt(i++) - 48;
      value |= (byte & 31) << shift;
      shift += 5;
    } while (byte & 32);
    if (byte & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}

function drawMasks(row, labels) {
  clearDrawing();
  const canvas = $("masks");
  canvas.width = row.width;
  canvas.height = row.height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(row.width, row.height);
  for (const region of row.regions) {
    const colour = COLOURS[labels.indexOf(region.label) % COLOURS.length];
    const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    let position = 0;
    let on = false;
    for (const length of runs(region.rle.counts)) {
      if (on) {
        for (let p = position; p < position + length; p++) {
          const i = 4 * ((p % row.height) * row.width + Math.floor(p / row.height));
          pixels.data.set([red, green, blue, 140], i);
        }
      }
      position += length;
      on = !on;
    }
  }
  context.putImageData(pixels, 0, 0);
  canvas.hidden = false;
  placeDrawings();
}

function facts(rows) {
  return rows.map(([name, value, share, colour]) => {
    const swatch = colour ? make("i", { class: "swatch" }) : null;
    if (swatch) swatch.style.background = colour;
    const bar = make("i");
    bar.style.width = `${Math.round(100 * Math.max(0, Math.min(1, share)))}%`;
    return make("div", { class: "fact" }, make("span", {}, swatch, name), make("b", { text: value }), make("div", { class: "meter" }, bar));
  });
}

async function find(what) {
  const labels = listed($("things").value);
  if (!labels.length) {
    $("things").focus();
    return answerError("find-box", new Error("Write what to look for, with commas"));
  }
  const image = opened;
  answer("find-box", make("p", { text: "Looking" }));
  try {
    const row = await post(`/v1/${what}`, { id: image.id, labels });
    if (opened?.id !== image.id) return;
    if (what === "detect") {
      showBoxes(row, labels);
    } else if (what === "segment") {
      drawMasks(row, labels);
      const rows = row.regions.map((one) => [one.label, `${Math.round(100 * one.share)} %`, one.share, COLOURS[labels.indexOf(one.label) % COLOURS.length]]);
      answer("find-box", make("p", { text: "Share of the image" }), ...facts(rows));
    } else {
      clearDrawing();
      answer("find-box", make("p", { text: "How well each fits, of 1" }), ...facts(row.labels.map((one) => [one.label, one.score.toFixed(2), one.score])));
    }
  } catch (error) {
    answerError("find-box", error);
  }
}

async function question() {
  const text = $("question").value.trim();
  if (!text) return $("question").focus();
  const image = opened;
  answer("ask-box", make("p", { text: "Thinking" }));
  try {
    const row = await post("/v1/ask", { id: image.id, question: [text], top_k: 3 });
    if (opened?.id !== image.id) return;
    const [{ answers }] = row.questions;
    answer("ask-box", make("p", { text }), ...facts(answers.map((one) => [one.answer, one.score === null ? "" : one.score.toFixed(2), one.score ?? 1])));
  } catch (error) {
    answerError("ask-box", error);
  }
}

async function why() {
  const image = opened;
  const place = index();
  answer("why-box", make("p", { text: "Looking for the reasons" }));
  try {
    const asked = { query: state.terms[0].text, top_k: place + 1, explain: 6 };
    const { data } = await post("/v1/search", asked);
    const row = data.find((one) => one.id === image.id);
    if (opened?.id !== image.id || !row?.because) throw new Error("The hits have changed; search again");
    answer(
      "why-box",
      make("p", { text: "The pairs of image and text that say so, with their shares of the score" }),
      ...row.because.map((one) => {
        const picture = one.path ? make("img", { src: `/anchor?id=${encodeURIComponent(one.anchor)}&w=96`, alt: "" }) : null;
        return make("div", { class: "anchor" }, picture, make("b", { text: number(one.share) }), make("span", { text: one.captions.join("; ") || one.anchor }));
      }),
    );
  } catch (error) {
    answerError("why-box", error);
  }
}

/** A token as a reader knows it. */
const word = (text) => (/^<.*end.*>$/.test(text) ? "(end)" : /^<.*>$/.test(text) ? "(start)" : text.trim() || "(space)");

async function trace() {
  const image = opened;
  answer("caption-box", make("p", { text: "Writing, and noting every choice" }));
  try {
    const row = await post("/v1/caption", { id: image.id, method: "magic", trace: true });
    if (opened?.id !== image.id) return;
    const cell = (value) => make("td", { text: typeof value === "number" ? number(value, 2) : value });
    const steps = row.trace.map((one, i) => {
      const [best] = one.candidates;
      const rows = one.candidates.slice(0, 5).map((c) => make(
        "tr", {}, cell(word(c.text)), cell(c.probability), cell(c.penalty), cell(c.guide), cell(c.total),
      ));
      const head = make("tr", {}, ...["word", "likely", "repeats", "fits", "total"].map((text) => make("th", { scope: "col", text })));
      return make(
        "details", i ? {} : { open: true },
        make("summary", {}, make("strong", { text: word(best.text) }), ` fits ${number(best.guide, 2)}, likely ${number(best.probability, 2)}`),
        make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)),
      );
    });
    answer("caption-box", make("p", { text: `“${row.caption}”: why each word was chosen` }), ...steps);
  } catch (error) {
    answerError("caption-box", error);
  }
}

// Keys

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input:not([type=checkbox]):not([type=range]), textarea, select");
  const large = $("large").open;
  if (typing || $("help").open) return;
  const image = large ? opened : event.target.closest(".card") ? images[place] : null;
  const actions = {
    "/": () => { if (large) $("large").close(); $("words").focus(); },
    "?": openHelp,
    l: () => { if (!large) { openLabels($("labels").hidden); if (!$("labels").hidden) $("label-words").focus(); } },
    a: () => { if (!large) images.forEach((one) => choose(one, true)); },
    s: () => image && moreLike(image),
    "+": () => image && addImage(image, 1),
    "-": () => image && addImage(image, -1),
    c: () => image && !("caption" in about.cannot) && describe(image),
    x: () => image && choose(image),
  };
  const inGrid = !large && event.target.closest(".card");
  if (large) Object.assign(actions, { ArrowLeft: () => step(-1), ArrowRight: () => step(1) });
  else if (inGrid) {
    Object.assign(actions, {
      ArrowLeft: () => focus(place - 1), ArrowRight: () => moveTo(place + 1),
      ArrowUp: () => focus(place - columns() < 0 ? place : place - columns()),
      ArrowDown: () => moveTo(place + columns()),
      Home: () => focus(0), End: () => focus(images.length - 1),
    });
  }
  if (event.target.closest("input[type=range]") && event.key.startsWith("Arrow")) return;
  const action = actions[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
}

async function moveTo(to) {
  if (to >= images.length && more) await load(false);
  focus(to);
}

function openHelp() {
  $("keys").replaceChildren(...KEYS.flatMap(([key, does]) => [make("dt", { text: key }), make("dd", { text: does })]));
  const models = Object.values(about.names || {}).join(", ");
  $("about").textContent = `Model set ${about.models}: ${models}. Scores are cosines: they rank the images of one query.`;
  $("help").showModal();
}

// Progress of the index

let progress = null;

/** A browser opens six connections to a host at a time: pages that nobody sees give theirs back. */
function watchWhileSeen() {
  if (document.hidden) progress?.close();
  else watch();
}

function watch() {
  progress?.close();
  const source = progress = new EventSource("/api/progress");
  source.addEventListener("progress", (event) => {
    const now = JSON.parse(event.data);
    const bar = $("progress");
    bar.hidden = now.phase !== "indexing" || !now.total;
    bar.max = Math.max(1, now.total);
    bar.value = now.done;
    about.message = now.message;
    $("show-failures").hidden = !now.failed && state.view !== "failures";
    $("show-failures").textContent = now.failed ? `Failures ${now.failed.toLocaleString("en")}` : "Failures";
    if (!bar.hidden) {
      say(`Indexing ${now.done.toLocaleString("en")} of ${count(now.total, "image")}${now.rate ? `, ${Math.round(now.rate)} a second` : ""}`);
    }
    if (now.version !== version && state.view === "images") {
      const untouched = !images.length || (window.scrollY < 50 && !$("large").open && !$("grid").contains(document.activeElement));
      if (untouched && images.length <= PAGE) show(true);
      else $("refresh").hidden = false;
    }
  });
}

// Start

function listen() {
  const on = (id, name, act) => $(id).addEventListener(name, act);
  on("search", "submit", (event) => {
    event.preventDefault();
    addWords($("words").value.trim());
  });
  on("words", "keydown", (event) => {
    const last = state.terms.at(-1);
    if (event.key === "Backspace" && !event.target.value && last) {
      event.preventDefault();
      const terms = state.terms.slice(0, -1);
      go({ terms: terms.some((t) => t.sign > 0) ? terms : [], open: null });
    } else if (event.key === "ArrowDown" && images.length) {
      event.preventDefault();
      focus(place);
    }
  });
  on("file", "change", (event) => {
    searchByFile(event.target.files[0]);
    event.target.value = "";
  });
  on("show-images", "click", () => go({ view: "images", open: null }));
  on("show-duplicates", "click", () => go({ view: "duplicates", open: null }));
  on("show-failures", "click", () => go({ view: "failures", open: null }));
  on("show-labels", "click", () => {
    openLabels($("labels").hidden);
    if (!$("labels").hidden) $("label-words").focus();
  });
  on("show-help", "click", openHelp);
  on("close-help", "click", () => $("help").close());
  on("label-form", "submit", (event) => {
    event.preventDefault();
    const nothing = $("nothing").value.trim() || about.nothing;
    go({ labels: listed($("label-words").value), nothing, threshold: parseFloat($("label-threshold").value), chosen: null, view: "images", open: null });
  });
  on("label-threshold", "input", () => { $("label-threshold-out").textContent = Number($("label-threshold").value).toFixed(2); });
  on("label-threshold", "change", () => state.labels.length && go({ threshold: parseFloat($("label-threshold").value) }, true));
  on("min-score", "input", () => { $("min-score-out").textContent = number(parseFloat($("min-score").value)); });
  on("min-score", "change", () => go({ min: parseFloat($("min-score").value) }, true));
  on("alike", "input", () => { $("alike-out").textContent = Number($("alike").value).toFixed(3); });
  on("alike", "change", () => go({ alike: parseFloat($("alike").value) }, true));
  on("refresh", "click", () => show(true));
  on("describe-all", "click", describeAll);
  on("select-all", "click", () => images.forEach((one) => choose(one, true)));
  on("select-none", "click", () => [...selected.values()].forEach((one) => choose(one, false)));
  for (const button of document.querySelectorAll("[data-export]")) {
    button.addEventListener("click", () => save(button.dataset.export));
  }
  on("more", "click", () => load(false).catch(fail));
  on("large", "close", closeLarge);
  on("close-large", "click", () => $("large").close());
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("similar", "click", () => moreLike(opened));
  on("add", "click", () => addImage(opened, 1));
  on("take", "click", () => addImage(opened, -1));
  on("select", "click", () => choose(opened));
  on("describe", "click", () => describe(opened));
  on("trace", "click", trace);
  on("detect", "click", () => find("detect"));
  on("segment", "click", () => find("segment"));
  on("classify", "click", () => find("classify"));
  on("ask-form", "submit", (event) => {
    event.preventDefault();
    question();
  });
  on("why", "click", why);
  document.addEventListener("keydown", onKey);
  window.addEventListener("popstate", () => { fromAddress(); show(); });
  window.addEventListener("resize", placeDrawings);
  on("large-image", "load", placeDrawings);
  new IntersectionObserver((entries) => {
    if (entries[0].isIntersecting && more && images.length && !$("grid").hasAttribute("aria-busy")) load(false).catch(fail);
  }, { rootMargin: "600px" }).observe($("below"));
  const files = (event) => [...(event.dataTransfer || event.clipboardData).items].find((item) => item.kind === "file");
  document.addEventListener("dragover", (event) => {
    if (files(event)) {
      event.preventDefault();
      $("drop").hidden = false;
    }
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    $("drop").hidden = true;
    const item = files(event);
    if (!item) return;
    event.preventDefault();
    searchByFile(item.getAsFile());
  });
  document.addEventListener("paste", (event) => {
    const item = files(event);
    if (item) searchByFile(item.getAsFile());
  });
}

async function start() {
  listen();
  try {
    about = await (await ask("/api/state")).json();
  } catch (error) {
    return fail(error);
  }
  document.title = `zeroshot: ${about.folders.map((folder) => folder.split("/").filter(Boolean).at(-1)).join(", ")}`;
  const names = Object.keys(about.captioners);
  $("captioner").replaceChildren(...names.map((name, i) => make("option", { value: name, text: i ? name : `${name} (own)` })));
  $("captioner").hidden = names.length < 2;
  for (const id of ["describe", "trace"]) $(id).hidden = "caption" in about.cannot;
  $("detect").hidden = "detect" in about.cannot;
  $("segment").hidden = "segment" in about.cannot;
  fromAddress();
  $("words").focus();
  await show();
  watchWhileSeen();
  document.addEventListener("visibilitychange", watchWhileSeen);
}

start();
