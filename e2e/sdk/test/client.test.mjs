import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import PocketBase, { ClientResponseError } from "pocketbase";
import { client, collection, failure, route, text, url, versioned } from "../support.mjs";

describe("errors of the client", () => {
  let items;
  before(async () => {
    items = await collection("erritems", { fields: [text("title", { required: true })] });
  });

  it("carry address, status, response and the original error", async () => {
    const err = await failure(400, () => client().collection(items.name).create({ title: "" }));
    assert.ok(err instanceof ClientResponseError);
    assert.ok(err instanceof Error);
    assert.equal(err.url, route(`${url}/api/collections/${items.name}/records`));
    assert.equal(err.status, 400);
    assert.equal(err.isAbort, false);
    assert.equal(err.message, err.response.message);
    assert.equal(err.response.status, 400);
    assert.equal(err.response.data.title.code, "validation_required");
    assert.equal(typeof err.response.data.title.message, "string");
    assert.deepEqual(err.data, err.response);
    const members = versioned ? ["code", "data", "message", "requestId", "status"] : ["data", "message", "status"];
    assert.deepEqual(Object.keys(err.response).sort(), members);
    if (versioned) {
      assert.match(err.response.code, /^[a-z]+\.[a-z_]+$/);
    }
  });

  it("have a status for everything that goes wrong", async () => {
    const pb = client();
    const path = `/api/collections/${items.name}/records`;
    await failure(404, () => pb.send("/api/nothing/here", {}));
    await failure(404, () => pb.collection(items.name).getOne("nobody000000000"));
    await failure(400, () => pb.send(path, { method: "POST", body: "{not json" }));
    const response = await fetch(route(`${url}${path}`), { method: "POST", headers: { "Content-Type": "application/json" }, body: '{"title":"a","title":"b"}' });
    assert.equal(response.status, 400);
    assert.equal((await pb.collection(items.name).getList()).totalItems, 0);
  });

  it("tell when there is no server", async () => {
    const err = await failure(0, () => new PocketBase("http://127.0.0.1:1").health.check());
    assert.equal(err.isAbort, false);
    assert.ok(err.originalError);
  });
});

describe("requests of the client", () => {
  let items;
  before(async () => {
    items = await collection("reqitems", { fields: [text("title")] });
  });

  it("cancel an earlier equal one", async () => {
    const pb = client().autoCancellation(true);
    const results = await Promise.allSettled([1, 2, 3].map(() => pb.collection(items.name).getList()));
    assert.deepEqual(results.map((r) => r.status), ["rejected", "rejected", "fulfilled"]);
    for (const { reason } of results.slice(0, 2)) {
      assert.equal(reason.isAbort, true);
      assert.equal(reason.status, 0);
    }
  });

  it("are told apart by their key and cancelled by it", async () => {
    const pb = client().autoCancellation(true);
    const both = await Promise.all(["a", "b"].map((requestKey) => pb.collection(items.name).getList(1, 1, { requestKey })));
    assert.equal(both.length, 2);
    const pending = pb.collection(items.name).getList(1, 1, { requestKey: "c" });
    pb.cancelRequest("c");
    assert.equal((await failure(0, () => pending)).isAbort, true);
    const all = Promise.allSettled([pb.collection(items.name).getList(1, 1, { requestKey: "d" }), pb.collection(items.name).getList(1, 1, { requestKey: "e" })]);
    pb.cancelAllRequests();
    assert.deepEqual((await all).map((r) => r.reason?.isAbort), [true, true]);
  });

  it("pass through the hooks before and after sending", async () => {
    const pb = client();
    const inner = pb.beforeSend;
    const seen = [];
    pb.beforeSend = (address, options) => {
      seen.push(new URL(address).pathname);
      options.headers = { ...options.headers, "X-Request-Id": "e2e-request-0001" };
      return inner ? inner(address, options) : { url: address, options };
    };
    pb.afterSend = (response, data) => ({ ...data, status: response.status });
    const page = await pb.collection(items.name).getList();
    assert.equal(page.status, 200);
    assert.deepEqual(seen, [`/api/collections/${items.name}/records`]);
  });

  it("take unknown options as query parameters", async () => {
    const pb = client();
    await pb.collection(items.name).create({ title: "one" });
    const page = await pb.send(`/api/collections/${items.name}/records`, { perPage: 1, skipTotal: true, fields: "title" });
    assert.deepEqual([page.perPage, page.totalItems, page.items], [1, -1, [{ title: "one" }]]);
  });
});
