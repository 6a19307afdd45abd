// What AsyncAPI's own parser says of documents: node check.mjs FOLDER_OF_PACKAGES FILE...  One line of JSON for each.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [packages, ...files] = process.argv.slice(2);
const { Parser } = createRequire(join(packages, "package.json"))("@asyncapi/parser");
const parser = new Parser();

for (const file of files) {
  const { document, diagnostics } = await parser.parse(readFileSync(file, "utf8"));
  const ids = (found) => found.all().map((each) => each.id()).sort();
  console.log(
    JSON.stringify({
      diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path })),
      channels: document && ids(document.channels()),
      operations: document && ids(document.operations()),
      messages: document && [...new Set(document.allMessages().all().map((each) => each.name()))].sort(),
    }),
  );
}
