"use strict";
// Everything that a model or a user wrote reaches the page by textContent, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const clips = JSON.parse(document.getElementById("clips").textContent);
  const shown = new Set(data.runs.map((_, run) => run));
  const DASHES = [[], [7, 4], [2, 3]];
  const HEIGHT = 200;
  const allSteps = data.groups.flatMap(({ charts }) => charts.flatMap(({ series }) => series.flatMap(({ x }) => x)));
  const ends = allSteps.reduce(([low, high], step) => [Math.min(low, step), Math.max(high, step)], [Infinity, -Infinity]);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = text;
    return element;
  }

  const short = (value) => (value === null || value === undefined ? "–" : String(+value.toPrecision(4)));

  const brief = (value) => (value === null ? "–" : String(+value.toFixed(2)));

  // --- curves ---------------------------------------------------------------------------------------------------

  const label = (chart, series) => {
    const parts = [];
    if (data.runs.length > 1) parts.push(data.runs[series.run]);
    if (chart.lines.length > 1 || !parts.length) parts.push(chart.lines[series.line]);
    return parts.join(", ");
  };

  /** What a screen reader says in place of the picture. */
  function described(chart) {
    const parts = chart.series.map((series) => {
      const known = series.x.map((step, i) => [step, series.y[i]]).filter(([, y]) => y !== null);
      const [first, last] = [known[0], known[known.length - 1]];
      return `${label(chart, series)}: ${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}`;
    });
    return `${chart.title}. ${parts.join("; ")}.`;
  }

  function bounds(chart) {
    return (_, low, high) => {
      if (low === null || high === null) return [chart.floor ?? 0, chart.ceiling ?? 1];
      let [bottom, top] = [Math.min(low, chart.floor ?? low), Math.max(high, chart.ceiling ?? high)];
      if (bottom === top) [bottom, top] = bottom === 0 ? [0, 1] : [bottom - Math.abs(bottom) / 10, top + Math.abs(top) / 10];
      const room = (top - bottom) * 0.06;
      const flat = (edge, value) => edge !== null && edge === value;
      return [flat(chart.floor, bottom) && bottom === 0 ? 0 : bottom - room, top + room];
    };
  }

  function draw(chart, place, width) {
    // A step that a series lacks is bridged (undefined after join); a number that is missing (null) is a gap.
    // The ends, without values, give all charts one x axis.
    const table = uPlot.join([[[...new Set(ends)]], ...chart.series.map((series) => [series.x, series.y])]);
    const axis = { stroke: () => colour("soft"), grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const series = chart.series.map((one) => ({
      label: label(chart, one),
      stroke: () => colour(`run${one.run}`),
      width: 2,
      dash: DASHES[one.line],
      alpha: one.line ? 0.85 : 1,
      show: shown.has(one.run),
      points: { size: 5, fill: () => colour(`run${one.run}`) },
      value: (_, value, __, at) => short(at === null ? one.y.findLast((y) => y !== null) : value),
    }));
    const options = {
      width,
      height: HEIGHT,
      cursor: { y: false, sync: { key: "step" }, drag: { x: true, y: false } },
      legend: { live: true, markers: { width: 0, fill: (_, i) => (i ? `var(--run${chart.series[i - 1].run})` : "none") } },
      scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: bounds(chart) } },
      axes: [{ ...axis, size: 30, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000] }, { ...axis, size: 54, values: (_, ticks) => ticks.map(short) }],
      series: [{ label: "step", value: (_, step) => (step === null ? "last" : String(step)) }, ...series],
    };
    return new uPlot(options, table, place);
  }

  function numbers(chart) {
    const details = make("details");
    details.append(make("summary", "", "Numbers"));
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const table = make("table");
      const head = make("tr");
      ["step", ...chart.series.map((one) => label(chart, one))].forEach((name) => head.append(make("th", "", name)));
      table.append(head);
      const [steps, ...columns] = uPlot.join(chart.series.map((one) => [one.x, one.y]));
      steps.forEach((step, i) => {
        const row = make("tr");
        [step, ...columns.map((column) => column[i])].forEach((value) => row.append(make("td", "", short(value))));
        table.append(row);
      });
      const frame = make("div", "numbers");
      frame.tabIndex = 0;
      frame.append(table);
      details.append(frame);
    });
    return details;
  }

  const plots = []; // {chart, plot, place}
  document.querySelectorAll("[data-group]").forEach((grid) => {
    data.groups[grid.dataset.group].charts.forEach((chart) => {
      const figure = make("figure");
      const caption = make("figcaption");
      caption.append(make("h3", "", chart.title));
      const strokes = ["Solid", "dashed", "dotted"];
      const dashes = chart.lines.length > 1 ? `${chart.lines.map((name, i) => `${strokes[i]}: ${name}`).join("; ")}. ` : "";
      caption.append(make("p", "", dashes + chart.note));
      const place = make("div", "plot");
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", described(chart));
      figure.append(caption, place, numbers(chart));
      grid.append(figure);
      plots.push({ chart, place, plot: null });
    });
  });
  plots.forEach((one) => (one.plot = draw(one.chart, one.place, Math.max(200, one.place.clientWidth))));
  const watcher = new ResizeObserver(() => {
    plots.forEach(({ plot, place }) => {
      if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    });
  });
  watcher.observe(document.querySelector("main"));
  dark.addEventListener("change", () => plots.forEach(({ plot }) => plot.redraw(false, true)));

  // --- answers --------------------------------------------------------------------------------------------------

  const SPLITS = { validation: "held out", rollouts: "training rollouts" };
  const ui = Object.fromEntries(["controls", "split", "step", "back", "on", "said", "cards"].map((id) => [id, document.getElementById(id)]));

  function player(id, what) {
    if (id === null) return make("span", "none", `no recording of the ${what} in this page`);
    const audio = make("audio");
    audio.controls = true;
    audio.preload = "metadata";
    audio.setAttribute("aria-label", `${what}, recording`);
    audio.src = `data:${data.mime};base64,${clips[id]}`;
    return audio;
  }

  function said(title, words, otherwise) {
    const part = make("div");
    part.append(make("span", "label", title));
    part.append(words ? make("p", "words", words) : make("p", "words none", otherwise));
    return part;
  }

  function spoken(title, words, clip, what) {
    const part = said(title, words, `no text of the ${what}`);
    part.append(player(clip, what));
    return part;
  }

  const NAMES = { wer: "WER", cer: "CER", mos: "MOS" };

  /** Where a reward stands on its scale, to see at a glance; the number says it to everyone. */
  function gauge(run, reward) {
    const [low, high] = data.scales[run];
    const bar = make("span", "gauge");
    bar.setAttribute("aria-hidden", "true");
    const filled = make("i");
    filled.style.width = `${Math.max(2, Math.min(100, (100 * (reward - low)) / (high - low)))}%`;
    bar.append(filled);
    return bar;
  }

  function note(name, value) {
    if (name === "exact" && value !== null) return value ? "text exactly right" : "text not exactly right";
    return `${NAMES[name] ?? name} ${brief(value)}`;
  }

  function answerPart(run, answer, rows) {
    const part = make("article", `answer run${run}`);
    const who = make("div", "who");
    who.append(make("b", "", data.runs[run]));
    const { reward, ...others } = answer.scores;
    if (reward === null) who.append(make("span", "lost", `no reward${answer.missing ? ": " + answer.missing : ""}`));
    else {
      const score = make("span", "", "reward ");
      score.append(make("strong", "", reward.toFixed(2)));
      if (data.scales[run]) score.append(gauge(run, reward));
      who.append(score);
    }
    Object.entries(others).forEach(([name, value]) => who.append(make("span", "", note(name, value))));
    who.append(make("span", "", `rank ${answer.rank} of ${rows}`));
    if (answer.failed) who.append(make("span", "lost", answer.failed));
    part.append(who, said("Answer", answer.text, "no text"));
    part.append(said("Recogniser hears", answer.transcript, "no transcript"), player(answer.audio, "answer"));
    return part;
  }

  function questionPart(answers) {
    const part = make("section", "question");
    const best = (key) => (answers.find(({ answer }) => answer[key] !== null) ?? answers[0]).answer[key];
    const header = make("header");
    header.append(spoken("Question", best("question"), best("question_audio"), "question"));
    header.append(spoken("Anchor target", best("target"), best("target_audio"), "target"));
    part.append(header);
    part.setAttribute("aria-label", `Question: ${best("question") ?? "without text"}`);
    const value = ({ answer }) => answer.scores.reward ?? -Infinity;
    answers.sort((a, b) => a.run - b.run || value(b) - value(a));
    answers.forEach(({ run, answer, rows }) => part.append(answerPart(run, answer, rows)));
    return part;
  }

  const dumps = () => data.dumps.filter((dump) => dump.split === ui.split.value && shown.has(dump.run));
  const steps = () => [...new Set(dumps().map((dump) => dump.step))].sort((a, b) => a - b);

  function options(select, values, wanted) {
    select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === wanted)));
  }

  /** Fill the steps of the chosen set; stay near the step that was shown. */
  function fillSteps(near) {
    const all = steps();
    const wanted = all.reduce((found, step) => (Math.abs(step - near) < Math.abs(found - near) ? step : found), all[0]);
    options(ui.step, all.map((step) => [String(step), String(step)]), String(wanted));
    showAnswers();
  }

  function showAnswers() {
    const step = Number(ui.step.value);
    const here = dumps().filter((dump) => ui.step.value !== "" && dump.step === step);
    const questions = new Map();
    here.sort((a, b) => a.run - b.run).forEach(({ run, rows, answers }) =>
      answers.forEach((answer) => {
        if (!questions.has(answer.key)) questions.set(answer.key, []);
        questions.get(answer.key).push({ run, rows, answer });
      }),
    );
    // Where there is something to hear stands first.
    const heard = (answers) => answers.some(({ answer }) => answer.audio !== null);
    const sorted = [...questions.entries()].sort(([a, x], [b, y]) => heard(y) - heard(x) || (a < b ? -1 : 1));
    ui.cards.replaceChildren(...sorted.map(([, answers]) => questionPart(answers)));
    const total = here.map((dump) => `${dump.answers.length} of ${dump.rows} answers of ${data.runs[dump.run]}`);
    ui.said.textContent = total.length ? total.join("; ") : "No shown run has answers here.";
    ui.back.disabled = ui.step.selectedIndex <= 0;
    ui.on.disabled = ui.step.selectedIndex >= ui.step.options.length - 1;
  }

  function go(by) {
    ui.step.selectedIndex += by;
    showAnswers();
  }

  const splits = Object.keys(SPLITS).filter((split) => data.dumps.some((dump) => dump.split === split));
  if (splits.length) {
    ui.controls.hidden = false;
    options(ui.split, splits.map((split) => [split, SPLITS[split]]), splits[0]);
    ui.split.addEventListener("change", () => fillSteps(Number(ui.step.value)));
    ui.step.addEventListener("change", showAnswers);
    ui.back.addEventListener("click", () => go(-1));
    ui.on.addEventListener("click", () => go(1));
    fillSteps(Number.MAX_SAFE_INTEGER);
  } else ui.cards.append(make("p", "quiet", "These runs have no dumps of answers."));

  // One recording at a time.
  document.addEventListener("play", (event) => {
    document.querySelectorAll("audio").forEach((audio) => audio !== event.target && audio.pause());
  }, true);

  document.querySelectorAll("#runs input").forEach((box) =>
    box.addEventListener("change", () => {
      const run = Number(box.value);
      if (box.checked) shown.add(run);
      else shown.delete(run);
      plots.forEach(({ chart, plot }) => chart.series.forEach((one, i) => one.run === run && plot.setSeries(i + 1, { show: box.checked })));
      if (splits.length) fillSteps(Number(ui.step.value) || 0);
    }),
  );
})();
