// The images: one pane for each sequence. A plain canvas shows slices at once, NiiVue takes over when all voxels are there.
import { Blend, colouredFile, paintVolume } from "./blend.js";
import { make } from "./elements.js";
import { drawSlice, voxelAt } from "./slices.js";

export const PLANES = { axial: 0, coronal: 1, sagittal: 2, "all three": 3 }; // NiiVue's numbers
const IN_PLANE = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2], "all three": [0, 1, 2] }; // axes
const COLUMNS = [1, 1, 2, 3, 2, 3, 3];
const MOST_WITHOUT_CARD = 2e7; // voxels: a processor that draws as a graphics card would stand still for minutes
const OPTIONS = {
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.54, 0.72, 1, 0.75],
  crosshairWidthUnit: "mm",
  clipPlaneHotKey: "",
  cycleClipPlaneHotKey: "",
  dragAndDropEnabled: false,
  fontColor: [0.75, 0.78, 0.84, 1],
  fontMinPx: 12,
  isRadiologicalConvention: true,
  loadingText: "",
  logLevel: "error",
  multiplanarShowRender: 0,
  show3Dcrosshair: false,
  viewModeHotKey: "",
};

export class Panes {
  /** `moved(voxel)` is called when a person moves the crosshair in a pane. */
  constructor(root, moved) {
    this.root = root;
    this.moved = moved;
    this.panes = [];
    this.limits = limitsOfGraphics();
    this.plane = "axial";
    this.isOutlined = false;
    new ResizeObserver(() => this.drawSlices()).observe(root);
  }

  /** Show some sequences of a case whose voxels are being read. */
  open(voxels, overlays, sequences, position) {
    const blend = new Blend(voxels, overlays);
    Object.assign(this, { voxels, blend, position, images: new Map(), layer: null, isWhole: false });
    this.show(sequences);
  }

  /** Some slices have been read. */
  read(first, last) {
    this.blend.compose(first, last, this.isOutlined ? IN_PLANE.axial : null);
    this.drawSlices();
  }

  /** Choose the sequences, each with its pane. */
  async show(sequences) {
    this.sequences = sequences;
    while (this.panes.length < sequences.length) this.panes.push(this.#makePane());
    this.panes.forEach((pane, index) => {
      pane.element.hidden = index >= sequences.length;
      pane.sequence = sequences[index] ?? null;
      if (pane.sequence === null) return;
      const { name } = this.voxels.about.sequences[pane.sequence];
      pane.label.textContent = name;
      pane.flat.hidden = false;
      for (const canvas of [pane.flat, pane.gl]) canvas.setAttribute("aria-label", `Image ${name}`);
    });
    this.root.style.gridTemplateColumns = `repeat(${COLUMNS[sequences.length] ?? 3}, minmax(0, 1fr))`;
    this.drawSlices();
    if (this.isWhole) await this.#fill();
  }

  /** Why only axial slices can be shown of the open case; "" if NiiVue can show it. */
  get whySlices() {
    const { shape } = this.voxels.about;
    if (!this.limits) return "This browser has no WebGL2: only axial slices are shown.";
    if (Math.max(...shape) > this.limits.side) return "This case is too large for the graphics card: only axial slices are shown.";
    const isLarge = shape[0] * shape[1] * shape[2] > MOST_WITHOUT_CARD;
    if (isLarge && this.limits.isSoftware) return "This computer draws without a graphics card: of a case this large only axial slices are shown.";
    return "";
  }

  /** All voxels are there: hand them to NiiVue. */
  async whole() {
    this.isWhole = true;
    if (this.isOutlined) this.#compose();
    await this.#fill();
  }

  #compose() {
    this.blend.compose(0, this.voxels.about.shape[2], this.isOutlined ? IN_PLANE[this.plane] : null);
  }

