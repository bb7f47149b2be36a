"use strict";

// The view of the page. Texts reach the document by `textContent` alone, so that none of them can be taken for markup. All
// lists are bounded, and their nodes are used again.

const WINDOW = 5 * 60 * 1000;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

// A browser may forbid to remember anything. Then it lasts as long as the page.
const memory = new Map();
function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return memory.get(key);
  }
}
function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    memory.set(key, value);
  }
}

let language = recall("language") || "";
if (!WORDS[language]) language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";

const word = (key, ...args) => {
  const text = WORDS[language][key];
  return typeof text === "function" ? text(...args) : text;
};
const data = (key) => (language === "zh" && DATA[key]) || String(key).replaceAll("_", " ");

const model = {
  status: null, holders: [], events: [], latency: new Map(), close: null, leftOut: 0, link: "connecting", seen: 0,
  clock: 0,
};

// ---- building blocks

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function attribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function millis(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return duration(ms);
}

function duration(ms) {
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

// Uses the nodes of a list again, one for each entry.
function fill(list, entries, create, update) {
  while (list.children.length > entries.length) list.lastElementChild.remove();
  entries.forEach((entry, index) => {
    let node = list.children[index];
    if (!node) {
      node = create();
      list.append(node);
    }
    update(node, entry);
  });
}

const cells = (...classes) => () => make("tr", "", ...classes.map((name) => make("td", name)));

// ---- one resource

const cards = new Map();

function createCard(name) {
  const card = {
    root: make("li", "card"),
    title: make("h3"), pill: make("span", "pill"), endpoint: make("p", "endpoint"), since: make("span", "quiet"),
    health: make("span", "pill"), problem: make("p", "problem"), latencyNow: make("span", "quiet"),
    used: make("i", "used"), free: make("i", "free"), counts: make("dl", "counts"), nodes: make("ul", "nodes"),
    close: make("button"), reconnect: make("button"), fields: new Map(),
  };
  card.chart = svg("svg", { class: "chart", viewBox: "0 0 300 44", preserveAspectRatio: "none", role: "img" });
  card.curve = svg("path", { class: "curve", d: "" });
  card.gap = svg("path", { class: "gap", d: "" });
  card.chart.append(svg("path", { class: "ground", d: "M0 43.5H300" }), card.curve, card.gap);
  card.gauge = make("div", "gauge", card.used, card.free);
  card.gauge.setAttribute("role", "img");
  card.root.id = `resource-${encodeURIComponent(name)}`;
  card.root.tabIndex = -1;
  set(card.title, name);
  card.close.type = card.reconnect.type = "button";
  card.close.addEventListener("click", () => ask("close", name));
  card.reconnect.addEventListener("click", () => ask("reconnect", name));
  card.root.append(
    make("div", "row", card.title, card.pill),
    card.endpoint,
    make("div", "row", card.since, card.health),
    card.problem,
    make("div", "row", card.latencyNow),
    card.chart,
    card.gauge,
    card.counts,
    card.nodes,
    make("div", "actions", card.reconnect, card.close),
  );
  return card;
}

const looks = { pass: "good", warn: "warn", fail: "bad", ready: "good", broken: "bad", connecting: "warn", draining: "warn" };
const signs = { good: "●", warn: "▲", bad: "✖" };

function pill(node, value) {
  const look = looks[value] || "";
  node.className = `pill ${look}`;
  set(node, `${signs[look] || "○"} ${data(value)}`);
}

function updateCard(card, resource, entry) {
  const { name, usage } = resource;
  const state = resource.state;
  const health = entry ? entry.health : "unknown";
  const judged = severity(resource, entry);
  card.root.className = `card ${judged ? `is-${judged}` : ""}`;
  pill(card.pill, state);
  pill(card.health, health);
  set(card.endpoint, resource.endpoint);
  set(card.since, word("since", duration(resource.since_ms)));
  card.health.hidden = state === "closed";
  card.since.hidden = model.link !== "live";
  const problem = trouble(resource, entry);
  set(card.problem, problem);
  card.problem.hidden = !problem;
  drawChart(card, name, entry);
  const used = usage.in_use ?? resource.checkouts;
  const idle = usage.idle ?? 0;
  const max = usage.max ?? Math.max(used + idle, 1);
  const known = usage.in_use !== null || usage.max !== null;
  card.gauge.hidden = !known;
  const share = (count) => `${Math.min(100, (100 * count) / Math.max(max, 1)).toFixed(1)}%`;
  if (card.used.style.width !== share(used)) card.used.style.width = share(used);
  if (card.free.style.width !== share(idle)) card.free.style.width = share(idle);
  attribute(card.gauge, "aria-label", word("gauge", used, usage.idle ?? "–", usage.max ?? "–"));
  const work = Object.entries(resource.work || {}).map(([kind, count]) => `${count} ${kind}`).join(", ");
  const waiting = (usage.waiting ?? 0) + resource.connecting;
  count(card, "inUse", usage.in_use);
  count(card, "idleCount", usage.idle);
  count(card, "waiting", usage.waiting === null && !waiting ? null : waiting);
  count(card, "max", usage.max);
  count(card, "leases", resource.leases);
  count(card, "checkouts", resource.checkouts || null);
  count(card, "leaks", resource.leaks || null);
  count(card, "generation", resource.generation);
  count(card, "work", work || null);
  const nodes = resource.nodes.length > 1 ? resource.nodes : [];
  card.nodes.hidden = nodes.length === 0;
  fill(card.nodes, nodes, () => make("li", "", make("span"), make("span", "pill")), (item, node) => {
    set(item.firstElementChild, node.endpoint);
    pill(item.lastElementChild, node.state);
  });
  set(card.close, word("close"));
  set(card.reconnect, word("reconnect"));
  attribute(card.close, "aria-label", word("closeOf", name));
  attribute(card.reconnect, "aria-label", word("reconnectOf", name));
  card.close.disabled = model.status.closing || state === "closed" || model.link !== "live";
  card.reconnect.disabled = model.status.closing || model.link !== "live";
}

function count(card, key, value) {
  let field = card.fields.get(key);
  if (!field) {
    field = make("div", "", make("dt"), make("dd"));
    card.fields.set(key, field);
    card.counts.append(field);
  }
  field.hidden = value === null || value === undefined;
  if (!field.hidden) {
    set(field.firstElementChild, word(key));
    set(field.lastElementChild, String(value));
  }
}

function drawChart(card, name, entry) {
  const now = performance.now() + model.clock;
  const points = (model.latency.get(name) || []).filter((point) => point[0] > now - WINDOW);
  const known = points.filter((point) => point[1] !== null).map((point) => point[1]);
  const most = Math.max(...known, 0);
  // A single slow answer must not flatten all the others.
  const usual = known.toSorted((one, other) => one - other)[Math.floor(known.length * 0.95)] ?? 0;
  const top = Math.max(0.1, Math.min(most, 1.5 * usual));
  let curve = "";
  let gaps = "";
  let misses = 0;
  let pen = "M";
  for (const [at, ms] of points) {
    const x = (300 * (1 - (now - at) / WINDOW)).toFixed(1);
    if (ms === null) {
      pen = "M";
      // A resource that nobody uses has no latency, and misses nothing.
      if (entry && entry.generation > 0) {
        gaps += `M${x} 37V43`;
        misses += 1;
      }
    } else {
      curve += `${pen}${x} ${(42 - (38 * Math.min(ms, top)) / top).toFixed(1)}`;
      pen = "L";
    }
  }
  if (known.length === 1) curve += "h0.5";
  attribute(card.curve, "d", curve);
  attribute(card.gap, "d", gaps);
  const last = points.length ? points[points.length - 1][1] : null;
  set(card.latencyNow, `${word("latency")} ${millis(last)} · ${word("most")} ${known.length ? millis(most) : "–"}`);
  attribute(card.chart, "aria-label", word("chart", name, millis(last), known.length ? millis(most) : "–", misses));
}

// Errors come as objects with a message, or as texts.
function text(error) {
  if (!error) return "";
  return typeof error === "string" ? error : error.message || error.text || JSON.stringify(error);
}

// The trouble of a resource, without its name, which stands beside it.
function trouble(resource, entry) {
  return unnamed(text(resource.error) || (entry && entry.message) || "", resource.name);
}

function unnamed(said, name) {
  return name && said.startsWith(`${name}: `) ? said.slice(name.length + 2) : said;
}

function severity(resource, entry) {
  const health = entry && entry.health;
  if (resource.state === "broken" || health === "fail") return entry && entry.criticality === "optional" ? "warn" : "bad";
  if (health === "warn" || resource.leaks > 0 || resource.state === "draining") return "warn";
  return resource.state === "ready" ? "good" : "";
}

// ---- the sections

function showResources() {
  const { status, health } = model.status;
  const entries = new Map((health ? health.entries : []).map((entry) => [entry.name, entry]));
  const list = byId("resources");
  const names = new Set(status.resources.map((resource) => resource.name));
  for (const [name, card] of cards) {
    if (!names.has(name)) {
      card.root.remove();
      cards.delete(name);
      model.latency.delete(name);
    }
  }
  const problems = [];
  const tally = { bad: 0, warn: 0, good: 0 };
  let before = null;
  for (const resource of status.resources) {
    let card = cards.get(resource.name);
    if (!card) {
      card = createCard(resource.name);
      cards.set(resource.name, card);
      if (before) before.after(card.root);
      else list.prepend(card.root);
    }
    before = card.root;
    const entry = entries.get(resource.name);
    updateCard(card, resource, entry);
    const judged = severity(resource, entry);
    if (judged) tally[judged] += 1;
    if (judged === "bad" || judged === "warn") problems.push([resource, entry]);
  }
  showVerdict(status, tally);
  fill(byId("problems"), problems.slice(0, 20), () => make("li", "", make("a"), make("span")), (item, [resource, entry]) => {
    const link = item.firstElementChild;
    attribute(link, "href", `${location.pathname}#resource-${encodeURIComponent(encodeURIComponent(resource.name))}`);
    set(link, resource.name);
    set(item.lastElementChild, `: ${trouble(resource, entry) || data(resource.state)}`);
  });
}

function showVerdict(status, tally) {
  const all = status.resources.length;
  const verdict = byId("verdict");
  let [look, said] = ["good", word("allWell", all)];
  if (model.close && model.close.report) [look, said] = ["", word("isClosed")];
  else if (model.status.closing) [look, said] = ["warn", word("isClosing")];
  else if (tally.bad) [look, said] = ["bad", word("fails", tally.bad, all)];
  else if (tally.warn) [look, said] = ["warn", word("warns", tally.warn, all)];
  else if (tally.good < all) [look, said] = ["", word("noneUsed", all)];
  if (!model.status.closing && model.status.health && model.status.health.lowered) {
    look = look === "bad" ? look : "warn";
    said = `${said} ${word("notReady")}`;
  }
  const className = `verdict ${look}`;
  if (verdict.className !== className) verdict.className = className;
  set(verdict, said);
}

function showHolders() {
  byId("no-holders").hidden = model.holders.length > 0;
  byId("holders-table").hidden = model.holders.length === 0;
  fill(byId("holders"), model.holders.slice(0, 200), cells("", "text", "number", "", ""), (row, holder) => {
    const [resource, line, held, sort, owner] = row.children;
    set(resource, holder.resource);
    set(line, holder.site);
    set(held, duration(holder.held_ms));
    set(sort, `${word(holder.exclusive ? "exclusive" : "shared")}${holder.suspected ? `, ${word("leak")}` : ""}`);
    set(owner, holder.owner || "–");
  });
}

function showEvents() {
  byId("no-events").hidden = model.events.length > 0;
  byId("events-table").hidden = model.events.length === 0;
  const note = byId("left-out");
  note.hidden = !model.leftOut;
  set(note, model.leftOut ? word("leftOut", model.leftOut) : "");
  const newest = model.events.slice().reverse();
  fill(byId("events"), newest, cells("time", "", "", "text"), (row, event) => {
    const [time, resource, what, details] = row.children;
    set(time, clockTime(event.at_ms));
    set(resource, event.resource || "–");
    set(what, event.times > 1 ? `${data(event.what)} ×${event.times}` : data(event.what));
    set(details, describe(event));
  });
}

function clockTime(ms) {
  const at = new Date(ms);
  const two = (number) => String(number).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

// A shortened event lacks its long details.
function describe(event) {
  switch (event.what) {
    case "state_changed":
      return `${data(event.from)} → ${data(event.to)} (${millis(event.after_ms)})`;
    case "connected":
      return `${word("generation")} ${event.generation}, ${millis(event.took_ms)}`;
    case "leak":
    case "leak_returned":
      return event.holder ? `${event.holder.site} (${duration(event.holder.held_ms)})` : "";
    case "crowded":
    case "uncrowded":
      return `${event.held} / ${event.allowed}`;
    case "checked":
      return event.entry ? [data(event.entry.health), unnamed(event.entry.message || "", event.resource)].filter(Boolean).join(": ") : "";
    case "closing":
      return reason(event);
    case "step_ended":
      return event.step ? `${data(event.step.outcome)}, ${millis(event.step.took_ms)}` : "";
    case "closed":
      return event.report ? millis(event.report.took_ms) : "";
    default:
      return unnamed(text(event.error) || event.message || event.action || event.waiting_for || "", event.resource);
  }
}

function reason(why) {
  return why.signal ? `${data("signal")} ${why.signal}` : data(why.reason || "requested");
}

function showClose() {
  const close = model.close;
  byId("close").hidden = !close;
  if (!close) return;
  const report = close.report;
  set(byId("close-summary"), report
    ? word("closed", millis(report.took_ms), millis(report.drained_ms), reason(report))
    : word("closing", reason(close.why)));
  const steps = report ? report.steps : close.steps;
  fill(byId("steps"), steps, () => {
    const row = cells("", "", "number", "", "text")();
    row.children[3].append(make("span", "pill"));
    return row;
  }, (row, step) => {
    const [name, phase, took, outcome, details] = row.children;
    set(name, step.name);
    set(phase, data(step.phase));
    set(took, millis(step.took_ms));
    const look = step.outcome === "closed" ? "good" : step.outcome === "forced" ? "warn" : "bad";
    const badge = outcome.firstElementChild;
    if (badge.className !== `pill ${look}`) badge.className = `pill ${look}`;
    set(badge, `${signs[look]} ${data(step.outcome)}`);
    const works = (key) => Object.entries(step[key] || {}).map(([work, number]) => `${word(key)}: ${number} ${work}`);
    const held = (step.held || []).slice(0, 10).map((holder) => `${word("heldBy")} ${holder.site}`);
    set(details, [step.message, ...works("finished"), ...works("given_up"), ...works("unfinished"), ...held].filter(Boolean).join("; "));
  });
}

function showLink() {
  const looksOf = { live: "good", connecting: "warn", lost: "bad", ended: "" };
  const node = byId("link");
  const className = `badge ${looksOf[model.link]}`;
  if (node.className !== className) node.className = className;
  set(node, word(model.link));
  node.hidden = !byId("login").hidden;
}

function showWords() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) set(node, word(node.dataset.text));
  const other = byId("language");
  other.lang = language === "zh" ? "en" : "zh";
  set(other, language === "zh" ? "English" : "中文");
}
