// For the page's script as bench/report/page.py puts it together, and for the self-test of the browser test.
const js = require("@eslint/js");
const browser = Object.fromEntries(["document", "window", "DOMParser", "Event", "top"].map((name) => [name, "readonly"]));

module.exports = [
  js.configs.recommended,
  {
    languageOptions: { ecmaVersion: 2022, sourceType: "script", globals: browser },
    rules: {
      "eqeqeq": "error", "no-var": "error", "prefer-const": "error", "no-shadow": "error", "no-implicit-globals": "off",
      "no-restricted-properties": ["error", { property: "innerHTML", message: "Text on the page is never markup." },
        { property: "outerHTML", message: "Text on the page is never markup." }],
    },
  },
];