  #makePane() {
    const flat = make("canvas", { className: "flat", "role": "img" });
    const gl = make("canvas", { className: "gl", "role": "img" });
    const label = make("span", { className: "label" });
    const element = make("div", { className: "pane" }, gl, flat, label);
    const pane = { element, flat, gl, label, niivue: null };
    flat.addEventListener("pointerdown", (event) => {
      this.moved(voxelAt(flat, this.voxels.about, event.offsetX, event.offsetY, this.position[2]));
    });
    flat.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.moved([this.position[0], this.position[1], this.position[2] + Math.sign(event.deltaY)]);
    }, { passive: false });
    this.root.append(element);
    return pane;
  }

  async #fill() {
    if (this.whySlices) return;
    const { voxels } = this;
    for (const pane of this.panes) {
      if (pane.sequence === null) continue;
      const layers = await this.#layersOf(pane.sequence);
      if (!pane.niivue) await this.#attach(pane);
      if (voxels !== this.voxels || pane.sequence === null) return; // another case was opened meanwhile
      const { niivue } = pane;
      niivue.volumes = layers;
      this.#setPlane(niivue);
      niivue.scene.pan2Dxyzmm = [0, 0, 0, 1];
      niivue.setVolume(layers[0], 0);
      this.#place(pane);
      pane.flat.hidden = true;
    }
  }

  async #attach(pane) {
    const { Niivue } = globalThis.niivue;
    pane.niivue = new Niivue({ ...OPTIONS });
    await pane.niivue.attachToCanvas(pane.gl);
    pane.niivue.onLocationChange = (location) => {
      if (this.isPlacing || pane.sequence === null || !pane.flat.hidden) return;
      this.panes.filter((other) => other !== pane && other.niivue).forEach((other) => {
        other.niivue.scene.pan2Dxyzmm = pane.niivue.scene.pan2Dxyzmm;
      });
      this.moved(Array.from(location.vox).slice(0, 3).map(Math.round));
    };
  }

  /** NiiVue's layers of a sequence: its image, and the blended overlays that all panes share. */
  async #layersOf(sequence) {
    const { voxels, images, blend } = this;
    const { NVImage } = globalThis.niivue;
    if (!this.layer && voxels.labels.length) {
      const layer = await NVImage.new(colouredFile(blend), "overlays.nii", "gray", 1);
      layer.colorbarVisible = false;
      this.layer = layer;
    }
    if (!images.has(sequence)) {
      const { name, black, white } = voxels.about.sequences[sequence];
      const image = await NVImage.new(voxels.images[sequence].buffer, `${name}.nii`, "gray", 1, null, black, white);
      image.colorbarVisible = false;
      images.set(sequence, image);
    }
    return this.layer ? [images.get(sequence), this.layer] : [images.get(sequence)];
  }

  /** Move the crosshair of all panes. */
  place(position) {
    this.position = position;
    this.panes.forEach((pane) => this.#place(pane));
    this.drawSlices();
  }

  #place(pane) {
    if (!pane.niivue?.volumes.length || pane.sequence === null || !this.isWhole) return;
    this.isPlacing = true;
    pane.niivue.scene.crosshairPos = pane.niivue.vox2frac(this.position);
    pane.niivue.drawScene();
    this.isPlacing = false;
  }

  setPlane(plane) {
    this.plane = plane;
    for (const { niivue } of this.#filled()) {
      this.#setPlane(niivue);
      niivue.drawScene();
    }
    if (this.isOutlined) this.outline(true);
  }

  /** Small planes need a wider cross; its gap of 8 mm to each side does not hide what it points to. */
  #setPlane(niivue) {
    const width = this.plane === "all three" ? 1 : 0.7;
    Object.assign(niivue.opts, { sliceType: PLANES[this.plane], crosshairWidth: width, crosshairGap: 16 / width });
    niivue.crosshairs3D = null;
  }

  /** Show the overlays as outlines, or filled. */
  outline(isOutlined) {
    this.isOutlined = isOutlined;
    if (!this.voxels) return;
    this.#compose();
    this.recolour();
  }

  /** Take over changed opacities of the overlays. */
  recolour() {
    if (this.layer) paintVolume(this.blend, this.layer.img);
    for (const { niivue } of this.#filled()) niivue.updateGLVolume();
    this.drawSlices();
  }

  #filled() {
    return this.panes.filter((pane) => pane.niivue?.volumes.length && pane.sequence !== null);
  }

  drawSlices() {
    if (!this.voxels) return;
    for (const pane of this.panes) {
      if (pane.sequence === null || pane.flat.hidden) continue;
      drawSlice(pane.flat, this.voxels, pane.sequence, this.position, this.blend);
    }
  }
}

/** What the browser can draw: the longest side of a volume, and whether the processor draws; null without WebGL2. */
function limitsOfGraphics() {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) return null;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  return { side: gl.getParameter(gl.MAX_3D_TEXTURE_SIZE), isSoftware: /swiftshader|llvmpipe|software|basic render/i.test(name) };
}
