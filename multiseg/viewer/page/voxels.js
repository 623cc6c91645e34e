// The voxels of one case, read window by window: first the slice that is shown, then the slabs around it.
import { getBytes } from "./elements.js";

export const OUTSIDE = -32768;
export const HEADER = 352;

export class CaseVoxels {
  constructor(about) {
    this.about = about;
    const [ni, nj, nk] = about.shape;
    this.plane = ni * nj;
    this.images = about.sequences.map((one) => {
      const buffer = niftiBuffer(about, "int16", one);
      return { buffer, voxels: new Int16Array(buffer, HEADER, this.plane * nk) };
    });
    this.labels = about.overlays.map(() => ({ voxels: new Uint8Array(this.plane * nk) }));
    this.isRead = new Uint8Array(nk);
  }

  get share() {
    return this.isRead.reduce((sum, one) => sum + one, 0) / this.isRead.length;
  }

  /** Read all windows, those next to the slice of `wanted()` first; `changed(first, last)` is called after each. */
  async read(wanted, changed, signal) {
    const read = async (first, last) => {
      await this.#readWindow(first, last, signal);
      changed(first, last);
    };
    await read(wanted(), wanted() + 1);
    const { slab, shape } = this.about;
    const open = new Set(Array.from({ length: Math.ceil(shape[2] / slab) }, (_, index) => index));
    while (open.size) {
      const distance = (index) => Math.abs((index + 0.5) * slab - wanted() - 0.5);
      const index = [...open].reduce((best, one) => (distance(one) < distance(best) ? one : best));
      open.delete(index);
      await read(index * slab, Math.min((index + 1) * slab, shape[2]));
    }
  }

  async #readWindow(first, last, signal) {
    const bytes = await getBytes("api/window", { case: this.about.name, first, last }, signal);
    const num = (last - first) * this.plane;
    let offset = 0;
    for (const { voxels } of this.images) {
      voxels.set(new Int16Array(bytes, offset, num), first * this.plane);
      offset += 2 * num;
    }
    for (const { voxels } of this.labels) {
      voxels.set(new Uint8Array(bytes, offset, num), first * this.plane);
      offset += num;
    }
    if (offset !== bytes.byteLength) throw new Error("A window has another size than its case. Reload the page.");
    this.isRead.fill(1, first, last);
  }

  /** The intensity of a sequence at a voxel; null outside the brain or where it is not read yet. */
  intensity(sequence, [i, j, k]) {
    if (!this.isRead[k]) return null;
    const number = this.images[sequence].voxels[this.#index(i, j, k)];
    const { slope, intercept } = this.about.sequences[sequence];
    return number === OUTSIDE ? null : number * slope + intercept;
  }

  code(overlay, [i, j, k]) {
    return this.labels[overlay].voxels[this.#index(i, j, k)];
  }

  #index(i, j, k) {
    return i + this.about.shape[0] * j + this.plane * k;
  }
}

const TYPES = { int16: [4, 2], rgba: [2304, 4] }; // NIfTI's number of a type, and its bytes

/** An empty NIfTI-1 file in memory, on the grid of the case. */
export function niftiBuffer(about, type, { slope, intercept } = { slope: 1, intercept: 0 }) {
  const [number, bytes] = TYPES[type];
  const [ni, nj, nk] = about.shape;
  const buffer = new ArrayBuffer(HEADER + bytes * ni * nj * nk);
  const view = new DataView(buffer);
  view.setInt32(0, 348, true);
  [3, ni, nj, nk, 1, 1, 1, 1].forEach((length, axis) => view.setInt16(40 + 2 * axis, length, true));
  view.setInt16(70, number, true);
  view.setInt16(72, 8 * bytes, true);
  [1, ...about.spacing_mm, 1, 1, 1, 1].forEach((mm, axis) => view.setFloat32(76 + 4 * axis, mm, true));
  view.setFloat32(108, HEADER, true);
  view.setFloat32(112, slope, true);
  view.setFloat32(116, intercept, true);
  view.setUint8(123, 2); // millimetres
  view.setInt16(254, 2, true); // the affine is the sform, aligned to some space
  about.affine.slice(0, 3).flat().forEach((value, index) => view.setFloat32(280 + 4 * index, value, true));
  [0x6e, 0x2b, 0x31].forEach((byte, index) => view.setUint8(344 + index, byte)); // "n+1"
  return buffer;
}
