/** The script of a Web Worker that runs a pipeline: `@quad/runtime/worker`. */

import { serve } from "./worker/host.js";
import type { Port } from "./worker/messages.js";

serve(globalThis as unknown as Port);
