#!/usr/bin/env node
// Compare what this runtime computes with a bundle's conformance vectors: exit 0 where all are near enough, 1 where not, 3 where refused.
import { QuadError, QuadPipeline, RefusedError, UsageError, verify } from "../dist/index.js";

const places = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const json = process.argv.includes("--json");

try {
  if (places.length !== 1) throw new UsageError("quad-verify: expected BUNDLE [--json], a directory or an address; name one");
  const pipe = await QuadPipeline.open(places[0]);
  const checks = await verify(pipe, (check) => {
    if (!json) process.stderr.write(`${check.passes ? "ok  " : "FAIL"} ${check.kind} ${check.name}: ${shown(check)}\n`);
  });
  const failed = checks.filter((check) => !check.passes).length;
  if (json) process.stdout.write(`${JSON.stringify({ engine: pipe.engine, threads: pipe.threads, checks })}\n`);
  else process.stdout.write(`${checks.length - failed} of ${checks.length} vectors pass\n`);
  process.exitCode = failed ? 1 : 0;
} catch (error) {
  if (!(error instanceof QuadError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = error instanceof UsageError ? 2 : error instanceof RefusedError ? 3 : 1;
}

function shown({ distance, tolerance, error }) {
  return error || `${distance.toPrecision(3)} away, ${tolerance} allowed`;
}
