"use strict";
const $ = (id) => document.getElementById(id);
let recorder = null, boxes = [];

function complain(text) {
  $("error").textContent = text || "";
  $("error").hidden = !text;
}
function box(name) {
  const section = document.createElement("section"), title = document.createElement("strong");
  const text = document.createElement("p"), canvas = document.createElement("canvas"), audio = document.createElement("audio");
  title.textContent = name;
  text.className = "text";
  audio.controls = true;
  audio.setAttribute("aria-label", "answer of " + name);
  section.append(title, text, canvas, audio);
  $("answers").append(section);
  return {section, text, canvas, audio};
}
async function start() {
  boxes = (await (await fetch("/models")).json()).map(box);
}
// 16-bit mono WAV with a 44-byte header, as the server writes it.
function wave(canvas, bytes) {
  const samples = new Int16Array(bytes.buffer, 44), paint = canvas.getContext("2d");
  canvas.width = canvas.clientWidth || 300;
  canvas.height = 70;
  paint.fillStyle = getComputedStyle(canvas).color;
  const each = samples.length / canvas.width;
  for (let x = 0; x < canvas.width; x++) {
    let high = 0;
    for (let i = Math.floor(x * each); i < (x + 1) * each && i < samples.length; i++) high = Math.max(high, Math.abs(samples[i]));
    const height = Math.max(1, high / 32768 * canvas.height);
    paint.fillRect(x, (canvas.height - height) / 2, 1, height);
  }
}
function show(line) {
  const {section, text, canvas, audio} = boxes[line.model];
  if (line.text !== undefined) text.textContent = line.text;
  if (line.wav) wave(canvas, Uint8Array.from(atob(line.wav), (letter) => letter.charCodeAt(0)));
  if (line.wav && line.done) audio.src = "data:audio/wav;base64," + line.wav;
  if (line.error) text.textContent = line.error;
  text.classList.toggle("error", Boolean(line.error));
  section.dataset.state = line.done ? "done" : "speaking";
}
async function ask(blob) {
  complain("");
  $("question").src = URL.createObjectURL(blob);
  $("question").hidden = false;
  $("record").disabled = true;
  for (const {section, text} of boxes) { text.textContent = "…"; section.dataset.state = "waiting"; }
  try {
    const reply = await fetch("/ask", {method: "POST", body: blob});
    if (!reply.ok) throw new Error((await reply.json()).error);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      lines.forEach((line) => show(JSON.parse(line)));
    }
  } catch (error) {
    complain(String(error.message || error));
  }
  $("record").disabled = false;
}
async function record() {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: true});
  } catch (error) {
    return complain("No microphone: " + error.message + ". Send a file instead.");
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    const blob = new Blob(parts, {type: recorder.mimeType});
    recorder = null;
    $("record").textContent = "Record a question";
    ask(blob);
  };
  recorder.start();
  $("record").textContent = "Stop and ask";
}
$("record").addEventListener("click", record);
$("file").addEventListener("change", () => $("file").files[0] && ask($("file").files[0]));
start();
