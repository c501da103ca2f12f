// Asks the daemon how it is, whenever something happens and every few seconds, and shows that.

import { NeedsKey, follow, get, hasKey, useKey } from "./api.js";
import { startChat } from "./chat.js";
import { showDevices } from "./devices.js";
import { byId, setText, showOptions } from "./dom.js";
import { addHappening, clearHappenings, showLogs } from "./logs.js";
import { noteEnded, showModels } from "./models.js";
import { showActivity, showUsage } from "./usage.js";

const EVERY_MS = 3000, SOON_MS = 120, QUIETLY_MS = 1500;
let live = null, soon = null, quietly = null, isAsking = false, shownLogs = null;

function later(timer, delay, run) {
  return timer ?? setTimeout(run, delay);
}

function refreshSoon() {
  soon = later(soon, SOON_MS, () => {
    soon = null;
    refresh();
  });
}

async function refresh() {
  if (isAsking || document.hidden) return;
  isAsking = true;
  try {
    const status = await get("/swapd/v1/status");
    trouble(status.config.error ? `the configuration was refused, the last good one is in force: ${status.config.error}` : "");
    show(status);
    if (live === null) goLive();
  } catch (error) {
    if (error instanceof NeedsKey) needKey(error.message);
    else trouble(error.status ? error.message : "the daemon does not answer; it is asked again …");
  } finally {
    isAsking = false;
  }
}

function show(status) {
  const up = status.models.filter((model) => !["unloaded", "asleep"].includes(model.state)).length;
  const { running, waiting } = status.requests;
  setText(byId("summary"), `${up} of ${status.models.length} models up, ${running} running, ${waiting} waiting; version ${status.version}`);
  showDevices(status);
  showModels(status, { choose, changed: refreshSoon });
  const ids = status.models.map((model) => model.id);
  showOptions(byId("chat-model"), ids);
  showOptions(byId("logs-model"), ids);
  const logs = byId("logs-model").value;
  if (logs && logs !== shownLogs) choose("logs", logs, { quiet: true });
}

function goLive() {
  live = new AbortController();
  const { signal } = live;
  follow("/swapd/v1/events", (data) => {
    addHappening(JSON.parse(data));
    refreshSoon();
  }, { signal, onStart: clearHappenings });
  follow("/swapd/v1/requests", (data) => {
    noteEnded(JSON.parse(data));
    refreshSoon();
    refreshPast();
  }, { signal });
  refreshPast();
}

function refreshPast() {
  quietly = later(quietly, QUIETLY_MS, async () => {
    quietly = null;
    await Promise.allSettled([showActivity(), showUsage()]);
  });
}

function choose(what, id, { quiet = false } = {}) {
  const select = byId(`${what}-model`);
  select.value = id;
  if (what === "logs") {
    shownLogs = id;
    showLogs(id);
  }
  if (!quiet) {
    select.closest("section").scrollIntoView({ block: "start" });
    (what === "chat" ? byId("chat-text") : select).focus({ preventScroll: true });
  }
}

function trouble(message) {
  setText(byId("trouble"), message);
  byId("trouble").hidden = !message;
}

function needKey(message) {
  live?.abort();
  live = null;
  const form = byId("key-form");
  setText(byId("key-trouble"), hasKey() ? message : "");
  if (form.hidden) {
    form.hidden = false;
    byId("key").focus();
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  byId("change-key").hidden = false;
  refresh();
});
byId("change-key").hidden = !hasKey();
byId("change-key").addEventListener("click", () => {
  byId("key-form").hidden = false;
  byId("key").focus();
});
byId("logs-model").addEventListener("change", (event) => choose("logs", event.target.value, { quiet: true }));
for (const id of ["usage-by", "usage-since"]) byId(id).addEventListener("change", () => showUsage().catch(() => {}));
document.addEventListener("visibilitychange", refreshSoon);
startChat(needKey);
setInterval(refreshSoon, EVERY_MS);
refresh();
