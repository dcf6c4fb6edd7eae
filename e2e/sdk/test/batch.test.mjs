import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { client, collection, failure, superuser, text, unique, user, versioned } from "../support.mjs";

const limit = 8;

describe("batch", () => {
  let items, files;
  before(async () => {
    const admin = await superuser();
    await admin.settings.update({ batch: { enabled: true, maxRequests: limit, timeout: 5 } });
    items = await collection("batched", { fields: [text("title", { required: true })], rules: { deleteRule: "@request.auth.id != ''" } });
    files = await collection("batchedfiles", { fields: [{ name: "file", type: "file", maxSelect: 1 }] });
  });
  const titles = async () => (await client().collection(items.name).getFullList({ sort: "title" })).map((r) => r.title);

  it("creates, updates, upserts and deletes in one transaction", async () => {
    const pb = await user();
    const kept = await pb.collection(items.name).create({ title: "kept" });
    const gone = await pb.collection(items.name).create({ title: "gone" });
    const batch = pb.createBatch();
    batch.collection(items.name).create({ title: "new" }, { fields: "title" });
    batch.collection(items.name).update(kept.id, { title: "changed" });
    batch.collection(items.name).upsert({ id: kept.id, title: "changed again" });
    batch.collection(items.name).upsert({ title: "upserted" });
    batch.collection(items.name).delete(gone.id);
    const results = await batch.send();
    assert.deepEqual(results.map((r) => r.status), [200, 200, 200, 200, 204]);
    assert.deepEqual(results[0].body, { title: "new" });
    assert.equal(results[2].body.id, kept.id);
    assert.deepEqual(await titles(), ["changed again", "new", "upserted"]);
  });

  it("writes nothing when one item fails, and says which", async () => {
    const before = await titles();
    const batch = client().createBatch();
    batch.collection(items.name).create({ title: "fine" });
    batch.collection(items.name).create({ title: "fine too" });
    batch.collection(items.name).create({ title: "" });
    const err = await failure(400, () => batch.send());
    const item = err.response.data.requests["2"];
    assert.equal(item.code, "batch_request_failed");
    assert.equal(item.response.data.title.code, "validation_required");
    assert.deepEqual(await titles(), before);
  });

  it("applies rules to every item", async () => {
    const pb = client();
    const made = await pb.collection(items.name).create({ title: "guarded" });
    const batch = pb.createBatch();
    batch.collection(items.name).update(made.id, { title: "not kept" });
    batch.collection(items.name).delete(made.id);
    await failure(400, () => batch.send());
    assert.equal((await pb.collection(items.name).getOne(made.id)).title, "guarded");
  });

  it("refuses more items than allowed", async () => {
    const before = await titles();
    const batch = client().createBatch();
    for (let i = 0; i <= limit; i++) {
      batch.collection(items.name).create({ title: `too many ${i}` });
    }
    const err = await failure(400, () => batch.send());
    assert.ok(err.response.data.requests.code, JSON.stringify(err.response));
    assert.deepEqual(await titles(), before);
  });

  it("refuses an unknown collection and an unknown action", async () => {
    const before = await titles();
    const batch = client().createBatch();
    batch.collection(items.name).create({ title: "fine" });
    batch.collection("no_such_collection").create({ title: "lost" });
    await failure(400, () => batch.send());
    await failure(400, () =>
      client().send("/api/batch", { method: "POST", body: { requests: [{ method: "GET", url: `/api/collections/${items.name}/records` }] } }),
    );
    assert.deepEqual(await titles(), before);
  });

  it("uploads files", async () => {
    const batch = client().createBatch();
    batch.collection(files.name).create({ file: new File(["one"], "one.txt") });
    batch.collection(files.name).create({ file: new File(["two"], "two.txt") });
    const results = await batch.send();
    const bodies = await Promise.all(
      results.map(async (r) => (await fetch(client().files.getURL(r.body, r.body.file))).text()),
    );
    assert.deepEqual(bodies, ["one", "two"]);
  });

  it("takes inner addresses of both forms", { skip: !versioned && "a stock server knows one form" }, async () => {
    const title = unique("inner");
    for (const base of ["/api/collections", "/api/v1/collections"]) {
      const requests = ["a", "b"].map((x) => ({
        method: "POST", url: `${base}/${items.name}/records?fields=title`, body: { title: `${title}${x}` },
      }));
      const results = await client().send("/api/batch", { method: "POST", body: { requests } });
      assert.deepEqual(results.map((r) => r.body), [{ title: `${title}a` }, { title: `${title}b` }]);

      requests.push({ method: "POST", url: `${base}/no_such_collection/records`, body: { title } });
      const err = await failure(400, () => client().send("/api/batch", { method: "POST", body: { requests } }));
      assert.ok(err.response.data.requests["2"], JSON.stringify(err.response));
      assert.equal(typeof err.response.code, "string");
    }
    const found = await client().collection(items.name).getFullList({ filter: client().filter("title ~ {:title}", { title }) });
    assert.equal(found.length, 4);
  });
});
