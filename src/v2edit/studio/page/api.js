/** Ask the server: JSON both ways, and its errors as one line. */

export const ROOT = "/api/v1";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const watchers = new Set();

/** Call a function whenever the server asks for its token. */
export function onLocked(watcher) {
  watchers.add(watcher);
}

function refuse(status, text) {
  let line = "";
  try {
    line = JSON.parse(text).error;
  } catch {
    line = text && text.length < 200 && !text.startsWith("<") ? text : "";
  }
  if (status === 401) for (const watcher of watchers) watcher();
  return new ApiError(status, line || (status ? `the server answered ${status}` : "the server cannot be reached"));
}

async function call(method, path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(path.startsWith("/") ? path : `${ROOT}/${path}`, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw refuse(0, "");
  }
  const text = await answer.text();
  if (!answer.ok) throw refuse(answer.status, text);
  return text ? JSON.parse(text) : null;
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const post = (path, body = {}, signal) => call("POST", path, body, signal);
export const patch = (path, body) => call("PATCH", path, body);
export const remove = (path) => call("DELETE", path);
export const name = encodeURIComponent;

/** Send a file as it is. `onProgress` gets the bytes sent; a signal that aborts cancels it. */
export function put(path, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `${ROOT}/${path}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onload = () =>
      request.status < 300
        ? resolve(request.responseText ? JSON.parse(request.responseText) : null)
        : reject(refuse(request.status, request.responseText));
    request.onerror = () => reject(refuse(0, ""));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
