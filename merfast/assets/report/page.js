// The page: what is shown of the present moment, and what mouse, fingers and keys do.

const $ = (id) => document.getElementById(id);
const timeline = $("timeline"), overview = $("overview");

function area() {
  const box = lanes[0].canvas.getBoundingClientRect();
  return { left: box.left, width: box.width || 1, offset: box.left - timeline.getBoundingClientRect().left };
}

function timeAt(x) {
  const { left, width } = area();
  return view.from + ((x - left) / width) * (view.to - view.from);
}

function placeCursor() {
  const time = now(), width = lanes[0].canvas.clientWidth;
  const x = ((time - view.from) / (view.to - view.from || 1)) * width;
  $("cursor").style.transform = `translateX(${x}px)`;
  $("cursor").hidden = x < -1 || x > width + 1;
}

const rows = EMOTIONS.map((emotion) => {
  const row = document.createElement("div");
  row.className = "bar-row " + emotion;
  const name = document.createElement("span"), bar = document.createElement("div"), number = document.createElement("b");
  const fill = document.createElement("i");
  name.textContent = emotion;
  bar.append(fill);
  row.append(name, bar, number);
  $("bars").append(row);
  return { row, fill, number };
});

let shownWindow = -1, shownFace = null;

/** Bring what depends on the time up to date: cheap, as it runs for each picture while playing. */
function update() {
  const time = now(), i = windowAt(time);
  placeCursor();
  const text = `${clock(time, 1)} / ${clock(END, 0)}`;
  timeline.setAttribute("aria-valuenow", time.toFixed(1));
  timeline.setAttribute("aria-valuetext", `${clock(time, 1)} of ${clock(END, 0)}`);
  $("when").textContent = `${text} \u00b7 window ${clock(starts[i], 1)}\u2013${clock(ends[i], 1)}`;
  if (i === shownWindow && face === shownFace) return;
  shownWindow = i;
  shownFace = face;
  const p = predictionAt(i);
  const known = p !== null && p.known;
  $("verdict").textContent = known ? `${p.emotion}, ${percent(p.probability)}` : p ? "nothing to go by" : "not in view";
  rows.forEach(({ row, fill, number }, e) => {
    const value = known ? p.probabilities[e] : 0;
    fill.style.transform = `scaleX(${value})`;
    number.textContent = known ? percent(value) : "";
    row.classList.toggle("top", known && p.emotion === EMOTIONS[e]);
  });
  const mark = $("gauge").querySelector("i");
  mark.hidden = !known;
  if (known) mark.style.left = `${(p.valence + 5) * 10}%`;
  const used = p ? [p.face ? `face seen in ${percent(p.coverage)}` : "", p.voice ? "voice heard" : "", p.why] : [];
  const valence = known ? `Valence ${signed(p.valence)}` : "\u00a0";
  $("valence").textContent = valence;
  $("used").textContent = used.filter(Boolean).join(" \u00b7 ");
  if (playable && !media.paused) announce();
}

function percent(value) {
  return Math.round(100 * value) + "\u00a0%";
}

let announced = "", waiting = 0, lastSaid = 0;

/** Tell screen readers the prediction: once seeking has come to rest, and while playing when the emotion changes. */
function announce() {
  const p = predictionAt(windowAt(now()));
  const emotion = p && p.known ? p.emotion : "nothing to go by";
  const playing = playable && !media.paused;
  if (playing && (emotion === announced || performance.now() - lastSaid < 2000)) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const more = p && p.known ? ` ${percent(p.probability)}, valence ${p.valence.toFixed(1)}` : "";
    $("live").textContent = `${clock(now(), 0)}: ${emotion}${more}`;
    announced = emotion;
    lastSaid = performance.now();
  }, playing ? 0 : 250);
}

function paintOverview(ratio) {
  overview.hidden = starts.length < 60;
  if (overview.hidden) return;
  const width = overview.clientWidth;
  const key = [width, ratio, face.label, colours.ink].join();
  if (overview.dataset.drawn !== key) {
    overview.dataset.drawn = key;
    const seen = { ...view };
    Object.assign(view, { from: BEGIN, to: END });
    paintEmotions(penOf(overview.firstElementChild, width, 26, ratio), width, 26, columns(width));
    Object.assign(view, seen);
  }
  const scale = width / (END - BEGIN || 1);
  $("window").style.transform = `translateX(${(view.from - BEGIN) * scale}px)`;
  $("window").style.width = Math.max(6, (view.to - view.from) * scale) + "px";
}

function point(x) {
  const time = timeAt(x), { width, offset } = area();
  const at = ((time - view.from) / (view.to - view.from || 1)) * width;
  const inside = at >= 0 && at <= width;
  $("hover").hidden = $("tip").hidden = !inside;
  if (!inside) return;
  const p = predictionAt(windowAt(time));
  const what = p && p.known ? `${p.emotion} ${percent(p.probability)}, valence ${signed(p.valence)}` : p ? p.why : "not in view";
  $("hover").style.transform = `translateX(${at}px)`;
  $("tip").textContent = `${clock(time, 1)} \u00b7 ${what}`;
  const wide = $("tip").offsetWidth;
  $("tip").style.transform = `translateX(${Math.min(at + 10, width - wide)}px)`;
}

const fingers = new Map();
let drag = null;

