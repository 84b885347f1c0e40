// Starts Swagger UI on /docs, and shows response bodies as they were sent.

// Swagger UI reads JSON into numbers that round after some 16 digits. Indents JSON and leaves its numbers as text.
const indented = (json) => {
  if (!JSON.rawJSON) return json; // an older browser
  try {
    const exact = (key, value, { source }) => (typeof value === "number" ? JSON.rawJSON(source) : value);
    return JSON.stringify(JSON.parse(json, exact), null, 2);
  } catch {
    return json;
  }
};

const exactBodies = ({ React: { createElement } }) => ({
  wrapComponents: {
    responseBody: (Original) => (props) => {
      const { content, contentType, url, getComponent } = props;
      if (!content || typeof content !== "string") return createElement(Original, props);
      if (/^application\/([\w.]+\+)?json\b/.test(contentType)) {
        const code = { language: "json", downloadable: true, fileName: "response.json", canCopy: true };
        return createElement(
          "div",
          null,
          createElement("h5", null, "Response body"),
          createElement(getComponent("HighlightCode", true), code, indented(content)),
        );
      }
      // Browsers drop the byte order mark of a text, which spreadsheet programs need in the downloaded file.
      const marked = /^text\/csv\b/.test(contentType) && /[?&]spreadsheet=true\b/.test(url);
      return createElement(Original, marked ? { ...props, content: "\ufeff" + content } : props);
    },
  },
});

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // a badge from another host
  plugins: [exactBodies],
});
