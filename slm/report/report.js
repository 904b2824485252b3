"use strict";
const items = JSON.parse(document.getElementById("items-data").textContent);
const form = document.getElementById("filters");
const body = document.querySelector("#flips tbody");
const more = document.getElementById("more");
const KEYS = { chain: "every chain", task: "every task", step: "every step", way: "lost and gained" };
let shown = 20;

for (const [key, all] of Object.entries(KEYS)) {
  const select = document.createElement("select");
  select.name = key;
  select.setAttribute("aria-label", key);
  select.append(new Option(all, ""));
  for (const value of [...new Set(items.map((item) => item[key]))]) select.append(new Option(value, value));
  form.append(select);
}

function cell(row, text, tone) {
  const td = row.insertCell();
  td.textContent = text || "(nothing)";
  if (tone) td.className = tone;
  return td;
}

function show() {
  const wanted = Object.fromEntries(new FormData(form));
  const fitting = items.filter((item) => Object.keys(KEYS).every((key) => !wanted[key] || item[key] === wanted[key]));
  body.replaceChildren();
  for (const item of fitting.slice(0, shown)) {
    const row = body.insertRow();
    const lost = item.way === "lost";
    const question = cell(row, item.question);
    const where = document.createElement("small");
    where.textContent = `${item.task}, ${item.step}`;
    question.append(where);
    if (item.audio) question.append(Object.assign(new Audio(item.audio), { controls: true, preload: "none" }));
    cell(row, item.target);
    cell(row, item.before, lost ? "right" : "wrong");
    cell(row, item.after, lost ? "wrong" : "right");
  }
  more.replaceChildren(`${Math.min(shown, fitting.length)} of ${fitting.length} items `);
  if (fitting.length > shown) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "show more" });
    button.onclick = () => { shown += 50; show(); };
    more.append(button);
  }
}

form.onchange = () => { shown = 20; show(); };
show();
