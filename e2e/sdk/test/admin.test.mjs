import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { client, collection, failure, route, superuser, text, unique, user } from "../support.mjs";

describe("collections", () => {
  it("are created, changed, truncated and deleted", async () => {
    const pb = await superuser();
    const made = await collection("things", { fields: [text("title")] });
    assert.equal(made.type, "base");
    assert.deepEqual(made.fields.map((f) => f.name), ["id", "title"]);

    const changed = await pb.collections.update(made.name, {
      fields: [...made.fields, { name: "size", type: "number" }], indexes: [`CREATE INDEX idx_${made.name} ON ${made.name} (size)`],
    });
    assert.equal(changed.fields.length, 3);
    assert.equal(changed.indexes.length, 1);
    assert.equal((await pb.collections.getOne(made.id)).name, made.name);

    await client().collection(made.name).create({ title: "x", size: 1 });
    await pb.collections.truncate(made.name);
    assert.equal((await client().collection(made.name).getList()).totalItems, 0);
    const listed = await pb.collections.getList(1, 10, { filter: pb.filter("name = {:n}", { n: made.name }), fields: "name" });
    assert.deepEqual(listed.items, [{ name: made.name }]);
  });

  it("are exported and imported", async () => {
    const pb = await superuser();
    const made = await collection("exported", { fields: [text("title")], rules: { deleteRule: null } });
    const exported = (await pb.collections.getFullList()).find((c) => c.id === made.id);
    exported.fields.push({ name: "more", type: "text" });
    const twin = structuredClone(exported);
    twin.name = unique("imported");
    delete twin.id;
    for (const field of twin.fields) {
      delete field.id;
    }
    assert.equal(await pb.collections.import([exported, twin]), true);
    assert.ok((await pb.collections.getOne(made.name)).fields.some((f) => f.name === "more"));
    const imported = await pb.collections.getOne(twin.name);
    assert.equal(imported.deleteRule, null);
    await pb.collections.delete(imported.name);
    await failure(404, () => pb.collections.getOne(twin.name));
  });

  it("say what is wrong", async () => {
    const pb = await superuser();
    const err = await failure(400, () => pb.collections.create({ name: "has space", type: "base", fields: [text("x")], listRule: "nothing = 1" }));
    assert.ok(err.response.data.name.code);
    await failure(400, () => pb.collections.delete("_superusers"));
    const scaffolds = await pb.collections.getScaffolds();
    assert.deepEqual(Object.keys(scaffolds).sort(), ["auth", "base", "view"]);
  });

  it("are for superusers", async () => {
    const member = await user();
    for (const call of [(pb) => pb.collections.getList(), (pb) => pb.collections.create({ name: unique("evil"), type: "base" }), (pb) => pb.collections.import([])]) {
      await failure(403, () => call(member));
      await failure(401, () => call(client()));
    }
  });
});

describe("the server", () => {
  it("keeps its settings", async () => {
    const pb = await superuser();
    const before = await pb.settings.getAll();
    const name = unique("App");
    const changed = await pb.settings.update({ meta: { ...before.meta, appName: name } });
    assert.equal(changed.meta.appName, name);
    assert.equal((await pb.settings.getAll()).meta.appName, name);
    await pb.settings.update({ meta: before.meta });
    const err = await failure(400, () => pb.settings.update({ meta: { ...before.meta, appURL: "" , appName: "" } }));
    assert.ok(err.response.data.meta.appName.code);
    await failure(403, async () => (await user()).settings.getAll());
    await failure(401, () => client().settings.getAll());
  });

  it("shows its logs", async () => {
    const pb = await superuser();
    const page = await pb.logs.getList(1, 5);
    assert.equal(page.page, 1);
    assert.ok(Array.isArray(page.items));
    assert.ok(Array.isArray(await pb.logs.getStats()));
    await failure(404, () => pb.logs.getOne("nothing"));
    await failure(401, () => client().logs.getList());
  });

  it("makes, lists, serves and deletes backups", async () => {
    const pb = await superuser();
    assert.ok(Array.isArray(await pb.backups.getFullList()));
    const name = `${unique("backup")}.zip`;
    assert.equal(await pb.backups.create(name), true);
    const found = (await pb.backups.getFullList()).find((b) => b.key === name);
    assert.ok(found.size > 0);
    const response = await fetch(pb.backups.getDownloadURL(await pb.files.getToken(), name));
    assert.equal(response.status, 200);
    assert.equal(Buffer.from(await response.arrayBuffer()).subarray(0, 2).toString(), "PK");
    assert.notEqual((await fetch(pb.backups.getDownloadURL("no.token.here", name))).status, 200);
    assert.equal(await pb.backups.delete(name), true);
    await failure(400, () => pb.backups.delete(name));
    await failure(401, () => client().backups.getFullList());
  });

  it("is healthy, to guests and to superusers", async () => {
    const guest = await client().health.check();
    assert.deepEqual(guest, { message: "API is healthy.", code: 200, data: {} });
    const admin = await (await superuser()).health.check();
    assert.equal(admin.data.canBackup, true);
  });

  it("lists and runs its crons", async () => {
    const pb = await superuser();
    const jobs = await pb.crons.getFullList();
    assert.ok(jobs.some((job) => job.id === "__pbDBOptimize__"), JSON.stringify(jobs));
    assert.equal(await pb.crons.run("__pbDBOptimize__"), true);
    await failure(404, () => pb.crons.run("nothing"));
  });

  it("runs SQL for superusers only", async () => {
    const result = await (await superuser()).sql.run("SELECT 1 AS one");
    assert.deepEqual(result.rows?.[0] ?? result.items?.[0], ["1"], JSON.stringify(result));
    await failure(403, async () => (await user()).sql.run("SELECT 1"));
  });

  it("serves the dashboard", async () => {
    const response = await fetch(route(client().buildURL("/_/")));
    assert.equal(response.status, 200);
    assert.match(await response.text(), /<html/i);
  });
});
