// WatermelonDB with the LokiJS adapter. watermelon.gen.mjs is the code of docs/clients/watermelon.md.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { before, describe, it } from "node:test";
import { restart } from "../support.mjs";
import { account, Phone, seed, world } from "./world.mjs";
import { sync } from "./watermelon.gen.mjs";

const require = createRequire(import.meta.url);
const { Database, Model, appSchema, tableSchema } = require("@nozbe/watermelondb");
const { schemaMigrations, addColumns } = require("@nozbe/watermelondb/Schema/migrations");
const LokiJSAdapter = require("@nozbe/watermelondb/adapters/lokijs").default;
const logger = require("@nozbe/watermelondb/utils/common/logger").default;
logger.silence();

const table = "wm_notes";
class Note extends Model {
  static table = table;
}

const columns = [
  ["title", "string"], ["body", "string"], ["likes", "number"], ["due", "number", true], ["tags", "string"], ["owner", "string"], ["team", "string"],
  ["updated", "number", true],
].map(([name, type, isOptional = false]) => ({ name, type, isOptional }));

function open(version = 1, persistence, fields = columns) {
  const schema = appSchema({ version, tables: [tableSchema({ name: table, columns: fields })] });
  const migrations = schemaMigrations({
    migrations: version < 2 ? [] : [{ toVersion: 2, steps: [addColumns({ table, columns: [{ name: "body", type: "string" }] })] }],
  });
  const adapter = new LokiJSAdapter({
    dbName: `db${Math.random()}`, schema, migrations: version < 2 ? undefined : migrations, useWebWorker: false, useIncrementalIndexedDB: false,
    extraLokiOptions: { autosave: false }, ...persistence,
  });
  return new Database({ adapter, modelClasses: [Note] });
}

// Device is a phone with a database.
class Device {
  rejected = [];

  static async of(user) {
    return Object.assign(new Device(), { phone: await Phone.of(user), db: open() });
  }
  sync = (options) => sync(this.db, this.phone.call, [table], { onRejected: (rows) => this.rejected.push(...rows), ...options });
  get notes() {
    return this.db.get(table);
  }
  create = (raw) => this.db.write(() => this.notes.create((note) => Object.entries(raw).forEach(([name, value]) => note._setRaw(name, value))));
  async update(id, raw) {
    const note = await this.notes.find(id);
    await this.db.write(() => note.update(() => Object.entries(raw).forEach(([name, value]) => note._setRaw(name, value))));
  }
  async remove(id) {
    const note = await this.notes.find(id);
    await this.db.write(() => note.markAsDeleted());
  }
  async all() {
    const rows = await this.notes.query().fetch();
    return Object.fromEntries(rows.map((row) => [row.id, row._raw]));
  }
  async dirty() {
    return Object.values(await this.all()).filter((row) => row._status !== "synced").length;
  }
}

