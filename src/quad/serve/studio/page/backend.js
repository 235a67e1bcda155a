/**
 * What makes pictures for the page: the server that it came from, or a runtime in the page itself. The page knows this and nothing else.
 *
 * @module
 */

/**
 * One task: what it asks for, and what it is run with where nobody says.
 *
 * @typedef {object} TaskCard
 * @property {string} name
 * @property {string | null} adapter the adapter that it needs; null for the base itself
 * @property {boolean} picture it reads a given picture
 * @property {boolean} mask it reads a mask of that picture
 * @property {string} sampler kind and steps, as `SAMPLER:STEPS`
 * @property {number} steps
 * @property {number} guidance 1 is plainly
 * @property {number | null} strength share of the given picture that is made anew; null where the task has none
 * @property {number | null} imageGuidance null where the task has none
 */

/**
 * One adapter.
 *
 * @typedef {object} AdapterCard
 * @property {string} name
 * @property {string[]} tasks that it is for
 * @property {number} rank
 * @property {number} bits of one of its numbers
 * @property {number} bytes
 * @property {"bundle" | "installed" | "uploaded"} source
 * @property {number | null} headroom the largest weight with which nothing is clipped; null where there is no bound
 * @property {string | null} sampler that it is meant for
 * @property {number | null} guidance that it is meant for
 * @property {string | null} trigger words that a prompt has to say for it to show
 * @property {boolean} previous a version before it is there to roll back to
 */

/**
 * How far each adapter's output is from each other's, or what each loses to the others' ranges.
 *
 * @typedef {object} HeatMap
 * @property {string} title
 * @property {string} note one sentence that says what a cell is
 * @property {string[]} names of rows and columns
 * @property {(number | null)[][]} values row by row; null where nothing is known
 */

/**
 * The bundle, for people.
 *
 * @typedef {object} Card
 * @property {string} name
 * @property {string} target
 * @property {string} precision
 * @property {string} engine what executes the graphs now
 * @property {[string, string][]} facts label and value of everything else
 * @property {TaskCard[]} tasks
 * @property {string[]} samplers names that `sampler` may have
 * @property {[number, number][]} sizes width and height in pixels, the usual one first
 * @property {AdapterCard[]} adapters
 * @property {HeatMap[]} heatMaps
 * @property {string | null} report address of a report on this origin
 */

/**
 * One picture to make. What is left out is the task's own.
 *
 * @typedef {object} PictureRequest
 * @property {string} task
 * @property {string} prompt
 * @property {string} [negativePrompt]
 * @property {Record<string, number>} [adapters] name -> weight; empty for the base
 * @property {Blob} [image] PNG, JPEG or WebP
 * @property {Blob} [mask] PNG, white where the picture is made anew
 * @property {string} [sampler] name, without steps
 * @property {number} [steps]
 * @property {number} [guidance]
 * @property {number} [strength]
 * @property {number} [imageGuidance]
 * @property {number} seed
 * @property {[number, number]} [size] width and height in pixels
 * @property {boolean} [reference] by the full-precision model, where `capabilities` has `compare`
 */

/**
 * @typedef {object} Picture
 * @property {Blob} picture a PNG
 * @property {number} seed
 * @property {number} seconds from the call to the picture
 * @property {Record<string, number>} timings stage -> milliseconds
 * @property {number | null} memory most bytes of memory so far; null where nobody knows
 * @property {string} sampler `SAMPLER:STEPS` that was used
 * @property {number | null} guidance that was used
 * @property {Record<string, number>} adapters that were used
 * @property {string[]} notes
 */

/**
 * @typedef {object} RunOptions
 * @property {AbortSignal} [signal]
 * @property {(done: number, total: number) => void} [onProgress] steps
 * @property {(picture: Blob | ImageBitmap) => void} [onPreview] a coarse look at it; only where `capabilities` has `preview`
 */

/**
 * What was measured of an adapter that was installed; empty for a pack, which says so itself.
 *
 * @typedef {object} Verdict
 * @property {string} name
 * @property {[string, string][]} facts label and value
 * @property {string[]} notes
 */

/** @typedef {"preview" | "install" | "rollback" | "compare"} Capability */

/**
 * @typedef {object} Backend
 * @property {string} label where pictures are made, in a few words
 * @property {ReadonlySet<Capability>} capabilities
 * @property {() => Promise<Card>} card
 * @property {(request: PictureRequest, options?: RunOptions) => Promise<Picture>} run rejects with an `AbortError` when the signal says so
 * @property {() => Promise<AdapterCard[]>} adapters as they are now
 * @property {(file: File, options: InstallOptions) => Promise<Verdict>} installAdapter a pack or a LoRA file
 * @property {(name: string) => Promise<void>} rollback to the version before; where there is none, the adapter is removed
 * @property {() => void} close
 */

/**
 * How a LoRA file is taken up.
 *
 * @typedef {object} InstallOptions
 * @property {string} name
 * @property {string} [like] a task of the bundle that a task of this name takes its inputs and sampler from
 * @property {AbortSignal} [signal]
 */

/**
 * What `studio.json` beside the page says.
 *
 * @typedef {object} StudioConfig
 * @property {boolean} server the page's own server makes pictures
 * @property {DevicePlace | null} device what makes them in the page itself; null where it is not there
 */

/**
 * Folders relative to the page, each with a slash at its end.
 *
 * @typedef {object} DevicePlace
 * @property {string} runtime the runtime's scripts and the engine's
 * @property {string} bundle
 */

/**
 * What `device-backend.js` exports as `openDeviceBackend`.
 *
 * @typedef {(place: DevicePlace, options: OpenOptions) => Promise<Backend>} OpenDeviceBackend
 */

/**
 * @typedef {object} OpenOptions
 * @property {string | null} token for `Authorization: Bearer`, where the server asks for one
 * @property {AbortSignal} [signal]
 * @property {(file: string, loaded: number, total: number) => void} [onProgress] bytes of the bundle
 */

/** An error with the one line that says what to do. */
export class BackendError extends Error {
  /**
   * @param {string} message
   * @param {string} [kind] its class among `quad.core.errors`
   * @param {Record<string, string>} [reasons] slot or activation -> why it does not take an adapter
   */
  constructor(message, kind = "QuadError", reasons = {}) {
    super(message);
    this.name = "BackendError";
    this.kind = kind;
    this.reasons = reasons;
  }
}
