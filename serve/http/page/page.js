"use strict";
// The page of the service: asks POST v1/identify (or v1/identify:batch for several FASTA records) and shows the answer.
const MOST_RECORDS = 64; // of a pasted FASTA; beyond that python -m serve.bulk is the tool
const ITALIC = new Set(["genus", "species"]);
const MANY = { order: "orders", family: "families", genus: "genera", species: "species" };
const LETTERS = { A: [92, 184, 92], C: [66, 133, 210], G: [60, 60, 60], T: [214, 84, 74], N: [200, 200, 192] };
const $ = (id) => document.getElementById(id);
const photos = []; // {file, url}
let asking = null; // AbortController of the request under way
let asked = null; // the last question, asked again when the threshold changes

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

function percent(share, digits = 1) {
  if (share === null || share === undefined) return "–";
  const least = 10 ** -digits;
  if (share > 0 && 100 * share < least) return `<${least}%`;
  if (share < 1 && 100 * share > 100 - least) return `>${(100 - least).toFixed(digits)}%`;
  return `${(100 * share).toFixed(digits).replace(/\.0+$/, "")}%`;
}

const taxon = (name, rank) => el("span", { class: ITALIC.has(rank) ? "taxon" : null }, name);
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}`;
const say = (text) => { $("status").textContent = text; };
const clearErrors = () => ["photos", "dna", "subset", "form"].forEach((field) => fail(field, ""));
const dropPhotos = (first = 0, count = photos.length) => photos.splice(first, count).forEach(({ url }) => URL.revokeObjectURL(url));

function fail(field, text) {
  $(`${field}-error`).textContent = text;
  $(field)?.setAttribute("aria-invalid", String(Boolean(text)));
}

async function take(files) {
  clearErrors();
  for (const file of files) {
    const isText = /\.(fa|fas|fasta|fna|txt|seq)$/i.test(file.name) || file.type.startsWith("text/");
    if (file.type.startsWith("image/")) photos.push({ file, url: URL.createObjectURL(file) });
    else if (isText && file.size > 1e6) fail("dna", `${file.name} is too long for this page: python -m serve.bulk takes it.`);
    else if (isText) $("dna").value = await file.text();
    else fail("photos", `${file.name} is no photo and no FASTA. Use JPEG, PNG, TIFF, WebP, BMP, or a text file.`);
  }
  showPhotos();
  showBarcode();
}

function showPhotos() {
  $("thumbs").replaceChildren(...photos.map(({ file, url }, place) => {
    const image = el("img", { src: url, alt: file.name });
    image.addEventListener("error", () => image.replaceWith(el("span", { class: "no-preview" }, file.name)));
    const remove = () => { dropPhotos(place, 1); showPhotos(); $("photos").focus(); };
    return el("li", {}, image, el("button", { type: "button", "aria-label": `Remove ${file.name}`, onclick: remove }, "×"));
  }));
}

function records(text) {
  if (!text.trim().startsWith(">")) return text.trim() ? [{ key: "barcode", dna: text.trim() }] : [];
  return text.trim().slice(1).split(/\n\s*>/).map((part, number) => {
    const [header, ...lines] = part.split("\n");
    return { key: header.trim() || `record ${number + 1}`, dna: lines.join("").trim() };
  });
}

function showBarcode() {
  const found = records($("dna").value);
  const letters = found.length ? found[0].dna.toUpperCase().replace(/[^A-Z]/g, "").slice(0, 1500) : "";
  const canvas = $("stripes");
  canvas.hidden = letters.length < 20;
  $("dna-help").textContent = found.length > 1 ? `${found.length} FASTA records: each is named on its own.`
    : letters ? `${letters.length} letters` : $("dna-help").dataset.told;
  if (canvas.hidden) return;
  canvas.width = letters.length;
  const pixels = new ImageData(letters.length, 1);
  [...letters].forEach((letter, place) => pixels.data.set([...(LETTERS[letter] || LETTERS.N), 255], 4 * place));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

async function post(path, body, headers = {}) {
  const token = $("token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { method: "POST", body, headers, signal: asking.signal });
  const value = await response.json().catch(() => ({}));
  if (response.ok) return value;
  const error = value.error || { what: `the service answered ${response.status}`, allowed: "" };
  throw Object.assign(new Error(error.what), { told: error, status: response.status, wait: response.headers.get("Retry-After") });
}

function send({ files, records }, options) {
  const body = { queries: records, ...options };
  if (records.length > 1) return post("v1/identify:batch", JSON.stringify(body), { "Content-Type": "application/json" });
  const form = new FormData();
  for (const file of files) form.append("image", file, file.name);
  for (const record of records) form.append("dna", record.dna);
  for (const [name, value] of Object.entries(options)) [value].flat().forEach((one) => form.append(name, one));
  return post("v1/identify", form);
}

async function ask(question) {
  asking?.abort();
  const mine = asking = new AbortController();
  const names = $("subset").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const options = { threshold: Number($("threshold").value), ...(names.length ? { subset: names } : {}) };
  clearErrors();
  busy(true);
  try {
    const value = await send(question, options);
    asked = question;
    $("empty").hidden = true;
    $("list").replaceChildren();
    if (value.answers) showList(value.answers);
    else showAnswer(value);
    $("answer-title").focus({ preventScroll: true });
    if (window.innerWidth < 832) $("answer").scrollIntoView({ block: "start" });
  } catch (error) {
    if (error.name !== "AbortError") explain(error, question);
  } finally {
    if (asking === mine) busy(false);
  }
}

function busy(yes) {
  $("answer").classList.toggle("busy", yes);
  $("answer").setAttribute("aria-busy", String(yes));
  $("identify").textContent = yes ? "Identifying…" : "Identify";
  if (yes) say("Identifying…");
}

function explain(error, question) {
  for (const place of ["list", "result"]) $(place).replaceChildren();
  $("empty").hidden = false;
  const told = error.told;
  if (!told) return fail("form", `The service cannot be reached (${error.message}). Is it running? Try again.`);
  const what = sentence(told.what.split(", allowed:")[0]);
  const mend = error.status === 503 ? `Try again${error.wait ? ` in ${error.wait} seconds` : ""}.`
    : told.allowed ? `Allowed: ${told.allowed}.` : "";
  const field = error.status !== 422 ? "form" : /^subset/i.test(what) ? "subset" : /^(dna|barcode)/i.test(what) ? "dna"
    : question.files.length ? "photos" : "form";
  if (field === "subset") document.querySelector(".options").open = true;
  fail(field, `${what}. ${mend}`.trim());
  if (error.status === 401) $("token-field").hidden = false;
  $(error.status === 401 ? "token" : field === "form" ? "identify" : field).focus();
}

function submit() {
  clearErrors();
  const found = records($("dna").value);
  if (!found.length && !photos.length) return fail("form", "Give a photo, a barcode, or both.");
  if (found.length > 1 && photos.length) return fail("dna", "Photos belong to one specimen: give one barcode with them.");
  if (found.length > MOST_RECORDS) {
    return fail("dna", `${found.length} records: this page names up to ${MOST_RECORDS} at a time. For more: python -m serve.bulk FILE.`);
  }
  return ask({ files: photos.map(({ file }) => file), records: found });
}

function table(titles, rows, attributes) {
  // titles: [text, class of its cells]; rows: [attributes, ...contents]. A column without any content is left out.
  const used = titles.map((_, place) => rows.some(([, ...cells]) => cells[place]));
  const line = (tag, cells, more) => cells.flatMap((content, place) => (used[place]
    ? [el(tag, { class: titles[place][1], ...more }, content || "")] : []));
  const body = rows.map(([more, ...cells]) => el("tr", more, line("td", cells)));
  const head = el("tr", {}, line("th", titles.map(([text]) => text), { scope: "col" }));
  return el("div", { class: "scroll" }, el("table", attributes, el("thead", {}, head), el("tbody", {}, body)));
}

function showList(answers) {
  const choose = (answer, row) => {
    for (const other of row.parentNode.rows) other.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    showAnswer(answer);
  };
  const rows = answers.map((answer) => {
    if (answer.error) return [{}, answer.key, "–", "", `${sentence(answer.error.what.split(", allowed:")[0])}.`];
    const { name, rank, probability } = answer.answer;
    const open = (event) => choose(answer, event.target.closest("tr"));
    const flags = notices(answer).filter((one) => !one.plain).map((one) => one.title).join(", ");
    return [{}, el("button", { type: "button", onclick: open }, answer.key),
      name ? [taxon(name, rank), el("small", {}, ` ${rank}`)] : "–", name ? percent(probability) : "", flags];
  });
  const titles = [["record", "wide"], ["answer", "wide"], ["sure", "number"], ["look at", "told"]];
  $("list").replaceChildren(el("h2", { id: "list-title" }, `${answers.length} records`),
    table(titles, rows, { "aria-labelledby": "list-title" }));
  const first = $("list").querySelector("button");
  if (first) first.click();
  else $("result").replaceChildren(el("h2", { id: "answer-title", tabindex: "-1" }, "No record could be named"));
  say(`${answers.length} records named`);
}

function showAnswer(answer) {
  const look = notices(answer).map(({ title, text, plain }) => el("li", { class: plain ? "plain" : null }, el("b", {}, `${title}. `), text));
  const list = look.length ? el("ul", { class: "notices", "aria-label": "To look at" }, look) : null;
  const parts = [verdict(answer), list, lineage(answer), share(answer), evidence(answer), about(answer)];
  $("result").replaceChildren(...parts.filter(Boolean));
  const { rank, name, probability } = answer.answer;
  say(name ? `Answer: ${rank} ${name}, ${percent(probability)} sure` : `No answer: ${answer.why}`);
}

function verdict(answer) {
  const { rank, name, probability } = answer.answer;
  const sure = answer.calibrated ? "sure" : "by its own, uncalibrated score";
  const why = answer.stopped === "deepest" ? `Every rank down to ${rank} reaches ${percent(answer.threshold)}.`
    : answer.stopped === "not_coi" ? `${sentence(answer.why)}.` : `Why it stops here: ${answer.why}.`;
  return el("div", { class: "verdict" },
    el("p", { class: "rank-told" }, name ? `${rank} · ${percent(probability)} ${sure}` : "no answer"),
    el("h2", { id: "answer-title", tabindex: "-1" }, name ? taxon(name, rank) : answer.stopped === "not_coi" ? "This is no COI barcode" : "No rank is sure enough"),
    el("p", { class: "why" }, why));
}

const unknownTaxon = ({ rank, within }) => (within ? `a new ${rank} of ${within}` : `of no known ${rank}`);

function notices(answer) {
  const found = [];
  const add = (title, text, plain = false) => found.push({ title, text, plain });
  if (answer.novelty.flagged) {
    const likely = answer.unknown.filter((one) => one.probability >= 0.01).reverse()
      .map((one) => `${percent(one.probability, 0)} ${unknownTaxon(one)}`);
    add("Perhaps a species that the model does not know", `${percent(answer.novelty.score, 0)} likely${likely.length ? ` (${likely.join(", ")})` : ""}: look at the nearest barcodes.`);
  }
  if (answer.disagreement?.flagged) add("Photo and barcode disagree", "They look like different specimens. Check for a mix-up or contamination.");
  if (answer.barcode && !answer.barcode.usable) add("Look at the barcode", `${sentence(answer.barcode.told.join("; "))}.`);
  else if (answer.barcode?.told.length) add("Barcode", `${sentence(answer.barcode.told.join("; "))}.`, true);
  for (const { rank, names, source } of answer.stopped === "not_coi" ? [] : answer.ties) {
    const told = names.length > 6 ? `${names.slice(0, 5).join(", ")} and ${names.length - 5} more` : names.join(", ");
    add(`Tie at ${rank}`, `${source === "library" ? "Equally near references" : "About as probable"}: ${told}.`, source === "model");
  }
  if (!answer.calibrated) add("Not calibrated", "The numbers are the model's own scores, no probabilities to take at their word.", true);
  const unknown = Object.entries(answer.restriction?.unknown ?? {})
    .map(([name, others]) => (others.length ? `${name} (perhaps ${others.join(", ")})` : name));
  if (unknown.length) add("Names that the model does not know", unknown.join("; "));
  return found;
}

function bar(probability, threshold) {
  const fill = el("span", { class: "fill" });
  fill.style.width = `${100 * (probability ?? 0)}%`;
  const tick = el("span", { class: "tick" });
  tick.style.left = `calc(${100 * threshold}% - 1px)`;
  return el("span", { class: "track", "aria-hidden": "true" }, fill, tick);
}

function lineage(answer) {
  const last = answer.ranks.findIndex((one) => one.rank === answer.answer.rank);
  const refused = answer.stopped === "not_coi";
  const rows = answer.ranks.flatMap((one, place) => {
    const others = one.taxa.filter((other) => other.name !== one.name && other.probability >= 0.001)
      .map((other) => ({ name: taxon(other.name, one.rank), probability: other.probability }));
    const unknown = answer.unknown.find((other) => other.rank === one.rank);
    if (unknown?.probability >= 0.001) others.push({ name: unknownTaxon(unknown), probability: unknown.probability });
    const more = el("details", {}, el("summary", {}, others.length > 1 ? `${others.length} other ${MANY[one.rank]}` : `another ${one.rank}`),
      el("ul", { class: "others" }, others.map((other) => el("li", {}, other.name, el("span", {}, percent(other.probability))))));
    const row = el("li", { class: place > last ? "below" : null }, el("span", { class: "rank" }, one.rank),
      el("span", { class: "name" }, one.name ? taxon(one.name, one.rank) : "none known"),
      bar(one.probability, answer.threshold), el("span", { class: "percent" }, percent(one.probability)), others.length ? more : null);
    const stop = refused ? "no answer" : place ? "the answer stops here" : "not even this is sure enough";
    return place === last + 1 ? [el("li", { class: "stop" }, stop), row] : [row];
  });
  return el("section", {}, el("h3", { id: "lineage-title" }, refused ? "What the model would say all the same" : "How sure at each rank"),
    el("ol", { class: "lineage", "aria-labelledby": "lineage-title" }, rows),
    el("p", { class: "legend" }, `The line in each bar: ${percent(answer.threshold)}, what a rank needs to be named.`));
}

function share(answer) {
  const kinds = [["photo", "photo", answer.share.image], ["dna", "barcode", answer.share.dna], ["library", "library", answer.share.library]]
    .filter(([, , value]) => value > 0);
  if (answer.asked_with !== "fused" && !answer.experts.length) return null;
  const parts = kinds.map(([name, , value]) => {
    const part = el("span", { class: name });
    part.style.flexGrow = value;
    return part;
  });
  const says = (told) => answer.experts.find((one) => one.expert === told)?.species;
  const key = kinds.map(([name, told, value]) => el("span", {}, el("span", { class: `dot ${name}` }),
    `${told} ${percent(value, 0)}`, says(told) ? [": ", taxon(says(told), "species")] : null));
  const silent = answer.experts.filter((one) => !one.weight).map((one) => one.expert);
  const rest = silent.length ? el("p", { class: "legend" }, `Not counted: ${silent.join(", ")}.`) : null;
  return el("section", {}, el("h3", {}, "What the answer rests on"),
    el("div", { class: "share", "aria-hidden": "true" }, parts), el("p", { class: "share-key" }, key), rest);
}

function evidence(answer) {
  if (!answer.evidence.length) return null;
  const away = { rel: "noreferrer", target: "_blank" };
  const bin = (id) => (id?.startsWith("BOLD:") ? el("a", { href: `https://portal.boldsystems.org/bin/${id}`, ...away }, id) : id);
  const rows = answer.evidence.map((one) => [{},
    [one.name ? taxon(one.name, one.rank) : "unnamed", el("small", {}, one.key)], percent(one.identity, 2),
    `${one.overlap} nt`, bin(one.bin), one.country, one.specimens > 1 ? one.specimens : null]);
  const titles = [["reference", "wide"], ["identity", "number identity"], ["overlap", "number overlap"], ["BIN", "bin"],
    ["country", "country"], ["specimens", "number same"]];
  return el("section", {}, el("h3", { id: "evidence-title" }, "Nearest known barcodes"),
    table(titles, rows, { class: "evidence", "aria-labelledby": "evidence-title" }));
}