timeline.addEventListener("pointerdown", (event) => {
  if (event.button || event.clientX < area().left) return;
  fingers.set(event.pointerId, event.clientX);
  timeline.setPointerCapture(event.pointerId);
  const xs = [...fingers.values()];
  drag = { x: event.clientX, view: { ...view }, moved: fingers.size > 1, apart: Math.abs(xs[0] - xs[xs.length - 1]) };
});
timeline.addEventListener("pointermove", (event) => {
  if (!drag || !fingers.has(event.pointerId)) {
    if (event.pointerType !== "touch") point(event.clientX);
    return;
  }
  fingers.set(event.pointerId, event.clientX);
  const xs = [...fingers.values()], length = drag.view.to - drag.view.from, { left, width } = area();
  if (xs.length > 1) {
    const middle = (xs[0] + xs[1]) / 2, at = drag.view.from + ((middle - left) / width) * length;
    const scale = drag.apart / Math.max(8, Math.abs(xs[0] - xs[1]));
    show(at - (at - drag.view.from) * scale, at + (drag.view.to - at) * scale);
    return;
  }
  drag.moved ||= Math.abs(event.clientX - drag.x) > 4;
  if (!drag.moved) return;
  if (isWhole()) return seek(timeAt(event.clientX));
  const by = ((event.clientX - drag.x) / width) * length;
  show(drag.view.from - by, drag.view.to - by);
});
timeline.addEventListener("pointerup", (event) => {
  if (drag && !drag.moved) seek(timeAt(event.clientX));
});
for (const name of ["pointerup", "pointercancel"]) {
  timeline.addEventListener(name, (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) drag = null;
  });
}
timeline.addEventListener("pointerleave", () => ($("hover").hidden = $("tip").hidden = true));
timeline.addEventListener("dblclick", (event) => zoom(0.5, timeAt(event.clientX)));
timeline.addEventListener("wheel", (event) => {
  const along = event.shiftKey ? event.deltaX || event.deltaY : event.deltaX;
  if (event.ctrlKey || event.metaKey) zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) / 100), timeAt(event.clientX));
  else if (along && !isWhole()) show(view.from + (along / area().width) * (view.to - view.from), 0);
  else return;
  event.preventDefault();
}, { passive: false });

function centre(event) {
  const box = overview.getBoundingClientRect(), length = view.to - view.from;
  const time = BEGIN + ((event.clientX - box.left) / box.width) * (END - BEGIN);
  if (isWhole()) seek(time);
  else show(time - length / 2, time + length / 2);
}
overview.addEventListener("pointerdown", (event) => {
  overview.setPointerCapture(event.pointerId);
  centre(event);
});
overview.addEventListener("pointermove", (event) => event.buttons && centre(event));

document.addEventListener("keydown", (event) => {
  const on = event.target, name = on.tagName;
  if (event.ctrlKey || event.metaKey || event.altKey || ["SELECT", "INPUT", "VIDEO", "AUDIO"].includes(name)) return;
  const step = data.hop * (event.shiftKey ? 10 : 1);
  const acts = {
    ArrowLeft: () => seek(now() - step),
    ArrowRight: () => seek(now() + step),
    Home: () => seek(BEGIN),
    End: () => seek(END),
  };
  if (name !== "BUTTON" && name !== "A") acts[" "] = toggle;
  if (on === timeline) Object.assign(acts, { "+": () => $("in").click(), "=": () => $("in").click() });
  if (on === timeline) Object.assign(acts, { "-": () => $("out").click(), 0: () => $("all").click() });
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
});

function middle() {
  const time = now();
  return time >= view.from && time <= view.to ? time : (view.from + view.to) / 2;
}
$("in").addEventListener("click", () => zoom(0.5, middle()));
$("out").addEventListener("click", () => zoom(2, middle()));
$("all").addEventListener("click", () => show(BEGIN, END));
for (const button of document.querySelectorAll(".moment")) {
  button.addEventListener("click", () => seek(Number(button.dataset.time)));
}

const legend = [...$("legend").children];
legend.forEach((button, e) =>
  button.addEventListener("click", () => {
    only = only === e ? null : e;
    $("legend").classList.toggle("one", only !== null);
    legend.forEach((b, n) => b.setAttribute("aria-pressed", n === only));
    draw();
  }),
);

$("who").hidden = series.length < 2;
series.forEach((s, n) => {
  const span = `${clock(edges[s.first], 0)}\u2013${clock(edges[s.first + s.flags.length], 0)}`;
  $("face").add(new Option(n ? `${s.label}, ${span}` : s.label, n));
});
$("face").addEventListener("change", () => {
  face = series[$("face").value];
  addLanes();
  draw();
  update();
  announce();
});

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null; // the reader's choice, for this page

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
  readColours();
  draw();
}
$("theme").addEventListener("click", () => setTheme((theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark")));
dark.addEventListener("change", () => theme || setTheme(dark.matches ? "dark" : "light"));

let before = null;
addEventListener("beforeprint", () => {
  before = { theme: document.documentElement.dataset.theme, from: view.from, to: view.to };
  document.documentElement.dataset.theme = "light";
  readColours();
  Object.assign(view, { from: BEGIN, to: END });
  paint();
});
addEventListener("afterprint", () => {
  setTheme(before.theme);
  show(before.from, before.to);
});

timeline.setAttribute("aria-valuemin", BEGIN.toFixed(1));
timeline.setAttribute("aria-valuemax", END.toFixed(1));
document.documentElement.classList.add("ready");
$("stage").classList.toggle("bare", !media);
$("screen").hidden = !media;
addLanes();
setTheme(dark.matches ? "dark" : "light");
new ResizeObserver(draw).observe($("lanes"));
update();
addEventListener("DOMContentLoaded", loadMedia);
