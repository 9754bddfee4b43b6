// Shows the document of the API. Texts are only ever set as text.
"use strict";

(() => {
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const code = (text) => make("code", {}, text);

  // What a value may be, in words.
  const kind = (schema) => {
    if (schema.$ref) return schema.$ref.split("/").pop();
    if (schema.oneOf) return schema.oneOf.map(kind).join(" or ");
    if (schema.enum) return schema.enum.join(" or ");
    if (schema.const !== undefined) return String(schema.const);
    if (schema.type === "array") return `list of ${kind(schema.items)}`;
    let words = schema.type ? [].concat(schema.type).join(" or ") : "any";
    if (schema.minimum !== undefined) words += `, ${schema.minimum} to ${schema.maximum}`;
    if (schema.maxLength !== undefined) words += `, at most ${schema.maxLength} letters`;
    if (schema.default !== undefined) words += `, else ${schema.default}`;
    return words;
  };
  const table = (rows) => make("table", {}, make("tbody", {}, ...rows));
  const row = (name, what, says) =>
    make("tr", {}, make("th", { scope: "row" }, code(name)), make("td", {}, what), make("td", {}, says || ""));

  const operation = (path, { summary, parameters, responses }) => {
    const section = make("section", {}, make("h2", {}, code(`GET ${path}`)), make("p", {}, summary));
    const rows = parameters.map((one) =>
      row(one.name, kind(one.schema), `${one.description}${one.required ? " (required)" : ""}`),
    );
    if (rows.length) section.append(table(rows));
    const [type, content] = Object.entries(responses["200"].content)[0];
    const gives = content.schema.$ref ? make("a", { href: `#${kind(content.schema)}` }, kind(content.schema)) : type;
    section.append(make("p", {}, "Gives: ", gives));
    return section;
  };
  const schema = (name, { properties }) =>
    make(
      "section",
      { id: name },
      make("h2", {}, name),
      table(Object.entries(properties).map(([key, one]) => row(key, kind(one), one.description))),
    );

  const show = (api) => {
    document.title = api.info.title;
    document.getElementById("title").textContent = api.info.title;
    document.getElementById("description").textContent = api.info.description;
    document
      .getElementById("paths")
      .replaceChildren(
        ...Object.entries(api.paths).map(([path, { get }]) => operation(path, get)),
        ...Object.entries(api.components.schemas).map(([name, one]) => schema(name, one)),
      );
  };
  fetch("/api/openapi.json")
    .then((answer) => answer.json())
    .then(show)
    .catch(() => {
      document.getElementById("paths").textContent = "The server does not answer.";
    });
})();
