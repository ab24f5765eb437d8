/** A page of a batch or a benchmark in a frame that reaches nothing but the page's own files. */

import * as api from "./api.js";
import { pageOf } from "./jobs.js";
import { text } from "./text.js";
import { ErrorLine, Icon, useAsync } from "./ui.js";
import { html } from "./vendor/ui.js";

export const reportOf = (run, page) => `#/report/${api.name(run)}?page=${api.name(page)}`;

export function ReportView({ id, query }) {
  const page = query.get("page") ?? "report.html";
  const { value, error } = useAsync(() => api.get(`runs/${api.name(id)}/report/${api.name(page)}`), [id, page]);
  return html`<div class="report">
    <div class="page-head">
      <h1>${id}</h1>
      <div class="row"><a class="button quiet" href=${pageOf(id)}>${text.report.run}</a>
        <a class="button" href=${`${api.ROOT}/runs/${api.name(id)}/files/${api.name(page)}`} download><${Icon} name="down" />${text.report.save(page)}</a></div>
    </div>
    <${ErrorLine}>${error}<//>
    ${value && html`<iframe sandbox="allow-scripts" src=${value.url} title=${text.report.title(page, id)} />`}
  </div>`;
}
