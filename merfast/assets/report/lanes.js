// The lanes of the timeline: each a label and a canvas, all over the same stretch of time.

const lanes = [];
const colours = {};
let only = null; // number of the emotion that is drawn alone

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "faint", "line", "lane", "card", "audio", "video"]) {
    colours[name] = style.getPropertyValue("--" + name).trim();
  }
  const probe = document.createElement("i");
  document.body.append(probe);
  colours.emotions = EMOTIONS.map((emotion) => {
    probe.className = emotion;
    return getComputedStyle(probe).getPropertyValue("--colour").trim();
  });
  probe.remove();
  const tile = document.createElement("canvas").getContext("2d");
  tile.canvas.width = tile.canvas.height = 8;
  tile.fillStyle = colours.card;
  tile.fillRect(0, 0, 8, 8);
  tile.strokeStyle = colours.faint;
  tile.globalAlpha = 0.6;
  for (const x of [-8, 0, 8]) {
    tile.moveTo(x - 1, 9);
    tile.lineTo(x + 9, -1);
  }
  tile.stroke();
  colours.missing = tile.createPattern(tile.canvas, "repeat");
}

function addLane(label, height, paint, scale) {
  const row = document.createElement("div");
  const name = document.createElement("span");
  const canvas = document.createElement("canvas");
  row.className = "lane";
  name.textContent = label;
  if (scale) {
    const [top, bottom] = scale.map((text) => Object.assign(document.createElement("small"), { textContent: text }));
    name.className = "scale";
    name.prepend(top);
    name.append(bottom);
  }
  canvas.style.height = height + "px";
  canvas.setAttribute("aria-hidden", "true");
  row.append(name, canvas);
  document.getElementById("lanes").append(row);
  lanes.push({ canvas, height, paint });
}

function addLanes() {
  document.getElementById("lanes").replaceChildren();
  lanes.length = 0;
  addLane("Emotions", 150, paintEmotions, ["100 %", "0"]);
  addLane("Valence", 96, paintValence, ["+5", "\u22125"]);
  if (face.attention.video) addLane("Attention to face", 30, (pen, w, h) => paintAttention(pen, w, h, "video"));
  if (face.attention.audio) addLane("Attention to voice", 30, (pen, w, h) => paintAttention(pen, w, h, "audio"));
  addLane("Face seen", 16, (pen, w, h, cells) => paintPresence(pen, h, cells, "face"));
  addLane("Voice heard", 16, (pen, w, h, cells) => paintPresence(pen, h, cells, "voice"));
  addLane("", 20, paintAxis);
}

let asked = 0;

/** Draw before the next picture of the page, once however often it is asked for. */
function draw() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    paint();
  });
}

function paint() {
  const width = lanes[0].canvas.clientWidth;
  if (!width) return;
  const ratio = window.devicePixelRatio || 1;
  const cells = columns(width);
  const most = cells.reduce((n, c) => Math.max(n, c.windows), 1);
  for (const lane of lanes) lane.paint(penOf(lane.canvas, width, lane.height, ratio), width, lane.height, cells);
  paintOverview(ratio);
  placeCursor();
  const digits = view.to - view.from < 20 ? 1 : 0;
  const span = isWhole() ? "" : `${clock(view.from, digits)} \u2013 ${clock(view.to, digits)} of ${clock(END, 0)}`;
  const mean = most > 1 ? `means of up to ${most} windows` : "";
  document.getElementById("range").textContent = [mean, span].filter(Boolean).join("; ");
  document.getElementById("out").disabled = document.getElementById("all").disabled = isWhole();
  document.getElementById("in").disabled = view.to - view.from <= LEAST + 1e-6;
}

function penOf(canvas, width, height, ratio) {
  const w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colours.lane;
  pen.fillRect(0, 0, width, height);
  return pen;
}

function paintEmotions(pen, width, height, cells) {
  pen.fillStyle = colours.missing;
  for (const c of cells) if (!c.known) pen.fillRect(c.left, 0, c.right - c.left, height);
  const floors = cells.map(() => height);
  for (let e = 0; e < 6; e++) {
    if (only !== null && only !== e) continue;
    pen.fillStyle = colours.emotions[e];
    cells.forEach((c, n) => {
      if (!c.known) return;
      const part = (c.sums[e] / c.total) * height;
      pen.fillRect(c.left, floors[n] - part, c.right - c.left, part);
      floors[n] -= part;
    });
  }
}

function paintValence(pen, width, height, cells) {
  const y = (valence) => ((5 - valence) / 10) * (height - 4) + 2;
  pen.fillStyle = colours.line;
  for (const v of [-5, -2.5, 2.5, 5]) pen.fillRect(0, y(v) - 0.5, width, 1);
  pen.fillStyle = colours.faint;
  pen.fillRect(0, y(0) - 0.5, width, 1);
  for (const c of cells) {
    if (!c.known) {
      pen.fillStyle = colours.missing;
      pen.fillRect(c.left, 0, c.right - c.left, height);
    } else {
      pen.globalAlpha = 0.28;
      pen.fillStyle = colours.ink;
      const from = c.known > 1 ? c.most : Math.max(0, c.most), to = c.known > 1 ? c.least : Math.min(0, c.least);
      pen.fillRect(c.left, y(from), c.right - c.left, Math.max(1, y(to) - y(from)));
      pen.globalAlpha = 1;
    }
  }
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.beginPath();
  let before = false;
  for (const c of cells) {
    if (c.known) {
      const at = y(c.valence / c.known);
      pen[before ? "lineTo" : "moveTo"](c.left, at);
      pen.lineTo(c.right, at);
    }
    before = c.known > 0;
  }
  pen.stroke();
}

function paintAttention(pen, width, height, modality) {
  pen.fillStyle = colours[modality];
  const values = attentionColumns(modality, width);
  let x = 0;
  while (x < width) {
    let to = x + 1;
    while (to < width && values[to] === values[x]) to++;
    const tall = values[x] * (height - 2);
    pen.fillRect(x, height - tall, to - x, tall);
    x = to;
  }
}

function paintPresence(pen, height, cells, kind) {
  for (const c of cells) {
    const part = c.there ? c[kind] / c.windows : 0;
    if (part < 1) {
      pen.fillStyle = colours.missing;
      pen.fillRect(c.left, 0, c.right - c.left, height);
    }
    const tall = height * (kind === "face" ? Math.min(part, c.coverage / c.windows) : part);
    pen.fillStyle = colours[kind === "face" ? "video" : "audio"];
    pen.fillRect(c.left, height - tall, c.right - c.left, tall);
  }
}

function label(pen, text, x, y, align = "left") {
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = align;
  pen.lineWidth = 3;
  pen.strokeStyle = colours.lane;
  pen.strokeText(text, x, y);
  pen.fillStyle = colours.faint;
  pen.fillText(text, x, y);
}

function paintAxis(pen, width, height) {
  pen.fillStyle = colours.card;
  pen.fillRect(0, 0, width, height);
  const length = view.to - view.from;
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  const step = steps.find((s) => (s / length) * width >= 64) || Math.ceil(length / 8 / 3600) * 3600;
  for (let n = Math.ceil(view.from / step - 1e-6); n * step <= view.to + 1e-6; n++) {
    const x = ((n * step - view.from) / length) * width;
    pen.fillStyle = colours.faint;
    pen.fillRect(Math.min(width - 1, x), 0, 1, 5);
    const align = x < 16 ? "left" : x > width - 16 ? "right" : "center";
    label(pen, clock(n * step, step < 1 ? 1 : 0), x, 16, align);
  }
}
