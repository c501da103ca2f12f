// The lines of one model's worker as they come, and the scheduler's own sentences.

import { follow } from "./api.js";
import { byId, make } from "./dom.js";
import { clock } from "./format.js";

const MAX_LINES = 500, MAX_HAPPENINGS = 200;
let following = null;

export function showLogs(modelId) {
  following?.abort();
  following = new AbortController();
  const pre = byId("logs");
  pre.replaceChildren();
  const onEvent = (line) => {
    const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
    pre.append(`${line}\n`);
    while (pre.childNodes.length > MAX_LINES) pre.firstChild.remove();
    if (atEnd) pre.scrollTop = pre.scrollHeight;
  };
  follow(`/swapd/v1/logs/${encodeURIComponent(modelId)}?follow=1`, onEvent, {
    signal: following.signal, onStart: () => pre.replaceChildren(),
  });
}

export function addHappening(happening) {
  const list = byId("happenings");
  list.prepend(make("li", {}, make("time", {}, clock(happening.at)), happening.message));
  while (list.children.length > MAX_HAPPENINGS) list.lastElementChild.remove();
}

export function clearHappenings() {
  byId("happenings").replaceChildren();
}
