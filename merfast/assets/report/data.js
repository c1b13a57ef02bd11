// What the page shows: typed arrays over windows, and questions to them.

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // browsers from 2025 on
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

const data = JSON.parse(document.getElementById("data").textContent);
const EMOTIONS = data.emotions;
const UNKNOWN = -32768;
const starts = new Float32Array(bytes(data.starts).buffer);
const ends = new Float32Array(bytes(data.ends).buffer);
const edges = new Float32Array(bytes(data.edges).buffer);
const BEGIN = edges[0], END = edges[edges.length - 1];
const series = data.series.map((s) => ({
  label: s.label,
  first: s.first,
  probabilities: bytes(s.probabilities), // [n * 6], 255 is 1
  valence: new Int16Array(bytes(s.valence).buffer), // thousandths
  coverage: bytes(s.coverage), // 255 is all
  flags: bytes(s.flags), // 1 known, 2 voice, 4 face, 8 an entry in the results
  reasons: s.reasons,
  reason: new Uint16Array(bytes(s.reason).buffer),
  attention: Object.fromEntries(
    Object.entries(s.attention).map(([m, a]) => [m, { first: a.first, values: bytes(a.values) }]),
  ),
}));
let face = series[0];

/** Number of the window whose cell holds a time. */
function windowAt(time) {
  let low = 0, high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle] <= time) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** What is known of the chosen face in a window; null if the results have nothing on it there. */
function predictionAt(i) {
  const k = i - face.first;
  if (k < 0 || k >= face.flags.length || !(face.flags[k] & 8)) return null;
  const probabilities = Array.from(face.probabilities.subarray(6 * k, 6 * k + 6), (p) => p / 255);
  const known = Boolean(face.flags[k] & 1);
  return {
    known,
    probabilities,
    emotion: known ? EMOTIONS[probabilities.indexOf(Math.max(...probabilities))] : null,
    probability: Math.max(...probabilities),
    valence: face.valence[k] / 1000,
    coverage: face.coverage[k] / 255,
    voice: Boolean(face.flags[k] & 2),
    face: Boolean(face.flags[k] & 4),
    why: face.reasons[face.reason[k]],
  };
}

function clock(seconds, digits) {
  const unit = 10 ** digits;
  const whole = Math.round(seconds * unit);
  const rest = digits ? "." + String(whole % unit).padStart(digits, "0") : "";
  const s = Math.floor(whole / unit);
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(s / 3600), minutes = Math.floor(s / 60) % 60;
  return (hours ? `${hours}:${two(minutes)}` : `${minutes}`) + `:${two(s % 60)}${rest}`;
}

function signed(value) {
  return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);
}