function about(answer) {
  const { library, ...card } = answer.model;
  const barcode = answer.barcode;
  const entries = [["model", `${card.name} ${card.version}`], ["weights (sha256)", card.weights_sha256], ["licence", card.licence],
    ["library", library ? `${library.name}, version ${library.version}, ${library.records?.toLocaleString("en")} specimens` : "none"],
    ["library (sha256)", library?.checksum], ["licence of the library", library?.licence],
    ["barcode", barcode ? `${barcode.length} nt, frame ${barcode.frame}, ${barcode.stops} stop codons, ${percent(barcode.n_share)} N` : "none"],
    ["code", card.code_version]].filter(([, value]) => value);
  const copy = async (event) => {
    await navigator.clipboard.writeText(JSON.stringify(answer, null, 1));
    event.target.textContent = "Copied";
  };
  return el("details", { class: "about" }, el("summary", {}, "Which model and data answered"),
    el("dl", {}, entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("button", { type: "button", class: "quiet", onclick: copy }, "Copy the answer as JSON"));
}

function useExample(example) {
  dropPhotos();
  if (example.image) {
    const bytes = Uint8Array.from(atob(example.image), (letter) => letter.charCodeAt(0));
    photos.push({ file: new File([bytes], "example.jpg", { type: "image/jpeg" }), url: `data:image/jpeg;base64,${example.image}` });
  }
  $("dna").value = example.dna ?? "";
  showPhotos();
  showBarcode();
  submit();
}

async function start() {
  const get = (path) => fetch(path).then((response) => (response.ok ? response.json() : {})).catch(() => ({}));
  const [{ card }, { examples = [] }] = await Promise.all([get("v1/model"), get("v1/examples")]);
  const known = card?.library ? `, ${card.library.records?.toLocaleString("en")} references` : "";
  $("model").textContent = card ? `${card.name} ${card.version}${known}` : "";
  $("model").hidden = !card;
  $("example-list").replaceChildren(...examples.map((one) => el("li", {}, el("button", { type: "button", onclick: () => useExample(one) },
    one.image ? el("img", { src: `data:image/jpeg;base64,${one.image}`, alt: "" }) : null,
    el("span", {}, one.title, el("small", {}, one.told))))));
  $("examples").hidden = !examples.length;
}

$("dna-help").dataset.told = $("dna-help").textContent;
$("photos").addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
$("dna").addEventListener("input", showBarcode);
$("threshold").addEventListener("input", () => { $("threshold-told").textContent = percent(Number($("threshold").value), 0); });
$("threshold").addEventListener("change", () => { if (asked) ask(asked); });
$("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("clear").addEventListener("click", () => {
  dropPhotos();
  $("ask").reset();
  for (const show of [showPhotos, showBarcode, clearErrors]) show();
  $("threshold").dispatchEvent(new Event("input"));
  $("photos").focus();
});
document.addEventListener("dragover", (event) => { event.preventDefault(); $("ask").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("ask").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("ask").classList.remove("over");
  take([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) { event.preventDefault(); take(files); }
});
start();
