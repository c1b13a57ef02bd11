// The video or sound, and the clock of the page: that of the media, or its own without any.

const media = document.getElementById("media");
let own = BEGIN; // seconds, where no media are, or not yet
let playable = false;
let next = null; // where to seek once the present seek is done: Chromium may stall where seeks overtake each other

function now() {
  return playable ? (next ?? media.currentTime) : own;
}

function seek(time) {
  own = Math.max(BEGIN, Math.min(time, END - 1e-3));
  if (playable && media.seeking) next = own;
  else if (playable) media.currentTime = own;
  follow(own);
  update();
  announce();
}

function toggle() {
  if (!playable) return;
  if (media.paused) media.play().catch((error) => error.name === "NotSupportedError" && trouble());
  else media.pause();
}

function trouble() {
  const text = document.getElementById("trouble");
  const lies = data.linked ? " It is linked, and has to lie where it was." : "";
  text.textContent = `This browser cannot play the video.${lies} The timeline works without it.`;
  text.hidden = false;
  playable = false;
}

/** Decode embedded media piece by piece, so that the page answers meanwhile, and hand them to the player. */
async function loadMedia() {
  if (!media) return;
  media.addEventListener("loadedmetadata", () => {
    playable = true;
    if (own > BEGIN) media.currentTime = own;
    update();
  });
  media.addEventListener("error", trouble);
  media.addEventListener("seeked", () => {
    if (next !== null) media.currentTime = next;
    next = null;
  });
  for (const name of ["seeked", "pause", "timeupdate", "ended"]) media.addEventListener(name, update);
  media.addEventListener("seeking", () => follow(now()));
  media.addEventListener("play", () => requestAnimationFrame(tick));
  if (data.linked) {
    if (media.error) trouble();
    else if (media.readyState >= 1) media.dispatchEvent(new Event("loadedmetadata"));
    return;
  }
  const parts = [];
  for (const chunk of document.querySelectorAll("script.chunk")) {
    parts.push(new Blob([bytes(chunk.textContent)]));
    chunk.remove();
    await new Promise((resume) => setTimeout(resume));
  }
  media.src = URL.createObjectURL(new Blob(parts, { type: media.dataset.type }));
}

function tick() {
  if (!playable || media.paused || media.ended) return;
  follow(now());
  update();
  requestAnimationFrame(tick);
}