describe("WatermelonDB", () => {
  let pb, names, ann, bob, a, b, team;

  before(async () => {
    names = await world("wm");
    pb = names.pb;
    [ann, bob] = [await account(), await account()];
    [a, b] = [await Device.of(ann), await Device.of(bob)];
    team = await pb.collection(names.teams).create({ name: "both" });
    await pb.collection(names.members).create({ user: ann.id, team: team.id });
    await pb.collection(names.members).create({ user: bob.id, team: team.id });
  });
  const both = async () => {
    for (const device of [a, b, a, b]) {
      await device.sync();
    }
  };

  it("brings records that were made offline to the other device", async () => {
    const due = Date.UTC(2026, 0, 2, 3, 4, 5, 678);
    const made = await a.create({ title: "one", owner: ann.id, team: team.id, due, tags: '["a","b"]', likes: 3 });
    assert.match(made.id, /^[a-z0-9]{15}$/);
    await both();
    const stored = await pb.collection(table).getOne(made.id);
    assert.deepEqual([stored.due, stored.tags, stored.likes], ["2026-01-02 03:04:05.678Z", ["a", "b"], 3]);
    const there = (await b.all())[made.id];
    assert.deepEqual([there.title, there.due, there.tags], ["one", due, '["a","b"]']);
    assert.equal(there.updated, Date.parse(stored.updated.replace(" ", "T")));
    assert.equal(await a.dirty(), 0);
  });

  it("keeps both edits of a conflict, and the later one of a column", async () => {
    const { id } = await a.create({ title: "conflict", body: "", owner: ann.id, team: team.id });
    await both();
    await a.update(id, { title: "by ann" });
    await b.update(id, { title: "by bob", body: "by bob" });
    await both();
    for (const device of [a, b]) {
      const { title, body } = (await device.all())[id];
      assert.deepEqual([title, body], ["by bob", "by bob"]);
    }
  });

  it("pulls and pushes again when a row changes between pull and push", async () => {
    const { id } = await a.create({ title: "between", owner: ann.id, team: team.id });
    await both();
    await a.update(id, { title: "edited" });
    a.phone.calls = [];
    const call = a.phone.call;
    let done = false;
    a.phone.call = async (path, init) => {
      if (init?.method === "POST" && !done) {
        done = true;
        await pb.collection(table).update(id, { body: "between" });
      }
      return call(path, init);
    };
    await a.sync();
    a.phone.call = call;
    assert.deepEqual(a.phone.calls, ["GET 200", "POST 409", "GET 200", "POST 200"]);
    const { title, body } = await pb.collection(table).getOne(id);
    assert.deepEqual([title, body], ["edited", "between"]);
  });

  it("deletes everywhere, also what the other device has edited", async () => {
    const { id } = await a.create({ title: "to be deleted", owner: ann.id, team: team.id });
    await both();
    await a.remove(id);
    await b.update(id, { title: "edited" });
    await both();
    assert.equal((await b.all())[id], undefined);
    assert.equal((await a.all())[id], undefined);
    assert.equal(await b.dirty(), 0);
  });

  it("undoes what was refused, and never pushes it again", async () => {
    const { id } = await a.create({ title: "ann's", owner: ann.id, team: team.id });
    await both();
    await b.remove(id); // only the owner may
    const { id: forged } = await b.create({ title: "forged", owner: ann.id, team: team.id });
    const { id: long } = await b.create({ title: "bob's", owner: bob.id, team: team.id });
    await b.sync();
    await b.update(long, { title: "x".repeat(201) });
    await b.sync();
    const statuses = Object.fromEntries(b.rejected.map((row) => [row.id, row.status]));
    assert.deepEqual(statuses, { [id]: "denied", [forged]: "denied", [long]: "invalid" });
    const rows = await b.all();
    assert.deepEqual([rows[id].title, rows[forged], rows[long].title], ["ann's", undefined, "bob's"]);
    b.phone.calls = [];
    await b.sync();
    assert.deepEqual(b.phone.calls, ["GET 200"]);
  });

  it("takes away what the user may no longer see, and brings it back", async () => {
    const { id } = await a.create({ title: "shared", owner: ann.id, team: team.id });
    await both();
    assert.ok((await b.all())[id]);
    const membership = await pb.collection(names.members).getFirstListItem(`user = "${bob.id}"`);
    await pb.collection(names.members).delete(membership.id);
    await b.sync();
    assert.deepEqual(Object.values(await b.all()).filter((row) => row.owner !== bob.id), []);
    await pb.collection(names.members).create({ user: bob.id, team: team.id });
    await b.sync();
    assert.equal((await b.all())[id].title, "shared");
  });

  it("goes on after lost answers and a restart of the server", async () => {
    const { id } = await a.create({ title: "lost", owner: ann.id, team: team.id });
    a.phone.lose = 1;
    await assert.rejects(a.sync()); // the pull
    const call = a.phone.call;
    a.phone.call = async (path, init) => {
      a.phone.lose = init?.method === "POST" ? 1 : 0;
      return call(path, init);
    };
    await assert.rejects(a.sync()); // the push
    a.phone.call = call;
    assert.equal(await a.dirty(), 1);
    await a.update(id, { title: "edited before it was acknowledged" });
    await restart();
    a.phone.calls = [];
    await both();
    assert.equal(a.phone.calls.includes("GET 200") && (await a.dirty()), 0);
    assert.equal((await b.all())[id].title, "edited before it was acknowledged");
    const { experimentalStrategy } = await (await a.phone.call(`/api/v1/sync/watermelon?collections=${table}&lastPulledAt=${await a.db.adapter.getLocal("__watermelon_last_pulled_at")}`)).json();
    assert.equal(experimentalStrategy, undefined, "the restart made it start over");
  });

  it("starts over without losing what was not pushed", async () => {
    const { id } = await a.create({ title: "kept", owner: ann.id, team: team.id });
    await a.sync();
    await a.update(id, { title: "edited under another session" });
    const { id: fresh } = await a.create({ title: "fresh", owner: ann.id, team: team.id });
    a.phone = await Phone.of(ann); // a new sign-in: another device for the server
    await pb.collection(table).create({ title: "meanwhile", owner: ann.id });
    await a.sync();
    const rows = await a.all();
    assert.deepEqual([rows[id].title, rows[fresh].title, await a.dirty()], ["edited under another session", "fresh", 0]);
    assert.equal((await pb.collection(table).getOne(id)).title, "edited under another session");
    assert.ok(Object.values(rows).some((row) => row.title === "meanwhile"));
  });

  it("gets the rows of a table again that has a new column", async () => {
    const { LokiMemoryAdapter } = require("lokijs");
    const persistence = { dbName: "migrating", _testLokiAdapter: new LokiMemoryAdapter() };
    const old = new Device();
    old.phone = await Phone.of(ann);
    old.db = open(1, persistence, columns.filter(({ name }) => name !== "body"));
    const { id } = await pb.collection(table).create({ title: "old", body: "has always been there", owner: ann.id });
    await old.sync({ migrationsEnabledAtVersion: undefined });
    const state = await old.db.adapter.getLocal("__watermelon_last_pulled_at");
    await old.db.adapter.underlyingAdapter._driver.loki.saveDatabase();
    const young = new Device();
    young.phone = old.phone;
    young.db = open(2, persistence);
    assert.equal(await young.db.adapter.getLocal("__watermelon_last_pulled_at"), state);
    assert.equal((await young.all())[id].body, "");
    await young.sync({ migrationsEnabledAtVersion: 1 });
    assert.equal((await young.all())[id].body, "has always been there");
  });

  it("pulls 50,000 rows at first", async () => {
    const eve = await account();
    await seed(pb, table, eve.id, 50_000);
    const device = await Device.of(eve);
    const begin = Date.now();
    await device.sync();
    assert.equal(await device.notes.query().fetchCount(), 50_000);
    console.log(`50,000 rows in ${Date.now() - begin} ms, ${device.phone.calls.length} requests`);
    assert.equal(device.phone.calls.length, 5);
    await pb.collection(table).update(Object.keys(await device.all())[0], { title: "one of many" });
    device.phone.calls = [];
    await device.sync();
    assert.ok(Object.values(await device.all()).some((row) => row.title === "one of many"));
    assert.equal(device.phone.calls.length, 1);
  });
});
