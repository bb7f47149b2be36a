"use strict";

// The page shows the messages of the admin's stream, asks for the token if one is needed, and has the verbs.

const MOST_EVENTS = 200;
const MOST_POINTS = 300;

// ---- painting, at most once for each frame of the screen

let isDue = false;
const dirty = new Set();

function paint(...parts) {
  parts.forEach((part) => dirty.add(part));
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const due = new Set(dirty);
    dirty.clear();
    showLink();
    if (!model.status) return;
    byId("board").hidden = false;
    if (due.has("status")) showResources();
    if (due.has("holders")) showHolders();
    if (due.has("events")) showEvents();
    if (due.has("close")) showClose();
    if (!model.seen) {
      model.seen = performance.now();
      performance.mark("first-status");
    }
  });
}

// ---- the stream

let source = null;
let pause = 500;
let again = 0;

function addLatency(latency) {
  for (const [name, points] of Object.entries(latency || {})) {
    const known = model.latency.get(name) || [];
    const last = known.length ? known[known.length - 1][0] : 0;
    known.push(...points.filter((point) => point[0] > last));
    if (known.length > MOST_POINTS) known.splice(0, known.length - MOST_POINTS);
    model.latency.set(name, known);
  }
}

// Other events tell of each change of state, too. A failure that repeats itself has one row.
function remember(event) {
  if (event.what === "state_changed" || event.what === "connecting") return;
  event.times = 1;
  const before = model.events.findLastIndex((other) => other.resource === event.resource);
  if (before >= 0 && event.what.endsWith("_failed") && model.events[before].what === event.what) {
    event.times = model.events[before].times + 1;
    model.events.splice(before, 1);
  }
  model.events.push(event);
  if (model.events.length > MOST_EVENTS) model.events.shift();
}

// The points of latency are on a clock of the program that is never set. Here it goes on between two messages.
function setClock(ms) {
  model.clock = ms - performance.now();
}

function connect() {
  clearTimeout(again);
  if (source) source.close();
  source = new EventSource("events");
  const on = (name, handle) => source.addEventListener(name, (message) => handle(JSON.parse(message.data)));
  // Scripts cannot see the session's cookie, so that the program tells whether there is one.
  on("session", (session) => {
    byId("logout").hidden = !session.open;
  });
  on("snapshot", (all) => {
    pause = 500;
    model.link = "live";
    model.status = all.status;
    model.holders = all.holders;
    model.events = [];
    all.events.forEach(remember);
    model.latency = new Map();
    addLatency(all.latency);
    setClock(all.clock_ms);
    model.close = null;
    byId("login").hidden = true;
    paint("status", "holders", "events", "close");
  });
  on("status", (status) => {
    addLatency(status.latency);
    setClock(status.clock_ms);
    model.holders = status.holders;
    model.leftOut = status.left_out;
    model.status = { closing: status.closing, readiness: status.readiness, status: status.status, health: status.health };
    paint("status", "holders");
  });
  on("event", (event) => {
    remember(event);
    paint("events");
  });
  on("closing", (why) => {
    model.close = { why, steps: [], report: null };
    model.status.closing = true;
    paint("close", "status");
  });
  on("step", (step) => {
    if (model.close) model.close.steps.push(step);
    paint("close");
  });
  on("closed", (report) => {
    model.close = { why: report, steps: report.steps, report };
    model.status.closing = true;
    for (const resource of model.status.status.resources) {
      if (report.steps.some((step) => step.name === resource.name)) resource.state = "closed";
    }
    model.link = "ended";
    paint("close", "status");
    later();
  });
  source.onerror = () => {
    if (model.link !== "ended") model.link = model.status ? "lost" : "connecting";
    paint("status");
    later();
  };
}

// Looks whether the token is missing, and connects again if not.
function later() {
  if (source) source.close();
  clearTimeout(again);
  again = setTimeout(async () => {
    pause = Math.min(8000, pause * 2);
    try {
      const answer = await fetch("pool-status");
      if (answer.status === 401) return showLogin();
      if (answer.ok) return connect();
    } catch {
      // The program is not there.
    }
    later();
  }, pause);
}

async function begin() {
  try {
    const answer = await fetch("pool-status");
    if (answer.status === 401) return showLogin();
    connect();
  } catch {
    later();
  }
}

// ---- login

function showLogin() {
  model.status = null;
  model.link = "connecting";
  byId("board").hidden = true;
  byId("login").hidden = false;
  byId("logout").hidden = true;
  showLink();
  byId("token").focus();
}

byId("login-form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const field = byId("token");
  const problem = byId("login-error");
  set(problem, "");
  try {
    const answer = await fetch("session", { method: "POST", body: new URLSearchParams({ token: field.value }) });
    if (answer.ok) {
      field.value = "";
      byId("login").hidden = true;
      pause = 500;
      return connect();
    }
    set(problem, await refusal(answer));
  } catch {
    set(problem, word("unreachable"));
  }
  field.focus();
});

byId("logout").addEventListener("click", async () => {
  if (source) source.close();
  clearTimeout(again);
  try {
    await fetch("session", { method: "DELETE" });
  } catch {
    // Without the program there is no session.
  }
  showLogin();
});

async function refusal(answer) {
  try {
    const { error, remedy } = await answer.json();
    return remedy ? `${error}; ${remedy}` : error;
  } catch {
    return `HTTP ${answer.status}`;
  }
}

// ---- verbs

function ask(verb, name) {
  const dialog = byId("confirm");
  const isClose = verb === "close";
  set(byId("confirm-text"), word(isClose ? "sureClose" : "sureReconnect", name));
  set(byId("confirm-more"), word(isClose ? "moreClose" : "moreReconnect"));
  set(byId("confirm-yes"), word(verb));
  dialog.returnValue = "no";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      const answer = await fetch(`${verb}/${encodeURIComponent(name)}`, { method: "POST" });
      notify(answer.ok ? word("done", word(isClose ? "closeOf" : "reconnectOf", name)) : word("failed", await refusal(answer)));
    } catch {
      notify(word("failed", word("unreachable")));
    }
  };
  dialog.showModal();
}

let noticeEnds = 0;
function notify(said) {
  const notice = byId("notice");
  notice.hidden = false;
  set(notice, said);
  clearTimeout(noticeEnds);
  noticeEnds = setTimeout(() => {
    notice.hidden = true;
  }, 8000);
}

byId("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  keep("language", language);
  showWords();
  paint("status", "holders", "events", "close");
});

// The base of the links may be another path than the one of this page.
attribute(document.querySelector(".skip"), "href", `${location.pathname}#resources-title`);
showWords();
showLink();
begin();
