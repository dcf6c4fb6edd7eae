// What every file of the suite needs: clients of the unmodified SDK, and collections of its own.
//
// E2E_URL is the server, E2E_SUPERUSER_EMAIL and E2E_SUPERUSER_PASSWORD an admin of it, E2E_CONTROL an address whose
// POST /restart restarts the server on the same port and data, and whose POST /command runs the command line.
// E2E_PATHS=versioned sends the generated API through /api/v1, as an app does that sets the SDK's beforeSend hook;
// E2E_PATHS=stock leaves the SDK alone. E2E_REALTIME=websocket gives it the EventSource of React Native, which needs the
// global WebSocket that Node 20 has with --experimental-websocket.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after } from "node:test";
import { EventSource as NodeEventSource } from "eventsource";
import PocketBase from "pocketbase";
import { SatchelEventSource } from "../../docs/clients/eventsource.mjs";

const setting = (name) => {
  assert.ok(process.env[name], `${name} must be set`);
  return process.env[name];
};

export const url = setting("E2E_URL");
export const versioned = setting("E2E_PATHS") === "versioned";
export const password = "correct horse battery";

const admin = { email: setting("E2E_SUPERUSER_EMAIL"), password: setting("E2E_SUPERUSER_PASSWORD") };
const generated = /^(https?:\/\/[^/]+)\/api\/(collections|files|batch|realtime)(?=[/?]|$)/;

// route is the address that a client calls in place of the one the SDK built.
export const route = (address) => (versioned ? address.replace(generated, "$1/api/v1/$2") : address);

// Node has no EventSource of its own before version 22.
const Source = process.env.E2E_REALTIME === "websocket" ? SatchelEventSource : NodeEventSource;
globalThis.EventSource = class extends Source {
  constructor(address, init) {
    super(route(String(address)), init);
  }
};

// client is a guest. Its requests never cancel each other, because tests send equal ones side by side.
export function client() {
  const pb = new PocketBase(url).autoCancellation(false);
  if (versioned) {
    pb.beforeSend = (address, options) => ({ url: route(address), options });
  }
  return pb;
}

// command runs the program's command line beside the server and returns what it printed.
export async function command(...args) {
  const answer = await fetch(`${setting("E2E_CONTROL")}/command`, { method: "POST", body: JSON.stringify(args) });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.text();
}

const dispatcher = Symbol.for("undici.globalDispatcher.1");

// restart restarts the server and returns when it is ready again. The connections that fetch keeps to the server that is
// gone go with it: on a busy machine a request may be written to one before Node has read that its other side is closed,
// and such a request fails, because fetch cannot know whether it was done.
export async function restart() {
  const answer = await fetch(`${setting("E2E_CONTROL")}/restart`, { method: "POST" });
  assert.equal(answer.status, 204, await answer.text());
  globalThis[dispatcher] = new globalThis[dispatcher].constructor();
}

let admins;

// superuser is signed in once per file, because sign-ins are limited and hash a password.
export async function superuser() {
  admins ??= (async () => {
    const pb = client();
    await pb.collection("_superusers").authWithPassword(admin.email, admin.password);
    return pb;
  })();
  return admins;
}

export const unique = (prefix) => `${prefix}_${randomBytes(6).toString("hex")}`;
export const email = (name) => `${unique(name)}@example.com`;

// collection creates a collection under a name of its own and drops it when the file is done.
export async function collection(name, { type = "base", fields = [], rules = {}, ...rest }) {
  const pb = await superuser();
  const open = { listRule: "", viewRule: "", createRule: "", updateRule: "", deleteRule: "" };
  const readOnly = { listRule: "", viewRule: "" };
  const made = await pb.collections.create({
    name: unique(name), type, fields, ...(type === "view" ? readOnly : open), ...rules, ...rest,
  });
  created.push(made.name);
  return made;
}

const created = [];

after(async () => {
  const pb = await superuser();
  for (const name of created.reverse()) {
    await pb.collections.delete(name);
  }
});

// user signs up in an auth collection and returns a client that is signed in as that user.
export async function user(collectionName = "users", data = {}) {
  const pb = client();
  const address = email("user");
  await pb.collection(collectionName).create({ email: address, password, passwordConfirm: password, ...data });
  await pb.collection(collectionName).authWithPassword(address, password);
  return pb;
}

// failure runs an action that must fail with a status and returns the SDK's error.
export async function failure(status, action) {
  try {
    await action();
  } catch (err) {
    assert.equal(err.name, `ClientResponseError ${status}`, `${err.url}: ${JSON.stringify(err.response)} ${err.originalError}`);
    return err;
  }
  assert.fail(`expected status ${status}, but the request succeeded`);
}

export const text = (name, options = {}) => ({ name, type: "text", ...options });
export const number = (name, options = {}) => ({ name, type: "number", ...options });
export const dates = [
  { name: "created", type: "autodate", onCreate: true },
  { name: "updated", type: "autodate", onCreate: true, onUpdate: true },
];

export function relation(name, target, options = {}) {
  return { name, type: "relation", collectionId: target.id, maxSelect: 1, ...options };
}

export const column = (records, name) => records.map((record) => record[name]);
