/** Before and after of a run as pictures in step. Both halves of compare.mp4 are one file, so in step by construction;
 * other videos (subtasks, the mask) follow it and are set right when they are off by more than half a frame. */

const HEAD = 24; // pixels of compare.mp4 above its pictures, which hold the words source and edited
const GAP = 8; // between them

/** Where the two pictures are in a comparison of a size: [[x, y, w, h], [x, y, w, h]]. */
export function halves(width, height) {
  const half = Math.floor((width - GAP) / 2);
  return [
    [0, HEAD, half, height - HEAD],
    [half + GAP, HEAD, half, height - HEAD],
  ];
}

function makeVideo(url, onReady) {
  const video = document.createElement("video");
  Object.assign(video, { src: url, muted: true, loop: true, playsInline: true, preload: "auto" });
  for (const kind of ["loadeddata", "seeked"]) video.addEventListener(kind, onReady);
  return video;
}

export class Pictures {
  /** `media` has urls: compare, or before and after; subtasks; mask. */
  constructor(media, fps, onChange) {
    this.media = media;
    this.fps = fps || 24;
    this.onChange = onChange;
    this.videos = new Map();
    this.rate = 1;
    const ready = () => this.changed();
    this.leader = makeVideo(media.compare ?? media.after ?? media.before, ready);
    for (const kind of ["play", "pause", "ended"]) this.leader.addEventListener(kind, () => this.follow());
    this.leader.addEventListener("error", () => onChange({ error: true }));
    this.followers = new Set();
  }

  get steps() {
    return 1 + (this.media.subtasks?.length ?? 0);
  }

  get playing() {
    return !this.leader.paused;
  }

  get time() {
    return this.leader.currentTime;
  }

  /** The size of one picture, once it is known. */
  get size() {
    const { videoWidth: width, videoHeight: height } = this.leader;
    if (!width) return null;
    if (!this.media.compare) return [width, height];
    const [, [, , w, h]] = halves(width, height);
    return [w, h];
  }

  changed() {
    this.follow();
    this.onChange({});
  }

  /** The video of a step that has a file of its own; it follows the leader from now on. */
  video(url) {
    if (!this.videos.has(url)) this.videos.set(url, makeVideo(url, () => this.onChange({})));
    return this.videos.get(url);
  }

  /** What is shown at a strength: 0 is the source, `steps` the whole edit. Returns [video, x, y, w, h]. */
  part(step) {
    const whole = (video) => [video, 0, 0, video.videoWidth, video.videoHeight];
    if (step > 0 && step < this.steps) return whole(this.video(this.media.subtasks[step - 1]));
    if (this.media.compare) {
      const { videoWidth, videoHeight } = this.leader;
      return [this.leader, ...halves(videoWidth, videoHeight)[step ? 1 : 0]];
    }
    if (step) return whole(this.leader);
    return this.media.before ? whole(this.video(this.media.before)) : whole(this.leader);
  }

  mask() {
    return this.video(this.media.mask);
  }

  /** Say which videos are shown: they follow, the others rest. */
  use(videos) {
    this.followers = new Set(videos.filter((video) => video !== this.leader));
    for (const video of this.videos.values()) if (!this.followers.has(video) && !video.paused) video.pause();
    this.follow();
  }

  follow() {
    for (const video of this.followers) {
      const off = Math.abs(video.currentTime - this.leader.currentTime);
      video.playbackRate = this.rate;
      if (this.leader.paused) {
        if (!video.paused) video.pause();
        if (off > 1e-4 && !video.seeking) video.currentTime = this.leader.currentTime;
      } else {
        if (video.paused) video.play().catch(() => {});
        const wraps = Math.abs(off - (this.leader.duration || 0)) < 0.5 / this.fps;
        if (off > 0.5 / this.fps && !wraps && !video.seeking) video.currentTime = this.leader.currentTime;
      }
    }
  }

  play() {
    return this.leader.play().catch(() => {});
  }

  pause() {
    this.leader.pause();
  }

  seek(frame) {
    this.leader.currentTime = (frame + 0.5) / this.fps;
    this.follow();
  }

  set({ rate, loop, muted }) {
    if (rate) this.rate = this.leader.playbackRate = rate;
    if (loop !== undefined) this.leader.loop = loop;
    if (muted !== undefined) this.leader.muted = muted;
  }

  close() {
    for (const video of [this.leader, ...this.videos.values()]) {
      video.pause();
      video.removeAttribute("src");
      video.load();
    }
  }
}
