/** The voter's page of a blind comparison: all videos in step, scores for each, the next one. */

const TEXT = {
  instruction: "The video was to be changed so:",
  source: "Original",
  candidate: (n) => `Video ${String.fromCharCode(65 + n)}`,
  count: (done, of) => `${Math.min(done + 1, of)} of ${of}`,
  worst: "1: badly",
  best: (scale) => `${scale}: very well`,
  play: "Play",
  pause: "Pause",
  slow: "Half speed",
  normal: "Full speed",
  back: "Frame back",
  forth: "Frame forward",
  next: "Next",
  unscored: "Score each video, then go on.",
  closed: "This study is closed. Thank you all the same.",
  thanks: "Thank you. That was all; your scores are saved.",
  gone: "This study cannot be opened",
};
const FRAME = 1 / 24; // seconds: what two videos in step may be apart, and a step where the study does not say how long a frame lasts
// Where compare.mp4 has its two pictures: labels on top, a gap between (video/sheets.py).
const HEAD = 24, GAP = 8;
const base = location.pathname.replace(/\/$/, "");
const main = document.getElementById("main");

function make(tag, facts = {}, ...children) {
  const element = Object.assign(document.createElement(tag), facts);
  element.append(...children);
  return element;
}

/** Return the part of a video's picture that is shown: x, y, width, height. */
function partOf(video, crop) {
  const { videoWidth: width, videoHeight: height } = video;
  if (Array.isArray(crop)) return crop;
  if (crop !== "left" && crop !== "right") return [0, 0, width, height];
  const half = (width - GAP) / 2;
  return [crop === "left" ? 0 : half + GAP, HEAD, half, height - HEAD];
}

/** Play a video; a pause or the next ballot may come before it does, which is no fault. */
function play(video) { return video.play().catch(() => {}); }

/** Videos that play in step, each part of one drawn on its canvas; the same file is loaded once. */
class Screen {
  constructor() {
    this.videos = new Map();
    this.views = [];
    this.stopped = false;
    this.frame = FRAME; // seconds
  }

