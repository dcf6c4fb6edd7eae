// Satchel's own routes, called with the SDK's send().
import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { client, collection, column, failure, number, superuser, text, user } from "../support.mjs";

describe("own routes through send()", () => {
  it("answer health in the envelope", async () => {
    const health = await client().send("/api/v1/health", {});
    assert.equal(health.success, true);
    assert.equal(typeof health.data.status, "string");
    assert.match(health.timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/);
    assert.match(health.requestId, /^[A-Za-z0-9-]{8,64}$/);
    assert.equal(health.data.uptimeSeconds, undefined, "guests do not learn how long the server runs");
    const admin = await (await superuser()).send("/api/v1/health", {});
    assert.equal(typeof admin.data.uptimeSeconds, "number");
  });

  it("fail with a problem that the SDK understands", async () => {
    const err = await failure(404, () => client().send("/api/v1/nothing/here", {}));
    assert.equal(err.response.success, false);
    assert.equal(err.response.status, 404);
    assert.equal(err.response.code, "api.not_found");
    assert.equal(err.message, err.response.message);
    for (const member of ["type", "title", "requestId", "timestamp"]) {
      assert.equal(typeof err.response[member], "string", member);
    }
  });

  it("never treat a bad credential as a guest", async () => {
    const pb = client();
    pb.authStore.save("not.a.token", { id: "nobody" });
    const err = await failure(401, () => pb.send("/api/v1/records/users", {}));
    assert.equal(typeof err.response.code, "string");
    assert.equal((await pb.send("/api/v1/health/live", {})).success, true);
  });
});

describe("cursor lists through send()", () => {
  let items;
  before(async () => {
    items = await collection("paged", { fields: [text("title"), number("rank")] });
    const pb = client();
    for (let rank = 1; rank <= 7; rank++) {
      await pb.collection(items.name).create({ title: `item ${rank}`, rank });
    }
  });
  const list = (query = {}, pb = client()) => pb.send(`/api/v1/records/${items.name}`, { query });

  it("reach the end without a gap or a repeat", async () => {
    const seen = [];
    let cursor;
    for (let page = 1; page <= 3; page++) {
      const answer = await list({ limit: 3, sort: "id", fields: "id", ...(cursor && { cursor }) });
      assert.equal(answer.pagination.limit, 3);
      assert.equal(answer.pagination.hasNext, page < 3);
      seen.push(...column(answer.data, "id"));
      cursor = answer.pagination.nextCursor;
    }
    assert.equal(cursor, null);
    const all = await client().collection(items.name).getFullList({ sort: "id", fields: "id" });
    assert.deepEqual(seen, column(all, "id"));
  });

  it("filter, select and count", async () => {
    const answer = await list({ filter: "rank > 2 && rank < 5", fields: "title", total: true });
    assert.deepEqual(column(answer.data, "title").sort(), ["item 3", "item 4"]);
    assert.equal(answer.pagination.total, 2);
    assert.equal(answer.pagination.nextCursor, null);
  });

  it("read one record", async () => {
    const [first] = (await list({ limit: 1 })).data;
    const one = await client().send(`/api/v1/records/${items.name}/${first.id}`, {});
    assert.deepEqual(one.data, first);
  });

  it("refuse what they cannot page", async () => {
    assert.equal((await failure(400, () => list({ cursor: "forged" }))).response.code, "records.cursor_invalid");
    assert.equal((await failure(400, () => list({ filter: "rank >" }))).response.code, "records.filter_invalid");
    assert.equal((await failure(400, () => list({ sort: "@random" }))).response.code, "records.sort_unsupported");
    await failure(404, () => client().send("/api/v1/records/no_such_collection", {}));
    assert.equal((await list({}, await user())).data.length, 7);
  });
});
