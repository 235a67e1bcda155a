/** A coarse look at a picture on its way: each latent pixel becomes one colour, by a linear map that the build has fitted to its decoder. */

import { resizeBytes } from "../conditioning/resample.js";
import { mismatch, UsageError, VerificationError } from "../core/errors.js";
import type { BundleManifest } from "../core/manifest.js";
import { roundHalfEven } from "../core/numbers.js";
import type { Float } from "../core/tensor.js";
import { shapeText } from "../core/text.js";
import { type RgbaPicture, rgba } from "./output.js";

/** The picture that a latent `(1, c, h, w)` is on its way to. Raises a `UsageError` where the bundle has no colours. */
export function previewPicture(manifest: BundleManifest, latents: Float): RgbaPicture {
  const { preview, latent } = manifest;
  if (preview === undefined) {
    throw new UsageError(mismatch("preview", "a bundle with colours for its latents", "none: an older build", "build it again"));
  }
  if (preview.weights.some((row) => row.length !== latent.channels)) {
    throw new VerificationError(
      mismatch("bundle.json, preview", `${latent.channels} weights a colour`, "others", "build the bundle again"),
    );
  }
  if (latents.shape.length !== 4 || latents.shape[0] !== 1 || latents.shape[1] !== latent.channels) {
    const expected = `latents (1, ${latent.channels}, h, w)`;
    throw new UsageError(mismatch("preview", expected, `shape ${shapeText(latents.shape)}`, "give those of a callback"));
  }
  const [height, width] = [latents.shape[2]!, latents.shape[3]!];
  const plane = width * height;
  const pixels = Uint8Array.from({ length: 3 * plane }, (_, i) => {
    const weights = preview.weights[i % 3]!;
    const colour = weights.reduce((sum, weight, c) => sum + weight * latents.data[c * plane + Math.floor(i / 3)]!, preview.bias[i % 3]!);
    return roundHalfEven(Math.min(Math.max((colour + 1) * 127.5, 0), 255));
  });
  const to = [width * latent.factor, height * latent.factor] as const;
  return rgba({ data: resizeBytes(pixels, [width, height], to, 3, "bilinear"), width: to[0], height: to[1] });
}
