// PNG images, made and measured without a library.

import { crc32, deflateSync } from "node:zlib";

const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

function chunk(type, data) {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const out = Buffer.alloc(body.length + 8);
  out.writeUInt32BE(data.length, 0);
  body.copy(out, 4);
  out.writeUInt32BE(crc32(body), body.length + 4);
  return out;
}

// png is a picture whose left half is red and whose right half is blue, so that a crop can be told from a resize.
export function png(width, height) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8); // 8 bits per channel, RGB
  const line = Buffer.alloc(1 + width * 3);
  for (let x = 0; x < width; x++) {
    line.set(x < width / 2 ? [255, 0, 0] : [0, 0, 255], 1 + x * 3);
  }
  const pixels = Buffer.concat(Array.from({ length: height }, () => line));
  return Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", deflateSync(pixels)), chunk("IEND", Buffer.alloc(0))]);
}

// size reads width and height; it throws when the bytes are no PNG.
export function size(bytes) {
  const buffer = Buffer.from(bytes);
  if (!buffer.subarray(0, 8).equals(signature)) {
    throw new Error(`not a PNG: ${buffer.subarray(0, 16).toString("hex")}`);
  }
  return { width: buffer.readUInt32BE(16), height: buffer.readUInt32BE(20) };
}
