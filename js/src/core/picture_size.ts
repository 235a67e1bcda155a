/** Width and height of pictures, in the order in which people write them: `512x768` is 512 wide. */

import { type Decoder, integer, listOf } from "./decode.js";

/** Pixels of a picture. */
export interface PictureSize {
  readonly width: number;
  readonly height: number;
}

export const pixels: Decoder<number> = integer(1, 8192);

export const pictureSize: Decoder<PictureSize> = (value, at) => {
  const [width, height] = listOf(pixels, 2, 2)(value, at) as [number, number];
  return { width, height };
};

/** As people write it. */
export function sizeText(size: PictureSize): string {
  return `${size.width}x${size.height}`;
}

/** Whether two sizes are the same. */
export function sameSize(a: PictureSize, b: PictureSize): boolean {
  return a.width === b.width && a.height === b.height;
}

/**
 * Name of a graph among all of a bundle: its component, with the size where that is not the bundle's first, and with the number of its group
 * of adapters, counted from 0 here and from 1 in the name, where that is not the first.
 */
export function graphName(component: string, size: PictureSize | null, group = 0): string {
  return [component, ...(size ? [sizeText(size)] : []), ...(group ? [`group-${group + 1}`] : [])].join(".");
}
