"use strict";
const $ = (id) => document.getElementById(id);
const KEY = "wavalign-listener";
const SIDES = [["left", "Left"], ["tie", "No difference"], ["right", "Right"]];
const ASKED = {helpfulness: "Which answer is more helpful?", naturalness: "Which one sounds more natural?", overall: "Which one is better overall?"};
let token = localStorage.getItem(KEY), state = null, heard = new Set(), shownAt = 0, ears = [], ear = null, sending = false;

function show(id) {
  for (const name of ["intro", "check", "trial", "done"]) $(name).hidden = name !== id;
}
function complain(text) {
  $("error").textContent = text || "";
  $("error").hidden = !text;
}
async function call(path, body) {
  const options = body ? {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)} : {};
  const reply = await fetch(path, options);
  return [reply.status, await reply.json()];
}
async function load() {
  if (!token) return show("intro");
  const [status, told] = await call("/state?token=" + encodeURIComponent(token));
  if (status === 403) {
    localStorage.removeItem(KEY);
    token = null;
    return show("intro");
  }
  draw(told);
}
function draw(told) {
  state = told;
  if (told.done) return show("done");
  if (!told.headphones) return show("check");
  show("trial");
  heard = new Set();
  shownAt = performance.now();
  $("progress").max = told.trials;
  $("progress").value = told.trial;
  $("count").textContent = `${told.trial + 1} of ${told.trials}`;
  $("text").textContent = told.text || "";
  for (const name of ["question", "left", "right"]) {
    $(name).hidden = !told.sounds[name];
    delete $(name).dataset.heard;
    if (told.sounds[name]) $(name).src = told.sounds[name];
  }
  $("votes").replaceChildren(...told.aspects.map(asked));
  refresh();
}
function asked(aspect) {
  const box = document.createElement("fieldset"), legend = document.createElement("legend");
  legend.textContent = ASKED[aspect] || aspect;
  box.append(legend);
  for (const [side, name] of SIDES) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, {type: "radio", name: aspect, value: side});
    label.append(input, " " + name);
    box.append(label);
  }
  return box;
}
function answers() {
  const found = {};
  for (const aspect of state.aspects) {
    const chosen = document.querySelector(`input[name="${aspect}"]:checked`);
    if (chosen) found[aspect] = chosen.value;
  }
  return found;
}
function refresh() {
  const both = heard.has("left") && heard.has("right");
  $("hint").textContent = both ? "" : "Listen to both answers first.";
  $("next").disabled = sending || !both || Object.keys(answers()).length < state.aspects.length;
}
async function next() {
  if ($("next").disabled) return;
  sending = true;
  refresh();
  const seconds = (performance.now() - shownAt) / 1000;
  const body = {token, trial: state.trial, answers: answers(), played: [...heard].join(" "), seconds};
  try {
    const [status, told] = await call("/vote", body);
    sending = false;
    complain(told.error);
    // Refused: another tab is further on, so this one goes where the test is.
    if (status === 409 || status === 403) return load();
    draw(told);
  } catch {
    sending = false;
    complain("The server does not answer. Your votes up to here are kept; press Next to try again.");
    refresh();
  }
}
function play(name) {
  for (const other of ["question", "left", "right"]) if (other !== name) $(other).pause();
  $(name).currentTime = 0;
  $(name).play();
}
async function begin() {
  const [, told] = await call("/join", {name: $("name").value});
  token = told.token;
  localStorage.setItem(KEY, token);
  load();
}
// One ear at a time: on loudspeakers both ears hear both sides, and the answer is a guess.
function tone() {
  const context = new AudioContext(), source = context.createOscillator(), pan = context.createStereoPanner();
  ear = Math.random() < 0.5 ? "left" : "right";
  pan.pan.value = ear === "left" ? -1 : 1;
  source.frequency.value = 330;
  source.connect(pan).connect(context.destination);
  source.start();
  source.stop(context.currentTime + 0.6);
  $("check").dataset.ear = ear;
  $("ear-left").disabled = $("ear-right").disabled = false;
}
async function judged(side) {
  ears.push(side === ear);
  $("ear-left").disabled = $("ear-right").disabled = true;
  $("ears").textContent = `${ears.length} of 3`;
  if (ears.length < 3) return;
  const passed = ears.every(Boolean);
  ears = [];
  if (!passed) {
    $("ears").textContent = "Not every time: are the headphones on the right way round? Once more, please.";
    return;
  }
  const [, told] = await call("/headphones", {token, passed: true});
  draw(told);
}
async function skip() {
  const [, told] = await call("/headphones", {token, passed: false});
  draw(told);
}
function keyed(event) {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const sound = {q: "question", 1: "left", 2: "right"}[event.key.toLowerCase()];
  const side = {ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right"}[event.key];
  if (sound && !$(sound).hidden) play(sound);
  else if (side) {
    const open = state.aspects.find((aspect) => !answers()[aspect]) || state.aspects.at(-1);
    document.querySelector(`input[name="${open}"][value="${side}"]`).checked = true;
    refresh();
  } else if (event.key === "Enter") next();
  else return;
  event.preventDefault();
}
for (const name of ["left", "right"]) {
  $(name).addEventListener("ended", () => { heard.add(name); $(name).dataset.heard = "yes"; refresh(); });
}
$("votes").addEventListener("change", refresh);
$("votes").addEventListener("submit", (event) => event.preventDefault());
$("next").addEventListener("click", next);
$("begin").addEventListener("click", begin);
$("tone").addEventListener("click", tone);
$("ear-left").addEventListener("click", () => judged("left"));
$("ear-right").addEventListener("click", () => judged("right"));
$("skip").addEventListener("click", skip);
document.addEventListener("keydown", keyed);
load();
