/** Two splats in one view by three and Spark: before on the left of the wipe, after on its right. */

import { Color, Matrix4, OrbitControls, PerspectiveCamera, Quaternion, Scene, SparkRenderer, SplatMesh, Vector3, WebGLRenderer } from "./vendor/splats.js";

const AWAKE = 1000; // ms of drawing after a change
const LONGEST = 20_000; // ms until the first picture, or what there is of it
const BACKGROUNDS = { dark: "#101113", light: "#f2f2f0" };

async function fetchBytes(url, onProgress) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status}`);
  const total = Number(answer.headers.get("content-length")) || 0;
  const reader = answer.body.getReader();
  const pieces = [];
  let sum = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    sum += value.length;
    if (total) onProgress(sum / total);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

/** The edges of a box, as pairs of its corners; corner k is at the greater end of each axis whose bit is in k. */
const EDGES = [0, 1, 2].flatMap((axis) => [0, 1, 2, 3, 4, 5, 6, 7].filter((k) => !(k & (1 << axis))).map((k) => [k, k | (1 << axis)]));

/** A camera of a nerfstudio camera path: {position, rotation, fov in degrees}. */
function readCamera({ camera_to_world: values, fov }) {
  const matrix = new Matrix4().set(...values);
  const [position, rotation] = [new Vector3(), new Quaternion()];
  matrix.decompose(position, rotation, new Vector3());
  return { position, rotation, fov };
}

export class SceneViewer {
  constructor(canvas, onProgress, onFollow) {
    this.canvas = canvas;
    this.onProgress = onProgress;
    this.onFollow = onFollow;
    this.renderer = new WebGLRenderer({ canvas, antialias: false, preserveDrawingBuffer: false });
    this.camera = new PerspectiveCamera(45, 1, 0.01, 1000);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.enableDamping = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.controls.addEventListener("start", () => this.follow(false));
    this.controls.addEventListener("change", () => this.wake());
    this.sides = [];
    this.path = [];
    this.wipe = 0.5;
    this.following = false;
    this.start = null;
    this.set({ light: false });
    this.resized = new ResizeObserver(() => this.wake());
    this.resized.observe(canvas);
    this.renderer.setAnimationLoop(() => this.draw());
  }

  /** Load both splats and the camera path. */
  async load({ splat_before: before, splat_after: after, path }) {
    const urls = before ? [before, after] : [after];
    const shares = urls.map(() => 0);
    const load = async (url, at) => {
      const fileBytes = await fetchBytes(url, (share) => {
        shares[at] = share;
        this.onProgress((0.9 * shares.reduce((a, b) => a + b, 0)) / urls.length);
      });
      const mesh = new SplatMesh({ fileBytes, fileName: url.split("/").pop() });
      await mesh.initialized;
      const scene = new Scene();
      const spark = new SparkRenderer({ renderer: this.renderer, onDirty: () => this.wake() }); // when it has sorted
      scene.add(spark);
      scene.add(mesh);
      return { scene, mesh, spark };
    };
    this.sides = await Promise.all(urls.map(load));
    if (path) {
      const answer = await fetch(path);
      const facts = answer.ok ? await answer.json() : {};
      this.path = (facts.camera_path ?? []).map(readCamera);
      this.fps = facts.fps || 8;
    }
    this.place();
    this.wake(LONGEST);
    await new Promise((resolve) => {
      this.onShown = resolve;
      setTimeout(resolve, LONGEST);
    });
    this.onShown = null;
    this.wake();
  }

  /** Draw from now on for a while: the order of the splats is found out beside, and comes a few frames later. */
  wake(time = AWAKE) {
    this.until = Math.max(this.until ?? 0, performance.now() + time);
  }

  /** Begin where the path does, looking at the middle of the scene, with the path's own up. */
  place() {
    const box = this.sides[0].mesh.getBoundingBox(true);
    const centre = box.getCenter(new Vector3());
    const first = this.path[0];
    if (first) {
      const up = new Vector3();
      for (const { rotation } of this.path) up.add(new Vector3(0, 1, 0).applyQuaternion(rotation));
      this.camera.up.copy(snap(up.normalize()));
      this.camera.position.copy(first.position);
      this.camera.fov = first.fov;
      const ahead = new Vector3(0, 0, -1).applyQuaternion(first.rotation);
      const depth = Math.max(0.1, centre.clone().sub(first.position).dot(ahead));
      this.controls.target.copy(first.position).addScaledVector(ahead, depth);
    } else {
      const size = box.getSize(new Vector3()).length();
      this.camera.position.copy(centre).add(new Vector3(0, -size, size / 2));
      this.controls.target.copy(centre);
    }
    const reach = this.camera.position.distanceTo(this.controls.target);
    Object.assign(this.camera, { near: reach / 500, far: reach * 500 });
    this.controls.update();
  }

  reset() {
    this.follow(false);
    if (this.sides.length) this.place();
  }

  set({ wipe, light }) {
    if (wipe !== undefined) this.wipe = wipe;
    this.wake();
    if (light !== undefined) this.background = new Color(light ? BACKGROUNDS.light : BACKGROUNDS.dark);
  }

  /** Show the edges of a box between two corners, [x, y, z, x, y, z], or none. */
  setBox(box) {
    this.box = box;
    this.wake();
  }

  /** The middle half of the scene along each axis, as a box. */
  middle() {
    const box = this.sides[0].mesh.getBoundingBox(true);
    const [centre, size] = [box.getCenter(new Vector3()), box.getSize(new Vector3())];
    const round = (value) => Number(value.toPrecision(3));
    return [-0.25, 0.25].flatMap((share) => centre.clone().addScaledVector(size, share).toArray().map(round));
  }

  /** What is seen of the box's edges, as the path of an SVG of the canvas's size. */
  edges(width, height) {
    const near = -2 * this.camera.near;
    const corners = [...Array(8).keys()].map((k) => new Vector3(...[0, 1, 2].map((axis) => this.box[axis + (k & (1 << axis) ? 3 : 0)])).applyMatrix4(this.camera.matrixWorldInverse));
    const pixel = (point) => {
      const { x, y } = point.clone().applyMatrix4(this.camera.projectionMatrix);
      return `${(((x + 1) / 2) * width).toFixed(1)} ${(((1 - y) / 2) * height).toFixed(1)}`;
    };
    return EDGES.map(([a, b]) => {
      let [from, to] = corners[a].z < corners[b].z ? [corners[a], corners[b]] : [corners[b], corners[a]]; // from the far end
      if (from.z > near) return ""; // behind the camera
      if (to.z > near) to = from.clone().lerp(to, (near - from.z) / (to.z - from.z));
      return `M${pixel(from)}L${pixel(to)}`;
    }).join("");
  }

  /** Move along the camera path, or stop. */
  follow(on) {
    this.following = on && this.path.length > 1;
    this.start = null;
    this.onFollow(this.following);
    this.wake();
  }

  move(now) {
    this.start ??= now;
    const length = this.path.length - 1;
    const at = (((now - this.start) / 1000) * this.fps) % (2 * length);
    const place = at <= length ? at : 2 * length - at; // there and back
    const index = Math.min(length - 1, Math.floor(place));
    const [a, b, share] = [this.path[index], this.path[index + 1], place - index];
    this.camera.position.lerpVectors(a.position, b.position, share);
    this.camera.quaternion.slerpQuaternions(a.rotation, b.rotation, share);
    this.camera.fov = a.fov + (b.fov - a.fov) * share;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !this.sides.length || (!this.following && performance.now() > this.until)) return;
    const size = this.renderer.getSize(new Vector3());
    if (size.x !== width || size.y !== height) {
      this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
      this.renderer.setSize(width, height, false);
    }
    this.camera.aspect = width / height;
    if (this.following) this.move(performance.now());
    else this.controls.update();
    this.camera.updateProjectionMatrix();
    const edge = this.sides.length > 1 ? Math.round(width * this.wipe) : 0;
    const parts = this.sides.length > 1 ? [[0, edge], [edge, width - edge]] : [[0, width]];
    this.renderer.setScissorTest(true);
    parts.forEach(([left, wide], at) => {
      if (wide <= 0) return;
      this.renderer.setScissor(left, 0, wide, height);
      const { scene } = this.sides[at];
      scene.background = this.background;
      this.renderer.render(scene, this.camera);
    });
    this.renderer.setScissorTest(false);
    if (this.box) this.onBox?.(this.edges(width, height));
    if (this.onShown && this.sides.every(isSorted)) this.onShown();
  }

  close() {
    this.renderer.setAnimationLoop(null);
    this.resized.disconnect();
    this.controls.dispose();
    for (const { mesh } of this.sides) mesh.dispose?.();
    this.renderer.dispose();
  }
}

/** Whether what was drawn just now was in order: from back to front. */
const isSorted = ({ spark }) => spark.lastSortTime > 0 && spark.activeSplats > 0 && !spark.sorting && !spark.sortDirty;

/** The nearest axis where the up of a path is almost one, so that orbits are level. */
function snap(up) {
  const axes = [0, 1, 2].flatMap((axis) => [1, -1].map((sign) => new Vector3().setComponent(axis, sign)));
  const nearest = axes.reduce((best, one) => (one.dot(up) > best.dot(up) ? one : best));
  return nearest.dot(up) > 0.85 ? nearest : up;
}
