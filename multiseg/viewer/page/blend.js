// All overlays of a case as one volume: every combination of codes that occurs has a number, and a blended colour.
import { HEADER, niftiBuffer } from "./voxels.js";

const MOST = 4000; // combinations

export class Blend {
  constructor(voxels, overlays) {
    this.voxels = voxels;
    this.overlays = overlays;
    this.numbers = new Uint16Array(voxels.plane * voxels.about.shape[2]);
    this.combinations = [overlays.map(() => 0)]; // number -> the code of each overlay
    this.steps = overlays.map(() => new Int16Array(256 * (MOST + 1)).fill(-1)); // number so far and next code -> number
  }

  /** Number the voxels of some slices; with `axes` only where a code differs from that of a neighbour along one of them. */
  compose(first, last, axes = null) {
    const { voxels, numbers, steps } = this;
    const labels = voxels.labels.map((label) => label.voxels);
    const isEdge = axes && edgeTest(voxels.about.shape, axes);
    for (let index = first * voxels.plane; index < last * voxels.plane; index += 1) {
      let number = 0;
      for (let overlay = 0; overlay < labels.length; overlay += 1) {
        let code = labels[overlay][index];
        if (code && isEdge && !isEdge(labels[overlay], index)) code = 0;
        if (!code && !number) continue;
        const known = steps[overlay][256 * number + code];
        number = known >= 0 ? known : this.#add(overlay, number, code);
      }
      numbers[index] = number;
    }
  }

  #add(overlay, number, code) {
    const codes = [...this.combinations[number]];
    codes[overlay] = code;
    let found = code ? this.combinations.length : number;
    if (code) {
      if (found > MOST) throw new Error("These overlays have too many combinations of structures to be shown together.");
      this.combinations.push(codes);
    }
    this.steps[overlay][256 * number + code] = found;
    return found;
  }

  /** Few structures lie over many, and predictions over annotations. */
  #height(index) {
    const { structures, is_prediction: isPrediction } = this.overlays[index];
    return -structures.length + (isPrediction ? 0.5 : 0);
  }

  /** The colour of each number, [red, green, blue, alpha] from 0 to 255, with the present opacities. */
  colours() {
    const order = this.overlays.map((_, index) => index).sort((one, other) => this.#height(one) - this.#height(other));
    return this.combinations.map((codes) => order.reduce((below, index) => {
      const [overlay, code] = [this.overlays[index], codes[index]];
      return code && overlay.isShown ? over(overlay.table[code], overlay.opacity, below) : below;
    }, [0, 0, 0, 0]).map(Math.round));
  }
}

/** The whole volume in colours, as a NIfTI file of RGBA in memory. */
export function colouredFile(blend) {
  const buffer = niftiBuffer(blend.voxels.about, "rgba");
  paintVolume(blend, new Uint8Array(buffer, HEADER));
  return buffer;
}

/** Give every voxel its colour; `target` is a Uint8Array of RGBA. */
export function paintVolume(blend, target) {
  const pixels = new Uint32Array(target.buffer, target.byteOffset, blend.numbers.length);
  const colours = new Uint32Array(Uint8Array.from(blend.colours().flat()).buffer);
  blend.numbers.forEach((number, index) => { pixels[index] = colours[number]; });
}

/** A colour with an opacity over another one. */
function over(colour, opacity, below) {
  const rest = (below[3] / 255) * (1 - opacity);
  const alpha = opacity + rest;
  return [0, 1, 2].map((channel) => (colour[channel] * opacity + below[channel] * rest) / alpha).concat(255 * alpha);
}

/** Whether a voxel differs from one of its neighbours along some axes; the end of the volume is an edge. */
function edgeTest([ni, nj, nk], axes) {
  const sizes = [ni, nj, nk];
  const strides = [1, ni, ni * nj];
  return (codes, index) => axes.some((axis) => {
    const place = Math.floor(index / strides[axis]) % sizes[axis];
    return place === 0 || place === sizes[axis] - 1
      || codes[index] !== codes[index - strides[axis]] || codes[index] !== codes[index + strides[axis]];
  });
}
