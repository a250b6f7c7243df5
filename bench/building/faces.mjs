// Draw faces: a JSON list of DiceBear options on standard input, a JSON list of SVG documents on standard output.
// Usage: node faces.mjs FOLDER, where FOLDER/node_modules holds @dicebear/core and @dicebear/pixel-art (see faces.py).
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(join(process.argv[2], "node_modules", "@dicebear", name, "lib", "index.js")));
const { createAvatar } = await load("core");
const style = await load("pixel-art");
const faces = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(faces.map((options) => createAvatar(style, options).toString())));