  add(media, label) {
    if (!this.videos.has(media.url)) {
      const video = make("video", { src: media.url, muted: true, loop: true, playsInline: true, preload: "auto" });
      video.addEventListener("error", () => fail(`${label}: ${TEXT.gone}`));
      this.videos.set(media.url, video);
    }
    if (media.fps) this.frame = 1 / media.fps;
    const canvas = make("canvas", { width: 16, height: 9 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    this.views.push({ video: this.videos.get(media.url), crop: media.crop, canvas });
    return canvas;
  }

  get lead() { return this.videos.values().next().value; }

  start() {
    const draw = () => {
      if (this.stopped) return;
      const { lead } = this;
      for (const video of this.videos.values()) {
        if (video === lead || video.readyState < 2 || video.seeking) continue;
        if (Math.abs(video.currentTime - lead.currentTime) > FRAME) video.currentTime = lead.currentTime;
        if (video.paused !== lead.paused) lead.paused ? video.pause() : play(video);
      }
      for (const { video, crop, canvas } of this.views) {
        if (video.readyState < 2) continue;
        const [x, y, width, height] = partOf(video, crop);
        if (canvas.width !== width || canvas.height !== height) {
          Object.assign(canvas, { width, height });
          canvas.classList.toggle("small", width < 160);
        }
        canvas.getContext("2d").drawImage(video, x, y, width, height, 0, 0, width, height);
      }
      requestAnimationFrame(draw);
    };
    draw();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(this.lead);
  }

  toggle() { this.lead.paused ? play(this.lead) : this.lead.pause(); }

  step(frames) {
    const { frame } = this;
    const now = Math.floor(this.lead.currentTime / frame + 0.01);
    const latest = Math.max(0, (this.lead.duration || 0) - frame / 2);
    const time = Math.min(Math.max(0, now + frames) + 0.5, latest / frame) * frame; // its middle: ends are rounded
    for (const video of this.videos.values()) {
      video.pause();
      video.currentTime = time;
    }
  }

  set speed(rate) { for (const video of this.videos.values()) video.playbackRate = rate; }

  stop() {
    this.stopped = true;
    for (const video of this.videos.values()) { video.pause(); video.removeAttribute("src"); video.load(); }
  }
}

let screen = null;

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(`${base}/${path}`, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `${TEXT.gone} (${response.status})`);
  return answer;
}

function fail(message) {
  const place = document.getElementById("error");
  if (place) place.textContent = message;
  else main.replaceChildren(make("p", { className: "error", textContent: message }));
}

function questionOf(key, name, text, scale, onScore) {
  const choices = Array.from({ length: scale }, (_, n) => {
    const input = make("input", { type: "radio", name: `${key} ${name}`, value: n + 1 });
    input.addEventListener("change", () => onScore(n + 1));
    return make("label", {}, input, make("span", { textContent: n + 1 }));
  });
  const ends = make("div", { className: "ends" },
    make("span", { textContent: TEXT.worst }), make("span", { textContent: TEXT.best(scale) }));
  return make("fieldset", {}, make("legend", { textContent: text }), make("div", { className: "scale" }, ...choices), ends);
}

function show(ballot) {
  screen?.stop();
  document.title = ballot.title;
  document.getElementById("title").textContent = ballot.title;
  document.getElementById("count").textContent = ballot.comparison ? TEXT.count(ballot.done, ballot.of) : "";
  main.setAttribute("aria-busy", "false");
  const { comparison } = ballot;
  if (!comparison) {
    main.replaceChildren(make("p", { className: "instruction", textContent: ballot.closed ? TEXT.closed : TEXT.thanks }));
    return;
  }
  screen = new Screen();
  const scores = Object.fromEntries(comparison.candidates.map(({ key }) => [key, {}]));
  const next = make("button", { className: "next", textContent: TEXT.next, disabled: true, type: "button" });
  const hint = make("p", { className: "hint", textContent: TEXT.unscored });
  const figures = comparison.candidates.map(({ key, media }, n) => make("figure", {},
    screen.add(media, TEXT.candidate(n)), make("figcaption", { textContent: TEXT.candidate(n) }),
    ...ballot.questions.map(({ name, text }) => questionOf(key, name, text, ballot.scale, (score) => {
      scores[key][name] = score;
      const all = Object.values(scores).every((one) => ballot.questions.every((question) => one[question.name]));
      next.disabled = !all;
      hint.hidden = all;
    }))));
  const source = make("figure", {}, screen.add(comparison.source, TEXT.source),
    make("figcaption", { textContent: TEXT.source }));
  const toggle = make("button", { textContent: TEXT.pause, type: "button" });
  toggle.addEventListener("click", () => screen.toggle());
  for (const event of ["play", "pause"]) {
    screen.lead.addEventListener(event, () => { toggle.textContent = screen.lead.paused ? TEXT.play : TEXT.pause; });
  }
  if (screen.lead.paused) toggle.textContent = TEXT.play;
  const slow = make("button", { textContent: TEXT.slow, type: "button" });
  slow.addEventListener("click", () => {
    const half = slow.textContent === TEXT.slow;
    screen.speed = half ? 0.5 : 1;
    slow.textContent = half ? TEXT.normal : TEXT.slow;
  });
  const steps = [[-1, TEXT.back], [1, TEXT.forth]].map(([frames, text]) => {
    const button = make("button", { textContent: text, type: "button" });
    button.addEventListener("click", () => screen.step(frames));
    return button;
  });
  next.addEventListener("click", async () => {
    next.disabled = true;
    try {
      const keys = comparison.candidates.map(({ key }) => key);
      show(await call("votes", { voter: ballot.voter, keys, scores }));
      scrollTo(0, 0);
    } catch (error) {
      next.disabled = false;
      fail(error.message);
    }
  });
  main.replaceChildren(
    make("p", { className: "instruction" }, make("small", { textContent: TEXT.instruction }), `“${comparison.instruction}”`),
    make("div", { className: "clips" }, source, ...figures),
    make("div", { className: "bar" }, toggle, ...steps, slow, hint, next),
    make("p", { id: "error", className: "error", role: "alert" }));
  screen.start();
}

const voterKey = `v2edit voter ${base}`;
try {
  const voter = localStorage.getItem(voterKey);
  const ballot = await call(`ballot${voter ? `?voter=${encodeURIComponent(voter)}` : ""}`);
  localStorage.setItem(voterKey, ballot.voter);
  show(ballot);
} catch (error) {
  main.setAttribute("aria-busy", "false");
  fail(error.message);
}
