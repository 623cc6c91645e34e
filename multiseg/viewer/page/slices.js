// Axial slices on a plain canvas: what is shown until all voxels are there, and where the browser has no WebGL2.
import { OUTSIDE } from "./voxels.js";

/** Draw a slice of a sequence with the blended overlays, in radiological convention: the patient's left on the right. */
export function drawSlice(canvas, voxels, sequence, position, blend) {
  const { shape, spacing_mm: mm, sequences } = voxels.about;
  const [ni, nj] = shape;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, canvas.clientWidth * ratio);
  canvas.height = Math.max(1, canvas.clientHeight * ratio);
  const context = canvas.getContext("2d");
  const scale = Math.min(canvas.width / (ni * mm[0]), canvas.height / (nj * mm[1]));
  const [width, height] = [ni * mm[0] * scale, nj * mm[1] * scale];
  const place = [(canvas.width - width) / 2, (canvas.height - height) / 2, width, height];
  if (!voxels.isRead[position[2]]) return;
  context.drawImage(greySlice(voxels, sequence, sequences[sequence], position[2]), ...place);
  context.imageSmoothingEnabled = false;
  context.drawImage(colouredSlice(voxels, blend, position[2]), ...place);
  drawCross(context, place, [1 - (position[0] + 0.5) / ni, 1 - (position[1] + 0.5) / nj]);
}

/** The voxel of a slice that is under a place of the canvas. */
export function voxelAt(canvas, about, x, y, k) {
  const [ni, nj] = about.shape;
  const [mi, mj] = about.spacing_mm;
  const scale = Math.min(canvas.clientWidth / (ni * mi), canvas.clientHeight / (nj * mj));
  const i = ni / 2 - (x - canvas.clientWidth / 2) / (mi * scale);
  const j = nj / 2 - (y - canvas.clientHeight / 2) / (mj * scale);
  const within = (value, end) => Math.min(Math.max(Math.floor(value), 0), end - 1);
  return [within(i, ni), within(j, nj), k];
}

function greySlice(voxels, sequence, { slope, intercept, black, white }, k) {
  const numbers = voxels.images[sequence].voxels;
  return paint(voxels, k, (index, pixels, at) => {
    const number = numbers[index];
    const grey = number === OUTSIDE ? 0 : (255 * (number * slope + intercept - black)) / (white - black);
    pixels[at] = pixels[at + 1] = pixels[at + 2] = grey;
    pixels[at + 3] = 255;
  });
}

function colouredSlice(voxels, blend, k) {
  const colours = blend.colours();
  return paint(voxels, k, (index, pixels, at) => {
    const number = blend.numbers[index];
    if (number) pixels.set(colours[number], at);
  });
}

function paint(voxels, k, setPixel) {
  const [ni, nj] = voxels.about.shape;
  const small = new OffscreenCanvas(ni, nj);
  const context = small.getContext("2d");
  const image = context.createImageData(ni, nj);
  for (let row = 0; row < nj; row += 1) {
    for (let column = 0; column < ni; column += 1) {
      const index = ni - 1 - column + ni * (nj - 1 - row) + voxels.plane * k;
      setPixel(index, image.data, 4 * (column + ni * row));
    }
  }
  context.putImageData(image, 0, 0);
  return small;
}

/** A cross with a gap at its centre, which would hide a small lesion. */
function drawCross(context, [left, top, width, height], [x, y]) {
  const [across, down, gap] = [left + x * width, top + y * height, width / 25];
  context.strokeStyle = "rgb(138 184 255 / 75%)";
  context.beginPath();
  for (const [from, to] of [[top, down - gap], [down + gap, top + height]]) {
    context.moveTo(across, from);
    context.lineTo(across, to);
  }
  for (const [from, to] of [[left, across - gap], [across + gap, left + width]]) {
    context.moveTo(from, down);
    context.lineTo(to, down);
  }
  context.stroke();
}
