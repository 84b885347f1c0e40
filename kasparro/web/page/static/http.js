// Reads from the service: sends the API key, and turns every failure into one error with words for people.
const page = document.documentElement;
export const root = page.dataset.root;

const KEY = "kasparro.key";
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (secret) => sessionStorage.setItem(KEY, secret),
  forget: () => sessionStorage.removeItem(KEY),
};

export class ReadError extends Error {
  // `kind`: offline (no answer), key (missing or wrong), busy (try again), or request (the request is wrong).
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

export async function read(path, { signal, headers = {}, cache } = {}) {
  const secret = key.get();
  if (secret) headers = { ...headers, "X-API-Key": secret };
  let response;
  try {
    response = await fetch(root + path, { signal, headers, cache });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ReadError("offline", "The service cannot be reached.");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const kind = response.status === 401 ? "key"
    : response.status >= 500 || response.status === 429 ? "busy" : "request";
  throw new ReadError(kind, problem.detail ?? `The service answered ${response.status}.`);
}
