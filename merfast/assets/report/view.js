// Which stretch of time is seen, and how it lies in the width of the lanes.

const view = { from: BEGIN, to: END };
const LEAST = Math.min(END - BEGIN, Math.max(4 * data.hop, 0.5)); // seconds that are always seen

/** Show a stretch, moved into the whole and no shorter than the least. */
function show(from, to) {
  const length = Math.min(END - BEGIN, Math.max(LEAST, to - from));
  view.from = Math.max(BEGIN, Math.min(from, END - length));
  view.to = view.from + length;
  draw();
}

/** Zoom by a factor, with a time staying where it is. */
function zoom(factor, at) {
  const length = Math.min(END - BEGIN, Math.max(LEAST, (view.to - view.from) * factor));
  const part = (at - view.from) / (view.to - view.from || 1);
  show(at - part * length, at + (1 - part) * length);
}

function isWhole() {
  return view.to - view.from >= END - BEGIN - 1e-6;
}

/** Bring a time into view, a page on if it is beyond an end. */
function follow(time) {
  const length = view.to - view.from;
  if (time < view.from || time > view.to) show(time - 0.1 * length, time + 0.9 * length);
}

const COARSE = 3; // pixels of a column, where windows are narrower than that

/** Averages of the windows that are seen, in columns of whole pixels. */
function columns(width) {
  const from = windowAt(view.from), to = windowAt(view.to);
  const scale = width / (view.to - view.from || 1);
  const least = (to - from) * COARSE > width ? COARSE : 1;
  const out = [];
  let cell = null;
  for (let i = from; i <= to; i++) {
    const left = Math.max(0, Math.round((edges[i] - view.from) * scale));
    const right = Math.min(width, Math.round((edges[i + 1] - view.from) * scale));
    if (!cell || left >= cell.left + least) {
      cell = { left, right: left, there: 0, known: 0, sums: new Float64Array(6), total: 0, valence: 0, least: 9, most: -9 };
      Object.assign(cell, { windows: 0, coverage: 0, face: 0, voice: 0 });
      out.push(cell);
    }
    cell.right = Math.max(cell.right, right);
    cell.windows++;
    const k = i - face.first;
    const flags = k >= 0 && k < face.flags.length ? face.flags[k] : 0;
    if (!(flags & 8)) continue;
    cell.there++;
    cell.voice += (flags >> 1) & 1;
    cell.face += (flags >> 2) & 1;
    cell.coverage += face.coverage[k] / 255;
    if (!(flags & 1)) continue;
    const valence = face.valence[k] / 1000;
    cell.known++;
    cell.valence += valence;
    cell.least = Math.min(cell.least, valence);
    cell.most = Math.max(cell.most, valence);
    for (let e = 0; e < 6; e++) {
      cell.sums[e] += face.probabilities[6 * k + e];
      cell.total += face.probabilities[6 * k + e];
    }
  }
  for (let c = 0; c + 1 < out.length; c++) out[c].right = out[c + 1].left;
  return out.filter((c) => c.right > c.left);
}

/** The largest attention in each column of pixels, 0 to 1. */
function attentionColumns(modality, width) {
  const out = new Float32Array(width);
  const bins = face.attention[modality];
  if (!bins) return out;
  const seconds = (view.to - view.from) / width;
  for (let x = 0; x < width; x++) {
    const from = Math.floor((view.from + x * seconds - BEGIN) / data.bin + 1e-6) - bins.first;
    const to = Math.max(from + 1, Math.floor((view.from + (x + 1) * seconds - BEGIN) / data.bin) - bins.first);
    let most = 0;
    for (let b = Math.max(0, from); b < Math.min(to, bins.values.length); b++) most = Math.max(most, bins.values[b]);
    out[x] = most / 255;
  }
  return out;
}
